//! Eagle: peer-to-peer distribution of container images.
//!
//! A library only so that others than the program can call parts of it: [`main`] is the program; [`read_configuration`],
//! [`read_limits`] and [`edit_runtime_files`] are fuzzed.
//!
//! The program reads the command line and the configuration, starts what was asked for, and ends with an exit code:
//! 0 done, 1 failed, 64 bad usage, 78 bad configuration, 130 interrupted.

mod admin;
mod api_client;
mod browser;
mod ca;
mod cache;
mod cache_api;
mod cli;
mod cluster;
mod commands;
mod config;
mod configure;
mod demo;
mod descriptors;
mod doctor;
mod exit;
mod exposition;
mod limits;
mod manual;
mod p2p;
mod preheat;
mod prepare_data;
mod process_metrics;
mod reload;
mod roles;
mod service;
mod shutdown;
mod stamp;
mod status;
mod telemetry;
mod text;
mod top;
mod traces;
mod trackers;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use crate::{
    cli::{Cli, Command},
    exit::Failure,
    roles::Role,
    traces::Traces,
};
pub use crate::{config::read_configuration, configure::edit_runtime_files, limits::read_limits};

/// The program: what was asked for on the command line, and how it ended.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too, and are no failure. There is nobody to tell if printing fails.
            let _ = error.print();
            return if error.use_stderr() { Failure::Usage.into() } else { ExitCode::SUCCESS };
        }
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::report(&error),
    }
}

fn run(cli: Cli) -> Result<()> {
    let Cli { command, log } = cli;
    match command {
        Command::Tracker(args) => start(Role::Tracker, commands::tracker(args, &log)?),
        Command::Seeder(args) => start(Role::Seeder, commands::seeder(args, &log)?),
        Command::Proxy(args) => start(Role::Proxy, commands::proxy(args, &log)?),
        Command::Standalone(args) => start(Role::Standalone, commands::standalone(args, &log)?),
        Command::Demo(args) => block_on(demo::run(args, &log)),
        Command::Preheat(args) => block_on(preheat::run(&args)),
        Command::Cache(args) => block_on(cache::run(&args)),
        Command::Status(args) => block_on(status::run(&args)),
        Command::Doctor(args) => block_on(doctor::run(args, &log)),
        Command::Top(args) => block_on(top::run(&args)),
        Command::Config(command) => commands::config(command, &log),
        Command::Configure(args) => {
            configure::run(&args)?;
            if args.stay { block_on(shutdown::asked_for()) } else { Ok(()) }
        }
        Command::ClusterKey(args) => cluster::command::run(&args),
        Command::Ca(command) => ca::run(&command),
        Command::InstallService(args) => service::run(&args),
        Command::PrepareData(args) => prepare_data::run(&args),
        Command::Completions(args) => manual::completions(&args),
        Command::Man(args) => manual::pages(&args),
    }
}

fn start(role: Role, launch: commands::Launch) -> Result<()> {
    block_on(async {
        let settings = &launch.loaded.settings;
        let traces = match role {
            // Takes no part in a pull that anybody waits for.
            Role::Tracker => None,
            Role::Seeder => Traces::start(&settings.traces, "seeder")?,
            Role::Proxy => Traces::start(&settings.traces, "proxy")?,
            Role::Standalone => Traces::start(&settings.traces, "standalone")?,
        };
        telemetry::init(&settings.log, traces.as_ref()).map_err(anyhow::Error::msg)?;
        descriptors::raise_limit();
        let result = roles::run(role, launch).await;
        if let Some(traces) = traces {
            traces.end().await;
        }
        result
    })
}

fn block_on(command: impl Future<Output = Result<()>>) -> Result<()> {
    // Several libraries can bring a provider of cryptography; one must be named before the first is asked.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.context("the asynchronous runtime cannot start")?;
    let result = runtime.block_on(command);
    // What still reads a disk on a blocking thread must not hold up the end.
    runtime.shutdown_background();
    result
}
