//! What every store keeps to, against a model and by example, on virtual time.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use eagle_core::{Digest, Geometry, NodeId, NodeRole, PeerInfo, PieceSet, Timestamp};
use eagle_tracker::{
    api::{BlobAnnounce, Event, PeerAt},
    store::{Applied, PeerStore, Refusal, StoreError, StoreLimits},
};
use proptest::prelude::*;

pub(crate) const TTL: Duration = Duration::from_secs(90);

pub(crate) fn limits() -> StoreLimits {
    StoreLimits { ttl: TTL, peers: 1_000, blobs: 1_000, peers_per_blob: 1_000, blobs_per_peer: 1_000 }
}

pub(crate) fn digest(number: u8) -> Digest {
    Digest::of(&[number])
}

pub(crate) fn node(number: u8, role: NodeRole) -> PeerInfo {
    let address = ([10, 0, 0, number], 61007).into();
    PeerInfo { id: format!("node{number}").parse().unwrap(), address, role, ..PeerInfo::example() }
}

fn geometry() -> Geometry {
    Geometry::auto(10 << 20).unwrap()
}

pub(crate) fn blob(number: u8, pieces: PieceSet, event: Event) -> BlobAnnounce {
    BlobAnnounce { digest: digest(number), geometry: geometry(), pieces, event, want_peers: true }
}

#[derive(Debug, Clone)]
pub(crate) enum Step {
    Announce { node: u8, seeder: bool, full: bool, blobs: Vec<(u8, u32, bool)> },
    Leave(u8),
    Wait(u64),
    Sweep,
}

pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let blobs = proptest::collection::vec((0u8..6, 0..=geometry().pieces(), prop::bool::weighted(0.2)), 0..5);
    let step = prop_oneof![
        6 => (0u8..6, prop::bool::weighted(0.3), prop::bool::weighted(0.2), blobs)
            .prop_map(|(node, seeder, full, blobs)| Step::Announce { node, seeder, full, blobs }),
        1 => (0u8..6).prop_map(Step::Leave),
        2 => (1u64..60).prop_map(Step::Wait),
        1 => Just(Step::Sweep),
    ];
    proptest::collection::vec(step, 1..60)
}

/// What a store should know: nodes with their last announce and their blobs with the pieces owned.
#[derive(Debug, Default)]
struct Model {
    nodes: BTreeMap<NodeId, (PeerInfo, Timestamp, BTreeMap<Digest, u32>)>,
}

impl Model {
    fn expire(&mut self, now: Timestamp) {
        self.nodes.retain(|_, (_, last, _)| now - *last < TTL);
    }

    /// Applies an announce; says whether the node was known.
    fn announce(&mut self, info: &PeerInfo, full: bool, blobs: &[(u8, u32, bool)], now: Timestamp) -> bool {
        let known = self.nodes.get(&info.id).is_some_and(|(stored, ..)| stored.role == info.role);
        if !known {
            self.nodes.remove(&info.id);
        }
        let (stored, last, owned) =
            self.nodes.entry(info.id.clone()).or_insert_with(|| (info.clone(), now, BTreeMap::new()));
        (*stored, *last) = (info.clone(), now);
        let mut mentioned = BTreeSet::new();
        for (number, count, evicted) in blobs {
            if *evicted {
                owned.remove(&digest(*number));
            } else {
                owned.insert(digest(*number), *count);
                mentioned.insert(digest(*number));
            }
        }
        if full {
            owned.retain(|digest, _| mentioned.contains(digest));
        }
        known
    }

    fn members(&self, blob: Digest) -> Vec<(String, u32)> {
        let members =
            self.nodes.values().filter_map(|(info, _, owned)| Some((info.id.to_string(), *owned.get(&blob)?)));
        members.collect()
    }
}

async fn agrees(store: &dyn PeerStore, model: &Model, now: Timestamp) {
    let nodes = store.nodes(None, 100, now).await;
    let seen: Vec<_> = nodes.iter().map(|node| (node.peer.clone(), node.blobs)).collect();
    let expected: Vec<_> = model.nodes.values().map(|(info, _, owned)| (PeerAt::from(info), owned.len())).collect();
    assert_eq!(seen, expected);

    let mut swarms = BTreeMap::new();
    for number in 0..6 {
        let blob = digest(number);
        let expected = model.members(blob);
        let found = store.swarm(blob, None, 100, now).await;
        let members: Vec<_> = found
            .iter()
            .flat_map(|(_, members)| members)
            .map(|member| (member.peer.id.clone(), member.pieces))
            .collect();
        assert_eq!(members, expected);
        if let Some((summary, members)) = found {
            assert_eq!(summary.peers, members.len());
            assert_eq!(summary.complete, members.iter().filter(|member| member.complete).count());
            assert_eq!(summary.seeders, members.iter().filter(|m| m.peer.role == NodeRole::Seeder).count());
            swarms.insert(blob, summary);
        }
        let asker = node(0, NodeRole::Proxy).id;
        let view = store.view(blob, &asker, 1, now).await;
        let mut candidates: Vec<_> = view
            .iter()
            .flat_map(|view| view.peers.iter().zip(&view.candidates))
            .map(|(peer, seen)| (peer.named().info().id.to_string(), seen.pieces.count(geometry().pieces())))
            .collect();
        candidates.sort();
        assert_eq!(candidates, expected.into_iter().filter(|(id, _)| id != asker.as_str()).collect::<Vec<_>>());
    }
    assert_eq!(store.swarms(None, 100, now).await, swarms.values().cloned().collect::<Vec<_>>());
    let active = store.active(100, now).await;
    assert!(active.is_sorted_by(|a, b| a.changed_seconds <= b.changed_seconds));
    let active: BTreeMap<_, _> = active.into_iter().map(|summary| (summary.digest, summary)).collect();
    assert_eq!(active, swarms);
    for number in 0..6 {
        let id = node(number, NodeRole::Proxy).id;
        let found = store.node(&id, None, 100, now).await;
        let owned = model.nodes.get(&id).map(|(_, _, owned)| owned.clone().into_iter().collect::<Vec<_>>());
        let seen = found.map(|(summary, blobs)| {
            assert_eq!(summary.blobs, blobs.len());
            blobs.into_iter().map(|blob| (blob.digest, blob.owned)).collect::<Vec<_>>()
        });
        assert_eq!(seen, owned);
    }
}

pub(crate) async fn sweep_all(store: &dyn PeerStore, now: Timestamp) {
    for _ in 0..store.sweep_parts() {
        while store.sweep(now).await {}
    }
}

pub(crate) async fn run(store: &dyn PeerStore, steps: Vec<Step>) {
    let mut model = Model::default();
    let mut now = Timestamp(0);
    for step in steps {
        match step {
            Step::Announce { node: number, seeder, full, blobs } => {
                let info = node(number, if seeder { NodeRole::Seeder } else { NodeRole::Proxy });
                let known = model.announce(&info, full, &blobs, now);
                let blobs: Vec<_> = blobs
                    .into_iter()
                    .map(|(number, count, evicted)| {
                        blob(number, PieceSet::Prefix(count), if evicted { Event::Evicted } else { Event::Progress })
                    })
                    .collect();
                let applied = store.announce(&info, full, &blobs, now).await;
                assert_eq!(applied, Ok(Applied { known, refused: Vec::new() }));
            }
            Step::Leave(number) => {
                let id = node(number, NodeRole::Proxy).id;
                model.nodes.remove(&id);
                store.leave(&id).await;
            }
            Step::Wait(seconds) => {
                now = now + Duration::from_secs(seconds);
                model.expire(now);
            }
            Step::Sweep => {
                sweep_all(store, now).await;
                let stats = store.stats();
                let owned = model.nodes.values().map(|(_, _, owned)| owned);
                assert_eq!(stats.peers, model.nodes.len());
                assert_eq!(stats.entries, owned.clone().map(BTreeMap::len).sum::<usize>());
                assert_eq!(stats.blobs, owned.flat_map(BTreeMap::keys).collect::<BTreeSet<_>>().len());
            }
        }
        agrees(store, &model, now).await;
    }
    sweep_all(store, now + TTL).await;
    let stats = store.stats();
    assert_eq!((stats.peers, stats.blobs, stats.entries), (0, 0, 0), "everything is freed in the end");
}

/// Makes an empty store.
pub(crate) type Make<'a> = &'a dyn Fn(StoreLimits) -> Box<dyn PeerStore>;

pub(crate) fn at(seconds: u64) -> Timestamp {
    Timestamp(0) + Duration::from_secs(seconds)
}

pub(crate) async fn announce(store: &dyn PeerStore, node: &PeerInfo, blobs: &[BlobAnnounce]) -> Vec<(Digest, Refusal)> {
    store.announce(node, false, blobs, at(0)).await.unwrap().refused
}

pub(crate) async fn a_seeder_decides_on_the_geometry(make: Make<'_>) {
    let store = make(limits());
    let store = &*store;
    let (proxy, other, seeder) = (node(1, NodeRole::Proxy), node(2, NodeRole::Proxy), node(3, NodeRole::Seeder));
    let right = blob(1, PieceSet::Empty, Event::Started);
    let wrong = BlobAnnounce { geometry: Geometry::auto(99).unwrap(), ..right.clone() };

    assert_eq!(announce(store, &proxy, std::slice::from_ref(&wrong)).await, []);
    // Another proxy does not overrule the first one; its other blobs are taken.
    let good = blob(2, PieceSet::Complete, Event::Completed);
    let refused = announce(store, &other, &[right.clone(), good]).await;
    assert_eq!(refused, [(right.digest, Refusal::Geometry { known: wrong.geometry, announced: right.geometry })]);
    assert!(store.swarm(digest(2), None, 10, at(0)).await.is_some());
    // A seeder does, and who believed otherwise is out.
    assert_eq!(announce(store, &seeder, std::slice::from_ref(&right)).await, []);
    let (summary, members) = store.swarm(right.digest, None, 10, at(0)).await.unwrap();
    assert_eq!((summary.geometry, members.len()), (right.geometry, 1));
    // From then on not even a seeder changes it.
    for info in [&node(4, NodeRole::Seeder), &proxy] {
        assert_eq!(announce(store, info, std::slice::from_ref(&wrong)).await.len(), 1);
    }
    assert_eq!(announce(store, &proxy, &[right]).await, []);
    for number in 1..=4 {
        store.leave(&node(number, NodeRole::Proxy).id).await;
    }
    assert_eq!(store.stats().entries, 0);
}

pub(crate) async fn bounds_hold_and_nobody_is_pushed_out(make: Make<'_>) {
    let store = make(StoreLimits { ttl: TTL, peers: 3, blobs: 2, peers_per_blob: 2, blobs_per_peer: 2 });
    let store = &*store;
    let proxy = |number| node(number, NodeRole::Proxy);
    let own = |number| blob(number, PieceSet::Complete, Event::Completed);
    assert_eq!(announce(store, &proxy(1), &[own(1), own(2)]).await, []);
    assert_eq!(announce(store, &proxy(1), &[own(3)]).await, [(digest(3), Refusal::NodeFull(2))]);
    assert_eq!(announce(store, &proxy(2), &[own(3)]).await, [(digest(3), Refusal::BlobsFull(2))]);
    assert_eq!(announce(store, &proxy(2), &[own(1)]).await, []);
    assert_eq!(announce(store, &proxy(3), &[own(1)]).await, [(digest(1), Refusal::SwarmFull(2))]);
    assert_eq!(store.announce(&proxy(4), false, &[], at(0)).await, Err(StoreError::Full(3)));
    let too_many = blob(2, PieceSet::Prefix(1 << 20), Event::Progress);
    assert_eq!(announce(store, &proxy(3), &[too_many]).await, [(digest(2), Refusal::Pieces(geometry().pieces()))]);
    // Room that is freed can be used.
    store.leave(&proxy(1).id).await;
    assert_eq!(announce(store, &proxy(4), &[own(1), own(3)]).await, []);
}

pub(crate) async fn large_swarms_are_seen_in_part_with_their_seeders(make: Make<'_>) {
    let store = make(StoreLimits { peers: 5_000, peers_per_blob: 5_000, ..limits() });
    let store = &*store;
    let mut info = node(1, NodeRole::Proxy);
    for number in 0..3_000 {
        info.id = format!("p{number}").parse().unwrap();
        announce(store, &info, &[blob(1, PieceSet::Prefix(1), Event::Progress)]).await;
    }
    announce(store, &node(2, NodeRole::Seeder), &[blob(1, PieceSet::Complete, Event::Completed)]).await;
    let mut seen = BTreeSet::new();
    for seed in 0..150 {
        let view = store.view(digest(1), &info.id, seed, at(0)).await.unwrap();
        assert!(view.candidates.len() <= 1_100);
        assert_eq!(view.candidates.iter().filter(|c| c.role == NodeRole::Seeder).count(), 1);
        seen.extend(view.peers.iter().map(|peer| peer.named().info().id.clone()));
        if seen.len() > 2_900 {
            return;
        }
    }
    panic!("{} are seen", seen.len());
}

pub(crate) async fn lists_come_in_pages(make: Make<'_>) {
    let store = make(limits());
    let store = &*store;
    for number in 0..25 {
        announce(store, &node(number, NodeRole::Proxy), &[blob(number, PieceSet::Empty, Event::Started)]).await;
    }
    let mut swarms = Vec::new();
    while let page = store.swarms(swarms.last().copied(), 10, at(0)).await
        && !page.is_empty()
    {
        swarms.extend(page.into_iter().map(|swarm| swarm.digest));
    }
    assert_eq!(swarms, (0..25).map(digest).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>());
    let mut nodes: Vec<String> = Vec::new();
    while let page = store.nodes(nodes.last().map(String::as_str), 10, at(0)).await
        && !page.is_empty()
    {
        nodes.extend(page.into_iter().map(|node| node.peer.id));
    }
    assert_eq!(nodes.len(), 25);
    assert!(nodes.is_sorted());
}

pub(crate) async fn concurrent_announces_expiry_and_leaving_keep_the_counts(make: Make<'_>, rounds: u64) {
    let store: Arc<dyn PeerStore> = make(limits()).into();
    let mut tasks = tokio::task::JoinSet::new();
    for worker in 0..8u64 {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            for round in 0..rounds {
                let number = u8::try_from((worker + round) % 5).unwrap();
                let info = node(number, NodeRole::Proxy);
                let own = |n| blob(n, PieceSet::Complete, Event::Completed);
                let now = at(round * 40);
                match (worker + round) % 4 {
                    0 => store.leave(&info.id).await,
                    1 => drop(store.sweep(now).await),
                    _ => drop(
                        store
                            .announce(&info, round % 3 == 0, &[own(number), own(u8::try_from(round % 7).unwrap())], now)
                            .await,
                    ),
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    sweep_all(&*store, at(1_000_000)).await;
    let stats = store.stats();
    assert_eq!((stats.peers, stats.blobs, stats.entries), (0, 0, 0));
    assert!(store.swarms(None, 10, at(0)).await.is_empty());
}
