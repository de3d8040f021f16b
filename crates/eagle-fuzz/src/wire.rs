//! What peers and seeders send: control messages, frames of data channels, metainfo streams.

use bytes::BytesMut;
use eagle_core::{
    Metainfo,
    metainfo::{self, Frame},
    wire::{
        control::{self, BlobMessage, ControlMessage, MAX_HAVE, MAX_MESSAGE, MAX_PEERS_TOLD},
        data::{Answer, Ask, MAX_HEADER},
    },
};

/// Messages one after the other, as they come on a stream.
pub(crate) fn control_messages(bytes: &[u8]) {
    let mut buffer = BytesMut::from(bytes);
    loop {
        let before = buffer.len();
        let Ok(Some(message)) = control::decode(&mut buffer) else { break };
        let taken = before - buffer.len();
        assert!((5..=MAX_MESSAGE + 4).contains(&taken), "{taken} bytes were taken for one message");
        match &message {
            ControlMessage::Blob(_, BlobMessage::Have { pieces, .. }) => assert!(pieces.len() <= MAX_HAVE),
            ControlMessage::Blob(_, BlobMessage::Peers(peers)) => assert!(peers.len() <= MAX_PEERS_TOLD),
            // Nothing is made larger by reading it: a list without its elements promises no memory.
            ControlMessage::Blob(_, BlobMessage::Handshake { bitfield, .. }) => assert!(bitfield.len() <= taken),
            _ => {}
        }
        let mut again = BytesMut::new();
        assert_eq!(control::encode(&message, &mut again), Ok(()));
        // Numbers may be written with needless bytes, never with fewer.
        assert!(again.len() <= taken, "{} bytes became {}", taken, again.len());
        assert_eq!(control::decode(&mut again), Ok(Some(message)));
        assert!(again.is_empty());
    }
}

/// Both directions of a data channel. A piece's bytes follow its header; they are not looked at here.
pub(crate) fn data_frames(bytes: &[u8]) {
    let mut buffer = BytesMut::from(bytes);
    loop {
        let before = buffer.clone();
        let Ok(Some(ask)) = Ask::decode(&mut buffer) else { break };
        let mut again = BytesMut::new();
        ask.encode(&mut again);
        assert!(again.len() <= MAX_HEADER + 4);
        assert_eq!(again, before[..before.len() - buffer.len()], "{ask:?} has one form");
    }
    let mut buffer = BytesMut::from(bytes);
    loop {
        let before = buffer.len();
        let Ok(Some(answer)) = Answer::decode(&mut buffer) else { break };
        let mut again = BytesMut::new();
        answer.encode(&mut again);
        assert_eq!(again.len(), before - buffer.len());
        assert!(again.len() <= MAX_HEADER);
        assert_eq!(Answer::decode(&mut again), Ok(Some(answer)));
    }
}

/// A metainfo stream, put together as a proxy does.
pub(crate) fn metainfo(bytes: &[u8]) {
    let mut buffer = BytesMut::from(bytes);
    let mut whole: Option<Metainfo> = None;
    loop {
        let before = buffer.len();
        let Ok(Some(frame)) = metainfo::decode(&mut buffer) else { break };
        let taken = before - buffer.len();
        assert!((5..=metainfo::MAX_FRAME + 4).contains(&taken));
        let mut again = BytesMut::new();
        assert_eq!(metainfo::encode(&frame, &mut again), Ok(()));
        assert!(again.len() <= taken);
        assert_eq!(metainfo::decode(&mut again).as_ref(), Ok(&Some(frame.clone())));
        match frame {
            Frame::Header { digest, geometry, .. } => whole = Some(Metainfo::new(digest, geometry)),
            Frame::Hashes(hashes) => {
                let Some(whole) = &mut whole else { continue };
                for hash in hashes {
                    if whole.push(hash).is_err() {
                        break;
                    }
                }
                assert!(whole.hashes.len() <= whole.geometry.pieces() as usize);
                // Whatever a seeder says, the last hash is the digest that was asked for.
                assert!(!whole.is_whole() || whole.leads_to_digest() || whole.geometry.pieces() == 0);
                for piece in whole.geometry.all().take(whole.hashes.len()) {
                    assert!(whole.check(piece).is_some_and(|check| !check.matches(&[])));
                }
            }
            Frame::Content(content) => assert!(content.len() <= metainfo::MAX_INLINE as usize),
            Frame::Complete | Frame::Failed(_) | Frame::KeepAlive => {}
        }
    }
}
