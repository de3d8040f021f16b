//! Heads of requests by whom the cluster does not know: that never end, that are too long, too many of them.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which the lint does not recognise as such")]

#[path = "../../eagle-cluster/testing/endless.rs"]
mod endless;

use std::{net::SocketAddr, time::Duration};

use eagle_cluster::{ClusterKey, ClusterKeys, MemberTls, Membership, WaitingRoom};
use eagle_core::{Digest, Geometry, NodeRole, PeerInfo, PieceSet};
use eagle_tracker::{Announcer, BlobStatus, Tracker, TrackerConfig};
use prometheus_client::registry::Registry;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(30);
/// Longest head of a stranger.
const HEAD: Duration = Duration::from_secs(5);
/// The beginning of a request that tells nothing of its end.
const BEGUN: &str = "GET /v1/peers HTTP/1.1\r\nHost: x\r\n";

/// A tracker of a cluster with a key, which a member knows.
struct Cluster {
    address: SocketAddr,
    members: MemberTls,
    _keys: watch::Sender<ClusterKeys>,
    tracker: Tracker,
}

impl Cluster {
    async fn start() -> Self {
        let (keys, receiver) = watch::channel(ClusterKeys::one(ClusterKey::generate().unwrap()));
        let members = MemberTls::new(&Membership::Keyed(receiver)).unwrap();
        let config = TrackerConfig { listen: "127.0.0.1:0".parse().unwrap(), ..TrackerConfig::default() };
        let tracker =
            Tracker::start(config, &members, &mut Registry::default(), CancellationToken::new()).await.unwrap();
        Self { address: tracker.local_addr(), members, _keys: keys, tracker }
    }

    /// A member announces a blob, and then that it stops; again where it does not come to say so in the time that it has for that, as on a
    /// machine that has other things to do.
    async fn announces(&self, id: &str) {
        let told = async { while !self.announces_once(id).await {} };
        timeout(DEADLINE, told).await.expect("it could say that it stops");
    }

    /// Whether it could say that it stops.
    async fn announces_once(&self, id: &str) -> bool {
        let (sender, _found) = mpsc::channel(16);
        let node = PeerInfo { id: id.parse().unwrap(), role: NodeRole::Proxy, ..PeerInfo::example() };
        let url = format!("http://{}/", self.address).parse().unwrap();
        let stop = CancellationToken::new();
        let announcer = Announcer::start(vec![url], node, sender, self.members.clone(), stop.clone());
        let (geometry, pieces) = (Geometry::auto(10 << 20).unwrap(), PieceSet::Prefix(3));
        announcer.update(Digest::of(b"blob"), BlobStatus { geometry, pieces, want_peers: true });
        // By this announcer: where one before it could not say that it stops, the tracker knows the node, and one that has not said
        // anything would not say that it stops.
        let mut registry = Registry::default();
        announcer.register(&mut registry);
        let answered = async {
            while !has_answer(&registry) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(DEADLINE, answered).await.expect("the announce is taken");
        assert_eq!(self.tracker.status()["peers"], 1);
        stop.cancel();
        announcer.stopped().await;
        self.tracker.status()["peers"] == 0
    }
}

/// Whether an announcer with these metrics had an answer from a tracker.
fn has_answer(registry: &Registry) -> bool {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
    let answered = text.lines().find_map(|line| line.strip_prefix("announces_total{outcome=\"answered\"} "));
    answered.unwrap_or_else(|| panic!("no count of answers in {text}")) != "0"
}

/// All that comes until the connection ends; a reset is an end, too.
async fn rest(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let _ = timeout(DEADLINE, stream.read_to_end(&mut answer)).await.expect("the connection ends");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_head_that_never_ends_is_given_up() {
    let cluster = Cluster::start().await;
    // Also one that looks like TLS, and ends within its first record.
    for head in ["G", BEGUN, "\u{16}\u{3}\u{1}"] {
        let answer = endless::say(cluster.address, head, HEAD).await;
        assert!(!answer.contains(" 200 ") && !answer.contains("sha256"), "{head:?}: {answer}");
    }
    // A byte now and then does not put it off.
    let answer = endless::drip(cluster.address, BEGUN, HEAD).await;
    assert!(!answer.contains(" 200 "), "{answer}");
}

#[tokio::test]
async fn a_head_that_is_too_long_is_refused_before_it_is_there() {
    /// Far more than what the kernel holds on both sides.
    const ENDLESS: usize = 256 << 20;
    let cluster = Cluster::start().await;
    for line in [format!("x-{}: y\r\n", "x".repeat(1000)), "x".repeat(1000)] {
        let mut stream = TcpStream::connect(cluster.address).await.unwrap();
        stream.write_all(BEGUN.as_bytes()).await.unwrap();
        let (mut read, mut write) = stream.split();
        let sent = async {
            let mut sent = 0;
            while sent < ENDLESS && write.write_all(line.as_bytes()).await.is_ok() {
                sent += line.len();
            }
            sent
        };
        let answered = async {
            let mut answer = Vec::new();
            let _ = read.read_to_end(&mut answer).await;
            String::from_utf8_lossy(&answer).into_owned()
        };
        let (sent, answer) = timeout(DEADLINE, async { tokio::join!(sent, answered) }).await.expect("an end");
        assert!(sent < ENDLESS / 4, "{sent} bytes of a head were taken");
        // The answer may be lost in the reset that follows what was sent after it.
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }
}

#[tokio::test]
async fn many_heads_on_one_connection_get_one_answer() {
    let cluster = Cluster::start().await;
    let mut stream = TcpStream::connect(cluster.address).await.unwrap();
    // As many as fit into what is read at once.
    let heads = format!("{BEGUN}\r\n").repeat(1000);
    stream.write_all(heads.as_bytes()).await.unwrap();
    let answer = rest(&mut stream).await;
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_of_heads_is_bounded_and_keeps_no_member_out() {
    const MORE: usize = 64;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // Both ends of each connection, and some for the rest.
    let descriptors = u64::try_from(2 * (WaitingRoom::PLACES + MORE) + 200).unwrap();
    if current.is_some_and(|current| current < descriptors) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(descriptors), maximum }).unwrap();
    }
    let cluster = Cluster::start().await;
    let mut crowd = Vec::new();
    for number in 0..WaitingRoom::PLACES + MORE {
        let mut stream = TcpStream::connect(cluster.address).await.unwrap();
        stream.write_all(BEGUN.as_bytes()).await.unwrap();
        crowd.push(stream);
        if number % 256 == 0 {
            cluster.announces(&format!("member{number}")).await;
        }
    }
    cluster.announces("member").await;
    // Those who came first are out, long before their time was over for the last.
    let open = async |stream: &mut TcpStream| timeout(Duration::from_millis(1), stream.read_u8()).await.is_err();
    let mut left = 0;
    for stream in &mut crowd {
        left += usize::from(open(stream).await);
    }
    assert!(left <= WaitingRoom::PLACES, "{left} strangers at a time");
    // And the last when it is.
    assert!(!rest(crowd.last_mut().unwrap()).await.contains(" 200 "));
}
