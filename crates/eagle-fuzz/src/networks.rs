//! The table that says where nodes are by their addresses.

use std::net::IpAddr;

use eagle_core::Topology;
use eagle_tracker::networks::{NetworkPlace, Networks};

/// One entry of the table, as JSON, or one address on a line. Each address is looked up in the table, and entry by entry.
pub(crate) fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (mut entries, mut addresses) = (Vec::new(), Vec::new());
    for line in text.lines().take(64) {
        match serde_json::from_str::<NetworkPlace>(line) {
            Ok(entry) => entries.push(entry),
            Err(_) => addresses.extend(line.trim().parse::<IpAddr>()),
        }
    }
    // Addresses at the ends of each network, and just beyond.
    addresses
        .extend(entries.iter().flat_map(|entry| [entry.cidr.network(), entry.cidr.broadcast(), entry.cidr.addr()]));
    let networks = match Networks::new(&entries) {
        Ok(networks) => networks,
        Err(problem) => {
            assert!(problem.starts_with("entry ") && problem.len() < 1000, "{problem}");
            let Some(first) = entries.first() else { return };
            // Where the table is refused one entry may still be right.
            match Networks::new(std::slice::from_ref(first)) {
                Ok(networks) => {
                    entries.truncate(1);
                    networks
                }
                Err(_) => return,
            }
        }
    };
    for address in addresses {
        let seen = address.to_canonical();
        let holds = entries.iter().filter(|entry| entry.cidr.contains(&seen));
        let expected = holds.max_by_key(|entry| entry.cidr.prefix_len()).map(|entry| {
            let NetworkPlace { region, zone, rack, .. } = entry.clone();
            Topology::new(region, zone, rack).unwrap_or_default()
        });
        assert_eq!(networks.find(address), expected.as_ref(), "{address}");
    }
}
