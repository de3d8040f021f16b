//! What a node received, from where and from whom, as it reports that to trackers.
//!
//! A node counts in one [`Received`] for as long as it runs. What a tracker is told is the difference to what that tracker
//! was told before ([`Received::since`]), so that each of several trackers hears of everything once.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    flows::{FlowReport, MOST_REPORTED},
    policy::NodeLoad,
};
use crate::{Digest, NodeId, Topology};

/// Senders of one announce: as many as a node has requests in flight, less those that it has only begun with.
pub const MOST_SENDERS: usize = 8;
/// Pairs of a blob and a sender that are counted at a time; of more, those that gave nothing for longest are forgotten.
const MOST_COUNTED: usize = 64;

/// What a node received of a blob from another.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SenderReport {
    /// The blob.
    pub digest: Digest,
    /// Who sent it.
    pub id: NodeId,
    /// Bytes received since the last report.
    pub bytes: u64,
}

/// What a node tells trackers of itself, beside its blobs.
pub trait NodeReports: fmt::Debug + Send + Sync {
    /// How busy it is now.
    fn load(&self) -> NodeLoad;
    /// What it has received so far.
    fn received(&self) -> Received;
}

/// What a node received from other nodes since it started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Received {
    zones: BTreeMap<(Option<String>, Option<String>), Amount>,
    senders: BTreeMap<(Digest, NodeId), Sent>,
    /// Pieces so far, which tells the latest.
    pieces: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Amount {
    bytes: u64,
    /// Time that transfers took, one after the other.
    busy: Duration,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sent {
    bytes: u64,
    /// Which piece was the last.
    last: u64,
}

impl Received {
    /// A piece came from a node that is there, and took so long to arrive. Zones beyond [`MOST_REPORTED`] are not counted.
    pub fn add(&mut self, digest: Digest, sender: &NodeId, from: &Topology, bytes: u64, elapsed: Duration) {
        self.pieces += 1;
        let zone = (from.region.clone(), from.zone.clone());
        if self.zones.len() < MOST_REPORTED || self.zones.contains_key(&zone) {
            let amount = self.zones.entry(zone).or_default();
            amount.bytes = amount.bytes.saturating_add(bytes);
            amount.busy = amount.busy.saturating_add(elapsed);
        }
        let sent = self.senders.entry((digest, sender.clone())).or_default();
        sent.bytes = sent.bytes.saturating_add(bytes);
        sent.last = self.pieces;
        if self.senders.len() > MOST_COUNTED {
            let oldest = self.senders.iter().min_by_key(|(_, sent)| sent.last).map(|(key, _)| key.clone());
            oldest.and_then(|oldest| self.senders.remove(&oldest));
        }
    }

    /// Bytes of a blob by sender, of those that are counted.
    pub fn of(&self, digest: &Digest) -> Vec<(NodeId, u64)> {
        let of_blob = self.senders.iter().filter(|((blob, _), _)| blob == digest);
        of_blob.map(|((_, id), sent)| (id.clone(), sent.bytes)).collect()
    }

    /// What is new since an earlier state of the same counts: by zone, and the [`MOST_SENDERS`] that gave most, in that order.
    pub fn since(&self, before: &Self) -> (Vec<FlowReport>, Vec<SenderReport>) {
        let flows = self.zones.iter().filter_map(|(zone, now)| {
            let then = before.zones.get(zone).copied().unwrap_or_default();
            let (bytes, busy) = (now.bytes.saturating_sub(then.bytes), now.busy.saturating_sub(then.busy));
            // What took no time that can be measured took a microsecond.
            let micros = busy.as_micros().max(1);
            let rate = u64::try_from(u128::from(bytes) * 1_000_000 / micros).unwrap_or(u64::MAX);
            let from = Topology { region: zone.0.clone(), zone: zone.1.clone(), rack: None };
            (bytes > 0).then_some(FlowReport { from, bytes_per_second: rate, bytes })
        });
        let senders = self.senders.iter().filter_map(|((digest, id), now)| {
            let then = before.senders.get(&(*digest, id.clone())).map_or(0, |sent| sent.bytes);
            // Less than before: it was forgotten meanwhile, and counted anew.
            let bytes = now.bytes.checked_sub(then).unwrap_or(now.bytes);
            (bytes > 0).then(|| SenderReport { digest: *digest, id: id.clone(), bytes })
        });
        let mut senders: Vec<SenderReport> = senders.collect();
        senders.sort_by_key(|sender| std::cmp::Reverse(sender.bytes));
        senders.truncate(MOST_SENDERS);
        (flows.collect(), senders)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(name: &str) -> Topology {
        Topology { zone: Some(name.to_owned()), rack: Some("1".to_owned()), ..Topology::default() }
    }

    fn node(number: usize) -> NodeId {
        format!("node{number}").parse().unwrap()
    }

    #[test]
    fn each_tracker_hears_of_everything_once() {
        let mut received = Received::default();
        let blob = Digest::of(b"a");
        received.add(blob, &node(1), &zone("a"), 100, Duration::from_millis(10));
        received.add(blob, &node(2), &zone("b"), 50, Duration::from_millis(10));
        received.add(blob, &node(1), &zone("a"), 300, Duration::from_millis(10));
        let (flows, senders) = received.since(&Received::default());
        let flows: Vec<_> = flows.iter().map(|f| (f.from.zone.as_deref(), f.bytes_per_second, f.bytes)).collect();
        assert_eq!(flows, [(Some("a"), 20_000, 400), (Some("b"), 5_000, 50)]);
        assert_eq!(senders[0], SenderReport { digest: blob, id: node(1), bytes: 400 });
        let told = received.clone();
        assert_eq!(received.since(&told), (Vec::new(), Vec::new()));
        assert_eq!(received.of(&blob), [(node(1), 400), (node(2), 50)]);
        assert_eq!(received.of(&Digest::of(b"b")), []);
        received.add(blob, &node(2), &zone("b"), 7, Duration::ZERO);
        let (flows, senders) = received.since(&told);
        assert_eq!((flows.len(), flows[0].bytes, senders.len(), senders[0].bytes), (1, 7, 1, 7));
    }

    #[test]
    fn what_is_counted_and_told_is_bounded() {
        let mut received = Received::default();
        let blob = Digest::of(b"a");
        for number in 0..3 * MOST_COUNTED {
            received.add(blob, &node(number), &zone(&number.to_string()), 1 + number as u64, Duration::from_millis(1));
        }
        assert_eq!((received.zones.len(), received.senders.len()), (MOST_REPORTED, MOST_COUNTED));
        let (flows, senders) = received.since(&Received::default());
        assert_eq!((flows.len(), senders.len()), (MOST_REPORTED, MOST_SENDERS));
        assert_eq!(senders[0].id, node(3 * MOST_COUNTED - 1), "those that gave most");
        // Who was forgotten and comes again counts from its new beginning.
        let told = received.clone();
        received.add(blob, &node(0), &zone("0"), 5, Duration::from_millis(1));
        let (_, senders) = received.since(&told);
        assert_eq!((senders.len(), senders[0].bytes), (1, 5));
    }
}
