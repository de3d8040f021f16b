//! The content of an answer, chunk by chunk.

use std::{ops::Range, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use eagle_core::Digest;
use futures::stream;
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody, combinators::UnsyncBoxBody};

use super::{content::Content, fault::Fault, server::Shared};

/// Most bytes made and handed to the connection at a time: small enough to be made on an async thread
/// (tens of microseconds), large enough for few system calls.
const CHUNK: usize = 128 << 10;

/// Time for the bytes before a break to leave.
const FLUSH_PAUSE: Duration = Duration::from_millis(50);

/// Body of an answer of the embedded registry.
pub(super) type ServerBody = UnsyncBoxBody<Bytes, Broken>;

/// The connection is to be closed in the middle.
#[derive(Debug, thiserror::Error)]
#[error("the embedded registry was told to break off")]
pub(super) struct Broken;

/// A blob on its way out.
pub(super) struct Sending {
    pub(super) shared: Arc<Shared>,
    pub(super) digest: Digest,
    pub(super) content: Content,
    /// What is still to be sent.
    pub(super) range: Range<u64>,
    pub(super) fault: Option<Fault>,
    /// What has been sent, bytes.
    pub(super) sent: u64,
}

impl Sending {
    pub(super) fn into_body(self) -> ServerBody {
        let stream = stream::unfold(self, |mut sending| async move {
            let chunk = sending.next().await?;
            Some((chunk.map(Frame::data), sending))
        });
        StreamBody::new(stream).boxed_unsync()
    }

    async fn next(&mut self) -> Option<Result<Bytes, Broken>> {
        if self.range.is_empty() {
            return None;
        }
        let left = usize::try_from(self.range.end - self.range.start).unwrap_or(usize::MAX);
        let mut length = left.min(self.shared.pace().chunk(CHUNK));
        if let Some(Fault::StallAfter(limit) | Fault::TruncateAfter(limit)) = self.fault {
            let allowed = usize::try_from(limit.saturating_sub(self.sent)).unwrap_or(usize::MAX);
            if allowed == 0 {
                if matches!(self.fault, Some(Fault::TruncateAfter(_))) {
                    // The server drops what it has buffered when a body fails; give it time to send.
                    tokio::time::sleep(FLUSH_PAUSE).await;
                    return Some(Err(Broken));
                }
                // For ever: until the client or the registry closes the connection.
                return std::future::pending().await;
            }
            length = length.min(allowed);
        }
        self.shared.pace().wait(length).await;
        let mut chunk = self.content.read(self.range.start, length);
        if let Some(Fault::CorruptAt(offset)) = self.fault
            && let Some(at) = offset.checked_sub(self.range.start).and_then(|at| usize::try_from(at).ok())
            && at < chunk.len()
        {
            let mut bytes = BytesMut::from(&chunk[..]);
            bytes[at] ^= 0xff;
            chunk = bytes.freeze();
        }
        self.range.start += chunk.len() as u64;
        self.sent += chunk.len() as u64;
        self.shared.count_bytes(self.digest, chunk.len() as u64);
        Some(Ok(chunk))
    }
}
