//! Where the end-to-end scenarios run: namespaces of their own, so that nothing of them gets out or stays behind.
//!
//! The outer half needs the world: it installs packages, builds `eagle`, makes the image. Then it runs
//! itself again inside new mount, network and process namespaces, and that inner half runs the scenarios.
//!
//! - **Network**: only a loopback interface. No scenario can reach, or be saved by, Docker Hub; ports
//!   cannot collide with the machine's.
//! - **Processes**: when the inner half ends, however it ends, the kernel ends every daemon that it started.
//! - **Mounts**: what runtimes mount is seen by nobody else and goes with the namespace.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use tempfile::TempDir;

use crate::{
    chart,
    image::Image,
    newer::{self, Unpacked},
    process::succeed,
    registry::Registry,
    report::{Counts, Report},
    scenarios::{self, Scenario, Scene},
    setup, workspace,
};

/// Name of the working directories, so that those of a killed run can be found and removed. Short,
/// because the path of a Unix socket may have 107 bytes.
const PREFIX: &str = "eagle-e2e-";

/// Held for as long as a run lasts.
const LOCK: &str = "lock";

#[derive(Debug, Args)]
pub(crate) struct InsideArgs {
    #[arg(long)]
    directory: PathBuf,
    #[arg(long)]
    eagle: PathBuf,
    #[arg(long)]
    static_eagle: Option<PathBuf>,
    #[arg(long)]
    eagle_bench: Option<PathBuf>,
    #[arg(long)]
    hostile_member: Option<PathBuf>,
    #[arg(long)]
    s3_server: PathBuf,
    #[arg(long)]
    newer: Option<PathBuf>,
    #[arg(long)]
    only: Option<String>,
    #[arg(long)]
    rounds: u32,
    #[arg(long)]
    measured: Option<PathBuf>,
}

/// What to run, and how.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Run only scenarios whose name contains this.
    #[arg(long, value_name = "NAME")]
    pub(crate) only: Option<String>,
    /// Keep the working directory (configurations, logs, data) and print where it is.
    #[arg(long)]
    keep: bool,
    /// Test this `eagle` program instead of building one.
    #[arg(long, value_name = "FILE")]
    eagle: Option<PathBuf>,
    /// Measure so often what is measured (hostile-crowds).
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Write what was measured (hostile-crowds) to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    measured: Option<PathBuf>,
}

impl Options {
    /// As a part of all tests.
    pub(crate) fn test(only: Option<String>) -> Self {
        Self { only, keep: false, eagle: None, rounds: 1, measured: None }
    }
}

/// Runs the scenarios and adds to the report how they went.
pub(crate) fn run(report: &mut Report, options: Options) -> Result<()> {
    let Options { only, keep, eagle, rounds, measured } = options;
    let only = only.as_deref();
    let wanted = scenarios::matching(only).count();
    if wanted == 0 {
        return Ok(());
    }
    if let Err(reason) = possible() {
        if setup::in_ci() {
            return Err(reason.context("the end-to-end scenarios cannot run here, and in CI nothing may be skipped"));
        }
        for scenario in scenarios::matching(only) {
            report.skip(&format!("e2e/{}", scenario.name), &format!("{reason:#}"));
        }
        return Ok(());
    }
    // Before the program itself, whose place it takes for a while.
    let of_image = scenarios::matching(only).any(|scenario| scenario.name == "chart");
    let static_eagle = of_image.then(workspace::static_eagle).transpose()?;
    let eagle = match eagle {
        Some(eagle) => eagle.canonicalize().with_context(|| format!("no program {}", eagle.display()))?,
        None => workspace::eagle()?,
    };
    let measures = scenarios::matching(only).any(|scenario| scenario.name == "load-test");
    let eagle_bench = measures.then(workspace::eagle_bench).transpose()?;
    let has_crowds = scenarios::matching(only).any(|scenario| scenario.name == "hostile-crowds");
    let hostile_member = has_crowds.then(|| workspace::hostile_member(rounds > 1)).transpose()?;
    let s3_server = workspace::s3_server()?;
    if of_image {
        // Inside there is no network to get helm from.
        match chart::Tools::ready() {
            Err(reason) if !setup::in_ci() => println!("the scenario of the chart will fail without helm: {reason:#}"),
            tools => drop(tools.context("the scenario of the chart needs helm")?),
        }
    }
    let image = Image::make()?;
    let newer = newer(report, only)?;
    remove_abandoned();
    setup::ensure_room(&std::env::temp_dir())?;
    let directory = tempfile::Builder::new().prefix(PREFIX).tempdir()?;
    let lock = File::create(directory.path().join(LOCK))?;
    lock.lock()?;
    fs::write(directory.path().join("image.json"), serde_json::to_vec(&image)?)?;

    let mut paths = vec![("--eagle", eagle), ("--s3-server", s3_server)];
    paths.extend(static_eagle.map(|program| ("--static-eagle", program)));
    paths.extend(eagle_bench.map(|program| ("--eagle-bench", program)));
    paths.extend(hostile_member.map(|program| ("--hostile-member", program)));
    paths.extend(newer.map(|root| ("--newer", root)));
    paths.extend(measured.map(std::path::absolute).transpose()?.map(|file| ("--measured", file)));
    let status = enter(directory.path(), &paths, only, rounds)?;
    let counts = fs::read(directory.path().join("counts.json"));
    match counts {
        Ok(counts) => report.add("the end-to-end scenarios", serde_json::from_slice(&counts)?),
        Err(_) => {
            println!("the end-to-end scenarios broke off: {status}");
            report.add("the end-to-end scenarios", Counts { failed: 1, ..Counts::default() });
        }
    }
    if keep {
        println!("kept: {}", directory.keep().display());
    }
    drop(lock);
    Ok(())
}

/// What has to be so for the scenarios to run; the error says what is not.
fn possible() -> Result<()> {
    ensure!(setup::is_root(), "needs root: dockerd and containerd do");
    setup::ensure(setup::Need::E2e)
}

/// The programs of a newer Debian, if a scenario wants them. Where they cannot be had, its scenarios are skipped.
fn newer(report: &mut Report, only: Option<&str>) -> Result<Option<PathBuf>> {
    let mut wanted = scenarios::matching(only).filter(|scenario| scenario.needs_newer_programs()).peekable();
    if wanted.peek().is_none() {
        return Ok(None);
    }
    match newer::fetch() {
        Ok(root) => Ok(Some(root)),
        Err(reason) if setup::in_ci() => Err(reason),
        Err(reason) => {
            for scenario in wanted {
                report.skip(&format!("e2e/{}", scenario.name), &format!("{reason:#}"));
            }
            Ok(None)
        }
    }
}

/// Runs the inner half in namespaces of its own. `setpriv` ends it if this process is killed (its parent
/// is this very thread, which waits); `unshare --kill-child` hands that on into the namespaces.
fn enter(directory: &Path, paths: &[(&str, PathBuf)], only: Option<&str>, rounds: u32) -> Result<ExitStatus> {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "unshare"]);
    command.args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    command.arg(std::env::current_exe()?).arg("e2e-inside");
    command.arg("--directory").arg(directory).arg("--rounds").arg(rounds.to_string());
    for (flag, path) in paths {
        command.arg(flag).arg(path);
    }
    if let Some(only) = only {
        command.arg("--only").arg(only);
    }
    command.stdin(Stdio::null()).status().context("cannot enter namespaces with unshare")
}

/// Removes what a run left that was killed.
fn remove_abandoned() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else { return };
    for entry in entries.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        // No lock file: kept on purpose by --keep, which removes it.
        let Ok(lock) = File::open(entry.path().join(LOCK)) else { continue };
        if !matches!(lock.try_lock(), Err(TryLockError::WouldBlock)) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The inner half; false if a scenario failed.
pub(crate) fn run_inside(args: &InsideArgs) -> Result<bool> {
    if std::process::id() != 1 {
        bail!("this is the inner half of `cargo xtask e2e`, which starts it");
    }
    succeed(Command::new("ip").args(["link", "set", "lo", "up"]), Duration::from_secs(10))?;
    let image: Image = serde_json::from_slice(&fs::read(args.directory.join("image.json"))?)?;
    let store = args.directory.join("store");
    Registry::start(&args.directory.join("push"), &store)?.push(&image)?;
    println!(
        "image: {} layers, {} MiB, the largest {} MiB",
        image.layers.len(),
        image.blob_bytes() >> 20,
        image.largest().size >> 20
    );
    let mut report = Report::default();
    let newer =
        args.newer.as_ref().map(|root| Unpacked { root: root.clone(), mount_at: args.directory.join("newer-debian") });
    let possible = |scenario: &&Scenario| newer.is_some() || !scenario.needs_newer_programs();
    for scenario in scenarios::matching(args.only.as_deref()).filter(possible) {
        let directory = TempDir::with_prefix_in("", &args.directory)?;
        let scene = Scene {
            image: &image,
            eagle: &args.eagle,
            static_eagle: args.static_eagle.as_deref(),
            eagle_bench: args.eagle_bench.as_deref(),
            hostile_member: args.hostile_member.as_deref(),
            s3_server: &args.s3_server,
            store: &store,
            newer: newer.as_ref(),
            directory: directory.path(),
            rounds: args.rounds,
            measured: args.measured.as_deref(),
        };
        let passed = report.test(&format!("e2e/{}", scenario.name), || (scenario.run)(&scene));
        if !passed {
            show_logs(directory.path());
            // Left for a look with --keep.
            let _ = directory.keep();
        }
    }
    fs::write(args.directory.join("counts.json"), serde_json::to_vec(&report.counts())?)?;
    Ok(report.counts().failed == 0)
}

/// Prints the end of every log of a scenario that failed.
fn show_logs(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        // Of data and of unpacked images there is nothing to show.
        let name = entry.file_name();
        if path.is_dir() && !["data", "root", "state", "exec", "export", "mount"].iter().any(|skip| name == *skip) {
            show_logs(&path);
        } else if path.extension().is_some_and(|extension| extension == "log") {
            println!("  {}", crate::process::tail(&path).replace('\n', "\n  "));
        }
    }
}
