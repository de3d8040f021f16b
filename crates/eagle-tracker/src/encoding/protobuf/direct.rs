//! What trackers read and write most, the blobs of an announce and the peers of an answer, without values in between: of a hundred
//! allocations for an announce none are left.

use std::net::IpAddr;

use eagle_core::{Geometry, NodeRole, PeerInfo};
use prost::{
    DecodeError as WireError, Message as _,
    encoding::{
        DecodeContext, WireType, bool as boolean, check_wire_type, decode_key, decode_varint, encode_key,
        encode_varint, int32, message, skip_field, uint32, uint64,
    },
};

use super::{AnnounceRequest, Event, Pieces, Role, digest_from, piece_set, wrong};
use crate::{
    api::{self, MOST_REPORTED, MOST_SENDERS},
    encoding::{DecodeError, NamedPeer},
};

/// Bytes of a peer, usually: 52 of its identity, 8 of its address, and labels.
const PEER_BYTES: usize = 160;

/// Reads an announce with at most `most` blobs.
///
/// They are counted first: an empty message takes two bytes on the wire and a hundred in memory.
pub(in crate::encoding) fn read_request(mut bytes: &[u8], most: usize) -> Result<api::AnnounceRequest, DecodeError> {
    let [blobs, flows, senders] = count(bytes)?;
    if blobs > most {
        return Err(wrong("blobs", format_args!("there are {blobs}, more than {most}; send several announces")));
    }
    if flows > MOST_REPORTED {
        return Err(wrong("flows", format_args!("there are {flows}, more than {MOST_REPORTED}")));
    }
    if senders > MOST_SENDERS {
        return Err(wrong("senders", format_args!("there are {senders}, more than {MOST_SENDERS}")));
    }
    let mut rest = AnnounceRequest::default();
    let mut read = Vec::with_capacity(blobs);
    while !bytes.is_empty() {
        let (tag, wire_type) = decode_key(&mut bytes)?;
        if (tag, wire_type) == (4, WireType::LengthDelimited) {
            read.push(blob(content("blobs", &mut bytes)?)?);
        } else {
            rest.merge_field(tag, wire_type, &mut bytes, DecodeContext::default())?;
        }
    }
    let rest = api::AnnounceRequest::try_from(rest)?;
    Ok(api::AnnounceRequest { blobs: read, ..rest })
}

/// How often the fields of an announce are there that repeat: blobs, flows, senders.
fn count(mut message: &[u8]) -> Result<[usize; 3], WireError> {
    let mut counts = [0; 3];
    while !message.is_empty() {
        let (tag, wire_type) = decode_key(&mut message)?;
        match (tag, wire_type) {
            (4, WireType::LengthDelimited) => counts[0] += 1,
            (6, WireType::LengthDelimited) => counts[1] += 1,
            (7, WireType::LengthDelimited) => counts[2] += 1,
            _ => {}
        }
        skip_field(wire_type, tag, &mut message, DecodeContext::default())?;
    }
    Ok(counts)
}

/// The content of a field with a length, which is taken off the message.
fn content<'a>(field: &'static str, message: &mut &'a [u8]) -> Result<&'a [u8], DecodeError> {
    let length = usize::try_from(decode_varint(message)?).unwrap_or(usize::MAX);
    let (content, rest) = message.split_at_checked(length).ok_or_else(|| wrong(field, "it is cut off"))?;
    *message = rest;
    Ok(content)
}

/// Reads a `BlobAnnounce`. Of a field that is there twice the last one counts, as everywhere in protobuf.
fn blob(mut bytes: &[u8]) -> Result<api::BlobAnnounce, DecodeError> {
    let mut digest: &[u8] = &[];
    let (mut size, mut piece_length, mut event, mut want_peers) = (0, 0, 0, false);
    let mut pieces = Pieces::default();
    while !bytes.is_empty() {
        let (tag, wire_type) = decode_key(&mut bytes)?;
        let context = DecodeContext::default();
        match tag {
            1 => {
                check_wire_type(WireType::LengthDelimited, wire_type)?;
                digest = content("digest", &mut bytes)?;
            }
            2 => uint64::merge(wire_type, &mut size, &mut bytes, context)?,
            3 => uint32::merge(wire_type, &mut piece_length, &mut bytes, context)?,
            4 => message::merge(wire_type, &mut pieces, &mut bytes, context)?,
            5 => int32::merge(wire_type, &mut event, &mut bytes, context)?,
            6 => boolean::merge(wire_type, &mut want_peers, &mut bytes, context)?,
            _ => skip_field(wire_type, tag, &mut bytes, context)?,
        }
    }
    Ok(api::BlobAnnounce {
        digest: digest_from(digest)?,
        geometry: Geometry::new(size, piece_length).map_err(|error| wrong("piece_length", error))?,
        event: match Event::try_from(event).unwrap_or(Event::Unspecified) {
            Event::Started => api::Event::Started,
            Event::Progress => api::Event::Progress,
            Event::Completed => api::Event::Completed,
            Event::Evicted => api::Event::Evicted,
            Event::Unspecified => return Err(wrong("event", "it is none of the four")),
        },
        want_peers,
        pieces: piece_set(Some(pieces)),
    })
}

/// Adds the peers of a blob to an answer: field 3 of an `AnnounceResponse`.
pub(in crate::encoding) fn write_peers(answer: &mut Vec<u8>, digest: &[u8], peers: &[NamedPeer]) {
    answer.reserve(peers.len() * PEER_BYTES);
    nested(answer, 3, |blob| {
        bytes(blob, 1, digest);
        for peer in peers {
            nested(blob, 2, |field| {
                bytes(field, 1, peer.node.protobuf());
                let pieces = Pieces::from(&peer.pieces.to_piece_set());
                if pieces.set.is_some() {
                    message::encode(2, &pieces, field);
                }
            });
        }
    });
}

/// Writes a `Node`.
pub(in crate::encoding) fn write_node(node: &mut Vec<u8>, info: &PeerInfo) {
    bytes(node, 1, info.id.as_str().as_bytes());
    match info.address.ip() {
        IpAddr::V4(ip) => bytes(node, 2, &ip.octets()),
        IpAddr::V6(ip) => bytes(node, 2, &ip.octets()),
    }
    uint32::encode(3, &info.address.port().into(), node);
    let role = match info.role {
        NodeRole::Seeder => Role::Seeder,
        NodeRole::Proxy => Role::Proxy,
    };
    int32::encode(4, &role.into(), node);
    let topology = &info.topology;
    for (tag, label) in [(5, &topology.region), (6, &topology.zone), (7, &topology.rack)] {
        if let Some(label) = label {
            bytes(node, tag, label.as_bytes());
        }
    }
}

fn bytes(message: &mut Vec<u8>, tag: u32, content: &[u8]) {
    encode_key(tag, WireType::LengthDelimited, message);
    encode_varint(content.len() as u64, message);
    message.extend_from_slice(content);
}

/// A message in a field of another. Its length is put before it when it is known.
fn nested(message: &mut Vec<u8>, tag: u32, write: impl FnOnce(&mut Vec<u8>)) {
    encode_key(tag, WireType::LengthDelimited, message);
    let start = message.len();
    write(message);
    let end = message.len();
    encode_varint((end - start) as u64, message);
    let length = message.len() - end;
    message[start..].rotate_right(length);
}
