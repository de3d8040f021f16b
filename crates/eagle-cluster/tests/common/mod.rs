//! What the tests share: keys, a server that says who is served, a client.
#![allow(dead_code, clippy::unwrap_used)]

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use bytes::Bytes;
use eagle_cluster::{Accepted, ClusterKey, ClusterKeys, MemberClient, MemberTls, Membership};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use tokio::{net::TcpListener, sync::watch, task::AbortHandle, time::timeout};

/// The longest that anything in a test may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) fn key() -> ClusterKey {
    ClusterKey::generate().unwrap()
}

pub(crate) fn keys(keys: &[&ClusterKey]) -> ClusterKeys {
    let lines: Vec<String> = keys.iter().map(|key| key.expose().to_string()).collect();
    lines.join("\n").parse().unwrap()
}

/// A member by these keys, or anybody; and what its keys are changed by.
pub(crate) fn member(accepted: &[&ClusterKey]) -> (MemberTls, Option<watch::Sender<ClusterKeys>>) {
    if accepted.is_empty() {
        return (MemberTls::new(&Membership::Open).unwrap(), None);
    }
    let (sender, receiver) = watch::channel(keys(accepted));
    (MemberTls::new(&Membership::Keyed(receiver)).unwrap(), Some(sender))
}

/// Answers every request with who asks.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    task: AbortHandle,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub(crate) async fn start(tls: &MemberTls) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, acceptor) = (listener.local_addr().unwrap(), tls.acceptor());
        let accepting = async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(Accepted { stream, who }) = acceptor.accept(stream).await else { return };
                    let answer = service_fn(async |_| {
                        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(format!("{who:?}")))))
                    });
                    let mut builder = http1::Builder::new();
                    let _ = builder.timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), answer).await;
                });
            }
        };
        Self { address, task: tokio::spawn(accepting).abort_handle() }
    }

    pub(crate) fn url(&self, scheme: &str) -> String {
        format!("{scheme}://{}/", self.address)
    }
}

pub(crate) type TestClient = MemberClient<Full<Bytes>>;

pub(crate) fn client(tls: &MemberTls) -> TestClient {
    MemberClient::new(tls, HttpConnector::new(), Client::builder(TokioExecutor::new()))
}

/// Asks; gives the answer, or all that the error says.
pub(crate) async fn ask(client: &TestClient, url: &str) -> Result<String, String> {
    let request = Request::get(url).body(Full::default()).unwrap();
    let ask = async {
        let response = client.request(request).await.map_err(|error| eagle_cluster::with_sources(&error))?;
        let body = response.into_body().collect().await.map_err(|error| eagle_cluster::with_sources(&error))?;
        Ok(String::from_utf8(body.to_bytes().to_vec()).unwrap())
    };
    timeout(DEADLINE, ask).await.unwrap()
}
