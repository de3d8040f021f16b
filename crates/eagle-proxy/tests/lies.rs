//! Seeders that lie: what a runtime gets is decided by the digest of the blob.
#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod common;

use std::sync::{Arc, Mutex, OnceLock};

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

/// A seeder that answers every question for metainfo so, and has no content. What it says nothing more after stays open.
async fn seeder(answer: impl Fn(Digest) -> (BytesMut, Then) + Send + Sync + 'static) -> url::Url {
    let listener = TcpListener::bind(local()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = Arc::clone(&answer);
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
                let (frames, then) = answer(digest);
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: application/vnd.eagle.metainfo.v2\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n",
                    frames.len()
                );
                let _ = stream.write_all(&[head.as_bytes(), &frames, b"\r\n"].concat()).await;
                match then {
                    Then::End => drop(stream.write_all(b"0\r\n\r\n").await),
                    Then::Stay => drop(stream.read(&mut request).await),
                }
            });
        }
    });
    format!("http://{address}").parse().unwrap()
}

/// What a seeder does after what it said.
#[derive(Clone, Copy)]
enum Then {
    End,
    /// As one does that is still fetching.
    Stay,
}

/// A seeder that answers for every blob with the metainfo of other bytes of the same length.
async fn lying_seeder(lie: Vec<u8>) -> url::Url {
    seeder(move |digest| (wrong(digest, &lie), Then::Stay)).await
}

/// The beginning of metainfo of other bytes.
fn wrong(digest: Digest, lie: &[u8]) -> BytesMut {
    let geometry = Geometry::auto(lie.len() as u64).unwrap();
    let lie = Metainfo::of(Algorithm::Sha256, geometry, lie);
    // The last one is the digest itself, which no lie can pass.
    frames(digest, geometry, [Frame::Hashes(lie.hashes[..lie.hashes.len() - 1].to_vec())])
}

fn frames(digest: Digest, geometry: Geometry, rest: impl IntoIterator<Item = Frame>) -> BytesMut {
    let mut frames = BytesMut::new();
    encode(&Frame::Header { digest, geometry, seeder: PeerInfo::example() }, &mut frames).unwrap();
    for frame in rest {
        encode(&frame, &mut frames).unwrap();
    }
    frames
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

/// The first seeder has fetched wrong bytes, and finds out. The second one has the right ones, and the registry is not asked for
/// more than the content, which neither has.
#[tokio::test(flavor = "multi_thread")]
async fn a_seeder_that_another_contradicts_is_left_out() {
    let origin = origin(&[MIB as u64]).await;
    let digest = layer(&origin.images()[0], 0);
    let right = {
        let proxy = ProxyOptions::new(&origin).start().await;
        proxy.manifest().await;
        proxy.get(&blob_path(&digest)).await.whole()
    };
    // Whoever is asked first is the one that is wrong.
    let (liar, asked) = (Arc::new(OnceLock::new()), Arc::new(Mutex::new([0, 0])));
    let mut options = ProxyOptions::new(&origin);
    options.seeders.clear();
    for number in 0..2 {
        let (liar, asked, right) = (Arc::clone(&liar), Arc::clone(&asked), right.clone());
        let answer = move |of: Digest| {
            let geometry = Geometry::auto(MIB as u64).unwrap();
            if of != digest {
                return (frames(of, geometry, [Frame::Failed("not here".to_owned())]), Then::End);
            }
            asked.lock().unwrap()[number] += 1;
            if *liar.get_or_init(|| number) == number {
                let mut said = wrong(of, &[7; MIB]);
                encode(&Frame::Failed("the registry sent something else".to_owned()), &mut said).unwrap();
                return (said, Then::End);
            }
            let hashes = Metainfo::of(Algorithm::Sha256, geometry, &right).hashes;
            (frames(of, geometry, [Frame::Hashes(hashes), Frame::Complete]), Then::End)
        };
        options.seeders.push(seeder(answer).await);
    }
    let proxy = options.start().await;
    proxy.manifest().await;
    let path = blob_path(&digest);
    let response = proxy.get(&path).await;
    assert!(response.status == 200 && response.whole() == right);
    let asked = *asked.lock().unwrap();
    let liar = *liar.get().unwrap();
    assert_eq!(
        (asked[liar], asked[1 - liar]),
        (1, 2),
        "the second attempt believes the other seeder, and not the registry alone"
    );
}
