//! Connections that announce, all on one thread.
//!
//! They write requests that were made before and look at status and length of the answers only, so that a core can
//! send more than a tracker can take.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use futures::future::try_join_all;
use hdrhistogram::Histogram;
use rustix::thread::{CpuSet, sched_setaffinity};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::{
    messages::{Messages, Model},
    stolen::{Answer, Stolen},
};

/// A server that does not answer for so long has failed.
const STALL: Duration = Duration::from_secs(20);
/// Most bytes of an answer: 40 peers have a few kilobytes.
const MAX_ANSWER: usize = 1 << 20;
/// A look for something to do takes less than this when there is nothing: one system call.
const NOTHING_TO_DO: Duration = Duration::from_micros(2);
/// Significant digits of the histogram: errors below 0.1 %.
const DIGITS: u8 = 3;

/// How fast announces come.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pace {
    /// The next one on a connection when the last was answered.
    Answered,
    /// So many a second over all connections, at times set beforehand. An answer that comes late is counted from
    /// the time at which its announce was due, so that a pause is not hidden by those that wait for it.
    Rate(f64),
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) seconds: f64,
    pub(super) announces: u64,
    pub(super) updates: u64,
    pub(super) answer_bytes: u64,
    /// Nanoseconds.
    pub(super) latency: Histogram<u64>,
    /// The same of announces at times set beforehand, for which the hypervisor took no time from the cores.
    pub(super) undisturbed: Option<Histogram<u64>>,
    /// Time that the hypervisor took from both cores together, where the kernel says it; in the kernel's ticks.
    pub(super) stolen_ticks: Option<u64>,
    /// Processor's time of the thread without that in which it had nothing to do, seconds.
    pub(super) cpu_seconds: f64,
    /// Longest time in which the thread did not look whether an announce was due or an answer had come. No latency is known better.
    pub(super) longest_pause: Duration,
}

/// What a filled tracker should know.
#[derive(Debug, Clone, Copy)]
pub(super) struct Filled {
    pub(super) entries: u64,
}

/// Runs a future on a thread of its own, on one core if that is given.
async fn on_thread<T, F>(core: Option<usize>, work: impl FnOnce() -> F + Send + 'static) -> Result<T>
where
    T: Send + 'static,
    F: Future<Output = Result<T>>,
{
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let run = || {
            if let Some(core) = core {
                let mut set = CpuSet::new();
                set.set(core);
                sched_setaffinity(None, &set).context("the load cannot be put on a core of its own")?;
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(awake(work()))
        };
        // The receiver is gone only when nobody wants to know.
        let _ = sender.send(run());
    });
    receiver.await.map_err(|_| anyhow!("the load ended abnormally"))?
}

thread_local! {
    /// How long this thread has waited for something to do.
    static IDLE: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    /// Longest time from one look for something to do to the next, since a load began.
    static LONGEST_PAUSE: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Does the work without ever sleeping. Nodes are on other machines, whose threads a tracker does not wake; here a thread that slept would
/// be woken by the server's core with each answer, which in a virtual machine takes it as long as a quarter of an announce.
async fn awake<T>(work: impl Future<Output = T>) -> T {
    let never_sleeps = async {
        let mut last = Instant::now();
        loop {
            tokio::task::yield_now().await;
            let now = Instant::now();
            let gap = now - last;
            if gap < NOTHING_TO_DO {
                IDLE.set(IDLE.get() + gap);
            }
            LONGEST_PAUSE.set(LONGEST_PAUSE.get().max(gap));
            last = now;
        }
    };
    tokio::select! {
        done = work => done,
        () = never_sleeps => unreachable!("it does not end"),
    }
}

/// Every node says everything that it has.
///
/// # Errors
/// When the tracker refuses an announce.
pub(super) async fn fill(address: SocketAddr, model: Model, connections: usize, core: Option<usize>) -> Result<Filled> {
    on_thread(core, move || async move {
        let next = AtomicUsize::new(0);
        let (next, model) = (&next, &model);
        try_join_all((0..connections).map(|_| async move {
            let mut connection = Connection::open(address).await?;
            loop {
                let peer = next.fetch_add(1, Ordering::Relaxed);
                if peer >= model.peers() {
                    return Ok::<_, anyhow::Error>(());
                }
                connection.exchange(&model.full(peer)?).await?;
            }
        }))
        .await?;
        Ok(Filled { entries: u64::try_from(model.peers() * model.blobs_per_peer())? })
    })
    .await
}

/// Announces for so long.
///
/// # Errors
/// When the tracker refuses an announce, or does not answer.
pub(super) async fn run(
    address: SocketAddr,
    messages: Arc<Messages>,
    connections: usize,
    pace: Pace,
    time: Duration,
    core: Option<usize>,
) -> Result<Load> {
    on_thread(core, move || async move {
        let open = try_join_all((0..connections).map(|_| Connection::open(address))).await?;
        let record = RefCell::new(Record::new(pace, time)?);
        LONGEST_PAUSE.set(Duration::ZERO);
        let started = Instant::now();
        let cpu = cpu_seconds();
        let stolen = Stolen::since(started);
        let announces = try_join_all(open.into_iter().enumerate().map(|(index, connection)| {
            let plan = Plan { index, connections, pace, started, time };
            announce(connection, &messages, plan, &record)
        }));
        tokio::select! {
            ended = announces => ended?,
            () = stolen.watch() => unreachable!("it does not end"),
        };
        // For those that were answered since it was looked at.
        stolen.look();
        let (seconds, longest_pause) = (started.elapsed().as_secs_f64(), LONGEST_PAUSE.get());
        let Record { latency, answers, answer_bytes } = record.into_inner();
        ensure!(!latency.is_empty(), "nothing was answered");
        Ok(Load {
            seconds,
            announces: latency.len(),
            updates: latency.len() * messages.updates,
            answer_bytes,
            undisturbed: stolen.undisturbed(&answers, DIGITS),
            latency,
            stolen_ticks: stolen.ticks(),
            cpu_seconds: cpu_seconds() - cpu,
            longest_pause,
        })
    })
    .await
}

/// Of the calling thread, which runs all of a load, without the time in which it looked for something to do.
fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9 - IDLE.get().as_secs_f64()
}

/// When one of the connections sends.
struct Plan {
    index: usize,
    connections: usize,
    pace: Pace,
    started: Instant,
    time: Duration,
}

impl Plan {
    /// When announce number `number` of this connection is due; `None` when the time is over.
    fn due(&self, number: usize) -> Option<Instant> {
        let due = match self.pace {
            Pace::Answered => Instant::now(),
            Pace::Rate(rate) => {
                self.started + Duration::from_secs_f64((number * self.connections + self.index) as f64 / rate)
            }
        };
        (due.saturating_duration_since(self.started) < self.time).then_some(due)
    }
}

/// What came of the announces of all connections.
///
/// It takes no memory while announces are sent: where the kernel has to find a page first, a virtual machine may have to ask for it too, and
/// what waits for that meanwhile would be late by the doing of these nodes.
struct Record {
    latency: Histogram<u64>,
    /// Only where the times were set beforehand.
    answers: Vec<Answer>,
    answer_bytes: u64,
}

impl Record {
    fn new(pace: Pace, time: Duration) -> Result<Self> {
        let mut latency = Histogram::new_with_bounds(1, nanoseconds(time + STALL), DIGITS)?;
        // Writes to all of it.
        latency.clear();
        let answers = match pace {
            Pace::Answered => Vec::new(),
            Pace::Rate(rate) => {
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate is positive")]
                let most = (rate * time.as_secs_f64()).ceil() as usize;
                let mut answers = vec![Answer { due: Duration::MAX, latency: Duration::MAX }; most];
                answers.clear();
                answers
            }
        };
        Ok(Self { latency, answers, answer_bytes: 0 })
    }
}

/// At least one, since a histogram knows no zero.
fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).max(1)
}

async fn announce(mut connection: Connection, messages: &Messages, plan: Plan, record: &RefCell<Record>) -> Result<()> {
    let mut number = 0;
    while let Some(due) = plan.due(number) {
        if due > Instant::now() {
            tokio::time::sleep_until(due.into()).await;
        }
        let at = (number * plan.connections + plan.index) % messages.requests.len();
        let request = messages.requests.get(at).context("there is nothing to send")?;
        let bytes = u64::try_from(connection.exchange(request).await?)?;
        let latency = due.elapsed();
        let mut record = record.borrow_mut();
        record.answer_bytes += bytes;
        record.latency.saturating_record(nanoseconds(latency));
        if let Pace::Rate(_) = plan.pace {
            record.answers.push(Answer { due: due - plan.started, latency });
        }
        number += 1;
    }
    Ok(())
}

/// One connection that stays open.
struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("{address} cannot be reached"))?;
        stream.set_nodelay(true)?;
        // Written to, as `Record` is.
        let mut buffer = vec![u8::MAX; 64 << 10];
        buffer.clear();
        Ok(Self { stream, buffer })
    }

    /// Sends a request and reads its answer; gives the bytes of that.
    async fn exchange(&mut self, request: &[u8]) -> Result<usize> {
        let exchange = async {
            self.stream.write_all(request).await?;
            self.buffer.clear();
            let mut whole = None;
            while whole.is_none_or(|whole| self.buffer.len() < whole) {
                ensure!(self.buffer.len() < MAX_ANSWER, "the answer has no end");
                ensure!(self.stream.read_buf(&mut self.buffer).await? > 0, "the server closed the connection");
                if whole.is_none() {
                    whole = length(&self.buffer)?;
                }
            }
            ensure!(whole == Some(self.buffer.len()), "more than one answer to a request");
            Ok(self.buffer.len())
        };
        timeout(STALL, exchange).await.context("no answer")?
    }
}

/// Bytes of an answer with its head; `None` while the head is not whole.
fn length(answer: &[u8]) -> Result<Option<usize>> {
    let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&answer[..end]).context("the answer is not HTTP")?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "the answer is {}", head.lines().next().unwrap_or_default());
    let length = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .context("the answer does not say how long it is")?;
    Ok(Some(end + 4 + length.1.trim().parse::<usize>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_have_an_end() {
        assert_eq!(length(b"HTTP/1.1 200 OK\r\nContent-Le").unwrap(), None);
        assert_eq!(length(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n12").unwrap(), Some(43));
        for bad in [&b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n"[..], b"HTTP/1.1 200 OK\r\n\r\n", b"x\r\n\r\n"] {
            assert!(length(bad).is_err());
        }
    }

    #[test]
    fn all_that_is_recorded_has_room_beforehand() {
        let time = Duration::from_millis(1_500);
        let record = Record::new(Pace::Rate(7.0), time).unwrap();
        let planned: usize = (0..4)
            .map(|index| {
                let plan = Plan { index, connections: 4, pace: Pace::Rate(7.0), started: Instant::now(), time };
                (0..).take_while(|number| plan.due(*number).is_some()).count()
            })
            .sum();
        assert_eq!((planned, record.answers.capacity(), record.answers.len()), (11, 11, 0));
        assert!(record.latency.high() >= nanoseconds(STALL));
    }

    #[test]
    fn a_plan_has_its_times() {
        let plan =
            |pace| Plan { index: 1, connections: 4, pace, started: Instant::now(), time: Duration::from_secs(1) };
        let paced = plan(Pace::Rate(8.0));
        assert_eq!(paced.due(0), Some(paced.started + Duration::from_millis(125)));
        assert_eq!(paced.due(1), Some(paced.started + Duration::from_millis(625)));
        assert_eq!(paced.due(2), None);
        assert!(plan(Pace::Answered).due(1_000).is_some());
    }
}
