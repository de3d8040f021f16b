//! The messages between nodes and trackers.
//!
//! Members that a reader does not know are ignored, so that either side can be upgraded first; what
//! changes the meaning of a message gets a new path (`/v2/...`). Every list has a bound that both
//! sides check, whatever the other one promises.

mod overview;
pub mod seeders;

pub use eagle_core::tracker::{FlowReport, NodeLoad, SenderReport, flows::MOST_REPORTED, received::MOST_SENDERS};
use eagle_core::{Digest, Geometry, NodeRole, PeerInfo, PieceSet, Topology};
use serde::{Deserialize, Serialize};

pub use self::overview::{Overview, RackSummary, StoreStatus, TopologyPage, ZoneFlow, ZoneName, ZoneSummary};

/// Path of the announce endpoint.
pub const ANNOUNCE_PATH: &str = "/v1/announce";
/// Path of the list of swarms; one swarm is below it by digest.
pub const SWARMS_PATH: &str = "/v1/swarms";
/// Path of the list of peers; one peer is below it by identity.
pub const PEERS_PATH: &str = "/v1/peers";
/// Path of the cluster at a glance.
pub const OVERVIEW_PATH: &str = "/v1/overview";
/// Path of where the nodes are.
pub const TOPOLOGY_PATH: &str = "/v1/topology";

/// Largest body of an announce, bytes: 10,000 blobs take about 2 MB without bitmaps.
pub const MAX_REQUEST_BYTES: usize = 4 << 20;
/// Largest answer to an announce, bytes: what a client reads before it gives up on a tracker.
pub const MAX_RESPONSE_BYTES: usize = 16 << 20;
/// Most blobs in one announce; a node with more sends several.
pub const MAX_ANNOUNCED_BLOBS: usize = 10_000;
/// Most peers that an answer may give for one blob. More neighbours than this do not help a swarm:
/// 30 to 40 are enough for 1,000 nodes (`docs/architecture.md`).
pub const MAX_PEERS_PER_BLOB: usize = 200;

/// What happened to a blob at the node that announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Event {
    /// The node joined the swarm, or announces the blob to this tracker for the first time.
    Started,
    /// It owns more pieces than before, or just wants peers again.
    Progress,
    /// It now owns every piece.
    Completed,
    /// It has dropped the blob and serves it no longer.
    Evicted,
}

/// The state of one blob at the node that announces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobAnnounce {
    /// Which blob.
    pub digest: Digest,
    /// How it is cut into pieces; all members of a swarm must agree.
    pub geometry: Geometry,
    /// The pieces that the node owns and serves.
    pub pieces: PieceSet,
    /// What happened.
    pub event: Event,
    /// Whether the answer should name peers for this blob.
    #[serde(default)]
    pub want_peers: bool,
}

/// One announce of a node, of any number of blobs.
///
/// Every announce keeps all blobs of the node alive, also those it does not mention.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnnounceRequest {
    /// The node. An unspecified IP address (`0.0.0.0`, `::`) stands for the address that the
    /// tracker sees the request come from.
    pub node: PeerInfo,
    /// Whether `blobs` is all that the node has; what is not in it is forgotten.
    #[serde(default)]
    pub full: bool,
    /// Whether the node is shutting down: it leaves every swarm at once.
    #[serde(default)]
    pub stopped: bool,
    /// How busy the node is; absent when it does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<NodeLoad>,
    /// What it received from each zone since its last report, at most [`MOST_REPORTED`]; more are left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flows: Vec<FlowReport>,
    /// From whom it received most since its last report, at most [`MOST_SENDERS`]; more are left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub senders: Vec<SenderReport>,
    /// The blobs that changed or are wanted, at most [`MAX_ANNOUNCED_BLOBS`].
    #[serde(default)]
    pub blobs: Vec<BlobAnnounce>,
}

impl AnnounceRequest {
    /// An announce that says no more than that the node lives.
    pub fn of(node: PeerInfo) -> Self {
        Self {
            node,
            full: false,
            stopped: false,
            load: None,
            flows: Vec::new(),
            senders: Vec::new(),
            blobs: Vec::new(),
        }
    }
}

/// The answer to an announce.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AnnounceResponse {
    /// Seconds until the node should announce again unless something happens.
    pub interval_seconds: f64,
    /// Whether the tracker did not know the node (it restarted, or the node was silent for too
    /// long) and wants its full state.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub send_full: bool,
    /// Where the tracker's table of networks says that the node is; absent when it says nothing or the node said
    /// the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topology: Option<Topology>,
    /// Peers for each wanted blob.
    #[serde(default)]
    pub peers: Vec<BlobPeers>,
    /// Blobs whose announce was refused, each with the reason; the others were taken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<RefusedBlob>,
    /// The version of the list of live seeders (`GET /v1/seeders`); absent while the tracker knows of none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seeders_version: Option<u64>,
}

/// The peers of one blob, the best first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobPeers {
    /// Which blob.
    pub digest: Digest,
    /// Its peers, at most [`MAX_PEERS_PER_BLOB`], never the asker itself.
    pub peers: Vec<SwarmPeer>,
}

/// A peer and what it owns of a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwarmPeer {
    /// The peer.
    pub info: PeerInfo,
    /// The pieces that it last announced.
    pub pieces: PieceSet,
}

/// A blob whose announce was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedBlob {
    /// Which blob.
    pub digest: Digest,
    /// Why, for operators.
    pub reason: String,
}

/// Body of every answer with a 4xx or 5xx status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorResponse {
    /// What was wrong and what to do, for operators.
    pub error: String,
}

/// A page of swarms, in the order of their digests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SwarmsPage {
    /// The swarms.
    pub swarms: Vec<SwarmSummary>,
    /// The value of `after` that gives the next page; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Digest>,
}

/// One swarm at a glance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SwarmSummary {
    /// The blob.
    pub digest: Digest,
    /// How it is cut into pieces.
    pub geometry: Geometry,
    /// Number of pieces.
    pub pieces: u32,
    /// Number of peers.
    pub peers: usize,
    /// How many of them are seeders.
    pub seeders: usize,
    /// How many of them own every piece.
    pub complete: usize,
    /// Share of the pieces that its peers own on average, 0 to 1.
    #[serde(default)]
    pub progress: f64,
    /// Seconds since the swarm was first announced.
    pub age_seconds: f64,
    /// Seconds since a peer last joined or said that it owns more.
    #[serde(default)]
    pub changed_seconds: f64,
    /// Bytes per second that its peers get from each other, as far as they report it.
    #[serde(default)]
    pub bytes_per_second: u64,
}

/// One swarm and a page of its peers, in the order of their identities.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SwarmPage {
    /// The swarm.
    #[serde(flatten)]
    pub summary: SwarmSummary,
    /// Its peers.
    pub members: Vec<SwarmMember>,
    /// The value of `after` that gives the next page; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A peer of a swarm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SwarmMember {
    /// The peer.
    #[serde(flatten)]
    pub peer: PeerAt,
    /// Number of pieces that it owns.
    pub pieces: u32,
    /// Whether these are all.
    pub complete: bool,
    /// Which ones, where the request asked for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owned: Option<PieceSet>,
    /// Seconds since it joined the swarm.
    pub age_seconds: f64,
    /// Seconds since its last announce.
    pub last_announce_seconds: f64,
    /// From whom it gets most of the blob now, the fastest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub senders: Vec<Sender>,
}

/// A node that another gets a blob from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sender {
    /// Its identity.
    pub id: String,
    /// How fast, bytes per second.
    pub bytes_per_second: u64,
}

/// A page of peers, in the order of their identities.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeersPage {
    /// The peers.
    pub peers: Vec<PeerSummary>,
    /// The value of `after` that gives the next page; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A peer at a glance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerSummary {
    /// The peer.
    #[serde(flatten)]
    pub peer: PeerAt,
    /// Number of blobs that it announced.
    pub blobs: usize,
    /// Seconds since its first announce.
    pub age_seconds: f64,
    /// Seconds since its last announce.
    pub last_announce_seconds: f64,
    /// What it does now.
    #[serde(default)]
    pub activity: NodeActivity,
}

/// What a node does at present, as far as it and the others report it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeActivity {
    /// How busy it is; absent when it does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<NodeLoad>,
    /// Bytes per second that it gets from other nodes.
    pub received_bytes_per_second: u64,
    /// Bytes per second that other nodes say that they get from it.
    pub sent_bytes_per_second: u64,
}

/// A node and a page of the blobs that it announced, in the order of their digests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerPage {
    /// The node.
    #[serde(flatten)]
    pub summary: PeerSummary,
    /// Its blobs.
    pub owns: Vec<PeerBlob>,
    /// The value of `after` that gives the next page; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Digest>,
}

/// What a node owns of a blob.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerBlob {
    /// The blob.
    pub digest: Digest,
    /// Its size, bytes.
    pub size: u64,
    /// Number of its pieces.
    pub pieces: u32,
    /// How many of them the node owns.
    pub owned: u32,
}

/// Who a peer is and where.
///
/// The same members as [`PeerInfo`], which refuses unknown ones and so cannot be flattened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerAt {
    /// Identity.
    pub id: String,
    /// Address of its libp2p listener.
    pub address: std::net::SocketAddr,
    /// What it is.
    pub role: NodeRole,
    /// Where it is.
    pub topology: Topology,
}

impl From<&PeerInfo> for PeerAt {
    fn from(info: &PeerInfo) -> Self {
        Self { id: info.id.to_string(), address: info.address, role: info.role, topology: info.topology.clone() }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use eagle_core::{Bitfield, NodeId, PieceIndex, tracker::Ownership};
    use proptest::prelude::*;

    use super::*;
    use crate::encoding::{Encoding, NamedPeer, NodeRecord};

    fn topology() -> impl Strategy<Value = Topology> {
        let label = || proptest::option::of("[a-z0-9\u{e4}\"\\\\]{1,15}");
        (label(), label(), label()).prop_map(|(region, zone, rack)| Topology { region, zone, rack })
    }

    fn peer() -> impl Strategy<Value = PeerInfo> {
        ("[A-Za-z0-9]{1,64}", any::<std::net::IpAddr>(), 1u16.., any::<bool>(), topology()).prop_map(
            |(id, ip, port, seeder, topology)| PeerInfo {
                id: id.parse::<NodeId>().unwrap(),
                address: (ip, port).into(),
                role: if seeder { NodeRole::Seeder } else { NodeRole::Proxy },
                topology,
            },
        )
    }

    fn digest() -> impl Strategy<Value = Digest> {
        prop_oneof![
            any::<[u8; 32]>().prop_map(Digest::Sha256),
            any::<[u8; 32]>().prop_map(|half| Digest::Sha512([half, half].concat().try_into().unwrap())),
        ]
    }

    fn pieces() -> impl Strategy<Value = PieceSet> {
        proptest::collection::vec(0u32..500, 0..80).prop_map(|set| {
            let mut field = Bitfield::new(500);
            for index in set {
                field.insert(PieceIndex(index));
            }
            PieceSet::from(&field)
        })
    }

    fn blob() -> impl Strategy<Value = BlobAnnounce> {
        let event =
            prop_oneof![Just(Event::Started), Just(Event::Progress), Just(Event::Completed), Just(Event::Evicted)];
        (digest(), 0u64..1 << 40, pieces(), event, any::<bool>()).prop_map(
            |(digest, size, pieces, event, want_peers)| BlobAnnounce {
                digest,
                geometry: Geometry::auto(size).unwrap(),
                pieces,
                event,
                want_peers,
            },
        )
    }

    fn through_json<T: Serialize + serde::de::DeserializeOwned>(value: &T) -> T {
        serde_json::from_slice(&serde_json::to_vec(value).unwrap()).unwrap()
    }

    proptest! {
        #[test]
        fn requests_round_trip(
            node in peer(), full: bool, stopped: bool, blobs in proptest::collection::vec(blob(), 0..8),
            load in proptest::option::of((any::<u16>(), any::<u16>())),
            flows in proptest::collection::vec((topology(), any::<u64>(), any::<u64>()), 0..4),
            senders in proptest::collection::vec((digest(), "[A-Za-z0-9]{1,64}", any::<u64>()), 0..=MOST_SENDERS),
        ) {
            let load = load.map(|(requests, free_slots)| NodeLoad { requests, free_slots });
            let flow = |(from, bytes_per_second, bytes)| FlowReport {
                from: Topology { rack: None, ..from }, bytes_per_second, bytes,
            };
            let flows = flows.into_iter().map(flow).collect();
            let sender = |(digest, id, bytes): (_, String, _)| SenderReport { digest, id: id.parse().unwrap(), bytes };
            let senders = senders.into_iter().map(sender).collect();
            let request = AnnounceRequest { node, full, stopped, load, flows, senders, blobs };
            for encoding in [Encoding::Json, Encoding::Protobuf] {
                let bytes = encoding.encode_request(&request).unwrap();
                prop_assert_eq!(&encoding.decode_request(&bytes).unwrap(), &request);
                // Cut off anywhere it is an error or, for protobuf at the edge of a field, a smaller announce.
                let _ = encoding.decode_request(&bytes[..bytes.len() / 2]);
            }
        }

        #[test]
        fn responses_round_trip(
            tenths in 0u32..1000, send_full: bool, digest in digest(), reason in ".{0,50}",
            peers in proptest::collection::vec((peer(), pieces()), 0..8), topology in proptest::option::of(topology()),
        ) {
            let peers = peers.into_iter().map(|(info, pieces)| SwarmPeer { info, pieces }).collect();
            let response = AnnounceResponse {
                interval_seconds: f64::from(tenths) / 10.0,
                send_full,
                topology: topology.clone(),
                peers: vec![BlobPeers { digest, peers }],
                refused: vec![RefusedBlob { digest, reason }],
                seeders_version: send_full.then_some(u64::from(tenths)),
            };
            for encoding in [Encoding::Json, Encoding::Protobuf] {
                let bytes = encoding.encode_response(&response).unwrap();
                prop_assert_eq!(&encoding.decode_response(&bytes).unwrap(), &response);
                // The same from what the tracker knows of the peers.
                let named = |peer: &SwarmPeer| NamedPeer {
                    node: Arc::new(NodeRecord::new(peer.info.clone())),
                    pieces: Ownership::new(&peer.pieces, 500).unwrap(),
                };
                let named: Vec<_> = response.peers[0].peers.iter().map(named).collect();
                let without = AnnounceResponse { peers: Vec::new(), ..response.clone() };
                let bytes = encoding.encode_answer(without, &[(digest, named.clone())]).unwrap();
                let read = encoding.decode_response(&bytes).unwrap();
                for (peer, named) in read.peers[0].peers.iter().zip(&named) {
                    prop_assert_eq!(&peer.pieces, &named.pieces.to_piece_set());
                }
                let infos = |response: &AnnounceResponse| -> Vec<PeerInfo> {
                    response.peers[0].peers.iter().map(|peer| peer.info.clone()).collect()
                };
                prop_assert_eq!(infos(&read), infos(&response));
                prop_assert_eq!(AnnounceResponse { peers: response.peers.clone(), ..read }, response.clone());
            }
        }

        #[test]
        fn pages_round_trip(peer in peer(), digest in digest(), count in 0usize..100, complete: bool) {
            let summary = SwarmSummary {
                digest,
                geometry: Geometry::auto(1 << 30).unwrap(),
                pieces: 512,
                peers: count,
                seeders: 1,
                complete: 1,
                progress: 0.5,
                age_seconds: 1.5,
                changed_seconds: 0.5,
                bytes_per_second: 1 << 40,
            };
            let at = PeerAt::from(&peer);
            let member = SwarmMember {
                peer: at.clone(),
                pieces: 3,
                complete,
                owned: complete.then_some(PieceSet::Complete),
                age_seconds: 0.5,
                last_announce_seconds: 0.25,
                senders: vec![Sender { id: at.id.clone(), bytes_per_second: 7 }],
            };
            let (here, activity) = (ZoneName::from(&at.topology), NodeActivity::default());
            let page = SwarmPage { summary: summary.clone(), members: vec![member], next: Some(at.id.clone()) };
            prop_assert_eq!(through_json(&page), page);
            let page = SwarmsPage { swarms: vec![summary], next: complete.then_some(digest) };
            prop_assert_eq!(through_json(&page), page);
            let flow = ZoneFlow {
                from: here.clone(), to: here, bytes_per_second: 3, transfer_bytes_per_second: 1, bytes: u64::MAX,
            };
            let page = TopologyPage { zones: Vec::new(), flows: vec![flow], next: complete.then_some(count) };
            prop_assert_eq!(through_json(&page), page);
            let peers = vec![PeerSummary {
                peer: at, blobs: count, age_seconds: 2.0, last_announce_seconds: 0.0, activity,
            }];
            let page = PeersPage { peers, next: None };
            prop_assert_eq!(through_json(&page), page);
        }

        #[test]
        fn foreign_bytes_never_panic(bytes: Vec<u8>, text in "[\\[\\]{}:,\"a-z0-9 ]{0,100}") {
            for encoding in [Encoding::Json, Encoding::Protobuf] {
                let _ = encoding.decode_request(&bytes);
                let _ = encoding.decode_request(text.as_bytes());
                let _ = encoding.decode_response(&bytes);
            }
        }
    }

    #[test]
    fn members_of_later_versions_are_ignored() {
        let node = serde_json::to_value(PeerInfo::example()).unwrap();
        let request: AnnounceRequest = serde_json::from_value(serde_json::json!({"node": node, "weather": 3})).unwrap();
        assert!(request.blobs.is_empty() && !request.full && !request.stopped);
        let response: AnnounceResponse = serde_json::from_str(r#"{"interval_seconds": 1, "lease": []}"#).unwrap();
        assert!(!response.send_full);
    }
}
