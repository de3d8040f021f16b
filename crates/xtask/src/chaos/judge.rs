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
    client::{Problem, Pull, Record, Request},
    content::{Image, digest},
    members::Node,
    network::Network,
    origin::Origin,
    plan::{Fault, Member, OriginFault, Plan},
    watch::{self, Held, Measured},
};
use crate::http;

/// How long after the end of a fault its own node may still suffer: TCP finds out that a link works again with pauses that
/// double, up to as long as the link was cut.
const AFTERMATH: Duration = Duration::from_millis(3_500);
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
/// Most memory of a process, bytes. 64 MiB may be pieces on their way.
const MEMORY: u64 = 256 << 20;
/// Most descriptors of a process at rest: libp2p, data channels and HTTP to each of nine others, listeners, the runtime's own.
const DESCRIPTORS: usize = 100;
/// Most tasks of a process at rest.
const TASKS: f64 = 250.0;
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

    fn touches(&self, from: Instant, to: Instant) -> bool {
        self.begun <= to && self.over.is_none_or(|over| over + AFTERMATH >= from)
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
    /// Requests that failed while a fault excused it.
    pub(crate) excused: usize,
    pub(crate) pulls: usize,
    pub(crate) faults: usize,
    /// Of the requests that nothing excused, the one that took longest, seconds.
    pub(crate) slowest: f64,
    /// The most of any process at rest: bytes, descriptors, tasks.
    pub(crate) memory: u64,
    pub(crate) descriptors: usize,
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
    let (excused, slowest) = judge_requests(plan, images, origin, &requests, &pulls, &evidence, &mut problems);
    judge_limits(plan, &evidence, &mut problems);
    judge_resources(&evidence, &mut problems);
    for node in nodes {
        judge_disk(images, origin, node, &evidence, &mut problems);
        judge_log(node, &mut problems);
    }
    let held = || evidence.held.iter();
    Verdict {
        requests: requests.len(),
        excused,
        slowest: slowest.as_secs_f64(),
        pulls: pulls.len(),
        faults: evidence.disturbances.len(),
        memory: held().map(|(_, held, _)| held.memory).max().unwrap_or(0),
        descriptors: held().map(|(_, held, _)| held.descriptors).max().unwrap_or(0),
        tasks: held().map(|(_, _, tasks)| *tasks).fold(0.0, f64::max),
        problems,
    }
}

fn judge_requests(
    plan: &Plan,
    images: &[Image],
    origin: &Origin,
    requests: &[Request],
    pulls: &[Pull],
    evidence: &Evidence,
    problems: &mut Vec<String>,
) -> (usize, Duration) {
    let time = |at: Instant| at.saturating_duration_since(evidence.start).as_secs_f64();
    // Everything may go through one link.
    let bytes: u64 = pulls.iter().filter_map(|pull| images.get(pull.image)).map(Image::size).sum();
    let bound = PATIENCE + Duration::from_millis(1_000 * bytes / plan.rate.max(1));
    let (mut excused, mut slowest) = (0, Duration::ZERO);
    for request in requests {
        let (from, to) = (request.from, request.to);
        let place = format!(
            "proxy-{}, image {}, {:.1} s to {:.1} s, {}",
            request.node,
            request.image,
            time(from),
            time(to),
            request.what
        );
        let took = to.saturating_duration_since(from);
        let what = match &request.problem {
            Some(Problem::Wrong(what)) => {
                problems.push(format!("WRONG BYTES: {what} ({place})"));
                continue;
            }
            Some(Problem::Failed(what)) => Some(format!("failed: {what}")),
            None => (took > bound).then(|| format!("took longer than {:.0} s", bound.as_secs_f64())),
        };
        if excuse(request, plan, pulls, evidence) || began_wrong(request, origin) {
            excused += usize::from(request.problem.is_some());
            continue;
        }
        slowest = slowest.max(took);
        if let Some(what) = what {
            problems.push(format!("a pull that could be served {what} ({place})"));
        }
    }
    for pull in pulls.iter().filter(|pull| pull.from >= evidence.last_pulls && !pull.complete) {
        problems.push(format!("image {} cannot be pulled through proxy-{} after all is well", pull.image, pull.node));
    }
    (excused, slowest)
}

/// Whether a request may fail: its own node was disturbed, or the origin refused the caller, or the origin was disturbed and no seeder can be sure to have the image.
fn excuse(request: &Request, plan: &Plan, pulls: &[Pull], evidence: &Evidence) -> bool {
    let own = Member::Proxy(request.node);
    let touching = || evidence.disturbances.iter().filter(|other| other.touches(request.from, request.to));
    let own_disturbed = touching().any(|other| match other.fault {
        // All deadlines of a process whose clock jumps are over at once, also those of what it waits for.
        Fault::Kill(member)
        | Fault::Freeze(member)
        | Fault::Cut(member)
        | Fault::Slow(member)
        | Fault::Jump(member, _) => member == own,
        _ => false,
    });
    let origin_disturbed = touching().any(|other| matches!(other.fault, Fault::Origin(_)));
    // The registry's word: a caller whom it turns away gets nothing, though all of it be in the cluster.
    let refused = touching().any(|other| other.fault == Fault::Origin(OriginFault::Status(401)));
    own_disturbed || refused || (origin_disturbed && !seeders_have(request.image, request.to, plan, pulls, evidence))
}

/// Whether a request failed that may have joined a transfer which began with wrong bytes of the origin: that is found out at its
/// end, and the runtime's next try begins anew.
fn began_wrong(request: &Request, origin: &Origin) -> bool {
    request.problem.is_some() && origin.lied_about(&request.digest)
}

/// Whether the seeders have had an image since before the origin's first fault, and nothing has happened to them.
fn seeders_have(image: usize, by: Instant, plan: &Plan, pulls: &[Pull], evidence: &Evidence) -> bool {
    let first = evidence.disturbances.iter().filter(|other| matches!(other.fault, Fault::Origin(_)));
    let Some(first) = first.map(|other| other.begun).min() else { return true };
    let pulled = pulls.iter().any(|pull| pull.image == image && pull.complete && pull.to < first);
    let seeders: BTreeSet<_> = (0..plan.seeders).map(Member::Seeder).collect();
    let disturbed = evidence.disturbances.iter().filter(|other| other.begun < by).any(|other| match other.fault {
        Fault::Kill(member)
        | Fault::Freeze(member)
        | Fault::Cut(member)
        | Fault::Slow(member)
        | Fault::FillDisk(member)
        | Fault::CorruptFiles(member, _)
        | Fault::MoveClock(member, _)
        | Fault::Jump(member, _) => seeders.contains(&member),
        Fault::Part(one, other) | Fault::CorruptWire(one, other, _) => {
            seeders.contains(&one) || seeders.contains(&other)
        }
        Fault::KillTrackers | Fault::Origin(_) => false,
    });
    pulled && !disturbed
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
        if file.extension().is_some_and(|extension| extension == "tmp") {
            problems.push(format!("{member}: {shown} is left"));
        }
        if !file.ends_with("data") {
            continue;
        }
        let named = file.parent().and_then(Path::file_name).map(|name| format!("sha256:{}", name.to_string_lossy()));
        let Some(named) = named else { continue };
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
