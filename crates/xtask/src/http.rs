//! A plain HTTP/1.1 client for one request on one connection.
//!
//! It sends exactly the target that it is given: an ordinary client would tidy up the bad paths that
//! the scenarios send on purpose.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, bail};

/// Longest wait for any single byte.
const STALL: Duration = Duration::from_secs(30);

/// Longest head that is read: a registry's are a few hundred bytes.
const MAX_HEAD: u64 = 64 << 10;

/// Longest body that is collected in memory.
const MAX_COLLECTED: u64 = 8 << 20;

/// An answer whose body is still to be read.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    body: Body,
}

#[derive(Debug)]
enum Body {
    Sized { stream: BufReader<TcpStream>, left: u64 },
    Chunked { stream: BufReader<TcpStream>, left: u64, ended: bool },
    UntilClose(BufReader<TcpStream>),
}

impl Response {
    /// The first value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The whole body; an error if it is long.
    pub(crate) fn bytes(mut self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.by_ref().take(MAX_COLLECTED).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

impl Read for Response {
    /// Ends where the framing says; an error where the connection ends before that.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.body {
            Body::UntilClose(stream) => stream.read(buffer),
            Body::Sized { stream, left } => read_some(stream, left, buffer),
            Body::Chunked { ended: true, .. } => Ok(0),
            Body::Chunked { stream, left, ended } => {
                if *left == 0 {
                    *left = chunk_size(stream)?;
                    if *left == 0 {
                        *ended = true;
                        return Ok(0);
                    }
                }
                let count = read_some(stream, left, buffer)?;
                if *left == 0 {
                    line(stream)?;
                }
                Ok(count)
            }
        }
    }
}

fn read_some(stream: &mut BufReader<TcpStream>, left: &mut u64, buffer: &mut [u8]) -> io::Result<usize> {
    if *left == 0 || buffer.is_empty() {
        return Ok(0);
    }
    let most = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
    let count = stream.read(&mut buffer[..most])?;
    if count == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("closed with {left} bytes still to come")));
    }
    *left -= u64::try_from(count).unwrap_or(u64::MAX);
    Ok(count)
}

fn line(stream: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut text = String::new();
    stream.by_ref().take(MAX_HEAD).read_line(&mut text)?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

fn chunk_size(stream: &mut BufReader<TcpStream>) -> io::Result<u64> {
    let text = line(stream)?;
    let digits = text.split(';').next().unwrap_or_default().trim();
    u64::from_str_radix(digits, 16)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("bad chunk size {text:?}")))
}

/// Sends a request and reads the head of the answer.
pub(crate) fn request(address: SocketAddr, method: &str, target: &str, headers: &[(&str, &str)]) -> Result<Response> {
    exchange(address, method, target, headers, &[]).with_context(|| format!("{method} {target} at {address}"))
}

/// The same with a body.
pub(crate) fn request_with_body(
    address: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<Response> {
    let length = body.len().to_string();
    let headers: Vec<_> = headers.iter().copied().chain([("Content-Length", length.as_str())]).collect();
    exchange(address, method, target, &headers, body).with_context(|| format!("{method} {target} at {address}"))
}

fn exchange(
    address: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<Response> {
    let mut stream = connect(address)?;
    let mut head = format!("{method} {target} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    let mut stream = BufReader::new(stream);
    let first = line(&mut stream).context("no answer")?;
    let status = first.split(' ').nth(1).and_then(|code| code.parse().ok());
    let Some(status) = status.filter(|_| first.starts_with("HTTP/1.")) else { bail!("not HTTP: {first:?}") };
    let mut headers = Vec::new();
    loop {
        let text = line(&mut stream)?;
        if text.is_empty() {
            break;
        }
        if let Some((name, value)) = text.split_once(':') {
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
    }
    let find = |name: &str| headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value);
    let body = if method == "HEAD" || status == 204 || status == 304 {
        Body::Sized { stream, left: 0 }
    } else if find("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        Body::Chunked { stream, left: 0, ended: false }
    } else if let Some(length) = find("content-length") {
        let left = length.parse().with_context(|| format!("bad Content-Length {length:?}"))?;
        Body::Sized { stream, left }
    } else {
        Body::UntilClose(stream)
    };
    Ok(Response { status, headers, body })
}

/// Sends bytes as they are and collects what comes back until the other end closes or `patience` is over.
pub(crate) fn raw(address: SocketAddr, bytes: &[u8], patience: Duration) -> Result<Vec<u8>> {
    let mut stream = connect(address)?;
    stream.set_read_timeout(Some(patience))?;
    // The other end may close before all is sent; that is its right.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.take(MAX_COLLECTED).read_to_end(&mut answer);
    Ok(answer)
}

fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, STALL).with_context(|| format!("cannot connect to {address}"))?;
    stream.set_read_timeout(Some(STALL))?;
    stream.set_write_timeout(Some(STALL))?;
    Ok(stream)
}
