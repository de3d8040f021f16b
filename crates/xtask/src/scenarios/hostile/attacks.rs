//! What clients that mean harm do.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use sha2::{Digest, Sha256};

use super::measure::Stage;
use crate::http;

/// Connections of clients that do something slowly.
const SLOW: usize = 500;
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

/// An announce of many blobs that nobody has.
pub(super) fn announce(address: &str) -> Vec<u8> {
    let blob = |number: u32| {
        let digest = hex::encode(Sha256::digest(number.to_le_bytes()));
        format!(
            "{{\"digest\":\"sha256:{digest}\",\"geometry\":{{\"size\":1048576,\"piece_length\":65536}},\"pieces\":\"complete\",\
             \"event\":\"started\",\"want_peers\":true}}"
        )
    };
    let blobs: Vec<String> = (0..500).map(blob).collect();
    let body = format!(
        "{{\"node\":{{\"id\":\"12D3KooWflood\",\"address\":\"{address}\",\"role\":\"proxy\"}},\"blobs\":[{}]}}",
        blobs.join(",")
    );
    let length = body.len();
    format!("POST /v1/announce HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}")
        .into_bytes()
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
