//! The least time in which any scheme can bring a node everything.

use eagle_core::ideal;

use crate::{Plan, Start};

/// What bounds the time of one node.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Own {
    /// When it starts, seconds.
    pub(crate) start: f64,
    /// Its download rate, bytes per second.
    pub(crate) down: f64,
    /// When it becomes slower, seconds, and its rate from then on.
    pub(crate) slowed: Option<(f64, f64)>,
}

/// Least seconds for a node from its own start: its own link must take everything, and the first
/// source must have sent everything. Where all nodes are equal and start together, no scheme
/// beats the bound of Mundinger, Weber and Weiss.
pub(crate) fn seconds(plan: &Plan, own: Own) -> f64 {
    let size = plan.size() as f64;
    let by_own_link = match own.slowed {
        Some((at, rate)) => {
            let before = ((at - own.start).max(0.0) * own.down).min(size);
            before / own.down + (size - before) / rate
        }
        None => size / own.down,
    };
    let by_source = size / source_rate(plan) - own.start;
    by_own_link.max(by_source).max(if own.slowed.is_none() { equal(plan).unwrap_or(0.0) } else { 0.0 })
}

/// Least seconds for the slowest node of the plan, churn aside.
pub(crate) fn of_all(plan: &Plan) -> f64 {
    let slowest = plan.groups.iter().map(|group| group.down.0).fold(f64::INFINITY, f64::min);
    let size = plan.size() as f64;
    let at_least = (size / source_rate(plan)).max(size / slowest);
    equal(plan).unwrap_or(0.0).max(at_least)
}

/// Bytes per second that come into the swarm at most.
fn source_rate(plan: &Plan) -> f64 {
    let responsible = plan.seeders.count.min(u32::try_from(plan.blobs.len()).unwrap_or(u32::MAX)).max(1);
    plan.seeders.up.min(plan.seeders.origin_rate.unwrap_or(f64::INFINITY)) * f64::from(responsible)
}

/// The bound for equal nodes that start together; `None` for others.
fn equal(plan: &Plan) -> Option<f64> {
    let rate = plan.groups.first()?.down.0;
    let same = |range: (f64, f64)| range == (rate, rate);
    let equal = plan.groups.iter().all(|group| same(group.down) && same(group.up) && group.start == Start::Together);
    let smallest = plan.blobs.iter().min_by_key(|geometry| geometry.piece_length())?;
    let one = ideal::equal_rates(smallest, plan.nodes(), rate) - smallest.size() as f64 / rate;
    equal.then(|| plan.size() as f64 / rate + one)
}

#[cfg(test)]
mod tests {
    use eagle_core::Geometry;

    use super::*;

    fn plan() -> Plan {
        Plan::cold(16, Geometry::new(64 << 20, 1 << 20).unwrap(), (1 << 20).into())
    }

    #[test]
    fn equal_nodes_that_start_together() {
        let own = Own { start: 0.0, down: f64::from(1 << 20), slowed: None };
        assert!((seconds(&plan(), own) - 68.0).abs() < 1e-9);
        assert!((of_all(&plan()) - 68.0).abs() < 1e-9);
    }

    #[test]
    fn a_late_node_has_only_its_own_link_and_what_the_source_still_sends() {
        let mut plan = plan();
        plan.groups[0].start = Start::Spread(std::time::Duration::from_secs(10));
        plan.seeders.origin_rate = Some(f64::from(1 << 19));
        let own = |start, down| Own { start, down, slowed: None };
        assert!((seconds(&plan, own(28.0, f64::from(1 << 20))) - 100.0).abs() < 1e-9);
        assert!((seconds(&plan, own(100.0, f64::from(1 << 21))) - 32.0).abs() < 1e-9);
    }

    #[test]
    fn a_node_that_becomes_slow_has_both_rates() {
        let own = Own { start: 0.0, down: f64::from(1 << 20), slowed: Some((32.0, f64::from(1 << 19))) };
        assert!((seconds(&plan(), own) - 96.0).abs() < 1e-9);
    }
}
