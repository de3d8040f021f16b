//! `eagle-bench floor`: what a verified download costs at least on this machine.
//!
//! The bytes go the way that they go through Eagle, with nothing but what cannot be left out: a sender
//! (`sendfile` from the page cache), a receiver that reads, hashes and writes to a file, and, in the second
//! part, sends from that file to a local reader. Each is a plain thread on blocking sockets.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::fs::FileExt as _,
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use eagle_core::{Digest, digest::Algorithm, digest::Hasher};
use rustix::fs::sendfile;
use serde::Serialize;

use crate::{cli::FloorArgs, host::ProcessUse, report::Circumstances};

/// Bytes read, hashed and written at a time: fits the second-level cache, and few enough system calls.
const CHUNK: usize = 256 << 10;
/// Most bytes that one `sendfile` is asked for.
const SEND: u64 = 1 << 30;

/// The report. Fields are described in `docs/benchmarks.md`.
#[derive(Debug, Serialize)]
struct FloorReport {
    #[serde(flatten)]
    circumstances: Circumstances,
    size_bytes: u64,
    hash: Cost,
    verified_overwrite: Cost,
    verified_download: Cost,
    delivered_download: Cost,
}

/// What moving the bytes cost, all threads together.
#[derive(Debug, Clone, Copy, Serialize)]
struct Cost {
    seconds: f64,
    bytes_per_second: f64,
    cpu_seconds: f64,
    cpu_seconds_per_gb: f64,
}

/// Runs the benchmark, prints what came of it and writes it.
///
/// # Errors
/// When a socket or file fails.
pub(crate) fn run(args: &FloorArgs) -> Result<()> {
    let circumstances = Circumstances::now("floor", None);
    let size = args.size.0;
    ensure!(size > 0, "--size 0 leaves nothing to measure");
    let directory = tempfile::Builder::new().prefix("eagle-bench-").tempdir()?;
    let source = fill(&directory.path().join("source"), size)?;
    let expected = hash_file(&source, size)?;
    let hash = cost(size, || hash_file(&source, size).map(|_| ()))?;
    let measure = |target: &File, deliver| {
        cost(size, || {
            let digest = download(&source, target, size, deliver)?;
            ensure!(digest == expected, "the bytes changed on their way");
            Ok(())
        })
    };
    let target = |name| File::options().read(true).write(true).create_new(true).open(directory.path().join(name));
    let verified = target("verified")?;
    let verified_download = measure(&verified, false)?;
    // Again, into pages that exist: the difference is what the kernel takes to make them.
    let verified_overwrite = measure(&verified, false)?;
    drop(verified);
    let delivered_download = measure(&target("delivered")?, true)?;
    let report = FloorReport {
        circumstances,
        size_bytes: size,
        hash,
        verified_overwrite,
        verified_download,
        delivered_download,
    };
    args.output.write(&report)?;
    println!("{size} bytes over loopback, every end counted\n");
    for (name, cost) in [
        ("SHA-256 of a file in the page cache", report.hash),
        ("sendfile; read, SHA-256, write over a file", report.verified_overwrite),
        ("sendfile; read, SHA-256, write to a new file", report.verified_download),
        ("the same, then sent on to a local reader", report.delivered_download),
    ] {
        println!("  {name:<44} {:>7.0} MB/s   {:.2} CPU s/GB", cost.bytes_per_second / 1e6, cost.cpu_seconds_per_gb);
    }
    Ok(())
}

fn cost(size: u64, work: impl FnOnce() -> Result<()>) -> Result<Cost> {
    let (before, started) = (ProcessUse::of("self")?, Instant::now());
    work()?;
    let seconds = started.elapsed().as_secs_f64();
    let cpu_seconds = ProcessUse::of("self")?.cpu_seconds - before.cpu_seconds;
    let (bytes_per_second, cpu_seconds_per_gb) = (size as f64 / seconds, cpu_seconds / (size as f64 / 1e9));
    Ok(Cost { seconds, bytes_per_second, cpu_seconds, cpu_seconds_per_gb })
}

/// Writes a file whose bytes do not repeat within a chunk.
fn fill(path: &std::path::Path, size: u64) -> Result<File> {
    let mut file = File::options().read(true).write(true).create_new(true).open(path)?;
    let mut chunk = vec![0u8; CHUNK];
    let mut state = 1u64;
    for byte in &mut chunk {
        // Steele and Vigna's multiplier of a congruential generator; only its upper bits are good.
        state = state.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(1);
        *byte = state.to_be_bytes()[0];
    }
    let mut left = size;
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        file.write_all(&chunk[..length]).context("the file to send cannot be written")?;
        left -= u64::try_from(length)?;
    }
    Ok(file)
}

fn hash_file(file: &File, size: u64) -> Result<Digest> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let (mut chunk, mut offset) = (vec![0u8; CHUNK], 0);
    while offset < size {
        let read = file.read_at(&mut chunk, offset)?;
        ensure!(read > 0, "the file is shorter than it was written");
        hasher.update(&chunk[..read]);
        offset += u64::try_from(read)?;
    }
    Ok(hasher.finish())
}

/// Both ends of a new connection over loopback.
fn connection() -> Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    Ok((near, listener.accept()?.0))
}

fn send_file(socket: &TcpStream, file: &File, from: u64, to: u64) -> Result<()> {
    let mut offset = from;
    while offset < to {
        let length = usize::try_from((to - offset).min(SEND))?;
        ensure!(sendfile(socket, file, Some(&mut offset), length)? > 0, "the file ended early");
    }
    Ok(())
}

/// One download: the digest of what arrived.
fn download(source: &File, target: &File, size: u64, deliver: bool) -> Result<Digest> {
    let (sender, receiver) = connection()?;
    let (local, mut reader) = connection()?;
    thread::scope(|scope| {
        let sending = scope.spawn(move || {
            let result = send_file(&sender, source, 0, size);
            drop(sender);
            result
        });
        let reading = scope.spawn(move || {
            let mut chunk = vec![0u8; CHUNK];
            let mut received = 0u64;
            loop {
                match reader.read(&mut chunk)? {
                    0 => return Ok(received),
                    read => received += u64::try_from(read)?,
                }
            }
        });
        let receiving = scope.spawn(move || receive(receiver, local, target, deliver));
        let joined = |panic| anyhow!("a thread ended abnormally: {panic:?}");
        sending.join().map_err(joined)??;
        let (digest, received) = receiving.join().map_err(joined)??;
        let read: Result<u64> = reading.join().map_err(joined)?;
        ensure!(received == size && read? == if deliver { size } else { 0 }, "bytes were lost");
        Ok(digest)
    })
}

fn receive(mut receiver: TcpStream, local: TcpStream, target: &File, deliver: bool) -> Result<(Digest, u64)> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let (mut chunk, mut offset) = (vec![0u8; CHUNK], 0u64);
    loop {
        let read = receiver.read(&mut chunk)?;
        if read == 0 {
            return Ok((hasher.finish(), offset));
        }
        hasher.update(&chunk[..read]);
        target.write_all_at(&chunk[..read], offset)?;
        let end = offset + u64::try_from(read)?;
        if deliver {
            send_file(&local, target, offset, end)?;
        }
        offset = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_arrives_is_what_was_sent() {
        let directory = tempfile::tempdir().unwrap();
        let size = (1 << 20) + 77;
        let source = fill(&directory.path().join("source"), size).unwrap();
        let target =
            File::options().read(true).write(true).create_new(true).open(directory.path().join("target")).unwrap();
        let expected = hash_file(&source, size).unwrap();
        for deliver in [false, true] {
            assert_eq!(download(&source, &target, size, deliver).unwrap(), expected);
            assert_eq!(hash_file(&target, size).unwrap(), expected);
        }
    }
}
