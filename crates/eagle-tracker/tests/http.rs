//! The tracker's API on real sockets, with good and bad requests.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which the lint does not recognise as such")]

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use eagle_cluster::MemberTls;
use eagle_core::{Digest, Geometry, NodeRole, PeerInfo, PieceSet, Topology};
use eagle_tracker::{
    AnnounceRequest, AnnounceResponse, BlobAnnounce, Event, Tracker, TrackerConfig,
    api::{
        FlowReport, MAX_ANNOUNCED_BLOBS, MAX_REQUEST_BYTES, NodeLoad, Overview, PeerPage, PeersPage, StoreStatus,
        SwarmPage, SwarmsPage, TopologyPage,
    },
};
use futures::future::join_all;
use prometheus_client::registry::Registry;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(10);

struct Running {
    tracker: Tracker,
    registry: Registry,
    shutdown: CancellationToken,
}

impl Running {
    async fn start(config: TrackerConfig) -> Self {
        let config = TrackerConfig { listen: "127.0.0.1:0".parse().unwrap(), ..config };
        let (mut registry, shutdown) = (Registry::default(), CancellationToken::new());
        let tracker = Tracker::start(config, &MemberTls::open(), &mut registry, shutdown.clone()).await.unwrap();
        Self { tracker, registry, shutdown }
    }

    fn addr(&self) -> SocketAddr {
        self.tracker.local_addr()
    }

    async fn announce(&self, request: &AnnounceRequest) -> AnnounceResponse {
        let (status, body) = post(self.addr(), "application/json", &serde_json::to_vec(request).unwrap()).await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }
}

/// Sends bytes and reads all of the answer; gives status and body.
async fn raw(addr: SocketAddr, request: &[u8]) -> (u16, String) {
    let exchange = async {
        let (mut read, mut write) = TcpStream::connect(addr).await.unwrap().into_split();
        // The server may answer and close before it has read everything.
        let send = async { drop(write.write_all(request).await) };
        let receive = async {
            let mut answer = Vec::new();
            let _ = read.read_to_end(&mut answer).await;
            String::from_utf8_lossy(&answer).into_owned()
        };
        tokio::join!(receive, send).0
    };
    let answer = timeout(DEADLINE, exchange).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    (head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0), body.to_owned())
}

async fn post(addr: SocketAddr, content_type: &str, body: &[u8]) -> (u16, String) {
    let head = format!(
        "POST /v1/announce HTTP/1.1\r\nhost: t\r\nconnection: close\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    raw(addr, &[head.as_bytes(), body].concat()).await
}

async fn get(addr: SocketAddr, path: &str) -> (u16, String) {
    raw(addr, format!("GET {path} HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n").as_bytes()).await
}

async fn page<T: serde::de::DeserializeOwned>(addr: SocketAddr, path: &str) -> T {
    let (status, body) = get(addr, path).await;
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

fn peer(id: &str, role: NodeRole) -> PeerInfo {
    PeerInfo { id: id.parse().unwrap(), address: "0.0.0.0:61007".parse().unwrap(), role, ..PeerInfo::example() }
}

fn blob(content: &[u8], pieces: PieceSet) -> BlobAnnounce {
    let geometry = Geometry::auto(10 << 20).unwrap();
    BlobAnnounce { digest: Digest::of(content), geometry, pieces, event: Event::Started, want_peers: true }
}

fn request(node: PeerInfo, blobs: Vec<BlobAnnounce>) -> AnnounceRequest {
    AnnounceRequest { full: true, blobs, ..AnnounceRequest::of(node) }
}

/// Flows come in pages, the fastest first; zones are on the first of them.
#[tokio::test]
async fn flows_between_zones_come_in_pages() {
    let running = Running::start(TrackerConfig::default()).await;
    let zone = |name: &str| Topology { zone: Some(name.to_owned()), ..Topology::default() };
    let mut node = peer("proxy1", NodeRole::Proxy);
    node.topology = zone("here");
    let mut request = AnnounceRequest { load: Some(NodeLoad::default()), ..AnnounceRequest::of(node) };
    running.announce(&request).await;
    let flow = |name: &str, bytes| FlowReport { from: zone(name), bytes_per_second: 5, bytes };
    request.flows = vec![flow("a", 1_000), flow("b", 3_000), flow("c", 2_000)];
    running.announce(&request).await;
    let first: TopologyPage = page(running.addr(), "/v1/topology?limit=2").await;
    let from = |page: &TopologyPage| page.flows.iter().filter_map(|flow| flow.from.zone.clone()).collect::<Vec<_>>();
    assert_eq!((from(&first), first.next, first.zones.len()), (vec!["b".to_owned(), "c".to_owned()], Some(2), 1));
    assert!(first.flows[0].bytes_per_second > 0 && first.flows[0].to.zone.as_deref() == Some("here"));
    let last: TopologyPage = page(running.addr(), "/v1/topology?limit=2&after=2").await;
    assert_eq!((from(&last), last.next, last.zones.len()), (vec!["a".to_owned()], None, 0));
    let beyond: TopologyPage = page(running.addr(), "/v1/topology?after=18446744073709551615").await;
    assert!(beyond.flows.is_empty() && beyond.next.is_none());
    for bad in ["/v1/topology?after=-1", "/v1/topology?after=b", "/v1/topology?limit=0"] {
        assert_eq!(get(running.addr(), bad).await.0, 400, "{bad}");
    }
    let overview: Overview = page(running.addr(), "/v1/overview").await;
    assert_eq!(
        overview.bytes_per_second,
        first.flows.iter().chain(&last.flows).map(|flow| flow.bytes_per_second).sum::<u64>()
    );
}

#[tokio::test]
async fn announces_are_answered_with_peers_and_lists_show_them() {
    let running = Running::start(TrackerConfig::default()).await;
    let addr = running.addr();
    let seeder = peer("seeder1", NodeRole::Seeder);
    let response = running.announce(&request(seeder, vec![blob(b"a", PieceSet::Complete)])).await;
    assert!(response.peers[0].peers.is_empty());

    let mut proxy = request(peer("proxy1", NodeRole::Proxy), vec![blob(b"a", PieceSet::Prefix(3))]);
    let response = running.announce(&proxy).await;
    assert_eq!(response.interval_seconds, 1.0, "the swarm is young");
    let found = &response.peers[0].peers;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].info.id.as_str(), "seeder1");
    assert_eq!(found[0].info.address, "127.0.0.1:61007".parse().unwrap(), "the address that the tracker saw");
    assert_eq!(found[0].pieces, PieceSet::Complete);

    let swarms: SwarmsPage = page(addr, "/v1/swarms").await;
    assert_eq!((swarms.swarms.len(), swarms.swarms[0].peers, swarms.swarms[0].complete), (1, 2, 1));
    let swarm: SwarmPage = page(addr, &format!("/v1/swarms/{}", Digest::of(b"a"))).await;
    let members: Vec<_> = swarm.members.iter().map(|m| (m.peer.id.as_str(), m.pieces, m.complete)).collect();
    assert_eq!(members, [("proxy1", 3, false), ("seeder1", 40, true)]);
    let first: PeersPage = page(addr, "/v1/peers?limit=1").await;
    assert_eq!((first.peers[0].peer.id.as_str(), first.next.as_deref()), ("proxy1", Some("proxy1")));
    let second: PeersPage = page(addr, "/v1/peers?limit=1&after=proxy1").await;
    assert_eq!((second.peers[0].peer.id.as_str(), second.next), ("seeder1", None));

    let overview: Overview = page(addr, "/v1/overview").await;
    assert_eq!((overview.peers, overview.seeders, overview.blobs, overview.active.len()), (2, 1, 1, 1));
    assert_eq!(overview.store, StoreStatus { kind: "memory".to_owned(), away: false });
    let topology: TopologyPage = page(addr, "/v1/topology").await;
    assert_eq!(topology.zones.iter().map(|zone| zone.peers).sum::<usize>(), 2);
    assert_eq!((topology.flows.len(), topology.next), (0, None));
    let node: PeerPage = page(addr, "/v1/peers/proxy1").await;
    assert_eq!((node.summary.blobs, node.owns[0].owned, node.owns[0].pieces), (1, 3, 40));
    assert_eq!(get(addr, "/v1/peers/nobody").await.0, 404);
    let encoded = format!("/v1/swarms/{}?pieces=true", Digest::of(b"a")).replace(':', "%3A");
    let swarm: SwarmPage = page(addr, &encoded).await;
    let owned: Vec<_> = swarm.members.into_iter().map(|member| member.owned).collect();
    assert_eq!(owned, [Some(PieceSet::Prefix(3)), Some(PieceSet::Complete)]);
    let (status, dashboard) = get(addr, "/").await;
    assert!(status == 200 && dashboard.contains("/dashboard/app.js"));

    // Nothing wanted: come back later. Evicted: gone at once. Stopped: gone from everything.
    proxy.full = false;
    proxy.blobs[0].event = Event::Evicted;
    assert_eq!(running.announce(&proxy).await.interval_seconds, 30.0);
    let swarm: SwarmPage = page(addr, &format!("/v1/swarms/{}", Digest::of(b"a"))).await;
    assert_eq!(swarm.members.len(), 1);
    let mut stopped = request(peer("seeder1", NodeRole::Seeder), Vec::new());
    stopped.stopped = true;
    running.announce(&stopped).await;
    assert_eq!(get(addr, &format!("/v1/swarms/{}", Digest::of(b"a"))).await.0, 404);

    // A delta of a node that nobody knows.
    let mut delta = request(peer("proxy2", NodeRole::Proxy), Vec::new());
    delta.full = false;
    assert!(running.announce(&delta).await.send_full);
    assert!(!running.announce(&delta).await.send_full);

    let metrics = running.metrics();
    for line in [
        "eagle_tracker_announces_total 6",
        "eagle_tracker_peers 2",
        "eagle_tracker_blobs 0",
        "eagle_tracker_announce_errors_total 0",
        "eagle_tracker_announce_duration_seconds_count 6",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} in\n{metrics}");
    }
    assert_eq!(running.tracker.status()["peers"], 2);
}

#[tokio::test]
async fn one_bad_blob_does_not_spoil_the_announce() {
    let running = Running::start(TrackerConfig::default()).await;
    running.announce(&request(peer("s", NodeRole::Seeder), vec![blob(b"a", PieceSet::Complete)])).await;
    let lie = BlobAnnounce { geometry: Geometry::auto(1 << 30).unwrap(), ..blob(b"a", PieceSet::Complete) };
    let response = running.announce(&request(peer("p", NodeRole::Proxy), vec![lie, blob(b"b", PieceSet::Empty)])).await;
    assert_eq!(response.refused.len(), 1);
    assert!(response.refused[0].reason.contains("10485760 bytes"), "{}", response.refused[0].reason);
    assert_eq!(response.peers.iter().map(|peers| peers.digest).collect::<Vec<_>>(), [Digest::of(b"b")]);
    assert!(running.metrics().contains("eagle_tracker_announce_errors_total 1"));
}

#[tokio::test]
async fn silent_nodes_expire() {
    let config = TrackerConfig {
        interval_active: Duration::from_millis(100),
        interval_idle: Duration::from_millis(100),
        peer_ttl: Duration::from_millis(400),
        ..TrackerConfig::default()
    };
    let running = Running::start(config).await;
    running.announce(&request(peer("p", NodeRole::Proxy), vec![blob(b"a", PieceSet::Complete)])).await;
    assert_eq!(running.tracker.status()["entries"], 1);
    let expired = async {
        while running.tracker.status()["entries"] != 0 || get(running.addr(), "/v1/peers").await.1 != r#"{"peers":[]}"# {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(DEADLINE, expired).await.unwrap();
}

#[tokio::test]
async fn bad_requests_get_a_clear_answer() {
    let running = Running::start(TrackerConfig::default()).await;
    let addr = running.addr();
    let good = serde_json::to_vec(&request(peer("p", NodeRole::Proxy), Vec::new())).unwrap();
    let cut = &good[..good.len() / 2];
    let mut nowhere = request(peer("p", NodeRole::Proxy), Vec::new());
    nowhere.node.address.set_port(0);
    let many = request(peer("p", NodeRole::Proxy), vec![blob(b"a", PieceSet::Empty); MAX_ANNOUNCED_BLOBS + 1]);
    let label = String::from_utf8(good.clone()).unwrap().replace("\"zone\":null", "\"zone\":\"\\u0000\"");
    assert!(label.contains("u0000"));
    let json = "application/json";
    for (answer, status, text) in [
        (post(addr, "text/plain", &good).await, 415, "application/json"),
        (post(addr, json, cut).await, 400, "not an announce"),
        (post(addr, json, b"").await, 400, "not an announce"),
        (post(addr, json, b"\xff\xfe[[[[").await, 400, "not an announce"),
        (post(addr, json, &[b'['; 100_000]).await, 400, "not an announce"),
        (post(addr, json, label.as_bytes()).await, 400, "topology label"),
        (post(addr, json, &serde_json::to_vec(&nowhere).unwrap()).await, 400, "node.address"),
        (post(addr, json, &serde_json::to_vec(&many).unwrap()).await, 413, "10001 blobs"),
        (post(addr, json, &vec![b' '; MAX_REQUEST_BYTES + 1]).await, 413, "larger than"),
        (get(addr, "/v1/announce").await, 405, "POST only"),
        (get(addr, "/nowhere").await, 404, "tracker-api.md"),
        (get(addr, "/v1/swarms/a/b").await, 404, "nothing at this path"),
        (get(addr, "/v1/swarms/sha256:ab").await, 400, "digest"),
        (get(addr, &format!("/v1/swarms/{}", Digest::of(b"x"))).await, 404, "no peer announces"),
        (get(addr, "/v1/peers?limit=0").await, 400, "limit"),
        (get(addr, "/v1/peers?after=a/b").await, 400, "after"),
        (raw(addr, b"DELETE /v1/swarms HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n").await, 405, "GET only"),
    ] {
        assert_eq!(answer.0, status, "{answer:?}");
        let error: serde_json::Value = serde_json::from_str(&answer.1).unwrap();
        assert!(error["error"].as_str().unwrap().contains(text), "{answer:?}");
    }
    // A body of unknown length is counted as it comes.
    let chunk = [b"10000\r\n".as_slice(), &[b' '; 0x10000], b"\r\n"].concat();
    let head = b"POST /v1/announce HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    let (status, _) = raw(addr, &[head.as_slice(), &chunk.repeat(80)].concat()).await;
    assert!(matches!(status, 413 | 0), "{status}: the answer may be lost to the reset, the request must be");
    assert_eq!(get(addr, "/v1/peers").await, (200, r#"{"peers":[]}"#.to_owned()));
}

#[tokio::test]
async fn lies_and_repetitions_harm_nobody() {
    let running = Running::start(TrackerConfig::default()).await;
    let addr = running.addr();
    let good = request(peer("good", NodeRole::Proxy), vec![blob(b"a", PieceSet::Prefix(3))]);
    for _ in 0..3 {
        running.announce(&good).await;
    }
    // The same blob many times in one announce is one.
    running.announce(&request(peer("twice", NodeRole::Proxy), vec![blob(b"a", PieceSet::Empty); 50])).await;
    let status = running.tracker.status();
    assert_eq!((&status["peers"], &status["entries"]), (&2.into(), &2.into()));

    // Pieces that a blob of forty cannot have; what is right in the same announce is taken.
    let lies = [
        PieceSet::Prefix(41),
        PieceSet::Prefix(u32::MAX),
        PieceSet::Bitmap(eagle_core::piece_set::Bitmap(vec![0xff; 4])),
        PieceSet::Bitmap(eagle_core::piece_set::Bitmap(vec![0xff; 6])),
        PieceSet::Runs(vec![0, 41]),
        PieceSet::Runs(vec![u32::MAX, u32::MAX]),
        PieceSet::Runs(vec![1; 10_000]),
    ];
    for (number, lie) in lies.into_iter().enumerate() {
        let blobs = vec![blob(&[u8::try_from(number).unwrap()], lie.clone()), blob(b"b", PieceSet::Complete)];
        let response = running.announce(&request(peer("liar", NodeRole::Proxy), blobs)).await;
        assert_eq!(response.refused.len(), 1, "{lie:?}");
        assert!(response.refused[0].reason.contains("do not fit"), "{}", response.refused[0].reason);
    }
    assert_eq!(running.tracker.status()["entries"], 3);

    // What can be no announce at all. Each is the good one with one member replaced.
    let text = serde_json::to_value(&good).unwrap();
    let long = "x".repeat(65);
    let many: Vec<_> = (0..200)
        .map(|n| serde_json::json!({"from": {"zone": n.to_string()}, "bytes_per_second": 1, "bytes": 1}))
        .collect();
    for (path, value) in [
        ("/node/id", "".into()),
        ("/node/id", long.as_str().into()),
        ("/node/id", "../../etc".into()),
        ("/node/address", "localhost:1".into()),
        ("/node/address", "224.0.0.1:61007".into()),
        ("/node/address", "255.255.255.255:61007".into()),
        ("/node/role", "admin".into()),
        ("/node/topology/zone", "".into()),
        ("/node/topology/zone", long.as_str().into()),
        ("/node/topology/rack", "a\u{1b}[2J".into()),
        ("/node/topology/region", 7.into()),
        ("/blobs/0/digest", "sha256:zz".into()),
        ("/blobs/0/geometry/piece_length", 0.into()),
        ("/blobs/0/geometry/piece_length", 65_537.into()),
        ("/blobs/0/geometry/size", u64::MAX.into()),
        ("/blobs/0/geometry/size", (-1).into()),
        ("/blobs/0/event", "later".into()),
        ("/blobs/0/pieces", serde_json::json!({"prefix": -1})),
        ("/blobs/0/pieces", serde_json::json!({"bitmap": "%"})),
    ] {
        let mut bad = text.clone();
        *bad.pointer_mut(path).unwrap() = value;
        let (status, answer) = post(addr, "application/json", &serde_json::to_vec(&bad).unwrap()).await;
        assert_eq!(status, 400, "{path}: {answer}");
        assert!(!answer.contains('\u{1b}'), "{answer}");
    }
    // More reports than are taken in are no harm.
    let mut talkative = text.clone();
    talkative["flows"] = many.into();
    let (status, _) = post(addr, "application/json", &serde_json::to_vec(&talkative).unwrap()).await;
    assert!(status == 200 || status == 400, "{status}");
    // Of a later version, and cut off anywhere.
    let (status, _) = post(addr, "application/vnd.eagle.tracker.v2+protobuf", b"\x0a\x01").await;
    assert_eq!(status, 415);
    let binary = eagle_tracker::encoding::Encoding::Protobuf.encode_request(&good).unwrap();
    for length in 0..binary.len() {
        let (status, answer) = post(addr, "application/vnd.eagle.tracker.v1+protobuf", &binary[..length]).await;
        assert!(status == 400 || status == 200, "{status} {answer}");
    }
    let status = running.tracker.status();
    assert_eq!(status["peers"], 3, "nobody came by any of this");
    let response = running.announce(&request(peer("other", NodeRole::Proxy), vec![blob(b"b", PieceSet::Empty)])).await;
    assert_eq!(response.peers[0].peers.len(), 1);
}

#[tokio::test]
async fn a_flood_of_nodes_does_not_push_out_those_who_are_there() {
    let limits = TrackerConfig { max_peers: 5, max_blobs: 10, max_blobs_per_peer: 4, ..TrackerConfig::default() };
    let running = Running::start(limits).await;
    for number in 0..5 {
        let node = peer(&format!("node{number}"), NodeRole::Proxy);
        running.announce(&request(node, vec![blob(b"a", PieceSet::Complete)])).await;
    }
    let blobs: Vec<_> = (0..200u8).map(|number| blob(&[number], PieceSet::Complete)).collect();
    for number in 0..50 {
        let stranger = request(peer(&format!("stranger{number}"), NodeRole::Proxy), blobs.clone());
        let body = serde_json::to_vec(&stranger).unwrap();
        let (status, answer) = post(running.addr(), "application/json", &body).await;
        assert_eq!(status, 503, "{answer}");
        assert!(answer.contains("tracker.max_peers"), "{answer}");
    }
    // One of those who are there floods: its own bounds are what it meets.
    let response = running.announce(&request(peer("node0", NodeRole::Proxy), blobs)).await;
    assert_eq!(response.refused.len(), 196);
    let status = running.tracker.status();
    assert_eq!((&status["peers"], &status["entries"]), (&5.into(), &8.into()));
    let asking = request(peer("node1", NodeRole::Proxy), vec![blob(b"a", PieceSet::Empty)]);
    assert_eq!(running.announce(&asking).await.peers[0].peers.len(), 4);
}

#[tokio::test]
async fn garbage_on_the_port_harms_nobody() {
    let running = Running::start(TrackerConfig::default()).await;
    for garbage in
        [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], b"\0\0\0\0\r\n\r\n", &[b'A'; 200_000], b"GET\r\n\r\n"]
    {
        let mut stream = TcpStream::connect(running.addr()).await.unwrap();
        // Cut off in the middle, or refused: either way the tracker goes on.
        let _ = stream.write_all(garbage).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = timeout(DEADLINE, stream.read_to_end(&mut answer)).await.unwrap();
    }
    // A head of an announce whose body never comes, while others are served.
    let mut slow = TcpStream::connect(running.addr()).await.unwrap();
    let head =
        "POST /v1/announce HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\ncontent-length: 4000000\r\n\r\n{";
    slow.write_all(head.as_bytes()).await.unwrap();
    let response = running.announce(&request(peer("p", NodeRole::Proxy), vec![blob(b"a", PieceSet::Empty)])).await;
    assert_eq!(response.peers.len(), 1);
}

#[tokio::test]
async fn shutdown_ends_idle_connections_and_frees_the_port() {
    let running = Running::start(TrackerConfig::default()).await;
    let addr = running.addr();
    let mut idle = TcpStream::connect(addr).await.unwrap();
    idle.write_all(b"GET /v1/peers HTTP/1.1\r\nhost: t\r\n\r\n").await.unwrap();
    let mut buffer = [0; 1];
    idle.read_exact(&mut buffer).await.unwrap();
    running.shutdown.cancel();
    timeout(DEADLINE, running.tracker.wait()).await.unwrap();
    let mut rest = Vec::new();
    timeout(DEADLINE, idle.read_to_end(&mut rest)).await.unwrap().unwrap();
    assert!(TcpStream::connect(addr).await.is_err());
}

#[tokio::test]
async fn a_taken_port_and_bad_settings_are_named() {
    let running = Running::start(TrackerConfig::default()).await;
    let start = async |config| {
        Tracker::start(config, &MemberTls::open(), &mut Registry::default(), CancellationToken::new())
            .await
            .unwrap_err()
            .to_string()
    };
    let error = start(TrackerConfig { listen: running.addr(), ..TrackerConfig::default() }).await;
    assert!(error.contains(&running.addr().to_string()) && error.contains("tracker.listen"), "{error}");
    let error = start(TrackerConfig { max_blobs: 0, ..TrackerConfig::default() }).await;
    assert!(error.contains("tracker.max_blobs"), "{error}");
}

#[tokio::test]
async fn a_node_that_announces_without_a_pause_waits_and_others_do_not() {
    let running = Running::start(TrackerConfig::default()).await;
    let flood = serde_json::to_vec(&request(peer("flood", NodeRole::Proxy), Vec::new())).unwrap();
    let began = Instant::now();
    // On many connections, so that it is the tracker that holds them back.
    let answers = join_all((0..160).map(|_| post(running.addr(), "application/json", &flood))).await;
    let statuses = |wanted: u16| answers.iter().filter(|(status, _)| *status == wanted).count();
    assert_eq!(statuses(200) + statuses(429), 160, "{answers:?}");
    // A hundred at once, and twenty a second.
    let due = 100 + 20 * (usize::try_from(began.elapsed().as_secs()).unwrap() + 1);
    assert!((100..=due).contains(&statuses(200)), "{} within {:?}", statuses(200), began.elapsed());
    assert!(statuses(429) > 0);
    let metrics = running.metrics();
    assert!(!metrics.lines().any(|line| line == "eagle_tracker_announces_held_total 0"), "{metrics}");
    let began = Instant::now();
    running.announce(&request(peer("other", NodeRole::Proxy), vec![blob(b"a", PieceSet::Empty)])).await;
    assert!(began.elapsed() < DEADLINE);
}
