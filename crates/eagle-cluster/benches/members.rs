//! What it costs that members prove their membership, against plain HTTP.
//!
//! `cargo bench -p eagle-cluster --bench members`. Both ends are in this process, over loopback, so the CPU time is that
//! of both. Nothing is done with requests and bodies: what an announce or a blob costs beside its way is not in here.
#![allow(clippy::print_stdout)]

use std::{convert::Infallible, net::SocketAddr, time::Instant};

use bytes::Bytes;
use eagle_cluster::{Accepted, ClusterKey, ClusterKeys, MemberClient, MemberTls, Membership};
use futures::{StreamExt as _, stream};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use rustix::time::{ClockId, clock_gettime};
use tokio::{net::TcpListener, sync::watch};

/// An announce of a few blobs, and an answer that names a few peers, bytes.
const ANNOUNCE: (usize, usize) = (1_000, 4_000);
/// Exchanges at a time, and in all.
const CLIENTS: usize = 16;
const EXCHANGES: usize = 100_000;
/// Connections that are made anew.
const CONNECTIONS: usize = 4_000;
/// Bytes of one body, in parts as the seeder sends them.
const BULK: usize = 4 << 30;
const PART: usize = 256 << 10;

/// Seconds on the clock and of this process's CPU time, of some work.
async fn measured(work: impl Future<Output = ()>) -> (f64, f64) {
    let cpu = || {
        let time = clock_gettime(ClockId::ProcessCPUTime);
        #[expect(clippy::cast_precision_loss, reason = "seconds of one run")]
        let seconds = time.tv_sec as f64 + time.tv_nsec as f64 / 1e9;
        seconds
    };
    let (begun, before) = (Instant::now(), cpu());
    work.await;
    (begun.elapsed().as_secs_f64(), cpu() - before)
}

type Body = http_body_util::combinators::BoxBody<Bytes, Infallible>;

async fn answer(request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    if request.uri().path() == "/bulk" {
        let part = Bytes::from(vec![7; PART]);
        let parts = stream::iter((0..BULK / PART).map(move |_| Ok(Frame::data(part.clone()))));
        return Ok(Response::new(Body::new(StreamBody::new(parts))));
    }
    let _ = request.into_body().collect().await;
    Ok(Response::new(Full::new(Bytes::from(vec![b'x'; ANNOUNCE.1])).boxed()))
}

async fn serve(tls: &MemberTls) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback can be listened on");
    let (address, acceptor) = (listener.local_addr().expect("it listens"), tls.acceptor());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let _ = stream.set_nodelay(true);
                let Ok(Accepted { stream, .. }) = acceptor.accept(stream).await else { return };
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)).await;
            });
        }
    });
    address
}

/// A client whose connections stay open, or not.
fn client(tls: &MemberTls, idle: usize) -> MemberClient<Full<Bytes>> {
    let mut http = HttpConnector::new();
    http.set_nodelay(true);
    let mut builder = Client::builder(TokioExecutor::new());
    builder.pool_max_idle_per_host(idle);
    MemberClient::new(tls, http, builder)
}

async fn announce(client: &MemberClient<Full<Bytes>>, address: SocketAddr) {
    let body = Full::new(Bytes::from(vec![b'x'; ANNOUNCE.0]));
    let request = Request::post(format!("http://{address}/")).body(body).expect("a request");
    let response = client.request(request).await.expect("an answer");
    response.into_body().collect().await.expect("all of it");
}

/// So many exchanges by one client, 16 at a time.
async fn exchanges(client: &MemberClient<Full<Bytes>>, address: SocketAddr, count: usize) -> (f64, f64) {
    announce(client, address).await;
    measured(stream::iter(0..count).for_each_concurrent(CLIENTS, |_| announce(client, address))).await
}

async fn run(name: &str, node: impl Fn() -> MemberTls) {
    let tls = &node();
    let address = serve(tls).await;
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let show = |what: &str, count: usize, (seconds, cpu): (f64, f64)| {
        let count = count as f64;
        println!("{name:6} {what:34} {:>9.0} /s    {:>8.1} CPU us each", count / seconds, cpu / count * 1e6);
    };
    show("exchanges on kept connections", EXCHANGES, exchanges(&client(tls, CLIENTS), address, EXCHANGES).await);
    show("exchanges, each on a new one", CONNECTIONS, exchanges(&client(tls, 0), address, CONNECTIONS).await);
    // Nodes that were never here before have no session to resume.
    let nodes: Vec<MemberTls> = (0..CONNECTIONS / 4).map(|_| node()).collect();
    let newcomers = stream::iter(&nodes).for_each_concurrent(CLIENTS, async |node| {
        announce(&client(node, 0), address).await;
    });
    show("exchanges, each by a new node", nodes.len(), measured(newcomers).await);
    let bulk = measured(async {
        let request = Request::get(format!("http://{address}/bulk")).body(Full::default()).expect("a request");
        let mut body = client(tls, 1).request(request).await.expect("an answer").into_body();
        let mut received = 0;
        while let Some(frame) = body.frame().await {
            received += frame.expect("all of it").data_ref().map_or(0, Bytes::len);
        }
        assert_eq!(received, BULK);
    });
    let (seconds, cpu) = bulk.await;
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let gigabytes = BULK as f64 / 1e9;
    println!("{name:6} {:34} {:>9.2} GB/s  {:>8.2} CPU s/GB", "one large body", gigabytes / seconds, cpu / gigabytes);
}

#[tokio::main]
async fn main() {
    let key = ClusterKey::generate().expect("random numbers");
    let (_keys, receiver) = watch::channel(ClusterKeys::one(key));
    let membership = Membership::Keyed(receiver);
    run("plain", MemberTls::open).await;
    run("TLS", || MemberTls::new(&membership).expect("certificates can be made")).await;
}
