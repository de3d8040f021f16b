//! The list of live seeders, as a tracker knows it.

use eagle_core::tracker::seeders::SeederState;
use url::Url;

use crate::api::seeders::{MAX_SEEDERS, SeedersResponse};

/// The seeders of the cluster that are alive.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LiveSeeders {
    /// Changes with the list.
    pub version: u64,
    /// Those that serve.
    pub up: Vec<Url>,
    /// Those that are about to end.
    pub draining: Vec<Url>,
}

impl LiveSeeders {
    /// Those of an answer whose addresses are some.
    pub(super) fn new(response: SeedersResponse) -> Self {
        let mut live = Self { version: response.version, ..Self::default() };
        for seeder in response.seeders.into_iter().take(MAX_SEEDERS) {
            let Ok(url) = seeder.info.url.parse::<Url>() else { continue };
            match seeder.info.state {
                SeederState::Up => live.up.push(url),
                SeederState::Draining => live.draining.push(url),
            }
        }
        live
    }
}
