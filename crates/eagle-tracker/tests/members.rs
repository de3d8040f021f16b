//! A tracker whose cluster has a key.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which the lint does not recognise as such")]

use std::{net::SocketAddr, time::Duration};

use eagle_cluster::{ClusterKey, ClusterKeys, MemberTls, Membership};
use eagle_core::{Digest, Geometry, NodeRole, PeerInfo, PieceSet};
use eagle_tracker::{Announcer, BlobStatus, Found, Tracker, TrackerConfig};
use prometheus_client::registry::Registry;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(30);

fn key() -> ClusterKey {
    ClusterKey::generate().unwrap()
}

fn keys(keys: &[&ClusterKey]) -> ClusterKeys {
    let lines: Vec<String> = keys.iter().map(|key| key.expose().to_string()).collect();
    lines.join("\n").parse().unwrap()
}

fn member(key: &ClusterKey) -> (watch::Sender<ClusterKeys>, MemberTls) {
    let (sender, receiver) = watch::channel(ClusterKeys::one(key.clone()));
    (sender, MemberTls::new(&Membership::Keyed(receiver)).unwrap())
}

/// A tracker that asks for announces every 100 ms, and its metrics.
async fn start(members: &MemberTls) -> (Tracker, Registry, CancellationToken) {
    let config = TrackerConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        interval_active: Duration::from_millis(100),
        interval_idle: Duration::from_millis(100),
        ..TrackerConfig::default()
    };
    let (mut registry, shutdown) = (Registry::default(), CancellationToken::new());
    let tracker = Tracker::start(config, members, &mut registry, shutdown.clone()).await.unwrap();
    (tracker, registry, shutdown)
}

fn announcer(
    id: &str,
    tracker: &Tracker,
    members: &MemberTls,
    shutdown: &CancellationToken,
) -> (Announcer, mpsc::Receiver<Found>) {
    let (sender, found) = mpsc::channel(16);
    let node = PeerInfo { id: id.parse().unwrap(), role: NodeRole::Proxy, ..PeerInfo::example() };
    let trackers = vec![format!("http://{}/", tracker.local_addr()).parse().unwrap()];
    let announcer = Announcer::start(trackers, node, sender, members.clone(), shutdown.clone());
    let (geometry, pieces) = (Geometry::auto(10 << 20).unwrap(), PieceSet::Prefix(3));
    announcer.update(Digest::of(b"blob"), BlobStatus { geometry, pieces, want_peers: true });
    (announcer, found)
}

/// A value of the metrics, by the whole name.
fn metric(registry: &Registry, name: &str) -> u64 {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.unwrap_or_else(|| panic!("{name} in {text}"))
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("{what} does not happen"));
}

/// One request in clear, and all of the answer.
async fn in_clear(address: SocketAddr, method: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{{}}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // The answer ends the connection, although the request does not ask for that.
    let _ = timeout(DEADLINE, stream.read_to_end(&mut answer)).await.expect("the connection ends");
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn a_stranger_learns_nothing() {
    let (_keys, members) = member(&key());
    let (tracker, registry, shutdown) = start(&members).await;
    let (_announcer, _found) = announcer("amember", &tracker, &members, &shutdown);
    until("the announce", || tracker.status()["peers"] == 1).await;
    let digest = Digest::of(b"blob");
    for path in [
        "/".to_owned(),
        "/v1/announce".to_owned(),
        "/v1/swarms".to_owned(),
        format!("/v1/swarms/{digest}"),
        format!("/v1/swarms/{}", Digest::of(b"another")),
        "/v1/swarms/nonsense".to_owned(),
        "/v1/peers".to_owned(),
        "/v1/peers?limit=0".to_owned(),
        "/metrics".to_owned(),
        "/%ff".to_owned(),
    ] {
        for method in ["GET", "POST", "DELETE", "PATCH"] {
            let answer = in_clear(tracker.local_addr(), method, &path).await;
            assert!(answer.starts_with("HTTP/1.1 403 "), "{method} {path}: {answer}");
            assert!(answer.contains("members of its cluster"), "{method} {path}: {answer}");
            for word in ["sha256", "amember", "61007", "127.0.0.1"] {
                assert!(!answer.contains(word), "{method} {path}: {answer}");
            }
        }
    }
    // Nor does an announcer without a key or with another one get in.
    let (_other_keys, other) = member(&key());
    let _strangers = [
        announcer("stranger1", &tracker, &MemberTls::open(), &shutdown),
        announcer("stranger2", &tracker, &other, &shutdown),
    ];
    let before = metric(&registry, "eagle_tracker_announces_total");
    until("more announces of the member", || metric(&registry, "eagle_tracker_announces_total") > before + 3).await;
    assert_eq!(tracker.status()["peers"], 1);
    shutdown.cancel();
    tracker.wait().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn announces_go_on_while_the_key_changes() {
    let (a, b) = (key(), key());
    let ((server_keys, server), (node_keys, node)) = (member(&a), member(&a));
    let (tracker, registry, shutdown) = start(&server).await;
    let stop = CancellationToken::new();
    let (first, mut found) = announcer("first", &tracker, &node, &stop);
    let (second, _found) = announcer("second", &tracker, &node, &stop);
    until("both", || tracker.status()["peers"] == 2).await;
    for step in [keys(&[&a, &b]), keys(&[&b, &a]), keys(&[&b])] {
        for end in [&server_keys, &node_keys] {
            end.send_replace(step.clone());
            let before = metric(&registry, "eagle_tracker_announces_total");
            until("announces", || metric(&registry, "eagle_tracker_announces_total") >= before + 6).await;
            while found.try_recv().is_ok() {}
            let still = timeout(DEADLINE, found.recv()).await.unwrap().unwrap();
            assert_eq!(still.peers[0].id.as_str(), "second");
        }
    }
    assert_eq!(metric(&registry, "eagle_tracker_announce_errors_total"), 0);
    stop.cancel();
    tokio::join!(first.stopped(), second.stopped());
    assert_eq!(tracker.status()["peers"], 0, "they could say that they stop");
    shutdown.cancel();
    tracker.wait().await;
}
