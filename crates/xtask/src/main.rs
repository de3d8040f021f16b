//! Development tasks of Eagle: tests with real registries and runtimes.
//!
//! `cargo xtask test` is the whole suite: the workspace's own tests, the checks of the Helm chart,
//! and the end-to-end scenarios, which start Docker Distribution, dockerd, containerd, podman and
//! skopeo, and let them pull a real image through real `eagle` processes.

#[cfg(test)]
mod book;
mod boundaries;
mod browser;
mod chaos;
mod chart;
mod cluster;
mod fuzz;
mod http;
mod hub;
mod image;
mod lab;
mod newer;
mod oci;
mod pages;
mod process;
#[cfg(test)]
mod proofs;
mod registry;
mod report;
mod rootfs;
mod runtimes;
mod s3;
mod scenarios;
mod setup;
mod soak;
mod token_server;
mod tree;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use report::Report;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Development tasks of Eagle", version)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Everything: the workspace's tests, the Helm chart, the end-to-end scenarios, 20 runs of chaos.
    Test(TestArgs),
    /// The end-to-end scenarios alone: real registries, real runtimes, real `eagle` processes.
    E2e(E2eArgs),
    /// Real processes pull real images while everything around them goes wrong: kills, cuts, full disks, flipped bits.
    Chaos(chaos::ChaosArgs),
    /// A cluster pulls, evicts and loses nodes for a long time; what its processes hold has to level off.
    Soak(soak::SoakArgs),
    /// The Helm chart alone: lint, render, validate against the Kubernetes schemas, check what must hold.
    Chart(chart::ChartArgs),
    /// The fuzz targets, each for a while. Needs a C++ compiler.
    Fuzz(fuzz::FuzzArgs),
    /// Installs the Debian packages that the tests need (as root), or says which are missing.
    Setup,
    /// The inner half of `e2e`, inside its own namespaces. Not for use by hand.
    #[command(hide = true)]
    E2eInside(lab::InsideArgs),
    /// One run of `chaos`, inside its own namespaces. Not for use by hand.
    #[command(hide = true)]
    ChaosInside(chaos::InsideArgs),
    /// The inner half of `soak`. Not for use by hand.
    #[command(hide = true)]
    SoakInside(soak::InsideArgs),
}

#[derive(Debug, Args)]
struct TestArgs {
    /// Leave out the end-to-end scenarios, chaos and the chart (not in CI).
    #[arg(long)]
    fast: bool,
    /// Run only tests and scenarios whose name contains this.
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
}

#[derive(Debug, Args)]
struct E2eArgs {
    /// List the scenarios and what each proves, and run none.
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    options: lab::Options,
}

fn main() -> ExitCode {
    if let Some(code) = fuzz::instrument::stand_in() {
        return code;
    }
    match run(Cli::parse().task) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Carries out a task; false if something was tested and failed.
fn run(task: Task) -> Result<bool> {
    match task {
        Task::Setup => setup::ensure(setup::Need::All).map(|()| true),
        Task::Chart(args) => {
            let mut report = Report::default();
            chart::run(&mut report, &args)?;
            Ok(report.finish())
        }
        Task::Fuzz(args) => {
            let mut report = Report::default();
            fuzz::run(&mut report, &args)?;
            Ok(report.finish())
        }
        Task::E2e(args) if args.list => {
            scenarios::list();
            Ok(true)
        }
        Task::E2e(args) => {
            let mut report = Report::default();
            lab::run(&mut report, args.options)?;
            Ok(report.finish())
        }
        Task::E2eInside(args) => lab::run_inside(&args),
        Task::Chaos(args) => {
            let mut report = Report::default();
            chaos::run(&mut report, &args)?;
            Ok(args.list || report.finish())
        }
        Task::ChaosInside(args) => chaos::run_inside(&args),
        Task::Soak(args) => {
            let mut report = Report::default();
            soak::run(&mut report, &args)?;
            Ok(report.finish())
        }
        Task::SoakInside(args) => soak::run_inside(&args),
        Task::Test(args) => {
            let mut report = Report::default();
            workspace::test(&mut report, args.only.as_deref())?;
            boundaries::check(&mut report);
            if !args.fast {
                fuzz::short(&mut report, args.only.as_deref())?;
            }
            if args.fast && !setup::in_ci() {
                report.skip("chart", "--fast");
                report.skip("e2e", "--fast");
                report.skip("chaos", "--fast");
            } else {
                if args.only.as_deref().is_none_or(|only| "chart".contains(only)) {
                    chart::check(&mut report)?;
                }
                lab::run(&mut report, lab::Options::test(args.only.clone()))?;
                if args.only.as_deref().is_none_or(|only| "chaos".contains(only)) {
                    chaos::test(&mut report)?;
                }
            }
            Ok(report.finish())
        }
    }
}
