//! Images over a cache.

use eagle_core::{Geometry, Metainfo, PieceIndex, digest::Algorithm};
use eagle_store::MemoryStorage;
use http::HeaderValue;

use super::*;

async fn cache(limit: u64) -> Arc<Cache> {
    Cache::open(Arc::new(MemoryStorage::new()), limit).await.unwrap()
}

/// Stores a blob; false when there is no room.
async fn store(cache: &Arc<Cache>, digest: Digest, content: &[u8]) -> bool {
    let geometry = Geometry::auto(content.len() as u64).unwrap();
    let Ok(entry) = cache.create(digest, geometry).await else { return false };
    entry.write_piece(PieceIndex(0), Bytes::copy_from_slice(content)).await.unwrap();
    let metainfo = Metainfo { digest, ..Metainfo::of(Algorithm::Sha256, geometry, content) };
    entry.commit(Some(metainfo)).await.unwrap();
    true
}

/// Notes an image of these layers, as if its manifest had been served under this tag.
fn note(images: &Images, tag: &str, layers: &[&[u8]]) {
    let descriptors: Vec<_> =
        layers.iter().map(|layer| serde_json::json!({ "digest": Digest::of(layer), "size": layer.len() })).collect();
    let body = Bytes::from(serde_json::json!({ "schemaVersion": 2, "layers": descriptors }).to_string());
    let mut headers = HeaderMap::new();
    let digest = Digest::of(&body).to_string();
    headers.insert(DOCKER_CONTENT_DIGEST, HeaderValue::try_from(digest.clone()).unwrap());
    let (registry, repository) = ("docker.io".parse().unwrap(), "library/a".parse().unwrap());
    // As docker does: the tag by HEAD, then the digest.
    images.note(&registry, &repository, &tag.parse().unwrap(), &headers, None);
    images.note(&registry, &repository, &digest.parse().unwrap(), &headers, Some(&body));
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

#[tokio::test]
async fn removal_frees_what_nothing_else_needs() {
    let cache = cache(1 << 20).await;
    let images = Images::open(Arc::clone(&cache), None).await;
    for content in [&b"base"[..], b"one", b"two", b"alone"] {
        assert!(store(&cache, Digest::of(content), content).await);
    }
    note(&images, "1", &[b"base", b"one"]);
    note(&images, "2", &[b"base", b"two"]);
    let mut evictions = cache.evictions();
    let removed = images.remove(&name("a:1")).await.unwrap();
    assert_eq!(
        (removed.removed, removed.bytes, removed.shared),
        (vec![Digest::of(b"one")], 3, vec![Digest::of(b"base")])
    );
    assert_eq!(evictions.recv().await, Ok(Digest::of(b"one")), "trackers are told of this");
    assert_eq!(images.remove(&name("a:1")).await, Err(ImagesError::Unknown("docker.io/library/a:1".to_owned())));
    let used = images.remove(&Name::Blob(Digest::of(b"two"))).await;
    assert!(matches!(used, Err(ImagesError::Used { .. })), "{used:?}");
    assert_eq!(images.remove(&Name::Blob(Digest::of(b"alone"))).await.unwrap().bytes, 5);
    assert!(matches!(images.remove(&Name::Blob(Digest::of(b"alone"))).await, Err(ImagesError::Unknown(_))));
    assert_eq!(images.remove(&name("a:2")).await.unwrap().removed.len(), 2);
    assert!(images.list().images.is_empty() && images.list().blobs.is_empty());
}

#[tokio::test]
async fn a_pin_outlasts_eviction_and_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("images.json");
    let (first, second) = ([1; 1000], [2; 1000]);
    let cache = cache(2500).await;
    {
        let images = Images::open(Arc::clone(&cache), Some(file.clone())).await;
        store(&cache, Digest::of(&first), &first).await;
        note(&images, "1", &[&first, &second]);
        let pinned = images.pin(&name("a:1"), true).await.unwrap();
        let image = pinned.image.unwrap();
        assert_eq!((image.blobs, image.present, image.pinned), (2, 1, true));
        // What comes later is held too.
        store(&cache, Digest::of(&second), &second).await;
        images.hold().await;
        assert!(!store(&cache, Digest::of(&[3; 1000]), &[3; 1000]).await, "everything is pinned");
        assert!(matches!(images.remove(&name("a:1")).await, Err(ImagesError::Pinned(_))));
    }
    let images = Images::open(Arc::clone(&cache), Some(file)).await;
    assert!(!store(&cache, Digest::of(&[3; 1000]), &[3; 1000]).await, "everything is pinned again");
    assert!(images.list().blobs.iter().all(|blob| blob.pinned && blob.images == ["docker.io/library/a:1"]));
    images.pin(&name("a:1"), false).await.unwrap();
    assert!(store(&cache, Digest::of(&[3; 1000]), &[3; 1000]).await);
    assert_eq!(images.pin(&Name::Blob(Digest::of(&first)), true).await, Err(ImagesError::NotAnImage));
    assert!(matches!(images.pin(&name("b:1"), true).await, Err(ImagesError::Unknown(_))));
}

#[tokio::test]
async fn verifying_finds_and_removes_what_is_wrong() {
    let cache = cache(1 << 20).await;
    let images = Images::open(Arc::clone(&cache), None).await;
    let (good, bad) = (Digest::of(b"good"), Digest::of(b"other"));
    store(&cache, good, b"good").await;
    store(&cache, bad, b"bad").await;
    assert_eq!(images.verify(good).await.state, VerifiedState::Good);
    let found = images.verify(bad).await;
    assert_eq!(found.state, VerifiedState::Corrupt);
    assert!(found.error.unwrap().contains(&Digest::of(b"bad").to_string()));
    assert!(cache.contains(good) && !cache.contains(bad));
    assert_eq!(images.verify(bad).await.state, VerifiedState::Missing);
}

#[test]
fn names_are_images_or_digests() {
    assert_eq!(name("debian"), Name::Image("docker.io/library/debian:latest".parse().unwrap()));
    let digest = Digest::of(b"x");
    assert_eq!(name(&digest.to_string()), Name::Blob(digest));
    for bad in ["", "../etc", "sha256:zz", "sha512:00", "A", "a:b:c"] {
        assert!(bad.parse::<Name>().is_err(), "{bad}");
    }
}
