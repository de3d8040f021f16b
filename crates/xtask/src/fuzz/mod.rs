//! Fuzzing: the targets of `eagle-fuzz` under libFuzzer, each for a while, some at a time.
//!
//! Needs a C++ compiler, with which the crate `libfuzzer-sys` builds libFuzzer, and nothing else: neither cargo-fuzz nor another toolchain.
//! Libraries are those that the tests were built with, so that only Eagle's own crates have to be compiled once more ([`instrument`]).
//! The targets are built without sanitizers, since no line of Eagle is `unsafe`. Libraries that are not all safe are fuzzed by their own projects.

pub(crate) mod instrument;
mod target;

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use self::target::{Outcome, Places};
use crate::{process::finish, report::Report, workspace};

/// What each target gets as a part of `cargo xtask test`, seconds.
const SHORT: u64 = 30;
/// A program that says its version.
const VERSION_DEADLINE: Duration = Duration::from_secs(60);
/// Where the targets are, from the root of the repository.
const DIRECTORY: &str = "crates/eagle-fuzz";
/// What is fuzzed, and compiled with a little optimisation: without, most of the time goes into counting.
const WATCHED: [&str; 10] = [
    "eagle",
    "eagle-cluster",
    "eagle-core",
    "eagle-fuzz",
    "eagle-p2p",
    "eagle-proxy",
    "eagle-registry",
    "eagle-seeder",
    "eagle-store",
    "eagle-tracker",
];

#[derive(Debug, Args)]
pub(crate) struct FuzzArgs {
    /// Processor time that each target gets, seconds.
    #[arg(long, value_name = "N", default_value_t = 600)]
    seconds: u64,
    /// Run only targets whose name contains this; may be given several times, and they run in that order.
    #[arg(long, value_name = "TARGET")]
    target: Vec<String>,
    /// Targets at a time.
    #[arg(long, value_name = "N", default_value_t = 2)]
    jobs: usize,
    /// Writes what came out of each target to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs the targets for as long as was asked for.
pub(crate) fn run(report: &mut Report, args: &FuzzArgs) -> Result<()> {
    if !is_there(Command::new(compiler()).arg("--version")) {
        bail!(
            "libFuzzer is built with a C++ compiler, and {} is none (on Debian: apt-get install g++)",
            compiler().display()
        );
    }
    all(report, args)
}

/// Runs each target for a short time on machines that are meant for it: building the targets takes as long as building everything else.
pub(crate) fn short(report: &mut Report, only: Option<&str>) -> Result<()> {
    if only.is_some_and(|only| !"fuzz".contains(only)) {
        return Ok(());
    }
    // It is not used, but nobody has it who does not want to fuzz.
    if !is_there(Command::new("cargo").args(["fuzz", "--version"])) {
        // Nothing is left untested: the same functions ran with the tests of their crate.
        println!(
            "fuzz targets: no cargo-fuzz here, so they ran as the property tests of eagle-fuzz; `cargo xtask fuzz` runs them anyway"
        );
        return Ok(());
    }
    let jobs = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    run(report, &FuzzArgs { seconds: SHORT, target: Vec::new(), jobs, json: None })
}

/// The C++ compiler, as the crate `cc` finds it.
fn compiler() -> OsString {
    env::var_os("CXX").unwrap_or_else(|| "c++".into())
}

fn is_there(command: &mut Command) -> bool {
    finish(command, VERSION_DEADLINE).is_ok_and(|version| version.status.success())
}

fn all(report: &mut Report, args: &FuzzArgs) -> Result<()> {
    let sources = workspace::root().join(DIRECTORY);
    let targets = wanted(names(&sources)?, &args.target);
    ensure!(!targets.is_empty(), "no fuzz target has that name");
    let cache = workspace::cache()?.join("fuzz");
    let places = Places { program: build()?, sources, cache };
    let next = AtomicUsize::new(0);
    let (report, outcomes) = (Mutex::new(report), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..args.jobs.clamp(1, targets.len()) {
            scope.spawn(|| {
                while let Some(target) = targets.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let began = Instant::now();
                    let outcome = target::run(target, &places, args.seconds);
                    let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
                    let result = outcome.and_then(|outcome| {
                        let found = outcome.finding.as_ref().map(|found| format!("{}: {}", found.what, found.command));
                        outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
                        found.map_or(Ok(()), |found| bail!(found))
                    });
                    report.outcome(&format!("fuzz {target}"), began.elapsed(), result);
                }
            });
        }
    });
    let mut outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    outcomes.sort_by(|one, other| one.target.cmp(&other.target));
    print!("{}", table(&outcomes));
    if let Some(file) = &args.json {
        let text = serde_json::to_string_pretty(&outcomes)?;
        fs::write(file, text + "\n").with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// The names of all targets: their seeds have a directory each, which the tests of `eagle-fuzz` see to.
fn names(sources: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(sources.join("seeds"))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Those that were asked for, in that order; all where none was.
fn wanted(mut names: Vec<String>, asked: &[String]) -> Vec<String> {
    if asked.is_empty() {
        return names;
    }
    let mut found = Vec::new();
    for part in asked {
        found.extend(names.extract_if(.., |name| name.contains(part.as_str())));
    }
    found
}

/// Builds the program of all targets and says where it is.
fn build() -> Result<PathBuf> {
    println!("building the fuzz targets");
    let mut configuration = Vec::new();
    for package in WATCHED {
        configuration.push("--config".to_owned());
        configuration.push(format!("profile.dev.package.{package}.opt-level=1"));
    }
    workspace::build("eagle-fuzz", "--bin", "eagle-fuzz", |cargo| {
        cargo.args(["--features", "libfuzzer"]).args(configuration);
        cargo.env("RUSTC_WORKSPACE_WRAPPER", env::current_exe()?).env(instrument::MARK, "1");
        Ok(())
    })
}

/// What came out, a line for each target.
fn table(outcomes: &[Outcome]) -> String {
    let width = outcomes.iter().map(|outcome| outcome.target.len()).max().unwrap_or_default().max("target".len());
    let mut text = format!(
        "\n{:width$} {:>9} {:>11} {:>9} {:>9} {:>6}  finding\n",
        "target", "seconds", "inputs", "inputs/s", "branches", "kept"
    );
    for Outcome { target, processor_seconds, inputs, inputs_per_second, branches, kept, finding, .. } in outcomes {
        let found = finding.as_ref().map_or("none", |found| &found.what);
        text += &format!(
            "{target:width$} {processor_seconds:>9.0} {inputs:>11} {inputs_per_second:>9.0} {branches:>9} {kept:>6}  {found}\n"
        );
        if let Some(found) = finding {
            text += &format!("{:width$}   again: {}\n", "", found.command);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::target::Finding;

    #[test]
    fn targets_run_in_the_order_asked_for_and_once() {
        let all = || ["announces", "announces_protobuf", "names", "swarm"].map(str::to_owned).to_vec();
        let ask = |asked: &[&str]| wanted(all(), &asked.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>());
        assert_eq!(ask(&[]), all());
        assert_eq!(ask(&["swarm", "ann", "protobuf"]), ["swarm", "announces", "announces_protobuf"]);
        assert!(ask(&["none"]).is_empty());
    }

    #[test]
    fn the_table_has_a_line_for_each_target() {
        let outcome = |target: &str, finding| Outcome {
            target: target.to_owned(),
            processor_seconds: 600.2,
            seconds: 900.0,
            inputs: 12_000,
            inputs_per_second: 20.0,
            branches: 812,
            kept: 190,
            finding,
        };
        let found = Finding {
            what: "src/names.rs:5:9: no".to_owned(),
            input: Some("/c/crash-1".into()),
            command: "/p/names /c/crash-1".to_owned(),
        };
        let text = table(&[outcome("announces", None), outcome("names", Some(found))]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 5);
        assert_eq!(
            lines[2].split_whitespace().collect::<Vec<_>>(),
            ["announces", "600", "12000", "20", "812", "190", "none"]
        );
        assert!(lines[3].ends_with("src/names.rs:5:9: no") && lines[4].ends_with("again: /p/names /c/crash-1"));
    }
}
