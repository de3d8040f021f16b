//! Fuzzing: the targets of `eagle-fuzz` under cargo-fuzz, each for a while, as many at a time as there are processors.
//!
//! They are built without sanitizers: no line of Eagle is `unsafe`, and so the stable toolchain is enough. Libraries that are not
//! all safe are fuzzed by their own projects.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::{
    process::{finish, succeed, tail},
    report::Report,
    workspace,
};

/// What each target gets as a part of `cargo xtask test`.
const SHORT: u64 = 30;
/// Building everything with instrumentation on a slow machine.
const BUILD_DEADLINE: Duration = Duration::from_secs(1800);
/// How long a target may take to end beyond its time: the last input, and writing down what it found.
const GRACE: Duration = Duration::from_secs(60);
/// Seconds for one input. The largest takes milliseconds.
const SECONDS_PER_INPUT: u32 = 10;
/// Memory of a target, MiB. They take about 100.
const MEMORY: u32 = 1024;
/// Longest input, bytes: some are as long as a metainfo frame, and longer ones only cost time.
const LONGEST_INPUT: u32 = 4096;
/// Where the targets are, from the root of the repository.
const DIRECTORY: &str = "crates/eagle-fuzz";

#[derive(Debug, Args)]
pub(crate) struct FuzzArgs {
    /// How long each target runs, seconds.
    #[arg(long, value_name = "N", default_value_t = 600)]
    seconds: u64,
    /// Run only targets whose name contains this.
    #[arg(long, value_name = "TARGET")]
    target: Option<String>,
    /// Targets at a time.
    #[arg(long, value_name = "N", default_value_t = 2)]
    jobs: usize,
}

/// Runs the targets for as long as was asked for.
pub(crate) fn run(report: &mut Report, args: &FuzzArgs) -> Result<()> {
    if let Some(problem) = missing() {
        bail!("{problem}; cargo install cargo-fuzz brings it");
    }
    all(report, args)
}

/// Runs each target for a short time where cargo-fuzz is installed; says so where it is not.
pub(crate) fn short(report: &mut Report, only: Option<&str>) -> Result<()> {
    if only.is_some_and(|only| !"fuzz".contains(only)) {
        return Ok(());
    }
    match missing() {
        // Nothing is left untested: the same functions ran with the tests of their crate.
        Some(problem) => {
            println!("fuzz targets: {problem}; they ran as the property tests of eagle-fuzz");
            Ok(())
        }
        None => {
            let jobs = thread::available_parallelism().map_or(1, std::num::NonZero::get);
            all(report, &FuzzArgs { seconds: SHORT, target: None, jobs })
        }
    }
}

/// What keeps the fuzzer from running here.
fn missing() -> Option<&'static str> {
    let version = finish(Command::new("cargo").args(["fuzz", "--version"]), GRACE);
    (!version.is_ok_and(|version| version.status.success())).then_some("cargo-fuzz is not installed")
}

fn all(report: &mut Report, args: &FuzzArgs) -> Result<()> {
    let root = workspace::root().join(DIRECTORY);
    let mut targets = Vec::new();
    for entry in fs::read_dir(root.join("fuzz/fuzz_targets"))? {
        let path = entry?.path();
        targets.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    targets.sort();
    targets.retain(|target| args.target.as_ref().is_none_or(|wanted| target.contains(wanted.as_str())));
    ensure!(!targets.is_empty(), "no fuzz target has that name");
    let cache = workspace::cache()?.join("fuzz");
    let programs = build(&root, &cache)?;
    let next = AtomicUsize::new(0);
    let report = Mutex::new(report);
    thread::scope(|scope| {
        for _ in 0..args.jobs.clamp(1, targets.len()) {
            scope.spawn(|| {
                while let Some(target) = targets.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = fuzz(target, &root, &cache, &programs, args.seconds);
                    let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
                    let said = outcome.as_ref().map_or_else(|_| String::new(), Clone::clone);
                    report.test(&format!("fuzz {target} {said}"), || outcome.map(drop));
                }
            });
        }
    });
    Ok(())
}

/// Builds all targets, with the versions of everything that the workspace has, and says where they are.
fn build(root: &Path, cache: &Path) -> Result<PathBuf> {
    fs::copy(workspace::root().join("Cargo.lock"), root.join("fuzz/Cargo.lock")).context("cannot copy Cargo.lock")?;
    let directory = root.join("fuzz");
    let mut command = Command::new("cargo");
    command.current_dir(root).args(["fuzz", "build", "--sanitizer", "none", "--fuzz-dir"]).arg(&directory);
    command.arg("--target-dir").arg(cache.join("target"));
    println!("building the fuzz targets");
    succeed(&mut command, BUILD_DEADLINE)?;
    let release = |target: &Path| target.join("release/names").is_file().then(|| target.join("release"));
    let mut found = fs::read_dir(cache.join("target"))?.filter_map(|entry| release(&entry.ok()?.path()));
    found.next().context("cargo-fuzz built nothing that can be found")
}

/// Runs one target; what it has to say for itself.
fn fuzz(target: &str, root: &Path, cache: &Path, programs: &Path, seconds: u64) -> Result<String> {
    let corpus = cache.join("corpus").join(target);
    let artifacts = cache.join("artifacts").join(target);
    fs::create_dir_all(&corpus)?;
    fs::create_dir_all(&artifacts)?;
    let log = cache.join(format!("{target}.log"));
    let output = File::create(&log)?;
    let mut command = Command::new(programs.join(target));
    // What the targets read has no business with the environment, and a panic is enough without its backtrace.
    command.env_clear().stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    command
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={SECONDS_PER_INPUT}"))
        .arg(format!("-rss_limit_mb={MEMORY}"))
        .arg(format!("-max_len={LONGEST_INPUT}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg("-print_final_stats=1");
    let dictionary = root.join("dictionaries").join(target);
    if dictionary.is_file() {
        command.arg(format!("-dict={}", dictionary.display()));
    }
    command.arg(&corpus).arg(root.join("seeds").join(target));
    let mut child = command.spawn().with_context(|| format!("cannot start the fuzz target {target}"))?;
    let deadline = Duration::from_secs(seconds) + GRACE;
    let ended =
        crate::process::wait_until(&format!("the fuzz target {target} to end"), deadline, || Ok(child.try_wait()?));
    if ended.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let status = ended?;
    ensure!(status.success(), "found something ({status}); the input is in {}\n{}", artifacts.display(), tail(&log));
    summary(&fs::read_to_string(&log)?).with_context(|| format!("no figures in {}", log.display()))
}

/// Inputs tried, branches covered and inputs kept, from what libFuzzer prints.
fn summary(log: &str) -> Option<String> {
    let word_after = |line: &str, key: &str| {
        let mut words = line.split_whitespace().skip_while(|word| *word != key);
        words.nth(1).map(str::to_owned)
    };
    let runs = log.lines().find_map(|line| word_after(line, "stat::number_of_executed_units:"))?;
    let last = log.lines().rev().find(|line| line.contains(" cov: "))?;
    let (covered, kept) = (word_after(last, "cov:")?, word_after(last, "corp:")?);
    let kept = kept.split('/').next().unwrap_or_default().to_owned();
    Some(format!("({runs} inputs, {covered} branches, {kept} kept)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_what_libfuzzer_prints() {
        let log = "#2\tINITED cov: 120 ft: 130 corp: 2/9b exec/s: 0 rss: 40Mb\n\
                   #9000\tDONE   cov: 812 ft: 2011 corp: 190/21Kb lim: 4096 exec/s: 300 rss: 90Mb\n\
                   stat::number_of_executed_units: 9000\nstat::average_exec_per_sec:     300\n";
        assert_eq!(summary(log).as_deref(), Some("(9000 inputs, 812 branches, 190 kept)"));
        assert_eq!(summary("nothing"), None);
    }
}
