//! Clients that ask for a blob again and again and throw it away.
//!
//! Plain threads on blocking sockets with connections that stay open, one request at a time each. A body is read
//! into one buffer that is used again, as a runtime that hashes or unpacks would have to; nothing else is done
//! with it, so that the server is what is measured.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Barrier,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use hdrhistogram::Histogram;

/// Bytes that a client reads at a time: several of what a loopback socket hands out, and with the second-level
/// cache of its core to itself it stays in there.
const BUFFER: usize = 256 << 10;
/// A server that sends nothing for so long has failed.
const STALL: Duration = Duration::from_secs(20);
/// Longest head of an answer, bytes.
const MAX_HEAD: usize = 8 << 10;
/// Significant digits of the histograms: errors below 0.1 %.
const DIGITS: u8 = 3;

/// A blob and the servers that have it; clients take them in turn.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) addresses: Vec<SocketAddr>,
    /// Path and query.
    pub(super) path: String,
    pub(super) size: u64,
}

/// What the clients got, all together.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) seconds: f64,
    pub(super) bytes: u64,
    pub(super) requests: u64,
    /// From a request to the last byte of its answer, nanoseconds.
    pub(super) latency: Histogram<u64>,
    /// From a request to the first byte of its answer, nanoseconds.
    pub(super) first_byte: Histogram<u64>,
}

/// What all clients of one measurement share.
struct Shared {
    ready: Barrier,
    stop: AtomicBool,
    bytes: AtomicU64,
}

/// Lets `clients` ask for the target for so long. What is under way at the end counts in bytes, not as a request.
///
/// # Errors
/// When a server does not answer, or with something else than the blob.
pub(super) fn run(target: &Target, clients: u32, time: Duration) -> Result<Load> {
    let count = usize::try_from(clients)?;
    let shared = Shared { ready: Barrier::new(count + 1), stop: AtomicBool::new(false), bytes: AtomicU64::new(0) };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..count)
            .map(|index| {
                let shared = &shared;
                scope.spawn(move || {
                    // Without a connection the others must not wait for this one.
                    let client = Client::connect(target, index);
                    shared.ready.wait();
                    client.and_then(|client| client.ask(target, shared))
                })
            })
            .collect();
        shared.ready.wait();
        let started = Instant::now();
        thread::sleep(time);
        let (seconds, bytes) = (started.elapsed().as_secs_f64(), shared.bytes.load(Ordering::Relaxed));
        shared.stop.store(true, Ordering::Relaxed);
        let mut load = Load { seconds, bytes, requests: 0, latency: histogram()?, first_byte: histogram()? };
        for thread in threads {
            let asked = thread.join().map_err(|panic| anyhow!("a client ended abnormally: {panic:?}"))??;
            load.requests += asked.requests;
            load.latency.add(&asked.latency)?;
            load.first_byte.add(&asked.first_byte)?;
        }
        ensure!(load.bytes > 0, "no byte of {} arrived within {seconds:.2} s", target.path);
        Ok(load)
    })
}

fn histogram() -> Result<Histogram<u64>> {
    Histogram::new(DIGITS).context("the histogram cannot be made")
}

/// What one client got.
struct Asked {
    requests: u64,
    latency: Histogram<u64>,
    first_byte: Histogram<u64>,
}

/// A connection and the buffer of its owner.
struct Client {
    stream: TcpStream,
    request: Vec<u8>,
    buffer: Vec<u8>,
}

impl Client {
    fn connect(target: &Target, index: usize) -> Result<Self> {
        let address = target.addresses.get(index % target.addresses.len().max(1)).context("there is no server")?;
        let stream = TcpStream::connect(address).with_context(|| format!("{address} cannot be reached"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(STALL))?;
        let request = format!("GET {} HTTP/1.1\r\nHost: {address}\r\n\r\n", target.path).into_bytes();
        let buffer = vec![0; BUFFER.min(usize::try_from(target.size)?.max(MAX_HEAD) + MAX_HEAD)];
        Ok(Self { stream, request, buffer })
    }

    fn ask(mut self, target: &Target, shared: &Shared) -> Result<Asked> {
        let mut asked = Asked { requests: 0, latency: histogram()?, first_byte: histogram()? };
        while !shared.stop.load(Ordering::Relaxed) {
            let started = Instant::now();
            self.stream.write_all(&self.request)?;
            let body = self.head(target)?;
            let first = started.elapsed();
            shared.bytes.fetch_add(body, Ordering::Relaxed);
            let mut left = target.size.checked_sub(body).context("the answer is longer than the blob")?;
            while left > 0 {
                let read = self.read(0).with_context(|| format!("with {left} bytes of the blob to come"))?;
                let read = u64::try_from(read)?;
                left = left.checked_sub(read).context("the answer is longer than the blob")?;
                shared.bytes.fetch_add(read, Ordering::Relaxed);
                if shared.stop.load(Ordering::Relaxed) {
                    return Ok(asked);
                }
            }
            asked.latency.record(nanoseconds(started.elapsed()))?;
            asked.first_byte.record(nanoseconds(first))?;
            asked.requests += 1;
        }
        Ok(asked)
    }

    /// Reads the head of an answer, and whatever of the body came with it: that many bytes.
    fn head(&mut self, target: &Target) -> Result<u64> {
        let mut filled = 0;
        loop {
            filled += self.read(filled)?;
            let received = self.buffer.get(..filled).unwrap_or_default();
            if let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") {
                let (head, body) = received.split_at(end + 4);
                check_head(&String::from_utf8_lossy(head), target.size)?;
                return Ok(u64::try_from(body.len())?);
            }
            ensure!(filled < MAX_HEAD, "the head of the answer has more than {MAX_HEAD} bytes");
        }
    }

    fn read(&mut self, from: usize) -> Result<usize> {
        loop {
            match self.stream.read(self.buffer.get_mut(from..).unwrap_or_default()) {
                Ok(0) => bail!("the server closed the connection"),
                Ok(read) => return Ok(read),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("nothing arrived"),
            }
        }
    }
}

/// The status is 200 and the length that of the blob.
fn check_head(head: &str, size: u64) -> Result<()> {
    let status = head.split(' ').nth(1);
    ensure!(status == Some("200"), "the server answered {}", head.lines().next().unwrap_or_default());
    let length = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse::<u64>().ok());
    ensure!(length == Some(size), "the server sends {length:?} bytes instead of {size}");
    Ok(())
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    /// Answers every request on every connection with these bytes, in two parts.
    fn server(answer: &'static [u8]) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                thread::spawn(move || {
                    let mut request = [0; 1024];
                    while stream.read(&mut request).is_ok_and(|read| read > 0) {
                        let (first, rest) = answer.split_at(20);
                        if stream.write_all(first).and_then(|()| stream.write_all(rest)).is_err() {
                            break;
                        }
                    }
                });
            }
        });
        address
    }

    fn target(address: SocketAddr) -> Target {
        Target { addresses: vec![address], path: "/blob".to_owned(), size: 5 }
    }

    #[test]
    fn whole_answers_are_counted() {
        let address = server(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nbytes");
        let load = run(&target(address), 3, Duration::from_millis(200)).unwrap();
        assert!(load.requests >= 3, "{load:?}");
        assert_eq!(load.latency.len(), load.requests);
        // What ends after the measurement is a request, but its bytes are not in the window.
        assert!(load.bytes <= 5 * load.requests && load.bytes + 5 * 3 >= 5 * load.requests, "{load:?}");
        assert!(load.latency.min() >= load.first_byte.min());
    }

    #[test]
    fn another_answer_is_an_error() {
        for (answer, expected) in [
            (&b"HTTP/1.1 404 Not Found\r\ncontent-length: 5\r\n\r\nbytes"[..], "404"),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nbytes!", "instead of 5"),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nbytes and more", "longer"),
        ] {
            let error = run(&target(server(answer)), 1, Duration::from_millis(50)).unwrap_err();
            assert!(format!("{error:#}").contains(expected), "{error:#}");
        }
    }
}
