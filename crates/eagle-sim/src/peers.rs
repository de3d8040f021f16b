//! How nodes come to know each other: starts, announces, and the tracker's answers.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use eagle_core::{
    FarGroup, PieceSet, Timestamp,
    swarm::Swarm,
    tracker::{Asker, Candidate, DefaultPolicy, Flows, NodeLoad, Ownership, PeerPolicy as _},
    wire::control::PeerAddress,
};
use rand::{RngExt as _, seq::SliceRandom as _};

use crate::{
    Plan, Start,
    event::Event,
    network::nanos,
    node::{key, number},
    world::World,
};

/// Times that a first contact crosses the network: TCP, TLS, the multiplexer and the hello, in both
/// directions.
const CONNECT_LATENCIES: u64 = 8;
/// Characters of the identity of a real node, so that messages have their real size.
const NODE_ID: usize = 52;
/// Port that nodes listen on.
const PORT: u16 = 61007;

/// What the tracker knows of one blob.
#[derive(Debug, Default)]
pub(crate) struct TrackerState {
    /// Members in the order in which they came, with what they owned when they last said so.
    members: Vec<Announced>,
    /// Place of each node among the members.
    places: std::collections::BTreeMap<u32, usize>,
}

/// A member as it last announced itself.
#[derive(Debug)]
struct Announced {
    node: u32,
    owned: Ownership,
    load: NodeLoad,
    joined: u64,
}

impl TrackerState {
    pub(crate) fn put(&mut self, now: u64, node: u32, owned: Ownership, load: NodeLoad) {
        let members = &mut self.members;
        let place = *self.places.entry(node).or_insert_with(|| {
            members.push(Announced { node, owned: Ownership::Empty, load, joined: now });
            members.len() - 1
        });
        members[place].owned = owned;
        members[place].load = load;
    }
}

pub(crate) fn ownership(swarm: &Swarm) -> Ownership {
    Ownership::new(&PieceSet::from(swarm.have()), swarm.geometry().pieces()).unwrap_or(Ownership::Empty)
}

/// When each node starts, nanoseconds, by the order of the groups.
pub(crate) fn starts(plan: &Plan, rng: &mut impl rand::Rng) -> Vec<u64> {
    let mut starts = Vec::new();
    for group in &plan.groups {
        let mut at = 0.0;
        let mut times: Vec<u64> = (0..group.count)
            .map(|index| match group.start {
                Start::Together => 0,
                Start::Spread(over) => nanos(over.mul_f64(f64::from(index) / f64::from(group.count.max(1)))),
                Start::Poisson(over) => {
                    let now = at;
                    // Times between independent events are distributed exponentially.
                    at += -rng.random_range(f64::EPSILON..1.0).ln() / f64::from(group.count);
                    nanos(over.mul_f64(now))
                }
            })
            .collect();
        times.shuffle(rng);
        starts.extend(times);
    }
    starts
}

impl World<'_> {
    pub(crate) fn start(&mut self, node: u32) {
        self.nodes[node as usize].started = Some(self.now);
        self.announce(node);
    }

    /// Tells the tracker what a node owns, and asks it for peers while something is missing.
    pub(crate) fn announce(&mut self, node: u32) {
        if self.nodes[node as usize].gone {
            return;
        }
        if self.plan.tracker.away.is_some_and(|away| self.now >= nanos(away)) {
            return self.know_seeders(node);
        }
        let mut wants = false;
        for blob in 0..self.blobs() {
            let state = &self.nodes[node as usize];
            let Some(member) = &state.members[usize::from(blob)] else { continue };
            let owned = ownership(&member.swarm);
            let complete = owned.is_complete();
            if !complete && state.group.is_some() {
                wants = true;
                let peers = self.named(node, blob, &owned);
                self.connect(node, blob, peers, true);
            }
            let load = self.nodes[node as usize].up.node_load();
            self.tracker[usize::from(blob)].put(self.now, node, owned, load);
        }
        if wants {
            self.after(nanos(self.plan.tracker.interval), Event::Announce(node));
        }
    }

    /// Without a tracker a node knows the seeder of each blob, and no more.
    fn know_seeders(&mut self, node: u32) {
        for blob in 0..self.blobs() {
            let state = &self.nodes[node as usize];
            if state.group.is_some() && state.started == Some(self.now) {
                self.connect(node, blob, vec![self.seeder(blob)], false);
            }
        }
    }

    /// Connects a node to others; it takes as long for all of them as for the first.
    pub(crate) fn connect(&mut self, node: u32, blob: u16, peers: Vec<u32>, by_tracker: bool) {
        if let Some(first) = peers.first() {
            let delay = self.latency(node, *first) * CONNECT_LATENCIES;
            self.after(delay, Event::Connected { node, blob, peers: peers.into(), by_tracker });
        }
    }

    /// A node as its peers tell each other of it.
    pub(crate) fn address(&self, node: u32) -> Option<PeerAddress> {
        let [_, a, b, c] = node.to_be_bytes();
        Some(PeerAddress {
            id: format!("{node:0NODE_ID$}").parse().ok()?,
            address: SocketAddr::from(([10, a, b, c], PORT)),
        })
    }

    /// A node has been told of others.
    pub(crate) fn connect_told(&mut self, node: u32, blob: u16, told: &[PeerAddress], most: usize) {
        let numbers = told.iter().filter_map(|peer| peer.id.as_str().parse::<u32>().ok());
        let swarm = self.nodes[node as usize].members[usize::from(blob)].as_ref().map(|member| &member.swarm);
        let fresh = |peer: &u32| *peer != node && swarm.is_some_and(|swarm| !swarm.has_peer(key(*peer)));
        let peers = numbers.filter(fresh).take(most).collect();
        self.connect(node, blob, peers, false);
    }

    /// The peers in the tracker's answer.
    fn named(&mut self, node: u32, blob: u16, owned: &Ownership) -> Vec<u32> {
        let TrackerState { members, .. } = &self.tracker[usize::from(blob)];
        // As the tracker's store does it: a run of its members from a random place.
        let seen = self.plan.tracker.seen;
        let first = if members.len() > seen { self.rng.random_range(0..members.len()) } else { 0 };
        let run = (0..members.len().min(seen)).map(|index| &members[(first + index) % members.len()]);
        let seeder = self.seeder(blob);
        let mut seen: Vec<u32> = Vec::new();
        let mut candidates: Vec<Candidate> = Vec::new();
        for member in run.filter(|member| member.node != node && member.node != seeder) {
            seen.push(member.node);
            candidates.push(Candidate {
                role: self.nodes[member.node as usize].role,
                place: self.nodes[member.node as usize].labels,
                pieces: member.owned.clone(),
                load: Some(member.load),
                age: Duration::from_nanos(self.now - member.joined),
            });
        }
        seen.push(seeder);
        candidates.push(Candidate {
            role: self.nodes[seeder as usize].role,
            place: self.nodes[seeder as usize].labels,
            pieces: Ownership::Complete,
            load: Some(self.nodes[seeder as usize].up.node_load()),
            age: Duration::from_nanos(self.now),
        });
        let asker = Asker { place: self.nodes[node as usize].labels, pieces: owned };
        let limit = self.plan.tracker.peers_per_answer;
        let chosen = DefaultPolicy.select(asker, &candidates, &Flows::default(), limit, self.rng.random());
        chosen.into_iter().map(|index| seen[index]).collect()
    }

    /// The peers of an answer are connected, as far as they are there.
    pub(crate) fn connected(&mut self, node: u32, blob: u16, peers: &[u32], by_tracker: bool) {
        let gone: BTreeSet<u32> = peers.iter().copied().filter(|peer| self.nodes[*peer as usize].gone).collect();
        let groups: Vec<_> = peers.iter().map(|peer| self.far_group(node, *peer)).collect();
        let seeders = self.plan.seeders.count;
        let state = &mut self.nodes[node as usize];
        let banned = state.banned.clone();
        let Some(swarm) = state.swarm(blob) else { return };
        if by_tracker {
            swarm.handle_tracker(Timestamp(self.now));
        }
        for (&peer, group) in peers.iter().zip(groups) {
            if !gone.contains(&peer) && !banned.contains(&peer) {
                match peer < seeders {
                    true => swarm.handle_seeder(key(peer), group),
                    false => swarm.handle_peer(key(peer), group),
                }
            }
        }
        self.settle(node, blob);
    }

    /// Where a peer is, as a node's swarm is told.
    pub(crate) fn far_group(&self, node: u32, peer: u32) -> Option<FarGroup> {
        let here = self.nodes[node as usize].place;
        self.nodes[peer as usize].place.group_seen_from(here).filter(|_| self.plan.labels)
    }

    /// The connections to a node are lost.
    pub(crate) fn lost(&mut self, gone: u32) {
        for other in 0..u32::try_from(self.nodes.len()).unwrap_or(u32::MAX) {
            for blob in 0..self.blobs() {
                let now = Timestamp(self.now);
                let Some(swarm) = self.nodes[other as usize].swarm(blob) else { continue };
                if swarm.has_peer(key(gone)) {
                    swarm.handle_peer_left(now, key(gone));
                    self.settle(other, blob);
                }
            }
            for transfer in self.nodes[other as usize].up.forget(gone) {
                if let Some(swarm) = self.nodes[other as usize].swarm(transfer.blob) {
                    swarm.handle_uploaded(key(gone), transfer.piece, false);
                }
                self.admit(other);
            }
        }
    }

    pub(crate) fn ban(&mut self, node: u32, peer: eagle_core::swarm::PeerKey) {
        let now = Timestamp(self.now);
        self.nodes[node as usize].banned.insert(number(peer));
        for blob in 0..self.blobs() {
            if let Some(swarm) = self.nodes[node as usize].swarm(blob) {
                swarm.handle_peer_left(now, peer);
            }
        }
    }
}
