//! The store that trackers share, on a real Redis.

use std::time::Duration;

use eagle_core::{
    NodeRole, PieceSet,
    tracker::{leases::Claimed, seeders::SeederState},
};
use eagle_tracker::{
    TrackerConfig,
    api::{Event, seeders::LIFETIME},
    store::{PeerStore, SeederStore, SharedSeeders, SharedStore, StoreLimits, StoreLocation, VIEW_AGE},
};
use proptest::{prelude::*, test_runner::TestRunner};

use crate::{
    redis_server::{RedisServer, is_installed},
    seeders_suite::{self, id, seeder},
    suite::{self, at, blob, digest, limits, node},
};

/// Longest wait for what should happen soon, on a machine with other work.
const DEADLINE: Duration = Duration::from_secs(30);

/// A tracker's store; every look at a swarm is a new one.
fn open(config: &TrackerConfig, view_age: Duration) -> SharedStore {
    let StoreLocation::Redis(url) = &config.store else { unreachable!() };
    SharedStore::with_view_age(url, config, view_age).unwrap()
}

/// The same, once it has found Redis.
async fn connected(config: &TrackerConfig) -> SharedStore {
    let store = open(config, Duration::ZERO);
    store.sweep(at(0)).await;
    assert!(!store.health().away);
    store
}

/// Makes stores within a test that runs on several threads.
fn make(server: &RedisServer) -> impl Fn(StoreLimits) -> Box<dyn PeerStore> + '_ {
    |limits| {
        let config = server.config(&limits);
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current()
                .block_on(async { Box::new(connected(&config).await) as Box<dyn PeerStore> })
        })
    }
}

#[test]
fn behaves_as_the_model() {
    if !is_installed() {
        return;
    }
    let server = RedisServer::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // Each step is some thirty exchanges.
    let mut runner = TestRunner::new(ProptestConfig { cases: 16, max_shrink_iters: 200, ..ProptestConfig::default() });
    let run = runner.run(&suite::steps(), |steps| {
        let config = server.config(&limits());
        runtime.block_on(async { suite::run(&connected(&config).await, steps).await });
        Ok(())
    });
    run.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn keeps_to_what_every_store_keeps_to() {
    if !is_installed() {
        return;
    }
    let server = RedisServer::start();
    let make = make(&server);
    suite::a_seeder_decides_on_the_geometry(&make).await;
    suite::bounds_hold_and_nobody_is_pushed_out(&make).await;
    suite::large_swarms_are_seen_in_part_with_their_seeders(&make).await;
    suite::lists_come_in_pages(&make).await;
    suite::concurrent_announces_expiry_and_leaving_keep_the_counts(&make, 20).await;
}

#[tokio::test]
async fn trackers_share_what_they_are_told() {
    if !is_installed() {
        return;
    }
    let server = RedisServer::start();
    let config = server.config(&limits());
    let (one, other) = (connected(&config).await, connected(&config).await);
    let (first, second) = (node(1, NodeRole::Proxy), node(2, NodeRole::Proxy));
    assert!(!one.announce(&first, true, &[blob(1, PieceSet::Complete, Event::Completed)], at(0)).await.unwrap().known);
    // A node may be known by one and go to the other.
    assert!(other.announce(&first, false, &[], at(1)).await.unwrap().known);
    let view = other.view(digest(1), &second.id, 1, at(1)).await.unwrap();
    assert_eq!(view.candidates.len(), 1);
    other.leave(&first.id).await;
    assert!(one.swarm(digest(1), None, 10, at(1)).await.is_none());
}

#[tokio::test]
async fn a_look_at_a_swarm_is_shared_for_a_moment() {
    if !is_installed() {
        return;
    }
    let server = RedisServer::start();
    let config = server.config(&limits());
    let store = open(&config, VIEW_AGE);
    store.sweep(at(0)).await;
    let asker = node(9, NodeRole::Proxy).id;
    let count = async |now| store.view(digest(1), &asker, 1, now).await.map_or(0, |view| view.candidates.len());
    let announce = async |number| {
        let own = blob(1, PieceSet::Complete, Event::Completed);
        store.announce(&node(number, NodeRole::Proxy), false, &[own], at(0)).await.unwrap();
    };
    announce(1).await;
    assert_eq!(count(at(0)).await, 1);
    announce(2).await;
    assert_eq!(count(at(0)).await, 1, "the look of a moment ago serves");
    assert_eq!(count(at(0) + VIEW_AGE).await, 2);
}

#[tokio::test]
async fn while_redis_is_away_memory_stands_in_and_nothing_is_lost_when_it_is_back() {
    if !is_installed() {
        return;
    }
    let mut server = RedisServer::start();
    let config = server.config(&limits());
    let store = connected(&config).await;
    let other = connected(&config).await;
    let (first, second) = (node(1, NodeRole::Proxy), node(2, NodeRole::Proxy));
    let own = |number| blob(number, PieceSet::Complete, Event::Completed);
    store.announce(&first, true, &[own(1)], at(0)).await.unwrap();

    // Frozen: it accepts connections and answers nothing.
    server.freeze(true);
    let applied = store.announce(&first, false, &[own(2)], at(1)).await.unwrap();
    assert!(!applied.known, "the node is asked for its full state");
    assert!(store.health().away && store.health().failures > 0);
    store.announce(&first, true, &[own(2), own(3)], at(1)).await.unwrap();
    let view = store.view(digest(3), &second.id, 1, at(1)).await.unwrap();
    assert_eq!(view.candidates.len(), 1, "peers are found while Redis is away");
    assert_eq!(store.swarms(None, 10, at(1)).await.len(), 2);

    server.freeze(false);
    back(&store).await;
    // What Redis has of the node is from before; whoever hears of the node next says so.
    assert!(!other.announce(&first, false, &[], at(2)).await.unwrap().known);
    other.announce(&first, true, &[own(2), own(3)], at(2)).await.unwrap();
    assert!(store.announce(&first, false, &[], at(2)).await.unwrap().known);
    let swarms: Vec<_> = store.swarms(None, 10, at(2)).await.into_iter().map(|swarm| swarm.digest).collect();
    assert_eq!(swarms.len(), 2);
    assert!(!swarms.contains(&digest(1)));

    // A Redis that lost everything is a tracker that restarted.
    server.kill();
    assert!(!store.announce(&first, false, &[own(2)], at(3)).await.unwrap().known);
    server.start_again();
    back(&store).await;
    assert!(!store.announce(&first, true, &[own(2)], at(4)).await.unwrap().known);
    assert!(store.announce(&first, false, &[], at(4)).await.unwrap().known);
    assert_eq!(store.swarms(None, 10, at(4)).await.len(), 1);
}

async fn back(store: &SharedStore) {
    let found = tokio::time::timeout(DEADLINE, async {
        while store.health().away {
            store.sweep(at(2)).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    found.await.expect("Redis is found again");
}

/// Seeders and leases, once they have found Redis; every look is a new one.
async fn seeders(config: &TrackerConfig) -> SharedSeeders {
    let StoreLocation::Redis(url) = &config.store else { unreachable!() };
    let store = SharedSeeders::with_view_age(url, config, Duration::ZERO).unwrap();
    store.sweep(at(0)).await;
    assert!(!store.is_away());
    store
}

#[test]
fn seeders_and_leases_follow_the_rules() {
    if !is_installed() {
        return;
    }
    let server = RedisServer::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // After a minute a tracker looks at Redis' clock again, which knows nothing of virtual time.
    let end = at(60 - LIFETIME.as_secs() - 1);
    let mut runner = TestRunner::new(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() });
    let run = runner.run(&seeders_suite::steps(), |steps| {
        let config = server.config(&limits());
        runtime.block_on(async { seeders_suite::run(&seeders(&config).await, steps, end).await });
        Ok(())
    });
    run.unwrap();
}

#[tokio::test]
async fn seeders_and_leases_keep_to_what_every_store_keeps_to() {
    if !is_installed() {
        return;
    }
    let server = RedisServer::start();
    seeders_suite::a_lease_without_progress_ends(&seeders(&server.config(&limits())).await).await;
    seeders_suite::leases_and_seeders_are_bounded(&seeders(&server.config(&limits())).await).await;
}

#[tokio::test]
async fn trackers_share_seeders_and_leases_and_go_on_without_redis() {
    if !is_installed() {
        return;
    }
    let mut server = RedisServer::start();
    let config = server.config(&limits());
    let (one, other) = (seeders(&config).await, seeders(&config).await);
    let (first, second) = (seeder(1, 1, SeederState::Up), seeder(2, 2, SeederState::Up));
    one.heartbeat(first.clone(), &[], at(0)).await.unwrap();
    other.heartbeat(second, &[], at(0)).await.unwrap();
    assert_eq!((one.seeders(at(0)).await.len(), other.version(at(0)).await), (2, one.version(at(0)).await));
    let Claimed::Granted { token } = one.claim(digest(1), &id(1), at(0)).await else { panic!() };
    assert_eq!(other.claim(digest(1), &id(2), at(0)).await, Claimed::Held(id(1)));
    // A seeder may give back at any tracker what another one gave.
    other.release(digest(1), token, at(0)).await;
    let Claimed::Granted { token } = other.claim(digest(1), &id(2), at(0)).await else { panic!() };

    // Frozen: memory stands in, and knows at least the seeders that this tracker has heard of.
    server.freeze(true);
    assert!(matches!(one.claim(digest(1), &id(1), at(1)).await, Claimed::Granted { .. }));
    assert!(one.is_away());
    assert_eq!(one.seeders(at(1)).await.len(), 1);
    assert!(one.version(at(1)).await.is_some());
    server.freeze(false);
    let back = async |store: &SharedSeeders| {
        let found = tokio::time::timeout(DEADLINE, async {
            while store.is_away() {
                store.sweep(at(2)).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        found.await.expect("Redis is found again");
    };
    back(&one).await;
    // What Redis knew counts again.
    assert_eq!(one.claim(digest(1), &id(1), at(2)).await, Claimed::Held(id(2)));

    // A Redis that lost everything is told of the seeders at once, and never gives a token again.
    server.kill();
    assert_eq!(one.seeders(at(3)).await.len(), 1);
    server.start_again();
    back(&one).await;
    assert_eq!(one.seeders(at(3)).await.iter().map(|(known, _)| known.info.clone()).collect::<Vec<_>>(), [first]);
    let Claimed::Granted { token: later } = one.claim(digest(1), &id(1), at(3)).await else { panic!() };
    assert!(later > token);
}

#[tokio::test]
async fn garbage_about_seeders_is_left_out() {
    if !is_installed() {
        return;
    }
    let server = RedisServer::start();
    let config = server.config(&limits());
    let store = seeders(&config).await;
    for number in 1..=3 {
        store.heartbeat(seeder(number, number, SeederState::Up), &[], at(0)).await.unwrap();
    }
    let Claimed::Granted { token } = store.claim(digest(1), &id(1), at(0)).await else { panic!() };
    let prefix = format!("eagle:{{{}}}:", config.store_name);
    server.command(&format!("HSET {prefix}about seeder1 nonsense"));
    server.command(&format!("HSET {prefix}first seeder2 nonsense"));
    server.command(&format!("ZADD {prefix}alive 99999999999999999 not/a/seeder"));
    server.command(&format!("HSET {prefix}leases {} nonsense", digest(1)));
    server.command(&format!("SET {prefix}token nonsense"));
    let seen = store.seeders(at(0)).await;
    assert_eq!(seen.iter().map(|(known, _)| known.info.id.clone()).collect::<Vec<_>>(), [id(3)]);
    // A lease that makes no sense is none.
    let Claimed::Granted { token: next } = store.claim(digest(1), &id(2), at(0)).await else { panic!() };
    assert!(next >= token);
    assert!(!store.is_away(), "garbage is no failure of Redis");
    // A value of another kind is: this tracker goes on by itself.
    server.command(&format!("DEL {prefix}leases"));
    server.command(&format!("SET {prefix}leases text"));
    assert!(matches!(store.claim(digest(2), &id(1), at(0)).await, Claimed::Granted { .. }));
    assert!(store.is_away());
}

#[tokio::test]
async fn garbage_in_redis_is_left_out() {
    if !is_installed() {
        return;
    }
    let server = RedisServer::start();
    let config = server.config(&limits());
    let store = connected(&config).await;
    let own = blob(1, PieceSet::Complete, Event::Completed);
    for number in 1..=3 {
        store.announce(&node(number, NodeRole::Proxy), false, std::slice::from_ref(&own), at(0)).await.unwrap();
    }
    let prefix = format!("eagle:{{{}}}:", config.store_name);
    server.command(&format!("HSET {prefix}node:node1 info nonsense"));
    server.command(&format!("HSET {prefix}proxies:{} node2 nonsense", digest(1)));
    server.command(&format!("ZADD {prefix}digests 0 sha256:short"));
    server.command(&format!("ZADD {prefix}nodes 1 not/a/node"));
    let asker = node(9, NodeRole::Proxy).id;
    let view = store.view(digest(1), &asker, 1, at(0)).await.unwrap();
    assert_eq!(view.peers.iter().map(|peer| peer.named().info().id.to_string()).collect::<Vec<_>>(), ["node3"]);
    assert_eq!(store.swarms(None, 10, at(0)).await.len(), 1);
    store.sweep(at(1)).await;
    assert!(!store.health().away, "garbage is no failure of Redis");
    // A value of another kind is: this tracker goes on by itself.
    server.command(&format!("SET {prefix}swarm:{} text", digest(2)));
    store.view(digest(2), &asker, 1, at(0)).await;
    assert!(store.health().away);
    assert!(store.announce(&node(1, NodeRole::Proxy), false, &[own], at(1)).await.is_ok());
}

#[tokio::test]
async fn a_password_and_tls() {
    if !is_installed() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    let certificate = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(file("cert.pem"), certificate.cert.pem()).unwrap();
    std::fs::write(file("key.pem"), certificate.signing_key.serialize_pem()).unwrap();
    std::fs::write(file("password"), "hunter2\n").unwrap();
    std::fs::write(file("wrong"), "hunter3\n").unwrap();
    // Several tests in one process may have come before.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();

    let plain = RedisServer::with(&["--requirepass", "hunter2"]);
    let config = plain.config(&limits());
    let with = |password: &str| TrackerConfig { store_password_file: Some(file(password)), ..config.clone() };
    connected(&with("password")).await;
    for bad in [config.clone(), with("wrong")] {
        let store = open(&bad, Duration::ZERO);
        store.sweep(at(0)).await;
        assert!(store.health().away);
    }

    let tls_port = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port().to_string();
    let path = |name: &str| file(name).display().to_string();
    let (cert, key) = (path("cert.pem"), path("key.pem"));
    let arguments =
        ["--tls-port", &tls_port, "--tls-cert-file", &cert, "--tls-key-file", &key, "--tls-auth-clients", "no"];
    let server = RedisServer::with(&[&arguments[..], &["--tls-ca-cert-file", &cert]].concat());
    let config = TrackerConfig {
        store: format!("rediss://localhost:{tls_port}").parse().unwrap(),
        store_ca_file: Some(file("cert.pem")),
        ..server.config(&limits())
    };
    connected(&config).await;
    // Whom it does not know by the authority given, it does not talk to.
    let store = open(&TrackerConfig { store_ca_file: None, ..config }, Duration::ZERO);
    store.sweep(at(0)).await;
    assert!(store.health().away);
}
