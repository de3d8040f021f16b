//! Whose turn it is to fetch a blob from its registry.
//!
//! Seeders that may be asked for the same blob agree on one of them by a lease, which is kept in the object store that they share
//! ([`eagle_store::Claim`]), or else by a tracker ([`eagle_tracker::Registration`]). The others take the blob from its holder while that fetches it
//! (`fetch::follow`). Where no lease can be had, a seeder fetches by itself: that costs a request to the registry and nothing else.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use eagle_core::{Digest, NodeId};
use eagle_store::{Claimant, Holder, Lease};
use eagle_tracker::{HeldLease, Registration, SeederClaim, api::seeders::MAX_WITHOUT};
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

/// A blob that is wanted, from the first question about it until it is there.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) digest: Digest,
    /// Bytes of it that there are: what shows that its fetch gets on.
    pub(crate) progress: Arc<AtomicU64>,
    claimant: Claimant,
    /// Whether it was asked for before.
    again: bool,
    /// Seeders that did not have it, whatever trackers know.
    without: Vec<NodeId>,
}

impl Wanted {
    /// Whether this is the first time that somebody else is waited for.
    pub(crate) fn waits_first(&mut self) -> bool {
        !std::mem::replace(&mut self.again, true)
    }

    /// Notes that a seeder does not have it.
    pub(crate) fn is_not_at(&mut self, holder: &Holder) {
        if self.without.len() < MAX_WITHOUT
            && let Ok(id) = holder.name.parse()
            && !self.without.contains(&id)
        {
            self.without.push(id);
        }
    }

    /// Notes that a seeder has it, or fetches it.
    pub(crate) fn is_found(&mut self) {
        self.without.clear();
    }
}

/// Where the seeders of a cluster agree on who fetches.
#[derive(Debug)]
pub(crate) struct Leases {
    pub(crate) shared: Option<Shared>,
    /// The trackers, which are asked where there is no shared storage, or none that works.
    pub(crate) trackers: Registration,
    /// Where others find this seeder, if that is known beforehand.
    pub(crate) url: Option<Url>,
    /// How long to wait for a holder that gives nothing.
    pub(crate) patience: Duration,
    pub(crate) metrics: Metrics,
}

impl Leases {
    /// The storage that seeders share, if they do.
    pub(crate) const fn shared(&self) -> Option<&Shared> {
        self.shared.as_ref()
    }

    /// How long to wait for a holder that gives nothing.
    pub(crate) const fn patience(&self) -> Duration {
        self.patience
    }

    /// A blob that is wanted now; `progress` counts its bytes that there are.
    pub(crate) fn want(&self, digest: Digest, progress: Arc<AtomicU64>) -> Wanted {
        let claimant = Claimant::new(self.url().as_ref().map(Url::to_string));
        Wanted { digest, progress, claimant, again: false, without: Vec::new() }
    }

    /// Asks what to do about a blob.
    pub(crate) async fn turn(&self, wanted: &mut Wanted) -> Turn {
        let turn = match &self.shared {
            Some(shared) => shared.turn(wanted.digest, &mut wanted.claimant, wanted.again).await,
            None => None,
        };
        let Some(turn) = turn else { return self.turn_by_trackers(wanted).await };
        if let Turn::Fetch(lease) = &turn {
            self.metrics.lease(if lease.is_exclusive() { "granted" } else { "alone" });
        }
        turn
    }

    async fn turn_by_trackers(&self, wanted: &Wanted) -> Turn {
        let (outcome, lease) = match self.trackers.claim(wanted.digest, &wanted.without, &wanted.progress).await {
            Some(SeederClaim::Granted(lease)) => ("granted", revocable(lease)),
            Some(SeederClaim::Alone(lease)) => ("alone", revocable(lease)),
            Some(SeederClaim::Held(holder)) => {
                return Turn::Wait(Holder { name: holder.id.to_string(), url: Some(holder.url) });
            }
            None => ("alone", Lease::alone()),
        };
        self.metrics.lease(outcome);
        Turn::Fetch(lease)
    }

    /// Where others find this seeder.
    fn url(&self) -> Option<Url> {
        self.url.clone().or_else(|| self.trackers.url()?.parse().ok())
    }

    /// Where a holder can be followed: not at an address that is none, nor at this seeder's own.
    pub(crate) fn follow_at(&self, holder: &Holder) -> Option<Url> {
        let url: Url = holder.url.as_deref()?.parse().ok()?;
        (crate::client::check_seeder_url(&url).is_ok() && self.url().as_ref() != Some(&url)).then_some(url)
    }
}

/// A lease that trackers keep.
fn revocable(lease: HeldLease) -> Lease {
    let lost = lease.lost();
    Lease::revocable(lease, lost)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_other_seeders_are_followed() {
        let info = serde_json::from_str(r#"{"id": "a", "url": "http://a"}"#).unwrap();
        let (members, stop) = (eagle_cluster::MemberTls::open(), tokio_util::sync::CancellationToken::new());
        let leases = Leases {
            shared: None,
            trackers: Registration::start(Vec::new(), info, &members, stop.clone(), stop),
            url: Some("http://10.0.0.1:55008/".parse().unwrap()),
            patience: Duration::ZERO,
            metrics: Metrics::default(),
        };
        let at = |url: &str| leases.follow_at(&Holder { name: String::new(), url: Some(url.to_owned()) });
        assert!(at("http://10.0.0.2:55008").is_some());
        for bad in ["http://10.0.0.1:55008", "ftp://10.0.0.2", "", "http://u:p@10.0.0.2", "file:///etc/passwd"] {
            assert_eq!(at(bad), None, "{bad}");
        }
        assert_eq!(leases.follow_at(&Holder::default()), None);
        // Without anybody to ask it is always this seeder's turn.
        let mut wanted = leases.want(Digest::of(b"blob"), Arc::default());
        assert!(matches!(leases.turn(&mut wanted).await, Turn::Fetch(lease) if !lease.lost().is_cancelled()));
    }
}
