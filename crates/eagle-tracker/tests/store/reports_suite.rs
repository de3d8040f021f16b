//! What nodes report and any tracker shows: the same of one tracker, and of several that share a Redis.

use std::time::Duration;

use eagle_cluster::MemberTls;
use eagle_core::{
    Digest, Geometry, NodeRole, PeerInfo, PieceSet, Topology,
    tracker::{FlowReport, NodeLoad, SenderReport},
};
use eagle_tracker::{
    AnnounceRequest, BlobAnnounce, Event, Tracker, TrackerConfig,
    api::{PeerPage, SwarmPage, TopologyPage},
};
use http::Method;
use http_body_util::BodyExt as _;
use prometheus_client::registry::Registry;
use serde::de::DeserializeOwned;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_util::sync::CancellationToken;

use crate::suite::node;

/// Longest wait for what should happen soon, on a machine with other work.
const DEADLINE: Duration = Duration::from_secs(30);
/// Between two reports of a node, which is what its rates are about.
const PAUSE: Duration = Duration::from_millis(300);
/// Bytes of each report.
const BYTES: u64 = 1_000_000;

/// A tracker that ends with its test.
pub(crate) struct Running {
    pub(crate) tracker: Tracker,
    shutdown: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Running {
    pub(crate) async fn start(config: &TrackerConfig) -> Self {
        let config = TrackerConfig { listen: "127.0.0.1:0".parse().unwrap(), ..config.clone() };
        let shutdown = CancellationToken::new();
        let tracker = Tracker::start(config, &MemberTls::open(), &mut Registry::default(), shutdown.clone()).await;
        let running = Self { tracker: tracker.unwrap(), shutdown };
        // What is announced before the store is found stays with this tracker.
        until("the store to be found", async || running.tracker.status()["store"]["away"] == false).await;
        running
    }

    pub(crate) async fn announce(&self, request: &AnnounceRequest) {
        let body = serde_json::to_vec(request).unwrap();
        let head = format!(
            "POST /v1/announce HTTP/1.1\r\nhost: t\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let mut stream = TcpStream::connect(self.tracker.local_addr()).await.unwrap();
        stream.write_all(&[head.as_bytes(), &body].concat()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    async fn page<T: DeserializeOwned>(&self, path: &str) -> Option<T> {
        let answer = self.tracker.pages().answer(&Method::GET, path, "").await;
        let (status, body) = (answer.status(), answer.into_body().collect().await.unwrap().to_bytes());
        (status == 200).then(|| serde_json::from_slice(&body).unwrap())
    }

    /// Bytes that went from zone to zone so far, as it shows them.
    pub(crate) async fn bytes(&self) -> Vec<(String, String, u64)> {
        let page: TopologyPage = self.page("/v1/topology").await.unwrap();
        let name = |zone: Option<String>| zone.unwrap_or_default();
        page.flows.into_iter().map(|flow| (name(flow.from.zone), name(flow.to.zone), flow.bytes)).collect()
    }
}

fn zone(name: &str) -> Topology {
    Topology { zone: Some(name.to_owned()), ..Topology::default() }
}

/// What a node in the zone `b` says that received this much of a blob from `node1` in the zone `a`.
pub(crate) fn report(number: u8, bytes: u64) -> AnnounceRequest {
    let digest = Digest::of(b"blob");
    let info = PeerInfo { topology: zone("b"), ..node(number, NodeRole::Proxy) };
    let geometry = Geometry::auto(10 << 20).unwrap();
    let blob = BlobAnnounce { digest, geometry, pieces: PieceSet::Empty, event: Event::Progress, want_peers: false };
    AnnounceRequest {
        blobs: vec![blob],
        load: Some(NodeLoad { requests: 3, free_slots: 1 }),
        flows: vec![FlowReport { from: zone("a"), bytes_per_second: 5_000, bytes }],
        senders: vec![SenderReport { digest, id: node(1, NodeRole::Proxy).id, bytes }],
        ..AnnounceRequest::of(info)
    }
}

/// Waits until something holds.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let found = tokio::time::timeout(DEADLINE, async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(found.await.is_ok(), "{what} did not come about");
}

/// A node reports at one tracker and then, as nodes behind a load balancer do, at the next: all show the same.
pub(crate) async fn every_tracker_shows_what_was_reported_to_any(trackers: &[Running]) {
    let at = |turn: usize| &trackers[turn % trackers.len()];
    at(0).announce(&AnnounceRequest::of(PeerInfo { topology: zone("a"), ..node(1, NodeRole::Proxy) })).await;
    for turn in 0..3 {
        at(turn).announce(&report(2, BYTES)).await;
        // Each tracker has heard of it before the next report comes.
        let expected = vec![("a".to_owned(), "b".to_owned(), BYTES * (turn as u64 + 1))];
        for tracker in trackers {
            until("the bytes of a report", async || tracker.bytes().await == expected).await;
        }
        tokio::time::sleep(PAUSE).await;
    }
    let mut turn = 3;
    for tracker in trackers {
        until("the rates of a node, and who serves it", async || {
            // Rates count for seconds, and the machine may be slow.
            at(turn).announce(&report(2, BYTES)).await;
            turn += 1;
            tokio::time::sleep(PAUSE).await;
            let receiver: PeerPage = tracker.page("/v1/peers/node2").await.unwrap();
            let sender: PeerPage = tracker.page("/v1/peers/node1").await.unwrap();
            let (got, gave) = (receiver.summary.activity, sender.summary.activity);
            let swarm: SwarmPage = tracker.page(&format!("/v1/swarms/{}", Digest::of(b"blob"))).await.unwrap();
            let senders: Vec<&str> =
                swarm.members.iter().flat_map(|member| &member.senders).map(|sender| sender.id.as_str()).collect();
            got.load.is_some_and(|load| (load.requests, load.free_slots) == (3, 1))
                && got.received_bytes_per_second > 0
                && gave.sent_bytes_per_second > 0
                && swarm.summary.bytes_per_second > 0
                && senders == ["node1"]
        })
        .await;
    }
    // What a node reported goes with it.
    at(1).announce(&AnnounceRequest { stopped: true, ..AnnounceRequest::of(node(2, NodeRole::Proxy)) }).await;
    for tracker in trackers {
        until("the end of a node", async || {
            let sender: PeerPage = tracker.page("/v1/peers/node1").await.unwrap();
            tracker.page::<PeerPage>("/v1/peers/node2").await.is_none()
                && sender.summary.activity.sent_bytes_per_second == 0
        })
        .await;
    }
}
