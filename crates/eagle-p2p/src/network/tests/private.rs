//! Networks with a cluster key: members get in, strangers get nothing.

use eagle_cluster::{ClusterKey, ClusterKeys, WaitingRoom};
use tokio::{net::TcpListener, sync::watch};

use super::*;

/// Length of a hint, and of the nonce of the private network behind it, bytes.
const HINT: usize = 32;
const NONCE: usize = 24;

fn key() -> ClusterKey {
    ClusterKey::generate().unwrap()
}

fn keys(keys: &[&ClusterKey]) -> ClusterKeys {
    keys.iter().map(|key| format!("{}\n", *key.expose())).collect::<String>().parse().unwrap()
}

/// Members of one cluster, whose keys can be changed for all of them at once.
pub(crate) fn cluster(key: &ClusterKey) -> (watch::Sender<ClusterKeys>, Membership) {
    let (sender, receiver) = watch::channel(keys(&[key]));
    (sender, Membership::Keyed(receiver))
}

/// Everything that comes until the connection ends.
async fn until_the_end(mut stream: TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    // It may end with a reset.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an end of the connection");
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_connect_also_when_both_dial() {
    let (_keys, membership) = cluster(&key());
    let mut a = Node::member(membership.clone(), 1, Encryption::Tls).await;
    let mut b = Node::member(membership, 2, Encryption::Tls).await;
    a.dial(&b);
    b.dial(&a);
    assert!(matches!(a.event_about_sessions().await, NetworkEvent::Connected { peer, .. } if peer == b.peer()));
    assert!(matches!(b.event_about_sessions().await, NetworkEvent::Connected { peer, .. } if peer == a.peer()));
    exchange(&mut a, &mut b, 500).await;
    assert_eq!((a.network.strangers(), b.network.strangers()), (0, 0));
}

#[tokio::test]
async fn a_stranger_gets_no_byte() {
    let (_keys, membership) = cluster(&key());
    let mut member = Node::member(membership, 1, Encryption::Tls).await;
    let address = member.network.listen_address();
    for garbage in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0; HINT], &[7; 5000], b"\x13/multistream/1.0.0\n", b""]
    {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(until_the_end(stream).await, b"", "{garbage:?}");
    }
    assert_eq!(member.network.strangers(), 5);
    // Other nodes of Eagle, of another cluster and of none; whoever dials.
    let (_other_keys, other) = cluster(&key());
    for membership in [other, Membership::Open] {
        let mut stranger = Node::member(membership, 2, Encryption::Tls).await;
        stranger.dial(&member);
        assert!(matches!(stranger.event().await, NetworkEvent::Unreachable { .. }));
        member.dial(&stranger);
        let event = member.event().await;
        let NetworkEvent::Unreachable { reason, .. } = event else { panic!("{event:?}") };
        assert!(reason.contains("another one or none"), "{reason}");
        assert_eq!((member.network.connected(), stranger.network.connected()), (0, 0));
    }
    assert_eq!(member.network.strangers(), 7);
}

#[tokio::test]
async fn strangers_that_wait_keep_no_member_out() {
    let (_keys, membership) = cluster(&key());
    let mut a = Node::member(membership.clone(), 1, Encryption::Tls).await;
    let mut b = Node::member(membership, 2, Encryption::Tls).await;
    // More than may wait at a time, and than may be in a handshake.
    let mut silent = Vec::new();
    for _ in 0..WaitingRoom::PLACES + 200 {
        silent.push(TcpStream::connect(b.network.listen_address()).await.unwrap());
    }
    a.dial(&b);
    a.connected(b.peer()).await;
    b.connected(a.peer()).await;
    exchange(&mut a, &mut b, 5).await;
    // All of them are sent away, the first of them by those after.
    for stream in silent {
        assert_eq!(until_the_end(stream).await, b"");
    }
}

/// Passes one connection on to `to` and keeps what the dialling end said.
async fn eavesdrop(listener: TcpListener, to: SocketAddr) -> Vec<u8> {
    let (from, _) = listener.accept().await.unwrap();
    let to = TcpStream::connect(to).await.unwrap();
    let (mut dialler, mut back) = from.into_split();
    let (mut answers, mut on) = to.into_split();
    let answers = tokio::spawn(async move { tokio::io::copy(&mut answers, &mut back).await });
    let mut said = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(read @ 1..) = dialler.read(&mut chunk).await {
        said.extend_from_slice(&chunk[..read]);
        if on.write_all(&chunk[..read]).await.is_err() {
            break;
        }
    }
    answers.abort();
    said
}

#[tokio::test]
async fn what_was_recorded_opens_nothing() {
    let (_keys, membership) = cluster(&key());
    let mut a = Node::member(membership.clone(), 1, Encryption::Tls).await;
    let mut b = Node::member(membership, 2, Encryption::Tls).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let between = listener.local_addr().unwrap();
    let recorder = tokio::spawn(eavesdrop(listener, b.network.listen_address()));
    a.network.connect(b.peer(), between);
    a.connected(b.peer()).await;
    b.connected(a.peer()).await;
    exchange(&mut a, &mut b, 3).await;
    a.network.disconnect(b.peer());
    a.disconnected(b.peer()).await;
    b.disconnected(a.peer()).await;
    let said = timeout(PATIENCE, recorder).await.expect("the end of the recording").unwrap();
    assert!(said.len() > HINT + NONCE + 200, "there was a handshake: {} bytes", said.len());

    // The hint alone gets the nonce of the private network, which is random. Garbage behind it gets nothing more.
    let mut random = [0; 500];
    rand::Rng::fill_bytes(&mut rand::rng(), &mut random);
    let mut nonces = Vec::new();
    for rest in [&said[HINT..HINT + NONCE], &random] {
        let mut stream = TcpStream::connect(b.network.listen_address()).await.unwrap();
        stream.write_all(&said[..HINT]).await.unwrap();
        stream.write_all(rest).await.unwrap();
        stream.shutdown().await.unwrap();
        let answer = until_the_end(stream).await;
        assert!(answer.len() <= NONCE, "{answer:?}");
        nonces.push(answer);
    }
    assert_ne!(nonces[0], nonces[1]);
    // All of it gets what only the key can read, and no further than the handshake of TLS: no session begins.
    let mut stream = TcpStream::connect(b.network.listen_address()).await.unwrap();
    stream.write_all(&said).await.unwrap();
    stream.shutdown().await.unwrap();
    let answer = until_the_end(stream).await;
    assert!(!answer.windows(11).any(|part| part == b"multistream"), "it is not encrypted");
    assert_eq!(b.network.connected(), 0);
    // The next event is about the next member.
    a.dial(&b);
    b.connected(a.peer()).await;
}

#[tokio::test]
async fn a_connection_ends_with_its_key_and_comes_back_under_the_next() {
    let (old, new) = (key(), key());
    let (keys_of_a, membership_a) = cluster(&old);
    let (keys_of_b, membership_b) = cluster(&old);
    let mut a = Node::member(membership_a, 1, Encryption::Tls).await;
    let mut b = Node::member(membership_b, 2, Encryption::Tls).await;
    a.dial(&b);
    a.connected(b.peer()).await;
    b.connected(a.peer()).await;
    for step in [[&old, &new], [&new, &old]] {
        for sender in [&keys_of_a, &keys_of_b] {
            sender.send_replace(keys(&step));
            // The connection does not care, whatever the other one has.
            exchange(&mut a, &mut b, 5).await;
        }
    }
    // The one who still accepts both dials anew when the other does not.
    keys_of_b.send_replace(keys(&[&new]));
    a.disconnected(b.peer()).await;
    b.disconnected(a.peer()).await;
    assert!(!b.network.reconnect(a.peer()), "it had not dialled");
    assert!(a.network.reconnect(b.peer()));
    a.connected(b.peer()).await;
    b.connected(a.peer()).await;
    exchange(&mut a, &mut b, 5).await;
    keys_of_a.send_replace(keys(&[&new]));
    exchange(&mut a, &mut b, 5).await;
    // A connection under the present key that ends is left to those who want it.
    b.network.disconnect(a.peer());
    a.disconnected(b.peer()).await;
    assert!(!a.network.reconnect(b.peer()));
}
