//! How fast pieces come from one zone to another, as nodes measure it.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{Boundary, Place, Timestamp, Topology};

/// Pairs of places of which a tracker keeps the rate: 100 zones, each with each other.
pub const MOST_FLOWS: usize = 10_000;
/// Reports of one announce that are taken: what one node measures in a minute comes from few zones.
pub const MOST_REPORTED: usize = 32;
/// How long a rate that nobody reports again is believed: links change, and zones go away.
const KEPT: Duration = Duration::from_secs(600);
/// Least time between two walks through all pairs for those that are too old, when there is no place for a new one: reports of places that
/// are made up cost no more than others.
const WALK_EVERY: Duration = Duration::from_secs(1);
/// Share of a new report in the rate that is kept: one node of many measured it.
const WEIGHT: f64 = 0.25;

/// What a node received from a zone, measured while pieces came.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FlowReport {
    /// Where the senders are; their rack does not count.
    pub from: Topology,
    /// Rate of one transfer while it ran, bytes per second.
    pub bytes_per_second: u64,
    /// Bytes received since the last report.
    pub bytes: u64,
}

/// A rate from one zone to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// Where the senders are; without rack.
    pub from: Topology,
    /// Where the receivers are; without rack.
    pub to: Topology,
    /// Rate of one transfer while it runs, bytes per second.
    pub bytes_per_second: u64,
    /// Bytes that were reported in all.
    pub bytes: u64,
}

/// The rates between zones that nodes have reported.
#[derive(Debug, Default)]
pub struct Flows {
    /// By the numbers of both zones, whence and whither.
    known: BTreeMap<(u64, u64), Known>,
    /// When it was last walked through for pairs that are too old.
    walked: Option<Timestamp>,
}

#[derive(Debug)]
struct Known {
    from: Topology,
    to: Topology,
    rate: f64,
    bytes: u64,
    at: Timestamp,
}

/// What tells a zone from others.
fn zone(place: &Place) -> u64 {
    place.within(Boundary::Zone)
}

impl Flows {
    /// A node at `to` reports what it received; reports beyond [`MOST_REPORTED`] are left out, and so are new pairs
    /// when [`MOST_FLOWS`] are known.
    pub fn report(&mut self, now: Timestamp, to: &Topology, reports: &[FlowReport]) {
        let here = zone(&Place::from(to));
        for report in reports.iter().take(MOST_REPORTED).filter(|report| report.bytes > 0) {
            let key = (zone(&Place::from(&report.from)), here);
            if self.known.len() >= MOST_FLOWS && !self.known.contains_key(&key) && !self.make_place(now) {
                continue;
            }
            let rate = report.bytes_per_second as f64;
            let known = self.known.entry(key).or_insert_with(|| {
                let without_rack = |place: &Topology| Topology { rack: None, ..place.clone() };
                Known { from: without_rack(&report.from), to: without_rack(to), rate, bytes: 0, at: now }
            });
            known.rate += (rate - known.rate) * WEIGHT;
            known.bytes = known.bytes.saturating_add(report.bytes);
            known.at = now;
        }
    }

    /// Whether there is a place for one more, now and then after those that are too old were forgotten.
    fn make_place(&mut self, now: Timestamp) -> bool {
        if self.walked.is_none_or(|walked| now - walked >= WALK_EVERY) {
            self.walked = Some(now);
            self.known.retain(|_, known| now - known.at < KEPT);
        }
        self.known.len() < MOST_FLOWS
    }

    /// Bytes per second of one transfer between two places; `None` when nobody has measured it.
    pub fn rate(&self, from: &Place, to: &Place) -> Option<u64> {
        if self.known.is_empty() {
            return None;
        }
        // A mean of whole numbers of bytes.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        self.known.get(&(zone(from), zone(to))).map(|known| known.rate as u64)
    }

    /// All that is known and not too old, in the order of the places.
    pub fn list(&self, now: Timestamp) -> Vec<Flow> {
        let mut list: Vec<&Known> = self.known.values().filter(|known| now - known.at < KEPT).collect();
        let key = |place: &Topology| (place.region.clone(), place.zone.clone());
        list.sort_by_cached_key(|known| (key(&known.from), key(&known.to)));
        list.into_iter()
            .map(|known| Flow {
                from: known.from.clone(),
                to: known.to.clone(),
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                bytes_per_second: known.rate as u64,
                bytes: known.bytes,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(name: &str) -> Topology {
        Topology { zone: Some(name.to_owned()), ..Topology::default() }
    }

    fn report(name: &str, rate: u64) -> FlowReport {
        FlowReport { from: zone(name), bytes_per_second: rate, bytes: 10 }
    }

    #[test]
    fn rates_follow_the_reports_and_are_forgotten() {
        let mut flows = Flows::default();
        let at = |name| Place::from(&zone(name));
        assert_eq!(flows.rate(&at("a"), &at("b")), None);
        flows.report(Timestamp(0), &zone("b"), &[report("a", 100)]);
        assert_eq!(flows.rate(&at("a"), &at("b")), Some(100));
        assert_eq!(flows.rate(&at("b"), &at("a")), None);
        flows.report(Timestamp(1), &zone("b"), &[report("a", 200)]);
        assert_eq!(flows.rate(&at("a"), &at("b")), Some(125));
        let list = flows.list(Timestamp(2));
        assert_eq!((list.len(), list[0].bytes), (1, 20));
        assert!(flows.list(Timestamp(2) + KEPT).is_empty());
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut flows = Flows::default();
        for number in 0..MOST_FLOWS + 50 {
            flows.report(Timestamp(0), &zone("b"), &[report(&number.to_string(), 1)]);
        }
        assert_eq!(flows.known.len(), MOST_FLOWS);
        // They are looked through once a second and not for each.
        assert_eq!(flows.walked, Some(Timestamp(0)));
        flows.report(Timestamp(1), &zone("b"), &[report("another", 1)]);
        assert_eq!(flows.walked, Some(Timestamp(0)));
        // What is old gives way.
        flows.report(Timestamp(0) + KEPT, &zone("b"), &[report("new", 1)]);
        assert_eq!(flows.known.len(), 1);
        let many: Vec<FlowReport> = (0..MOST_REPORTED + 5).map(|number| report(&format!("n{number}"), 1)).collect();
        flows.report(Timestamp(0) + KEPT, &zone("c"), &many);
        assert_eq!(flows.known.len(), 1 + MOST_REPORTED);
    }
}
