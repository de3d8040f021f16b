//! `cargo xtask chaos`: real processes pull real images while everything around them goes wrong.
//!
//! `docs/reliability.md` says what is done, what has to hold, and how to replay a run.

pub(crate) mod client;
mod clock;
pub(crate) mod content;
mod corrupt;
mod excuse;
mod judge;
pub(crate) mod members;
pub(crate) mod network;
pub(crate) mod origin;
pub(crate) mod plan;
mod run;
pub(crate) mod watch;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use judge::Verdict;
pub(crate) use judge::tasks;
use plan::Plan;

use crate::{process::Process, report::Report, setup, workspace};

/// Longer than any run: the plan, the bound of the last pulls, and the end.
const RUN_DEADLINE: Duration = Duration::from_secs(240);
/// Between two looks at a run.
const POLL: Duration = Duration::from_millis(50);
/// Problems of a run that are printed.
const SHOWN: usize = 6;
/// Runs at a time unless told: with limits of some MB/s each takes about a core, and starved processes miss their time.
const JOBS: usize = 2;
/// Runs of `cargo xtask test`.
const RUNS_OF_TEST: u64 = 20;

#[derive(Debug, Args)]
pub(crate) struct ChaosArgs {
    /// How many runs, with seeds that follow each other.
    #[arg(long, value_name = "N", default_value_t = RUNS_OF_TEST)]
    runs: u64,
    /// Seed of the first run; without it a fresh one, which is printed.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Runs beside each other.
    #[arg(long, value_name = "N", default_value_t = JOBS)]
    jobs: usize,
    /// Keep logs and data of runs that failed in this directory, and the summary.
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Test this `eagle` program instead of building one.
    #[arg(long, value_name = "FILE")]
    eagle: Option<PathBuf>,
    /// Print the schedules and run nothing.
    #[arg(long)]
    pub(crate) list: bool,
}

#[derive(Debug, Args)]
pub(crate) struct InsideArgs {
    #[arg(long)]
    seed: u64,
    #[arg(long)]
    slot: u8,
    #[arg(long)]
    directory: PathBuf,
    #[arg(long)]
    eagle: PathBuf,
    #[arg(long)]
    namespaces: bool,
}

/// The runs of `cargo xtask test`, with a fresh seed.
pub(crate) fn test(report: &mut Report) -> Result<()> {
    if !setup::is_root() {
        report.skip("chaos", "needs root: it makes network namespaces; cargo xtask chaos does with less");
        return Ok(());
    }
    run(report, &ChaosArgs { runs: RUNS_OF_TEST, seed: None, jobs: JOBS, output: None, eagle: None, list: false })
}

/// The runs of `cargo xtask chaos`.
pub(crate) fn run(report: &mut Report, args: &ChaosArgs) -> Result<()> {
    let first = args.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let namespaces = setup::is_root();
    if args.list {
        (first..).zip(0..args.runs).for_each(|(seed, _)| print!("{}", Plan::of(seed, namespaces)));
        return Ok(());
    }
    if namespaces {
        setup::ensure(setup::Need::Chaos)?;
    } else {
        println!(
            "chaos: not as root: plain processes on the loopback interface; no link is cut, slowed or corrupted, no disk filled"
        );
        ensure!(clock::library().is_some(), "libfaketime is missing (on Debian, as root: apt-get install libfaketime)");
    }
    let eagle = match &args.eagle {
        Some(eagle) => eagle.canonicalize().with_context(|| format!("no program {}", eagle.display()))?,
        None => workspace::eagle()?,
    };
    let output = match &args.output {
        Some(output) => output.clone(),
        None => std::env::temp_dir().join(format!("eagle-chaos-{}", std::process::id())),
    };
    fs::create_dir_all(&output).with_context(|| format!("cannot make {}", output.display()))?;
    let output = output.canonicalize()?;
    println!("chaos: {} runs from seed {first}, {} at a time, {}", args.runs, args.jobs, eagle.display());
    let started = Instant::now();
    let next = AtomicU64::new(0);
    let totals = Mutex::new(Totals::default());
    let shared_report = Mutex::new(report);
    thread::scope(|scope| {
        for slot in 0..u8::try_from(args.jobs.clamp(1, 200)).unwrap_or(1) {
            let (next, totals, shared_report, eagle, output) = (&next, &totals, &shared_report, &eagle, &output);
            scope.spawn(move || {
                loop {
                    let number = next.fetch_add(1, Ordering::SeqCst);
                    if number >= args.runs {
                        break;
                    }
                    let seed = first.wrapping_add(number);
                    let from = Instant::now();
                    let verdict = one(seed, slot, namespaces, eagle, output);
                    let mut report = shared_report.lock().unwrap_or_else(PoisonError::into_inner);
                    let outcome = match verdict {
                        Ok(verdict) => {
                            totals
                                .lock()
                                .unwrap_or_else(PoisonError::into_inner)
                                .add(&Plan::of(seed, namespaces), &verdict);
                            if verdict.problems.is_empty() { Ok(()) } else { Err(shown(&verdict.problems)) }
                        }
                        Err(error) => Err(error),
                    };
                    let outcome = outcome.with_context(|| {
                        format!(
                            "seed {seed}; replay: cargo xtask chaos --runs 1 --seed {seed}; logs: {}",
                            directory(output, seed).display()
                        )
                    });
                    report.outcome(&format!("chaos/{seed}"), from.elapsed(), outcome);
                }
            });
        }
    });
    let totals = totals.into_inner().unwrap_or_else(PoisonError::into_inner);
    let summary = totals.show(started.elapsed());
    print!("{summary}");
    if args.output.is_some() {
        fs::write(output.join("summary.txt"), format!("runs from seed {first}\n{summary}"))?;
    } else {
        // Empty when nothing failed.
        let _ = fs::remove_dir(&output);
    }
    Ok(())
}

/// The first problems of a run; its log has all.
fn shown(problems: &[String]) -> anyhow::Error {
    let more = problems.len().saturating_sub(SHOWN);
    let mut text = problems[..problems.len() - more].join("\n");
    if more > 0 {
        text.push_str(&format!("\nand {more} more, in run.log"));
    }
    anyhow::anyhow!(text)
}

fn directory(output: &Path, seed: u64) -> PathBuf {
    output.join(format!("seed-{seed}"))
}

/// This program again, in mount, network and process namespaces of its own if so asked. As with the end-to-end scenarios,
/// whatever ends this process ends everything inside.
pub(crate) fn inside(namespaces: bool) -> Result<Command> {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    if namespaces {
        command.args(["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    }
    command.arg(std::env::current_exe()?).stdin(Stdio::null());
    for (key, _) in std::env::vars_os() {
        // Settings of whoever starts this are no part of it.
        if key.to_string_lossy().starts_with("EAGLE_") {
            command.env_remove(key);
        }
    }
    Ok(command)
}

/// One run in a process of its own, in namespaces of its own.
fn one(seed: u64, slot: u8, namespaces: bool, eagle: &Path, output: &Path) -> Result<Verdict> {
    let directory = directory(output, seed);
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory)?;
    let mut command = inside(namespaces)?;
    command.arg("chaos-inside").args(["--seed", &seed.to_string(), "--slot", &slot.to_string()]);
    command.arg("--directory").arg(&directory).arg("--eagle").arg(eagle);
    if namespaces {
        command.arg("--namespaces");
    }
    let log = directory.join("run.log");
    let mut process = Process::start("the run", &mut command, &log)?;
    let started = Instant::now();
    while process.check_running().is_ok() && started.elapsed() < RUN_DEADLINE {
        thread::sleep(POLL);
    }
    let in_time = started.elapsed() < RUN_DEADLINE;
    process.kill();
    let verdict = fs::read(directory.join("verdict.json")).ok();
    ensure!(in_time, "the run did not end within {RUN_DEADLINE:?}\n{}", crate::process::tail(&log));
    let verdict = verdict.with_context(|| format!("the run broke off\n{}", crate::process::tail(&log)))?;
    let verdict: Verdict = serde_json::from_slice(&verdict)?;
    if verdict.problems.is_empty() {
        fs::remove_dir_all(&directory)?;
    }
    Ok(verdict)
}

/// The inner half of a run.
pub(crate) fn run_inside(args: &InsideArgs) -> Result<bool> {
    let plan = Plan::of(args.seed, args.namespaces);
    print!("{plan}");
    let setting = run::Setting {
        plan: &plan,
        eagle: &args.eagle,
        directory: &args.directory,
        namespaces: args.namespaces,
        slot: args.slot,
    };
    let verdict = run::run(&setting)?;
    for problem in &verdict.problems {
        println!("{problem}");
    }
    fs::write(args.directory.join("verdict.json"), serde_json::to_vec_pretty(&verdict)?)?;
    Ok(verdict.problems.is_empty())
}

/// What many runs come to.
#[derive(Debug, Default)]
struct Totals {
    runs: usize,
    requests: usize,
    excused: BTreeMap<String, usize>,
    pulls: usize,
    faults: usize,
    slowest: f64,
    slowest_excused: f64,
    memory: u64,
    descriptors: usize,
    data_files: usize,
    threads: usize,
    tasks: f64,
    kinds: BTreeMap<&'static str, usize>,
}

impl Totals {
    fn add(&mut self, plan: &Plan, verdict: &Verdict) {
        self.runs += 1;
        self.requests += verdict.requests;
        for (reason, requests) in &verdict.excused {
            *self.excused.entry(reason.clone()).or_default() += requests;
        }
        self.pulls += verdict.pulls;
        self.faults += verdict.faults;
        self.slowest = self.slowest.max(verdict.slowest);
        self.slowest_excused = self.slowest_excused.max(verdict.slowest_excused);
        self.memory = self.memory.max(verdict.memory);
        self.descriptors = self.descriptors.max(verdict.descriptors);
        self.data_files = self.data_files.max(verdict.data_files);
        self.threads = self.threads.max(verdict.threads);
        self.tasks = self.tasks.max(verdict.tasks);
        for kind in judge::kinds(plan) {
            *self.kinds.entry(kind).or_default() += 1;
        }
    }

    fn show(&self, took: Duration) -> String {
        let list = |numbers: &mut dyn Iterator<Item = (&str, usize)>| {
            let shown: Vec<_> = numbers.map(|(what, number)| format!("{what} {number}")).collect();
            shown.join(", ")
        };
        format!(
            "chaos: {} runs in {:.0} s: {} faults, {} pulls, {} requests, of which {} failed while a fault excused it\n\
             chaos: excuses: {}\n\
             chaos: the slowest request that nothing excused took {:.1} s, of the excused {:.1} s\n\
             chaos: most of a process at rest: {} MiB, {} descriptors, {} of them files of its data, {} threads, {} tasks\n\
             chaos: runs with each kind of fault: {}\n",
            self.runs,
            took.as_secs_f64(),
            self.faults,
            self.pulls,
            self.requests,
            self.excused.values().sum::<usize>(),
            list(&mut self.excused.iter().map(|(what, number)| (what.as_str(), *number))),
            self.slowest,
            self.slowest_excused,
            self.memory >> 20,
            self.descriptors,
            self.data_files,
            self.threads,
            self.tasks,
            list(&mut self.kinds.iter().map(|(what, number)| (*what, *number)))
        )
    }
}
