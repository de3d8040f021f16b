//! A registry that misbehaves on demand: it serves the images of a run over plain HTTP, and breaks its answers as long as
//! a fault is set.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::net::sockopt::set_socket_linger;

use super::{
    content::{Document, Image, paths},
    plan::OriginFault,
};

/// How often a connection looks whether a fault has begun, in bytes of a body.
const CHUNK: usize = 32 << 10;
/// Every so many bytes of a body one is wrong.
const WRONG_EVERY: usize = 24 << 10;
/// How often a stalled answer looks whether it may go on.
const POLL: Duration = Duration::from_millis(20);
/// Time without a byte from or to a client after which its connection is given up.
const IDLE: Duration = Duration::from_secs(60);
/// Longest line of a request's head.
const MAX_LINE: u64 = 16 << 10;
/// Connections at a time. A cluster of this size has a few dozen.
const MAX_CONNECTIONS: usize = 1_000;
/// A pause that a client can take without a pull failing for it, seconds.
const RETRY_AFTER: u64 = 1;

/// What the connections share.
#[derive(Debug)]
struct Shared {
    documents: BTreeMap<String, Document>,
    fault: Mutex<Option<OriginFault>>,
    /// Digests of which wrong bytes were sent.
    lied: Mutex<BTreeSet<String>>,
    /// GET requests for each blob, by its digest.
    fetched: Mutex<BTreeMap<String, usize>>,
    connections: AtomicUsize,
}

/// The registry. Its threads end with the process, which is one run's.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl Origin {
    /// Serves these images at an address.
    pub(crate) fn start(address: SocketAddr, images: &[Image]) -> Result<Self> {
        let listener = TcpListener::bind(address).with_context(|| format!("the origin cannot listen at {address}"))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            documents: paths(images),
            fault: Mutex::default(),
            lied: Mutex::default(),
            fetched: Mutex::default(),
            connections: AtomicUsize::new(0),
        });
        let origin = Self { shared: Arc::clone(&shared), address };
        thread::Builder::new().name("origin".into()).spawn(move || accept(&listener, &shared))?;
        Ok(origin)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Begins a fault, or ends the one that is set.
    pub(crate) fn set(&self, fault: Option<OriginFault>) {
        *lock(&self.shared.fault) = fault;
    }

    /// Whether wrong bytes of something were sent to anybody.
    pub(crate) fn lied_about(&self, digest: &str) -> bool {
        lock(&self.shared.lied).contains(digest)
    }

    /// How often each blob was asked for by GET, also in part, by its digest.
    pub(crate) fn fetched(&self) -> BTreeMap<String, usize> {
        lock(&self.shared.fetched).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        if shared.connections.fetch_add(1, Ordering::SeqCst) >= MAX_CONNECTIONS {
            shared.connections.fetch_sub(1, Ordering::SeqCst);
            continue;
        }
        let shared = Arc::clone(shared);
        thread::spawn(move || {
            // An error is a client that went away, or a fault at work.
            let _ = connection(&stream, &shared);
            shared.connections.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

fn connection(stream: &TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(IDLE))?;
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    while let Some(request) = Request::read(&mut reader)? {
        shared.answer(stream, &request)?;
    }
    Ok(())
}

struct Request {
    head: bool,
    path: String,
    range: Option<String>,
}

impl Request {
    /// None at the end of the connection.
    fn read(reader: &mut impl BufRead) -> io::Result<Option<Self>> {
        let line = |reader: &mut dyn BufRead| {
            let mut line = String::new();
            reader.take(MAX_LINE).read_line(&mut line).map(|_| line)
        };
        let first = line(reader)?;
        let mut words = first.split_whitespace();
        let (Some(method), Some(target)) = (words.next(), words.next()) else { return Ok(None) };
        let mut request =
            Self { head: method == "HEAD", path: target.split('?').next().unwrap_or(target).to_owned(), range: None };
        loop {
            let header = line(reader)?;
            let header = header.trim_end();
            if header.is_empty() {
                return Ok(Some(request));
            }
            if let Some((name, value)) = header.split_once(':')
                && name.eq_ignore_ascii_case("range")
            {
                request.range = Some(value.trim().to_owned());
            }
        }
    }
}

impl Shared {
    fn fault(&self) -> Option<OriginFault> {
        *lock(&self.fault)
    }

    fn answer(&self, mut stream: &TcpStream, request: &Request) -> io::Result<()> {
        match self.fault() {
            Some(OriginFault::Status(status)) => return refuse(stream, status, request.head),
            Some(OriginFault::Reset) => return reset(stream),
            Some(OriginFault::Stall) => self.wait_for_the_end(OriginFault::Stall),
            _ => {}
        }
        let Some(path) = request.path.strip_prefix("/v2") else { return refuse(stream, 404, request.head) };
        if path.is_empty() || path == "/" {
            return stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}");
        }
        let Some(document) = self.documents.get(path) else { return refuse(stream, 404, request.head) };
        if !request.head && path.contains("/blobs/") {
            *lock(&self.fetched).entry(document.digest.clone()).or_default() += 1;
        }
        let size = document.bytes.len();
        let range = request.range.as_deref().and_then(|range| part(range, size));
        let (status, from, to) = match range {
            Some((from, to)) => ("206 Partial Content", from, to),
            None => ("200 OK", 0, size),
        };
        let mut head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {}\r\nContent-Length: {}\r\nDocker-Content-Digest: {}\r\n\
             ETag: \"{}\"\r\nAccept-Ranges: bytes\r\n",
            document.media_type,
            to - from,
            document.digest,
            document.digest
        );
        if range.is_some() {
            head.push_str(&format!("Content-Range: bytes {from}-{}/{size}\r\n", to - 1));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes())?;
        if request.head { Ok(()) } else { self.body(stream, document, from, to) }
    }

    /// Sends a part of a document; a fault that begins meanwhile counts.
    fn body(&self, mut stream: &TcpStream, document: &Document, from: usize, to: usize) -> io::Result<()> {
        let half = from + (to - from) / 2;
        let mut at = from;
        while at < to {
            let mut end = (at + CHUNK).min(to);
            match self.fault() {
                Some(OriginFault::Status(_) | OriginFault::Reset) => return reset(stream),
                Some(OriginFault::Truncate) if at >= half => return close(stream),
                Some(OriginFault::Truncate) => end = end.min(half.max(at + 1)),
                Some(OriginFault::Stall) => self.wait_for_the_end(OriginFault::Stall),
                Some(OriginFault::WrongBytes) => {
                    lock(&self.lied).insert(document.digest.clone());
                    let mut wrong = document.bytes[at..end].to_vec();
                    for byte in wrong.iter_mut().step_by(WRONG_EVERY) {
                        *byte ^= 0x10;
                    }
                    stream.write_all(&wrong)?;
                    at = end;
                    continue;
                }
                None => {}
            }
            stream.write_all(&document.bytes[at..end])?;
            at = end;
        }
        Ok(())
    }

    fn wait_for_the_end(&self, fault: OriginFault) {
        while self.fault() == Some(fault) {
            thread::sleep(POLL);
        }
    }
}

fn refuse(mut stream: &TcpStream, status: u16, head: bool) -> io::Result<()> {
    let (reason, code, extra) = match status {
        401 => ("Unauthorized", "UNAUTHORIZED", "WWW-Authenticate: Basic realm=\"chaos\"\r\n".to_owned()),
        429 => ("Too Many Requests", "TOOMANYREQUESTS", format!("Retry-After: {RETRY_AFTER}\r\n")),
        404 => ("Not Found", "NOT_FOUND", String::new()),
        _ => ("Internal Server Error", "UNKNOWN", String::new()),
    };
    let body = format!("{{\"errors\":[{{\"code\":\"{code}\",\"message\":\"chaos\"}}]}}");
    let sent = if head { "" } else { &body };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\n{extra}Content-Length: {length}\r\n\r\n"
    );
    stream.write_all(format!("{head}{sent}").as_bytes())
}

/// RST instead of FIN.
fn reset(stream: &TcpStream) -> io::Result<()> {
    set_socket_linger(stream, Some(Duration::ZERO))?;
    Err(io::ErrorKind::ConnectionReset.into())
}

fn close(stream: &TcpStream) -> io::Result<()> {
    stream.shutdown(std::net::Shutdown::Both)?;
    Err(io::ErrorKind::UnexpectedEof.into())
}

/// First byte and the one after the last of `bytes=A-` or `bytes=A-B`; others are answered whole, as a server may.
fn part(range: &str, size: usize) -> Option<(usize, usize)> {
    let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?;
    let from = from.parse().ok().filter(|from| *from < size)?;
    let to = if to.is_empty() { size } else { to.parse::<usize>().ok()?.saturating_add(1).min(size) };
    (from < to).then_some((from, to))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http;

    fn blob(origin: &Origin, image: &Image, number: usize, headers: &[(&str, &str)]) -> Result<(u16, Vec<u8>)> {
        let target = format!("/v2/{}/blobs/{}", image.repository, image.blobs[number].digest);
        let answer = http::request(origin.address(), "GET", &target, headers)?;
        Ok((answer.status, answer.bytes()?))
    }

    #[test]
    fn every_fault_is_one_and_ends() {
        let image = Image::make(1, 0, &[200_000, 70_000]);
        let layer = &image.blobs[1];
        let origin = Origin::start("127.0.0.1:0".parse().unwrap(), std::slice::from_ref(&image)).unwrap();
        let good = || {
            origin.set(None);
            assert_eq!(blob(&origin, &image, 1, &[]).unwrap(), (200, layer.bytes.to_vec()));
        };
        good();
        assert_eq!(
            blob(&origin, &image, 1, &[("Range", "bytes=100-199")]).unwrap(),
            (206, layer.bytes[100..200].to_vec())
        );
        for status in [401, 429, 500] {
            origin.set(Some(OriginFault::Status(status)));
            assert_eq!(blob(&origin, &image, 1, &[]).unwrap().0, status);
        }
        good();
        for fault in [OriginFault::Reset, OriginFault::Truncate] {
            origin.set(Some(fault));
            assert!(blob(&origin, &image, 1, &[]).is_err(), "{fault:?}");
            good();
        }
        assert!(!origin.lied_about(&layer.digest));
        origin.set(Some(OriginFault::WrongBytes));
        let (status, bytes) = blob(&origin, &image, 1, &[]).unwrap();
        assert!(status == 200 && bytes.len() == layer.bytes.len() && bytes != *layer.bytes);
        assert!(origin.lied_about(&layer.digest) && !origin.lied_about(&image.blobs[2].digest));
        good();
        origin.set(Some(OriginFault::Stall));
        let waiting = thread::scope(|scope| {
            let waiting = scope.spawn(|| blob(&origin, &image, 1, &[]));
            thread::sleep(Duration::from_millis(100));
            assert!(!waiting.is_finished());
            origin.set(None);
            waiting.join().unwrap()
        });
        assert_eq!(waiting.unwrap(), (200, layer.bytes.to_vec()));
    }
}
