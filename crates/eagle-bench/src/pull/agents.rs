//! Pulls by agents: programs like this one on other machines, each with a share of the clients.

mod link;

use std::{
    collections::BTreeSet,
    fmt,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use eagle_registry::Secret;
use futures::future::try_join_all;
use serde::Serialize;
use tokio::{sync::mpsc, task::JoinSet, time::Instant};
use url::Url;

use self::link::{Event, Link, Order};
use super::{
    protocol::{AgentInfo, Answer, Command},
    result::PullRecord,
    series::Plan,
    share::Share,
    step::{Counts, RECORDS, Step, StepEnd},
};

/// The most agents: each has a connection and a task here.
const MAX_AGENTS: usize = 1000;
/// From an order to its time, besides the way to the agents: for the tasks that send it.
const LEAD: Duration = Duration::from_millis(20);

/// An agent, as the report has it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct AgentResult {
    /// Host and port of its URL.
    pub(super) name: Arc<str>,
    #[serde(flatten)]
    pub(super) info: AgentInfo,
    /// Of the runtime of its machine, where that pulls.
    pub(super) runtime_version: Option<String>,
    /// At best, when it was greeted.
    pub(super) round_trip_seconds: f64,
    /// Why it did not do all that it was told.
    pub(super) error: Option<String>,
}

/// Agents that do what they are told. Dropping them makes them stop.
pub(super) struct Agents {
    results: Vec<AgentResult>,
    orders: Vec<mpsc::Sender<Order>>,
    events: mpsc::Receiver<Event>,
    /// The longest round trip.
    round_trip: Duration,
    _links: JoinSet<()>,
}

/// An agent that is lost; what the benchmark asked for cannot be measured any more.
#[derive(Debug)]
pub(super) struct Lost {
    pub(super) agent: Arc<str>,
    pub(super) error: String,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "agent {}: {}", self.agent, self.error)
    }
}

/// What agents did in a step, all of it or some.
#[derive(Debug)]
pub(super) struct Pulled {
    pub(super) records: Vec<PullRecord>,
    pub(super) end: StepEnd,
    /// Why it is not all.
    pub(super) lost: Option<Lost>,
}

impl Agents {
    /// Greets all of them and tells them what there will be to pull.
    ///
    /// # Errors
    /// The first that is not there, refuses, works for another, or cannot do it.
    pub(super) async fn connect(urls: &[Url], token: Option<&Secret>, plan: &Plan) -> Result<Self> {
        ensure!(urls.len() <= MAX_AGENTS, "--agent: there may be {MAX_AGENTS} at most");
        let names: Vec<Arc<str>> = urls.iter().map(|url| name(url).into()).collect();
        let distinct: BTreeSet<_> = names.iter().collect();
        ensure!(distinct.len() == names.len(), "--agent: an agent is named twice");
        let links = urls
            .iter()
            .zip(&names)
            .map(|(url, name)| async move { Link::open(url, token).await.with_context(|| format!("agent {name}")) });
        let links = try_join_all(links).await?;
        let (events, heard) = mpsc::channel(RECORDS);
        let mut agents = Self {
            results: Vec::new(),
            orders: Vec::new(),
            events: heard,
            round_trip: links.iter().map(|link| link.round_trip).max().unwrap_or_default(),
            _links: JoinSet::new(),
        };
        for (place, (link, name)) in links.into_iter().zip(names).enumerate() {
            agents.results.push(AgentResult {
                name,
                info: link.info.clone(),
                runtime_version: None,
                round_trip_seconds: link.round_trip.as_secs_f64(),
                error: None,
            });
            let (order, orders) = mpsc::channel(1);
            agents.orders.push(order);
            agents._links.spawn(link.run(place, orders, events.clone()));
        }
        agents.all(&Command::Plan(Box::new(plan.clone()))).await?;
        Ok(agents)
    }

    /// How many there are.
    pub(super) fn count(&self) -> u32 {
        u32::try_from(self.orders.len()).unwrap_or(u32::MAX)
    }

    /// What to report of them.
    pub(super) fn results(&self) -> &[AgentResult] {
        &self.results
    }

    /// Has each pull so many times by each way, without counting.
    ///
    /// # Errors
    /// When an agent cannot.
    pub(super) async fn warm_up(&mut self, pulls: u32) -> Result<()> {
        self.all(&Command::WarmUp { pulls }).await
    }

    /// The same of all.
    async fn all(&mut self, command: &Command) -> Result<()> {
        let commands = (0..self.orders.len()).map(|_| Some(command.clone())).collect();
        let mut versions = vec![None; self.orders.len()];
        let done = self.order(commands, |place, answer| match answer {
            Answer::Progress { .. } => Ok(()),
            Answer::Runtime { version } if matches!(command, Command::Plan(_)) && versions[place].is_none() => {
                versions[place] = Some(version);
                Ok(())
            }
            other => bail!("it says what was not asked: {other:?}"),
        });
        let done = done.await;
        for (agent, version) in self.results.iter_mut().zip(versions) {
            agent.runtime_version = version.or_else(|| agent.runtime_version.take());
        }
        match done {
            Ok(_) => Ok(()),
            Err(lost) => bail!("{lost}"),
        }
    }

    /// Spreads the clients of a step over the agents, which all begin at the same moment.
    pub(super) async fn step(&mut self, step: &Step, counts: &Counts) -> Pulled {
        let shares = Share::split(step.share.of, self.count());
        let of = |share: &Share| (share.clients > 0).then(|| Step { share: *share, ..step.clone() });
        let commands = shares.iter().map(|share| of(share).map(Command::Step)).collect();
        let mut collected: Vec<_> = shares.iter().map(|&share| Collected::new(step, share)).collect();
        let done = self.order(commands, |place, answer| {
            let result = collected[place].hear(answer);
            let sum = |part: fn(&Collected<'_>) -> u64| collected.iter().map(part).fold(0, u64::saturating_add);
            counts.done.store(u32::try_from(sum(|of| of.done.into())).unwrap_or(u32::MAX), Ordering::Relaxed);
            counts.bytes.store(sum(|of| of.bytes), Ordering::Relaxed);
            result
        });
        let done = done.await.and_then(|ends| {
            // All have to have told of every pull.
            match collected.iter().position(|of| of.records.len() != of.wanted()) {
                None => Ok(ends),
                Some(place) => {
                    let of = &collected[place];
                    let error = format!("it ended after {} of {} pulls", of.records.len(), of.wanted());
                    Err(self.lose(place, error))
                }
            }
        });
        let mut records = Vec::new();
        for (of, agent) in collected.into_iter().zip(&self.results) {
            let name = |record| PullRecord { agent: Some(Arc::clone(&agent.name)), ..record };
            records.extend(of.records.into_iter().map(name));
        }
        records.sort_by_key(|record| record.iteration);
        let (ends, lost) = match done {
            Ok(ends) => (ends, None),
            Err(lost) => (Vec::new(), Some(lost)),
        };
        let end = StepEnd {
            elapsed_seconds: ends.iter().map(|end| end.elapsed_seconds).fold(0.0, f64::max),
            image_bytes: ends.iter().find_map(|end| end.image_bytes),
        };
        Pulled { records, end, lost }
    }

    /// Gives commands to those that have one, all at the same moment, and hears answers until the last has ended.
    async fn order(
        &mut self,
        commands: Vec<Option<Command>>,
        mut hear: impl FnMut(usize, Answer) -> Result<()>,
    ) -> Result<Vec<StepEnd>, Lost> {
        let at = Instant::now() + LEAD + self.round_trip / 2;
        let mut busy = BTreeSet::new();
        for (place, command) in commands.into_iter().enumerate() {
            let Some(command) = command else { continue };
            busy.insert(place);
            // Fails only if the link has ended, of which there is an event.
            let _ = self.orders[place].send((command, at)).await;
        }
        let mut ends = Vec::new();
        while let Some(&waiting) = busy.first() {
            let Some((place, answer)) = self.events.recv().await else {
                return Err(self.lose(waiting, "it is gone".to_owned()));
            };
            let result = match answer {
                Ok(_) if !busy.contains(&place) => Err(anyhow::anyhow!("it says something without being asked")),
                Ok(Answer::End(end)) => {
                    busy.remove(&place);
                    sound(end.elapsed_seconds).map(|()| ends.push(end))
                }
                Ok(Answer::Failed { error }) => Err(anyhow::anyhow!(error)),
                Ok(answer) => hear(place, answer),
                Err(error) => Err(error),
            };
            if let Err(error) = result {
                return Err(self.lose(place, format!("{error:#}")));
            }
        }
        Ok(ends)
    }

    fn lose(&mut self, place: usize, error: String) -> Lost {
        let agent = &mut self.results[place];
        agent.error = Some(error.clone());
        Lost { agent: Arc::clone(&agent.name), error }
    }
}

/// What is heard of the share of one agent, which may say anything.
struct Collected<'a> {
    step: &'a Step,
    share: Share,
    records: Vec<PullRecord>,
    /// Iterations that it has told of.
    seen: BTreeSet<u32>,
    done: u32,
    bytes: u64,
}

impl<'a> Collected<'a> {
    const fn new(step: &'a Step, share: Share) -> Self {
        Self { step, share, records: Vec::new(), seen: BTreeSet::new(), done: 0, bytes: 0 }
    }

    /// Pulls that it has to make.
    fn wanted(&self) -> usize {
        usize::try_from(self.share.clients.saturating_mul(self.step.iterations)).unwrap_or(usize::MAX)
    }

    fn hear(&mut self, answer: Answer) -> Result<()> {
        match answer {
            Answer::Progress { done, bytes } => (self.done, self.bytes) = (done, bytes),
            Answer::Pull(record) => {
                self.check(&record)?;
                self.records.push(*record);
            }
            other => bail!("it says what was not asked: {other:?}"),
        }
        Ok(())
    }

    /// That it is of this step and share, and was not told before.
    fn check(&mut self, record: &PullRecord) -> Result<()> {
        let number = record.iteration.checked_sub(1);
        let number = number.filter(|&number| self.share.has(number) && number / self.share.of < self.step.iterations);
        ensure!(
            record.series == self.step.series && record.concurrency == self.share.of && number.is_some(),
            "it tells of a pull that is not its own: {}, {} at a time, number {}",
            record.series,
            record.concurrency,
            record.iteration
        );
        ensure!(self.seen.insert(record.iteration), "it tells twice of pull {}", record.iteration);
        ensure!(record.success == record.error.is_none(), "pull {} failed and did not", record.iteration);
        [Some(record.seconds), record.manifest_seconds, record.first_byte_seconds]
            .into_iter()
            .flatten()
            .try_for_each(sound)
    }
}

/// Whether something can have taken so long: not less than nothing, nor longer than any benchmark.
fn sound(seconds: f64) -> Result<()> {
    /// A year.
    const LONGEST: f64 = 365.0 * 86_400.0;
    ensure!((0.0..LONGEST).contains(&seconds), "it tells of something that took {seconds} s");
    Ok(())
}

/// What an agent is called: where it is.
fn name(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port_or_known_default().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

#[cfg(test)]
mod tests;
