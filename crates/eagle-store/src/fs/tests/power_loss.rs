//! What a loss of power at any instant leaves: recorded calls, replayed up to each of many points on a model of a file system
//! that keeps what was synced, and of the rest whatever it likes.
//!
//! The model is harsher than any file system that is in use: of the names changed in a directory since it was synced any
//! subset is kept, whatever their order, and of bytes written since their file was synced any subset too, the last one half.
//! Some syncs fail. Of a file, that has the fate of Linux: it is said once, and the bytes that were to be synced stay as unsure
//! as they were, whatever is synced later. Of a directory it leaves the names for the next sync, as a journal does.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
};

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::fs::record::{self, Record, Step};

/// Places on the way at which the power fails, each with some of what may be left.
const LOSSES: usize = 400;

/// A name points to a file or a directory of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    File(usize),
    Directory(usize),
}

#[derive(Debug, Clone)]
enum Naming {
    Set(String, Node),
    Clear(String),
    Move(String, String, Node),
}

#[derive(Debug, Clone)]
enum Change {
    Length(u64),
    Bytes(u64, Vec<u8>),
}

/// Changes, and how many of them are durable.
#[derive(Debug)]
struct Log<T> {
    changes: Vec<T>,
    durable: usize,
    /// Those of them that are not, since their sync failed.
    unsure: HashSet<usize>,
}

impl<T> Default for Log<T> {
    fn default() -> Self {
        Self { changes: Vec::new(), durable: 0, unsure: HashSet::new() }
    }
}

#[derive(Debug, Default)]
struct Model {
    files: Vec<Log<Change>>,
    directories: Vec<Log<Naming>>,
    /// What a process sees now.
    names: HashMap<PathBuf, Node>,
    inodes: HashMap<u64, usize>,
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

impl Model {
    /// An empty directory at `root`, durable.
    fn new(root: &Path) -> Self {
        let names = HashMap::from([(root.to_owned(), Node::Directory(0))]);
        Self { directories: vec![Log::default()], names, ..Self::default() }
    }

    fn directory(&mut self, path: &Path) -> &mut Log<Naming> {
        match self.names[path] {
            Node::Directory(id) => &mut self.directories[id],
            Node::File(_) => panic!("{} is a file", path.display()),
        }
    }

    fn rename_in(&mut self, path: &Path, naming: Naming) {
        self.directory(path.parent().unwrap()).changes.push(naming);
    }

    fn add(&mut self, path: &Path, node: Node) {
        self.names.insert(path.to_owned(), node);
        self.rename_in(path, Naming::Set(name(path), node));
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::MakeDirectory(path) if self.names.contains_key(path) => {}
            Step::MakeDirectory(path) => {
                self.directories.push(Log::default());
                self.add(path, Node::Directory(self.directories.len() - 1));
            }
            Step::Create { path, file, empty } => match self.names.get(path) {
                Some(Node::File(id)) if *empty => self.files[*id].changes.push(Change::Length(0)),
                Some(_) => {}
                None => {
                    self.files.push(Log::default());
                    self.inodes.insert(*file, self.files.len() - 1);
                    self.add(path, Node::File(self.files.len() - 1));
                }
            },
            Step::SetLength { file, length } => {
                self.files[self.inodes[file]].changes.push(Change::Length(*length));
            }
            Step::Write { file, offset, bytes } => {
                self.files[self.inodes[file]].changes.push(Change::Bytes(*offset, bytes.clone()));
            }
            Step::SyncFile(file) => {
                let log = &mut self.files[self.inodes[file]];
                log.durable = log.changes.len();
            }
            Step::FailSync(file) => {
                let log = &mut self.files[self.inodes[file]];
                // A length is not content: it is in the journal.
                let bytes = |index: &usize| matches!(log.changes[*index], Change::Bytes(..));
                log.unsure.extend((log.durable..log.changes.len()).filter(bytes));
            }
            Step::SyncDirectory(path) => {
                let log = self.directory(path);
                log.durable = log.changes.len();
            }
            Step::Rename(from, to) => {
                let node = self.names.remove(from).unwrap();
                self.names.insert(to.clone(), node);
                self.rename_in(from, Naming::Move(name(from), name(to), node));
            }
            Step::Remove(path) | Step::RemoveDirectory(path) => {
                if self.names.remove(path).is_some() {
                    self.rename_in(path, Naming::Clear(name(path)));
                }
            }
        }
    }

    /// Makes real what may be left: of what is not durable, a change is kept with these chances.
    fn leave(&self, target: &Path, chances: (f64, f64), random: &mut ChaCha8Rng) {
        self.leave_directory(0, target, chances, random);
    }

    fn leave_directory(&self, id: usize, target: &Path, chances: (f64, f64), random: &mut ChaCha8Rng) {
        fs::create_dir_all(target).unwrap();
        let mut names: HashMap<&str, Node> = HashMap::new();
        let Log { changes, durable, .. } = &self.directories[id];
        for (index, change) in changes.iter().enumerate() {
            if index >= *durable && !random.random_bool(chances.0) {
                continue;
            }
            match change {
                Naming::Set(name, node) => drop(names.insert(name, *node)),
                Naming::Clear(name) => drop(names.remove(name.as_str())),
                Naming::Move(from, to, node) => {
                    names.remove(from.as_str());
                    names.insert(to, *node);
                }
            }
        }
        // In an order that the seed alone decides.
        let mut names: Vec<_> = names.into_iter().collect();
        names.sort_unstable_by_key(|(name, _)| *name);
        for (name, node) in names {
            match node {
                Node::Directory(id) => self.leave_directory(id, &target.join(name), chances, random),
                Node::File(id) => fs::write(target.join(name), self.content(id, chances.1, random)).unwrap(),
            }
        }
    }

    fn content(&self, id: usize, chance: f64, random: &mut ChaCha8Rng) -> Vec<u8> {
        let mut content = Vec::new();
        let Log { changes, durable, unsure } = &self.files[id];
        for (index, change) in changes.iter().enumerate() {
            let sure = index < *durable && !unsure.contains(&index);
            let kept = sure || random.random_bool(chance);
            let torn = !sure && random.random_bool(0.5);
            match change {
                Change::Length(length) if kept => content.resize(usize::try_from(*length).unwrap(), 0),
                Change::Bytes(offset, bytes) if kept => {
                    let bytes = if torn { &bytes[..bytes.len() / 2] } else { bytes };
                    let offset = usize::try_from(*offset).unwrap();
                    content.resize(content.len().max(offset + bytes.len()), 0);
                    content[offset..offset + bytes.len()].copy_from_slice(bytes);
                }
                _ => {}
            }
        }
        content
    }
}

/// The other content that pieces had for a while.
fn other(sample: &Sample, piece: PieceIndex) -> Bytes {
    sample.piece(piece).iter().map(|byte| byte ^ 0xff).collect::<Vec<_>>().into()
}

/// After so many calls a blob was complete, or was about to be removed.
type Promises = Vec<(usize, Digest, bool)>;

/// Writes, writes again, resumes, completes and removes blobs at random, while syncs fail now and then; and how many did.
async fn work(root: &Path, record: &Record, samples: &[Sample], random: &mut ChaCha8Rng) -> (Promises, usize) {
    let (mut promises, mut failures) = (Promises::new(), 0);
    let mut promise = |digest, complete| promises.push((record.steps().len(), digest, complete));
    let mut storage = FsStorage::open(root).await.unwrap();
    for _ in 0..60 {
        let fails = random.random_bool(0.4);
        if fails {
            record.fail_sync_after(random.random_range(0..4));
        }
        let sample = &samples[random.random_range(0..samples.len())];
        if random.random_bool(0.35) {
            promise(sample.digest, false);
            storage.remove(sample.digest).await.unwrap();
        }
        if random.random_bool(0.1) {
            drop(storage);
            storage = match FsStorage::open(root).await {
                Ok(storage) => storage,
                Err(_) => FsStorage::open(root).await.unwrap(),
            };
        }
        let Ok(partial) = storage.create(sample.digest, sample.geometry).await else { continue };
        if random.random_bool(0.5) {
            // Only a sync can fail.
            let _ = storage.put_metainfo(&sample.metainfo()).await;
        }
        for _ in 0..random.random_range(0..6) {
            let piece = PieceIndex(random.random_range(0..sample.geometry.pieces()));
            let bytes = if random.random_bool(0.3) { other(sample, piece) } else { sample.piece(piece) };
            let _ = partial.write_piece(piece, bytes).await;
        }
        if random.random_bool(0.4) {
            for piece in sample.geometry.all() {
                let _ = partial.write_piece(piece, sample.piece(piece)).await;
            }
            // Whoever tries again believes what is said then.
            if partial.commit().await.is_ok() || partial.commit().await.is_ok() {
                promise(sample.digest, true);
            }
        }
        drop(partial);
        // The record that the end of a writer starts.
        storage.inner.tasks.close();
        storage.inner.tasks.wait().await;
        failures += usize::from(fails && !record.fail_none());
    }
    (promises, failures)
}

/// What a start finds: complete blobs that are right, all that were promised among them, pieces that are whole, and nothing half done.
async fn check(root: &Path, samples: &[Sample], promised: &[Digest]) -> (usize, usize) {
    let storage = FsStorage::open(root).await.unwrap();
    for digest in promised {
        assert!(storage.open(*digest).await.unwrap().is_some(), "a blob that was complete is lost");
    }
    let (mut complete, mut pieces) = (0, 0);
    for stored in storage.list().await.unwrap() {
        let sample = samples.iter().find(|sample| sample.digest == stored.digest).unwrap();
        if let Some(metainfo) = storage.metainfo(sample.digest).await.unwrap() {
            assert_eq!(metainfo, sample.metainfo());
        }
        if stored.complete {
            let reader = storage.open(sample.digest).await.unwrap().unwrap();
            assert_eq!(reader.size(), sample.geometry.size());
            let bytes = reader.read_at(0, sample.bytes.len()).await.unwrap();
            assert!(bytes == sample.bytes, "a blob that is complete and wrong");
            complete += 1;
            continue;
        }
        let partial = storage.create(sample.digest, sample.geometry).await.unwrap();
        for piece in partial.recovered().iter() {
            let (offset, length) = (sample.geometry.offset(piece), sample.geometry.length(piece) as usize);
            let bytes = partial.read_at(offset, length).await.unwrap();
            assert!(bytes == sample.piece(piece) || bytes == other(sample, piece), "a piece that is recorded and torn");
            pieces += 1;
        }
        // It can be finished from there.
        write(&*partial, sample, 0..sample.geometry.pieces()).await;
        partial.commit().await.unwrap();
    }
    drop(storage);
    let mut places = vec![root.to_owned()];
    while let Some(path) = places.pop() {
        for entry in fs::read_dir(path).unwrap() {
            let path = entry.unwrap().path();
            assert!(path.extension().is_none(), "{} is left", path.display());
            if path.is_dir() {
                places.push(path);
            }
        }
    }
    (complete, pieces)
}

#[tokio::test]
async fn a_loss_of_power_leaves_only_what_is_right() {
    let seed = std::env::var("EAGLE_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(rand::random::<u64>);
    eprintln!("EAGLE_TEST_SEED={seed}");
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let samples: Vec<_> = (1u8..4).map(|n| Sample::new(usize::from(n) * PIECE, n)).collect();
    let directory = TempDir::new().unwrap();
    let root = directory.path().join("data");
    let record = record::start(directory.path());
    let (promises, failures) = work(&root, &record, &samples, &mut random).await;
    let steps = record.steps().clone();
    drop(record);
    assert!(steps.len() > 150 && failures > 0, "{} calls recorded, {failures} syncs failed", steps.len());
    let (mut complete, mut pieces) = (0, 0);
    for loss in 0..LOSSES {
        let until = random.random_range(0..=steps.len());
        let chance = |random: &mut ChaCha8Rng| [0.0, 0.5, 0.9, 1.0][random.random_range(0..4)];
        let chances = (chance(&mut random), chance(&mut random));
        let mut model = Model::new(directory.path());
        for step in &steps[..until] {
            model.step(step);
        }
        let left = TempDir::new().unwrap();
        model.leave(left.path(), chances, &mut random);
        let root = left.path().join("data");
        let of = |sample: &Sample| {
            let said = promises.iter().rev().find(|(at, digest, _)| *at <= until && *digest == sample.digest);
            said.is_some_and(|(.., complete)| *complete).then_some(sample.digest)
        };
        let promised: Vec<_> = samples.iter().filter_map(of).collect();
        let found = tokio::spawn({
            let samples = samples.clone();
            async move { check(&root, &samples, &promised).await }
        });
        match found.await {
            Ok(found) => {
                complete += found.0;
                pieces += found.1;
            }
            Err(error) => {
                panic!("loss {loss} after {until} of {} calls, {chances:?}, seed {seed}: {error}", steps.len())
            }
        }
    }
    assert!(complete > 50 && pieces > 20, "{complete} complete blobs and {pieces} pieces were there to be checked");
}
