//! Peers that send what nobody asked for: answers without a request, and more than what was asked for.

use bytes::BytesMut;
use eagle_core::wire::{
    control::Ticket,
    data::{Answer, Ask},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;

/// Bytes of the ticket in front of the first request.
const TICKET: usize = 32;

/// Far more than kernels hold of what a process does not read, bytes.
const ENDLESS: usize = 128 << 20;

/// What a peer that is connected, and says where its data port is, answers to the first request.
async fn lies(answers: &[Answer]) -> (Fixture, (Vec<u32>, String, bool)) {
    let mut fixture = Fixture::start(Setup { encryption: Encryption::None, ..SETUP }).await;
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    fixture.to.data_address = listener.local_addr().unwrap();
    fixture.ask(7, Some(PieceIndex(0))).unwrap();
    let mut stream = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap().0;
    timeout(PATIENCE, asked(&mut stream)).await.unwrap();
    let mut bytes = BytesMut::new();
    for answer in answers {
        answer.encode(&mut bytes);
    }
    stream.write_all(&bytes).await.unwrap();
    let failed = fixture.failed().await;
    // It is hung up on.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await.expect("the channel ends");
    (fixture, failed)
}

/// Waits for the ticket and a request.
async fn asked(stream: &mut TcpStream) {
    stream.read_exact(&mut [0; TICKET]).await.unwrap();
    let mut bytes = BytesMut::new();
    while Ask::decode(&mut bytes).unwrap().is_none() {
        assert_ne!(stream.read_buf(&mut bytes).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn an_answer_that_nobody_asked_for_ends_the_channel() {
    let piece = |id, piece, length| Answer::Piece { id, piece: PieceIndex(piece), length, load: LOAD };
    let refusal = |id| Answer::Reject { id, reason: RejectReason::NotHere, load: LOAD };
    for (answer, problem) in [
        (piece(8, 0, PIECE), "it answered request 8 before 7"),
        (refusal(8), "it answered request 8 before 7"),
        (piece(7, 1, PIECE), "which was not asked for"),
        (piece(7, 0, PIECE - 1), "instead of 65536"),
    ] {
        let (fixture, (ids, reason, misbehaved)) = lies(&[answer]).await;
        assert!(misbehaved && reason.contains(problem), "{answer:?}: {reason}");
        assert_eq!(ids, [7], "{answer:?}");
        assert_eq!(fixture.channels.downloaded(), 0, "{answer:?}");
    }
}

#[tokio::test]
async fn a_second_answer_to_the_same_request_ends_the_channel() {
    let mut fixture = Fixture::start(Setup { encryption: Encryption::None, ..SETUP }).await;
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let honest = fixture.to;
    fixture.to.data_address = listener.local_addr().unwrap();
    fixture.ask(7, Some(PieceIndex(0))).unwrap();
    let mut stream = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap().0;
    timeout(PATIENCE, asked(&mut stream)).await.unwrap();
    let mut bytes = BytesMut::new();
    let refusal = Answer::Reject { id: 7, reason: RejectReason::NotHere, load: LOAD };
    refusal.encode(&mut bytes);
    refusal.encode(&mut bytes);
    stream.write_all(&bytes).await.unwrap();
    assert_eq!(fixture.rejected(7).await, RejectReason::NotHere);
    let (ids, reason, misbehaved) = fixture.failed().await;
    assert!(misbehaved && reason.contains("it answered request 7, which nobody made"), "{reason}");
    assert!(ids.is_empty());
    // A new channel is no worse for it.
    fixture.to = honest;
    fixture.ask(8, Some(PieceIndex(5))).unwrap();
    fixture.piece(8).await;
}

/// Sends this piece over and over until the other end hangs up: how many bytes it took.
async fn flood(stream: &mut TcpStream, id: u32) -> usize {
    let mut bytes = BytesMut::new();
    Answer::Piece { id, piece: PieceIndex(0), length: PIECE, load: LOAD }.encode(&mut bytes);
    bytes.resize(bytes.len() + usize::try_from(PIECE).unwrap(), 7);
    let mut sent = 0;
    while sent < ENDLESS && timeout(PATIENCE, stream.write_all(&bytes)).await.expect("an end").is_ok() {
        sent += bytes.len();
    }
    sent
}

#[tokio::test]
async fn pieces_without_end_are_cut_off_after_the_one_that_was_asked_for() {
    let mut fixture = Fixture::start(Setup { encryption: Encryption::None, ..SETUP }).await;
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let honest = fixture.to;
    fixture.to.data_address = listener.local_addr().unwrap();
    fixture.ask(7, Some(PieceIndex(0))).unwrap();
    let mut stream = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap().0;
    timeout(PATIENCE, asked(&mut stream)).await.unwrap();
    let sent = flood(&mut stream, 7).await;
    assert!(sent < ENDLESS / 2, "{sent} bytes were taken");
    let mut pieces = 0;
    let (ids, reason) = loop {
        match fixture.event().await {
            ChannelEvent::Piece { id: 7, .. } => pieces += 1,
            ChannelEvent::Failed { ids, reason, misbehaved: true, .. } => break (ids, reason),
            ChannelEvent::Started { id: 7, .. } => {}
            other => panic!("{other:?}"),
        }
    };
    assert!(
        pieces == 1 && ids.is_empty() && reason.contains("which nobody made"),
        "{pieces} pieces, {ids:?}: {reason}"
    );
    // Nothing of the others was read as a piece.
    assert_eq!(fixture.channels.downloaded(), u64::from(PIECE));
    fixture.to = honest;
    fixture.ask(8, Some(PieceIndex(5))).unwrap();
    fixture.piece(8).await;
}

#[tokio::test]
async fn pieces_for_one_who_uploads_end_the_channel() {
    let mut fixture = Fixture::start(Setup { encryption: Encryption::None, ..SETUP }).await;
    let Ticket(secret) = fixture.b.network.request_ticket(fixture.to.peer).await.unwrap();
    let mut stream = TcpStream::connect(fixture.to.data_address).await.unwrap();
    stream.write_all(&secret).await.unwrap();
    let sent = flood(&mut stream, 1).await;
    assert!(sent < ENDLESS / 2, "{sent} bytes were taken");
    assert_eq!(fixture.handler.asked.load(Ordering::SeqCst), 0);
    fixture.ask(8, Some(PieceIndex(5))).unwrap();
    fixture.piece(8).await;
}
