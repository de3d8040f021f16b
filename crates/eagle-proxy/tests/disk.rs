//! A disk that fails under a running proxy: no runtime notices.
#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod common;

use std::{fs::File, os::unix::fs::FileExt as _, path::Path};

use common::{DEADLINE, ProxyOptions, TestProxy, blob_path, layer, open, origin};
use eagle_core::{Digest, units::Rate};
use eagle_registry::embedded::{Fault, FaultRule, FaultTarget};
use http::Method;
use http_body_util::BodyExt;
use tokio::time::timeout;

const MIB: u64 = 1 << 20;

fn file(data: &Path, digest: Digest, name: &str) -> File {
    let hex = digest.hex();
    let path = data.join("blobs/blobs/sha256").join(&hex[..2]).join(&hex).join(name);
    File::options().read(true).write(true).open(path).unwrap()
}

fn flip(file: &File, offset: u64) {
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
}

fn damaged(proxy: &TestProxy) -> u64 {
    proxy.proxy.cache().stats().damaged
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warm_blob_that_is_damaged_comes_from_elsewhere_and_is_cached_anew() {
    let origin = origin(&[5 * MIB]).await;
    let digest = layer(&origin.images()[0], 0);
    let options = ProxyOptions::new(&origin);
    let proxy = options.start().await;
    proxy.pull(digest).await;
    type Damage = fn(&File);
    let kinds: [(&str, Damage); 3] = [
        ("a flipped bit", |file| flip(file, 4 * MIB + 77)),
        ("a shorter file", |file| file.set_len(3 * MIB).unwrap()),
        ("other content", |file| file.write_all_at(&[7; 2 << 20], MIB).unwrap()),
    ];
    for (count, (what, damage)) in (1..).zip(kinds) {
        damage(&file(proxy.data.path(), digest, "data"));
        // Checks the digest of what came.
        proxy.pull(digest).await;
        assert_eq!(damaged(&proxy), count, "{what}");
        proxy.pull(digest).await;
        assert_eq!(damaged(&proxy), count, "{what}: what is cached now is right");
    }
    // While it did not run.
    let data = proxy.stop().await;
    flip(&file(data.path(), digest, "data"), 5 * MIB - 1);
    let proxy = options.start_in(data).await;
    for _ in 0..2 {
        proxy.pull(digest).await;
        assert_eq!(damaged(&proxy), 1);
    }
    assert_eq!(origin.stats().blob(digest).bytes, (1 + 4) * 5 * MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_under_way_goes_on_from_the_byte_that_it_reached() {
    // More than sockets and queues hold.
    let size = 48 * MIB;
    let origin = origin(&[size]).await;
    let digest = layer(&origin.images()[0], 0);
    let proxy = ProxyOptions::new(&origin).start().await;
    proxy.pull(digest).await;
    for (count, (headers, start)) in (1..).zip([(&[][..], 0), (&[("range", "bytes=1000000-")][..], 1_000_000)]) {
        let (status, _, mut body) = open(proxy.address, Method::GET, &blob_path(&digest), headers).await;
        assert!(status.is_success());
        let mut bytes = body.frame().await.unwrap().unwrap().into_data().unwrap().to_vec();
        file(proxy.data.path(), digest, "data").set_len(size - MIB).unwrap();
        while let Some(frame) = body.frame().await {
            bytes.extend_from_slice(&frame.expect("the response is not cut").into_data().unwrap());
        }
        assert_eq!(bytes.len() as u64, size - start);
        let whole = proxy.get(&blob_path(&digest)).await.whole();
        assert_eq!(Digest::of(&whole), digest);
        assert!(bytes == whole[usize::try_from(start).unwrap()..], "other bytes than the origin's");
        assert_eq!(damaged(&proxy), count);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_read_a_blob_when_it_is_damaged_all_get_it_and_it_is_fetched_once_more() {
    let origin = origin(&[6 * MIB]).await;
    let digest = layer(&origin.images()[0], 0);
    let proxy = ProxyOptions::new(&origin).start().await;
    proxy.pull(digest).await;
    flip(&file(proxy.data.path(), digest, "data"), 3 * MIB);
    futures::future::join_all((0..12).map(|_| proxy.pull(digest))).await;
    assert_eq!(damaged(&proxy), 1);
    assert_eq!(origin.stats().blob(digest).bytes, 2 * 6 * MIB, "once at first, and once again");
}

/// Reads a blob that a registry gives, wrong at first where `wrong`, and takes the disk from under it after a MiB, when the
/// registry is right again. Whether the answer ended well; it must not have with other bytes than those of the blob.
async fn ends_well(wrong: bool, fail: impl AsyncFn(&TestProxy, Digest)) -> bool {
    let size = 8 * MIB;
    let origin = origin(&[size]).await;
    let digest = layer(&origin.images()[0], 0);
    let mut options = ProxyOptions::new(&origin);
    // Slow enough to be caught in the middle.
    options.rate = Rate::Limited(3 * MIB);
    let proxy = options.start().await;
    proxy.manifest().await;
    if wrong {
        origin.set_faults(vec![FaultRule::always(FaultTarget::Blob(digest), Fault::CorruptAt(10))]);
    }
    let (_, _, mut body) = open(proxy.address, Method::GET, &blob_path(&digest), &[]).await;
    let (mut received, mut failed) = (Vec::new(), false);
    let read = async {
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return false };
            received.extend_from_slice(&frame.into_data().unwrap_or_default());
            if received.len() as u64 > MIB && !failed {
                origin.set_faults(Vec::new());
                fail(&proxy, digest).await;
                failed = true;
            }
        }
        true
    };
    let well = timeout(DEADLINE, read).await.unwrap() && received.len() as u64 == size;
    assert!(failed && !proxy.proxy.cache().contains(digest));
    assert!(!well || Digest::of(&received) == digest, "wrong bytes ended well");
    well
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_given_before_the_blob_was_taken_away_has_to_match_too() {
    let remove = async |proxy: &TestProxy, digest| assert!(proxy.proxy.cache().remove(digest).await);
    assert!(ends_well(false, remove).await);
    assert!(!ends_well(true, remove).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_given_and_cannot_be_read_back_has_to_match_too() {
    let empty = async |proxy: &TestProxy, digest| {
        let partial = file(proxy.data.path(), digest, "partial");
        assert!(proxy.proxy.cache().remove(digest).await);
        // Nothing is written to it any more. It takes some tasks until what was given is read back.
        partial.set_len(0).unwrap();
    };
    assert!(ends_well(false, empty).await);
    assert!(!ends_well(true, empty).await);
}
