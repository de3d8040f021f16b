//! Seeders among others: trackers, peers, each other, and clients that mean no good.
#![allow(clippy::unwrap_used)]

mod common;

use std::{path::Path, sync::Arc, time::Duration};

use common::{LAYER, Origin, Running, any_port, config, memory, piece_hashes, story, until, within};
use eagle_core::{
    Digest, Metainfo, NodeRole, PieceIndex,
    metainfo::Frame,
    units::{Rate, Size},
};
use eagle_p2p::node::{Node, NodeConfig};
use eagle_registry::Caller;
use eagle_seeder::{SeederClient, SeederConfig, SeederError};
use eagle_store::{Cache, MemoryStorage};
use eagle_tracker::{Tracker, TrackerConfig};
use prometheus_client::registry::Registry;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;

/// A peer gets pieces from the seeder while the seeder still gets them from the origin.
#[tokio::test]
async fn pieces_are_offered_as_they_come() {
    let origin = Origin::start(&[LAYER]).await;
    let content = origin.content(0, &Caller::anonymous()).await;
    origin.registry().set_rate(Rate::Limited(1 << 20));
    let running = Running::start(memory(), origin.registries()).await;
    let shutdown = CancellationToken::new();
    let cache = Cache::open(Arc::new(MemoryStorage::new()), 1 << 30).await.unwrap();
    let node = Node::start(NodeConfig::local(NodeRole::Proxy), Arc::clone(&cache), shutdown.clone()).await.unwrap();

    let mut stream = running.metainfo(&origin, 0, &Caller::anonymous()).await.unwrap();
    let Some(Ok(Frame::Header { digest, geometry, seeder })) = stream.next().await else { panic!() };
    let entry = cache.create(digest, geometry).await.unwrap();
    let swarm = node.join(entry.clone(), Metainfo::new(digest, geometry), true).await;
    swarm.add_peers(vec![seeder]).await;
    let mut pieces = swarm.pieces();
    let feed = async {
        let mut known = 0;
        while let Some(frame) = stream.next().await {
            if let Frame::Hashes(hashes) = frame.unwrap() {
                let count = u32::try_from(hashes.len()).unwrap();
                swarm.add_hashes(known, hashes).await;
                known += count;
            }
        }
        assert_eq!(known, geometry.pieces());
    };
    let watch = async {
        pieces.wait_for(|pieces| pieces.contains(PieceIndex(0))).await.unwrap();
        assert_eq!(running.seeder.counters().blobs_completed, 0, "cut through");
        origin.registry().set_rate(Rate::Unlimited);
        pieces.wait_for(|pieces| pieces.is_full()).await.unwrap();
    };
    within(async { tokio::join!(feed, watch) }).await;
    let read = entry.reader().read_at(0, content.len()).await.unwrap();
    assert_eq!(read, content);
    assert_eq!(running.metric("eagle_seeder_uploaded_bytes_total "), content.len() as f64);
    // The seeder goes on serving from its cache.
    let other_cache = Cache::open(Arc::new(MemoryStorage::new()), 1 << 30).await.unwrap();
    let config = NodeConfig::local(NodeRole::Proxy);
    let other = Node::start(config, Arc::clone(&other_cache), shutdown.clone()).await.unwrap();
    let entry = other_cache.create(digest, geometry).await.unwrap();
    let metainfo = Metainfo { digest, geometry, hashes: piece_hashes(&content) };
    let swarm = other.join(entry, metainfo, true).await;
    swarm.add_peers(vec![running.seeder.info()]).await;
    within(swarm.pieces().wait_for(|pieces| pieces.is_full())).await.unwrap();
    assert_eq!(origin.registry().stats().blob(digest).gets, 2, "one of them by this test");
    shutdown.cancel();
    within(node.stopped()).await;
    within(other.stopped()).await;
    running.stop().await;
}

async fn start_tracker(shutdown: &CancellationToken) -> (Tracker, url::Url) {
    let config = TrackerConfig {
        listen: any_port(),
        interval_idle: Duration::from_millis(200),
        interval_active: Duration::from_millis(100),
        ..TrackerConfig::default()
    };
    let tracker = Tracker::start(config, &eagle_cluster::MemberTls::open(), &mut Registry::default(), shutdown.clone())
        .await
        .unwrap();
    let url = format!("http://{}", tracker.local_addr()).parse().unwrap();
    (tracker, url)
}

/// The tracker's page of a blob's swarm; empty when it knows none.
async fn swarm(tracker: &Tracker, digest: Digest) -> String {
    let mut stream = TcpStream::connect(tracker.local_addr()).await.unwrap();
    let request = format!("GET /v1/swarms/{digest} HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    within(stream.read_to_string(&mut answer)).await.unwrap();
    if answer.starts_with("HTTP/1.1 200") { answer } else { String::new() }
}

#[tokio::test]
async fn trackers_know_what_is_stored_and_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let shutdown = CancellationToken::new();
    let (tracker, url) = start_tracker(&shutdown).await;
    let origin = Origin::start(&[LAYER, LAYER - 4096]).await;
    let limit = Size(LAYER + LAYER / 2);
    let settings = SeederConfig { trackers: vec![url], cache_limit: limit, ..config(directory.path()) };
    let running = Running::start(settings.clone(), origin.registries()).await;
    let id = running.seeder.info().id.to_string();
    story(running.metainfo(&origin, 0, &Caller::anonymous()).await.unwrap()).await;
    until("announced", async || swarm(&tracker, origin.digests[0]).await.contains(&id)).await;
    running.stop().await;
    until("gone", async || !swarm(&tracker, origin.digests[0]).await.contains(&id)).await;
    let running = Running::start(settings, origin.registries()).await;
    until("announced after a restart", async || swarm(&tracker, origin.digests[0]).await.contains(&id)).await;
    // Room for one only: the first has to go, also from the tracker.
    story(running.metainfo(&origin, 1, &Caller::anonymous()).await.unwrap()).await;
    until("evicted", async || !swarm(&tracker, origin.digests[0]).await.contains(&id)).await;
    until("the other", async || swarm(&tracker, origin.digests[1]).await.contains(&id)).await;
    assert_eq!(running.metric("eagle_seeder_cache_evictions_total "), 1.0);
    assert!(running.metric("eagle_seeder_cache_bytes ") <= running.metric("eagle_seeder_cache_limit_bytes "));
    running.stop().await;
    shutdown.cancel();
    within(tracker.wait()).await;
}

#[tokio::test]
async fn the_next_seeder_takes_over() {
    let origin = Origin::start(&[LAYER]).await;
    let (a, b) =
        (Running::start(memory(), origin.registries()).await, Running::start(memory(), origin.registries()).await);
    let client = SeederClient::new(vec![a.url.clone(), b.url.clone()], &eagle_cluster::MemberTls::open());
    let digest = origin.digests[0];
    let order = client.order(&digest);
    let (first, second) = if order[0] == a.url { (a, b) } else { (b, a) };
    let anonymous = Caller::anonymous();
    let ask = |url: url::Url| {
        let (client, origin, anonymous) = (&client, &origin, &anonymous);
        async move { client.metainfo(&url, digest, &origin.name, &origin.repository, anonymous).await }
    };
    story(ask(order[0].clone()).await.unwrap()).await;
    assert_eq!(second.seeder.counters().origin_bytes, 0);
    first.stop().await;
    let began = tokio::time::Instant::now();
    let error = ask(order[0].clone()).await.unwrap_err();
    assert!(matches!(&error, SeederError::Unreachable { .. }), "{error:?}");
    assert!(began.elapsed() < Duration::from_secs(1), "a dead seeder is noticed at once");
    assert_eq!(client.order(&digest), [second.url.clone(), order[0].clone()]);
    assert_eq!(story(ask(second.url.clone()).await.unwrap()).await.end, Ok(()));
    second.stop().await;
}

/// A seeder that dies in the middle of a stream is noticed there.
#[tokio::test]
async fn a_stream_that_breaks_off_is_an_error() {
    let origin = Origin::start(&[LAYER]).await;
    origin.registry().set_rate(Rate::Limited(1 << 20));
    let running = Running::start(memory(), origin.registries()).await;
    let client = running.client();
    let anonymous = Caller::anonymous();
    let stream = client.metainfo(&running.url, origin.digests[0], &origin.name, &origin.repository, &anonymous);
    let mut stream = stream.await.unwrap();
    assert!(matches!(stream.next().await, Some(Ok(Frame::Header { .. }))));
    running.shutdown.cancel();
    let last = within(async {
        loop {
            match stream.next().await {
                Some(Ok(Frame::Hashes(_))) => {}
                other => break other,
            }
        }
    })
    .await;
    assert!(matches!(last, Some(Err(SeederError::Unreachable { .. }))), "{last:?}");
    assert!(stream.next().await.is_none());
    running.stop().await;
}

#[tokio::test]
async fn a_seeder_that_says_nothing_or_nonsense_is_given_up() {
    let listener = TcpListener::bind(any_port()).await.unwrap();
    let url: url::Url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let (registry, repository) = ("a.b".parse().unwrap(), "c".parse().unwrap());
    let client = SeederClient::new(vec![url.clone()], &eagle_cluster::MemberTls::open());
    let (digest, anonymous) = (Digest::of(b"x"), Caller::anonymous());
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/vnd.eagle.metainfo.v2\r\nconnection: close\r\n\r\n";
    for garbage in [&b"\xff\xff\xff\xff"[..], b"\x01\x00\x00\x00\x09", b"\x01\x00\x00\x00\x02"] {
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await.unwrap();
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.write_all(garbage).await.unwrap();
            stream
        };
        let ask = client.metainfo(&url, digest, &registry, &repository, &anonymous);
        let (stream, metainfo) = within(async { tokio::join!(serve, ask) }).await;
        let error = within(metainfo.unwrap().next()).await.unwrap().unwrap_err();
        assert!(matches!(&error, SeederError::Protocol { .. }), "{error:?}");
        drop(stream);
    }
    let serve = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 4096];
        let _ = stream.read(&mut request).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        stream
    };
    let ask = client.metainfo(&url, digest, &registry, &repository, &anonymous);
    let (_stream, answer) = within(async { tokio::join!(serve, ask) }).await;
    assert!(matches!(answer, Err(SeederError::Protocol { .. })));
}

#[tokio::test]
async fn garbage_is_answered_or_dropped_and_does_no_harm() {
    let origin = Origin::start(&[LAYER]).await;
    let running = Running::start(memory(), origin.registries()).await;
    for garbage in [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 tls?"[..], b"\0\0\0\0\r\n\r\n", b"GET\r\n\r\n"] {
        let mut stream = TcpStream::connect(running.seeder.address()).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // Either a 400 or nothing; a reset is fine too.
        let _ = within(stream.read_to_end(&mut answer)).await;
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&answer));
    }
    let (response, body) = running.send(http::Method::POST, "/v1/blobs", &[]).await;
    assert_eq!((response.status().as_u16(), response.headers()["allow"].to_str().unwrap()), (405, "GET, HEAD"));
    assert!(String::from_utf8_lossy(&body).contains("UNSUPPORTED"));
    for path in ["/", "/v1/blobs/sha256:zz?registry=a.b&repository=c", "/v1/registries/a.b/v2/x/manifests/.."] {
        assert!(running.get(path, &[]).await.0.status().is_client_error(), "{path}");
    }
    let mut stream = TcpStream::connect(running.seeder.address()).await.unwrap();
    let huge = format!("GET /v1/blobs HTTP/1.1\r\nhost: x\r\nx-huge: {}\r\n\r\n", "x".repeat(1 << 20));
    // It may be hung up on while it still speaks.
    let _ = stream.write_all(huge.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = within(stream.read_to_end(&mut answer)).await;
    assert!(!answer.starts_with(b"HTTP/1.1 2"), "{}", String::from_utf8_lossy(&answer));
    let (_, body) = running.get("/v1/blobs", &[]).await;
    assert_eq!(body, r#"{"blobs":[]}"#);
    story(running.metainfo(&origin, 0, &Caller::anonymous()).await.unwrap()).await;
    let (_, body) = running.get("/v1/blobs", &[]).await;
    assert!(String::from_utf8_lossy(&body).contains(&origin.digests[0].to_string()));
    running.stop().await;
}

#[tokio::test]
async fn what_is_wrong_at_the_start_is_said() {
    let origin = Origin::start(&[LAYER]).await;
    let running = Running::start(memory(), origin.registries()).await;
    let start = async |config| {
        let deps = eagle_seeder::SeederDeps {
            registries: origin.registries(),
            membership: eagle_p2p::network::Membership::Open,
            topology: eagle_core::Topology::default(),
            encryption: eagle_core::wire::control::Encryption::Tls,
            members: eagle_cluster::MemberTls::open(),
        };
        let shutdown = CancellationToken::new();
        let started = eagle_seeder::Seeder::start(config, deps, &mut Registry::default(), shutdown).await;
        started.map(|_| ()).unwrap_err().to_string()
    };
    let taken = SeederConfig { listen: running.seeder.address(), ..memory() };
    assert!(start(taken).await.contains(&format!("seeder.listen: cannot listen on {}", running.seeder.address())));
    let unwritable = config(Path::new("/proc/eagle"));
    assert!(start(unwritable).await.contains("/proc/eagle"));
    let nothing = SeederConfig { cache_limit: Size(0), ..memory() };
    assert!(start(nothing).await.contains("seeder.cache_limit"));
    running.stop().await;
}
