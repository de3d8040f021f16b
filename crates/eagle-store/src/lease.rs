//! Who fetches a blob, where several could: what all places where that is agreed on have in common.
//!
//! A *lease* is the right to fetch one blob, for as long as its holder shows that it lives. It saves work and protects nothing: two
//! who fetch the same blob get the same bytes. Places that keep leases are a bucket ([`BlobStorage::claim`](crate::BlobStorage::claim))
//! and a tracker.

use std::{fmt, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What became of the wish to fetch a blob.
#[derive(Debug)]
pub enum Claim {
    /// Nobody else is at it. Others are told of the holder as long as the lease is kept.
    Granted(Lease),
    /// Somebody has stored it in the meantime, where the claimant can read it.
    Stored,
    /// Somebody else is at it.
    Held(Holder),
}

/// Who fetches a blob, or has it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Holder {
    /// Its name among those that ask for leases; empty when it is not known.
    pub name: String,
    /// Where it gives what it has so far, as it says itself; not checked.
    pub url: Option<String>,
}

/// Somebody who wants a lease, from the first time it asks until it has the blob.
#[derive(Debug, Default)]
pub struct Claimant {
    url: Option<String>,
    /// The last state of another's lease, and since when it is that.
    seen: Option<(String, Instant)>,
}

impl Claimant {
    /// One that gives what it has of a blob at `url`, where that is known.
    pub const fn new(url: Option<String>) -> Self {
        Self { url, seen: None }
    }

    /// Where it gives what it has.
    pub fn url(&self) -> Option<&str> {
        self.url.as_deref()
    }

    /// Notes the present state of another's lease; for how long that is the same. By the claimant's own clock, so
    /// that nobody's clocks are compared.
    pub fn unchanged(&mut self, state: &str) -> Duration {
        match &self.seen {
            Some((seen, since)) if seen == state => since.elapsed(),
            _ => {
                self.seen = Some((state.to_owned(), Instant::now()));
                Duration::ZERO
            }
        }
    }
}

/// The right to fetch a blob; returned when dropped.
#[derive(Debug)]
pub struct Lease {
    guard: Option<Box<dyn Guard>>,
    lost: CancellationToken,
}

/// What keeps a lease until it is dropped.
trait Guard: fmt::Debug + Send + Sync {}

impl<T: fmt::Debug + Send + Sync> Guard for T {}

impl Lease {
    /// Where nobody else fetches, or nobody can be asked.
    pub fn alone() -> Self {
        Self { guard: None, lost: CancellationToken::new() }
    }

    /// One that is returned when this is dropped.
    pub fn new(guard: impl fmt::Debug + Send + Sync + 'static) -> Self {
        Self::revocable(guard, CancellationToken::new())
    }

    /// The same, which may be taken by another from a holder that seems dead: `lost` is cancelled when the holder finds that out.
    pub fn revocable(guard: impl fmt::Debug + Send + Sync + 'static, lost: CancellationToken) -> Self {
        Self { guard: Some(Box::new(guard)), lost }
    }

    /// Whether others are kept from fetching by it.
    pub const fn is_exclusive(&self) -> bool {
        self.guard.is_some()
    }

    /// Cancelled when another has taken it; never for one that nobody can take.
    pub fn lost(&self) -> CancellationToken {
        self.lost.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_changes_begins_anew() {
        let mut claimant = Claimant::new(None);
        let second = Duration::from_secs(1);
        assert_eq!(claimant.unchanged("a 1"), Duration::ZERO);
        tokio::time::advance(second).await;
        assert_eq!(claimant.unchanged("a 1"), second);
        assert_eq!(claimant.unchanged("a 2"), Duration::ZERO);
        tokio::time::advance(second).await;
        assert_eq!(claimant.unchanged("a 1"), Duration::ZERO);
    }
}
