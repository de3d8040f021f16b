//! One run: starts everything, lets the plan happen, lets it heal, pulls everything through everyone, and ends everything.

use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, Scope},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};

use super::{
    client::{Record, Runtime},
    content::Image,
    corrupt,
    excuse::AFTERMATH,
    judge::{self, Disturbance, Evidence},
    members::{Node, mirror},
    network::Network,
    origin::Origin,
    plan::{Fault, Member, Plan},
    watch,
};

/// The origin's port.
const ORIGIN_PORT: u16 = 5000;
/// From the last pull to the look at what processes hold: connections and transfers that end have ended.
const QUIET: Duration = Duration::from_millis(1_500);
/// A slow link has this part of the host's limit.
const SLOW: u64 = 100;
/// The file that fills a disk.
const FILLER: &str = "filler";
/// Between two looks at what is to be done next.
const TICK: Duration = Duration::from_millis(5);

/// Where and with what a run happens.
#[derive(Debug)]
pub(crate) struct Setting<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) eagle: &'a Path,
    /// Its own.
    pub(crate) directory: &'a Path,
    pub(crate) namespaces: bool,
    /// A number that no run has that happens at the same time.
    pub(crate) slot: u8,
}

/// What is running.
struct Stage<'a> {
    plan: &'a Plan,
    images: Vec<Image>,
    network: Mutex<Network>,
    origin: Origin,
    record: Record,
    start: Instant,
}

/// Makes the run happen; what was wrong, in words, and figures for the summary.
pub(crate) fn run(setting: &Setting<'_>) -> Result<judge::Verdict> {
    let plan = setting.plan;
    let members = plan.members();
    let images: Vec<_> =
        plan.images.iter().enumerate().map(|(number, layers)| Image::make(plan.seed, number, layers)).collect();
    let network = Network::make(setting.namespaces, setting.slot, &members)?;
    let origin = Origin::start(SocketAddr::new(network.origin(), ORIGIN_PORT), &images)?;
    let mut nodes = Vec::new();
    for member in &members {
        nodes.push(Node::prepare(plan, &network, *member, setting.directory, setting.eagle, origin.address())?);
    }
    for node in &mut nodes {
        node.start()?;
    }
    for node in &mut nodes {
        node.wait_ready().with_context(|| format!("at the start: {}", crate::process::tail(&node.log())))?;
    }
    let disks: Vec<(Member, PathBuf)> =
        nodes.iter().filter(|node| node.cache_limit.is_some()).map(|node| (node.member, node.data())).collect();
    let stage =
        Stage { plan, images, network: Mutex::new(network), origin, record: Record::default(), start: Instant::now() };

    let over = AtomicBool::new(false);
    let mut evidence = thread::scope(|scope| -> Result<Evidence> {
        let watcher = scope.spawn(|| watch::measure(&stage.network, &disks, &members, &over));
        let happened = stage.happen(scope, &mut nodes);
        over.store(true, Ordering::SeqCst);
        let measured = watcher.join().map_err(|_| anyhow!("the measurement broke"))?;
        happened.map(|(disturbances, corrupted, last_pulls)| Evidence {
            measured,
            disturbances,
            corrupted,
            last_pulls,
            start: stage.start,
            problems: Vec::new(),
            held: Vec::new(),
        })
    })?;
    thread::sleep(QUIET);
    judge::look(&mut nodes, &stage.network, &mut evidence);
    // In the order in which an operator would.
    for node in nodes.iter_mut().rev() {
        if let Err(error) = node.stop() {
            evidence.problems.push(format!("{}: {error:#}", node.member));
        }
    }
    Ok(judge::judge(plan, &stage.images, &stage.origin, &stage.record, &nodes, evidence))
}

enum Step {
    Pull { node: usize, image: usize },
    Begin(usize),
    End(usize),
}

type Happened = (Vec<Disturbance>, Vec<(Member, String)>, Instant);

impl Stage<'_> {
    /// The plan, then the pulls that have to succeed.
    fn happen<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>, nodes: &mut [Node]) -> Result<Happened> {
        let mut steps: Vec<(u64, Step)> = Vec::new();
        for pull in &self.plan.pulls {
            steps.push((pull.at, Step::Pull { node: pull.node, image: pull.image }));
        }
        for (number, planned) in self.plan.faults.iter().enumerate() {
            steps.push((planned.at, Step::Begin(number)));
            steps.push((planned.at + planned.lasts, Step::End(number)));
        }
        steps.sort_by_key(|(at, _)| *at);
        let mut disturbances: Vec<Disturbance> = Vec::new();
        let mut corrupted = Vec::new();
        let mut pulls = Vec::new();
        for (at, step) in steps {
            let due = self.start + Duration::from_millis(at);
            while Instant::now() < due {
                note_ready(nodes, &mut disturbances)?;
                thread::sleep(TICK);
            }
            match step {
                Step::Pull { node, image } => {
                    pulls.push(scope.spawn(move || self.pull(node, &[image])));
                }
                Step::Begin(number) => {
                    let fault = self.plan.faults[number].fault;
                    disturbances.push(Disturbance::begun(number, fault));
                    self.begin(fault, nodes, &mut corrupted).with_context(|| format!("cannot do: {fault}"))?;
                }
                Step::End(number) => {
                    let fault = self.plan.faults[number].fault;
                    self.end(number, fault, nodes, &disturbances).with_context(|| format!("cannot undo: {fault}"))?;
                    let waits = matches!(fault, Fault::Kill(_) | Fault::KillTrackers);
                    if let Some(disturbance) = disturbances.iter_mut().find(|other| other.number == number) {
                        disturbance.undone = Some(Instant::now());
                        disturbance.over = (!waits).then(Instant::now);
                    }
                }
            }
        }
        for node in nodes.iter_mut() {
            node.wait_ready().with_context(|| format!("{} after the faults", node.member))?;
        }
        note_ready(nodes, &mut disturbances)?;
        for pull in pulls {
            pull.join().map_err(|_| anyhow!("a pull broke"))??;
        }
        let settled =
            disturbances.iter().filter_map(|disturbance| disturbance.over).max().unwrap_or(self.start) + AFTERMATH;
        thread::sleep(settled.saturating_duration_since(Instant::now()));
        let last_pulls = Instant::now();
        let all: Vec<_> = (0..self.images.len()).collect();
        let pulls: Vec<_> = (0..self.plan.proxies)
            .map(|node| {
                let all = all.clone();
                scope.spawn(move || self.pull(node, &all))
            })
            .collect();
        for pull in pulls {
            pull.join().map_err(|_| anyhow!("a pull broke"))??;
        }
        Ok((disturbances, corrupted, last_pulls))
    }

    /// Pulls images one after the other on the machine of a proxy. For a thread of its own: it stays on that machine.
    fn pull(&self, node: usize, images: &[usize]) -> Result<()> {
        let mirror = {
            let network = self.network.lock().unwrap_or_else(PoisonError::into_inner);
            network.enter(Member::Proxy(node))?;
            mirror(&network, node)
        };
        let runtime = Runtime { node, mirror, origin: &self.origin, record: &self.record };
        for image in images {
            // A failure is in the record.
            runtime.pull(*image, &self.images[*image]);
        }
        Ok(())
    }

    fn begin(&self, fault: Fault, nodes: &mut [Node], corrupted: &mut Vec<(Member, String)>) -> Result<()> {
        let mut network = self.network.lock().unwrap_or_else(PoisonError::into_inner);
        match fault {
            Fault::Kill(member) => find(nodes, member)?.kill(),
            Fault::KillTrackers => {
                for node in nodes.iter_mut().filter(|node| matches!(node.member, Member::Tracker(_))) {
                    node.kill();
                }
            }
            Fault::Freeze(member) => find(nodes, member)?.freeze(true),
            Fault::Cut(member) => network.cut(member, true)?,
            Fault::Part(one, other) => network.part(one, other, true)?,
            Fault::Slow(member) => network.limit(member, Some(self.plan.rate / SLOW))?,
            Fault::FillDisk(member) => fill(&find(nodes, member)?.data().join(FILLER))?,
            Fault::CorruptFiles(member, files) => {
                let data = find(nodes, member)?.data();
                let changed = corrupt::blobs(&data, self.plan.seed, files)?;
                corrupted.extend(changed.into_iter().map(|digest| (member, digest)));
            }
            Fault::CorruptWire(from, to, channel) => network.corrupt(from, to, channel, true)?,
            Fault::MoveClock(member, seconds) | Fault::Jump(member, seconds) => {
                find(nodes, member)?.move_clock(seconds)?
            }
            Fault::Origin(fault) => self.origin.set(Some(fault)),
        }
        Ok(())
    }

    /// Undoes a fault, unless another of the same kind still lasts.
    fn end(&self, number: usize, fault: Fault, nodes: &mut [Node], disturbances: &[Disturbance]) -> Result<()> {
        let lasting: Vec<Fault> = disturbances
            .iter()
            .filter(|other| other.number != number && other.undone.is_none())
            .map(|other| other.fault)
            .collect();
        let killed = |member: Member| {
            lasting.contains(&Fault::Kill(member))
                || (matches!(member, Member::Tracker(_)) && lasting.contains(&Fault::KillTrackers))
        };
        if lasting.contains(&fault) {
            return Ok(());
        }
        let mut network = self.network.lock().unwrap_or_else(PoisonError::into_inner);
        match fault {
            Fault::Kill(_) | Fault::KillTrackers => {
                for node in nodes.iter_mut().filter(|node| !node.runs() && !killed(node.member)) {
                    node.start()?;
                    // What is frozen stays so, whichever process it is.
                    if lasting.contains(&Fault::Freeze(node.member)) {
                        node.wait_ready()?;
                        node.freeze(true);
                    }
                }
            }
            Fault::Freeze(member) => find(nodes, member)?.freeze(false),
            Fault::Cut(member) => network.cut(member, false)?,
            Fault::Part(one, other) => network.part(one, other, false)?,
            Fault::Slow(member) => network.limit(member, None)?,
            Fault::FillDisk(member) => fs::remove_file(find(nodes, member)?.data().join(FILLER))?,
            Fault::CorruptFiles(..) | Fault::Jump(..) => {}
            Fault::CorruptWire(from, to, channel) => network.corrupt(from, to, channel, false)?,
            Fault::MoveClock(member, _) => find(nodes, member)?.move_clock(0)?,
            Fault::Origin(_) => {
                let other = lasting.iter().rev().find_map(|fault| match fault {
                    Fault::Origin(fault) => Some(*fault),
                    _ => None,
                });
                self.origin.set(other);
            }
        }
        Ok(())
    }
}

fn find(nodes: &mut [Node], member: Member) -> Result<&mut Node> {
    nodes.iter_mut().find(|node| node.member == member).with_context(|| format!("no {member}"))
}

/// Notes of what was started again when it was ready; an error if it has ended.
fn note_ready(nodes: &mut [Node], disturbances: &mut [Disturbance]) -> Result<()> {
    for disturbance in disturbances.iter_mut().filter(|other| other.undone.is_some() && other.over.is_none()) {
        let fault = disturbance.fault;
        let mut ready = true;
        for node in nodes.iter_mut().filter(|node| {
            fault == Fault::Kill(node.member)
                || (fault == Fault::KillTrackers && matches!(node.member, Member::Tracker(_)))
        }) {
            // Killed once more by another fault: that one says when it is back.
            ready &= !node.runs() || node.is_ready().with_context(|| format!("{} was started again", node.member))?;
        }
        if ready {
            disturbance.over = Some(Instant::now());
        }
    }
    Ok(())
}

/// Takes every byte that is left on a disk.
fn fill(file: &Path) -> Result<()> {
    let mut file = fs::File::options().create(true).append(true).open(file)?;
    let mut block = vec![0_u8; 1 << 20];
    loop {
        match file.write(&block) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            // A small rest may still fit.
            Err(_) if block.len() > 4096 => block.truncate(4096),
            Err(_) => return Ok(()),
        }
    }
}
