//! Bodies of answers, and the guards around what an origin sends.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use eagle_core::geometry::MAX_BLOB_SIZE;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::{BodyExt, Empty, Full, combinators::BoxBody};
use tokio::time::{Instant, Sleep};

use crate::{headers, origin::OriginError, range::ContentRange};

/// Body of an answer: a stream of bytes that ends with an error when the origin breaks off or stalls.
pub type Body = BoxBody<Bytes, OriginError>;

/// A body without content.
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

/// A body with this content.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

/// The content of a blob, from some byte to its end.
pub struct BlobBody {
    /// Size of the whole blob, bytes.
    pub size: u64,
    /// Where the body begins: as asked, or 0 when the origin does not serve ranges.
    pub start: u64,
    /// Media type, when the origin names one.
    pub content_type: Option<HeaderValue>,
    /// Exactly `size - start` bytes, or an error.
    pub body: Body,
}

impl fmt::Debug for BlobBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobBody").field("size", &self.size).field("start", &self.start).finish_non_exhaustive()
    }
}

impl BlobBody {
    /// Checks the answer to a request for a blob from byte `start` and puts the guards around its body:
    /// it has the announced length, and no wait for a byte is longer than `stall_timeout`. `server`
    /// names the sender in errors.
    ///
    /// # Errors
    /// [`OriginError::Protocol`] when the answer is neither 200 nor 206, its size is missing or larger
    /// than [`MAX_BLOB_SIZE`], it is encoded, or its range is not the one that was asked for.
    pub fn from_response<B>(
        response: Response<B>,
        start: u64,
        stall_timeout: Duration,
        server: &str,
    ) -> Result<Self, OriginError>
    where
        B: HttpBody<Data = Bytes> + Send + Sync + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (parts, body) = response.into_parts();
        let (start, size) = match extent(parts.status, &parts.headers, start) {
            Ok(extent) => extent,
            Err(problem) => return Err(OriginError::protocol(server, problem)),
        };
        let content_type = parts.headers.get(header::CONTENT_TYPE).cloned();
        let body = guard(body, Some(size - start), stall_timeout, server);
        Ok(Self { size, start, content_type, body })
    }
}

/// Where the body of an answer begins, and the size of the whole blob.
fn extent(status: StatusCode, headers: &HeaderMap, asked: u64) -> Result<(u64, u64), String> {
    if headers.get(header::CONTENT_ENCODING).is_some_and(|value| value != "identity") {
        return Err("the blob is encoded although it was asked for as it is".to_owned());
    }
    let length = headers::number(headers, &header::CONTENT_LENGTH);
    let (start, size) = match status {
        StatusCode::OK => (0, length.ok_or("the answer has no Content-Length")?),
        StatusCode::PARTIAL_CONTENT => {
            let range = headers.get(header::CONTENT_RANGE).ok_or("the answer 206 has no Content-Range")?;
            let range = range.to_str().unwrap_or_default();
            let ContentRange { start, end, total } =
                range.parse().map_err(|error| format!("Content-Range {range:?}: {error}"))?;
            let size = total.ok_or("the Content-Range does not tell the size of the blob")?;
            if start != asked || end != size {
                return Err(format!("Content-Range {range:?} is not the range from byte {asked} that was asked for"));
            }
            if length.is_some_and(|length| length != end - start) {
                return Err(format!("Content-Length does not fit Content-Range {range:?}"));
            }
            (start, size)
        }
        other => return Err(format!("status {other} for a blob")),
    };
    if size > MAX_BLOB_SIZE {
        return Err(format!("a blob of {size} bytes; Eagle moves up to {MAX_BLOB_SIZE}"));
    }
    Ok((start, size))
}

/// Puts the guards around a body: length, when `expected`, and the longest wait for a byte.
pub fn guard<B>(body: B, expected: Option<u64>, stall_timeout: Duration, server: &str) -> Body
where
    B: HttpBody<Data = Bytes> + Send + Sync + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    Guarded {
        body: Box::pin(body),
        expected,
        received: 0,
        stall_timeout,
        stalled: Box::pin(tokio::time::sleep(stall_timeout)),
        waiting: false,
        done: false,
        server: Arc::from(server),
    }
    .boxed()
}

struct Guarded<B> {
    body: Pin<Box<B>>,
    expected: Option<u64>,
    received: u64,
    stall_timeout: Duration,
    stalled: Pin<Box<Sleep>>,
    /// Whether `stalled` counts: only from the poll that found nothing, so that a reader that takes its
    /// time is not mistaken for an origin that does.
    waiting: bool,
    done: bool,
    server: Arc<str>,
}

impl<B> Guarded<B>
where
    B: HttpBody<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn poll_inner(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, OriginError>>> {
        match self.body.as_mut().poll_frame(cx) {
            Poll::Ready(frame) => {
                self.waiting = false;
                Poll::Ready(self.check(frame).transpose())
            }
            Poll::Pending => {
                if !self.waiting {
                    self.waiting = true;
                    let deadline = Instant::now() + self.stall_timeout;
                    self.stalled.as_mut().reset(deadline);
                }
                ready!(self.stalled.as_mut().poll(cx));
                Poll::Ready(Some(Err(OriginError::Timeout {
                    registry: self.server.to_string(),
                    what: "the next bytes of a body",
                    after: self.stall_timeout,
                })))
            }
        }
    }

    fn check(&mut self, frame: Option<Result<Frame<Bytes>, B::Error>>) -> Result<Option<Frame<Bytes>>, OriginError> {
        let truncated = |received, expected, reason| OriginError::Truncated {
            registry: self.server.to_string(),
            received,
            expected,
            reason,
        };
        match frame {
            None if self.expected.is_some_and(|expected| self.received < expected) => {
                Err(truncated(self.received, self.expected, "the body ended".to_owned()))
            }
            None => Ok(None),
            Some(Err(error)) => Err(truncated(self.received, self.expected, crate::client::chain(&*error.into()))),
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.received += data.len() as u64;
                    if self.expected.is_some_and(|expected| self.received > expected) {
                        return Err(OriginError::protocol(&self.server, "the body is longer than announced"));
                    }
                }
                Ok(Some(frame))
            }
        }
    }
}

impl<B> HttpBody for Guarded<B>
where
    B: HttpBody<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = OriginError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, OriginError>>> {
        if self.done {
            return Poll::Ready(None);
        }
        let frame = ready!(self.poll_inner(cx));
        self.done = !matches!(frame, Some(Ok(_)));
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        // The end of the body below is not believed before its length is checked.
        self.done || (self.expected == Some(self.received) && self.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        match self.expected {
            Some(expected) => SizeHint::with_exact(expected.saturating_sub(self.received)),
            None => self.body.size_hint(),
        }
    }
}

/// Reads a body whole, up to `limit` bytes.
///
/// # Errors
/// Those of the body; `Ok(None)` when it is longer.
pub async fn read_up_to(mut body: Body, limit: usize) -> Result<Option<Bytes>, OriginError> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            if data.len() > limit - bytes.len() {
                return Ok(None);
            }
            bytes.extend_from_slice(&data);
        }
    }
    Ok(Some(bytes.into()))
}
