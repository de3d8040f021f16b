//! What nodes and trackers tell each other.

use std::time::Duration;

use eagle_core::{Bitfield, PieceSet, Timestamp, tracker::ownership::Ownership};
use eagle_tracker::{
    AnnounceRequest,
    encoding::Encoding,
    store::{MemoryStore, PeerStore, StoreLimits},
};
use futures::executor::block_on;

/// Bounds that a fuzzed announce can reach.
const LIMITS: StoreLimits =
    StoreLimits { ttl: Duration::from_secs(60), peers: 4, blobs: 3, peers_per_blob: 2, blobs_per_peer: 2 };

/// One JSON document on a line: each an announce or an answer to one. The announces go to one store, as if each came from whom it says.
pub(crate) fn run(bytes: &[u8]) {
    let store = MemoryStore::new(LIMITS);
    let mut now = Timestamp(1 << 40);
    for line in bytes.split(|byte| *byte == b'\n').take(16) {
        now = now + Duration::from_secs(1);
        read(Encoding::Json, line, &store, now);
    }
}

/// A message as nodes and trackers write it, read as an announce and as an answer.
pub(crate) fn protobuf(bytes: &[u8]) {
    read(Encoding::Protobuf, bytes, &MemoryStore::new(LIMITS), Timestamp(1 << 40));
}

fn read(encoding: Encoding, bytes: &[u8], store: &MemoryStore, now: Timestamp) {
    if let Ok(response) = encoding.decode_response(bytes) {
        // What a client makes of it: an interval that is none is no panic later.
        let _ = Duration::try_from_secs_f64(response.interval_seconds);
        let peers = response.peers.iter().flat_map(|blob| &blob.peers);
        peers.for_each(|peer| pieces(&peer.pieces, 1));
        // JSON has no way to write a number that is none; all else is the same again.
        if response.interval_seconds.is_finite() {
            let again =
                encoding.encode_response(&response).ok().and_then(|bytes| encoding.decode_response(&bytes).ok());
            assert_eq!(again, Some(response));
        }
    }
    let Ok(request) = encoding.decode_request(bytes) else { return };
    let again = encoding.encode_request(&request).ok().and_then(|bytes| encoding.decode_request(&bytes).ok());
    assert_eq!(again.as_ref(), Some(&request));
    assert!(request.blobs.len() <= bytes.len(), "{} blobs in {} bytes", request.blobs.len(), bytes.len());
    apply(store, &request, now);
}

/// What a tracker does with an announce.
fn apply(store: &MemoryStore, request: &AnnounceRequest, now: Timestamp) {
    for blob in &request.blobs {
        // A set is never made larger than what was sent and what the blob's size allows.
        pieces(&blob.pieces, blob.geometry.pieces());
    }
    block_on(async {
        let applied = store.announce(&request.node, request.full, &request.blobs, now).await;
        for blob in &request.blobs {
            if let Some(view) = store.view(blob.digest, &request.node.id, 7, now).await {
                assert!(view.candidates.len() <= LIMITS.peers_per_blob);
                assert!(view.peers.iter().all(|peer| peer.named().info().id != request.node.id));
            }
        }
        if request.stopped {
            store.leave(&request.node.id).await;
        }
        let stats = store.stats();
        assert!(stats.peers <= LIMITS.peers && stats.blobs <= LIMITS.blobs, "{stats:?} after {applied:?}");
        assert!(stats.entries <= LIMITS.peers * LIMITS.blobs_per_peer);
    });
}

/// Both readers of a set of pieces agree on it.
fn pieces(set: &PieceSet, pieces: u32) {
    let field: Option<Bitfield> = set.to_bitfield(pieces);
    let owned = Ownership::new(set, pieces);
    assert_eq!(field.is_some(), owned.is_some(), "{set:?} of {pieces}");
    if let (Some(field), Some(owned)) = (field, owned) {
        assert_eq!(field.count(), owned.count(pieces));
        assert_eq!(field.count(), set.count(pieces));
        assert_eq!(field.is_full(), owned.is_complete());
        assert_eq!(PieceSet::from(&field).to_bitfield(pieces).as_ref(), Some(&field));
        assert_eq!(Bitfield::from_bytes(pieces, &field.to_bytes()), Some(field));
    }
}
