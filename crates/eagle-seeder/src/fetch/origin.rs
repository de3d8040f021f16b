//! The bytes of a blob from its origin, in order, whatever happens to connections.

use std::{ops::Range, sync::Arc, time::Duration};

use bytes::{Buf, Bytes};
use eagle_core::Digest;
use eagle_registry::{Body, OriginError, Registry, backoff, retry_after};
use http_body_util::BodyExt;

use crate::{access::Source, error::FetchError, metrics::Metrics};

/// Tries without a byte of progress before a fetch is given up: with the delays between them, and the
/// further tries of each request, an origin that restarts within 4 s costs nothing but time.
const TRIES: u32 = 5;
/// Longest delay that an origin may ask for with `Retry-After`. Proxies have other sources to turn to.
const LONGEST_DELAY: Duration = Duration::from_secs(10);

/// A blob as a stream that resumes where it broke off.
pub(super) struct OriginStream {
    registry: Arc<Registry>,
    source: Source,
    digest: Digest,
    metrics: Metrics,
    body: Option<Body>,
    /// Size of the blob, from the first answer.
    size: u64,
    /// Where the next byte belongs.
    offset: u64,
    /// Bytes to drop first, of an origin that does not serve ranges.
    skip: u64,
    /// Tries since the last byte of progress.
    failures: u32,
}

impl OriginStream {
    /// Asks for the blob from byte `offset` on. This is not tried again: who waits has other sources.
    ///
    /// # Errors
    /// The origin's refusal, or why it cannot be reached.
    pub(super) async fn open(
        registry: Arc<Registry>,
        source: Source,
        digest: Digest,
        offset: u64,
        metrics: Metrics,
    ) -> Result<Self, FetchError> {
        let mut stream = Self { registry, source, digest, metrics, body: None, size: 0, offset, skip: 0, failures: 0 };
        stream.size = stream.connect().await.map_err(|error| FetchError::origin(digest, error))?;
        Ok(stream)
    }

    /// The rest of a blob of this size, whose beginning came from elsewhere. Nothing is asked for yet.
    pub(super) fn resume(
        registry: Arc<Registry>,
        source: Source,
        digest: Digest,
        at: Range<u64>,
        metrics: Metrics,
    ) -> Self {
        Self { registry, source, digest, metrics, body: None, size: at.end, offset: at.start, skip: 0, failures: 0 }
    }

    /// Size of the whole blob, bytes.
    pub(super) const fn size(&self) -> u64 {
        self.size
    }

    /// The next bytes; none once the blob is whole.
    ///
    /// # Errors
    /// When the origin refuses, changes the size, or stays away for [`TRIES`] tries.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        while self.offset < self.size {
            let Some(body) = &mut self.body else {
                self.reconnect().await?;
                continue;
            };
            let problem = match body.frame().await {
                Some(Ok(frame)) => match self.take(frame.into_data().unwrap_or_default()) {
                    Some(bytes) => return Ok(Some(bytes)),
                    None => continue,
                },
                Some(Err(error)) => error,
                None => OriginError::Truncated {
                    registry: self.source.registry.to_string(),
                    received: self.offset,
                    expected: Some(self.size),
                    reason: "the body ended".to_owned(),
                },
            };
            self.body = None;
            self.failed(problem).await?;
        }
        Ok(None)
    }

    fn take(&mut self, mut bytes: Bytes) -> Option<Bytes> {
        self.metrics.origin_bytes(bytes.len() as u64);
        let skip = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
        bytes.advance(skip);
        self.skip -= skip as u64;
        // A body is never believed to be longer than the blob.
        let left = usize::try_from(self.size - self.offset).unwrap_or(usize::MAX);
        bytes.truncate(left);
        if bytes.is_empty() {
            return None;
        }
        self.offset += bytes.len() as u64;
        self.failures = 0;
        Some(bytes)
    }

    async fn reconnect(&mut self) -> Result<(), FetchError> {
        match self.connect().await {
            Ok(size) if size == self.size => Ok(()),
            Ok(after) => Err(FetchError::SizeChanged {
                registry: self.source.registry.to_string(),
                digest: self.digest,
                before: self.size,
                after,
            }),
            Err(error) => self.failed(error).await,
        }
    }

    /// Opens the body at `offset`; gives the size of the blob.
    async fn connect(&mut self) -> Result<u64, OriginError> {
        let answer = self.registry.blob(&self.source.repository, self.digest, self.offset, &self.source.caller).await;
        self.metrics.origin_request("blob", answer.as_ref().err());
        let blob = answer?;
        self.skip = self.offset.saturating_sub(blob.start);
        self.body = Some(blob.body);
        Ok(blob.size)
    }

    /// Waits before the next try, or gives up.
    async fn failed(&mut self, error: OriginError) -> Result<(), FetchError> {
        self.failures += 1;
        if !error.is_transient() || self.failures >= TRIES {
            return Err(FetchError::origin(self.digest, error));
        }
        let asked = match &error {
            OriginError::Status { headers, .. } => retry_after(headers),
            _ => None,
        };
        let delay = (asked.unwrap_or_default() + backoff(self.failures)).min(LONGEST_DELAY);
        tracing::warn!(
            blob = %self.digest,
            offset = self.offset,
            try_again_in = ?delay,
            %error,
            "the origin broke off; the fetch goes on from where it is"
        );
        tokio::time::sleep(delay).await;
        Ok(())
    }
}
