//! What the kernel takes in of an answer before this process reads it.
//!
//! How much that is and why: [`eagle_core::receive_buffer`].

use std::{
    fmt, fs,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
};

use eagle_core::{receive_buffer, units::Rate};

/// Most bytes that this kernel gives on request; none where it does not say.
static MOST: LazyLock<Option<u64>> =
    LazyLock::new(|| fs::read_to_string(receive_buffer::KERNEL_LIMIT_FILE).ok()?.trim().parse().ok());

/// Most bytes that an HTTP client takes in ahead of who reads the answer, for each connection; `hyper` by itself takes 400 KiB.
/// A head has to fit too.
pub const HTTP_READ_AHEAD: usize = 64 << 10;

/// The receive buffer, bytes, of a connection that is opened now and read at `rate` at most; none when it is the kernel's affair
/// ([`eagle_core::receive_buffer`]).
pub fn receive_buffer(rate: Rate) -> Option<usize> {
    let size = receive_buffer::size(rate.bytes_per_second()?, (*MOST)?)?;
    usize::try_from(size).ok()
}

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
        receive_buffer(Rate::Limited(rate))
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

#[cfg(test)]
mod tests {
    use super::*;

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
