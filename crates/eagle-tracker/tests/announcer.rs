//! Announcers and trackers together, on real sockets.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which the lint does not recognise as such")]

use std::{net::SocketAddr, time::Duration};

use eagle_cluster::MemberTls;
use eagle_core::{Digest, Geometry, NodeRole, PeerInfo, PieceSet};
use eagle_tracker::{Announcer, BlobStatus, Found, Tracker, TrackerConfig};
use prometheus_client::registry::Registry;
use tokio::{net::TcpListener, sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;
use url::Url;

const DEADLINE: Duration = Duration::from_secs(30);

/// A tracker that asks for announces every 100 ms.
struct Running {
    tracker: Tracker,
    shutdown: CancellationToken,
}

impl Running {
    async fn start(listen: SocketAddr) -> Self {
        let config = TrackerConfig {
            listen,
            interval_active: Duration::from_millis(100),
            interval_idle: Duration::from_millis(300),
            peer_ttl: Duration::from_secs(60),
            ..TrackerConfig::default()
        };
        let shutdown = CancellationToken::new();
        let start = async {
            loop {
                // A port that was just freed may take a moment.
                match Tracker::start(config.clone(), &MemberTls::open(), &mut Registry::default(), shutdown.clone())
                    .await
                {
                    Ok(tracker) => return tracker,
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        };
        let tracker = timeout(DEADLINE, start).await.unwrap();
        Self { tracker, shutdown }
    }

    async fn any() -> Self {
        Self::start("127.0.0.1:0".parse().unwrap()).await
    }

    fn url(&self) -> Url {
        format!("http://{}/", self.tracker.local_addr()).parse().unwrap()
    }

    fn count(&self, what: &str) -> u64 {
        self.tracker.status()[what].as_u64().unwrap()
    }

    async fn stop(self) -> SocketAddr {
        let addr = self.tracker.local_addr();
        self.shutdown.cancel();
        self.tracker.wait().await;
        addr
    }
}

struct Node {
    announcer: Announcer,
    found: mpsc::Receiver<Found>,
    shutdown: CancellationToken,
}

impl Node {
    fn start(id: &str, role: NodeRole, trackers: Vec<Url>) -> Self {
        let (sender, found) = mpsc::channel(16);
        let shutdown = CancellationToken::new();
        let node = PeerInfo { id: id.parse().unwrap(), role, ..PeerInfo::example() };
        Self {
            announcer: Announcer::start(trackers, node, sender, MemberTls::open(), shutdown.clone()),
            found,
            shutdown,
        }
    }

    fn owns(&self, content: &[u8]) {
        self.announcer.update(Digest::of(content), status(PieceSet::Complete, false));
    }

    fn wants(&self, content: &[u8]) {
        self.announcer.update(Digest::of(content), status(PieceSet::Empty, true));
    }

    /// Waits until a peer is found for a blob.
    async fn finds(&mut self, content: &[u8], id: &str) {
        let found = async {
            loop {
                let found = self.found.recv().await.unwrap();
                if found.digest == Digest::of(content) && found.peers.iter().any(|peer| peer.id.as_str() == id) {
                    return;
                }
            }
        };
        timeout(DEADLINE, found).await.unwrap();
    }

    async fn stop(self) {
        self.shutdown.cancel();
        timeout(Duration::from_secs(2), self.announcer.stopped()).await.unwrap();
    }
}

fn status(pieces: PieceSet, want_peers: bool) -> BlobStatus {
    BlobStatus { geometry: Geometry::auto(10 << 20).unwrap(), pieces, want_peers }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("{what} does not happen"));
}

#[tokio::test]
async fn two_nodes_find_each_other_and_leave() {
    let tracker = Running::any().await;
    let mut first = Node::start("first", NodeRole::Proxy, vec![tracker.url()]);
    let mut second = Node::start("second", NodeRole::Proxy, vec![tracker.url()]);
    first.wants(b"a");
    second.wants(b"a");
    tokio::join!(first.finds(b"a", "second"), second.finds(b"a", "first"));
    // What was dropped is soon known.
    first.owns(b"b");
    until("owning", || tracker.count("entries") == 3).await;
    first.announcer.remove(Digest::of(b"b"));
    until("eviction", || tracker.count("entries") == 2).await;
    // A node that stops is out when its announcer has ended.
    first.stop().await;
    assert_eq!((tracker.count("peers"), tracker.count("entries")), (1, 1));
    second.stop().await;
    assert_eq!((tracker.count("peers"), tracker.count("entries")), (0, 0));
}

#[tokio::test]
async fn a_wanted_blob_is_announced_at_once_and_a_burst_together() {
    let tracker = Running::any().await;
    let seeder = Node::start("seeder", NodeRole::Seeder, vec![tracker.url()]);
    let mut node = Node::start("node", NodeRole::Proxy, vec![tracker.url()]);
    for layer in 0..50u8 {
        seeder.owns(&[layer]);
    }
    until("the seeder's state", || tracker.count("entries") == 50).await;
    for layer in 0..50u8 {
        node.wants(&[layer]);
    }
    let mut found = std::collections::HashSet::new();
    while found.len() < 50 {
        let next = timeout(DEADLINE, node.found.recv()).await.unwrap().unwrap();
        assert_eq!(next.peers.len(), 1);
        found.insert(next.digest);
    }
    tokio::join!(seeder.stop(), node.stop());
}

#[tokio::test]
async fn a_tracker_that_restarts_empty_is_told_everything_again() {
    let tracker = Running::any().await;
    let seeder = Node::start("seeder", NodeRole::Seeder, vec![tracker.url()]);
    let mut node = Node::start("node", NodeRole::Proxy, vec![tracker.url()]);
    seeder.owns(b"a");
    node.owns(b"b");
    node.wants(b"c");
    until("the first state", || tracker.count("entries") == 3).await;
    let addr = tracker.stop().await;
    node.wants(b"a");
    let tracker = Running::start(addr).await;
    until("the same state", || tracker.count("entries") == 4).await;
    node.finds(b"a", "seeder").await;
    tokio::join!(seeder.stop(), node.stop());
}

#[tokio::test]
async fn a_tracker_that_forgot_a_node_asks_for_its_full_state() {
    let tracker = Running::any().await;
    let node = Node::start("node", NodeRole::Proxy, vec![tracker.url()]);
    node.owns(b"a");
    until("the first state", || tracker.count("entries") == 1).await;
    // Another process under the same identity says its last word: the tracker forgets the node without any
    // failure that the node could see.
    let twin = Node::start("node", NodeRole::Proxy, vec![tracker.url()]);
    until("the state of the twin", || tracker.count("entries") == 0).await;
    twin.stop().await;
    until("the same state", || tracker.count("entries") == 1).await;
    node.stop().await;
}

#[tokio::test]
async fn blobs_are_spread_over_trackers_and_the_next_one_takes_over_at_once() {
    let (first, second) = (Running::any().await, Running::any().await);
    // Whatever the order in which they are configured; one of them twice.
    let one_way = vec![first.url(), second.url(), first.url()];
    let other_way = vec![second.url(), first.url()];
    let mut node = Node::start("node", NodeRole::Proxy, one_way.clone());
    let mut other = Node::start("other", NodeRole::Proxy, other_way);
    let blobs: Vec<[u8; 1]> = (0..40).map(|number| [number]).collect();
    for blob in &blobs {
        node.owns(blob);
    }
    until("announces at both", || first.count("entries") + second.count("entries") == 40).await;
    let at_first = first.count("entries");
    assert!((1..40).contains(&at_first), "{at_first} of 40 at the first");
    until("both nodes at both", || first.count("peers") + second.count("peers") == 4).await;
    for blob in &blobs {
        other.wants(blob);
        other.finds(blob, "node").await;
        other.announcer.remove(Digest::of(blob));
    }
    until("nothing of the other", || first.count("entries") + second.count("entries") == 40).await;
    let addr = first.stop().await;
    until("everything at the second", || second.count("entries") == 40).await;
    for blob in &blobs {
        other.wants(blob);
        other.finds(blob, "node").await;
    }
    // A seeder is at every tracker with all that it has.
    let seeder = Node::start("seeder", NodeRole::Seeder, one_way);
    seeder.owns(b"seeded");
    until("the seeder at the second", || second.count("entries") == 81).await;
    // The first has its own blobs again when it answers.
    let first = Running::start(addr).await;
    until("its blobs at the first again", || first.count("entries") == 2 * at_first + 1).await;
    assert_eq!(second.count("entries"), 81, "nodes that have not noticed yet find them where they were");
    node.wants(&[0]);
    node.finds(&[0], "other").await;
    // Both are told about the end.
    tokio::join!(seeder.stop(), node.stop(), other.stop());
    assert_eq!((first.count("peers"), second.count("peers")), (0, 0));
}

#[tokio::test]
async fn who_waits_for_peers_does_not_wait_for_a_tracker_that_stands_still() {
    // It accepts and never answers. Its blobs are at the other one before its answer is given up.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_url: Url = format!("http://{}", silent.local_addr().unwrap()).parse().unwrap();
    let good = Running::any().await;
    let trackers = vec![silent_url, good.url()];
    let seeder = Node::start("seeder", NodeRole::Seeder, trackers.clone());
    let mut node = Node::start("node", NodeRole::Proxy, trackers);
    for blob in 0..20u8 {
        seeder.owns(&[blob]);
        node.wants(&[blob]);
    }
    for blob in 0..20u8 {
        node.finds(&[blob], "seeder").await;
    }
    tokio::join!(seeder.stop(), node.stop());
}

#[tokio::test]
async fn a_dead_or_foolish_tracker_delays_nobody() {
    // One that refuses, one that accepts and says nothing, one that is no tracker, then a good one.
    let refuses = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let refused: Url = format!("http://{}", refuses.local_addr().unwrap()).parse().unwrap();
    drop(refuses);
    let foolish = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let foolish_url: Url = format!("http://{}", foolish.local_addr().unwrap()).parse().unwrap();
    let fool = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt as _;
        loop {
            let (mut stream, _) = foolish.accept().await.unwrap();
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").await;
            let _ = stream.shutdown().await;
        }
    });
    let good = Running::any().await;
    let trackers = vec!["https://tracker".parse().unwrap(), refused, foolish_url, good.url()];
    let node = Node::start("node", NodeRole::Proxy, trackers);
    node.owns(b"a");
    until("announces at the good one", || good.count("entries") == 1).await;
    node.stop().await;
    assert_eq!(good.count("peers"), 0);
    fool.abort();
}

#[tokio::test]
async fn a_silent_tracker_does_not_hold_up_the_end() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url: Url = format!("http://{}", silent.local_addr().unwrap()).parse().unwrap();
    let node = Node::start("node", NodeRole::Proxy, vec![url]);
    node.wants(b"a");
    let _connection = timeout(DEADLINE, silent.accept()).await.unwrap().unwrap();
    // `Node::stop` gives it two seconds.
    node.stop().await;
}

#[tokio::test]
async fn without_trackers_there_is_nothing_to_do() {
    let node = Node::start("node", NodeRole::Proxy, Vec::new());
    node.wants(b"a");
    node.announcer.remove(Digest::of(b"a"));
    node.stop().await;
}

#[tokio::test]
async fn other_trackers_take_over_while_it_runs_and_the_first_ones_are_told_of_the_end() {
    let (first, kept, later) = (Running::any().await, Running::any().await, Running::any().await);
    let node = Node::start("proxy1", NodeRole::Proxy, vec![first.url(), kept.url()]);
    let contents: Vec<[u8; 1]> = (0..20).map(|number| [number]).collect();
    contents.iter().for_each(|content| node.owns(content));
    let all = contents.len() as u64;
    until("both to share the blobs", || first.count("blobs") + kept.count("blobs") == all).await;
    assert!(first.count("blobs") > 0 && kept.count("blobs") > 0, "one has them all");

    // A URL that is none is left out, as at the start.
    let foolish = "ftp://tracker".parse().unwrap();
    node.announcer.replace_trackers(vec![later.url(), kept.url(), foolish]);
    until("the new one to have what was the first one's", || later.count("blobs") > 0).await;
    until("all blobs to be known", || later.count("blobs") + kept.count("blobs") >= all).await;
    node.owns(b"another");
    until("a new blob", || later.count("blobs") + kept.count("blobs") > all).await;

    // None at all, and one again.
    node.announcer.replace_trackers(Vec::new());
    node.announcer.replace_trackers(vec![later.url()]);
    until("all blobs to be at one", || later.count("blobs") == all + 1).await;
    node.stop().await;
    for tracker in [&first, &kept, &later] {
        assert_eq!(tracker.count("peers"), 0, "a tracker that may list the node was not told of its end");
    }
}
