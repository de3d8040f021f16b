//! Seeders that lie: what a runtime gets is decided by the digest of the blob.
#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod common;

use bytes::BytesMut;
use common::{ProxyOptions, blob_path, layer, local, origin};
use eagle_core::{
    Digest, Geometry, Metainfo, PeerInfo,
    digest::Algorithm,
    metainfo::{Frame, encode},
};
use http::Uri;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

const MIB: usize = 1 << 20;

/// A seeder that answers for every blob with the metainfo of other bytes of the same length, and has no content.
async fn lying_seeder(lie: Vec<u8>) -> url::Url {
    let listener = TcpListener::bind(local()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let lie = lie.clone();
            tokio::spawn(async move {
                let mut request = vec![0; 16 << 10];
                let read = stream.read(&mut request).await.unwrap_or(0);
                let line = String::from_utf8_lossy(&request[..read]);
                let path: Uri = line.split(' ').nth(1).unwrap_or("/").parse().unwrap();
                let digest = path.path().split('/').find_map(|part| part.parse::<Digest>().ok());
                let (Some(digest), true) = (digest, path.path().ends_with("/metainfo")) else {
                    let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await;
                    return;
                };
                let _ = stream.write_all(&metainfo(digest, &lie)).await;
                // It stays alive and says nothing more, as a seeder does that is still fetching.
                let _ = stream.read(&mut request).await;
            });
        }
    });
    format!("http://{address}").parse().unwrap()
}

fn metainfo(digest: Digest, lie: &[u8]) -> Vec<u8> {
    let geometry = Geometry::auto(lie.len() as u64).unwrap();
    let lie = Metainfo::of(Algorithm::Sha256, geometry, lie);
    let mut frames = BytesMut::new();
    encode(&Frame::Header { digest, geometry, seeder: PeerInfo::example() }, &mut frames).unwrap();
    // The last one is the digest itself, which no lie can pass.
    encode(&Frame::Hashes(lie.hashes[..lie.hashes.len() - 1].to_vec()), &mut frames).unwrap();
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/vnd.eagle.metainfo.v2\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n",
        frames.len()
    );
    [head.as_bytes(), &frames, b"\r\n"].concat()
}

/// Pulls a blob from a cluster whose seeder has the hashes of `lie` of it.
async fn pull(lie: impl FnOnce(Vec<u8>) -> Vec<u8>) {
    let origin = origin(&[MIB as u64]).await;
    let digest = layer(&origin.images()[0], 0);
    let right = {
        let proxy = ProxyOptions::new(&origin).start().await;
        proxy.manifest().await;
        proxy.get(&blob_path(&digest)).await.whole()
    };
    let mut options = ProxyOptions::new(&origin);
    options.seeders = vec![lying_seeder(lie(right.to_vec())).await];
    let proxy = options.start().await;
    proxy.manifest().await;
    // This pull waits for pieces by hashes that nothing matches; then the digest alone decides.
    let path = blob_path(&digest);
    let (first, second) = tokio::join!(proxy.get(&path), proxy.get_with(&path, &[("range", "bytes=100000-")]));
    assert_eq!((first.status.as_u16(), second.status.as_u16()), (200, 206));
    assert!(first.whole() == right && second.whole() == right[100_000..]);
    assert!(proxy.proxy.cache().contains(digest));
    let failures = proxy.metric("eagle_proxy_verification_failures_total", "");
    assert!(failures >= 1.0, "nobody has lied");
}

#[tokio::test(flavor = "multi_thread")]
async fn hashes_that_the_registry_contradicts_do_not_keep_a_blob_away() {
    pull(|right| vec![7; right.len()]).await;
}

/// The runtime has half of the blob already, and it is right.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_began_goes_on_after_the_lie() {
    pull(|mut right| {
        let half = right.len() / 2;
        right[half..].fill(7);
        right
    })
    .await;
}
