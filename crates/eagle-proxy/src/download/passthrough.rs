//! Relays a blob that this node cannot keep, straight from a seeder or the origin to the runtime.
//!
//! A response with the whole blob in it is hashed on the way, and its end is held back until the
//! digest matched, also when a part of it was given before: that part is read back, or where the disk
//! does not give it any more, comes a second time and is compared by the hashes of its pieces. A response
//! with a part of the blob cannot be checked here; the runtime checks the blob that it puts together.

use std::{ops::Range, sync::Arc};

use bytes::{Bytes, BytesMut};
use eagle_core::{Digest, digest::Hasher};
use eagle_store::BlobReader;
use http_body_util::BodyExt;
use tokio::time::timeout;

use super::{
    BlobError, Context,
    again::Comparison,
    reader::{Closed, Sink},
    sources::{self, Content, Failure},
    state::Download,
    verify,
};

/// Bytes that are hashed and handed on at a time, so that the switch to a blocking thread does not show.
const BLOCK: usize = 256 << 10;
/// A source that fails this often without giving a byte is done with.
const MAX_FAILURES: u32 = 2;

/// What a reader still wants.
#[derive(Debug)]
pub(crate) struct Part {
    /// Size of the whole blob, bytes.
    pub(crate) size: u64,
    /// Where what the runtime asked for ends.
    pub(crate) end: u64,
    /// What the download has given it that may be wrong; ends at the first byte that the runtime does not have.
    pub(crate) doubtful: Range<u64>,
    /// What the download has brought, when this node has it.
    pub(crate) prefix: Option<Arc<dyn BlobReader>>,
}

/// Why a relay ends early.
#[derive(Debug)]
pub(crate) enum Stop {
    Closed,
    Failed(BlobError),
}

impl From<Closed> for Stop {
    fn from(_: Closed) -> Self {
        Self::Closed
    }
}

/// Gives the rest of a range to a runtime, changing sources as often as it takes.
pub(crate) async fn relay(
    context: &Arc<Context>,
    download: &Arc<Download>,
    part: Part,
    sink: &mut Sink,
) -> Result<(), Stop> {
    let Part { size, end, doubtful, prefix } = part;
    let at = doubtful.end;
    let is_whole = sink.begin() == 0 && end == size;
    let mut relay = Relay { context, at, sent: at, end, proof: None, block: BytesMut::new(), sink };
    if is_whole {
        let hashed = match prefix {
            // All that was given is the download's, or else it need not have what was given before.
            Some(prefix) if doubtful.start == 0 => {
                verify::hash_prefix(download.digest.hasher(), &prefix, at).await.ok()
            }
            _ => None,
        };
        relay.proof = Some(match hashed {
            Some(hasher) => Proof { hasher, comparison: None },
            None => {
                // What was sent is not on the disk any more: it comes once more, to be hashed and not sent.
                relay.at = 0;
                let comparison = match download.given() {
                    _ if doubtful.is_empty() => None,
                    Some(given) => Some(Comparison::new(download.digest, given, doubtful)),
                    None => return Err(Stop::Failed(BlobError::Unproven)),
                };
                Proof { hasher: download.digest.hasher(), comparison }
            }
        });
    }
    let at = relay.at;
    let mut tried = Vec::new();
    let mut stashed = download.take_content().filter(|content| content.start <= at);
    for request in download.requests() {
        for server in sources::servers(context, &request, download) {
            let mut failures = 0;
            while failures < MAX_FAILURES {
                let content = match stashed.take() {
                    Some(content) => Ok(content),
                    None => sources::content(context, &request, &server, relay.at + relay.block.len() as u64).await,
                };
                let content = match content {
                    Ok(content) if content.size == size => content,
                    Ok(content) => {
                        tried.push(format!(
                            "{server}: it says that the blob has {} bytes, and it has {size}",
                            content.size
                        ));
                        break;
                    }
                    Err(Failure::Refused(refusal)) => {
                        tried.push(format!("{server}: {}", refusal.status));
                        break;
                    }
                    Err(Failure::Failed(reason)) => {
                        tried.push(reason);
                        break;
                    }
                };
                context.metrics.fallback(content.server.source());
                let before = relay.at;
                match relay.copy(content, download).await? {
                    Copied::All => return Ok(()),
                    Copied::Broken(reason) => {
                        tried.push(format!("{server}: {reason}"));
                        failures = if relay.at > before { 1 } else { failures + 1 };
                    }
                }
            }
        }
    }
    Err(Stop::Failed(BlobError::Unavailable { tried }))
}

enum Copied {
    All,
    Broken(String),
}

/// That an answer with the whole blob in it is the blob.
struct Proof {
    hasher: Hasher,
    /// Of what was given with what comes a second time.
    comparison: Option<Comparison>,
}

impl Proof {
    /// Adds the next bytes of the blob.
    async fn add(mut self, bytes: Bytes) -> Result<Self, Stop> {
        let added = tokio::task::spawn_blocking(move || {
            self.hasher.update(&bytes);
            if let Some(comparison) = &mut self.comparison {
                comparison.add(&bytes);
            }
            self
        });
        added.await.map_err(|_| Stop::Failed(BlobError::Stopped))
    }

    /// After the last byte.
    fn finish(self, digest: Digest) -> Result<(), BlobError> {
        let actual = self.hasher.finish();
        if actual != digest {
            return Err(BlobError::Corrupt { actual });
        }
        match self.comparison {
            Some(comparison) if !comparison.agrees() => Err(BlobError::Unproven),
            _ => Ok(()),
        }
    }
}

struct Relay<'a> {
    context: &'a Arc<Context>,
    /// The first byte that did not pass here.
    at: u64,
    /// The first byte that the runtime does not have.
    sent: u64,
    end: u64,
    /// Present when the whole blob goes through; has seen every byte before `at`.
    proof: Option<Proof>,
    /// Bytes from `at` on that were not sent yet.
    block: BytesMut,
    sink: &'a mut Sink,
}

impl Relay<'_> {
    async fn copy(&mut self, content: Content, download: &Download) -> Result<Copied, Stop> {
        let Content { server, start, mut body, .. } = content;
        let stall = self.context.settings.stall_timeout;
        // A server without ranges begins at the start.
        let mut skip = (self.at + self.block.len() as u64).saturating_sub(start);
        while self.at + (self.block.len() as u64) < self.end {
            let frame = match timeout(stall, body.frame()).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => return Ok(Copied::Broken(error.to_string())),
                Ok(None) => return Ok(Copied::Broken("it ended early".to_owned())),
                Err(_) => return Ok(Copied::Broken(format!("it sent nothing for {stall:?}"))),
            };
            let Ok(mut data) = frame.into_data() else { continue };
            self.context.node.download_limiter().acquire(data.len() as u64).await;
            download.received.add(server.source(), data.len() as u64);
            self.context.metrics.bytes(server.source(), data.len() as u64);
            let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(data.len());
            let _ = data.split_to(skipped);
            skip -= skipped as u64;
            let left = self.end - self.at - self.block.len() as u64;
            data.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            self.block.extend_from_slice(&data);
            // The last block stays until the digest is known.
            while self.block.len() > BLOCK {
                let block = self.block.split_to(BLOCK).freeze();
                self.send(block).await?;
            }
        }
        let block = self.block.split().freeze();
        if let Some(proof) = self.proof.take() {
            proof.add(block.clone()).await?.finish(download.digest).map_err(|error| {
                self.context.metrics.verification_failure();
                Stop::Failed(error)
            })?;
        }
        if !block.is_empty() {
            self.send(block).await?;
        }
        Ok(Copied::All)
    }

    async fn send(&mut self, mut block: Bytes) -> Result<(), Stop> {
        if let Some(proof) = self.proof.take() {
            self.proof = Some(proof.add(block.clone()).await?);
        }
        let had = usize::try_from(self.sent.saturating_sub(self.at)).unwrap_or(usize::MAX).min(block.len());
        self.at += block.len() as u64;
        let _ = block.split_to(had);
        if !block.is_empty() {
            self.sent = self.at;
            self.sink.send(block).await?;
        }
        Ok(())
    }
}
