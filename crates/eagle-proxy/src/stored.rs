//! What trackers are told of the cache.

use std::{collections::HashSet, sync::Arc};

use eagle_core::PieceSet;
use eagle_store::{BlobStorage, Cache};
use eagle_tracker::{Announcer, BlobStatus};
use tokio::sync::broadcast::error::RecvError;

/// Tells the trackers of the blobs from earlier runs, and of every blob that goes, for ever.
pub(crate) async fn announce_stored(cache: Arc<Cache>, storage: Arc<dyn BlobStorage>, announcer: Announcer) {
    let mut evictions = cache.evictions();
    let stored = async {
        for entry in cache.list().into_iter().filter(|entry| entry.complete) {
            // By the storage and not by the cache, for which this would be a use. It may go while its metainfo is read; what goes
            // after the look is told below, later than this.
            if let Ok(Some(metainfo)) = storage.metainfo(entry.digest).await
                && cache.contains(entry.digest)
            {
                let status = BlobStatus { geometry: metainfo.geometry, pieces: PieceSet::Complete, want_peers: false };
                announcer.update(entry.digest, status);
            }
        }
    };
    let evicted = async {
        loop {
            match evictions.recv().await {
                // It may be back already.
                Ok(digest) if !cache.contains(digest) => announcer.remove(digest),
                Ok(_) => {}
                Err(RecvError::Lagged(missed)) => {
                    tracing::info!(
                        missed,
                        "many evictions at once; what trackers were told is compared with what is there"
                    );
                    // In this order: a blob that begins meanwhile is not among the first.
                    let spoken_of = announcer.blobs();
                    let held = cache.list().into_iter().filter(|entry| entry.complete || entry.pinned);
                    let held: HashSet<_> = held.map(|entry| entry.digest).collect();
                    for digest in spoken_of.difference(&held) {
                        announcer.remove(*digest);
                    }
                }
                Err(RecvError::Closed) => return,
            }
        }
    };
    tokio::join!(stored, evicted);
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use eagle_cluster::MemberTls;
    use eagle_core::{Digest, Geometry, Metainfo, PeerInfo, PieceIndex};
    use eagle_store::MemoryStorage;
    use futures::poll;
    use tokio::sync::mpsc;
    use tokio_util::sync::CancellationToken;

    use super::*;

    /// Blobs beyond what a listener may fall behind.
    const BLOBS: u32 = 1_500;

    #[tokio::test]
    async fn trackers_are_told_of_all_that_goes_however_much_that_is() {
        let storage: Arc<dyn BlobStorage> = Arc::new(MemoryStorage::new());
        let cache = Cache::open(Arc::clone(&storage), 1 << 30).await.unwrap();
        let stop = CancellationToken::new();
        let (found, _found) = mpsc::channel(1);
        let announcer = Announcer::start(Vec::new(), PeerInfo::example(), found, MemberTls::open(), stop.clone());
        let mut digests = Vec::new();
        for number in 0..BLOBS {
            let bytes = number.to_le_bytes();
            let (digest, geometry) = (Digest::of(&bytes), Geometry::auto(4).unwrap());
            let entry = cache.create(digest, geometry).await.unwrap();
            entry.write_piece(PieceIndex(0), bytes.to_vec().into()).await.unwrap();
            entry.commit(Some(Metainfo::of(digest.algorithm(), geometry, &bytes))).await.unwrap();
            digests.push(digest);
        }
        let mut announcing = pin!(announce_stored(Arc::clone(&cache), storage, announcer.clone()));
        while announcer.blobs().len() < digests.len() {
            assert!(poll!(announcing.as_mut()).is_pending());
            tokio::task::yield_now().await;
        }
        let (kept, gone) = digests.split_at(100);
        for digest in gone {
            assert!(cache.remove(*digest).await);
        }
        // It looks again only now.
        for _ in 0..100 {
            assert!(poll!(announcing.as_mut()).is_pending());
            tokio::task::yield_now().await;
        }
        stop.cancel();
        assert_eq!(announcer.blobs(), kept.iter().copied().collect());
    }
}
