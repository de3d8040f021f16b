//! Clients that never end: a form that never comes whole, an answer that is never read.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
#[path = "../../eagle-cluster/testing/endless.rs"]
mod endless;

use std::time::Duration;

use bytes::Bytes;
use common::{
    DEADLINE, ProxyOptions, TestProxy, blob_path,
    intercepted::{Authority, HOST, ask, get, named},
    layer, origin,
};
use eagle_core::Digest;
use endless::{pass, say};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{task::JoinHandle, time::timeout};

/// More than a proxy takes in for a reader, bytes.
const LARGE: u64 = 8 << 20;

#[tokio::test]
async fn a_form_that_never_ends_is_given_up() {
    let origin = origin(&[1]).await;
    let proxy = ProxyOptions::new(&origin).start().await;
    let head = "POST /eagle/token HTTP/1.1\r\nHost: x\r\nConnection: close\r\n";
    for rest in ["Content-Length: 100\r\n\r\ngrant_type=", "Transfer-Encoding: chunked\r\n\r\nb\r\ngrant_type=\r\n"] {
        let answer = say(proxy.address, &format!("{head}{rest}"), Duration::from_secs(10)).await;
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("did not come"), "{rest}: {answer}");
    }
}

#[tokio::test]
async fn a_reader_that_takes_nothing_is_given_up_and_a_slow_one_is_not() {
    let origin = origin(&[LARGE]).await;
    let proxy = ProxyOptions::new(&origin).start().await;
    let digest = layer(&origin.images()[0], 0);
    proxy.pull(digest).await;
    let target = blob_path(&digest);
    let slow = endless::read(proxy.address, &target, true, [115; 3]).await;
    assert!(slow > LARGE, "{slow} bytes of {LARGE} and a head were read, slowly");
    let stalled = endless::read(proxy.address, &target, false, [1, 100, 25]).await;
    assert!(stalled < LARGE, "all was sent to who took nothing for long");
    let patient = endless::read(proxy.address, &target, false, [1, 1, 110]).await;
    assert!(patient > LARGE, "{patient} bytes of {LARGE} and a head were read, late");
}

/// A connection of HTTP/2, and what tells of its end.
struct Kept {
    _sender: http2::SendRequest<Full<Bytes>>,
    connection: JoinHandle<hyper::Result<()>>,
}

/// A reader over HTTP/2 whose streams have this window, and no more before it reads: what it is to read.
async fn reader(authority: &Authority, proxy: &TestProxy, digest: &Digest, window: u32) -> (Incoming, Kept) {
    let stream = TokioIo::new(authority.connect(proxy, "h2").await.unwrap());
    let mut client = http2::Builder::new(TokioExecutor::new());
    let (mut sender, connection) = client.initial_stream_window_size(window).handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = get(http::Version::HTTP_2, HOST, &blob_path(digest));
    let answer = timeout(DEADLINE, sender.send_request(request)).await.unwrap().unwrap();
    assert_eq!(answer.status(), 200);
    (answer.into_body(), Kept { _sender: sender, connection })
}

#[tokio::test]
async fn a_reader_over_http2_that_gives_no_window_is_given_up_and_a_slow_one_is_not() {
    /// What a stream's window is where nothing else is said.
    const WINDOW: u32 = 65_535;
    let origin = origin(&[LARGE]).await;
    let authority = Authority::new();
    let proxy = named(&origin).start_with(Authority::configure(authority.directory.path())).await;
    let digest = layer(&origin.images()[0], 0);
    let whole = async || {
        let stream = authority.connect(&proxy, "h2").await.unwrap();
        assert_eq!(
            Digest::of(&ask(stream, get(http::Version::HTTP_2, HOST, &blob_path(&digest))).await.whole()),
            digest
        );
    };
    let stream = authority.connect(&proxy, "h2").await.unwrap();
    assert_eq!(ask(stream, get(http::Version::HTTP_2, HOST, "/v2/library/app/manifests/1")).await.status, 200);
    whole().await;
    // With no window at all not even the first bytes are handed over; with some the rest waits.
    let stalled = [reader(&authority, &proxy, &digest, 0).await, reader(&authority, &proxy, &digest, WINDOW).await];
    // One that takes some now and then, and everything in the end.
    let (mut slow, _kept) = reader(&authority, &proxy, &digest, WINDOW).await;
    let mut taken = 0;
    let mut take = async |slow: &mut Incoming, least: u64| {
        while taken < least {
            let Some(frame) = timeout(DEADLINE, slow.frame()).await.unwrap() else { break };
            taken += frame.unwrap().into_data().unwrap().len() as u64;
        }
        taken
    };
    take(&mut slow, 1 << 20).await;
    pass(Duration::from_secs(100)).await;
    take(&mut slow, 2 << 20).await;
    assert!(stalled.iter().all(|(_, kept)| !kept.connection.is_finished()), "they have some time left");
    whole().await;
    pass(Duration::from_secs(25)).await;
    for (body, kept) in stalled {
        let _ = timeout(DEADLINE, kept.connection).await.expect("the connection ends").unwrap();
        assert!(timeout(DEADLINE, body.collect()).await.unwrap().is_err(), "all was sent to who gave no window");
    }
    for part in 3..5 {
        pass(Duration::from_secs(85)).await;
        take(&mut slow, part << 20).await;
    }
    assert_eq!(take(&mut slow, u64::MAX).await, LARGE);
    whole().await;
}
