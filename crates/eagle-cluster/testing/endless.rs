//! Clients of a role in the same process that never end, with a clock that the test moves on. It runs by itself in between: parts of a
//! role wait by the system's clock too, and would spin if it stood still.

#![allow(dead_code, reason = "not every test has all of them")]

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::{advance, pause, resume, sleep, timeout},
};

/// Time for the role to do what it has to do before the clock is moved, and to not do what it should not.
const WORK: Duration = Duration::from_millis(200);
/// How long before its time it is looked whether a wait goes on, and after it whether it is over.
const NEAR: Duration = Duration::from_secs(1);
/// Longest wait for what has to happen now.
const LONGEST: Duration = Duration::from_secs(30);
/// Receive buffer of a reader, bytes.
const BUFFER: u32 = 64 << 10;
/// What a reader takes at a time, bytes: more than the kernel holds of an answer.
const PART: usize = 1 << 20;

/// Lets so much time pass at once.
pub(crate) async fn pass(time: Duration) {
    sleep(WORK).await;
    pause();
    advance(time).await;
    resume();
}

/// Sends bytes, after which nothing comes. The other end has to wait for so long, and no longer: what it answers then.
pub(crate) async fn say(address: SocketAddr, bytes: &str, waits: Duration) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes.as_bytes()).await.unwrap();
    pass(waits - NEAR).await;
    let early = timeout(WORK, stream.read_u8()).await;
    assert!(early.is_err(), "{bytes:?} was not waited for: {early:?}");
    pass(2 * NEAR).await;
    let mut answer = Vec::new();
    // A reset is an end, too.
    let _ = timeout(LONGEST, stream.read_to_end(&mut answer)).await.expect("the connection ends");
    String::from_utf8_lossy(&answer).into_owned()
}

/// Sends bytes one by one, so slowly that they would take four times as long as the other end waits: what it answers when that is over.
pub(crate) async fn drip(address: SocketAddr, bytes: &str, waits: Duration) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let (mut sent, every) = (Duration::ZERO, waits * 4 / u32::try_from(bytes.len()).unwrap());
    for byte in bytes.as_bytes() {
        // It fails once the connection has ended.
        if stream.write_all(&[*byte]).await.is_err() {
            break;
        }
        assert!(sent <= waits + NEAR, "more of {bytes:?} was taken {sent:?} after its beginning");
        pass(every).await;
        sent += every;
    }
    let mut answer = Vec::new();
    let _ = timeout(LONGEST, stream.read_to_end(&mut answer)).await.expect("the connection ends");
    String::from_utf8_lossy(&answer).into_owned()
}

/// Asks for something large, and takes a part of it before each of these pauses, or nothing; then all that there still is. The
/// bytes that came.
pub(crate) async fn read(address: SocketAddr, target: &str, takes_parts: bool, pauses: [u64; 3]) -> u64 {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(BUFFER).unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    let request = format!("GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let (mut read, mut part) = (0, vec![0; PART]);
    for seconds in pauses {
        if takes_parts {
            read += stream.read_exact(&mut part).await.unwrap() as u64;
        }
        pass(Duration::from_secs(seconds)).await;
    }
    sleep(WORK).await;
    while let Ok(count @ 1..) = timeout(LONGEST, stream.read(&mut part)).await.expect("an end") {
        read += count as u64;
    }
    read
}
