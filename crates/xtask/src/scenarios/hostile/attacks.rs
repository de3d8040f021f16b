//! What clients that mean harm do.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest, Sha256};

use super::measure::Stage;
use crate::http;

/// Connections of clients that do something slowly.
const SLOW: usize = 500;
/// Longest body of an announce, bytes (docs/security.md).
const LONGEST_BODY: usize = 4 << 20;
/// What comes of such a body at a time. All of it together stays within what a tracker keeps of bodies: a crowd that fills that is
/// refused, and others with it.
const PART_OF_BODY: usize = 4 << 10;
/// Time between two parts of each.
const PAUSE_OF_BODY: Duration = Duration::from_millis(200);
/// Longest time for opening the connections of one attack; on a quiet machine it takes half a second.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);
/// How long one connection is waited for. One whose first packet the kernel dropped, since the listener's queue was full, would wait a second.
const CONNECT_DEADLINE: Duration = Duration::from_millis(50);

/// Connections that say nothing.
pub(super) fn idle(address: SocketAddr, count: usize, stage: &Stage) -> Result<()> {
    let crowd = open(address, count)?;
    stage.begun(crowd.len());
    wait(stage);
    Ok(())
}

fn wait(stage: &Stage) {
    while !stage.is_over() {
        thread::sleep(Duration::from_millis(20));
    }
}

/// Opens connections, as many as it gets in time.
pub(super) fn open(address: SocketAddr, count: usize) -> Result<Vec<TcpStream>> {
    let started = Instant::now();
    let mut streams = Vec::with_capacity(count);
    while streams.len() < count && started.elapsed() < OPEN_DEADLINE {
        // A full queue of the listener is the attacker's own problem.
        if let Ok(stream) = TcpStream::connect_timeout(&address, CONNECT_DEADLINE) {
            streams.push(stream);
        }
    }
    ensure!(streams.len() > count / 10, "only {} connections could be opened to {address}", streams.len());
    Ok(streams)
}

pub(super) fn trickle(address: SocketAddr, stage: &Stage) -> Result<()> {
    let mut streams = open(address, SLOW)?;
    let head = b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Long: ";
    stage.begun(streams.len());
    for at in 0usize.. {
        let byte = head.get(at).copied().unwrap_or(b'a');
        // Those that were closed are opened again.
        for stream in &mut streams {
            if stream.write_all(&[byte]).is_err() {
                *stream = TcpStream::connect(address)?;
            }
        }
        if stage.is_over() {
            break;
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Announces of the longest body that a tracker takes, a little at a time: what has come of each has to be kept until the rest does.
pub(super) fn slow_bodies(address: SocketAddr, stage: &Stage) -> Result<()> {
    let mut streams = open(address, SLOW)?;
    let head = format!(
        "POST /v1/announce HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {LONGEST_BODY}\r\n\r\n"
    );
    for stream in &mut streams {
        stream.write_all(head.as_bytes())?;
    }
    stage.begun(streams.len());
    while !stage.is_over() {
        for stream in &mut streams {
            if stream.write_all(&[b' '; PART_OF_BODY]).is_err() {
                *stream = TcpStream::connect(address)?;
                stream.write_all(head.as_bytes())?;
            }
        }
        thread::sleep(PAUSE_OF_BODY);
    }
    Ok(())
}

/// Requests in which another one hides from who reads their length in another way, one after another: each is refused, and once.
pub(super) fn smuggled(address: SocketAddr, stage: &Stage) -> Result<()> {
    let hidden = "GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n";
    let length = hidden.len();
    let heads = [
        format!("Content-Length: 0\r\nContent-Length: {length}"),
        "Content-Length: +0".to_owned(),
        "Content-Length: 0x0".to_owned(),
        "Transfer-Encoding: xchunked".to_owned(),
        "Transfer-Encoding: chunked, identity".to_owned(),
        "X-A: b\rContent-Length: 0".to_owned(),
    ];
    stage.begun(1);
    for head in heads.iter().cycle() {
        let request = format!("POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n{hidden}");
        let answer = http::raw(address, request.as_bytes(), Duration::from_secs(5))?;
        let answer = String::from_utf8_lossy(&answer);
        // None at all where the end of the connection overtook it.
        let is_refused = answer.is_empty() || answer.starts_with("HTTP/1.1 400");
        ensure!(is_refused && answer.matches("HTTP/1.1 ").count() <= 1, "{head:?} was answered: {answer}");
        if stage.is_over() {
            break;
        }
    }
    Ok(())
}

pub(super) fn unread(address: SocketAddr, target: &str, stage: &Stage) -> Result<()> {
    let mut streams = open(address, SLOW)?;
    for stream in &mut streams {
        let _ = stream.write_all(format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
    }
    stage.begun(streams.len());
    wait(stage);
    Ok(())
}

pub(super) fn churn(address: SocketAddr, stage: &Stage) -> Result<()> {
    let mut opened = 0u64;
    stage.begun(1);
    while !stage.is_over() {
        // One at a time, as fast as it goes; a failure to connect is churn too.
        opened += u64::from(TcpStream::connect(address).is_ok());
        thread::sleep(Duration::from_micros(200));
    }
    ensure!(opened > 0, "no connection could be opened");
    Ok(())
}

pub(super) fn long_heads(address: SocketAddr, stage: &Stage) -> Result<()> {
    let head = format!("GET /v2/ HTTP/1.1\r\nHost: x\r\n{}", "X-A: b\r\n".repeat(20_000));
    stage.begun(1);
    while !stage.is_over() {
        let answer = http::raw(address, head.as_bytes(), Duration::from_secs(5))?;
        let answer = String::from_utf8_lossy(&answer);
        ensure!(!answer.starts_with("HTTP/1.1 2"), "a head of {} bytes was taken: {answer}", head.len());
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// An announce of so many blobs that nobody has.
pub(super) fn announce(address: &str, id: &str, blobs: u32) -> Vec<u8> {
    let blob = |number: u32| {
        let digest = hex::encode(Sha256::digest(number.to_le_bytes()));
        format!(
            "{{\"digest\":\"sha256:{digest}\",\"geometry\":{{\"size\":1048576,\"piece_length\":65536}},\"pieces\":\"complete\",\
             \"event\":\"started\",\"want_peers\":true}}"
        )
    };
    let blobs: Vec<String> = (0..blobs).map(blob).collect();
    let body = format!(
        "{{\"node\":{{\"id\":\"{id}\",\"address\":\"{address}\",\"role\":\"proxy\"}},\"blobs\":[{}]}}",
        blobs.join(",")
    );
    let length = body.len();
    format!("POST /v1/announce HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}")
        .into_bytes()
}

/// Sends a request on a connection of its own, which has to be answered well; one.
pub(super) fn send(address: SocketAddr, request: &[u8]) -> Result<u64> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(OPEN_DEADLINE))?;
    stream.write_all(request)?;
    let mut status = [0; 12];
    stream.read_exact(&mut status)?;
    ensure!(status == *b"HTTP/1.1 200", "answered {}", String::from_utf8_lossy(&status));
    Ok(1)
}

/// Runs a program that does harm once it has said that it has begun, until its input ends.
pub(super) fn run(command: &mut Command, stage: &Stage) -> Result<()> {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot start the attacker")?;
    // Whatever happens here, its input ends with this process or before.
    let (input, output) = (child.stdin.take(), child.stdout.take());
    let mut said = String::new();
    BufReader::new(output.context("no output")?).read_line(&mut said)?;
    ensure!(said.trim() == "begun", "the attacker ended without having begun: {}", child.wait()?);
    stage.begun(1);
    wait(stage);
    // All of its work is that of its first thread, in nanoseconds (proc(5)).
    let used = fs::read_to_string(format!("/proc/{}/schedstat", child.id()))?;
    let used = used.split(' ').next().and_then(|used| used.parse().ok()).context("no time of the attacker")?;
    stage.used_elsewhere(Duration::from_nanos(used));
    drop(input);
    let status = child.wait()?;
    ensure!(status.success(), "the attacker ended with {status}");
    Ok(())
}

/// Sends the same request again and again on one connection.
pub(super) fn repeat(address: SocketAddr, request: &[u8], stage: &Stage) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    let mut answer = vec![0; 1 << 20];
    let mut answered = 0;
    stage.begun(1);
    while !stage.is_over() {
        stream.write_all(request)?;
        answered += stream.read(&mut answer)?;
    }
    ensure!(answered > 0, "the flood was not answered");
    Ok(())
}
