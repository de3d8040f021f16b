//! Load tests and benchmarks of Eagle, on real processes and real sockets.

mod agent;
mod cache;
mod cli;
mod client;
mod cluster;
mod compare;
mod floor;
mod host;
mod limits;
mod origin;
mod process;
mod progress;
mod pull;
mod report;
mod serve;
mod show;
mod sim;
mod stats;
mod suite;
mod swarm;
mod tracker;
mod views;

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{Cli, Command};

/// Exit code of a process that a Ctrl-C ended: 128 plus the number of SIGINT.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            // `{:#}` joins the chain of causes on one line.
            eprintln!("eagle-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        // These need no runtime: they become another program, measure with plain threads, or read files.
        Command::Owned(args) => process::become_owned(&args),
        Command::Floor(args) => floor::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Compare(args) => compare::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Report(args) => show::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Sim(args) => sim::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Swarm(args) => block_on(swarm::run(*args)),
        Command::Pull(args) => block_on(pull::run(*args)),
        Command::Agent(args) => block_on(agent::run(args)),
        Command::Serve(args) => block_on(serve::run(args)),
        Command::Suite(args) => block_on(suite::run(args)),
        Command::Cache(args) => block_on(cache::run(args)),
        Command::Limits(args) => block_on(limits::run(args)),
        Command::Tracker(args) => block_on(tracker::run(args)),
        Command::Nothing(args) => block_on(tracker::run_nothing(args)),
        Command::Origin(args) => block_on(origin::run(args)),
    }
}

/// Runs a command to its end, or until a signal drops it; dropping it ends every process that it started.
fn block_on(command: impl Future<Output = Result<()>>) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.context("the asynchronous runtime cannot start")?.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            result = command => result.map(|()| ExitCode::SUCCESS),
            _ = interrupt.recv() => Ok(INTERRUPTED.into()),
            _ = terminate.recv() => Ok(INTERRUPTED.into()),
        }
    })
}
