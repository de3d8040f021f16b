//! Clients that never end: a form that never comes whole, an answer that is never read.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
#[path = "../../eagle-cluster/testing/endless.rs"]
mod endless;

use std::time::Duration;

use common::{ProxyOptions, blob_path, layer, origin};
use endless::say;

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
