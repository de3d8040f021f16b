//! What the result of each benchmark says, as figures, tables and plots.
//!
//! They read the JSON that `--json` writes, so that a result is shown in the same way right after it was measured and
//! years later. What an older result does not have is left out.

pub(crate) mod cache;
pub(crate) mod floor;
pub(crate) mod limits;
pub(crate) mod pull;
pub(crate) mod serve;
pub(crate) mod sim;
pub(crate) mod swarm;
pub(crate) mod tracker;
