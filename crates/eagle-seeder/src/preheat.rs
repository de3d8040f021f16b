//! Preheating: images are fetched before anybody pulls them.
//!
//! A *job* names images; it is asked for at the HTTP API (`api`), waits in the `queue`, and is done by
//! `run`: manifests are read through the seeder's own cache of them, blobs are fetched by the same fetches
//! that serve pulls, so that each comes from its registry once whoever asks first. With several seeders each
//! blob is stored by the one that proxies will ask for it (`sources`). What came of every blob is reported
//! (`report`), and kept across a restart (`journal`). Afterwards proxies can be warmed too (`nodes`).

pub(crate) mod api;
mod config;
mod journal;
mod list;
mod metrics;
mod node_target;
mod nodes;
mod platform;
mod queue;
mod report;
mod rule;
mod run;
mod sources;

pub use self::{
    api::{JobList, PreheatRequest},
    config::{PreheatConfig, PreheatConfigError},
    list::{ImageListError, image_list},
    node_target::{NodeTarget, ParseNodeTargetError},
    nodes::{NodeNews, NodeOrders, NodeReport, WarmBlob, WarmManifest, WarmOrder, WarmResult},
    platform::{ParsePlatformsError, PlatformName, Platforms},
    report::{
        BlobKind, BlobReport, BlobState, ImageReport, Job, JobId, JobState, JobSummary, ParseJobIdError, Totals,
        Trigger,
    },
    rule::{ImagePattern, ParsePatternError, Rule},
};
pub(crate) use self::{
    api::{MAX_IMAGES, NODES_PATH, is_preheat, json, queue_full, unauthorized, wrong_method},
    list::read_list,
    metrics::PreheatMetrics,
    nodes::Nodes,
    queue::{Order, Preheat},
    report::one_line,
    rule::Push,
    sources::Sources,
};
pub use crate::schedule::{CronExpression, ListLocation, ParseCronError, ParseListError, Schedule};
