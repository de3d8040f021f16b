//! The control protocol, `/eagle/control/3`: BitTorrent's peer messages over a libp2p stream.
//!
//! Each side opens one stream to the other and sends on the stream it opened, so that messages of
//! one sender arrive in order and no side waits for the other. The first message is
//! [`ControlMessage::Hello`]. A message is a little-endian `u32` length, then that many bytes of
//! postcard.
//!
//! A stream is opened in the newest [`Version`] that both sides know. What a version lacks is not sent on its streams, so that
//! nodes of two versions work together while a cluster is upgraded.

use std::net::SocketAddr;

use bytes::{Buf, BufMut, BytesMut};
use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    geometry::Geometry,
    peer::{NodeId, Topology},
};

/// Largest message, bytes: the bitfield of a blob with the most pieces (32 KiB), with room.
pub const MAX_MESSAGE: usize = 48 << 10;
/// Most pieces in one `Have`: longer lists are split.
pub const MAX_HAVE: usize = 1024;

/// Most peers in one `Peers`, as many as BEP 11 has: three times what a node greets.
pub const MAX_PEERS_TOLD: usize = 50;

/// A version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// Without peer exchange.
    Two,
    /// A `Hello` is followed by [`ControlMessage::Listening`], and peers may be asked for others.
    Three,
}

impl Version {
    /// All of them, the newest first, as they are offered.
    pub const ALL: [Self; 2] = [Self::Three, Self::Two];

    /// Its name in libp2p's negotiation.
    pub const fn protocol(self) -> &'static str {
        match self {
            Self::Two => "/eagle/control/2",
            Self::Three => "/eagle/control/3",
        }
    }
}

/// How busy an uploader is; sent along with what it owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
pub struct Load {
    /// Requests that it serves or holds in its queue.
    pub requests: u16,
    /// A seeder with pieces that it has not given to anyone yet: ask it for any piece.
    pub spreading: bool,
}

/// What a node can send and take: bytes per second, the lesser of its limits; 0 when it has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HostRate(pub u64);

/// How many times the rate is clearly faster: limits are given in round numbers, links come in steps of
/// two and more.
const CLEARLY_FASTER: f64 = 1.5;

impl HostRate {
    /// Nothing is known, or nothing limits it.
    pub const UNKNOWN: Self = Self(0);

    /// Its ratio to another; `None` when either is unknown.
    pub fn over(self, other: Self) -> Option<f64> {
        (self.0 > 0 && other.0 > 0).then(|| self.0 as f64 / other.0 as f64)
    }

    /// Whether it is more than half as fast again; what has no limit is faster than all that have one.
    pub fn is_clearly_faster_than(self, other: Self) -> bool {
        match self.over(other) {
            Some(times) => times > CLEARLY_FASTER,
            None => self == Self::UNKNOWN && other != Self::UNKNOWN,
        }
    }
}

/// How the data channels of a node are protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encryption {
    /// TLS 1.3 with libp2p identity certificates on both sides.
    Tls,
    /// Plain TCP; the channel is authenticated by a one-time ticket only.
    None,
}

/// A one-time secret that lets its holder open one plain data channel.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ticket(pub [u8; 32]);

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ticket(..)")
    }
}

/// A message from one peer to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlMessage {
    /// First message on a stream.
    Hello {
        /// TCP port of the sender's data channel listener, at the address of this connection.
        data_port: u16,
        /// How that listener is protected.
        encryption: Encryption,
        /// Where the sender is: trackers and seeders need not have named it to the receiver.
        topology: Topology,
    },
    /// Asks for a ticket to open a plain data channel to the receiver.
    TicketRequest,
    /// Answers a [`ControlMessage::TicketRequest`].
    Ticket(Ticket),
    /// Something about one blob.
    Blob(Digest, BlobMessage),
    /// Follows the `Hello` from [`Version::Three`] on.
    Listening {
        /// TCP port that the sender listens for peers on, at the address of this connection.
        port: u16,
    },
}

impl ControlMessage {
    /// The first version that has this message.
    pub const fn since(&self) -> Version {
        match self {
            Self::Listening { .. } | Self::Blob(_, BlobMessage::PeersRequest | BlobMessage::Peers(_)) => Version::Three,
            _ => Version::Two,
        }
    }
}

/// A peer and where it listens, as another one knows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PeerAddress {
    /// Who it is, which a connection proves.
    pub id: NodeId,
    /// Where it listens for peers.
    pub address: SocketAddr,
}

/// A message about one blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlobMessage {
    /// "I take part in this blob's swarm and own these pieces"; answered in kind, or by `Leave`.
    Handshake {
        /// Size and piece length; both sides must agree.
        geometry: Geometry,
        /// Pieces owned, first piece in the highest bit of the first byte.
        bitfield: Vec<u8>,
        /// How busy the sender is.
        load: Load,
        /// What it can send and take.
        rate: HostRate,
    },
    /// More pieces are owned; at most [`MAX_HAVE`].
    Have {
        /// Their numbers.
        pieces: Vec<u32>,
        /// How busy the sender is.
        load: Load,
    },
    /// How busy the sender is, when that changed without a new piece.
    Load(Load),
    /// The receiver owns something that the sender needs.
    Interested,
    /// It no longer does.
    NotInterested,
    /// Requests will be refused.
    Choke,
    /// Requests are welcome. A peer starts choked.
    Unchoke,
    /// The sender does not have this blob, or no longer.
    Leave,
    /// Asks for other peers that take part; answered by `Peers` unless there are none, or too often.
    PeersRequest,
    /// Answers a `PeersRequest`: peers that take part and that the sender is connected to; at most [`MAX_PEERS_TOLD`].
    Peers(Vec<PeerAddress>),
}

/// Why bytes are not a control message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A message is longer than [`MAX_MESSAGE`].
    #[error("a control message of {0} bytes exceeds the limit of {MAX_MESSAGE}")]
    TooLong(usize),
    /// A message does not decode.
    #[error("a control message is malformed")]
    Malformed,
}

/// Appends one message to `out`.
///
/// # Errors
/// When the message is larger than [`MAX_MESSAGE`].
pub fn encode(message: &ControlMessage, out: &mut BytesMut) -> Result<(), DecodeError> {
    let body = postcard::to_stdvec(message).map_err(|_| DecodeError::Malformed)?;
    if body.len() > MAX_MESSAGE {
        return Err(DecodeError::TooLong(body.len()));
    }
    out.put_u32_le(u32::try_from(body.len()).unwrap_or(u32::MAX));
    out.put_slice(&body);
    Ok(())
}

/// Takes the next whole message off `buffer`; `None` when more bytes are needed.
///
/// # Errors
/// When a message is too long or malformed; the connection is useless from then on.
pub fn decode(buffer: &mut BytesMut) -> Result<Option<ControlMessage>, DecodeError> {
    let Some(prefix) = buffer.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_le_bytes(*prefix) as usize;
    if length > MAX_MESSAGE {
        return Err(DecodeError::TooLong(length));
    }
    if buffer.len() < 4 + length {
        return Ok(None);
    }
    buffer.advance(4);
    let body = buffer.split_to(length);
    let message: ControlMessage = postcard::from_bytes(&body).map_err(|_| DecodeError::Malformed)?;
    match &message {
        ControlMessage::Blob(_, BlobMessage::Have { pieces, .. }) if pieces.len() > MAX_HAVE => {
            Err(DecodeError::Malformed)
        }
        ControlMessage::Blob(_, BlobMessage::Peers(peers)) if peers.len() > MAX_PEERS_TOLD => {
            Err(DecodeError::Malformed)
        }
        _ => Ok(Some(message)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_largest_bitfield_fits() {
        let geometry = Geometry::new(crate::geometry::MAX_BLOB_SIZE, crate::geometry::MAX_PIECE_LENGTH).unwrap();
        let bitfield = crate::Bitfield::full(geometry.pieces()).to_bytes();
        let handshake = BlobMessage::Handshake { geometry, bitfield, load: Load::default(), rate: HostRate(u64::MAX) };
        let mut out = BytesMut::new();
        assert!(encode(&ControlMessage::Blob(Digest::Sha512([0; 64]), handshake), &mut out).is_ok());
    }

    #[test]
    fn too_long_is_refused_by_its_length_alone() {
        let too_long = u32::try_from(MAX_MESSAGE + 1).unwrap();
        let mut buffer = BytesMut::from(&too_long.to_le_bytes()[..]);
        assert_eq!(decode(&mut buffer), Err(DecodeError::TooLong(MAX_MESSAGE + 1)));
        let have = BlobMessage::Have { pieces: vec![0; MAX_HAVE + 1], load: Load::default() };
        let mut out = BytesMut::new();
        encode(&ControlMessage::Blob(Digest::of(b"x"), have), &mut out).unwrap();
        assert_eq!(decode(&mut out), Err(DecodeError::Malformed));
        for (count, taken) in [(MAX_PEERS_TOLD, true), (MAX_PEERS_TOLD + 1, false)] {
            let peers = ControlMessage::Blob(Digest::of(b"x"), BlobMessage::Peers(vec![somebody(1); count]));
            let mut out = BytesMut::new();
            encode(&peers, &mut out).unwrap();
            assert_eq!(decode(&mut out).is_ok(), taken, "{count} peers");
        }
    }

    fn somebody(number: u16) -> PeerAddress {
        let id = format!("12D3KooW{number}").parse().unwrap();
        PeerAddress { id, address: SocketAddr::from(([10, 0, 0, 1], number)) }
    }

    /// A node of version 2 would end the connection over what it cannot read.
    #[test]
    fn what_version_2_lacks_is_known() {
        let blob = |message| ControlMessage::Blob(Digest::of(b"x"), message);
        for new in [
            ControlMessage::Listening { port: 1 },
            blob(BlobMessage::PeersRequest),
            blob(BlobMessage::Peers(vec![somebody(1)])),
        ] {
            assert_eq!(new.since(), Version::Three, "{new:?}");
        }
        assert_eq!(blob(BlobMessage::Leave).since(), Version::Two);
        assert_eq!(ControlMessage::TicketRequest.since(), Version::Two);
        // Their bytes have not changed either: kind of message, length and text of the digest, kind of what is about the blob.
        let mut out = BytesMut::new();
        encode(&blob(BlobMessage::Leave), &mut out).unwrap();
        assert_eq!((out[4], out[5], out.last().copied()), (3, 71, Some(7)));
    }

    #[test]
    fn lengths_within_a_message_reserve_nothing() {
        // A bitfield that claims 2^60 bytes, in a message of a few.
        let geometry = Geometry::auto(1 << 30).unwrap();
        let handshake =
            BlobMessage::Handshake { geometry, bitfield: Vec::new(), load: Load::default(), rate: HostRate::UNKNOWN };
        let mut body = postcard::to_stdvec(&ControlMessage::Blob(Digest::of(b"x"), handshake)).unwrap();
        let load_and_rate = 3;
        body.truncate(body.len() - load_and_rate - 1);
        body.extend([0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10, 1, 2, 3, 4]);
        let mut buffer = BytesMut::new();
        buffer.put_u32_le(u32::try_from(body.len()).unwrap());
        buffer.put_slice(&body);
        assert_eq!(decode(&mut buffer), Err(DecodeError::Malformed));
    }

    fn message() -> impl Strategy<Value = ControlMessage> {
        let load = (any::<u16>(), any::<bool>()).prop_map(|(requests, spreading)| Load { requests, spreading });
        let blob = prop_oneof![
            (proptest::collection::vec(any::<u32>(), 0..MAX_HAVE), load.clone())
                .prop_map(|(pieces, load)| BlobMessage::Have { pieces, load }),
            (any::<Vec<u8>>(), 0u64..1 << 40, load.clone(), any::<u64>()).prop_map(|(bitfield, size, load, rate)| {
                let geometry = Geometry::auto(size).unwrap();
                BlobMessage::Handshake { geometry, bitfield, load, rate: HostRate(rate) }
            }),
            load.prop_map(BlobMessage::Load),
            Just(BlobMessage::Interested),
            Just(BlobMessage::Choke),
            Just(BlobMessage::Leave),
            Just(BlobMessage::PeersRequest),
            proptest::collection::vec(any::<u16>().prop_map(somebody), 0..MAX_PEERS_TOLD).prop_map(BlobMessage::Peers),
        ];
        prop_oneof![
            (any::<u16>(), proptest::option::of("[a-z]{1,9}")).prop_map(|(data_port, zone)| {
                let topology = Topology { zone, ..Topology::default() };
                ControlMessage::Hello { data_port, encryption: Encryption::Tls, topology }
            }),
            Just(ControlMessage::TicketRequest),
            any::<u16>().prop_map(|port| ControlMessage::Listening { port }),
            any::<[u8; 32]>().prop_map(|secret| ControlMessage::Ticket(Ticket(secret))),
            blob.prop_map(|message| ControlMessage::Blob(Digest::of(b"x"), message)),
        ]
    }

    proptest! {
        #[test]
        fn messages_survive_any_fragmentation(messages in proptest::collection::vec(message(), 1..5), step in 1usize..900) {
            let mut bytes = BytesMut::new();
            for message in &messages {
                encode(message, &mut bytes).unwrap();
            }
            let mut buffer = BytesMut::new();
            let mut seen = Vec::new();
            for part in bytes.chunks(step) {
                buffer.extend_from_slice(part);
                while let Some(message) = decode(&mut buffer).unwrap() {
                    seen.push(message);
                }
            }
            prop_assert_eq!(seen, messages);
        }

        #[test]
        fn foreign_bytes_never_panic(bytes: Vec<u8>) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = decode(&mut buffer) {}
        }
    }
}
