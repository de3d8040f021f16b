//! The messages of `docs/tracker.proto`, and what they are in [`crate::api`].

mod direct;

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use eagle_core::{Digest, NodeRole, PeerInfo, PieceSet, Topology, digest::Algorithm, piece_set::Bitmap};
use prost::{
    DecodeError as WireError, Enumeration, Message, Oneof,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field},
};

pub(super) use self::direct::{read_request, write_node, write_peers};
use super::DecodeError;
use crate::api;

#[derive(Clone, PartialEq, Message)]
pub(super) struct AnnounceRequest {
    #[prost(message, optional, tag = "1")]
    node: Option<Node>,
    #[prost(bool, tag = "2")]
    full: bool,
    #[prost(bool, tag = "3")]
    stopped: bool,
    #[prost(message, repeated, tag = "4")]
    blobs: Vec<BlobAnnounce>,
    #[prost(message, optional, tag = "5")]
    load: Option<Load>,
    #[prost(message, repeated, tag = "6")]
    flows: Vec<Flow>,
    #[prost(message, repeated, tag = "7")]
    senders: Vec<Sender>,
}

#[derive(Clone, PartialEq, Message)]
struct Load {
    #[prost(uint32, tag = "1")]
    requests: u32,
    #[prost(uint32, tag = "2")]
    free_slots: u32,
}

#[derive(Clone, PartialEq, Message)]
struct Flow {
    #[prost(string, tag = "1")]
    region: String,
    #[prost(string, tag = "2")]
    zone: String,
    #[prost(uint64, tag = "3")]
    bytes_per_second: u64,
    #[prost(uint64, tag = "4")]
    bytes: u64,
}

#[derive(Clone, PartialEq, Message)]
struct Sender {
    #[prost(bytes = "bytes", tag = "1")]
    digest: Bytes,
    #[prost(string, tag = "2")]
    id: String,
    #[prost(uint64, tag = "3")]
    bytes: u64,
}

#[derive(Clone, PartialEq, Message)]
struct Place {
    #[prost(string, tag = "1")]
    region: String,
    #[prost(string, tag = "2")]
    zone: String,
    #[prost(string, tag = "3")]
    rack: String,
}

#[derive(Clone, PartialEq, Message)]
struct Node {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(bytes = "bytes", tag = "2")]
    ip: Bytes,
    #[prost(uint32, tag = "3")]
    port: u32,
    #[prost(enumeration = "Role", tag = "4")]
    role: i32,
    #[prost(string, tag = "5")]
    region: String,
    #[prost(string, tag = "6")]
    zone: String,
    #[prost(string, tag = "7")]
    rack: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
enum Role {
    Unspecified = 0,
    Seeder = 1,
    Proxy = 2,
}

#[derive(Clone, PartialEq, Message)]
struct BlobAnnounce {
    #[prost(bytes = "bytes", tag = "1")]
    digest: Bytes,
    #[prost(uint64, tag = "2")]
    size: u64,
    #[prost(uint32, tag = "3")]
    piece_length: u32,
    #[prost(message, optional, tag = "4")]
    pieces: Option<Pieces>,
    #[prost(enumeration = "Event", tag = "5")]
    event: i32,
    #[prost(bool, tag = "6")]
    want_peers: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
enum Event {
    Unspecified = 0,
    Started = 1,
    Progress = 2,
    Completed = 3,
    Evicted = 4,
}

#[derive(Clone, PartialEq, Message)]
struct Pieces {
    #[prost(oneof = "Set", tags = "1, 2, 3, 4")]
    set: Option<Set>,
}

#[derive(Clone, PartialEq, Oneof)]
enum Set {
    #[prost(bool, tag = "1")]
    Complete(bool),
    #[prost(uint32, tag = "2")]
    Prefix(u32),
    #[prost(bytes = "vec", tag = "3")]
    Bitmap(Vec<u8>),
    #[prost(message, tag = "4")]
    Runs(Runs),
}

#[derive(Clone, PartialEq, Message)]
struct Runs {
    #[prost(uint32, repeated, tag = "1")]
    lengths: Vec<u32>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct AnnounceResponse {
    #[prost(double, tag = "1")]
    interval_seconds: f64,
    #[prost(bool, tag = "2")]
    send_full: bool,
    #[prost(message, repeated, tag = "3")]
    peers: Vec<BlobPeers>,
    #[prost(message, repeated, tag = "4")]
    refused: Vec<RefusedBlob>,
    #[prost(message, optional, tag = "5")]
    topology: Option<Place>,
    #[prost(uint64, optional, tag = "6")]
    seeders_version: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct BlobPeers {
    #[prost(bytes = "bytes", tag = "1")]
    digest: Bytes,
    #[prost(message, repeated, tag = "2")]
    peers: Vec<SwarmPeer>,
}

#[derive(Clone, PartialEq, Message)]
struct SwarmPeer {
    #[prost(message, optional, tag = "1")]
    info: Option<Node>,
    #[prost(message, optional, tag = "2")]
    pieces: Option<Pieces>,
}

#[derive(Clone, PartialEq, Message)]
struct RefusedBlob {
    #[prost(bytes = "bytes", tag = "1")]
    digest: Bytes,
    #[prost(string, tag = "2")]
    reason: String,
}

/// Reads an answer with at most `most` entries, peers and blobs together.
pub(super) fn read_response(bytes: &[u8], most: usize) -> Result<api::AnnounceResponse, DecodeError> {
    let entries = fields(bytes, 3, |blob| Ok(1 + fields(blob, 2, |_| Ok(1))?))? + fields(bytes, 4, |_| Ok(1))?;
    if entries > most {
        return Err(wrong("peers", format_args!("there are {entries}, more than {most}")));
    }
    AnnounceResponse::decode(bytes)?.try_into()
}

/// The sum of what `count` gives for each field of a message that has this number and a length.
fn fields(
    mut message: &[u8],
    number: u32,
    count: impl Fn(&[u8]) -> Result<usize, WireError>,
) -> Result<usize, WireError> {
    let mut sum = 0usize;
    while !message.is_empty() {
        let (tag, wire_type) = decode_key(&mut message)?;
        if tag != number || wire_type != WireType::LengthDelimited {
            skip_field(wire_type, tag, &mut message, DecodeContext::default())?;
            continue;
        }
        let length = usize::try_from(decode_varint(&mut message)?).unwrap_or(usize::MAX);
        // What is cut off is found by the decoder itself, with its own words.
        let Some((content, rest)) = message.split_at_checked(length) else { return Ok(sum) };
        sum = sum.saturating_add(count(content)?);
        message = rest;
    }
    Ok(sum)
}

fn wrong(field: &'static str, problem: impl ToString) -> DecodeError {
    DecodeError::Value { field, problem: problem.to_string() }
}

fn digest_to(digest: &Digest) -> Bytes {
    Bytes::copy_from_slice(digest.as_bytes())
}

fn digest_from(bytes: &[u8]) -> Result<Digest, DecodeError> {
    let of = |algorithm| Digest::from_bytes(algorithm, bytes);
    of(Algorithm::Sha256)
        .or_else(|| of(Algorithm::Sha512))
        .ok_or_else(|| wrong("digest", format_args!("{} bytes are neither SHA-256 nor SHA-512", bytes.len())))
}

fn label_to(label: Option<&String>) -> String {
    label.cloned().unwrap_or_default()
}

fn topology(field: &'static str, region: String, zone: String, rack: String) -> Result<Topology, DecodeError> {
    let label = |label: String| (!label.is_empty()).then_some(label);
    Topology::new(label(region), label(zone), label(rack)).map_err(|error| wrong(field, error))
}

fn place_to(topology: &Topology) -> Place {
    let Topology { region, zone, rack } = topology;
    Place { region: label_to(region.as_ref()), zone: label_to(zone.as_ref()), rack: label_to(rack.as_ref()) }
}

fn place_from(place: Place) -> Result<Topology, DecodeError> {
    topology("topology", place.region, place.zone, place.rack)
}

fn flow_to(flow: &api::FlowReport) -> Flow {
    Flow {
        region: label_to(flow.from.region.as_ref()),
        zone: label_to(flow.from.zone.as_ref()),
        bytes_per_second: flow.bytes_per_second,
        bytes: flow.bytes,
    }
}

fn flow_from(flow: Flow) -> Result<api::FlowReport, DecodeError> {
    Ok(api::FlowReport {
        from: topology("flows", flow.region, flow.zone, String::new())?,
        bytes_per_second: flow.bytes_per_second,
        bytes: flow.bytes,
    })
}

fn sender_to(sender: &api::SenderReport) -> Sender {
    Sender { digest: digest_to(&sender.digest), id: sender.id.as_str().to_owned(), bytes: sender.bytes }
}

fn sender_from(sender: Sender) -> Result<api::SenderReport, DecodeError> {
    Ok(api::SenderReport {
        digest: digest_from(&sender.digest)?,
        id: sender.id.parse().map_err(|error| wrong("senders.id", error))?,
        bytes: sender.bytes,
    })
}

impl From<&PeerInfo> for Node {
    fn from(info: &PeerInfo) -> Self {
        Self {
            id: info.id.as_str().to_owned(),
            ip: match info.address.ip() {
                IpAddr::V4(ip) => Bytes::copy_from_slice(&ip.octets()),
                IpAddr::V6(ip) => Bytes::copy_from_slice(&ip.octets()),
            },
            port: info.address.port().into(),
            role: match info.role {
                NodeRole::Seeder => Role::Seeder,
                NodeRole::Proxy => Role::Proxy,
            }
            .into(),
            region: label_to(info.topology.region.as_ref()),
            zone: label_to(info.topology.zone.as_ref()),
            rack: label_to(info.topology.rack.as_ref()),
        }
    }
}

impl TryFrom<Node> for PeerInfo {
    type Error = DecodeError;

    fn try_from(node: Node) -> Result<Self, DecodeError> {
        let ip: IpAddr = match <[u8; 4]>::try_from(&*node.ip) {
            Ok(octets) => octets.into(),
            Err(_) => {
                <[u8; 16]>::try_from(&*node.ip).map_err(|_| wrong("node.ip", "it has neither 4 nor 16 bytes"))?.into()
            }
        };
        let port = u16::try_from(node.port).map_err(|_| wrong("node.port", "it is larger than 65535"))?;
        Ok(Self {
            role: match node.role() {
                Role::Seeder => NodeRole::Seeder,
                Role::Proxy => NodeRole::Proxy,
                Role::Unspecified => return Err(wrong("node.role", "it is neither seeder nor proxy")),
            },
            id: node.id.parse().map_err(|error| wrong("node.id", error))?,
            address: SocketAddr::new(ip, port),
            topology: topology("node.topology", node.region, node.zone, node.rack)?,
        })
    }
}

impl From<&PieceSet> for Pieces {
    fn from(set: &PieceSet) -> Self {
        let set = match set {
            PieceSet::Empty => None,
            PieceSet::Complete => Some(Set::Complete(true)),
            PieceSet::Prefix(count) => Some(Set::Prefix(*count)),
            PieceSet::Bitmap(Bitmap(bytes)) => Some(Set::Bitmap(bytes.clone())),
            PieceSet::Runs(lengths) => Some(Set::Runs(Runs { lengths: lengths.clone() })),
        };
        Self { set }
    }
}

/// A set that was read; whether it fits its blob is checked by whoever knows the blob.
fn piece_set(pieces: Option<Pieces>) -> PieceSet {
    match pieces.and_then(|pieces| pieces.set) {
        None | Some(Set::Complete(false)) => PieceSet::Empty,
        Some(Set::Complete(true)) => PieceSet::Complete,
        Some(Set::Prefix(count)) => PieceSet::Prefix(count),
        Some(Set::Bitmap(bytes)) => PieceSet::Bitmap(Bitmap(bytes)),
        Some(Set::Runs(runs)) => PieceSet::Runs(runs.lengths),
    }
}

impl From<&api::AnnounceRequest> for AnnounceRequest {
    fn from(request: &api::AnnounceRequest) -> Self {
        let blob = |blob: &api::BlobAnnounce| BlobAnnounce {
            digest: digest_to(&blob.digest),
            size: blob.geometry.size(),
            piece_length: blob.geometry.piece_length(),
            pieces: Some(Pieces::from(&blob.pieces)).filter(|pieces| pieces.set.is_some()),
            event: match blob.event {
                api::Event::Started => Event::Started,
                api::Event::Progress => Event::Progress,
                api::Event::Completed => Event::Completed,
                api::Event::Evicted => Event::Evicted,
            }
            .into(),
            want_peers: blob.want_peers,
        };
        Self {
            node: Some((&request.node).into()),
            full: request.full,
            stopped: request.stopped,
            blobs: request.blobs.iter().map(blob).collect(),
            load: request.load.map(|load| Load { requests: load.requests.into(), free_slots: load.free_slots.into() }),
            flows: request.flows.iter().map(flow_to).collect(),
            senders: request.senders.iter().map(sender_to).collect(),
        }
    }
}

/// Without the blobs, which are read apart.
impl TryFrom<AnnounceRequest> for api::AnnounceRequest {
    type Error = DecodeError;

    fn try_from(request: AnnounceRequest) -> Result<Self, DecodeError> {
        Ok(Self {
            node: request.node.ok_or_else(|| wrong("node", "it is missing"))?.try_into()?,
            full: request.full,
            stopped: request.stopped,
            blobs: Vec::new(),
            load: request.load.map(|load| api::NodeLoad {
                // More than fits is as much as can be.
                requests: u16::try_from(load.requests).unwrap_or(u16::MAX),
                free_slots: u16::try_from(load.free_slots).unwrap_or(u16::MAX),
            }),
            flows: request.flows.into_iter().map(flow_from).collect::<Result<_, _>>()?,
            senders: request.senders.into_iter().map(sender_from).collect::<Result<_, _>>()?,
        })
    }
}

impl From<&api::AnnounceResponse> for AnnounceResponse {
    fn from(response: &api::AnnounceResponse) -> Self {
        let peer = |peer: &api::SwarmPeer| SwarmPeer {
            info: Some((&peer.info).into()),
            pieces: Some(Pieces::from(&peer.pieces)).filter(|pieces| pieces.set.is_some()),
        };
        let peers = |blob: &api::BlobPeers| BlobPeers {
            digest: digest_to(&blob.digest),
            peers: blob.peers.iter().map(peer).collect(),
        };
        let refused =
            |blob: &api::RefusedBlob| RefusedBlob { digest: digest_to(&blob.digest), reason: blob.reason.clone() };
        Self {
            interval_seconds: response.interval_seconds,
            send_full: response.send_full,
            peers: response.peers.iter().map(peers).collect(),
            refused: response.refused.iter().map(refused).collect(),
            topology: response.topology.as_ref().map(place_to),
            seeders_version: response.seeders_version,
        }
    }
}

impl TryFrom<SwarmPeer> for api::SwarmPeer {
    type Error = DecodeError;

    fn try_from(peer: SwarmPeer) -> Result<Self, DecodeError> {
        Ok(Self {
            info: peer.info.ok_or_else(|| wrong("info", "it is missing"))?.try_into()?,
            pieces: piece_set(peer.pieces),
        })
    }
}

impl TryFrom<AnnounceResponse> for api::AnnounceResponse {
    type Error = DecodeError;

    fn try_from(response: AnnounceResponse) -> Result<Self, DecodeError> {
        let peers = |blob: BlobPeers| {
            let peers = blob.peers.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?;
            Ok::<_, DecodeError>(api::BlobPeers { digest: digest_from(&blob.digest)?, peers })
        };
        let refused = |blob: RefusedBlob| {
            Ok::<_, DecodeError>(api::RefusedBlob { digest: digest_from(&blob.digest)?, reason: blob.reason })
        };
        Ok(Self {
            interval_seconds: response.interval_seconds,
            send_full: response.send_full,
            peers: response.peers.into_iter().map(peers).collect::<Result<_, _>>()?,
            refused: response.refused.into_iter().map(refused).collect::<Result<_, _>>()?,
            topology: response.topology.map(place_from).transpose()?,
            seeders_version: response.seeders_version,
        })
    }
}
