//! What the kernel takes in of an answer before this process reads it.
//!
//! Bytes in the kernel's receive buffer have passed the host's link already, whatever limit they are read at. Left alone, the buffer
//! of a connection grows to several MiB when the registry is faster than the limit, which with a few connections is more than the limit
//! allows in a second. So with a limit the buffer is fixed, in proportion to it.

use std::{
    fmt, fs,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use eagle_core::units::Rate;

/// Time at the limit that a buffer stands for. A connection alone comes up to the limit when a round trip takes no longer; a pull has
/// several. With 100 ms a dozen connections took in a second's worth ahead of the limit (5 of 40 runs of chaos).
const WANTED: Duration = Duration::from_millis(25);
/// The same where the kernel allows less. If it does not allow this either, the buffer is left to grow: a limit that is passed for a
/// moment is better than a registry in the same region that cannot be used at the limit.
const LEAST: Duration = Duration::from_millis(20);
/// Least bytes of a buffer: some dozens of packets.
const FLOOR: u64 = 64 << 10;
/// Most bytes that this kernel gives on request; none where it does not say.
static MOST: LazyLock<Option<u64>> =
    LazyLock::new(|| fs::read_to_string("/proc/sys/net/core/rmem_max").ok()?.trim().parse().ok());

/// Where the limit of the host is looked up.
type Source = Arc<dyn Fn() -> Rate + Send + Sync>;

/// Sizes of receive buffers by the limits of the host; clones share these.
#[derive(Clone, Default)]
pub(crate) struct ReceiveBuffers(Arc<Mutex<Vec<Source>>>);

impl fmt::Debug for ReceiveBuffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ReceiveBuffers").field(&self.rate()).finish()
    }
}

impl ReceiveBuffers {
    /// What is received is read at this rate, which is asked for with each new connection.
    pub(crate) fn paced_by(&self, rate: impl Fn() -> Rate + Send + Sync + 'static) {
        self.sources().push(Arc::new(rate));
    }

    /// The size for a connection that is opened now and read at `own` rate at most; none when it is the kernel's affair.
    pub(crate) fn size(&self, own: Rate) -> Option<usize> {
        let rate = match (self.rate().bytes_per_second(), own.bytes_per_second()) {
            (Some(host), Some(own)) => host.min(own),
            (host, own) => host.or(own)?,
        };
        size(rate, (*MOST)?)
    }

    /// The limit of the host; of several roles in one process the highest.
    fn rate(&self) -> Rate {
        let rates: Option<Vec<u64>> = self.sources().iter().map(|source| source().bytes_per_second()).collect();
        rates.and_then(|rates| rates.into_iter().max()).map_or(Rate::Unlimited, Rate::Limited)
    }

    fn sources(&self) -> MutexGuard<'_, Vec<Source>> {
        // A list of functions is whole between operations.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn size(rate: u64, most: u64) -> Option<usize> {
    let within = |time: Duration| {
        let bytes = u128::from(rate) * time.as_nanos() / 1_000_000_000;
        u64::try_from(bytes).unwrap_or(u64::MAX).max(FLOOR)
    };
    let size = within(WANTED).min(most);
    (size >= within(LEAST)).then(|| usize::try_from(size).ok()).flatten()
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

    #[test]
    fn the_highest_limit_counts_and_none_means_none() {
        let buffers = ReceiveBuffers::default();
        assert_eq!((buffers.rate(), buffers.size(Rate::Unlimited)), (Rate::Unlimited, None));
        let rate = Arc::new(Mutex::new(Rate::Limited(2_000_000)));
        buffers.paced_by(|| Rate::Limited(1_000_000));
        let shared = Arc::clone(&rate);
        buffers.paced_by(move || *shared.lock().unwrap());
        assert_eq!(buffers.rate(), Rate::Limited(2_000_000));
        *rate.lock().unwrap() = Rate::Unlimited;
        assert_eq!(buffers.rate(), Rate::Unlimited);
    }
}
