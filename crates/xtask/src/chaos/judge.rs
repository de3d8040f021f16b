//! What must hold after a run, whatever happened in it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::Path,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{
    client::{Problem, Pull, Record},
    content::{Image, digest},
    excuse::{AFTERMATH, Seen},
    members::Node,
    network::Network,
    origin::Origin,
    plan::{Fault, Member, OriginFault, Plan},
    watch::{self, Held, Measured},
};
use crate::http;

/// What a request may take beside the time that its bytes need: several stalls (1 s each), a seeder that does not answer, a
/// registry's connection that is given up (2 s), on a machine with other work.
const PATIENCE: Duration = Duration::from_secs(30);
/// Limits hold over windows of this length.
const WINDOW: Duration = Duration::from_secs(1);
/// Of the limit: 5 % that are promised, and headers, TLS and control messages, which do not count towards it.
const LIMIT_FACTOR: f64 = 1.15;
/// What may come in beside it, bytes: data that was sent before the receiver stopped to read and lies in the kernel's buffers.
const LIMIT_ROOM: f64 = 2_500_000.0;
/// Records beside the content on a disk, bytes for each blob.
const RECORDS: u64 = 16 << 10;
/// Most memory of a process at rest, bytes: twice the 69 MiB that were seen at most of a debug build (40 in 300 runs of a release build). Pieces on their
/// way, up to 64 MiB, are gone by then.
const MEMORY: u64 = 140 << 20;
/// Most descriptors of a process at rest, twice the 54 that were seen at most in 300 runs: libp2p, data channels and HTTP to each of nine others, listeners,
/// the runtime's own.
const DESCRIPTORS: usize = 110;
/// Most files of its data that a process holds open at rest, twice the 9 that were seen: the lock, and blobs that were read just now.
const DATA_FILES: usize = 18;
/// Most threads of a process at rest, twice the 15 that were seen: two of the runtime, and blocking ones, which end 10 s after their last work.
const THREADS: usize = 30;
/// Most tasks of a process at rest: twice the 57 that were seen at most in 300 runs.
const TASKS: f64 = 115.0;
/// What a log must not contain.
const NEVER_LOGGED: [&str; 2] = ["panicked at", "internal error: entered unreachable code"];

/// A fault that happened.
#[derive(Debug, Clone)]
pub(crate) struct Disturbance {
    /// Its place in the plan.
    pub(crate) number: usize,
    pub(crate) fault: Fault,
    pub(crate) begun: Instant,
    /// When it was undone.
    pub(crate) undone: Option<Instant>,
    /// When all was as before: a process that was started again was ready.
    pub(crate) over: Option<Instant>,
}

impl Disturbance {
    pub(crate) fn begun(number: usize, fault: Fault) -> Self {
        Self { number, fault, begun: Instant::now(), undone: None, over: None }
    }

    /// Whether it, or what it leaves behind for a while, falls into this time.
    pub(crate) fn touches(&self, from: Instant, to: Instant) -> bool {
        self.begun <= to && self.over.is_none_or(|over| over + AFTERMATH > from)
    }
}

/// What was seen.
#[derive(Debug)]
pub(crate) struct Evidence {
    pub(crate) measured: Measured,
    pub(crate) disturbances: Vec<Disturbance>,
    /// Blobs that were changed on disk.
    pub(crate) corrupted: Vec<(Member, String)>,
    /// When the pulls began that have to succeed.
    pub(crate) last_pulls: Instant,
    pub(crate) start: Instant,
    /// What was wrong when it was looked at.
    pub(crate) problems: Vec<String>,
    pub(crate) held: Vec<(Member, Held, f64)>,
}

/// How a run went.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct Verdict {
    /// In words; none: passed.
    pub(crate) problems: Vec<String>,
    pub(crate) requests: usize,
    /// Requests that failed while a fault excused it, by the reason.
    pub(crate) excused: BTreeMap<String, usize>,
    pub(crate) pulls: usize,
    pub(crate) faults: usize,
    /// Of the requests that nothing excused, the one that took longest, seconds.
    pub(crate) slowest: f64,
    /// The same of those that a fault excused.
    pub(crate) slowest_excused: f64,
    /// The most of any process at rest: bytes, descriptors, those of them that are files of its data, threads, tasks.
    pub(crate) memory: u64,
    pub(crate) descriptors: usize,
    pub(crate) data_files: usize,
    pub(crate) threads: usize,
    pub(crate) tasks: f64,
}

/// Looks at the processes while they run and nobody asks them for anything.
pub(crate) fn look(nodes: &mut [Node], network: &Mutex<Network>, evidence: &mut Evidence) {
    for node in nodes.iter_mut() {
        let member = node.member;
        let mut note = |problem: String| evidence.problems.push(format!("{member}: {problem}"));
        if let Err(error) = node.check_running() {
            note(format!("{error:#}"));
            continue;
        }
        let tasks = match ask(network, member, node.admin) {
            Ok((200, metrics)) => sample(&metrics, "eagle_process_tasks"),
            Ok((status, _)) => {
                note(format!("/healthz answers {status}"));
                None
            }
            Err(error) => {
                note(format!("does not answer: {error:#}"));
                None
            }
        };
        match node.id().map(|id| watch::held(id, &node.data())) {
            Some(Ok(held)) => evidence.held.push((member, held, tasks.unwrap_or(0.0))),
            Some(Err(error)) => note(format!("{error:#}")),
            None => {}
        }
    }
}

/// Status of `/healthz` and text of `/metrics`, asked on the machine of the member.
fn ask(network: &Mutex<Network>, member: Member, admin: SocketAddr) -> Result<(u16, String)> {
    // In a thread of its own, because it stays on that machine.
    thread::scope(|scope| {
        let asked = scope.spawn(|| -> Result<(u16, String)> {
            network.lock().unwrap_or_else(PoisonError::into_inner).enter(member)?;
            let health = http::request(admin, "GET", "/healthz", &[])?.status;
            let metrics = http::request(admin, "GET", "/metrics", &[])?.bytes()?;
            Ok((health, String::from_utf8_lossy(&metrics).into_owned()))
        });
        asked.join().unwrap_or_else(|_| bail!("the request broke"))
    })
}

/// How many asynchronous tasks a member has.
pub(crate) fn tasks(network: &Mutex<Network>, member: Member, admin: SocketAddr) -> Result<f64> {
    let (_, metrics) = ask(network, member, admin)?;
    sample(&metrics, "eagle_process_tasks").with_context(|| format!("{member} has no eagle_process_tasks"))
}

/// The value of a metric without labels.
fn sample(metrics: &str, name: &str) -> Option<f64> {
    metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Holds what was seen against what must hold. The processes have ended.
pub(crate) fn judge(
    plan: &Plan,
    images: &[Image],
    origin: &Origin,
    record: &Record,
    nodes: &[Node],
    mut evidence: Evidence,
) -> Verdict {
    let (requests, pulls) = (record.requests(), record.pulls());
    let mut problems = std::mem::take(&mut evidence.problems);
    let seen = Seen {
        plan,
        images,
        origin,
        requests: &requests,
        measured: &evidence.measured,
        disturbances: &evidence.disturbances,
        corrupted: &evidence.corrupted,
        start: evidence.start,
    };
    let judged = judge_requests(&seen, &pulls, evidence.last_pulls, &mut problems);
    judge_limits(plan, &evidence, &mut problems);
    judge_resources(&evidence, &mut problems);
    for node in nodes {
        judge_disk(images, origin, node, &evidence, &mut problems);
        judge_log(node, &mut problems);
    }
    let held = || evidence.held.iter().map(|(_, held, _)| held);
    Verdict {
        requests: requests.len(),
        excused: judged.excused,
        slowest: judged.slowest.as_secs_f64(),
        slowest_excused: judged.slowest_excused.as_secs_f64(),
        pulls: pulls.len(),
        faults: evidence.disturbances.len(),
        memory: held().map(|held| held.memory).max().unwrap_or(0),
        descriptors: held().map(|held| held.descriptors).max().unwrap_or(0),
        data_files: held().map(|held| held.data_files).max().unwrap_or(0),
        threads: held().map(|held| held.threads).max().unwrap_or(0),
        tasks: evidence.held.iter().map(|(_, _, tasks)| *tasks).fold(0.0, f64::max),
        problems,
    }
}

#[derive(Debug, Default)]
struct Judged {
    excused: BTreeMap<String, usize>,
    slowest: Duration,
    slowest_excused: Duration,
}

fn judge_requests(seen: &Seen<'_>, pulls: &[Pull], last_pulls: Instant, problems: &mut Vec<String>) -> Judged {
    let time = |at: Instant| at.saturating_duration_since(seen.start).as_secs_f64();
    // Everything may go through one link.
    let bytes: u64 = pulls.iter().filter_map(|pull| seen.images.get(pull.image)).map(Image::size).sum();
    let usual = PATIENCE + Duration::from_millis(1_000 * bytes / seen.plan.rate.max(1));
    let mut judged = Judged::default();
    for request in seen.requests {
        let (from, to) = (request.from, request.to);
        let place = format!(
            "proxy-{}, image {}, {:.1} s to {:.1} s, {}",
            request.node,
            request.image,
            time(from),
            time(to),
            request.what
        );
        if let Some(Problem::Wrong(what)) = &request.problem {
            problems.push(format!("WRONG BYTES: {what} ({place})"));
            continue;
        }
        let took = to.saturating_duration_since(from);
        let excuse = seen.excuse(request);
        let bound = usual + excuse.map_or(Duration::ZERO, |(_, longer)| longer);
        if took > bound {
            problems.push(format!("a pull took longer than {:.0} s ({place})", bound.as_secs_f64()));
        }
        match (excuse, &request.problem) {
            (Some((excuse, _)), problem) => {
                judged.slowest_excused = judged.slowest_excused.max(took);
                if problem.is_some() {
                    *judged.excused.entry(excuse.name().to_owned()).or_default() += 1;
                }
            }
            (None, Some(Problem::Failed(what))) => {
                problems.push(format!("a pull that could be served failed: {what} ({place})"));
            }
            (None, _) => judged.slowest = judged.slowest.max(took),
        }
    }
    for pull in pulls.iter().filter(|pull| pull.from >= last_pulls && !pull.complete) {
        problems.push(format!("image {} cannot be pulled through proxy-{} after all is well", pull.image, pull.node));
    }
    judged
}

#[expect(clippy::cast_precision_loss, reason = "rates of some MB a second")]
fn judge_limits(plan: &Plan, evidence: &Evidence, problems: &mut Vec<String>) {
    let most = plan.rate as f64 * LIMIT_FACTOR + LIMIT_ROOM;
    // One line for each link and direction.
    let mut worst: BTreeMap<(Member, bool), watch::Busiest> = BTreeMap::new();
    for window in evidence.measured.windows(WINDOW).filter(|window| window.rate > most) {
        let entry = worst.entry((window.member, window.upload)).or_insert(window);
        if entry.rate < window.rate {
            *entry = window;
        }
    }
    for window in worst.values() {
        let at = |time: Instant| time.saturating_duration_since(evidence.start).as_secs_f64();
        problems.push(format!(
            "{}: {} {:.1} MB/s from {:.1} s to {:.1} s, the limit is {:.1} MB/s",
            window.member,
            if window.upload { "sent" } else { "received" },
            window.rate / 1e6,
            at(window.from),
            at(window.to),
            plan.rate as f64 / 1e6
        ));
    }
}

fn judge_resources(evidence: &Evidence, problems: &mut Vec<String>) {
    for (member, held, tasks) in &evidence.held {
        let mut note = |what: String| problems.push(format!("{member} at rest holds {what}"));
        if held.memory > MEMORY {
            note(format!("{} MiB of memory", held.memory >> 20));
        }
        if held.descriptors > DESCRIPTORS {
            note(format!("{} descriptors", held.descriptors));
        }
        if held.data_files > DATA_FILES {
            note(format!("{} files of its data open", held.data_files));
        }
        if held.threads > THREADS {
            note(format!("{} threads", held.threads));
        }
        if *tasks > TASKS {
            note(format!("{tasks} tasks"));
        }
    }
}

fn judge_disk(images: &[Image], origin: &Origin, node: &Node, evidence: &Evidence, problems: &mut Vec<String>) {
    let Some(limit) = node.cache_limit else { return };
    let member = node.member;
    let blobs: usize = images.iter().map(|image| image.blobs.len()).sum();
    let room = RECORDS * u64::try_from(blobs).unwrap_or(0);
    let most = evidence.measured.most_on_disk.get(&member).copied().unwrap_or(0);
    if most > limit + room {
        problems.push(format!("{member}: {most} bytes on disk with a limit of {limit}"));
    }
    for file in watch::files(&node.data()) {
        let shown = file.strip_prefix(node.data()).unwrap_or(&file).display().to_string();
        if is_unfinished(&file) {
            problems.push(format!("{member}: {shown} is left"));
        }
        let Some(named) = watch::complete(&file) else { continue };
        // What was changed on this disk is found when it is used, or by the scrub.
        let changed = evidence.corrupted.iter().any(|(other, digest)| *other == member && *digest == named);
        match fs::read(&file) {
            Ok(bytes) if digest(&bytes) != named && !changed => {
                let lied = if origin.lied_about(&named) { ", of which the origin once sent wrong bytes" } else { "" };
                problems.push(format!("{member}: {shown} is named complete and is not what it is named{lied}"));
            }
            Ok(_) => {}
            Err(error) => problems.push(format!("{member}: {shown} cannot be read: {error}")),
        }
    }
}

/// Whether a file is one that is written beside its place and then moved there: of the store, a list of images, an identity.
fn is_unfinished(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    name.ends_with(".tmp") || name.ends_with(".new") || name.starts_with('.')
}

fn judge_log(node: &Node, problems: &mut Vec<String>) {
    let log = fs::read(node.log()).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    for line in log.lines().filter(|line| NEVER_LOGGED.iter().any(|never| line.contains(never))) {
        problems.push(format!("{}: {line}", node.member));
    }
}

/// Whether a plan has a fault of this kind, for the summary of many runs.
pub(crate) fn kinds(plan: &Plan) -> BTreeSet<&'static str> {
    plan.faults
        .iter()
        .map(|planned| match planned.fault {
            Fault::Kill(_) => "kill",
            Fault::KillTrackers => "kill all trackers",
            Fault::Freeze(_) => "freeze",
            Fault::Cut(_) => "cut a link",
            Fault::Part(..) => "cut between two",
            Fault::Slow(_) => "1 % bandwidth",
            Fault::FillDisk(_) => "full disk",
            Fault::CorruptFiles(..) => "corrupt files",
            Fault::CorruptWire(..) => "corrupt wire",
            Fault::MoveClock(..) => "move a clock",
            Fault::Jump(..) => "all clocks jump",
            Fault::Origin(OriginFault::Status(_)) => "origin: status",
            Fault::Origin(OriginFault::Reset) => "origin: reset",
            Fault::Origin(OriginFault::Truncate) => "origin: truncate",
            Fault::Origin(OriginFault::Stall) => "origin: stall",
            Fault::Origin(OriginFault::WrongBytes) => "origin: wrong bytes",
        })
        .collect()
}
