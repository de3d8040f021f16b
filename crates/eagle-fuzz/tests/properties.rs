//! Every fuzz target as a property test: seeds, variations of seeds, and any bytes. Runs wherever the tests run; the fuzzer itself
//! is `cargo xtask fuzz`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{fs, path::Path};

use eagle_fuzz::{TARGETS, run};
use proptest::{prelude::*, sample::Index, test_runner::TestRunner};

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    let mut files: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

/// One step away from a seed.
#[derive(Debug, Clone)]
enum Change {
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    /// Again, from here, so many bytes.
    Repeat(Index, usize),
    Cut(Index),
    /// What is in the other seed from there on.
    Join(Index, Index),
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<Index>;
    prop_oneof![
        4 => (at(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        2 => (at(), proptest::collection::vec(any::<u8>(), 1..6)).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        2 => (at(), 1usize..12).prop_map(|(at, length)| Change::Remove(at, length)),
        2 => (at(), 1usize..200).prop_map(|(at, length)| Change::Repeat(at, length)),
        1 => at().prop_map(Change::Cut),
        1 => (at(), at()).prop_map(|(at, from)| Change::Join(at, from)),
    ]
}

fn apply(change: &Change, mut bytes: Vec<u8>, other: &[u8]) -> Vec<u8> {
    let (length, place) = (bytes.len(), |at: &Index, bytes: &[u8]| at.index(bytes.len() + 1));
    match change {
        Change::Set(at, byte) if length > 0 => bytes[at.index(length)] = *byte,
        Change::Set(..) => {}
        Change::Insert(at, new) => drop(bytes.splice(place(at, &bytes)..place(at, &bytes), new.iter().copied())),
        Change::Remove(at, count) => {
            let from = place(at, &bytes);
            bytes.drain(from..(from + count).min(length));
        }
        Change::Repeat(at, count) => {
            let from = place(at, &bytes);
            let again = bytes[from..(from + count).min(length)].to_vec();
            bytes.splice(from..from, again);
        }
        Change::Cut(at) => bytes.truncate(place(at, &bytes)),
        Change::Join(at, from) => {
            bytes.truncate(place(at, &bytes));
            bytes.extend_from_slice(&other[place(from, other)..]);
        }
    }
    bytes
}

fn holds(target: &'static str) {
    let seeds = seeds(target);
    assert!(!seeds.is_empty(), "{target} has no seeds");
    for seed in &seeds {
        run(target, seed);
    }
    let near = (any::<Index>(), any::<Index>(), proptest::collection::vec(change(), 1..8)).prop_map({
        let seeds = seeds.clone();
        move |(one, other, changes)| {
            let (one, other) = (one.get(&seeds), other.get(&seeds));
            changes.iter().fold(one.clone(), |bytes, change| apply(change, bytes, other))
        }
    });
    let input = prop_oneof![3 => near, 1 => proptest::collection::vec(any::<u8>(), 0..600)];
    TestRunner::default()
        .run(&input, |bytes| {
            run(target, &bytes);
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("{target}: {failure}"));
}

macro_rules! targets {
    ($($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            holds(stringify!($name));
        })*

        /// A target has a property test, and nothing has seeds that is none: by these `cargo xtask fuzz` finds the targets.
        #[test]
        fn every_target_is_here() {
            let here = [$(stringify!($name)),*];
            assert_eq!(TARGETS.map(|target| target.name).to_vec(), here);
            let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
            let mut seeded: Vec<_> = fs::read_dir(seeds).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            seeded.sort();
            assert_eq!(seeded, here);
        }
    };
}

targets!(
    announces,
    announces_protobuf,
    certificates,
    claims,
    cluster_keys,
    configuration,
    control_messages,
    credentials,
    data_frames,
    headers,
    logins,
    manifests,
    metainfo,
    names,
    networks,
    notifications,
    redis,
    requests,
    runtime_files,
    stored_files,
    swarm,
);
