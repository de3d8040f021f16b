//! What a controller and an agent say to each other.
//!
//! One HTTP request for a whole benchmark: the controller's commands are lines of JSON in its body, the agent's answers lines
//! of JSON in the body of the response, both at the same time. Each command but a ping has any number of [`Answer::Progress`] and
//! [`Answer::Pull`] for answers, and then one [`Answer::End`] or [`Answer::Failed`]. Whoever hears nothing for [`SILENCE`] takes the
//! other for lost; pings see to it that something is heard.

use std::{convert::Infallible, marker::PhantomData, pin::Pin, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail};
use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use http::HeaderName;
use http_body_util::{
    BodyDataStream,
    channel::{Channel, Sender},
};
use hyper::body::Incoming;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::time::Instant;
use tokio_util::{
    codec::{FramedRead, LinesCodec},
    io::StreamReader,
};

use super::{
    result::PullRecord,
    series::Plan,
    step::{Step, StepEnd},
};
use crate::host::Host;

/// Where agents take the request (POST).
pub(crate) const PATH: &str = "/v1/pull";
/// The version of the program that asks; both have to be the same, for what they say has no other.
pub(crate) const VERSION: HeaderName = HeaderName::from_static("eagle-bench-version");
/// Who says nothing for so long is lost. A machine that is merely busy says something.
pub(crate) const SILENCE: Duration = Duration::from_secs(30);
/// Between two pings: several of them may be late before the other is taken for lost.
pub(crate) const PING: Duration = Duration::from_secs(5);
/// The longest command, bytes: one image for each iteration of a step, or the proxies of a large cluster.
pub(crate) const MAX_COMMAND: usize = 4 << 20;
/// The longest answer, bytes: what a registry said of an error (4 KiB) and what a runtime printed (2 KiB), six times as long in JSON at
/// worst, with room to spare.
pub(crate) const MAX_ANSWER: usize = 256 << 10;
/// Lines that wait to be sent.
const WAITING: usize = 64;

/// What a controller says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Command {
    /// First and once: what will be pulled, from where, by what.
    Plan(Box<Plan>),
    /// So many pulls each way that do not count.
    WarmUp {
        pulls: u32,
    },
    /// Begin these pulls at once.
    Step(Step),
    Ping,
}

/// What an agent says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// First and once.
    Hello(Box<AgentInfo>),
    Pong,
    /// To a plan, where a runtime of the agent's machine pulls.
    Runtime {
        version: String,
    },
    /// Pulls of this step that have ended so far, and their bytes.
    Progress {
        done: u32,
        bytes: u64,
    },
    /// One that has ended.
    Pull(Box<PullRecord>),
    /// All that was asked is done.
    End(StepEnd),
    /// It cannot be done, and the agent waits for another controller.
    Failed {
        error: String,
    },
}

/// What an agent says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct AgentInfo {
    /// The name that its machine gives itself.
    pub(crate) hostname: String,
    pub(crate) version: String,
    /// `release` or `debug`.
    pub(crate) build: String,
    pub(crate) host: Host,
}

/// Lines that are heard.
pub(crate) struct Hears<T> {
    lines: Pin<Box<dyn Stream<Item = Result<String>> + Send + Sync>>,
    last: Instant,
    of: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Hears<T> {
    /// Of this body, each of so many bytes at most.
    pub(crate) fn new(body: Incoming, longest: usize) -> Self {
        let bytes = BodyDataStream::new(body).map_err(std::io::Error::other);
        let lines = FramedRead::new(StreamReader::new(bytes), LinesCodec::new_with_max_length(longest));
        Self { lines: Box::pin(lines.map_err(|error| anyhow!(error))), last: Instant::now(), of: PhantomData }
    }

    /// The next line; `None` when the other has nothing more to say. Can be dropped and called again without a loss.
    ///
    /// # Errors
    /// When nothing is heard for [`SILENCE`], the connection breaks, or it is something else.
    pub(crate) async fn next(&mut self) -> Result<Option<T>> {
        let line = tokio::time::timeout_at(self.last + SILENCE, self.lines.next()).await;
        let Ok(line) = line else { bail!("nothing was heard for {} s", SILENCE.as_secs()) };
        self.last = Instant::now();
        let Some(line) = line.transpose().context("the connection broke")? else { return Ok(None) };
        serde_json::from_str(&line).map(Some).with_context(|| {
            let shown: String = line.chars().take(80).collect();
            format!("what was heard makes no sense: {shown:?}")
        })
    }
}

/// Says lines.
pub(crate) struct Says<T> {
    body: Sender<Bytes>,
    of: PhantomData<fn(T)>,
}

impl<T: Serialize> Says<T> {
    /// And the body in which they are.
    pub(crate) fn new() -> (Self, Channel<Bytes, Infallible>) {
        let (sender, body) = Channel::new(WAITING);
        (Self { body: sender, of: PhantomData }, body)
    }

    /// A line.
    ///
    /// # Errors
    /// When the connection is gone, or the other does not listen.
    pub(crate) async fn say(&mut self, what: &T) -> Result<()> {
        let mut line = serde_json::to_vec(what)?;
        line.push(b'\n');
        let said = tokio::time::timeout(SILENCE, self.body.send_data(line.into())).await;
        said.context("nobody listens")?.map_err(|_| anyhow!("the connection is gone"))
    }
}
