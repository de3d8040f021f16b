//! What several trackers say of one cluster, as one.
//!
//! Trackers that share a store all know the same. Those with a memory of their own know the same of nodes, for every node tells all of
//! them that it lives, how busy it is, and what it received from whom (`eagle_tracker::client`). Of blobs, each knows those that it is the first
//! for; of the others it knows what seeders have, which announce everything to everybody, and, while another tracker is away and for half a
//! minute after, what it stands in for. So hardly anything may be added up.
//!
//! A node tells each tracker at another time what it received since it last told that one, and most often those that have the blobs it
//! waits for. Of two rates of the same thing, the greater is the one that is less of an average.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, btree_map::Entry},
};

use eagle_core::{Digest, NodeRole};
use eagle_tracker::api::{
    Overview, PeerSummary, RackSummary, StoreStatus, SwarmPage, SwarmSummary, TopologyPage, ZoneFlow, ZoneName,
    ZoneSummary,
};

/// Swarms that changed last, as many as a tracker gives. Those of all trackers are among those of each; behind them come some of which only a
/// tracker has spoken that knows nothing but the seeders of them.
const ACTIVE: usize = 50;

/// The cluster at a glance. Announces are each tracker's own, and added up; all else is about the cluster. The number of blobs is at least that: seeders
/// announce theirs to every tracker, but blobs that only proxies have are known to one each.
pub(crate) fn overview(said: Vec<Overview>) -> Overview {
    let greatest = |number: fn(&Overview) -> usize| said.iter().map(number).max().unwrap_or_default();
    let text = |name: fn(&Overview) -> &str| {
        let mut names: Vec<&str> = Vec::new();
        said.iter().map(name).for_each(|name| {
            if !names.contains(&name) {
                names.push(name)
            }
        });
        names.join(", ")
    };
    let mut merged = Overview {
        version: text(|overview| &overview.version),
        // Since when all of them are there.
        uptime_seconds: said.iter().map(|overview| overview.uptime_seconds).min_by(f64::total_cmp).unwrap_or_default(),
        peers: greatest(|overview| overview.peers),
        seeders: greatest(|overview| overview.seeders),
        blobs: greatest(|overview| overview.blobs),
        entries: greatest(|overview| overview.entries),
        announces_per_second: said.iter().map(|overview| overview.announces_per_second).sum(),
        bytes_per_second: said.iter().map(|overview| overview.bytes_per_second).max().unwrap_or_default(),
        store: StoreStatus {
            kind: text(|overview| &overview.store.kind),
            away: said.iter().any(|overview| overview.store.away),
        },
        active: Vec::new(),
    };
    merged.active = swarms(said.into_iter().map(|overview| overview.active).collect());
    merged.blobs = merged.blobs.max(merged.active.len());
    merged.active.sort_by(|a, b| a.changed_seconds.total_cmp(&b.changed_seconds));
    merged.active.truncate(ACTIVE);
    merged
}

/// Whether what a node announced to one tracker is, but for seeders and fail-over, something else than what it announced to another.
pub(crate) fn are_apart(said: &[Overview]) -> bool {
    said.iter().all(|overview| overview.store.kind == "memory")
}

/// Swarms in the order of their digests, each once.
pub(crate) fn swarms(lists: Vec<Vec<SwarmSummary>>) -> Vec<SwarmSummary> {
    let mut merged: BTreeMap<Digest, SwarmSummary> = BTreeMap::new();
    for swarm in lists.into_iter().flatten() {
        match merged.entry(swarm.digest) {
            Entry::Vacant(entry) => {
                entry.insert(swarm);
            }
            Entry::Occupied(mut entry) => same_swarm(entry.get_mut(), swarm),
        }
    }
    merged.into_values().collect()
}

/// Of what two trackers say of a swarm, that of the one with the most peers, and the greater rate.
fn same_swarm(swarm: &mut SwarmSummary, other: SwarmSummary) {
    let bytes_per_second = swarm.bytes_per_second.max(other.bytes_per_second);
    if rank(&other) > rank(swarm) {
        *swarm = other;
    }
    swarm.bytes_per_second = bytes_per_second;
}

/// By what an entry of a swarm is taken: the first tracker of its blob, or the one that stands in for it, has all of its peers; others have the
/// seeders alone, or those nodes that have not noticed yet who is away or back. Who has most is who the nodes go by.
const fn rank(swarm: &SwarmSummary) -> (usize, usize) {
    (swarm.peers, swarm.complete)
}

/// One swarm with its members, as the tracker has it that has most of them; `None` when no tracker knows the blob.
pub(crate) fn swarm(said: Vec<Option<SwarmPage>>) -> Option<SwarmPage> {
    let rates = said.iter().flatten().map(|page| page.summary.bytes_per_second);
    let bytes_per_second = rates.max().unwrap_or_default();
    let mut page = said.into_iter().flatten().max_by_key(|page| rank(&page.summary))?;
    page.summary.bytes_per_second = bytes_per_second;
    Some(page)
}

/// Nodes in the order of their identities, each once; `are_apart` says whether the trackers have different blobs of a node.
pub(crate) fn nodes(lists: Vec<Vec<PeerSummary>>, are_apart: bool) -> Vec<PeerSummary> {
    let mut merged: BTreeMap<String, PeerSummary> = BTreeMap::new();
    for node in lists.into_iter().flatten() {
        match merged.entry(node.peer.id.clone()) {
            Entry::Vacant(entry) => {
                entry.insert(node);
            }
            Entry::Occupied(mut entry) => same_node(entry.get_mut(), node, are_apart),
        }
    }
    merged.into_values().collect()
}

/// What two trackers say of a node: what it last told one of them, and the greater of two rates.
fn same_node(node: &mut PeerSummary, other: PeerSummary, are_apart: bool) {
    let blobs = match other.peer.role {
        NodeRole::Proxy if are_apart => node.blobs.saturating_add(other.blobs),
        // A seeder announces all of its blobs to each.
        _ => node.blobs.max(other.blobs),
    };
    let age_seconds = node.age_seconds.max(other.age_seconds);
    let (now, rates) = (node.activity, other.activity);
    if other.last_announce_seconds < node.last_announce_seconds {
        *node = other;
    }
    (node.blobs, node.age_seconds) = (blobs, age_seconds);
    node.activity.received_bytes_per_second = now.received_bytes_per_second.max(rates.received_bytes_per_second);
    node.activity.sent_bytes_per_second = now.sent_bytes_per_second.max(rates.sent_bytes_per_second);
}

/// Zones and what goes between them. Every tracker knows all nodes and all flows.
pub(crate) fn topology(said: Vec<TopologyPage>) -> TopologyPage {
    let mut zones: BTreeMap<ZoneName, ZoneSummary> = BTreeMap::new();
    let mut flows: BTreeMap<(ZoneName, ZoneName), ZoneFlow> = BTreeMap::new();
    let next = said.iter().filter_map(|page| page.next).max();
    for page in said {
        for zone in page.zones {
            match zones.entry(ZoneName { region: zone.region.clone(), zone: zone.zone.clone() }) {
                Entry::Vacant(entry) => {
                    entry.insert(zone);
                }
                Entry::Occupied(mut entry) => same_zone(entry.get_mut(), zone),
            }
        }
        for flow in page.flows {
            match flows.entry((flow.from.clone(), flow.to.clone())) {
                Entry::Vacant(entry) => {
                    entry.insert(flow);
                }
                Entry::Occupied(mut entry) => {
                    let known = entry.get_mut();
                    let bytes = known.bytes.max(flow.bytes);
                    if flow.bytes_per_second > known.bytes_per_second {
                        *known = flow;
                    }
                    known.bytes = bytes;
                }
            }
        }
    }
    let mut flows: Vec<ZoneFlow> = flows.into_values().collect();
    flows.sort_by_key(|flow| Reverse((flow.bytes_per_second, flow.bytes)));
    TopologyPage { zones: zones.into_values().collect(), flows, next }
}

/// What two trackers say of a zone: not every node may have told both yet that it lives.
fn same_zone(zone: &mut ZoneSummary, other: ZoneSummary) {
    (zone.peers, zone.seeders) = (zone.peers.max(other.peers), zone.seeders.max(other.seeders));
    let mut racks: BTreeMap<Option<String>, usize> = BTreeMap::new();
    for RackSummary { rack, peers } in zone.racks.drain(..).chain(other.racks) {
        let known = racks.entry(rack).or_default();
        *known = peers.max(*known);
    }
    zone.racks = racks.into_iter().map(|(rack, peers)| RackSummary { rack, peers }).collect();
}

#[cfg(test)]
mod tests;
