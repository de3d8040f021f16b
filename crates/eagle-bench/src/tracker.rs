//! `eagle-bench tracker`: how many announces a tracker takes, how fast it answers, and what it needs for that.
//!
//! The tracker is a process of its own on one core, the nodes are connections of this process on another. First every
//! node says everything that it has. Then announces come as fast as they are answered, then at half that rate, and at last
//! most of the nodes fall silent and expire while the others go on. Beside it, on the same core and under the same load, a server
//! that does nothing with what it is sent: what the HTTP stack alone can do.

mod load;
mod messages;
mod nothing;
mod result;
mod stolen;

use std::{
    ffi::OsString,
    fs,
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

pub(crate) use self::nothing::run as run_nothing;
use self::{
    load::{Load, Pace},
    messages::{Messages, Model},
    result::{Expiry, Fill, Phase, TrackerReport},
};
use crate::{
    cli::TrackerArgs,
    client::get_json,
    cluster::{Ready, find_eagle},
    process::Process,
    report::Circumstances,
};

/// Core of the servers, and core of the nodes.
const SERVER_CORE: usize = 0;
const LOAD_CORE: usize = 1;
/// Different announces that are sent again and again: enough that caches do not know them, few enough to be kept.
const ANNOUNCES: usize = 20_000;
/// Share of the nodes that go on announcing while the others expire: one in so many. A tracker holds back nodes that announce more than
/// 20 times a second, which fewer would at half of full load.
const SURVIVORS: usize = 4;
/// Memory in large pages, as a tracker has it that is started by the chart or as a service (`docs/tuning.md`); whoever sets the variable for this
/// program sets it for the tracker.
const MEMORY: (&str, &str) = ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1");
/// A tracker sweeps four times within the time to live of a node.
const SWEPT: f64 = 1.25;

/// Runs the benchmark, prints what came of it and writes it.
///
/// # Errors
/// When a server does not start, or answers an announce with an error.
pub(crate) async fn run(args: TrackerArgs) -> Result<()> {
    let eagle = find_eagle(args.eagle.as_deref())?;
    let circumstances = Circumstances::now("tracker", Some(&eagle));
    let cores = circumstances.host.cores;
    let directory = tempfile::Builder::new().prefix("eagle-bench-").tempdir()?;
    let model = Model::new(&args)?;
    eprintln!("Making announces of {} nodes ...", args.peers);
    let announces = Arc::new(model.announces(ANNOUNCES, model.peers())?);

    let nothing = Server::nothing(directory.path(), cores).await?;
    eprintln!("A server that does nothing, for {} s ...", args.duration.as_secs());
    let ceiling =
        nothing.load(&announces, &args, Pace::Answered, cores).await.context("the server that does nothing")?;

    let tracker = Server::tracker(directory.path(), &eagle, &args, cores).await?;
    let empty = tracker.process.usage()?;
    eprintln!("Every node says what it has ...");
    let started = Instant::now();
    let filled = load::fill(tracker.listen, model.clone(), args.connections, core(cores, LOAD_CORE)).await?;
    let full = tracker.process.usage()?;
    let entries = tracker.entries().await?;
    ensure!(entries == filled.entries, "the tracker knows {entries} pairs of blob and peer of {}", filled.entries);
    let fill = Fill {
        seconds: started.elapsed().as_secs_f64(),
        entries,
        blobs_per_second: filled.entries as f64 / started.elapsed().as_secs_f64(),
        rss_bytes: full.rss_bytes,
        bytes_per_entry: full.rss_bytes.saturating_sub(empty.rss_bytes) as f64 / entries as f64,
    };

    eprintln!("Announces as fast as they are answered, for {} s ...", args.duration.as_secs());
    let most = tracker.load(&announces, &args, Pace::Answered, cores).await.context("the tracker")?;
    eprintln!("Half as many, for {} s ...", args.duration.as_secs());
    let pace = Pace::Rate(most.announces_per_second / 2.0);
    let half = tracker.load(&announces, &args, pace, cores).await?;
    eprintln!("The same of the server that does nothing, for {} s ...", args.duration.as_secs());
    let ceiling_half = nothing.load(&announces, &args, pace, cores).await?;
    drop(nothing);
    let expiry = if args.no_expiry {
        None
    } else {
        Some(tracker.expire(&model, &args, most.announces_per_second / 2.0, cores).await?)
    };

    let report = TrackerReport::new(circumstances, &args, [ceiling, ceiling_half], fill, [most, half], expiry);
    args.output.write(&report)?;
    println!("{report}");
    Ok(())
}

/// The core of that number, if the machine has several.
const fn core(cores: usize, number: usize) -> Option<usize> {
    if cores > number && cores > 1 { Some(number) } else { None }
}

/// A server under load.
struct Server {
    process: Process,
    listen: SocketAddr,
    admin: Option<SocketAddr>,
}

/// Where a server that does nothing listens.
#[derive(Debug, Deserialize)]
struct Listens {
    listen: SocketAddr,
}

impl Server {
    async fn nothing(directory: &Path, cores: usize) -> Result<Self> {
        let ready = directory.join("nothing.ready");
        let program = std::env::current_exe().context("cannot find this program")?;
        let arguments: [OsString; 3] = ["nothing".into(), "--ready-file".into(), ready.clone().into()];
        let log = directory.join("nothing.log");
        let core = core(cores, SERVER_CORE);
        let mut process = Process::start_on("a server that does nothing", core, &[], &program, &arguments, log)?;
        let Listens { listen } = process.ready(&ready).await?;
        Ok(Self { process, listen, admin: None })
    }

    async fn tracker(directory: &Path, eagle: &Path, args: &TrackerArgs, cores: usize) -> Result<Self> {
        // Everything that the nodes say has room; what is measured is not refusing.
        let config = json!({
            "tracker": {
                "listen": "127.0.0.1:0",
                "admin": "127.0.0.1:0",
                "peer_ttl": humantime::format_duration(args.peer_ttl).to_string(),
                "interval_idle": humantime::format_duration(args.peer_ttl / 3).to_string(),
                "max_peers": args.peers.max(1_000),
                "max_blobs": args.blobs.max(1_000),
                "max_peers_per_blob": args.peers.max(1_000),
                "max_blobs_per_peer": args.blobs_per_peer.max(1_000),
            },
            "log": { "level": "warn" },
        });
        let (file, ready) = (directory.join("tracker.yaml"), directory.join("tracker.ready"));
        fs::write(&file, serde_json::to_vec_pretty(&config)?)?;
        let arguments: [OsString; 5] =
            ["tracker".into(), "--config".into(), file.into(), "--ready-file".into(), ready.clone().into()];
        let core = core(cores, SERVER_CORE);
        let own = std::env::var_os(MEMORY.0).is_some();
        let variables: &[_] = if own { &[] } else { &[MEMORY] };
        let log = directory.join("tracker.log");
        let mut process = Process::start_on("eagle tracker", core, variables, eagle, &arguments, log)?;
        let Ready { listen, admin } = process.ready(&ready).await?;
        Ok(Self { process, listen, admin: Some(admin) })
    }

    /// Pairs of a blob and a peer that the tracker knows.
    async fn entries(&self) -> Result<u64> {
        let admin = self.admin.context("this server has no admin address")?;
        let status: Value = get_json(admin, "/status").await?;
        status["status"]["entries"].as_u64().context("the tracker does not say how many entries it has")
    }

    async fn load(&self, announces: &Arc<Messages>, args: &TrackerArgs, pace: Pace, cores: usize) -> Result<Phase> {
        let before = self.process.usage()?;
        let announces = Arc::clone(announces);
        let load =
            load::run(self.listen, announces, args.connections, pace, args.duration, core(cores, LOAD_CORE)).await?;
        self.phase(&load, before.cpu_seconds)
    }

    fn phase(&self, load: &Load, cpu_before: f64) -> Result<Phase> {
        let cpu = self.process.usage()?.cpu_seconds - cpu_before;
        Ok(Phase::new(load, cpu))
    }

    /// Lets all but a few nodes fall silent, and looks at how the few are answered meanwhile.
    async fn expire(&self, model: &Model, args: &TrackerArgs, rate: f64, cores: usize) -> Result<Expiry> {
        let survivors = (model.peers() / SURVIVORS).max(1);
        let announces = Arc::new(model.announces(ANNOUNCES, survivors)?);
        let time = args.peer_ttl.mul_f64(SWEPT) + Duration::from_secs(3);
        eprintln!("All but {survivors} nodes fall silent, {:.0} s ...", time.as_secs_f64());
        let before = self.process.usage()?;
        let entries_before = self.entries().await?;
        let pace = Pace::Rate(rate);
        let load = load::run(self.listen, announces, args.connections, pace, time, core(cores, LOAD_CORE)).await?;
        let entries_after = self.entries().await?;
        ensure!(
            entries_after < entries_before,
            "nothing expired: {entries_after} entries of {entries_before} are left"
        );
        Ok(Expiry {
            expired_entries: entries_before - entries_after,
            phase: self.phase(&load, before.cpu_seconds)?,
            rss_bytes: self.process.usage()?.rss_bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tracker_has_its_memory_as_in_the_chart() {
        let chart = include_str!("../../../charts/eagle/templates/tracker.yaml");
        assert!(chart.contains(&format!("- name: {}\n              value: {}\n", MEMORY.0, MEMORY.1)));
    }
}
