//! The last manifests that each caller was given, for when neither seeders nor origin answer.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use eagle_core::Digest;
use eagle_registry::{
    Reference, RegistryName, RepositoryName,
    headers::{DOCKER_CONTENT_DIGEST, accepts},
};
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
    /// What it is the answer about, whoever has asked.
    about: [u8; 32],
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

    /// The same, whatever is accepted: where the last manifest of a tag is kept.
    pub(crate) fn of_any_kind(&self) -> Self {
        Self { accept: Vec::new(), ..self.clone() }
    }

    fn key(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(self.caller);
        hash.update(about(self.registry, self.repository, &self.reference));
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
        let about = about(wanted.registry, wanted.repository, &wanted.reference);
        let entry = Arc::new(Remembered { headers, body, about });
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

    /// The manifest, with its body when `with_body`; of a tag, if need be, the last one of a kind that is accepted.
    pub(crate) fn get(&self, wanted: &Wanted<'_>, with_body: bool) -> Option<Arc<Remembered>> {
        self.find(wanted, with_body).or_else(|| {
            let last = self.find(&wanted.of_any_kind(), with_body)?;
            let kind = last.headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
            accepts(&wanted.accept, kind).then_some(last)
        })
    }

    fn find(&self, wanted: &Wanted<'_>, with_body: bool) -> Option<Arc<Remembered>> {
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
        let with_body = self.find(wanted, true);
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
        let last = table.entries.pop(&wanted.of_any_kind().key());
        table.bytes -= last.as_ref().map_or(0, |last| last.bytes());
        with_body.or(known)
    }

    /// Forgets what every caller was told of a manifest that has been pushed or deleted, and of the tags that led to it.
    pub(crate) fn forget_for_all(&self, registry: &RegistryName, repository: &RepositoryName, reference: &Reference) {
        let about = about(registry, repository, reference);
        let mut table = self.lock();
        let changed = |known: &Remembered| {
            known.about == about || (reference.digest().is_some() && known.digest() == reference.digest())
        };
        // A few thousand at most, and a push is rare.
        let keys: Vec<[u8; 32]> =
            table.entries.iter().filter(|(_, known)| changed(known)).map(|(key, _)| *key).collect();
        for key in keys {
            let known = table.entries.pop(&key);
            table.bytes -= known.map_or(0, |known| known.bytes());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One key for all three; names are validated and cannot contain the separator.
fn about(registry: &RegistryName, repository: &RepositoryName, reference: &Reference) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in [registry.as_str(), repository.as_str(), &reference.to_string()] {
        hash.update(part);
        hash.update([0]);
    }
    hash.finalize().into()
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
    fn the_last_manifest_of_a_tag_will_do_where_its_kind_is_accepted() {
        let (manifests, names) = (Manifests::new(), names());
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/vnd.oci.image.index.v1+json"));
        let accepting = |caller, kind: &'static str| Wanted {
            accept: vec![HeaderValue::from_static(kind)],
            ..wanted(caller, &names, "12")
        };
        let index = "application/json, application/vnd.oci.image.index.v1+json";
        manifests.put(&wanted(1, &names, "12"), headers, Some(Bytes::from_static(b"{}")));
        for (caller, kind, is_there) in
            [(1, index, true), (1, "*/*", true), (1, "application/json", false), (2, index, false)]
        {
            assert_eq!(manifests.get(&accepting(caller, kind), true).is_some(), is_there, "{caller} {kind}");
        }
        manifests.forget(&accepting(1, "application/json"));
        assert!(manifests.get(&accepting(1, index), true).is_none(), "the caller has lost the right to it");
    }

    #[test]
    fn a_push_is_known_to_all_callers() {
        let (manifests, names) = (Manifests::new(), names());
        let digest = Digest::of(b"{}");
        let mut headers = HeaderMap::new();
        headers.insert(DOCKER_CONTENT_DIGEST, digest.to_string().parse().unwrap());
        let remember = || {
            for caller in [1, 2] {
                for reference in ["12", "13", &digest.to_string()] {
                    manifests.put(&wanted(caller, &names, reference), headers.clone(), Some(Bytes::from_static(b"{}")));
                }
            }
        };
        let known = |reference: &str| {
            [1, 2]
                .into_iter()
                .filter(|caller| manifests.get(&wanted(*caller, &names, reference), true).is_some())
                .count()
        };
        remember();
        manifests.forget_for_all(&names.0, &names.1, &"12".parse().unwrap());
        assert_eq!((known("12"), known("13"), known(&digest.to_string())), (0, 2, 2));
        manifests.forget_for_all(&names.0, &names.1, &Reference::Digest(digest));
        assert_eq!((known("13"), known(&digest.to_string())), (0, 0));
        assert_eq!(manifests.lock().bytes, 0);
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
