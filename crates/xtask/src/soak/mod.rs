//! `cargo xtask soak`: a cluster with small caches that pulls, evicts and loses nodes for a long time. What its processes hold
//! has to level off.

mod plot;
mod trend;

use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use trend::{Sample, Series};

use crate::{
    chaos::{
        self,
        client::{Problem, Record, Runtime},
        content::Image,
        members::{Node, mirror},
        network::Network,
        origin::Origin,
        plan::{Member, Plan},
        tasks, watch,
    },
    report::Report,
    setup, workspace,
};

const MIB: u64 = 1 << 20;
/// The cluster: two of the proxies stay for as long as all lasts, two come and go.
const PROXIES: usize = 4;
const STAYING: usize = 2;
/// Images, of three layers each: together several times what a cache holds.
const IMAGES: usize = 24;
/// Of every host, each way: enough for some evictions a second.
const RATE: u64 = 20 * MIB;
/// Of proxies, and of seeders.
const CACHE: u64 = 96 * MIB;
const SEEDER_CACHE: u64 = 160 * MIB;
/// Pulls at a time on each machine.
const RUNTIMES: usize = 2;
/// Most time between two pulls of a runtime, ms.
const PAUSE: u64 = 400;
/// Between two looks at the processes.
const INTERVAL: Duration = Duration::from_secs(2);
/// Between two deaths of a proxy, and how long it stays away.
const CHURN: Duration = Duration::from_secs(15);
const AWAY: Duration = Duration::from_secs(2);
/// Between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(60);
/// The images are always the same; the pulls need not be.
const SEED: u64 = 1;

#[derive(Debug, Args)]
pub(crate) struct SoakArgs {
    /// How long it pulls, minutes.
    #[arg(long, value_name = "M")]
    minutes: f64,
    /// Where the figures, the plot and the logs go.
    #[arg(long, value_name = "DIR", default_value = "soak")]
    output: PathBuf,
    /// Test this `eagle` program instead of building one.
    #[arg(long, value_name = "FILE")]
    eagle: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct InsideArgs {
    #[arg(long)]
    minutes: f64,
    #[arg(long)]
    directory: PathBuf,
    #[arg(long)]
    eagle: PathBuf,
    #[arg(long)]
    namespaces: bool,
}

/// `cargo xtask soak`.
pub(crate) fn run(report: &mut Report, args: &SoakArgs) -> Result<()> {
    ensure!(args.minutes > 0.0 && args.minutes.is_finite(), "--minutes has to be more than 0");
    let namespaces = setup::is_root();
    if namespaces {
        setup::ensure(setup::Need::Chaos)?;
    } else {
        println!("soak: not as root: plain processes on the loopback interface");
    }
    let eagle = match &args.eagle {
        Some(eagle) => eagle.canonicalize().with_context(|| format!("no program {}", eagle.display()))?,
        None => workspace::eagle()?,
    };
    fs::create_dir_all(&args.output).with_context(|| format!("cannot make {}", args.output.display()))?;
    let output = args.output.canonicalize()?;
    let mut command = chaos::inside(namespaces)?;
    command.arg("soak-inside").args(["--minutes", &args.minutes.to_string()]);
    command.arg("--directory").arg(&output).arg("--eagle").arg(eagle);
    if namespaces {
        command.arg("--namespaces");
    }
    report.test("soak", || {
        let status = command.status().context("cannot start the inner half")?;
        ensure!(status.success(), "what held too much is above; logs and the plot are in {}", output.display());
        Ok(())
    });
    Ok(())
}

/// What is running.
struct Stage {
    images: Vec<Image>,
    network: Mutex<Network>,
    origin: Origin,
    over: AtomicBool,
    /// Per proxy: how often it went and came back. While this is odd it is away.
    comings_and_goings: [AtomicU64; PROXIES],
    pulls: AtomicU64,
    bytes: AtomicU64,
    excused: AtomicU64,
    problems: Mutex<Vec<String>>,
}

/// The inner half; false if something was wrong.
pub(crate) fn run_inside(args: &InsideArgs) -> Result<bool> {
    let plan = plan();
    let images: Vec<_> =
        plan.images.iter().enumerate().map(|(number, layers)| Image::make(SEED, number, layers)).collect();
    let members = plan.members();
    let network = Network::make(args.namespaces, 250, &members)?;
    let origin = Origin::start(SocketAddr::new(network.origin(), 5000), &images)?;
    let mut nodes = Vec::new();
    for member in &members {
        nodes.push(Node::prepare(&plan, &network, *member, &args.directory, &args.eagle, origin.address())?);
    }
    for node in &mut nodes {
        node.start()?;
    }
    for node in &mut nodes {
        node.wait_ready()?;
    }
    let stage = Stage {
        images,
        network: Mutex::new(network),
        origin,
        over: AtomicBool::new(false),
        comings_and_goings: [const { AtomicU64::new(0) }; PROXIES],
        pulls: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
        excused: AtomicU64::new(0),
        problems: Mutex::default(),
    };
    let lasts = Duration::from_secs_f64(args.minutes * 60.0);
    let series = thread::scope(|scope| {
        let stage = &stage;
        for proxy in 0..PROXIES {
            for runtime in 0..RUNTIMES {
                scope.spawn(move || stage.keep_pulling(proxy, u64::try_from(proxy * RUNTIMES + runtime).unwrap_or(0)));
            }
        }
        let watched = stage.watch(&mut nodes, lasts);
        stage.over.store(true, Ordering::SeqCst);
        watched
    })?;
    for node in nodes.iter_mut().rev() {
        if let Err(error) = node.stop() {
            stage.problem(format!("{}: {error:#}", node.member));
        }
    }
    let counted = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
    let mut summary = format!(
        "soak: {:.1} minutes, {} pulls, {} MiB pulled, {} failures while a node was away\n",
        args.minutes,
        counted(&stage.pulls),
        counted(&stage.bytes) / MIB,
        counted(&stage.excused)
    );
    let mut problems = stage.problems.into_inner().unwrap_or_else(PoisonError::into_inner);
    for series in &series {
        let (line, grown) = series.judge();
        writeln!(summary, "{line}")?;
        problems.extend(grown);
    }
    print!("{summary}");
    for problem in &problems {
        println!("  {problem}");
    }
    fs::write(args.directory.join("summary.txt"), format!("{summary}{}\n", problems.join("\n")))?;
    fs::write(args.directory.join("samples.csv"), trend::csv(&series))?;
    fs::write(args.directory.join("soak.svg"), plot::svg(&series))?;
    Ok(problems.is_empty())
}

/// Nothing is planned but the cluster and its images.
fn plan() -> Plan {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    Plan {
        seed: SEED,
        trackers: 1,
        seeders: 2,
        proxies: PROXIES,
        encryption: "tls",
        rate: RATE,
        cache_limit: CACHE,
        seeder_cache_limit: SEEDER_CACHE,
        images: (0..IMAGES)
            .map(|_| {
                vec![
                    rng.random_range(1..=64 << 10),
                    rng.random_range(MIB / 2..=2 * MIB),
                    rng.random_range(8 * MIB..=16 * MIB),
                ]
            })
            .collect(),
        pulls: Vec::new(),
        faults: Vec::new(),
    }
}

impl Stage {
    fn problem(&self, problem: String) {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner).push(problem);
    }

    /// A runtime on the machine of a proxy, which pulls random images until all is over.
    fn keep_pulling(&self, node: usize, seed: u64) {
        let mirror = {
            let network = self.network.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(error) = network.enter(Member::Proxy(node)) {
                return self.problem(format!("{error:#}"));
            }
            mirror(&network, node)
        };
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        while !self.over.load(Ordering::SeqCst) {
            let number = rng.random_range(0..self.images.len());
            let image = &self.images[number];
            let record = Record::default();
            let before = self.comings_and_goings[node].load(Ordering::SeqCst);
            let complete = Runtime { node, mirror, origin: &self.origin, record: &record }.pull(number, image);
            let after = self.comings_and_goings[node].load(Ordering::SeqCst);
            let stayed = before == after && before.is_multiple_of(2);
            for request in record.requests() {
                match request.problem {
                    None => {}
                    Some(Problem::Failed(_)) if !stayed => {
                        self.excused.fetch_add(1, Ordering::SeqCst);
                    }
                    Some(Problem::Failed(what) | Problem::Wrong(what)) => {
                        self.problem(format!("proxy-{node}: {}: {what}", request.what));
                    }
                }
            }
            if complete {
                self.pulls.fetch_add(1, Ordering::SeqCst);
                self.bytes.fetch_add(image.size(), Ordering::SeqCst);
            }
            thread::sleep(Duration::from_millis(rng.random_range(0..=PAUSE)));
        }
    }

    /// Samples what processes hold, and lets proxies die and come back.
    fn watch(&self, nodes: &mut [Node], lasts: Duration) -> Result<Vec<Series>> {
        let start = Instant::now();
        // What dies begins anew: only what stays can level off.
        let mut series: Vec<_> = nodes
            .iter()
            .filter(|node| !matches!(node.member, Member::Proxy(number) if number >= STAYING))
            .map(|node| Series::new(node.member.to_string()))
            .collect();
        let (mut churned, mut said, mut turn) = (start, start, 0);
        while start.elapsed() < lasts {
            thread::sleep(INTERVAL);
            for series in &mut series {
                let node = nodes.iter_mut().find(|node| node.member.to_string() == series.name);
                let node = node.context("a member is missing")?;
                node.check_running()?;
                let held = watch::held(node.id().context("no process")?, &node.data())?;
                let tasks = tasks(&self.network, node.member, node.admin)?;
                series.samples.push(Sample { at: start.elapsed(), held, tasks });
            }
            if churned.elapsed() >= CHURN {
                churned = Instant::now();
                let number = STAYING + turn % (PROXIES - STAYING);
                // Killed one time, asked to end the next.
                self.churn(nodes, number, (turn / (PROXIES - STAYING)).is_multiple_of(2))?;
                turn += 1;
            }
            if said.elapsed() >= PROGRESS {
                said = Instant::now();
                println!(
                    "soak: {:.0} of {:.0} minutes, {} pulls",
                    start.elapsed().as_secs_f64() / 60.0,
                    lasts.as_secs_f64() / 60.0,
                    self.pulls.load(Ordering::SeqCst)
                );
            }
        }
        Ok(series)
    }

    fn churn(&self, nodes: &mut [Node], number: usize, kill: bool) -> Result<()> {
        let Some(node) = nodes.iter_mut().find(|node| node.member == Member::Proxy(number)) else {
            bail!("no proxy {number}");
        };
        self.comings_and_goings[number].fetch_add(1, Ordering::SeqCst);
        if kill {
            node.kill();
        } else {
            node.stop()?;
        }
        thread::sleep(AWAY);
        node.start()?;
        node.wait_ready()?;
        self.comings_and_goings[number].fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}
