//! Changing the key of running members.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which the lint does not recognise as such")]

mod common;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use common::{DEADLINE, Server, ask, client, key, keys, member};
use hyper_util::client::legacy::connect::HttpConnector;
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tower_service::Service as _;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_go_on_while_the_key_changes() {
    let (a, b) = (key(), key());
    let ((server_tls, server_keys), (client_tls, client_keys)) = (member(&[&a]), member(&[&a]));
    let (server_keys, client_keys) = (server_keys.unwrap(), client_keys.unwrap());
    let server = Server::start(&server_tls).await;
    let (asked, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (client, url) = (client(&client_tls), server.url("http"));
            let (asked, done) = (Arc::clone(&asked), Arc::clone(&done));
            tokio::spawn(async move {
                while !done.load(Ordering::Acquire) {
                    assert_eq!(ask(&client, &url).await.as_deref(), Ok("Member"));
                    asked.fetch_add(1, Ordering::AcqRel);
                }
            })
        })
        .collect();
    let some_requests = async || {
        let goal = asked.load(Ordering::Acquire) + 50;
        let wait = async {
            while asked.load(Ordering::Acquire) < goal {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(DEADLINE, wait).await.expect("requests are answered");
    };
    // Every step at one end and then at the other, in both orders.
    for (first, second) in [(&server_keys, &client_keys), (&client_keys, &server_keys)] {
        let (old, new) = if *first.borrow() == keys(&[&a]) { (&a, &b) } else { (&b, &a) };
        for step in [keys(&[old, new]), keys(&[new, old]), keys(&[new])] {
            for end in [first, second] {
                end.send_replace(step.clone());
                some_requests().await;
            }
        }
    }
    done.store(true, Ordering::Release);
    for client in clients {
        client.await.unwrap();
    }
    assert_eq!(*server_keys.borrow(), keys(&[&a]), "there and back again");
}

/// A connection of two members, both ends as they are given to HTTP.
async fn pair(
    listener: &TcpListener,
    client: &eagle_cluster::MemberTls,
    server: &eagle_cluster::MemberTls,
) -> (eagle_cluster::MemberStream, eagle_cluster::MemberStream) {
    let mut connector = client.connector(HttpConnector::new());
    let url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
    let accept = async { server.acceptor().accept(listener.accept().await.unwrap().0).await.unwrap().stream };
    let (ours, theirs) = tokio::join!(connector.call(url), accept);
    (ours.unwrap().into_inner(), theirs)
}

#[tokio::test]
async fn connections_under_a_key_that_is_taken_away_end_at_once() {
    let (a, b) = (key(), key());
    let ((server, server_keys), (client, client_keys)) = (member(&[&a, &b]), member(&[&b, &a]));
    let (server_keys, client_keys) = (server_keys.unwrap(), client_keys.unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (mut under_b, mut under_b_too) = pair(&listener, &client, &server).await;
    client_keys.send_replace(keys(&[&a, &b]));
    let (mut under_a, mut under_a_too) = pair(&listener, &client, &server).await;

    let mut byte = [0];
    let waits = quiet(&mut under_a_too, &mut byte).await;
    server_keys.send_replace(keys(&[&b]));
    let ended = timeout(DEADLINE, waits.read(&mut byte)).await.expect("it ends although nothing is sent");
    assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    client_keys.send_replace(keys(&[&b]));
    let ended = timeout(DEADLINE, under_a.read(&mut byte)).await.expect("the other end does too");
    assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    // Under the key that stays nothing has happened.
    quiet(&mut under_b, &mut byte).await;
    quiet(&mut under_b_too, &mut byte).await;
    // And the key that is gone opens nothing.
    let (late, _late_keys) = member(&[&a]);
    let server = Server::start(&server).await;
    assert!(ask(&crate::client(&late), &server.url("http")).await.is_err());
    assert!(TcpStream::connect(server.address).await.is_ok());
}

/// A stream on which there is nothing to read, and no end.
async fn quiet<'a>(
    stream: &'a mut eagle_cluster::MemberStream,
    byte: &mut [u8; 1],
) -> &'a mut eagle_cluster::MemberStream {
    let read = timeout(Duration::from_millis(50), stream.read(byte)).await;
    assert!(read.is_err(), "{read:?}");
    stream
}
