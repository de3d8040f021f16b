//! What a registry that is faster than the limit can send before it is read.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use common::loopback;
use eagle_core::{Digest, units::Rate};
use eagle_registry::{Caller, Registries, RegistryConfig};
use http_body_util::BodyExt as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpSocket,
};

/// Bytes a second.
const RATE: u64 = 2_000_000;
/// The server's own buffer, bytes.
const SENDING: u32 = 64 << 10;
/// What the HTTP client itself reads before it is asked for, bytes.
const CLIENT: u64 = 2 * eagle_registry::HTTP_READ_AHEAD as u64;
/// How long it is looked at.
const TIME: Duration = Duration::from_secs(2);

/// A server that sends one endless blob as fast as it can: its address, and what has left it.
async fn fast_server() -> (url::Url, Arc<AtomicU64>) {
    let socket = TcpSocket::new_v4().unwrap();
    // Accepted connections have the same.
    socket.set_send_buffer_size(SENDING).unwrap();
    socket.bind(loopback()).unwrap();
    let listener = socket.listen(8).unwrap();
    let address = listener.local_addr().unwrap();
    let sent = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&sent);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let counted = Arc::clone(&counted);
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n").await;
                while let Ok(written @ 1..) = stream.write(&[7; 16 << 10]).await {
                    counted.fetch_add(written as u64, Ordering::Relaxed);
                }
            });
        }
    });
    (format!("http://{address}").parse().unwrap(), sent)
}

/// Reads at a rate, and gives the most by which the server was ahead.
async fn ahead(host: Option<Rate>) -> u64 {
    let (url, sent) = fast_server().await;
    let name = url.authority().parse().unwrap();
    let registries = Registries::new(vec![RegistryConfig { url: Some(url), ..RegistryConfig::new(name) }]).unwrap();
    if let Some(rate) = host {
        registries.paced_by(move || rate);
    }
    let registry = registries.get(&registries.configured()[0]);
    let repository = "a".parse().unwrap();
    let mut body = registry.blob(&repository, Digest::of(b"x"), 0, &Caller::anonymous()).await.unwrap().body;
    let begin = Instant::now();
    let (mut read, mut most) = (0, 0);
    while begin.elapsed() < TIME {
        // As the limiters do: what has come is paid for before more is read.
        read += body.frame().await.unwrap().unwrap().data_ref().unwrap().len() as u64;
        let due = Duration::from_secs_f64(read as f64 / RATE as f64);
        tokio::time::sleep(due.saturating_sub(begin.elapsed())).await;
        most = most.max(sent.load(Ordering::Relaxed) - read);
    }
    most
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kernel_holds_little_more_than_the_limit_allows() {
    let bounded = ahead(Some(Rate::Limited(RATE))).await;
    // A tenth of a second, and the server's buffer. The kernel doubles what it is asked for, for its own records.
    let allowed = 2 * (RATE / 10 + u64::from(SENDING)) + CLIENT;
    assert!(bounded <= allowed, "{bounded} bytes were ahead, {allowed} are allowed");
    println!("{bounded} bytes were ahead at a limit, {} without", ahead(None).await);
}
