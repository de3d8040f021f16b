//! Members and strangers on real sockets.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which the lint does not recognise as such")]

mod common;

use std::{io, net::SocketAddr};

use common::{DEADLINE, Server, ask, client, key, member};
use eagle_cluster::ClusterKey;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout},
};

#[tokio::test]
async fn who_has_a_key_in_common_is_a_member() {
    let (a, b, c) = (key(), key(), key());
    // What a client and a server know, and what comes of it.
    let member_of = async |ours: &[&ClusterKey], theirs: &[&ClusterKey]| {
        let ((server, _server_keys), (tls, _client_keys)) = (member(theirs), member(ours));
        let server = Server::start(&server).await;
        ask(&client(&tls), &server.url("http")).await
    };
    for (ours, theirs) in [
        (&[&a][..], &[&a][..]),
        (&[&a], &[&a, &b]),
        (&[&a], &[&b, &a]),
        (&[&a, &b], &[&a]),
        (&[&a, &b], &[&b]),
        (&[&a, &b], &[&b, &a]),
        (&[&b, &a], &[&a, &b]),
        (&[&a, &b], &[&c, &b]),
    ] {
        assert_eq!(member_of(ours, theirs).await.as_deref(), Ok("Member"), "{ours:?} {theirs:?}");
    }
    for (ours, theirs) in [(&[&a][..], &[&b][..]), (&[&a], &[&b, &c]), (&[&a, &c], &[&b])] {
        let error = member_of(ours, theirs).await.unwrap_err();
        let expected = format!("it does not know this node's cluster key (id {})", ours[0].id());
        assert!(error.contains(&expected), "{error}");
    }
    // Without a key at one end or both.
    assert_eq!(member_of(&[], &[]).await.as_deref(), Ok("Member"));
    assert_eq!(member_of(&[], &[&a]).await.as_deref(), Ok("Stranger"));
    let error = member_of(&[&a], &[]).await.unwrap_err();
    assert!(error.contains("it does not speak TLS, so it has no cluster key"), "{error}");
}

#[tokio::test]
async fn https_is_for_nodes_with_a_key() {
    let a = key();
    let ((tls, _keys), (open, _)) = (member(&[&a]), member(&[]));
    let server = Server::start(&tls).await;
    assert_eq!(ask(&client(&tls), &server.url("https")).await.as_deref(), Ok("Member"));
    let error = ask(&client(&open), &server.url("https")).await.unwrap_err();
    assert!(error.contains("set cluster.key_file"), "{error}");
}

/// What a server says to bytes after which nothing comes.
async fn say(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // A reset is an end, too.
    let _ = timeout(DEADLINE, stream.read_to_end(&mut answer)).await.expect("the connection ends");
    answer
}

// Time that passes when nothing else happens: nobody has to wait for the deadlines.
#[tokio::test(start_paused = true)]
async fn who_proves_nothing_is_told_nothing() {
    let a = key();
    let (tls, _keys) = member(&[&a]);
    let server = Server::start(&tls).await;
    let begun = Instant::now();
    assert!(say(server.address, b"").await.is_empty());
    assert!(begun.elapsed().as_secs() >= 5, "the deadline");
    // The beginnings of a record and of a handshake, and nothing more.
    assert!(say(server.address, b"\x16").await.is_empty());
    assert!(say(server.address, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").await.is_empty());
    // What is no handshake gets an alert at most: a record of two bytes.
    for garbage in [&b"\x16\x03\x01\x00\x05\xff\xff\xff\xff\xff"[..], b"\x16\xff\xff\xff\xff\xff\xff", &[0x16; 70_000]]
    {
        let answer = say(server.address, garbage).await;
        assert!(answer.is_empty() || (answer.len() == 7 && answer[0] == 0x15), "{answer:?}");
    }
    assert_eq!(ask(&client(&tls), &server.url("http")).await.as_deref(), Ok("Member"));
}

#[tokio::test]
async fn strangers_do_not_starve_members() {
    // More than may wait, and both ends are in this process.
    const STRANGERS: usize = 1200;
    let limits = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limits.maximum, ..limits }).unwrap();
    let a = key();
    let (tls, _keys) = member(&[&a]);
    let server = Server::start(&tls).await;
    let mut strangers = Vec::new();
    for number in 0..STRANGERS {
        let mut stranger = TcpStream::connect(server.address).await.unwrap();
        // Some say nothing, some begin a handshake, some a request.
        let words = [&b""[..], b"\x16\x03", b"GET / HTTP/1.1\r\n"];
        stranger.write_all(words[number % words.len()]).await.unwrap();
        strangers.push(stranger);
        if number % 100 == 0 {
            assert_eq!(ask(&client(&tls), &server.url("http")).await.as_deref(), Ok("Member"));
        }
    }
    assert_eq!(ask(&client(&tls), &server.url("http")).await.as_deref(), Ok("Member"));
    // The first had to go.
    let mut byte = [0];
    let end = timeout(DEADLINE, strangers[2].read(&mut byte)).await.expect("the first stranger gives way");
    assert!(matches!(end, Ok(0)) || end.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset));
}
