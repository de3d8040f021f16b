//! The last manifests that each caller was given, for when neither seeders nor origin answer.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use eagle_core::Digest;
use eagle_registry::{Reference, RegistryName, RepositoryName, headers::DOCKER_CONTENT_DIGEST};
use http::{HeaderMap, HeaderValue, header};
use lru::LruCache;
use sha2::{Digest as _, Sha256};

/// Manifests remembered: those of some thousand images.
const MAX_MANIFESTS: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");
/// Bytes of manifests remembered; a usual one has 1 to 10 KiB.
const MAX_BYTES: usize = 32 << 20;

/// A manifest as it was answered.
#[derive(Debug)]
pub(crate) struct Remembered {
    pub(crate) headers: HeaderMap,
    /// Absent when only a HEAD was answered.
    pub(crate) body: Option<Bytes>,
}

/// Which manifest a caller asks for.
#[derive(Debug, Clone)]
pub(crate) struct Wanted<'a> {
    pub(crate) caller: [u8; 32],
    pub(crate) registry: &'a RegistryName,
    pub(crate) repository: &'a RepositoryName,
    pub(crate) reference: Reference,
    /// What kinds the caller takes: a tag may stand for several manifests.
    pub(crate) accept: Vec<HeaderValue>,
}

impl<'a> Wanted<'a> {
    pub(crate) fn new(
        caller: [u8; 32],
        registry: &'a RegistryName,
        repository: &'a RepositoryName,
        reference: Reference,
        headers: &HeaderMap,
    ) -> Self {
        let accept = headers.get_all(header::ACCEPT).iter().cloned().collect();
        Self { caller, registry, repository, reference, accept }
    }

    fn key(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(self.caller);
        for part in [self.registry.as_str(), self.repository.as_str(), &self.reference.to_string()] {
            hash.update(part);
            hash.update([0]);
        }
        if matches!(self.reference, Reference::Tag(_)) {
            for value in &self.accept {
                hash.update(value.as_bytes());
                hash.update([0]);
            }
        }
        hash.finalize().into()
    }
}

/// The last manifests, bounded by number and bytes; callers never see each other's.
#[derive(Debug)]
pub(crate) struct Manifests(Mutex<Table>);

#[derive(Debug)]
struct Table {
    entries: LruCache<[u8; 32], Arc<Remembered>>,
    bytes: usize,
}

impl Manifests {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Table { entries: LruCache::new(MAX_MANIFESTS), bytes: 0 }))
    }

    pub(crate) fn put(&self, wanted: &Wanted<'_>, headers: HeaderMap, body: Option<Bytes>) {
        let key = wanted.key();
        let mut table = self.lock();
        if body.is_none()
            && table.entries.peek(&key).is_some_and(|known| {
                known.body.is_some() && known.headers.get(DOCKER_CONTENT_DIGEST) == headers.get(DOCKER_CONTENT_DIGEST)
            })
        {
            // A HEAD says nothing that is not known.
            return;
        }
        let entry = Arc::new(Remembered { headers, body });
        table.bytes += entry.bytes();
        if let Some((_, old)) = table.entries.push(key, entry) {
            table.bytes -= old.bytes();
        }
        while table.bytes > MAX_BYTES
            && let Some((_, old)) = table.entries.pop_lru()
        {
            table.bytes -= old.bytes();
        }
    }

    /// The manifest, with its body when `with_body`.
    pub(crate) fn get(&self, wanted: &Wanted<'_>, with_body: bool) -> Option<Arc<Remembered>> {
        let mut table = self.lock();
        let known = Arc::clone(table.entries.get(&wanted.key())?);
        if !with_body || known.body.is_some() {
            return Some(known);
        }
        // docker asks for a tag with HEAD and then for the digest with GET.
        let digest = known.digest()?;
        let by_digest = Wanted { reference: Reference::Digest(digest), ..wanted.clone() };
        table.entries.get(&by_digest.key()).filter(|known| known.body.is_some()).map(Arc::clone)
    }

    /// Forgets a manifest that the origin refuses the caller now; gives what was known.
    pub(crate) fn forget(&self, wanted: &Wanted<'_>) -> Option<Arc<Remembered>> {
        let with_body = self.get(wanted, true);
        let mut table = self.lock();
        let mut known = table.entries.pop(&wanted.key());
        table.bytes -= known.as_ref().map_or(0, |known| known.bytes());
        let digest = known.as_ref().and_then(|known| known.digest());
        if let Some(digest) = digest {
            let by_digest = Wanted { reference: Reference::Digest(digest), ..wanted.clone() };
            let other = table.entries.pop(&by_digest.key());
            table.bytes -= other.as_ref().map_or(0, |other| other.bytes());
            known = known.or(other);
        }
        with_body.or(known)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Remembered {
    /// The digest in its header.
    fn digest(&self) -> Option<Digest> {
        self.headers.get(DOCKER_CONTENT_DIGEST)?.to_str().ok()?.parse().ok()
    }

    /// About what it takes in memory.
    fn bytes(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 64).sum();
        headers + self.body.as_ref().map_or(0, Bytes::len)
    }
}

#[cfg(test)]
mod tests {
    use eagle_core::Digest;

    use super::*;

    fn wanted<'a>(caller: u8, names: &'a (RegistryName, RepositoryName), reference: &str) -> Wanted<'a> {
        Wanted::new([caller; 32], &names.0, &names.1, reference.parse().unwrap(), &HeaderMap::new())
    }

    fn names() -> (RegistryName, RepositoryName) {
        ("docker.io".parse().unwrap(), "library/debian".parse().unwrap())
    }

    #[test]
    fn a_head_of_a_tag_finds_the_body_by_digest() {
        let (manifests, names) = (Manifests::new(), names());
        let digest = Digest::of(b"{}").to_string();
        let mut headers = HeaderMap::new();
        headers.insert(DOCKER_CONTENT_DIGEST, digest.parse().unwrap());
        manifests.put(&wanted(1, &names, "12"), headers.clone(), None);
        assert!(manifests.get(&wanted(1, &names, "12"), false).is_some());
        assert!(manifests.get(&wanted(1, &names, "12"), true).is_none());
        manifests.put(&wanted(1, &names, &digest), headers.clone(), Some(Bytes::from_static(b"{}")));
        assert_eq!(manifests.get(&wanted(1, &names, "12"), true).unwrap().body.as_deref(), Some(&b"{}"[..]));
        assert!(manifests.get(&wanted(2, &names, "12"), false).is_none(), "another caller");
        assert!(manifests.get(&wanted(2, &names, &digest), true).is_none(), "another caller");
        manifests.put(&wanted(1, &names, &digest), headers, None);
        assert!(manifests.get(&wanted(1, &names, &digest), true).is_some(), "a HEAD takes no body away");
    }

    #[test]
    fn memory_is_bounded() {
        let (manifests, names) = (Manifests::new(), names());
        let body = Bytes::from(vec![0; 1 << 20]);
        for tag in 0..100 {
            manifests.put(&wanted(1, &names, &format!("t{tag}")), HeaderMap::new(), Some(body.clone()));
        }
        let table = manifests.lock();
        assert!(table.bytes <= MAX_BYTES && table.entries.len() <= 32);
        let sum: usize = table.entries.iter().map(|(_, entry)| entry.bytes()).sum();
        assert_eq!(sum, table.bytes);
    }
}
