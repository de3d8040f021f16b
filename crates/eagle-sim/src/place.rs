//! Where nodes are, and the links between there.

use std::collections::{BTreeMap, BTreeSet};

use eagle_core::{Boundary, FarGroup, Topology};

use crate::{Group, Links, Plan, Sites, network::Pipe};

/// Where a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) region: u16,
    pub(crate) zone: u16,
    /// Number of the rack within the zone; none when the zone is one room.
    pub(crate) rack: Option<u16>,
}

impl Place {
    /// Where the seeders are: in a zone of the plan, or one of their own.
    pub(crate) fn of_seeders(plan: &Plan) -> Self {
        let own = plan.groups.iter().map(|group| group.zone + 1).max().unwrap_or(0);
        let zone = plan.seeders.zone.unwrap_or(own);
        let region = plan.groups.iter().find(|group| group.zone == zone).map_or(0, |group| group.region);
        Self { region, zone, rack: None }
    }

    /// Where a group's node with this number is.
    pub(crate) fn of_member(group: &Group, index: u32) -> Self {
        let rack = index.checked_rem(group.racks.into()).and_then(|rack| u16::try_from(rack).ok());
        Self { region: group.region, zone: group.zone, rack }
    }

    /// The widest boundary between two places.
    pub(crate) fn boundary(self, other: Self) -> Option<Boundary> {
        if self.region != other.region {
            Some(Boundary::Region)
        } else if self.zone != other.zone {
            Some(Boundary::Zone)
        } else {
            (self.rack != other.rack).then_some(Boundary::Rack)
        }
    }

    /// The group that this place is in, seen from another.
    pub(crate) fn group_seen_from(self, other: Self) -> Option<FarGroup> {
        let boundary = self.boundary(other)?;
        let number = match boundary {
            Boundary::Region => self.region,
            Boundary::Zone => self.zone,
            // As with labels: who is in no rack is near everybody in the zone.
            Boundary::Rack => self.rack.filter(|_| other.rack.is_some())?,
        };
        Some(FarGroup { boundary, number: number.into() })
    }

    /// The labels of a node here.
    pub(crate) fn topology(self) -> Topology {
        Topology {
            region: Some(format!("region{}", self.region)),
            zone: Some(format!("zone{}", self.zone)),
            rack: self.rack.map(|rack| format!("rack{rack}")),
        }
    }
}

/// How many places of each kind a plan has.
pub(crate) fn sites(plan: &Plan) -> Sites {
    let members = plan.groups.iter().flat_map(|group| {
        // Further nodes are in the same racks.
        (0..group.count.min(u32::from(group.racks.max(1)))).map(|index| Place::of_member(group, index))
    });
    let places: BTreeSet<Place> = members.chain([Place::of_seeders(plan)]).collect();
    let zones: BTreeSet<u16> = places.iter().map(|place| place.zone).collect();
    let regions: BTreeSet<u16> = places.iter().map(|place| place.region).collect();
    Sites { racks: places.len(), zones: zones.len(), regions: regions.len() }
}

/// A link that several nodes share, in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Shared {
    /// Out of a rack of a zone.
    RackUp(u16, u16),
    /// Into one.
    RackDown(u16, u16),
    /// From one zone to another.
    Zones(u16, u16),
    /// From one region to another.
    Regions(u16, u16),
}

/// The links that nodes share.
#[derive(Debug, Default)]
pub(crate) struct SharedLinks(BTreeMap<Shared, Pipe>);

impl SharedLinks {
    /// When a chunk that leaves a node at `ready`, nanoseconds, has passed all that is shared on its way.
    pub(crate) fn pass(&mut self, links: &Links, from: Place, to: Place, ready: u64, bytes: u32) -> u64 {
        let Some(boundary) = from.boundary(to) else { return ready };
        let between = match boundary {
            Boundary::Rack => None,
            Boundary::Zone => links.zone_rate.map(|rate| (Shared::Zones(from.zone, to.zone), rate)),
            Boundary::Region => links.region_rate.map(|rate| (Shared::Regions(from.region, to.region), rate)),
        };
        let up = from.rack.zip(links.rack_rate).map(|(rack, rate)| (Shared::RackUp(from.zone, rack), rate));
        let down = to.rack.zip(links.rack_rate).map(|(rack, rate)| (Shared::RackDown(to.zone, rack), rate));
        let way = [up, between, down].into_iter().flatten();
        way.fold(ready, |ready, (link, rate)| self.0.entry(link).or_insert_with(|| Pipe::new(rate)).pass(ready, bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(region: u16, zone: u16, rack: u16) -> Place {
        Place { region, zone, rack: Some(rack) }
    }

    /// What the simulator counts and what the core takes for far are the same.
    #[test]
    fn places_and_labels_agree() {
        let places = [at(0, 0, 0), at(0, 0, 1), at(0, 1, 0), at(1, 2, 0), Place { rack: None, ..at(1, 2, 0) }];
        for from in &places[..4] {
            for to in &places[..4] {
                assert_eq!(from.boundary(*to), from.topology().boundary(&to.topology()), "{from:?} {to:?}");
            }
        }
        assert_eq!(at(0, 1, 0).group_seen_from(at(0, 0, 0)), at(0, 1, 7).group_seen_from(at(0, 0, 3)));
        assert_ne!(at(0, 1, 0).group_seen_from(at(0, 0, 0)), at(0, 2, 0).group_seen_from(at(0, 0, 0)));
    }

    #[test]
    fn all_that_cross_share_the_link() {
        let links =
            Links { region_rate: Some(1e9), ..Plan::cold(1, eagle_core::Geometry::auto(1).unwrap(), 1.0).links };
        let mut shared = SharedLinks::default();
        assert_eq!(shared.pass(&links, at(0, 0, 0), at(1, 1, 0), 10, 100), 110);
        assert_eq!(shared.pass(&links, at(0, 0, 1), at(1, 2, 0), 10, 100), 210);
        // The other direction, and ways within a region, do not.
        assert_eq!(shared.pass(&links, at(1, 1, 0), at(0, 0, 0), 10, 100), 110);
        assert_eq!(shared.pass(&links, at(0, 0, 0), at(0, 3, 0), 10, 100), 10);
    }

    #[test]
    fn a_rack_has_one_link_out_and_one_in() {
        let links = Links { rack_rate: Some(1e9), ..Plan::cold(1, eagle_core::Geometry::auto(1).unwrap(), 1.0).links };
        let mut shared = SharedLinks::default();
        assert_eq!(shared.pass(&links, at(0, 0, 0), at(0, 0, 1), 0, 100), 200);
        assert_eq!(shared.pass(&links, at(0, 0, 0), at(0, 0, 2), 0, 100), 300);
        assert_eq!(shared.pass(&links, at(0, 0, 0), at(0, 0, 0), 0, 100), 0);
    }
}
