//! The table of images: what names stand for, and what manifests consist of.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    io,
    path::Path,
};

use eagle_core::Digest;
use eagle_registry::{ImageReference, Manifest, Reference};
use jiff::Timestamp;
use lru::LruCache;
use serde::{Deserialize, Serialize};

use crate::durable_file;

/// Names and manifests known at a time; a pinned one is not forgotten.
const MAX_ENTRIES: usize = 20_000;
/// Blobs and manifests that all manifests together name: about 100 bytes each in memory and in the file.
const MAX_NAMED: usize = 300_000;
/// Blobs and manifests of one manifest; larger ones are not images that anybody pulls.
const MAX_NAMED_BY_ONE: usize = 10_000;
/// The present form of the file.
const VERSION: u32 = 1;

#[derive(Debug)]
pub(crate) struct Table {
    /// Tags and manifests by digest.
    entries: LruCache<ImageReference, Entry>,
    /// Sum of what the entries name.
    named: usize,
    changed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    /// What a tag stands for, or the manifest's own.
    digest: Digest,
    used: Timestamp,
    #[serde(default)]
    pinned: bool,
    /// Of a manifest: its blobs.
    #[serde(default)]
    blobs: Vec<(Digest, u64)>,
    /// Of an index: the manifests in it.
    #[serde(default)]
    manifests: Vec<Digest>,
}

impl Entry {
    fn named(&self) -> usize {
        self.blobs.len() + self.manifests.len()
    }
}

#[derive(Serialize, Deserialize)]
struct File {
    version: u32,
    /// The least recently used first.
    images: Vec<(ImageReference, Entry)>,
}

impl Table {
    pub(super) fn new() -> Self {
        Self { entries: LruCache::unbounded(), named: 0, changed: false }
    }

    /// What a file tells; nothing when there is none.
    pub(super) fn read(path: &Path, limit: u64) -> io::Result<Self> {
        match durable_file::read(path, limit)? {
            Some(bytes) => Self::from_json(&bytes),
            None => Ok(Self::new()),
        }
    }

    pub(crate) fn from_json(bytes: &[u8]) -> io::Result<Self> {
        let mut table = Self::new();
        let file: File = serde_json::from_slice(bytes)?;
        if file.version != VERSION {
            return Err(io::Error::other(format!("it has version {} and not {VERSION}", file.version)));
        }
        for (image, entry) in file.images {
            table.put(image, entry);
        }
        table.changed = false;
        Ok(table)
    }

    pub(crate) fn to_json(&self) -> io::Result<Vec<u8>> {
        let images = self.entries.iter().rev().map(|(image, entry)| (image.clone(), entry.clone())).collect();
        Ok(serde_json::to_vec(&File { version: VERSION, images })?)
    }

    /// Whether something changed since the last time this was asked, that a restart should know of.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Notes a use of an image; false when it is not known.
    pub(super) fn use_image(&mut self, image: &ImageReference) -> bool {
        let Some(entry) = self.entries.get_mut(image) else { return false };
        entry.used = Timestamp::now();
        true
    }

    pub(super) fn put_manifest(&mut self, image: ImageReference, manifest: &Manifest) {
        let Reference::Digest(digest) = image.reference else { return };
        if manifest.blobs.len() + manifest.manifests.len() > MAX_NAMED_BY_ONE {
            return;
        }
        let blobs = manifest.blobs.iter().map(|blob| (blob.digest, blob.size)).collect();
        let manifests = manifest.manifests.iter().map(|descriptor| descriptor.digest).collect();
        self.put(image, Entry { digest, used: Timestamp::now(), pinned: false, blobs, manifests });
    }

    pub(super) fn put_tag(&mut self, image: ImageReference, digest: Digest) {
        match self.entries.get_mut(&image) {
            Some(entry) => {
                entry.used = Timestamp::now();
                self.changed |= entry.digest != digest;
                entry.digest = digest;
            }
            None => {
                let (blobs, manifests) = (Vec::new(), Vec::new());
                self.put(image, Entry { digest, used: Timestamp::now(), pinned: false, blobs, manifests });
            }
        }
    }

    fn put(&mut self, image: ImageReference, entry: Entry) {
        self.changed = true;
        self.named += entry.named();
        if let Some(old) = self.entries.put(image, entry) {
            self.named -= old.named();
        }
        if self.entries.len() <= MAX_ENTRIES && self.named <= MAX_NAMED {
            return;
        }
        let pinned: HashSet<ImageReference> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.pinned)
            .flat_map(|(image, _)| self.manifests(image).into_iter().chain([image.clone()]))
            .collect();
        // Each step forgets one or passes over one that a pin needs, so it ends.
        for _ in 0..self.entries.len() {
            if self.entries.len() <= MAX_ENTRIES && self.named <= MAX_NAMED {
                break;
            }
            let Some((image, entry)) = self.entries.pop_lru() else { break };
            if pinned.contains(&image) {
                self.entries.put(image, entry);
            } else {
                self.named -= entry.named();
            }
        }
    }

    pub(super) fn knows(&self, image: &ImageReference) -> bool {
        self.entries.contains(image)
    }

    /// What an image stands for, and when it was last used.
    pub(super) fn get(&self, image: &ImageReference) -> Option<(Digest, Timestamp)> {
        self.entries.peek(image).map(|entry| (entry.digest, entry.used))
    }

    pub(super) fn is_pinned(&self, image: &ImageReference) -> bool {
        self.entries.peek(image).is_some_and(|entry| entry.pinned)
    }

    pub(super) fn set_pinned(&mut self, image: &ImageReference, pinned: bool) {
        if let Some(entry) = self.entries.peek_mut(image) {
            entry.pinned = pinned;
            self.changed = true;
        }
    }

    /// The manifests of an image by digest, the one that its name stands for first.
    fn manifests(&self, image: &ImageReference) -> Vec<ImageReference> {
        let Some((top, _)) = self.get(image) else { return Vec::new() };
        let by_digest = |digest| ImageReference { reference: Reference::Digest(digest), ..image.clone() };
        let (mut found, mut seen) = (Vec::new(), HashSet::from([top]));
        let mut pending = vec![top];
        while let Some(digest) = pending.pop() {
            let manifest = by_digest(digest);
            if let Some(entry) = self.entries.peek(&manifest) {
                pending.extend(entry.manifests.iter().filter(|below| seen.insert(**below)));
                found.push(manifest);
            }
        }
        found
    }

    /// The blobs of an image, each once, as far as its manifests are known.
    pub(super) fn blobs(&self, image: &ImageReference) -> Vec<(Digest, u64)> {
        let mut seen = HashSet::new();
        let manifests = self.manifests(image);
        let entries = manifests.iter().filter_map(|manifest| self.entries.peek(manifest));
        entries.flat_map(|entry| &entry.blobs).filter(|(digest, _)| seen.insert(*digest)).copied().collect()
    }

    /// What people call images: tags, and manifests that neither a tag nor an index stands for.
    pub(super) fn shown(&self) -> Vec<ImageReference> {
        let mut covered = HashSet::new();
        for (image, entry) in self.entries.iter() {
            match image.reference {
                Reference::Tag(_) => covered.extend(self.manifests(image)),
                Reference::Digest(_) => covered.extend(
                    entry
                        .manifests
                        .iter()
                        .map(|below| ImageReference { reference: Reference::Digest(*below), ..image.clone() }),
                ),
            }
        }
        let shown = self.entries.iter().map(|(image, _)| image).filter(|image| {
            matches!(image.reference, Reference::Tag(_)) || self.is_pinned(image) || !covered.contains(image)
        });
        shown.cloned().collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The images that each blob belongs to.
    pub(super) fn users(&self) -> HashMap<Digest, Vec<ImageReference>> {
        let mut users: HashMap<Digest, Vec<ImageReference>> = HashMap::new();
        for image in self.shown() {
            for (digest, _) in self.blobs(&image) {
                users.entry(digest).or_default().push(image.clone());
            }
        }
        users
    }

    pub(super) fn pinned_blobs(&self) -> HashSet<Digest> {
        let pinned = self.entries.iter().filter(|(_, entry)| entry.pinned);
        pinned.flat_map(|(image, _)| self.blobs(image)).map(|(digest, _)| digest).collect()
    }

    /// Forgets an image, and its manifests that no other stands for.
    pub(super) fn remove(&mut self, image: &ImageReference) {
        let below = self.manifests(image);
        self.forget(image);
        let kept: HashSet<ImageReference> = self
            .shown()
            .iter()
            .filter(|other| !below.contains(other) || self.is_pinned(other))
            .flat_map(|other| self.manifests(other))
            .collect();
        for manifest in below.iter().filter(|manifest| !kept.contains(manifest)) {
            self.forget(manifest);
        }
    }

    fn forget(&mut self, image: &ImageReference) {
        if let Some(entry) = self.entries.pop(image) {
            self.named -= entry.named();
            self.changed = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(text: &str) -> Digest {
        Digest::of(text.as_bytes())
    }

    fn image(name: &str) -> ImageReference {
        name.parse().unwrap()
    }

    fn by_digest(name: &str, text: &str) -> ImageReference {
        ImageReference { reference: Reference::Digest(digest(text)), ..image(name) }
    }

    fn manifest(blobs: &[&str], manifests: &[&str]) -> Manifest {
        let list = |names: &[&str]| {
            let entry = |name: &&str| serde_json::json!({ "digest": digest(name), "size": name.len() });
            serde_json::Value::from(names.iter().map(entry).collect::<Vec<_>>())
        };
        let body = serde_json::json!({ "schemaVersion": 2, "layers": list(blobs), "manifests": list(manifests) });
        Manifest::parse(body.to_string().as_bytes(), None).unwrap()
    }

    /// Two tags, one of them an index, that share a blob; and a manifest that nobody tagged.
    fn table() -> Table {
        let mut table = Table::new();
        table.put_manifest(by_digest("a", "index"), &manifest(&[], &["m1", "m2"]));
        table.put_manifest(by_digest("a", "m1"), &manifest(&["base", "one"], &[]));
        table.put_tag(image("a:1"), digest("index"));
        table.put_manifest(by_digest("b", "m3"), &manifest(&["base", "three"], &[]));
        table.put_tag(image("b:1"), digest("m3"));
        table.put_manifest(by_digest("b", "m4"), &manifest(&["four"], &[]));
        table
    }

    fn names(table: &Table) -> Vec<String> {
        table.shown().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_image_is_its_manifests_and_their_blobs() {
        let table = table();
        let untagged = by_digest("b", "m4").to_string();
        assert_eq!(names(&table), ["docker.io/library/a:1", "docker.io/library/b:1", untagged.as_str()]);
        assert_eq!(table.blobs(&image("a:1")), [(digest("base"), 4), (digest("one"), 3)]);
        assert_eq!(table.users()[&digest("base")], [image("a:1"), image("b:1")]);
        assert!(table.blobs(&image("c:1")).is_empty());
    }

    #[test]
    fn removal_leaves_what_others_stand_for() {
        let mut table = table();
        table.put_tag(image("a:2"), digest("index"));
        table.remove(&image("a:1"));
        assert_eq!(table.blobs(&image("a:2")).len(), 2);
        table.remove(&image("a:2"));
        assert!(!table.knows(&by_digest("a", "index")) && !table.knows(&by_digest("a", "m1")));
        assert_eq!(table.users().get(&digest("base")).map(Vec::len), Some(1));
        assert!(!table.users().contains_key(&digest("one")));
        table.remove(&by_digest("b", "m4"));
        assert_eq!(names(&table), ["docker.io/library/b:1"]);
        assert_eq!(table.named, 2);
    }

    #[test]
    fn a_file_tells_the_same_and_a_tag_that_moves_takes_its_pin_along() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("images.json");
        let mut table = table();
        table.set_pinned(&image("b:1"), true);
        assert_eq!(table.pinned_blobs(), HashSet::from([digest("base"), digest("three")]));
        table.put_tag(image("b:1"), digest("m4"));
        assert_eq!(table.pinned_blobs(), HashSet::from([digest("four")]));
        durable_file::replace(&path, &table.to_json().unwrap()).unwrap();
        let again = Table::read(&path, 1 << 20).unwrap();
        assert_eq!(
            (names(&again), again.named, again.pinned_blobs()),
            (names(&table), table.named, table.pinned_blobs())
        );
        assert!(Table::read(&path, 10).is_err(), "larger than the limit");
        for bad in ["", "{", "{\"version\":9,\"images\":[]}", "{\"version\":1,\"images\":[[\"../x\",{}]]}"] {
            std::fs::write(&path, bad).unwrap();
            assert!(Table::read(&path, 1 << 20).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_remembered_is_bounded_and_pins_are_not_forgotten() {
        let mut table = table();
        table.set_pinned(&image("a:1"), true);
        for number in 0..MAX_ENTRIES + 10 {
            table.put_tag(image(&format!("c:{number}")), digest("m3"));
        }
        assert_eq!(table.entries.len(), MAX_ENTRIES);
        assert!(table.knows(&image("a:1")) && !table.knows(&image("b:1")));
        assert_eq!(table.pinned_blobs().len(), 2, "what it consists of is known too");
        let huge = manifest(&vec!["x"; MAX_NAMED_BY_ONE + 1], &[]);
        table.put_manifest(by_digest("d", "huge"), &huge);
        assert!(!table.knows(&by_digest("d", "huge")));
        assert_eq!(table.named, table.entries.iter().map(|(_, entry)| entry.named()).sum::<usize>());
    }
}
