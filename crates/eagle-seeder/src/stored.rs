//! What trackers are told of a cache, of a seeder or a proxy.

use std::{collections::HashSet, sync::Arc};

use eagle_core::{Digest, PieceSet};
use eagle_store::{BlobStorage, Cache, CacheEntry};
use eagle_tracker::{Announcer, BlobStatus};
use tokio::sync::broadcast::{Receiver, error::RecvError};

/// Tells the trackers of the blobs from earlier runs, and of every blob that goes, for ever. `arrives` says whether a blob is on its
/// way, which whoever fetches it tells them of. What goes from this call on counts, not only from the first time that the result is polled.
pub fn announce_stored(
    cache: Arc<Cache>,
    storage: Arc<dyn BlobStorage>,
    announcer: Announcer,
    arrives: impl Fn(&Digest) -> bool + Send + Sync,
) -> impl Future<Output = ()> + Send {
    let evictions = cache.evictions();
    async move {
        tokio::join!(offer_stored(&cache, &*storage, &announcer), drop_evicted(&cache, &announcer, evictions, arrives));
    }
}

/// Tells of what is there.
async fn offer_stored(cache: &Cache, storage: &dyn BlobStorage, announcer: &Announcer) {
    for CacheEntry { digest, .. } in cache.list().into_iter().filter(|entry| entry.complete) {
        // By the storage and not by the cache, for which this would be a use.
        match storage.metainfo(digest).await {
            // It may go while its metainfo is read; what goes after the look is told below, later than this.
            _ if !cache.contains(digest) => {}
            Ok(Some(metainfo)) if metainfo.is_whole() => {
                let (geometry, pieces) = (metainfo.geometry, PieceSet::Complete);
                announcer.update(digest, BlobStatus { geometry, pieces, want_peers: false });
            }
            Ok(_) => tracing::warn!(blob = %digest, "a stored blob has no metainfo and is not offered"),
            Err(error) => tracing::warn!(blob = %digest, %error, "a stored blob is not offered"),
        }
    }
}

/// Tells of what goes, for ever.
async fn drop_evicted(
    cache: &Cache,
    announcer: &Announcer,
    mut evictions: Receiver<Digest>,
    arrives: impl Fn(&Digest) -> bool,
) {
    loop {
        match evictions.recv().await {
            // It may be back already.
            Ok(digest) if !cache.contains(digest) && !arrives(&digest) => announcer.remove(digest),
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
                for digest in spoken_of.difference(&held).filter(|digest| !arrives(digest)) {
                    announcer.remove(*digest);
                }
            }
            Err(RecvError::Closed) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use eagle_cluster::MemberTls;
    use eagle_core::{Geometry, Metainfo, PeerInfo, PieceIndex};
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
        let coming = digests[BLOBS as usize - 1];
        let arrives = |digest: &Digest| *digest == coming;
        let mut announcing = pin!(announce_stored(Arc::clone(&cache), storage, announcer.clone(), arrives));
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
        assert_eq!(announcer.blobs(), kept.iter().copied().chain([coming]).collect());
    }
}
