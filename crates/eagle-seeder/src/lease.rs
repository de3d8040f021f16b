//! Whose turn it is to fetch a blob from its registry.
//!
//! Seeders that may be asked for the same blob agree on one of them by a lease ([`eagle_store::Claim`]), which is kept in the
//! object store that they share. The others take the blob from its holder while that fetches it
//! (`fetch::follow`). Where no lease can be had, a seeder fetches by itself: that costs a request to the registry and nothing else.

use std::time::Duration;

use eagle_core::Digest;
use eagle_store::{Claimant, Holder, Lease};
use url::Url;

use crate::{
    metrics::Metrics,
    shared::{Found, Shared},
};

/// What there is to do about a blob that is not in the cache.
#[derive(Debug)]
pub(crate) enum Turn {
    /// Read it from the shared storage.
    Read(Found),
    /// Fetch it, and keep the lease until others can have it.
    Fetch(Lease),
    /// Another seeder is at it.
    Wait(Holder),
}

/// Where the seeders of a cluster agree on who fetches.
#[derive(Debug)]
pub(crate) struct Leases {
    shared: Option<Shared>,
    /// Where others find this seeder.
    url: Option<Url>,
    /// How long to wait for a holder that gives nothing.
    patience: Duration,
    metrics: Metrics,
}

impl Leases {
    pub(crate) const fn new(shared: Option<Shared>, url: Option<Url>, patience: Duration, metrics: Metrics) -> Self {
        Self { shared, url, patience, metrics }
    }

    /// The storage that seeders share, if they do.
    pub(crate) const fn shared(&self) -> Option<&Shared> {
        self.shared.as_ref()
    }

    /// How long to wait for a holder that gives nothing.
    pub(crate) const fn patience(&self) -> Duration {
        self.patience
    }

    /// This seeder as one who wants a blob.
    pub(crate) fn claimant(&self) -> Claimant {
        Claimant::new(self.url.as_ref().map(Url::to_string))
    }

    /// Asks what to do about a blob; `again` by who was told to wait.
    pub(crate) async fn turn(&self, digest: Digest, claimant: &mut Claimant, again: bool) -> Turn {
        let turn = match &self.shared {
            Some(shared) => shared.turn(digest, claimant, again).await,
            None => None,
        };
        let turn = turn.unwrap_or_else(|| Turn::Fetch(Lease::alone()));
        if let Turn::Fetch(lease) = &turn {
            self.metrics.lease(if lease.is_exclusive() { "granted" } else { "alone" });
        }
        turn
    }

    /// Where a holder can be followed: not at an address that is none, nor at this seeder's own.
    pub(crate) fn follow_at(&self, holder: &Holder) -> Option<Url> {
        let url: Url = holder.url.as_deref()?.parse().ok()?;
        (crate::client::check_seeder_url(&url).is_ok() && self.url.as_ref() != Some(&url)).then_some(url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_other_seeders_are_followed() {
        let own = "http://10.0.0.1:55008/".parse().unwrap();
        let leases = Leases::new(None, Some(own), Duration::ZERO, Metrics::default());
        let at = |url: &str| leases.follow_at(&Holder { name: String::new(), url: Some(url.to_owned()) });
        assert!(at("http://10.0.0.2:55008").is_some());
        for bad in ["http://10.0.0.1:55008", "ftp://10.0.0.2", "", "http://u:p@10.0.0.2", "file:///etc/passwd"] {
            assert_eq!(at(bad), None, "{bad}");
        }
        assert_eq!(leases.follow_at(&Holder::default()), None);
    }
}
