//! `eagle-bench cache`.

use std::path::PathBuf;

use clap::Args;
use eagle_core::units::Size;

use crate::report::Output;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eagle-bench cache
  eagle-bench cache --victims 10000 --json cache.json

Files are written below TMPDIR and synced as the roles do, so the disk there matters for evictions.")]
pub(crate) struct CacheArgs {
    /// Entries of the cache whose bookkeeping is measured
    #[arg(long, default_value_t = 100_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub(crate) entries: u64,
    /// Size of the blob that is read in each way
    #[arg(long, default_value = "256MiB", value_name = "SIZE")]
    pub(crate) size: Size,
    /// Blobs on disk at the start that is measured
    #[arg(long, default_value_t = 10_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub(crate) blobs: u64,
    /// Blobs that are evicted at once while others are read
    #[arg(long, default_value_t = 1_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub(crate) victims: u64,
    /// Times that they are
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,
    /// The eagle program; the one beside this program unless given
    #[arg(long, value_name = "FILE")]
    pub(crate) eagle: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) output: Output,
}
