//! Whoever is no peer that is connected gets nothing from a data channel listener.

use bytes::BytesMut;
use eagle_core::{units::Rate, wire::control::Ticket};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{super::patience::Patience, *};

#[tokio::test]
async fn strangers_get_nothing() {
    for encryption in [Encryption::Tls, Encryption::None] {
        let mut fixture = Fixture::start(Setup { encryption, ..SETUP }).await;
        let address = fixture.server.local_addr();
        for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 32], &[0; 5000]] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(garbage).await.unwrap();
            let _ = timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await.expect("an end");
        }
        // The piece that is asked for below is for the peer that is connected.
        fixture.ask(1, Some(PieceIndex(5))).unwrap();
        fixture.piece(1).await;
        assert_eq!(fixture.handler.asked.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test]
async fn a_cluster_key_comes_before_everything() {
    for encryption in [Encryption::Tls, Encryption::None] {
        let mut fixture = Fixture::start(Setup { encryption, keyed: true, ..SETUP }).await;
        let address = fixture.server.local_addr();
        for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 32], &[0; 5000]] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(garbage).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut answer = Vec::new();
            let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an end");
            assert_eq!(answer, b"");
        }
        // TLS and a good ticket alone do not help either.
        let mut stream = transport::dial(address, Rate::Unlimited).await.unwrap();
        match encryption {
            Encryption::Tls => {
                let connected = transport::connect(&fixture.b.keypair, fixture.to.peer, stream).await;
                assert!(connected.is_err());
            }
            Encryption::None => {
                let Ticket(secret) = fixture.b.network.request_ticket(fixture.to.peer).await.unwrap();
                stream.write_all(&secret).await.unwrap();
                let mut answer = Vec::new();
                let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an end");
                assert_eq!(answer, b"");
            }
        }
        assert_eq!(fixture.a.network.strangers(), 4);
        fixture.ask(1, Some(PieceIndex(5))).unwrap();
        fixture.piece(1).await;
        assert_eq!(fixture.handler.asked.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test]
async fn tickets_cannot_be_guessed() {
    let fixture = Fixture::start(Setup { encryption: Encryption::None, ..SETUP }).await;
    let Ticket(secret) = fixture.b.network.request_ticket(fixture.to.peer).await.unwrap();
    // As near as one bit, at either end: the answer is always the same, none.
    for bit in [0, 255] {
        let mut guess = secret;
        guess[bit / 8] ^= 1 << (bit % 8);
        let mut stream = TcpStream::connect(fixture.to.data_address).await.unwrap();
        stream.write_all(&guess).await.unwrap();
        let mut answer = Vec::new();
        let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an end");
        assert_eq!(answer, b"");
    }
}

#[tokio::test]
async fn an_identity_that_is_not_connected_gets_nothing() {
    let fixture = Fixture::start(SETUP).await;
    let stranger = identity::ephemeral();
    let stream = transport::dial(fixture.to.data_address, Rate::Unlimited).await.unwrap();
    let (mut reader, mut writer) = transport::connect(&stranger, fixture.to.peer, stream).await.unwrap();
    let mut ask = BytesMut::new();
    eagle_core::wire::data::Ask::Request { id: 1, digest: fixture.digest, piece: None }.encode(&mut ask);
    let mut patience = Patience::with(None);
    writer.write_all(&ask, &mut patience).await.unwrap();
    writer.flush(&mut patience).await.unwrap();
    let mut answer = BytesMut::new();
    let end = timeout(PATIENCE, reader.read(&mut answer, 100)).await.expect("an end");
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    assert_eq!(fixture.handler.asked.load(Ordering::SeqCst), 0);
    // And who is not the peer that was meant is not talked to.
    let stream = transport::dial(fixture.to.data_address, Rate::Unlimited).await.unwrap();
    let other = stranger.public().to_peer_id();
    assert!(transport::connect(&fixture.b.keypair, other, stream).await.is_err());
}

#[tokio::test]
async fn a_ticket_opens_one_channel() {
    let fixture = Fixture::start(Setup { encryption: Encryption::None, ..SETUP }).await;
    let Ticket(secret) = fixture.b.network.request_ticket(fixture.to.peer).await.unwrap();
    let mut ask = BytesMut::new();
    eagle_core::wire::data::Ask::Request { id: 1, digest: Digest::of(b"?"), piece: None }.encode(&mut ask);
    for good in [true, false] {
        let mut stream = TcpStream::connect(fixture.to.data_address).await.unwrap();
        stream.write_all(&secret).await.unwrap();
        stream.write_all(&ask).await.unwrap();
        let mut answer = [0; 9];
        let read = timeout(PATIENCE, stream.read_exact(&mut answer)).await.expect("an answer or the end");
        assert_eq!(read.is_ok(), good);
    }
}
