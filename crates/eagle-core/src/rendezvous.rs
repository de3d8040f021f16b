//! Rendezvous hashing: which of several servers is responsible for a blob.
//!
//! D. Thaler and C. Ravishankar, "Using name-based mappings to increase hit rates", IEEE/ACM
//! Transactions on Networking 6 (1998): every client computes the same order from the names alone,
//! and a server that goes away moves only the blobs that were its own.

use sha2::{Digest as _, Sha256};

/// The servers in the order in which they are responsible for `key`, the first choice first.
pub fn order<'a, T: AsRef<str>>(servers: &'a [T], key: &[u8]) -> Vec<&'a T> {
    places(servers, key).into_iter().filter_map(|place| servers.get(place)).collect()
}

/// The same order, as places in the list of servers.
pub fn places<T: AsRef<str>>(servers: &[T], key: &[u8]) -> Vec<usize> {
    let mut scored: Vec<([u8; 32], usize)> = servers
        .iter()
        .enumerate()
        .map(|(place, server)| {
            let mut hash = Sha256::new();
            hash.update((server.as_ref().len() as u64).to_le_bytes());
            hash.update(server.as_ref());
            hash.update(key);
            (hash.finalize().into(), place)
        })
        .collect();
    // Servers of the same name, which share a score, stay in the order of the list.
    scored.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
    scored.into_iter().map(|(_, place)| place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losing_a_server_moves_only_its_own_blobs() {
        let all = ["a", "b", "c", "d"];
        let fewer = ["a", "b", "d"];
        for key in 0u32..200 {
            let key = key.to_le_bytes();
            let before: Vec<_> = order(&all, &key).into_iter().filter(|s| **s != "c").collect();
            assert_eq!(before, order(&fewer, &key));
        }
    }

    #[test]
    fn blobs_are_spread_evenly() {
        let servers = ["a", "b", "c", "d"];
        let mut counts = [0u32; 4];
        for key in 0u32..4000 {
            let first = order(&servers, &key.to_le_bytes())[0];
            counts[servers.iter().position(|s| s == first).unwrap()] += 1;
        }
        assert!(counts.iter().all(|c| (850..1150).contains(c)), "{counts:?}");
    }
}
