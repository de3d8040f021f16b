//! Which trackers a command asks.

use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct AskTrackersArgs {
    /// HTTP API of a tracker, or its admin address on its own machine; repeatable, for trackers that have a memory each
    #[arg(long = "tracker", value_name = "URL")]
    pub(crate) trackers: Vec<String>,
    /// Ask the trackers that a proxy or seeder of this configuration has, by its cluster key
    #[arg(long, short, conflicts_with = "trackers", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// File with the cluster key, for trackers that have one
    #[arg(long, env = "EAGLE_CLUSTER__KEY_FILE", value_name = "FILE")]
    pub(crate) cluster_key_file: Option<PathBuf>,
}
