//! The least time in which a blob can reach every node of a swarm.

use crate::geometry::Geometry;

/// Seconds in which no scheme can beat spreading a cold blob from one seeder to `nodes` nodes, all
/// with the same rate up and down: `F/R + floor(log2 N) * p/R`.
///
/// Source: J. Mundinger, R. Weber and G. Weiss, "Optimal scheduling of peer-to-peer file
/// dissemination", Journal of Scheduling 11 (2008). `rate` is in bytes per second.
pub fn equal_rates(geometry: &Geometry, nodes: u32, rate: f64) -> f64 {
    let doublings = f64::from(nodes.max(1).ilog2());
    let piece = f64::from(geometry.piece_length()).min(geometry.size() as f64);
    (geometry.size() as f64 + doublings * piece) / rate
}

/// The bound for unequal rates, in seconds: `max(F/u_s, F/d_min, N*F/(u_s + sum u_i))`.
///
/// Source: R. Kumar and K. Ross, "Peer-assisted file distribution: the minimum distribution time",
/// HotWeb 2006. `uploads` holds the upload rate of every node but the seeder; bytes per second.
pub fn unequal_rates(size: u64, seeder: f64, slowest_download: f64, uploads: &[f64]) -> f64 {
    let size = size as f64;
    let total = seeder + uploads.iter().sum::<f64>();
    (size / seeder).max(size / slowest_download).max(uploads.len() as f64 * size / total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_with_the_logarithm_of_the_swarm() {
        let geometry = Geometry::new(256 << 20, 1 << 20).unwrap();
        let one = equal_rates(&geometry, 1, 10e6);
        let sixteen = equal_rates(&geometry, 16, 10e6);
        assert!((one - 26.8435456).abs() < 1e-9);
        assert!((sixteen - one - 4.0 * 0.1048576).abs() < 1e-9);
    }

    #[test]
    fn the_scarcest_capacity_decides() {
        assert_eq!(unequal_rates(100, 10.0, 1.0, &[10.0]), 100.0);
        assert_eq!(unequal_rates(100, 10.0, 100.0, &[0.0; 10]), 100.0);
        assert_eq!(unequal_rates(100, 1.0, 100.0, &[100.0; 4]), 100.0);
    }
}
