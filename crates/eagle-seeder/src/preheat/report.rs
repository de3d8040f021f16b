//! Jobs of preheating as the API shows them, and as they are kept across a restart.

use std::{fmt, str::FromStr};

use eagle_core::Digest;
use eagle_registry::ImageReference;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, de};

use super::{node_target::NodeTarget, nodes::NodeReport, platform::Platforms};

/// Longest error text kept, characters.
const MAX_ERROR: usize = 300;

/// What began a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// `POST /v1/preheat`.
    Request,
    /// A registry told of a push.
    Notification,
    /// `preheat.schedule`.
    Schedule,
}

impl Trigger {
    /// The trigger as it is written in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Notification => "notification",
            Self::Schedule => "schedule",
        }
    }
}

/// How far a job or one of its images is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Not begun.
    Queued,
    /// Under way.
    Running,
    /// Everything is stored.
    Succeeded,
    /// Something could not be had; the rest is stored.
    Failed,
    /// Given up on request; what was stored stays.
    Cancelled,
}

impl JobState {
    /// Whether nothing more will happen.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    /// The state as it is written in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// How far one blob or manifest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlobState {
    /// Not begun.
    Waiting,
    /// On its way.
    Fetching,
    /// Stored by a seeder, and its content matched its digest.
    Stored,
    /// Not in the registry: a layer that may not be distributed.
    Skipped,
    /// Not to be had.
    Failed,
}

/// What a blob is to its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlobKind {
    /// A list of manifests, one per platform.
    Index,
    /// A manifest.
    Manifest,
    /// The configuration of an image.
    Config,
    /// A layer.
    Layer,
}

/// One blob or manifest of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobReport {
    /// What it is; its content was checked against this.
    pub digest: Digest,
    /// What it is to the image.
    pub kind: BlobKind,
    /// Its whole size, bytes.
    pub size: u64,
    /// How far it is.
    pub state: BlobState,
    /// Bytes that are stored.
    pub received: u64,
    /// Where it came from: `cache` (it was there), `origin`, `stale` (a manifest that the origin could not
    /// confirm), or the URL of the seeder that stored it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// How often it was tried.
    pub attempts: u32,
    /// Why it failed, or failed last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl BlobReport {
    /// Not begun.
    pub(super) fn new(digest: Digest, kind: BlobKind, size: u64) -> Self {
        Self { digest, kind, size, state: BlobState::Waiting, received: 0, source: None, attempts: 0, error: None }
    }
}

/// One image of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageReport {
    /// Which image was asked for.
    pub image: ImageReference,
    /// How it was named by whoever asked, where that says more, such as the tag of a pushed digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub named: Option<String>,
    /// How far it is.
    pub state: JobState,
    /// Digest of what the reference stands for, once known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// Why it failed, where that is not about one of its blobs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Manifests, then blobs, each once.
    pub blobs: Vec<BlobReport>,
}

impl ImageReport {
    /// Not begun.
    pub(super) fn new(image: ImageReference, named: Option<String>) -> Self {
        Self { image, named, state: JobState::Queued, digest: None, error: None, blobs: Vec::new() }
    }
}

/// One job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Its name in the API.
    pub id: JobId,
    /// What began it.
    pub trigger: Trigger,
    /// How far it is.
    pub state: JobState,
    /// When it was asked for.
    pub created: Timestamp,
    /// When it began.
    #[serde(default)]
    pub started: Option<Timestamp>,
    /// When it ended.
    #[serde(default)]
    pub ended: Option<Timestamp>,
    /// For which platforms.
    pub platforms: Platforms,
    /// Which nodes are warmed too.
    pub nodes: NodeTarget,
    /// The list of images that it is from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub list: Option<String>,
    /// What went wrong beside the images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The images.
    pub images: Vec<ImageReport>,
    /// The nodes, once the seeders have everything.
    #[serde(default)]
    pub node_reports: Vec<NodeReport>,
}

impl Job {
    /// Numbers over all images.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for blob in self.images.iter().flat_map(|image| &image.blobs) {
            totals.blobs += 1;
            match blob.state {
                BlobState::Stored => totals.stored += 1,
                BlobState::Failed => totals.failed += 1,
                BlobState::Skipped => {
                    totals.skipped += 1;
                    continue;
                }
                BlobState::Waiting | BlobState::Fetching => {}
            }
            totals.bytes = totals.bytes.saturating_add(blob.size);
            totals.received_bytes = totals.received_bytes.saturating_add(blob.received);
        }
        totals
    }

    /// Number of blobs and nodes it tells of, which is what it takes in memory.
    pub(super) fn entries(&self) -> usize {
        self.images.len() + self.node_reports.len() + self.images.iter().map(|image| image.blobs.len()).sum::<usize>()
    }

    /// Back to the beginning, for a job that a restart interrupted: what it has stored is found stored.
    pub(super) fn begin_anew(&mut self) {
        self.state = JobState::Queued;
        self.started = None;
        self.ended = None;
        if self.list.is_none() {
            // That of a list is about the list, which is not read again.
            self.error = None;
        }
        self.node_reports.clear();
        for image in &mut self.images {
            *image = ImageReport::new(image.image.clone(), image.named.take());
        }
    }

    /// What a list of jobs says of it.
    pub fn summary(&self) -> JobSummary {
        JobSummary {
            id: self.id.clone(),
            trigger: self.trigger,
            state: self.state,
            created: self.created,
            started: self.started,
            ended: self.ended,
            nodes: self.nodes,
            list: self.list.clone(),
            error: self.error.clone(),
            images: self
                .images
                .iter()
                .map(|image| image.named.clone().unwrap_or_else(|| image.image.to_string()))
                .collect(),
            totals: self.totals(),
        }
    }
}

/// Numbers of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Totals {
    /// Blobs and manifests known so far.
    pub blobs: u64,
    /// Of them stored.
    pub stored: u64,
    /// Of them failed.
    pub failed: u64,
    /// Of them left out, as the registry does not have them.
    pub skipped: u64,
    /// Their sizes, bytes, without those left out.
    pub bytes: u64,
    /// Bytes stored.
    pub received_bytes: u64,
}

/// A job in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSummary {
    /// Its name in the API.
    pub id: JobId,
    /// What began it.
    pub trigger: Trigger,
    /// How far it is.
    pub state: JobState,
    /// When it was asked for.
    pub created: Timestamp,
    /// When it began.
    #[serde(default)]
    pub started: Option<Timestamp>,
    /// When it ended.
    #[serde(default)]
    pub ended: Option<Timestamp>,
    /// Which nodes are warmed too.
    pub nodes: NodeTarget,
    /// The list of images that it is from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub list: Option<String>,
    /// What went wrong beside the images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Names of its images.
    pub images: Vec<String>,
    /// Numbers.
    pub totals: Totals,
}

/// Name of a job: 16 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct JobId(String);

/// A text that is no name of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the name of a job is 16 hexadecimal digits")]
pub struct ParseJobIdError;

impl JobId {
    /// A new one.
    pub(super) fn random() -> Self {
        Self(hex::encode(rand::random::<[u8; 8]>()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for JobId {
    type Err = ParseJobIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if fits { Ok(Self(text.to_owned())) } else { Err(ParseJobIdError) }
    }
}

impl<'de> Deserialize<'de> for JobId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An error on one line, as long as a report keeps it.
pub(crate) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_ERROR).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_jobs_are_checked() {
        let id = JobId::random();
        assert_eq!(id.as_str().parse(), Ok(id));
        for bad in ["", "..", "0123456789abcde", "0123456789ABCDEF", "0123456789abcdef0", "../../etc/passw"] {
            assert_eq!(bad.parse::<JobId>(), Err(ParseJobIdError), "{bad}");
        }
    }
}
