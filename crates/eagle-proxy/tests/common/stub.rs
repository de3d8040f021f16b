//! An origin that answers whatever a test tells it to.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use eagle_registry::RegistryConfig;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, task::AbortHandle};

type Answer = dyn Fn(&Request<Bytes>) -> Response<Bytes> + Send + Sync;

/// Runs until it is dropped.
pub(crate) struct StubOrigin {
    pub(crate) address: SocketAddr,
    requests: Arc<Mutex<Vec<Request<Bytes>>>>,
    accepting: AbortHandle,
}

impl StubOrigin {
    pub(crate) async fn start(answer: impl Fn(&Request<Bytes>) -> Response<Bytes> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(super::local()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::<Mutex<Vec<Request<Bytes>>>>::default();
        let (answer, seen): (Arc<Answer>, _) = (Arc::new(answer), Arc::clone(&requests));
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, seen) = (Arc::clone(&answer), Arc::clone(&seen));
                let service = service_fn(move |request: Request<Incoming>| {
                    let (answer, seen) = (Arc::clone(&answer), Arc::clone(&seen));
                    async move {
                        let (parts, body) = request.into_parts();
                        // A body that breaks off is one that the origin never has whole.
                        let Ok(body) = body.collect().await else { std::future::pending().await };
                        let request = Request::from_parts(parts, body.to_bytes());
                        let response = answer(&request).map(Full::new);
                        seen.lock().unwrap().push(request);
                        Ok::<_, Infallible>(response)
                    }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { address, requests, accepting: accepting.abort_handle() }
    }

    /// How a proxy reaches it.
    pub(crate) fn config(&self) -> RegistryConfig {
        RegistryConfig {
            url: Some(super::url(self.address)),
            connect_timeout: Duration::from_secs(2),
            stall_timeout: Duration::from_secs(2),
            ..RegistryConfig::new(self.address.to_string().parse().unwrap())
        }
    }

    /// What it was asked so far, with the bodies.
    pub(crate) fn requests(&self) -> Vec<Request<Bytes>> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for StubOrigin {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// An answer with these headers.
pub(crate) fn respond(status: u16, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Response<Bytes> {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(body.into()).unwrap()
}
