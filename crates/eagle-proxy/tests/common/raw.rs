//! Bytes on a socket, for requests that no client library would send.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// How long the other end may be silent before what came so far is all.
const SILENCE: Duration = Duration::from_millis(700);

/// Sends bytes as they are; what comes back until the other end closes or says nothing more.
pub(crate) async fn exchange(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The other end may close before it has read everything.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(Ok(count)) = timeout(SILENCE, stream.read(&mut buffer)).await {
        if count == 0 {
            break;
        }
        answer.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// Status of each answer in what came back.
pub(crate) fn statuses(answer: &str) -> Vec<u16> {
    answer.split("HTTP/1.1 ").skip(1).filter_map(|rest| rest.get(..3)?.parse().ok()).collect()
}

/// Asks a proxy for a way to `target`; the stream behind it, or the status of the refusal.
pub(crate) async fn connect(proxy: SocketAddr, target: &str) -> Result<TcpStream, u16> {
    let mut stream = TcpStream::connect(proxy).await.unwrap();
    stream.write_all(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n").as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(timeout(super::DEADLINE, stream.read_u8()).await.expect("an answer in time").map_err(|_| 0_u16)?);
    }
    match statuses(&String::from_utf8_lossy(&head))[..] {
        [200] => Ok(stream),
        [status, ..] => Err(status),
        [] => Err(0),
    }
}
