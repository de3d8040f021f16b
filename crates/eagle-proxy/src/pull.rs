//! The body of an answer with a blob: when it ends, in whatever way, one line in the log and the metrics say how it went.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use eagle_core::Digest;
use eagle_registry::{Caller, RegistryName, RepositoryName, trace::number};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::time::Instant;
use tracing::Span;

use crate::{
    answer::ResponseBody,
    download::BlobProgress,
    metrics::{Metrics, PullOutcome},
};

/// One blob, or a range of one, on its way to a runtime.
#[derive(Debug)]
pub(crate) struct Pull {
    pub(crate) metrics: Metrics,
    pub(crate) digest: Digest,
    pub(crate) registry: RegistryName,
    pub(crate) repository: RepositoryName,
    pub(crate) caller: Caller,
    pub(crate) started: Instant,
    /// Bytes that the runtime was promised.
    pub(crate) promised: u64,
    pub(crate) from: PullSource,
}

/// Where the bytes of an answer come from.
#[derive(Debug)]
pub(crate) enum PullSource {
    /// The cache of this node.
    Cache,
    /// A download, which others may read too.
    Download(BlobProgress),
    /// The registry, past cache and peers.
    Origin,
}

impl Pull {
    /// The body, watched until it ends.
    pub(crate) fn watch(self, body: ResponseBody) -> ResponseBody {
        PullBody { body, pull: self, given: 0, problem: None, span: Span::current() }.boxed_unsync()
    }
}

struct PullBody {
    body: ResponseBody,
    pull: Pull,
    given: u64,
    problem: Option<String>,
    /// Of the request, in traces; it ends with the body.
    span: Span,
}

impl Body for PullBody {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        match &frame {
            Poll::Ready(Some(Ok(frame))) => self.given += frame.data_ref().map_or(0, |data| data.len() as u64),
            Poll::Ready(Some(Err(error))) => self.problem = Some(error.to_string()),
            _ => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for PullBody {
    fn drop(&mut self) {
        let Pull { metrics, digest, registry, repository, caller, started, promised, from } = &self.pull;
        let outcome = match (&self.problem, self.given >= *promised) {
            (Some(_), _) => PullOutcome::Failed,
            (None, true) => PullOutcome::Complete,
            (None, false) => PullOutcome::Abandoned,
        };
        let elapsed = started.elapsed();
        metrics.pulled(outcome, self.given, elapsed);
        let (cached, [peers, seeders, seeders_http, origin]) = match from {
            PullSource::Cache => (self.given, [0; 4]),
            PullSource::Download(progress) => (0, progress.received()),
            PullSource::Origin => (0, [0, 0, 0, self.given]),
        };
        let span = self.span.record("eagle.outcome", outcome.name()).record("eagle.bytes", number(self.given));
        span.record("eagle.from_cache", number(cached)).record("eagle.from_peers", number(peers));
        span.record("eagle.from_seeders", number(seeders + seeders_http)).record("eagle.from_origin", number(origin));
        if let Some(problem) = &self.problem {
            span.record("otel.status_code", "ERROR").record("error.message", problem);
        }
        let request = caller.request_id.as_ref().map(tracing::field::display);
        tracing::info!(
            request, outcome = outcome.name(), %registry, %repository, %digest, bytes = self.given,
            seconds = elapsed.as_secs_f64(), from_cache = cached, from_peers = peers,
            from_seeders = seeders + seeders_http, from_origin = origin, error = self.problem.as_deref(), "pull"
        );
    }
}
