//! How a simulation went.

use eagle_core::Boundary;

use crate::samples::Sample;

/// How a simulation went; times are seconds of virtual time.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Every node that did not vanish, in the order of its number.
    pub nodes: Vec<NodeReport>,
    /// Least time in which any scheme brings everything to the slowest node.
    pub ideal_seconds: f64,
    /// Bytes that the seeders received from the origin.
    pub origin_bytes: u64,
    /// Bytes of pieces that the seeders sent.
    pub seeder_bytes: u64,
    /// Bytes of pieces that arrived at nodes.
    pub delivered_bytes: u64,
    /// Of these and those on their way, bytes that went from one rack to another, wherever that is.
    pub cross_rack_bytes: u64,
    /// Bytes that went from one zone to another, wherever that is.
    pub cross_zone_bytes: u64,
    /// Bytes that went from one region to another.
    pub cross_region_bytes: u64,
    /// Pieces that arrived where they were owned already.
    pub duplicate_pieces: u64,
    /// Pieces that arrived with wrong bytes.
    pub corrupt_pieces: u64,
    /// Requests made, and those that ran out of time.
    pub requests: u64,
    /// See `requests`.
    pub stalled_requests: u64,
    /// Control messages sent.
    pub control_messages: u64,
    /// Their bytes as they are encoded, with those of requests and of the headers of answers.
    pub control_bytes: u64,
    /// Events simulated.
    pub events: u64,
    /// The swarm over time, for pictures.
    pub samples: Vec<Sample>,
    /// SHA-256 over every event in order, in hexadecimal: equal for equal plans.
    pub trace: String,
}

/// How it went for one node.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NodeReport {
    /// Number of its group.
    pub group: usize,
    /// When it started.
    pub start: f64,
    /// Time from its own start to its last piece; infinite for one that never finished.
    pub seconds: f64,
    /// Time from its own start to the first piece of the first blob.
    pub first_piece_seconds: f64,
    /// Time from its own start to the end of the blob that was complete first.
    pub first_blob_seconds: f64,
    /// Least time in which any scheme brings it everything.
    pub bound_seconds: f64,
}

impl NodeReport {
    /// Its least time over the time it took.
    pub fn efficiency(&self) -> f64 {
        self.bound_seconds / self.seconds
    }
}

/// The node in the middle, the hundredth from the end, and the last one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quantiles {
    /// Half of the nodes are no worse.
    pub p50: f64,
    /// 99 % of the nodes are no worse.
    pub p99: f64,
    /// The worst node.
    pub max: f64,
}

impl Quantiles {
    /// Of values of which the larger is worse, by nearest rank; `None` without any.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let at = |percent: usize| sorted.get((sorted.len() * percent).div_ceil(100).max(1) - 1).copied();
        Some(Self { p50: at(50)?, p99: at(99)?, max: at(100)? })
    }
}

impl Report {
    /// Bytes went over this boundary, and with it over all that are narrower.
    pub(crate) fn count_crossing(&mut self, boundary: Option<Boundary>, bytes: u32) {
        let crossed = [
            (Boundary::Rack, &mut self.cross_rack_bytes),
            (Boundary::Zone, &mut self.cross_zone_bytes),
            (Boundary::Region, &mut self.cross_region_bytes),
        ];
        for (_, count) in crossed.into_iter().filter(|(crossed, _)| boundary >= Some(*crossed)) {
            *count += u64::from(bytes);
        }
    }

    /// Efficiency of the node that is farthest from its own least time.
    pub fn efficiency(&self) -> f64 {
        self.nodes.iter().map(NodeReport::efficiency).fold(f64::INFINITY, f64::min)
    }

    /// Efficiencies, the worst as `max`.
    pub fn efficiencies(&self) -> Option<Quantiles> {
        let worst_first = Quantiles::of(self.nodes.iter().map(|node| -node.efficiency()))?;
        Some(Quantiles { p50: -worst_first.p50, p99: -worst_first.p99, max: -worst_first.max })
    }

    /// Seconds that the nodes took.
    pub fn seconds(&self) -> Option<Quantiles> {
        Quantiles::of(self.nodes.iter().map(|node| node.seconds))
    }
}
