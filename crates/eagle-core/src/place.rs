//! Where a node is, as numbers: a tracker compares the places of thousands of nodes a second, whose labels lie all over its memory.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use crate::{Boundary, Topology};

/// What stands for a label that is absent.
const ABSENT: u64 = 0;

/// A [`Topology`] as numbers, which mean the same within one process only.
///
/// Two places are told apart as their labels are, but for labels made to have the same hash; whoever makes those gains nothing but
/// to count as near.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Place {
    /// Of the labels, each by itself: region, zone, rack.
    labels: [u64; 3],
    /// Of the label and all wider ones: region, zone, rack.
    groups: [u64; 3],
}

/// Nodes that are together beyond a boundary: a rack of our zone, another zone of our region, or another region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FarGroup {
    /// The widest boundary that lies between us and them.
    pub boundary: Boundary,
    /// Tells the groups beyond that boundary apart, within one process.
    pub number: u64,
}

impl From<&Topology> for Place {
    fn from(topology: &Topology) -> Self {
        let mut wider = DefaultHasher::new();
        let (mut labels, mut groups) = ([ABSENT; 3], [ABSENT; 3]);
        for (number, label) in [&topology.region, &topology.zone, &topology.rack].into_iter().enumerate() {
            label.hash(&mut wider);
            groups[number] = wider.finish();
            if let Some(label) = label {
                let mut own = DefaultHasher::new();
                label.hash(&mut own);
                labels[number] = own.finish().max(ABSENT + 1);
            }
        }
        Self { labels, groups }
    }
}

impl Place {
    /// The widest boundary between two places, as [`Topology::boundary`] has it.
    pub fn boundary(&self, other: &Self) -> Option<Boundary> {
        let differs = |number: usize| {
            let (a, b) = (self.labels[number], other.labels[number]);
            a != b && a != ABSENT && b != ABSENT
        };
        [Boundary::Region, Boundary::Zone, Boundary::Rack]
            .into_iter()
            .zip(0..)
            .find_map(|(boundary, number)| differs(number).then_some(boundary))
    }

    /// The group that a node here is in for one at `other`, the same for all nodes that are together; `None` when it
    /// is in the same rack.
    pub fn group_seen_from(&self, other: &Self) -> Option<FarGroup> {
        let boundary = self.boundary(other)?;
        Some(FarGroup { boundary, number: self.within(boundary) })
    }

    /// What all nodes have in common between which there is no boundary of this kind or a wider one.
    pub const fn within(&self, boundary: Boundary) -> u64 {
        match boundary {
            Boundary::Region => self.groups[0],
            Boundary::Zone => self.groups[1],
            Boundary::Rack => self.groups[2],
        }
    }

    /// The same without the labels that only say what lies on this side of a boundary.
    #[must_use]
    pub fn without(self, boundary: Boundary) -> Self {
        let kept = match boundary {
            Boundary::Rack => 2,
            Boundary::Zone => 1,
            Boundary::Region => 0,
        };
        let cut =
            |numbers: [u64; 3]| std::array::from_fn(|number| if number < kept { numbers[number] } else { ABSENT });
        Self { labels: cut(self.labels), groups: cut(self.groups) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn topologies() -> impl Strategy<Value = Topology> {
        let label = || proptest::option::of("[ab]");
        (label(), label(), label()).prop_map(|(region, zone, rack)| Topology { region, zone, rack })
    }

    proptest! {
        #[test]
        fn numbers_tell_apart_what_labels_do(one in topologies(), other in topologies()) {
            let (here, there) = (Place::from(&one), Place::from(&other));
            prop_assert_eq!(here.boundary(&there), one.boundary(&other));
            prop_assert_eq!(here == there, one == other);
            for (boundary, coarse) in [
                (Boundary::Rack, Topology { rack: None, ..one.clone() }),
                (Boundary::Zone, Topology { rack: None, zone: None, ..one.clone() }),
                (Boundary::Region, Topology::default()),
            ] {
                let (here, coarse) = (here.without(boundary), Place::from(&coarse));
                prop_assert_eq!(here.boundary(&there), coarse.boundary(&there));
            }
        }
    }

    #[test]
    fn who_is_together_beyond_a_boundary_is_one_group() {
        let at = |region: &str, zone: &str, rack: &str| {
            let some = |label: &str| Some(label.to_owned());
            Place::from(&Topology { region: some(region), zone: some(zone), rack: some(rack) })
        };
        let here = at("r1", "z1", "k1");
        let group = |region, zone, rack| at(region, zone, rack).group_seen_from(&here);
        assert_eq!(group("r1", "z1", "k1"), None);
        assert_ne!(group("r1", "z1", "k2"), group("r1", "z1", "k3"));
        assert_eq!(group("r1", "z2", "k1"), group("r1", "z2", "k2"));
        assert_ne!(group("r1", "z2", "k1"), group("r1", "z3", "k1"));
        assert_eq!(group("r2", "z1", "k1"), group("r2", "z7", "k2"));
        assert_ne!(group("r2", "z1", "k1"), group("r3", "z1", "k1"));
    }
}
