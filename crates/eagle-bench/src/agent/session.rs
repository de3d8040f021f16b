//! What an agent does for a controller, from its greeting to its end.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};

use super::Seat;
use crate::{
    host::{Host, hostname},
    pull::{
        protocol::{AgentInfo, Answer, Command, Hears, Says},
        result::PullRecord,
        series::{Plan, Series},
        step::{self, Counts, RECORDS, StepEnd},
    },
    report::BUILD,
};

/// Between two words about how far it is.
const PROGRESS: Duration = Duration::from_millis(500);

/// Serves a controller, and says on the terminal what becomes of it.
pub(super) async fn run(seat: Seat, peer: SocketAddr, says: Says<Answer>, hears: Hears<Command>) {
    // Also when the connection breaks, which drops all this.
    let farewell = Farewell { seat: Some(seat), peer };
    let mut session = Session { says, hears };
    if let Err(error) = session.serve(peer).await {
        eprintln!("Controller {peer}: {error:#}");
        // It may be gone.
        let _ = session.says.say(&Answer::Failed { error: format!("{error:#}") }).await;
    }
    drop(farewell);
}

struct Farewell {
    seat: Option<Seat>,
    peer: SocketAddr,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        // Before it is said that there is room.
        drop(self.seat.take());
        eprintln!("Controller {}: gone; waiting for the next", self.peer);
    }
}

struct Session {
    says: Says<Answer>,
    hears: Hears<Command>,
}

impl Session {
    async fn serve(&mut self, peer: SocketAddr) -> Result<()> {
        let info = AgentInfo {
            hostname: hostname(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            build: BUILD.to_owned(),
            host: Host::this(),
        };
        self.says.say(&Answer::Hello(Box::new(info))).await?;
        let Some((plan, series)) = self.plan().await? else { return Ok(()) };
        eprintln!("Controller {peer}: {} is to be pulled", plan.image);
        while let Some(command) = self.hears.next().await? {
            let counts = Arc::new(Counts::default());
            match command {
                Command::Ping => self.says.say(&Answer::Pong).await?,
                Command::WarmUp { pulls } => {
                    let work = async {
                        step::warm_up(&series, &plan.image, pulls).await?;
                        Ok(StepEnd::default())
                    };
                    let end = self.attend(work, nothing(), &counts).await?;
                    self.says.say(&Answer::End(end)).await?;
                }
                Command::Step(step) => {
                    let series = series.iter().find(|series| series.name == step.series);
                    let series = series.with_context(|| format!("the plan has nothing {}", step.series))?;
                    let (sink, records) = mpsc::channel(RECORDS);
                    let end = self.attend(step::run(series, step, sink, &counts), records, &counts).await?;
                    self.says.say(&Answer::End(end)).await?;
                }
                Command::Plan(_) => bail!("there is a plan already"),
            }
        }
        Ok(())
    }

    /// Hears what will be pulled and makes sure that this machine can; `None` if the controller goes instead.
    async fn plan(&mut self) -> Result<Option<(Plan, Vec<Series>)>> {
        loop {
            match self.hears.next().await? {
                None => return Ok(None),
                Some(Command::Ping) => self.says.say(&Answer::Pong).await?,
                Some(Command::Plan(plan)) => {
                    let series = plan.series()?;
                    let mut version = None;
                    let check = async {
                        if let Some(runtime) = plan.runtime {
                            version = Some(runtime.version().await?);
                        }
                        Ok(StepEnd::default())
                    };
                    let end = self.attend(check, nothing(), &Counts::default()).await?;
                    if let Some(version) = version {
                        self.says.say(&Answer::Runtime { version }).await?;
                    }
                    self.says.say(&Answer::End(end)).await?;
                    return Ok(Some((*plan, series)));
                }
                Some(_) => bail!("there is no plan yet"),
            }
        }
    }

    /// Works, tells how far it is, and gives up when the controller does. That it has ended is left to say.
    async fn attend(
        &mut self,
        work: impl Future<Output = Result<StepEnd>>,
        mut records: mpsc::Receiver<PullRecord>,
        counts: &Counts,
    ) -> Result<StepEnd> {
        let mut work = std::pin::pin!(work);
        let mut progress = interval(PROGRESS);
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut end, mut more) = (None, true);
        while more || end.is_none() {
            tokio::select! {
                done = &mut work, if end.is_none() => end = Some(done?),
                record = records.recv(), if more => match record {
                    Some(record) => self.says.say(&Answer::Pull(Box::new(record))).await?,
                    None => more = false,
                },
                _ = progress.tick() => {
                    let (done, bytes) = (counts.done.load(Ordering::Relaxed), counts.bytes.load(Ordering::Relaxed));
                    self.says.say(&Answer::Progress { done, bytes }).await?;
                }
                command = self.hears.next() => match command? {
                    Some(Command::Ping) => self.says.say(&Answer::Pong).await?,
                    Some(_) => bail!("it is told to do two things at once"),
                    None => bail!("the controller went away before the end"),
                },
            }
        }
        Ok(end.unwrap_or_default())
    }
}

/// The records of what has none.
fn nothing() -> mpsc::Receiver<PullRecord> {
    mpsc::channel(1).1
}
