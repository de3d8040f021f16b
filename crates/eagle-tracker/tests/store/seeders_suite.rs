//! What every store of seeders and leases keeps to, against the rules of the core, on virtual time.

use std::collections::{BTreeMap, BTreeSet};

use eagle_core::{
    Digest, NodeId, Timestamp,
    tracker::{
        leases::Claimed,
        seeders::{SeederInfo, SeederState},
    },
};
use eagle_tracker::{
    api::seeders::{LEASE_PATIENCE, LIFETIME, LeaseRenewal, MAX_LEASES_PER_SEEDER, MAX_SEEDERS},
    store::{MemorySeeders, SeederStore},
};
use proptest::prelude::*;

use crate::suite::{at, digest};

pub(crate) fn seeder(number: u16, url: u16, state: SeederState) -> SeederInfo {
    SeederInfo {
        id: id(number),
        url: format!("http://seeder-{url}:55008/"),
        storage: "fs:".to_owned(),
        capacity: 1 << 40,
        state,
    }
}

pub(crate) fn id(number: u16) -> NodeId {
    format!("seeder{number}").parse().unwrap()
}

#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// With the leases that it holds, as far as they got on.
    Heartbeat {
        seeder: u16,
        url: u16,
        draining: bool,
        progress: bool,
    },
    Claim {
        seeder: u16,
        blob: u8,
    },
    /// By one that may not hold it any more.
    Release {
        seeder: u16,
        blob: u8,
    },
    Leave(u16),
    Wait(u64),
    Sweep,
}

pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let draining = prop::bool::weighted(0.2);
    let step = prop_oneof![
        5 => (0u16..4, 0u16..5, draining, prop::bool::weighted(0.7))
            .prop_map(|(seeder, url, draining, progress)| Step::Heartbeat { seeder, url, draining, progress }),
        4 => (0u16..4, 0u8..4).prop_map(|(seeder, blob)| Step::Claim { seeder, blob }),
        2 => (0u16..4, 0u8..4).prop_map(|(seeder, blob)| Step::Release { seeder, blob }),
        1 => (0u16..4).prop_map(Step::Leave),
        3 => (1u64..8).prop_map(Step::Wait),
        1 => Just(Step::Sweep),
    ];
    proptest::collection::vec(step, 1..60)
}

/// The same steps on a store and on the core's rules in memory: the same answers. Tokens may be others, but have to grow.
/// No later than `end` on the store's clock.
pub(crate) async fn run(store: &dyn SeederStore, steps: Vec<Step>, end: Timestamp) {
    let rules = MemorySeeders::default();
    let mut now = Timestamp(0);
    // Of each lease that a seeder was given: its tokens in the store and in the rules, and how far it is.
    let mut given: BTreeMap<(u16, u8), (u64, u64, u64)> = BTreeMap::new();
    let mut last_token = 0;
    for step in steps {
        match step {
            Step::Heartbeat { seeder: number, url, draining, progress } => {
                let state = if draining { SeederState::Draining } else { SeederState::Up };
                let info = seeder(number, url, state);
                let (mut ours, mut theirs) = (Vec::new(), Vec::new());
                for ((holder, blob), (token, other, at)) in &mut given {
                    if *holder == number {
                        *at += u64::from(progress);
                        ours.push(LeaseRenewal { digest: digest(*blob), token: *token, progress: *at });
                        theirs.push(LeaseRenewal { digest: digest(*blob), token: *other, progress: *at });
                    }
                }
                let lost: BTreeSet<Digest> =
                    store.heartbeat(info.clone(), &ours, now).await.unwrap().into_iter().collect();
                let expected = rules.heartbeat(info, &theirs, now).await.unwrap();
                assert_eq!(lost, expected.into_iter().collect());
                given.retain(|(holder, blob), _| *holder != number || !lost.contains(&digest(*blob)));
            }
            Step::Claim { seeder: number, blob } => {
                let claimed = store.claim(digest(blob), &id(number), now).await;
                let expected = rules.claim(digest(blob), &id(number), now).await;
                match (claimed, expected) {
                    (Claimed::Granted { token }, Claimed::Granted { token: other }) => {
                        assert!(token > last_token, "{token} after {last_token}");
                        last_token = token;
                        given.insert((number, blob), (token, other, 0));
                    }
                    (claimed, expected) => assert_eq!(claimed, expected),
                }
            }
            Step::Release { seeder: number, blob } => {
                if let Some((token, other, _)) = given.remove(&(number, blob)) {
                    store.release(digest(blob), token, now).await;
                    rules.release(digest(blob), other, now).await;
                }
            }
            Step::Leave(number) => {
                store.leave(&id(number), now).await;
                rules.leave(&id(number), now).await;
            }
            Step::Wait(seconds) => now = end.min(now + std::time::Duration::from_secs(seconds)),
            Step::Sweep => {
                store.sweep(now).await;
                rules.sweep(now).await;
            }
        }
        let list = async |store: &dyn SeederStore| {
            let seeders = store.seeders(now).await.into_iter();
            seeders.map(|(known, _)| (known.info, known.last)).collect::<Vec<_>>()
        };
        assert_eq!(list(store).await, list(&rules).await);
        assert_eq!(store.version(now).await, rules.version(now).await);
        for number in 0..4 {
            assert_eq!(store.seeder(&id(number), now).await, rules.seeder(&id(number), now).await);
        }
    }
    let later = now + LIFETIME;
    store.sweep(later).await;
    let stats = store.stats();
    assert_eq!((stats.seeders, stats.leases), (0, 0), "everything is freed in the end");
}

async fn token(store: &dyn SeederStore, blob: u8, seeder: u16, now: Timestamp) -> u64 {
    match store.claim(digest(blob), &id(seeder), now).await {
        Claimed::Granted { token } => token,
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn a_lease_without_progress_ends(store: &dyn SeederStore) {
    let mut now = at(0);
    let token = token(store, 1, 1, now).await;
    let renewal = |progress| [LeaseRenewal { digest: digest(1), token, progress }];
    let seeder = seeder(1, 1, SeederState::Up);
    // It is renewed all the time, and gets on once.
    while now < at(0) + LEASE_PATIENCE {
        assert!(store.heartbeat(seeder.clone(), &renewal(5), now).await.unwrap().is_empty());
        assert_eq!(store.claim(digest(1), &id(2), now).await, Claimed::Held(id(1)));
        now = now + LIFETIME / 2;
    }
    assert_eq!(store.heartbeat(seeder.clone(), &renewal(5), now).await.unwrap(), [digest(1)]);
    let second = match store.claim(digest(1), &id(2), now).await {
        Claimed::Granted { token } => token,
        other => panic!("{other:?}"),
    };
    assert!(second > token);
    // The first one's token is worth nothing any more, neither to renew nor to give back.
    assert_eq!(store.heartbeat(seeder, &renewal(9), now).await.unwrap(), [digest(1)]);
    store.release(digest(1), token, now).await;
    assert_eq!(store.claim(digest(1), &id(3), now).await, Claimed::Held(id(2)));
    store.leave(&id(2), now).await;
    assert!(matches!(store.claim(digest(1), &id(3), now).await, Claimed::Granted { .. }));
}

pub(crate) async fn leases_and_seeders_are_bounded(store: &dyn SeederStore) {
    let blob = |number: usize| Digest::of(&number.to_le_bytes());
    for number in 0..MAX_LEASES_PER_SEEDER {
        assert!(matches!(store.claim(blob(number), &id(1), at(0)).await, Claimed::Granted { .. }));
    }
    assert_eq!(store.claim(blob(MAX_LEASES_PER_SEEDER), &id(1), at(0)).await, Claimed::Full);
    assert!(matches!(store.claim(blob(MAX_LEASES_PER_SEEDER), &id(2), at(0)).await, Claimed::Granted { .. }));
    for number in 0..u16::try_from(MAX_SEEDERS).unwrap() {
        store.heartbeat(seeder(number, number, SeederState::Up), &[], at(0)).await.unwrap();
    }
    let one_more = seeder(5_000, 5_000, SeederState::Up);
    assert!(store.heartbeat(one_more.clone(), &[], at(1)).await.is_err());
    // Those that are silent make room.
    let later = at(0) + LIFETIME;
    store.heartbeat(one_more.clone(), &[], later).await.unwrap();
    assert_eq!(store.seeders(later).await.len(), 1);
}
