//! The cluster at a glance, and where its nodes are. Both look at many nodes and are asked for by every open dashboard, so one
//! look serves all who ask within a moment.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex as StdMutex, PoisonError},
    time::Duration,
};

use eagle_core::NodeRole;
use tokio::{sync::Mutex, time::Instant};

use super::{Shared, reports::Rates};
use crate::api::{Overview, PeerSummary, RackSummary, StoreStatus, ZoneSummary};

/// How old a look may be. People see the difference to a fresh one less than they would feel its cost.
const OVERVIEW_AGE: Duration = Duration::from_secs(1);
/// The same where all nodes are looked at; they seldom move.
const ZONES_AGE: Duration = Duration::from_secs(5);
/// Swarms that are shown: as many as a screen holds.
const ACTIVE: usize = 50;
/// Nodes read at a time.
const NODES_PAGE: usize = 5_000;
/// Most zones, and racks of a zone, that are told apart; the rest is taken together, for labels come from the nodes.
const MAX_GROUPS: usize = 500;

/// What was last seen.
#[derive(Debug, Default)]
pub(super) struct Glances {
    /// Held while somebody looks, so that the others wait for that look and do not take one each.
    overview: Mutex<Option<(Instant, Arc<Overview>)>>,
    zones: Mutex<Option<(Instant, Arc<Vec<ZoneSummary>>)>>,
    rates: Mutex<Option<(Instant, Arc<Rates>)>>,
    /// Announces so far when the rate was last taken.
    announces: StdMutex<Option<(Instant, u64)>>,
}

/// What is kept, unless it is too old; else a new look, which is kept.
async fn glance<T>(kept: &Mutex<Option<(Instant, Arc<T>)>>, age: Duration, look: impl Future<Output = T>) -> Arc<T> {
    // Held across the look on purpose: see `Glances`.
    let mut kept = kept.lock().await;
    if let Some((_, value)) = kept.as_ref().filter(|(at, _)| at.elapsed() < age) {
        return Arc::clone(value);
    }
    let value = Arc::new(look.await);
    *kept = Some((Instant::now(), Arc::clone(&value)));
    value
}

impl Shared {
    pub(super) async fn overview(&self) -> Arc<Overview> {
        glance(&self.glances.overview, OVERVIEW_AGE, async {
            let stats = self.store.stats();
            let health = self.store.health();
            let seeders = self.zones().await.iter().map(|zone| zone.seeders).sum();
            let rates = self.rates().await;
            let mut active = self.store.active(ACTIVE, self.now()).await;
            active.iter_mut().for_each(|swarm| swarm.bytes_per_second = rates.of_blob(&swarm.digest));
            Overview {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                uptime_seconds: self.started.elapsed().as_secs_f64(),
                peers: stats.peers,
                seeders,
                blobs: stats.blobs,
                entries: stats.entries,
                announces_per_second: self.announce_rate(),
                store: StoreStatus { kind: health.kind.to_owned(), away: health.away },
                bytes_per_second: rates.bytes_per_second,
                active,
            }
        })
        .await
    }

    /// How fast bytes move.
    pub(super) async fn rates(&self) -> Arc<Rates> {
        glance(&self.glances.rates, OVERVIEW_AGE, self.reports.rates(self.now())).await
    }

    /// Where the nodes are.
    pub(super) async fn zones(&self) -> Arc<Vec<ZoneSummary>> {
        glance(&self.glances.zones, ZONES_AGE, async {
            let mut zones = Zones::default();
            let mut after: Option<String> = None;
            loop {
                let nodes = self.store.nodes(after.as_deref(), NODES_PAGE, self.now()).await;
                nodes.iter().for_each(|node| zones.add(node));
                match nodes.last() {
                    Some(last) if nodes.len() == NODES_PAGE => after = Some(last.peer.id.clone()),
                    _ => return zones.list(),
                }
            }
        })
        .await
    }

    /// Announces in a second since the rate was last asked for.
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    fn announce_rate(&self) -> f64 {
        let count = self.metrics.announces.get();
        let mut last = self.glances.announces.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, before) = last.replace((Instant::now(), count)).unwrap_or((self.started, 0));
        count.saturating_sub(before) as f64 / since.elapsed().as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

/// Counts of nodes by where they are.
#[derive(Debug, Default)]
struct Zones(BTreeMap<(Option<String>, Option<String>), Zone>);

#[derive(Debug, Default)]
struct Zone {
    peers: usize,
    seeders: usize,
    racks: BTreeMap<Option<String>, usize>,
}

impl Zones {
    fn add(&mut self, node: &PeerSummary) {
        let topology = &node.peer.topology;
        let mut place = (topology.region.clone(), topology.zone.clone());
        if self.0.len() >= MAX_GROUPS && !self.0.contains_key(&place) {
            place = (None, None);
        }
        let zone = self.0.entry(place).or_default();
        zone.peers += 1;
        zone.seeders += usize::from(node.peer.role == NodeRole::Seeder);
        let mut rack = topology.rack.clone();
        if zone.racks.len() >= MAX_GROUPS && !zone.racks.contains_key(&rack) {
            rack = None;
        }
        *zone.racks.entry(rack).or_default() += 1;
    }

    fn list(self) -> Vec<ZoneSummary> {
        let zones = self.0.into_iter().map(|((region, zone), counts)| ZoneSummary {
            region,
            zone,
            peers: counts.peers,
            seeders: counts.seeders,
            racks: counts.racks.into_iter().map(|(rack, peers)| RackSummary { rack, peers }).collect(),
        });
        zones.collect()
    }
}

#[cfg(test)]
mod tests {
    use eagle_core::{PeerInfo, Topology};

    use super::*;
    use crate::api::{NodeActivity, PeerAt};

    fn node(zone: &str, rack: &str, role: NodeRole) -> PeerSummary {
        let topology = Topology { region: None, zone: Some(zone.to_owned()), rack: Some(rack.to_owned()) };
        let info = PeerInfo { role, topology, ..PeerInfo::example() };
        PeerSummary {
            peer: PeerAt::from(&info),
            blobs: 0,
            age_seconds: 0.0,
            last_announce_seconds: 0.0,
            activity: NodeActivity::default(),
        }
    }

    #[test]
    fn nodes_are_counted_where_they_are() {
        let mut zones = Zones::default();
        for (zone, rack, role) in [
            ("a", "1", NodeRole::Proxy),
            ("a", "2", NodeRole::Seeder),
            ("b", "1", NodeRole::Proxy),
            ("a", "1", NodeRole::Proxy),
        ] {
            zones.add(&node(zone, rack, role));
        }
        let zones = zones.list();
        let counts: Vec<_> = zones.iter().map(|z| (z.zone.as_deref(), z.peers, z.seeders, z.racks.len())).collect();
        assert_eq!(counts, [(Some("a"), 3, 1, 2), (Some("b"), 1, 0, 1)]);
    }

    #[test]
    fn labels_without_end_are_taken_together() {
        let mut zones = Zones::default();
        for number in 0..2 * MAX_GROUPS {
            zones.add(&node(&format!("zone-{number}"), "1", NodeRole::Proxy));
            zones.add(&node("zone-0", &format!("rack-{number}"), NodeRole::Proxy));
        }
        let zones = zones.list();
        assert!(zones.len() <= MAX_GROUPS + 1);
        assert!(zones.iter().all(|zone| zone.racks.len() <= MAX_GROUPS + 1));
        assert_eq!(zones.iter().map(|zone| zone.peers).sum::<usize>(), 4 * MAX_GROUPS);
    }
}
