//! A server that is faster than whoever reads it, and how far it gets ahead of a reader that keeps to a limit.

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Body;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpSocket,
};
use url::Url;

/// Bytes a second of the reader.
pub(crate) const RATE: u64 = 2_000_000;
/// How long it is looked at.
const TIME: Duration = Duration::from_secs(2);
/// Size that the server says the blob has, bytes: more than is read of it.
const SIZE: u64 = 1_000_000_000;
/// The server's own buffer, bytes.
const SENDING: u32 = 64 << 10;
/// What the HTTP client itself reads before it is asked for, bytes.
const CLIENT: u64 = 2 * eagle_registry::HTTP_READ_AHEAD as u64;
/// The kernel's receive buffer at this rate, bytes: the least that it is set to.
const RECEIVING: u64 = 64 << 10;
/// How far the server may be ahead: both buffers, each of which the kernel doubles for its own records, what the client has read, and
/// what comes in a twentieth of a second. Left alone, the kernel takes in more than 700 kB.
pub(crate) const ALLOWED: u64 = 2 * (RECEIVING + SENDING as u64) + CLIENT + RATE / 20;

/// Answers every request with one blob, as fast as it can: its address, and the bytes of the blob that have left it.
pub(crate) async fn start() -> (Url, Arc<AtomicU64>) {
    let socket = TcpSocket::new_v4().unwrap();
    // Accepted connections have the same.
    socket.set_send_buffer_size(SENDING).unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let listener = socket.listen(8).unwrap();
    let address = listener.local_addr().unwrap();
    let sent = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&sent);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let counted = Arc::clone(&counted);
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 4096]).await;
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\n\r\n");
                let _ = stream.write_all(head.as_bytes()).await;
                while let Ok(written @ 1..) = stream.write(&[7; 16 << 10]).await {
                    counted.fetch_add(written as u64, Ordering::Relaxed);
                }
            });
        }
    });
    (format!("http://{address}").parse().unwrap(), sent)
}

/// Reads at [`RATE`], as the limiters do, and gives the most by which the server was ahead.
pub(crate) async fn ahead<B>(mut body: B, sent: &AtomicU64) -> u64
where
    B: Body<Data = Bytes, Error: Error> + Unpin,
{
    let begin = Instant::now();
    let (mut read, mut most) = (0, 0);
    while begin.elapsed() < TIME {
        // What has come is paid for before more is read.
        read += body.frame().await.unwrap().unwrap().data_ref().unwrap().len() as u64;
        let due = Duration::from_secs_f64(read as f64 / RATE as f64);
        tokio::time::sleep(due.saturating_sub(begin.elapsed())).await;
        most = most.max(sent.load(Ordering::Relaxed) - read);
    }
    most
}
