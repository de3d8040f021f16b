//! Seeders and their leases, over the tracker's API and with the clients.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which the lint does not recognise as such")]

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use eagle_cluster::MemberTls;
use eagle_core::{Digest, Geometry, NodeRole, PeerInfo, PieceSet, tracker::seeders::SeederInfo};
use eagle_tracker::{
    Announcer, BlobStatus, HeldLease, Registration, SeederClaim, Tracker, TrackerConfig,
    api::seeders::{HEARTBEAT, MAX_LEASES_PER_SEEDER, SeedersResponse},
};
use prometheus_client::registry::Registry;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use url::Url;

const DEADLINE: Duration = Duration::from_secs(30);

/// A tracker at this address, until the token is cancelled.
async fn tracker(listen: &str) -> (Tracker, Url, CancellationToken) {
    let config = TrackerConfig {
        listen: listen.parse().unwrap(),
        interval_active: Duration::from_millis(100),
        interval_idle: Duration::from_millis(100),
        ..TrackerConfig::default()
    };
    let shutdown = CancellationToken::new();
    let tracker = Tracker::start(config, &MemberTls::open(), &mut Registry::default(), shutdown.clone()).await;
    let tracker = tracker.unwrap();
    let url = format!("http://{}/", tracker.local_addr()).parse().unwrap();
    (tracker, url, shutdown)
}

fn info(id: &str, url: &str) -> SeederInfo {
    serde_json::from_value(serde_json::json!({ "id": id, "url": url, "storage": "fs:" })).unwrap()
}

struct Seeder {
    registration: Registration,
    draining: CancellationToken,
    ended: CancellationToken,
}

impl Seeder {
    fn start(id: &str, url: &str, trackers: &[&Url]) -> Self {
        let (draining, ended) = (CancellationToken::new(), CancellationToken::new());
        let trackers = trackers.iter().map(|url| (*url).clone()).collect();
        let members = MemberTls::open();
        let registration = Registration::start(trackers, info(id, url), &members, draining.clone(), ended.clone());
        Self { registration, draining, ended }
    }

    async fn claim(&self, digest: Digest) -> Option<SeederClaim> {
        timeout(DEADLINE, self.registration.claim(digest, &[], &Arc::new(AtomicU64::new(1)))).await.unwrap()
    }

    async fn granted(&self, digest: Digest) -> HeldLease {
        match self.claim(digest).await {
            Some(SeederClaim::Granted(lease)) => lease,
            other => panic!("{other:?}"),
        }
    }

    /// Who holds the lease, when it is another.
    async fn holder(&self, digest: Digest) -> Option<String> {
        match self.claim(digest).await {
            Some(SeederClaim::Held(holder)) => Some(holder.id.to_string()),
            _ => None,
        }
    }
}

/// Polls until the condition holds.
async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("{what}"));
}

async fn send(address: SocketAddr, method: &str, path: &str, body: &str) -> (u16, String) {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: t\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let answer = timeout(DEADLINE, exchange).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

async fn list(tracker: &Tracker) -> SeedersResponse {
    let (status, body) = send(tracker.local_addr(), "GET", "/v1/seeders", "").await;
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_seeders_has_the_lease_and_the_other_is_told_where_it_is() {
    let (tracker, url, _shutdown) = tracker("127.0.0.1:0").await;
    let one = Seeder::start("one", "http://0.0.0.0:1001", &[&url]);
    let other = Seeder::start("other", "http://seeder-1:1002", &[&url]);
    until("both to be known", async || list(&tracker).await.seeders.len() == 2).await;
    assert_eq!(list(&tracker).await.seeders[0].info.url, "http://127.0.0.1:1001/", "the address that the tracker saw");
    until("the seeder to know its address", async || one.registration.url().is_some()).await;
    assert_eq!(one.registration.url().unwrap(), "http://127.0.0.1:1001/");

    let digest = Digest::of(b"blob");
    let lease = one.granted(digest).await;
    let Some(SeederClaim::Held(holder)) = other.claim(digest).await else { panic!() };
    assert_eq!((holder.id.as_str(), holder.url.as_str()), ("one", "http://127.0.0.1:1001/"));
    let _another = other.granted(Digest::of(b"other blob")).await;
    // Longer than a lease lives without its heartbeats would take too long here; some of these do.
    tokio::time::sleep(HEARTBEAT * 2).await;
    assert_eq!(other.holder(digest).await.as_deref(), Some("one"));
    drop(lease);
    until("the lease to be given back", async || other.holder(digest).await.is_none()).await;
    // That look was granted the lease, and dropped it.
    until("the other lease to be given back", async || one.holder(digest).await.is_none()).await;

    one.draining.cancel();
    until("it to drain", async || {
        let state = serde_json::to_value(list(&tracker).await.seeders[0].info.state).unwrap();
        state == "draining"
    })
    .await;
    let _lost = one.granted(Digest::of(b"third")).await;
    one.ended.cancel();
    timeout(DEADLINE, one.registration.stopped()).await.unwrap();
    let left = list(&tracker).await.seeders;
    assert_eq!(left.iter().map(|seeder| seeder.info.id.as_str()).collect::<Vec<_>>(), ["other"]);
    assert_eq!(other.holder(Digest::of(b"third")).await, None, "its leases went with it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tracker_that_was_started_again_learns_of_leases_and_without_one_everybody_fetches() {
    let (tracker, url, shutdown) = tracker("127.0.0.1:0").await;
    let address = tracker.local_addr().to_string();
    let one = Seeder::start("one", "http://127.0.0.1:1001", &[&url]);
    let other = Seeder::start("other", "http://127.0.0.1:1002", &[&url]);
    let digest = Digest::of(b"blob");
    let _lease = one.granted(digest).await;
    shutdown.cancel();
    tracker.wait().await;
    assert!(matches!(other.claim(digest).await, Some(SeederClaim::Alone(_))), "nobody keeps it from fetching");
    let mut started = None;
    until("the port to be free again", async || {
        let config = TrackerConfig { listen: address.parse().unwrap(), ..TrackerConfig::default() };
        let members = MemberTls::open();
        started = Tracker::start(config, &members, &mut Registry::default(), CancellationToken::new()).await.ok();
        started.is_some()
    })
    .await;
    let tracker = started.unwrap();
    until("the lease to be claimed again", async || {
        list(&tracker).await.seeders.iter().any(|seeder| seeder.info.id.as_str() == "one" && seeder.leases == 1)
    })
    .await;
    assert_eq!(other.holder(digest).await.as_deref(), Some("one"));
}

#[tokio::test(flavor = "multi_thread")]
async fn seeders_that_reach_different_trackers_agree() {
    let (first, first_url, shutdown) = tracker("127.0.0.1:0").await;
    let (_second, second_url, _shutdown) = tracker("127.0.0.1:0").await;
    let both = Seeder::start("both", "http://127.0.0.1:1001", &[&first_url, &second_url]);
    let one = Seeder::start("one", "http://127.0.0.1:1002", &[&second_url]);
    // Whichever of the trackers is first for a blob.
    for number in 0..8u8 {
        let digest = Digest::of(&[number]);
        let lease = both.granted(digest).await;
        assert_eq!(one.holder(digest).await.as_deref(), Some("both"));
        drop(lease);
        let digest = Digest::of(&[number, 1]);
        let _lease = one.granted(digest).await;
        assert_eq!(both.holder(digest).await.as_deref(), Some("one"));
    }
    // What was granted by the first and refused by the second was given back.
    until("no lease at the first", async || list(&first).await.seeders.iter().all(|seeder| seeder.leases == 0)).await;
    // A tracker that was away hears of the leases that were given meanwhile.
    let address = first.local_addr().to_string();
    shutdown.cancel();
    first.wait().await;
    let digest = Digest::of(b"meanwhile");
    let _lease = both.granted(digest).await;
    let mut started = None;
    until("the port to be free again", async || {
        let config = TrackerConfig { listen: address.parse().unwrap(), ..TrackerConfig::default() };
        let members = MemberTls::open();
        started = Tracker::start(config, &members, &mut Registry::default(), CancellationToken::new()).await.ok();
        started.is_some()
    })
    .await;
    let first = started.unwrap();
    until("the lease to be known", async || list(&first).await.seeders.iter().any(|seeder| seeder.leases == 1)).await;
    let late = Seeder::start("late", "http://127.0.0.1:1003", &[&first_url]);
    assert_eq!(late.holder(digest).await.as_deref(), Some("both"));
}

#[tokio::test(flavor = "multi_thread")]
async fn other_trackers_learn_of_a_seeder_and_its_leases_while_it_runs() {
    let (first, first_url, _first) = tracker("127.0.0.1:0").await;
    let (second, second_url, _second) = tracker("127.0.0.1:0").await;
    let one = Seeder::start("one", "http://127.0.0.1:1001", &[&first_url]);
    let other = Seeder::start("other", "http://127.0.0.1:1002", &[&second_url]);
    let digest = Digest::of(b"blob");
    let lease = one.granted(digest).await;
    one.registration.replace_trackers(vec![second_url.clone(), "ftp://tracker".parse().unwrap()]);
    until("the lease to be known at the new one", async || {
        list(&second).await.seeders.iter().any(|seeder| seeder.info.id.as_str() == "one" && seeder.leases == 1)
    })
    .await;
    assert_eq!(other.holder(digest).await.as_deref(), Some("one"));
    // It is given back at both.
    drop(lease);
    until("the lease to be given back", async || other.holder(digest).await.is_none()).await;
    until("it to be given back where it was granted", async || {
        list(&first).await.seeders.iter().all(|seeder| seeder.leases == 0)
    })
    .await;
    // Without trackers everybody fetches.
    one.registration.replace_trackers(Vec::new());
    assert!(matches!(one.claim(digest).await, Some(SeederClaim::Alone(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_announced_all_of_a_blob_is_followed_and_nodes_hear_who_is_alive() {
    let (tracker, url, _shutdown) = tracker("127.0.0.1:0").await;
    let stop = CancellationToken::new();
    let (found, _found) = mpsc::channel(16);
    let node = PeerInfo { id: "one".parse().unwrap(), role: NodeRole::Seeder, ..PeerInfo::example() };
    let announcer = Announcer::start(vec![url.clone()], node, found, MemberTls::open(), stop.clone());
    let mut live = announcer.seeders();
    assert_eq!(*live.borrow(), None, "nobody is known");
    let one = Seeder::start("one", "http://127.0.0.1:1001", &[&url]);
    let other = Seeder::start("other", "http://127.0.0.1:1002", &[&url]);
    timeout(DEADLINE, live.wait_for(|live| live.as_ref().is_some_and(|live| live.up.len() == 2)))
        .await
        .unwrap()
        .unwrap();
    other.draining.cancel();
    let drains = live.wait_for(|live| live.as_ref().is_some_and(|live| live.draining.len() == 1));
    assert_eq!(timeout(DEADLINE, drains).await.unwrap().unwrap().as_ref().unwrap().up.len(), 1);

    let (digest, geometry) = (Digest::of(b"blob"), Geometry::auto(10 << 20).unwrap());
    announcer.update(digest, BlobStatus { geometry, pieces: PieceSet::Complete, want_peers: false });
    until("the tracker to know of the blob", async || other.holder(digest).await.as_deref() == Some("one")).await;
    assert!(matches!(one.claim(digest).await, Some(SeederClaim::Granted(_))), "it lost the blob itself");
    let without = ["one".parse().unwrap()];
    let claim = other.registration.claim(digest, &without, &Arc::default()).await;
    assert!(matches!(claim, Some(SeederClaim::Granted(_)) | Some(SeederClaim::Held(_))), "{claim:?}");
    // Nobody is alive any more: as if the tracker knew of none.
    one.ended.cancel();
    other.ended.cancel();
    timeout(DEADLINE, live.wait_for(Option::is_none)).await.unwrap().unwrap();
    let _tracker = tracker;
}

#[tokio::test]
async fn bad_requests_are_refused_and_change_nothing() {
    let (tracker, _url, _shutdown) = tracker("127.0.0.1:0").await;
    let address = tracker.local_addr();
    let digest = Digest::of(b"blob");
    let good = r#"{"id": "a", "url": "http://a:55008"}"#;
    let many =
        vec![format!(r#"{{"digest": "{digest}", "token": 1, "progress": 1}}"#); MAX_LEASES_PER_SEEDER + 1].join(",");
    let long = "x".repeat(3_000);
    for (method, path, body, status) in [
        ("POST", "/v1/seeders", String::new(), 400),
        ("POST", "/v1/seeders", "[]".to_owned(), 400),
        ("POST", "/v1/seeders", r#"{"seeder": {"id": "../x", "url": "http://a"}}"#.to_owned(), 400),
        ("POST", "/v1/seeders", r#"{"seeder": {"id": "a", "url": "file:///etc/passwd"}}"#.to_owned(), 400),
        ("POST", "/v1/seeders", r#"{"seeder": {"id": "a", "url": "http://u:p@a"}}"#.to_owned(), 400),
        ("POST", "/v1/seeders", format!(r#"{{"seeder": {{"id": "a", "url": "http://{long}"}}}}"#), 400),
        ("POST", "/v1/seeders", format!(r#"{{"seeder": {{"id": "a", "url": "http://a", "storage": "{long}"}}}}"#), 400),
        ("POST", "/v1/seeders", format!(r#"{{"seeder": {good}, "leases": [{many}]}}"#), 400),
        ("DELETE", "/v1/seeders", String::new(), 405),
        ("GET", "/v1/leases", String::new(), 405),
        ("POST", "/v1/leases", format!(r#"{{"digest": "sha256:00", "seeder": {good}}}"#), 400),
        ("POST", "/v1/leases", format!(r#"{{"digest": "{digest}"}}"#), 400),
        ("POST", "/v1/leases/release", "{}".to_owned(), 400),
        ("POST", "/v1/leases/release/x", "{}".to_owned(), 404),
    ] {
        let (answered, text) = send(address, method, path, &body).await;
        assert_eq!(answered, status, "{method} {path} {}: {text}", &body[..body.len().min(100)]);
        assert!(text.contains("\"error\""), "{text}");
    }
    assert!(list(&tracker).await.seeders.is_empty());
    // Not theirs: no token of theirs is believed, and giving back what is somebody else's does nothing.
    let claim = format!(r#"{{"digest": "{digest}", "seeder": {good}}}"#);
    let (status, granted) = send(address, "POST", "/v1/leases", &claim).await;
    assert!(status == 200 && granted.contains("granted"), "{granted}");
    let (status, _) =
        send(address, "POST", "/v1/leases/release", &format!(r#"{{"digest": "{digest}", "token": 1}}"#)).await;
    assert_eq!(status, 200);
    let thief = format!(
        r#"{{"seeder": {{"id": "b", "url": "http://b"}}, "leases": [{{"digest": "{digest}", "token": 1, "progress": 9}}]}}"#
    );
    let (status, answer) = send(address, "POST", "/v1/seeders", &thief).await;
    assert!(status == 200 && answer.contains(&format!(r#""lost":["{digest}"]"#)), "{answer}");
    let (_, held) =
        send(address, "POST", "/v1/leases", &claim.replace(r#""a""#, r#""b""#).replace("//a:", "//b:")).await;
    assert!(held.contains("held") && held.contains(r#""id":"a""#), "{held}");
}
