//! The connection to one agent.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use eagle_registry::Secret;
use http::{HeaderValue, Request, header};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};
use url::Url;

use crate::{
    client::refuse_errors,
    pull::protocol::{AgentInfo, Answer, Command, Hears, MAX_ANSWER, PATH, PING, Says, VERSION},
};

/// Longest for the connection and the first answer.
const CONNECT: Duration = Duration::from_secs(10);
/// Pings whose shortest round trip counts.
const PROBES: usize = 3;

/// What an agent says, by its place among all; an error is its end.
pub(super) type Event = (usize, Result<Answer>);

/// A command, and when the agent shall have it.
pub(super) type Order = (Command, Instant);

/// An agent that waits for commands.
pub(super) struct Link {
    says: Says<Command>,
    hears: Hears<Answer>,
    pub(super) info: AgentInfo,
    /// Between saying something and hearing the answer, at best.
    pub(super) round_trip: Duration,
}

impl Link {
    /// Connects to the agent at this URL.
    ///
    /// # Errors
    /// When it is not there, refuses, or is no agent.
    pub(super) async fn open(url: &Url, token: Option<&Secret>) -> Result<Self> {
        let (says, body) = Says::new();
        let mut request = Request::post(url.join(PATH)?.as_str())
            .header(header::CONTENT_TYPE, "application/x-ndjson")
            .header(VERSION, env!("CARGO_PKG_VERSION"))
            .body(body)?;
        if let Some(token) = token {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose()))?;
            value.set_sensitive(true);
            request.headers_mut().insert(header::AUTHORIZATION, value);
        }
        let mut connector = HttpConnector::new();
        // A command is a few bytes, and has to be there at once.
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new()).build(connector);
        let answered = timeout(CONNECT, client.request(request)).await.context("it does not answer")?;
        let response = refuse_errors(url, answered.context("it cannot be reached")?).await?;
        let mut hears = Hears::new(response.into_body(), MAX_ANSWER);
        let info = match hears.next().await? {
            Some(Answer::Hello(info)) => *info,
            Some(Answer::Failed { error }) => bail!("{error}"),
            _ => bail!("it is no agent of eagle-bench"),
        };
        let mut link = Self { says, hears, info, round_trip: Duration::MAX };
        for _ in 0..PROBES {
            link.probe().await?;
        }
        Ok(link)
    }

    async fn probe(&mut self) -> Result<()> {
        let asked = Instant::now();
        self.says.say(&Command::Ping).await?;
        match self.hears.next().await? {
            Some(Answer::Pong) => self.round_trip = self.round_trip.min(asked.elapsed()),
            _ => bail!("it does not answer a ping with a pong"),
        }
        Ok(())
    }

    /// Hands on orders and answers until one end is gone. A command goes out half a round trip before its time.
    pub(super) async fn run(mut self, place: usize, mut orders: mpsc::Receiver<Order>, events: mpsc::Sender<Event>) {
        let error = match self.serve(place, &mut orders, &events).await {
            Ok(()) => return,
            Err(error) => error,
        };
        // Nobody may be left to hear of it.
        let _ = events.send((place, Err(error))).await;
    }

    async fn serve(
        &mut self,
        place: usize,
        orders: &mut mpsc::Receiver<Order>,
        events: &mpsc::Sender<Event>,
    ) -> Result<()> {
        let mut ping = interval(PING);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                order = orders.recv() => {
                    let Some((command, at)) = order else { return Ok(()) };
                    sleep_until(at - self.round_trip / 2).await;
                    self.says.say(&command).await?;
                }
                answer = self.hears.next() => match answer? {
                    None => bail!("it closed the connection"),
                    Some(Answer::Pong) => {}
                    Some(Answer::Hello(_)) => bail!("it says hello twice"),
                    Some(answer) => {
                        if events.send((place, Ok(answer))).await.is_err() {
                            return Ok(());
                        }
                    }
                },
                _ = ping.tick() => self.says.say(&Command::Ping).await?,
            }
        }
    }
}
