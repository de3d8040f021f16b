//! The `p2p` section: how this host takes part in swarms, the same for seeder and proxy.

use eagle_core::{Topology, wire::control::Encryption};
use serde::{Deserialize, Serialize};

/// How this host takes part in swarms.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct P2pConfig {
    pub(crate) encryption: Encryption,
    pub(crate) topology: Topology,
}

impl Default for P2pConfig {
    fn default() -> Self {
        Self { encryption: Encryption::Tls, topology: Topology::default() }
    }
}
