//! `eagle-bench serve`.

use std::path::PathBuf;

use clap::Args;
use eagle_core::units::Size;

use crate::report::Output;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eagle-bench serve
  eagle-bench serve --rounds 9 --seconds 2 --json serve.json

Both servers send the very same files, in turn, round by round; the figures are medians of the rounds. Without
nginx on this machine the proxy is measured alone.")]
pub(crate) struct ServeArgs {
    /// Size of the large blob, a multiple of 512 and at least 2048
    #[arg(long, default_value = "1GiB", value_name = "SIZE")]
    pub(crate) large: Size,
    /// Size of the small blob, at least 1KiB
    #[arg(long, default_value = "1KiB", value_name = "SIZE", value_parser = small_blob)]
    pub(crate) small: Size,
    /// Numbers of clients that ask at the same time, one measurement for each
    #[arg(long, value_delimiter = ',', default_value = "1,32", value_name = "N,...",
        value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) clients: Vec<u32>,
    /// Rounds; in each, every measurement is made with either server
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,
    /// Length of one measurement, seconds
    #[arg(long, default_value_t = 1.0, value_name = "SECONDS", value_parser = measurement_seconds)]
    pub(crate) seconds: f64,
    /// The nginx program; looked for unless given
    #[arg(long, value_name = "FILE")]
    pub(crate) nginx: Option<PathBuf>,
    /// The eagle program; the one beside this program unless given
    #[arg(long, value_name = "FILE")]
    pub(crate) eagle: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) output: Output,
    /// Keep logs and configurations of all processes in this directory
    #[arg(long, value_name = "DIR")]
    pub(crate) keep_logs: Option<PathBuf>,
}

/// The small blob is an image's configuration, which has some hundred bytes by itself.
fn small_blob(text: &str) -> Result<Size, String> {
    let size: Size = text.parse().map_err(|error| format!("{error}"))?;
    let range = 1 << 10..=64 << 20;
    if range.contains(&size.0) { Ok(size) } else { Err("it has to be from 1KiB to 64MiB".to_owned()) }
}

fn measurement_seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if (0.05..=600.0).contains(&seconds) { Ok(seconds) } else { Err("it has to be from 0.05 to 600".to_owned()) }
}
