//! What is measured beside a run: bytes on every link, bytes on every disk, and what each process holds.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{network::Network, plan::Member};

/// Between two looks at the links.
const LINK_INTERVAL: Duration = Duration::from_millis(100);
/// Looks at the links for one at the disks, which take longer.
const DISK_EVERY: u32 = 3;

/// Bytes sent and received by then.
type Sample = (Instant, u64, u64);

/// What was measured.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    links: BTreeMap<Member, Vec<Sample>>,
    /// The most bytes that the cache of a member had on disk.
    pub(crate) most_on_disk: BTreeMap<Member, u64>,
    /// When a member was seen to have a blob, by its digest: from one look to another, and in all between.
    blobs: BTreeMap<Member, BTreeMap<String, Vec<(Instant, Instant)>>>,
}

/// The most that a link carried in a second.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Busiest {
    pub(crate) member: Member,
    pub(crate) upload: bool,
    /// Bytes per second over the window.
    pub(crate) rate: f64,
    pub(crate) from: Instant,
    pub(crate) to: Instant,
}

impl Measured {
    /// Since when a member was seen to have a whole blob, if it had it at every look in this time and around it.
    pub(crate) fn on_disk(&self, member: Member, digest: &str, from: Instant, to: Instant) -> Option<Instant> {
        let times = self.blobs.get(&member)?.get(digest)?;
        times.iter().find(|(first, last)| *first <= from && to <= *last).map(|(first, _)| *first)
    }

    /// Notes a look at a disk that took from `begun` to `ended`. The one before began at `before`.
    pub(crate) fn look_at_disk(
        &mut self,
        member: Member,
        files: &[PathBuf],
        before: Option<Instant>,
        (begun, ended): (Instant, Instant),
    ) {
        let blobs = self.blobs.entry(member).or_default();
        for digest in files.iter().filter_map(|file| complete(file)) {
            let times = blobs.entry(digest).or_default();
            match times.last_mut().filter(|(_, last)| Some(*last) == before) {
                Some((_, last)) => *last = begun,
                // It may have come at the end of this look.
                None => times.push((ended, begun)),
            }
        }
    }
    /// Every window of about `length`, of every link and direction, with its rate.
    pub(crate) fn windows(&self, length: Duration) -> impl Iterator<Item = Busiest> {
        self.links.iter().flat_map(move |(member, samples)| {
            let mut end = 0;
            samples.iter().enumerate().flat_map(move |(start, first)| {
                while end < samples.len() && samples[end].0.duration_since(first.0) < length {
                    end += 1;
                }
                let last = samples.get(end).filter(|_| end > start);
                last.into_iter().flat_map(move |last| {
                    let seconds = last.0.duration_since(first.0).as_secs_f64();
                    let window = move |upload, bytes: u64| Busiest {
                        member: *member,
                        upload,
                        rate: rate(bytes, seconds),
                        from: first.0,
                        to: last.0,
                    };
                    [window(true, last.1 - first.1), window(false, last.2 - first.2)]
                })
            })
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "bytes of a few seconds")]
fn rate(bytes: u64, seconds: f64) -> f64 {
    bytes as f64 / seconds
}

/// Measures until `over`.
pub(crate) fn measure(
    network: &Mutex<Network>,
    disks: &[(Member, PathBuf)],
    members: &[Member],
    over: &AtomicBool,
) -> Measured {
    let mut measured = Measured::default();
    let (mut look, mut looks) = (0_u32, BTreeMap::new());
    while !over.load(Ordering::SeqCst) {
        for member in members {
            let counters = network.lock().unwrap_or_else(PoisonError::into_inner).counters(*member);
            if let Some((sent, received)) = counters {
                measured.links.entry(*member).or_default().push((Instant::now(), sent, received));
            }
        }
        if look.is_multiple_of(DISK_EVERY) {
            for (member, directory) in disks {
                let begun = Instant::now();
                let found = files(&directory.join("blobs"));
                let most = measured.most_on_disk.entry(*member).or_default();
                *most = (*most).max(bytes_of(&found));
                measured.look_at_disk(*member, &found, looks.insert(*member, begun), (begun, Instant::now()));
            }
        }
        look = look.wrapping_add(1);
        thread::sleep(LINK_INTERVAL);
    }
    measured
}

/// Blocks of files, in bytes. Files may go away meanwhile.
fn bytes_of(files: &[PathBuf]) -> u64 {
    files.iter().filter_map(|file| fs::metadata(file).ok()).map(|metadata| metadata.blocks() * 512).sum()
}

/// The digest of the whole blob that a file is, by its place.
pub(crate) fn complete(file: &Path) -> Option<String> {
    let name = file.parent().and_then(Path::file_name).filter(|_| file.ends_with("data"))?;
    Some(format!("sha256:{}", name.to_string_lossy()))
}

/// All files below a directory.
pub(crate) fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => directories.push(entry.path()),
                Ok(kind) if kind.is_file() => files.push(entry.path()),
                _ => {}
            }
        }
    }
    files
}

/// What a process holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Held {
    /// Resident memory, bytes.
    pub(crate) memory: u64,
    pub(crate) descriptors: usize,
    /// Descriptors of files in its data directory.
    pub(crate) data_files: usize,
    pub(crate) threads: usize,
}

/// Looks at a process.
pub(crate) fn held(process: u32, data: &Path) -> Result<Held> {
    let directory = PathBuf::from(format!("/proc/{process}"));
    let status = fs::read_to_string(directory.join("status")).with_context(|| format!("process {process} is gone"))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let mut held = Held {
        memory: field("VmRSS:").unwrap_or(0) << 10,
        threads: usize::try_from(field("Threads:").unwrap_or(0))?,
        ..Held::default()
    };
    for entry in fs::read_dir(directory.join("fd"))?.flatten() {
        held.descriptors += 1;
        if fs::read_link(entry.path()).is_ok_and(|target| target.starts_with(data) && !target.ends_with("lock")) {
            held.data_files += 1;
        }
    }
    Ok(held)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_that_was_away_in_between_is_not_there_all_the_time() {
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        let blob = [PathBuf::from("/data/blobs/blobs/sha256/aa/aa11/data")];
        let (member, mut measured, mut before) = (Member::Proxy(0), Measured::default(), None);
        for (second, there) in [(0, true), (1, true), (2, true), (3, false), (4, true), (5, true)] {
            let files = if there { &blob[..] } else { &[] };
            measured.look_at_disk(member, files, before, (at(second), at(second)));
            before = Some(at(second));
        }
        let there = |from, to| measured.on_disk(member, "sha256:aa11", at(from), at(to));
        assert_eq!((there(0, 2), there(1, 2)), (Some(at(0)), Some(at(0))));
        assert_eq!((there(1, 3), there(1, 5), there(4, 5), there(4, 6)), (None, None, Some(at(4)), None));
        assert_eq!(measured.on_disk(Member::Proxy(1), "sha256:aa11", at(0), at(1)), None);
    }

    #[test]
    fn the_busiest_second_is_found() {
        let start = Instant::now();
        // 10 bytes each 100 ms, and 100 more sent between 1 s and 1.1 s.
        let samples = (0..=30)
            .map(|tenth| {
                (start + Duration::from_millis(100 * tenth), 10 * tenth + if tenth > 10 { 100 } else { 0 }, tenth)
            })
            .collect();
        let member = Member::Proxy(3);
        let measured = Measured { links: [(member, samples)].into(), ..Measured::default() };
        let busiest = |upload| {
            let windows = measured.windows(Duration::from_secs(1)).filter(|window| window.upload == upload);
            windows.map(|window| window.rate).fold(0.0, f64::max)
        };
        assert!((busiest(true) - 200.0).abs() < 1e-6 && (busiest(false) - 10.0).abs() < 1e-6);
        assert_eq!(measured.windows(Duration::from_secs(1)).count(), 2 * 21);
        assert_eq!(measured.windows(Duration::from_secs(9)).count(), 0);
    }
}
