//! `eagle-bench limits`.

use std::path::PathBuf;

use clap::Args;
use eagle_core::units::Rate;

use super::Encryption;
use crate::report::Output;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eagle-bench limits
  eagle-bench limits --rates 8KiB/s,50MiB/s --seconds 10 --no-processes --json limits.json

Each rate is measured as a download limit and as an upload limit, between nodes of this process that only move
bytes; what four blobs get of a limit, and how fast a change is in effect, also with a proxy and a seeder.")]
pub(crate) struct LimitsArgs {
    /// The limits to measure
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "8KiB/s,64KiB/s,1MiB/s,50MiB/s,500MiB/s,5GiB/s",
        value_name = "RATE,..."
    )]
    pub(crate) rates: Vec<Rate>,
    /// How long each is measured, seconds; at least 1.5, since the windows have one second
    #[arg(long, default_value_t = 3.0, value_name = "SECONDS", value_parser = limit_seconds)]
    pub(crate) seconds: f64,
    /// How pieces travel between nodes
    #[arg(long, value_enum, default_value_t = Encryption::Tls, value_name = "MODE")]
    pub(crate) encryption: Encryption,
    /// Leave out what needs a proxy and a seeder
    #[arg(long)]
    pub(crate) no_processes: bool,
    /// The eagle program; the one beside this program unless given
    #[arg(long, value_name = "FILE")]
    pub(crate) eagle: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) output: Output,
    /// Keep logs and configurations of all processes in this directory
    #[arg(long, value_name = "DIR")]
    pub(crate) keep_logs: Option<PathBuf>,
}

fn limit_seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if (1.5..=3600.0).contains(&seconds) { Ok(seconds) } else { Err("it has to be from 1.5 to 3600".to_owned()) }
}
