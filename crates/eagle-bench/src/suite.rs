//! `eagle-bench suite`: the standard set, one benchmark after the other, and one page of all.

mod cases;

use std::{
    ffi::OsString,
    fs,
    io::IsTerminal as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use self::cases::{Case, PLANS};
use crate::{
    process::Process,
    report::{Section, model::Report, read::load, write_html},
};

/// Between two looks at a benchmark that runs.
const POLL: Duration = Duration::from_millis(50);
/// Longest that one benchmark may take: the longest of the set takes some two minutes on two cores.
const DEADLINE: Duration = Duration::from_secs(600);
/// From asking a benchmark to end, so that it removes its data, to killing it.
const END: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eagle-bench suite --output results/
  eagle-bench suite --quick --output quick/
  eagle-bench suite --output results/ --only swarm --only floor

Each benchmark is a process of its own with its own command line. Its result is DIR/NAME.json, what it printed
DIR/NAME.log, and DIR/report.html has all of them. Exit code 0 only if none failed.")]
pub(crate) struct SuiteArgs {
    /// Write results and the page into this directory
    #[arg(long, value_name = "DIR")]
    pub(crate) output: PathBuf,
    /// The same benchmarks with little to do, to see that they work
    #[arg(long)]
    pub(crate) quick: bool,
    /// Run only what has this in its name; repeatable
    #[arg(long, value_name = "NAME")]
    pub(crate) only: Vec<String>,
    /// The eagle program; the one beside this program unless given
    #[arg(long, value_name = "FILE")]
    pub(crate) eagle: Option<PathBuf>,
}

/// Runs the set and writes everything.
///
/// # Errors
/// When the directory cannot be written, or a benchmark failed; in the last case after all have run.
pub(crate) async fn run(args: SuiteArgs) -> Result<()> {
    let cases: Vec<Case> = cases::all(args.quick).into_iter().filter(|case| wanted(&args.only, case.name)).collect();
    ensure!(!cases.is_empty(), "--only: none of the set has such a name ({})", cases::names());
    let directory = &args.output;
    let plans = directory.join("plans");
    fs::create_dir_all(&plans).with_context(|| format!("{} cannot be made", plans.display()))?;
    let directory = &directory.canonicalize().with_context(|| format!("{} cannot be found", directory.display()))?;
    for (name, text) in PLANS {
        let path = plans.join(name);
        fs::write(&path, text).with_context(|| format!("{} cannot be written", path.display()))?;
    }
    let started = Instant::now();
    let mut outcomes = Vec::new();
    for (index, case) in cases.iter().enumerate() {
        let place = format!("{} of {}", index + 1, cases.len());
        outcomes.push((case.name, one(case, &place, directory, args.eagle.as_deref()).await));
    }
    let page = directory.join("report.html");
    let sections: Vec<_> = outcomes
        .iter()
        .map(|(name, outcome)| Section { name: (*name).to_owned(), report: outcome.as_ref().map_err(Clone::clone) })
        .collect();
    let title = if args.quick { "eagle-bench suite, the quick set" } else { "eagle-bench suite" };
    write_html(&page, title, &sections)?;
    println!("{} benchmarks in {:.0} s: {}", cases.len(), started.elapsed().as_secs_f64(), page.display());
    let failed: Vec<_> = outcomes.iter().filter(|(_, outcome)| outcome.is_err()).map(|(name, _)| *name).collect();
    if !failed.is_empty() {
        bail!("{} of them failed: {}; the page has why", failed.len(), failed.join(", "));
    }
    Ok(())
}

fn wanted(only: &[String], name: &str) -> bool {
    only.is_empty() || only.iter().any(|part| name.contains(part.as_str()))
}

/// Runs one benchmark; its report, or why there is none.
async fn one(case: &Case, place: &str, directory: &Path, eagle: Option<&Path>) -> Result<Report, String> {
    let line = Line::start(format!("{place}: {}", case.name));
    let started = Instant::now();
    let outcome = measured(case, directory, eagle).await;
    let seconds = started.elapsed().as_secs_f64();
    drop(line);
    let said = if outcome.is_ok() { "done" } else { "FAILED" };
    eprintln!("{place}: {} {said} in {seconds:.1} s", case.name);
    outcome.map_err(|error| format!("{error:#}"))
}

async fn measured(case: &Case, directory: &Path, eagle: Option<&Path>) -> Result<Report> {
    let file = directory.join(format!("{}.json", case.name));
    // A result of an earlier run is none of this one.
    if file.exists() {
        fs::remove_file(&file).with_context(|| format!("{} cannot be replaced", file.display()))?;
    }
    let mut arguments: Vec<OsString> = case.arguments(directory).into_iter().map(OsString::from).collect();
    if let Some(eagle) = eagle.filter(|_| case.starts_eagle()) {
        arguments.extend(["--eagle".into(), eagle.into()]);
    }
    arguments.extend(["--json".into(), file.clone().into()]);
    let program = std::env::current_exe().context("cannot find this program")?;
    let log = directory.join(format!("{}.log", case.name));
    let mut running = Running(Process::start(case.name, &program, &arguments, log)?);
    let started = Instant::now();
    let status = loop {
        if let Some(status) = running.0.ended()? {
            break status;
        }
        ensure!(started.elapsed() < DEADLINE, "did not end within {} s", DEADLINE.as_secs());
        tokio::time::sleep(POLL).await;
    };
    ensure!(status.success(), "ended with {status}\n{}", running.0.tail());
    load(&file)
}

/// A benchmark that is asked to end, and so to clean up, when it is no longer wanted.
struct Running(Process);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.ask_to_end();
        let asked = Instant::now();
        while !self.0.has_ended() && asked.elapsed() < END {
            thread::sleep(POLL);
        }
    }
}

/// What runs now and for how long, on a terminal.
struct Line(Option<ProgressBar>);

impl Line {
    fn start(what: String) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner().with_message(what);
            if let Ok(style) = ProgressStyle::with_template("  {spinner} {msg}  {elapsed}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self(bar)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::Parser as _;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn every_command_line_is_one() {
        for quick in [false, true] {
            let all = cases::all(quick);
            for case in &all {
                let arguments = case.arguments(Path::new("/results"));
                let line = ["eagle-bench".to_owned()].into_iter().chain(arguments.clone());
                let mut line: Vec<String> = line.chain(["--json".to_owned(), "x".to_owned()]).collect();
                if case.starts_eagle() {
                    line.extend(["--eagle".to_owned(), "x".to_owned()]);
                }
                Cli::try_parse_from(line).unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
            }
            let names: BTreeSet<_> = all.iter().map(|case| case.name).collect();
            assert_eq!(names.len(), all.len());
        }
    }

    #[test]
    fn names_are_picked_by_a_part() {
        let only = ["swarm-8".to_owned(), "floor".to_owned()];
        assert!(wanted(&only, "swarm-8-20MBps") && wanted(&only, "floor") && !wanted(&only, "serve"));
        assert!(wanted(&[], "serve"));
    }
}
