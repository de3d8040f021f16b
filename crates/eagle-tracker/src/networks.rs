//! The table that says where the nodes of each network are.

use std::{collections::HashMap, net::IpAddr};

use eagle_core::Topology;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Most networks in a table: a cluster of 15,000 hosts has about a thousand racks.
pub const MAX_NETWORKS: usize = 10_000;

/// Where the nodes of one network are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkPlace {
    /// The network, as `10.1.0.0/16` or `fd00:1::/32`.
    pub cidr: IpNet,
    /// Region of its nodes.
    #[serde(default)]
    pub region: Option<String>,
    /// Zone of its nodes.
    #[serde(default)]
    pub zone: Option<String>,
    /// Rack of its nodes.
    #[serde(default)]
    pub rack: Option<String>,
}

/// Looks up where an address is; of several networks that hold it, the smallest counts.
#[derive(Debug, Clone, Default)]
pub struct Networks {
    /// By network, in the form that has no bits behind the prefix.
    places: HashMap<IpNet, Topology>,
    /// Lengths of prefixes that occur, the longest first, for either family.
    lengths: [Vec<u8>; 2],
}

impl Networks {
    /// A table of these entries.
    ///
    /// # Errors
    /// With the number of the entry and what is wrong with it.
    pub fn new(entries: &[NetworkPlace]) -> Result<Self, String> {
        if entries.len() > MAX_NETWORKS {
            return Err(format!("there are {} networks; give at most {MAX_NETWORKS}", entries.len()));
        }
        let mut networks = Self::default();
        for (number, entry) in entries.iter().enumerate() {
            let NetworkPlace { cidr, region, zone, rack } = entry.clone();
            let place = Topology::new(region, zone, rack).map_err(|error| format!("entry {number}: {error}"))?;
            if place == Topology::default() {
                return Err(format!("entry {number}: {cidr} has neither region nor zone nor rack"));
            }
            if networks.places.insert(cidr.trunc(), place).is_some() {
                return Err(format!("entry {number}: {} is there twice", cidr.trunc()));
            }
            let lengths = &mut networks.lengths[family(cidr.addr())];
            if let Err(at) = lengths.binary_search_by(|length| cidr.prefix_len().cmp(length)) {
                lengths.insert(at, cidr.prefix_len());
            }
        }
        Ok(networks)
    }

    /// Where this address is; `None` when no network holds it.
    pub fn find(&self, address: IpAddr) -> Option<&Topology> {
        let address = address.to_canonical();
        self.lengths[family(address)].iter().find_map(|length| {
            let network = IpNet::new(address, *length).ok()?;
            self.places.get(&network.trunc())
        })
    }
}

fn family(address: IpAddr) -> usize {
    usize::from(address.is_ipv6())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(cidr: &str, zone: &str, rack: &str) -> NetworkPlace {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        NetworkPlace { cidr: cidr.parse().unwrap(), region: None, zone: some(zone), rack: some(rack) }
    }

    #[test]
    fn the_longest_prefix_wins() {
        let networks = Networks::new(&[
            entry("10.0.0.0/8", "all", ""),
            entry("10.1.0.0/16", "a", ""),
            entry("10.1.2.99/24", "a", "r2"),
            entry("fd00::/16", "six", ""),
        ])
        .unwrap();
        let zone_rack = |address: &str| {
            let place = networks.find(address.parse().unwrap())?;
            Some((place.zone.clone()?, place.rack.clone().unwrap_or_default()))
        };
        let found = |zone: &str, rack: &str| Some((zone.to_owned(), rack.to_owned()));
        assert_eq!(zone_rack("10.1.2.3"), found("a", "r2"));
        assert_eq!(zone_rack("10.1.3.3"), found("a", ""));
        assert_eq!(zone_rack("10.2.0.1"), found("all", ""));
        assert_eq!(zone_rack("::ffff:10.2.0.1"), found("all", ""));
        assert_eq!(zone_rack("192.0.2.1"), None);
        assert_eq!(zone_rack("fd00::1"), found("six", ""));
        assert_eq!(Networks::default().find("10.0.0.1".parse().unwrap()), None);
    }

    #[test]
    fn tables_that_cannot_work_are_refused() {
        let problem = |entries: &[NetworkPlace]| Networks::new(entries).unwrap_err();
        assert!(problem(&[entry("10.0.0.0/8", "", "")]).contains("neither"));
        assert!(problem(&[entry("10.0.0.0/8", "a", ""), entry("10.0.0.1/8", "b", "")]).contains("twice"));
        assert!(problem(&[entry("10.0.0.0/8", "a\nb", "")]).contains("entry 0"));
        let many = vec![entry("10.0.0.0/8", "a", ""); MAX_NETWORKS + 1];
        assert!(problem(&many).contains("at most"));
    }
}
