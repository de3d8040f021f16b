//! How much the kernel may take in before the process reads it.
//!
//! Bytes in the kernel's receive buffer have passed the host's link already, whatever limit they are read at. Left alone, the buffer
//! of a connection grows to several MiB when the other end is faster than the limit, which with a few connections is more than the
//! limit allows in a second. So with a limit the buffer is fixed, in proportion to it.

use std::time::Duration;

/// Time at the limit that a buffer stands for. A connection alone comes up to the limit when a round trip takes no longer; a pull has
/// several. With 100 ms a dozen connections took in a second's worth ahead of the limit (5 of 40 runs of chaos).
const WANTED: Duration = Duration::from_millis(25);
/// The same where the kernel allows less. If it does not allow this either, the buffer is left to grow: a limit that is passed for a
/// moment is better than a source in the same region that cannot be used at the limit.
const LEAST: Duration = Duration::from_millis(20);
/// Least bytes of a buffer: some dozens of packets.
const FLOOR: u64 = 64 << 10;

/// Where Linux says how large a receive buffer may be asked for, bytes as decimal digits.
pub const KERNEL_LIMIT_FILE: &str = "/proc/sys/net/core/rmem_max";

/// The receive buffer, bytes, of one connection that is read at `rate` bytes per second at most, where the kernel gives `most` bytes on
/// request; none where its own choice is better.
pub fn size(rate: u64, most: u64) -> Option<u32> {
    let within = |time: Duration| {
        let bytes = u128::from(rate) * time.as_nanos() / 1_000_000_000;
        u64::try_from(bytes).unwrap_or(u64::MAX).max(FLOOR)
    };
    let size = within(WANTED).min(most);
    (size >= within(LEAST)).then(|| u32::try_from(size).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_goes_with_the_limit_as_far_as_the_kernel_lets_it() {
        for (rate, most, expected) in [
            (1000, 4 << 20, Some(64 << 10)),
            (6_000_000, 4 << 20, Some(150_000)),
            (10_000_000, 212_992, Some(212_992)),
            (50 << 20, 4 << 20, Some(1_310_720)),
            (50 << 20, 212_992, None),
            (u64::MAX, 4 << 20, None),
        ] {
            assert_eq!(size(rate, most), expected, "{rate} of {most}");
        }
    }
}
