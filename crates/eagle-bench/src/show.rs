//! `eagle-bench report`: results that were written before, as one page.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::{
    compare::{results_in, stem},
    report::{Section, read::load, write_html},
};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eagle-bench report swarm.json --html swarm.html
  eagle-bench report benches/results/2026-11-21 --html report.html")]
pub(crate) struct ReportArgs {
    /// Results, as --json wrote them, or directories of results
    #[arg(required = true, value_name = "FILE")]
    pub(crate) results: Vec<PathBuf>,
    /// Write them to this file as a page with plots, which needs no other file
    #[arg(long, value_name = "FILE")]
    pub(crate) html: PathBuf,
    /// Title of the page
    #[arg(long, default_value = "Results of eagle-bench", value_name = "TEXT")]
    pub(crate) title: String,
}

/// Reads results and writes the page.
///
/// # Errors
/// When a file is no result, or the page cannot be written.
pub(crate) fn run(args: &ReportArgs) -> Result<()> {
    let mut files = Vec::new();
    for path in &args.results {
        if path.is_dir() {
            files.extend(results_in(path)?);
        } else {
            files.push(path.clone());
        }
    }
    let reports = files.iter().map(|file| Ok((stem(file), load(file)?))).collect::<Result<Vec<_>>>()?;
    let sections: Vec<_> =
        reports.iter().map(|(name, report)| Section { name: name.clone(), report: Ok(report) }).collect();
    write_html(&args.html, &args.title, &sections)?;
    println!("{}", args.html.display());
    Ok(())
}
