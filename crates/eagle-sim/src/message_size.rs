//! Bytes of messages as they are encoded, without encoding them.

use eagle_core::wire::control::{BlobMessage, Load, PeerAddress};

/// Length prefix, kind of message, and a SHA-256 digest as text with its length.
const ENVELOPE: u64 = 4 + 1 + 1 + 71;
/// A request on a data channel and the header of its answer (`eagle_core::wire::data`).
pub(crate) const REQUEST_AND_ANSWER: u64 = 42 + 16;

/// Bytes of a control message about a blob with a SHA-256 digest.
pub(crate) fn of(message: &BlobMessage) -> u64 {
    let body = match message {
        BlobMessage::Handshake { geometry, bitfield, load: own, rate } => {
            number(geometry.size())
                + number(geometry.piece_length().into())
                + number(bitfield.len() as u64)
                + bitfield.len() as u64
                + load(own)
                + number(rate.0)
        }
        BlobMessage::Have { pieces, load: own } => {
            number(pieces.len() as u64) + pieces.iter().map(|piece| number((*piece).into())).sum::<u64>() + load(own)
        }
        BlobMessage::Load(own) => load(own),
        BlobMessage::Peers(peers) => number(peers.len() as u64) + peers.iter().map(peer_address).sum::<u64>(),
        BlobMessage::PeersRequest
        | BlobMessage::Interested
        | BlobMessage::NotInterested
        | BlobMessage::Choke
        | BlobMessage::Unchoke
        | BlobMessage::Leave => 0,
    };
    ENVELOPE + 1 + body
}

/// Identity with its length, kind and bytes of the address, port.
fn peer_address(peer: &PeerAddress) -> u64 {
    let id = peer.id.as_str().len() as u64;
    let ip = if peer.address.is_ipv4() { 4 } else { 16 };
    number(id) + id + 1 + ip + number(peer.address.port().into())
}

fn load(load: &Load) -> u64 {
    number(load.requests.into()) + 1
}

/// A variable-length number: 7 bits a byte.
fn number(value: u64) -> u64 {
    u64::from((64 - value.leading_zeros()).max(1).div_ceil(7))
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use eagle_core::{
        Digest, Geometry, PieceIndex,
        swarm::RequestId,
        wire::{
            control::{ControlMessage, HostRate, encode},
            data::{Answer, Ask},
        },
    };

    use super::*;

    fn somebody(address: &str) -> PeerAddress {
        PeerAddress { id: "12D3KooWexample".parse().unwrap(), address: address.parse().unwrap() }
    }

    #[test]
    fn messages_have_the_size_that_they_are_encoded_with() {
        let load = Load { requests: 300, spreading: true };
        let geometry = Geometry::auto(1 << 30).unwrap();
        for message in [
            BlobMessage::Handshake { geometry, bitfield: vec![0; 64], load, rate: HostRate(125_000_000) },
            BlobMessage::Have { pieces: vec![1, 127, 128, 70_000], load },
            BlobMessage::Load(Load::default()),
            BlobMessage::Interested,
            BlobMessage::PeersRequest,
            BlobMessage::Peers(vec![somebody("10.0.0.1:61007"), somebody("[fd00::1]:80")]),
            BlobMessage::Leave,
        ] {
            let mut out = BytesMut::new();
            encode(&ControlMessage::Blob(Digest::of(b"blob"), message.clone()), &mut out).unwrap();
            assert_eq!(of(&message), out.len() as u64, "{message:?}");
        }
        let (mut ask, mut answer) = (BytesMut::new(), BytesMut::new());
        let (id, piece) = (RequestId(1).0, PieceIndex(1));
        Ask::Request { id, digest: Digest::of(b"blob"), piece: Some(piece) }.encode(&mut ask);
        Answer::Piece { id, piece, length: 1, load }.encode(&mut answer);
        assert_eq!(REQUEST_AND_ANSWER, (ask.len() + answer.len()) as u64);
    }
}
