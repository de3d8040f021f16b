//! `eagle-bench sim`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::report::Output;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eagle-bench sim --plan benches/plans/flash-1k.toml
  eagle-bench sim --plan benches/plans/kraken.toml --json kraken.json --svg kraken.svg --seed 2
  eagle-bench sim --plan benches/plans/two-regions.toml --policy both

The same plan and seed give the same trace, byte for byte. Plans and the fields of the JSON are described in
docs/benchmarks.md.")]
pub(crate) struct SimArgs {
    /// What to simulate, a TOML file
    #[arg(long, value_name = "FILE")]
    pub(crate) plan: PathBuf,
    /// Seed of all random choices; the plan's own unless given
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Whether the nodes know where they are; `both` runs the plan twice and compares; a plan that has a target for
    /// that is run so unless this is given
    #[arg(long, value_enum, value_name = "POLICY")]
    pub(crate) policy: Option<SimPolicy>,
    /// Take this share of the plan's nodes and bytes, from 0 to 1, for a quick look
    #[arg(long, default_value_t = 1.0, value_name = "SHARE", value_parser = share)]
    pub(crate) scale: f64,
    #[command(flatten)]
    pub(crate) output: Output,
    /// Draw completion over time and the spread of pieces to this file as SVG
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
}

/// What a simulated cluster knows of its topology.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SimPolicy {
    /// Nodes and tracker go by the places of the plan
    Topology,
    /// They take all nodes to be in one place
    Blind,
    /// First the one, then the other
    Both,
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if share > 0.0 && share <= 1.0 => Ok(share),
        _ => Err("a number above 0 and at most 1".to_owned()),
    }
}
