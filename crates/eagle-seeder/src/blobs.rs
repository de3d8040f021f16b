//! Blobs over HTTP: the metainfo stream of one, and its content.

use std::{ops::Range, pin::Pin, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use eagle_core::{
    Digest, PieceIndex,
    metainfo::{Frame, MAX_HASHES_PER_FRAME, encode, is_inline},
};
use eagle_p2p::node::Node;
use eagle_registry::{
    Body, Caller, OriginError, Registries,
    errors::ErrorCode,
    headers::DOCKER_CONTENT_DIGEST,
    range::{self, ContentRange},
};
use eagle_store::{
    BlobReader, Cache, CachedBlob,
    answers::{Answer, Answers},
};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::BodyExt;
use tokio::sync::Mutex;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    access::{Access, Source},
    answer::{self, BodyError, BodyWriter, FOLLOWS, PIECE_LENGTH, ResponseBody},
    error::FetchError,
    fetch::{Blob, Fetch, Fetches, Phase},
    metrics::Metrics,
    route::BlobName,
};

/// Media type of a metainfo stream.
pub(crate) const METAINFO_TYPE: &str = "application/vnd.eagle.metainfo.v2";
/// How often a metainfo stream without news says that it is alive.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// How long the content of a small blob may wait for the upload limit. After that it is left to peers,
/// who relieve a seeder that is asked by many, and the metainfo does not wait.
const INLINE_PATIENCE: Duration = Duration::from_secs(1);
/// Most bytes that are read, paid for and sent to one reader at a time: those that wait for a reader who takes nothing are
/// lost to all others.
const HTTP_BLOCK: u64 = 128 << 10;

/// What answers requests for blobs; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Blobs {
    pub(crate) fetches: Fetches,
    pub(crate) access: Arc<Access>,
    pub(crate) registries: Arc<Registries>,
    pub(crate) cache: Arc<Cache>,
    pub(crate) node: Node,
    /// One answer over HTTP waits for the upload limit at a time. The limit serves whoever waits in turn, so many nodes
    /// that fall back to HTTP at once would otherwise leave little of it for the pieces that each go to one node
    /// and on from there, and so keep falling back.
    pub(crate) http_turn: Arc<Mutex<()>>,
    /// What of blobs is in memory for answers over HTTP.
    pub(crate) answers: Answers,
    pub(crate) metrics: Metrics,
    /// Tasks that write bodies.
    pub(crate) writers: TaskTracker,
    /// Cancelled when the seeder begins to drain: metainfo streams end then.
    pub(crate) draining: CancellationToken,
}

fn source(name: BlobName, headers: &HeaderMap) -> (Digest, Source) {
    let BlobName { digest, registry, repository } = name;
    (digest, Source { registry, repository, caller: Caller::of(headers) })
}

impl Blobs {
    /// `GET /v1/blobs/{digest}/metainfo`
    pub(crate) async fn metainfo(&self, name: BlobName, headers: &HeaderMap) -> Response<ResponseBody> {
        let (digest, source) = source(name, headers);
        let fetches = self.fetches.clone();
        let mut obtaining = Box::pin(async move { fetches.obtain(digest, &source).await });
        let obtained = loop {
            match tokio::time::timeout(KEEP_ALIVE, &mut obtaining).await {
                Ok(Ok(blob)) => break Some(blob),
                Ok(Err(error)) => return answer::fetch_error(&error),
                // Nothing that the registry says can come of it any more, only bytes or silence.
                Err(_) if self.fetches.waits_for_another(&digest) => break None,
                Err(_) => {}
            }
        };
        let (writer, body) = answer::streamed();
        let this = self.clone();
        self.writers.spawn(async move {
            let written = match obtained {
                Some(blob) => this.write_metainfo(blob, &writer).await,
                None => this.write_late_metainfo(obtaining, &writer).await,
            };
            if let Err(error) = written {
                tracing::debug!(blob = %digest, %error, "a metainfo stream ended early");
                writer.fail(error).await;
            }
        });
        let mut response = Response::new(body);
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(METAINFO_TYPE));
        response
    }

    /// Says that it is alive until the blob is there.
    async fn write_late_metainfo(
        &self,
        mut obtaining: Pin<Box<impl Future<Output = Result<Blob, FetchError>>>>,
        writer: &BodyWriter,
    ) -> Result<(), BodyError> {
        loop {
            let obtained = tokio::select! {
                obtained = tokio::time::timeout(KEEP_ALIVE, &mut obtaining) => obtained,
                () = self.draining.cancelled() => return Err(FetchError::Stopped.into()),
            };
            match obtained {
                Ok(Ok(blob)) => return self.write_metainfo(blob, writer).await,
                Ok(Err(error)) => return send(writer, &Frame::Failed(error.to_string())).await,
                Err(_) => send(writer, &Frame::KeepAlive).await?,
            }
        }
    }

    async fn write_metainfo(&self, blob: Blob, writer: &BodyWriter) -> Result<(), BodyError> {
        let seeder = self.node.info();
        match blob {
            Blob::Stored(blob) => {
                // `obtain` gives out no stored blob without metainfo.
                let metainfo = blob.metainfo().ok_or(BodyError::Abandoned)?;
                send(writer, &Frame::Header { digest: blob.digest(), geometry: metainfo.geometry, seeder }).await?;
                if is_inline(&metainfo.geometry) {
                    self.write_inline(&blob, writer).await?;
                }
                for hashes in metainfo.hashes.chunks(MAX_HASHES_PER_FRAME) {
                    send(writer, &Frame::Hashes(hashes.to_vec())).await?;
                }
                send(writer, &Frame::Complete).await
            }
            Blob::Running(fetch) => {
                let geometry = fetch.started().await?;
                send(writer, &Frame::Header { digest: fetch.digest(), geometry, seeder }).await?;
                tokio::select! {
                    result = self.follow(&fetch, is_inline(&geometry), writer) => result,
                    () = self.draining.cancelled() => Err(BodyError::Fetch(FetchError::Stopped)),
                }
            }
        }
    }

    /// Sends the content of a small blob, unless the upload limit is in the way for too long.
    async fn write_inline(&self, blob: &CachedBlob, writer: &BodyWriter) -> Result<(), BodyError> {
        let length = usize::try_from(blob.size()).unwrap_or(usize::MAX);
        let limited = self.node.upload_limiter().acquire(blob.size());
        if tokio::time::timeout(INLINE_PATIENCE, limited).await.is_err() {
            return Ok(());
        }
        let content = blob.reader().read_at(0, length).await?;
        send(writer, &Frame::Content(content)).await?;
        self.metrics.http_bytes(blob.size());
        Ok(())
    }

    /// Sends hashes as they come, until the fetch ends; of a small blob all at the end, after its
    /// content.
    async fn follow(&self, fetch: &Fetch, small: bool, writer: &BodyWriter) -> Result<(), BodyError> {
        let mut phases = fetch.follow();
        let mut sent = 0;
        loop {
            // First the phase, then the hashes: so none is missing when the phase says that all are there.
            let phase = phases.borrow_and_update().clone();
            if small && let Phase::Complete(blob) = &phase {
                self.write_inline(blob, writer).await?;
            }
            let waits = small && !matches!(phase, Phase::Complete(_));
            loop {
                let hashes = if waits { Vec::new() } else { fetch.hashes(sent, MAX_HASHES_PER_FRAME) };
                if hashes.is_empty() {
                    break;
                }
                sent += hashes.len();
                send(writer, &Frame::Hashes(hashes)).await?;
            }
            match phase {
                Phase::Complete(_) => return send(writer, &Frame::Complete).await,
                Phase::Failed { error: FetchError::Stopped, .. } => return Err(FetchError::Stopped.into()),
                Phase::Failed { error, .. } => return send(writer, &Frame::Failed(error.to_string())).await,
                Phase::Starting | Phase::Running { .. } => {}
            }
            match tokio::time::timeout(KEEP_ALIVE, phases.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(BodyError::Abandoned),
                Err(_) => send(writer, &Frame::KeepAlive).await?,
            }
        }
    }

    /// `GET` and `HEAD /v1/blobs/{digest}`
    pub(crate) async fn content(&self, name: BlobName, method: &Method, headers: &HeaderMap) -> Response<ResponseBody> {
        let (digest, source) = source(name, headers);
        let wanted = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
        if method == Method::HEAD {
            return match self.size(digest, &source).await {
                Ok((size, age)) => match head(digest, size, wanted) {
                    Ok((_, mut response)) => {
                        // How old the origin's word is, by which the proxy's grant is shorter.
                        response.headers_mut().insert(header::AGE, answer::age(age));
                        response.map(|()| answer::empty())
                    }
                    Err(outside) => outside.response(),
                },
                Err(error) => answer::origin_error(&error),
            };
        }
        if headers.contains_key(FOLLOWS) {
            return match self.fetches.held(digest, &source).await {
                Ok(blob) => self.stream_to_seeder(digest, blob, wanted).await,
                Err(error) => answer::fetch_error(&error),
            };
        }
        match self.fetches.obtain(digest, &source).await {
            Ok(Blob::Stored(blob)) => self.stream(digest, blob.size(), wanted, |_| Content::Stored(blob.reader())),
            Ok(Blob::Running(fetch)) => match fetch.started().await {
                Ok(geometry) => self.stream(digest, geometry.size(), wanted, |_| {
                    Content::Running(Arc::clone(&fetch), geometry.piece_length())
                }),
                Err(error) => answer::fetch_error(&error),
            },
            Err(error) if error.is_no_room() => {
                tracing::info!(blob = %digest, %error, "a blob that is not stored is relayed from the origin");
                self.relay(digest, &source, wanted).await
            }
            Err(error) => answer::fetch_error(&error),
        }
    }

    /// The answer to another seeder, whose share in the upload limit is that of a peer: nodes wait for it.
    async fn stream_to_seeder(&self, digest: Digest, blob: Blob, wanted: Option<&str>) -> Response<ResponseBody> {
        let (geometry, content) = match blob {
            Blob::Stored(blob) => match blob.metainfo() {
                Some(metainfo) => (metainfo.geometry, Content::Stored(blob.reader())),
                // `held` gives out no stored blob without metainfo.
                None => return answer::fetch_error(&FetchError::NotHeld { digest }),
            },
            Blob::Running(fetch) => match fetch.started().await {
                Ok(geometry) => (geometry, Content::Running(fetch, geometry.piece_length())),
                Err(error) => return answer::fetch_error(&error),
            },
        };
        let blobs = Self { http_turn: Arc::default(), ..self.clone() };
        let mut response = blobs.stream(digest, geometry.size(), wanted, |_| content);
        response.headers_mut().insert(PIECE_LENGTH, HeaderValue::from(geometry.piece_length()));
        response
    }

    /// Size of a blob for a caller who may have it, and how long ago the origin said so; starts no fetch.
    async fn size(&self, digest: Digest, source: &Source) -> Result<(u64, Duration), OriginError> {
        match self.cache.get(digest).await {
            Some(blob) => self.access.check(source, digest, true).await.map(|age| (blob.size(), age)),
            None => self.access.ask(source, digest).await.map(|size| (size, Duration::ZERO)),
        }
    }

    /// The answer with the wanted part of some content.
    fn stream(
        &self,
        digest: Digest,
        size: u64,
        wanted: Option<&str>,
        content: impl FnOnce(u64) -> Content,
    ) -> Response<ResponseBody> {
        let (range, head) = match head(digest, size, wanted) {
            Ok(head) => head,
            Err(outside) => return outside.response(),
        };
        let content = content(range.start);
        let (writer, body) = answer::streamed();
        let this = self.clone();
        self.writers.spawn(async move {
            if let Err(error) = this.write_content(content, range, &writer, &this.answers.begin()).await {
                tracing::debug!(blob = %digest, %error, "the content of a blob ended early");
                writer.fail(error).await;
            }
        });
        head.map(|()| body)
    }

    async fn relay(&self, digest: Digest, source: &Source, wanted: Option<&str>) -> Response<ResponseBody> {
        let registry = self.registries.get(&source.registry);
        // Where the body has to begin depends on the size, which only the origin knows.
        let start = match wanted {
            None => 0,
            Some(_) => match self.access.ask(source, digest).await {
                Ok(size) => match head(digest, size, wanted) {
                    Ok((range, _)) => range.start,
                    Err(outside) => return outside.response(),
                },
                Err(error) => return answer::origin_error(&error),
            },
        };
        let answer = registry.blob(&source.repository, digest, start, &source.caller).await;
        self.metrics.origin_request("relay", answer.as_ref().err());
        match answer {
            Ok(blob) => self.stream(digest, blob.size, wanted, |start| Content::Relay {
                body: blob.body,
                skip: start.saturating_sub(blob.start),
            }),
            Err(error) => answer::origin_error(&error),
        }
    }

    async fn write_content(
        &self,
        content: Content,
        range: Range<u64>,
        writer: &BodyWriter,
        answer: &Answer,
    ) -> Result<(), BodyError> {
        match content {
            Content::Stored(reader) => self.copy(&reader, range, writer, answer).await,
            Content::Running(fetch, piece_length) => {
                let mut offset = range.start;
                while offset < range.end {
                    let number = offset / u64::from(piece_length);
                    let end = ((number + 1) * u64::from(piece_length)).min(range.end);
                    let piece = PieceIndex(u32::try_from(number).map_err(|_| BodyError::Abandoned)?);
                    let reader = fetch.piece(piece).await?;
                    self.copy(&reader, offset..end, writer, answer).await?;
                    offset = end;
                }
                Ok(())
            }
            Content::Relay { body, skip } => self.pass(body, skip, range.end - range.start, writer).await,
        }
    }

    /// Waits for the host's upload limit, as one among the uploads to peers for all answers together.
    async fn pay_upload(&self, bytes: u64) {
        // Held across the wait on purpose: this is the queue.
        let _turn = self.http_turn.lock().await;
        self.node.upload_limiter().acquire(bytes).await;
    }

    /// Copies bytes that are stored, under the host's upload limit.
    async fn copy(
        &self,
        reader: &Arc<dyn BlobReader>,
        range: Range<u64>,
        writer: &BodyWriter,
        answer: &Answer,
    ) -> Result<(), BodyError> {
        let limiter = self.node.upload_limiter();
        let mut offset = range.start;
        while offset < range.end {
            let room = writer.room().await?;
            // Now, not before: a reader who has waited for others to take theirs may have more.
            let block = answer.block().min(HTTP_BLOCK).min(range.end - offset);
            let length = usize::try_from(block).unwrap_or(usize::MAX).min(limiter.chunk());
            let bytes = reader.read_at(offset, length).await?;
            self.pay_upload(length as u64).await;
            room.take(bytes);
            answer.gave(length as u64);
            self.metrics.http_bytes(length as u64);
            offset += length as u64;
        }
        Ok(())
    }

    /// Passes `length` bytes of a body on, after dropping `skip`, under both of the host's limits.
    async fn pass(&self, mut body: Body, skip: u64, length: u64, writer: &BodyWriter) -> Result<(), BodyError> {
        let (mut skip, mut left) = (skip, length);
        while left > 0 {
            let frame = body.frame().await.ok_or(BodyError::Abandoned)??;
            let mut bytes = frame.into_data().unwrap_or_default();
            self.metrics.origin_bytes(bytes.len() as u64);
            self.node.download_limiter().acquire(bytes.len() as u64).await;
            let dropped = usize::try_from(skip).unwrap_or(usize::MAX).min(bytes.len());
            let _ = bytes.split_to(dropped);
            skip -= dropped as u64;
            bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            if bytes.is_empty() {
                continue;
            }
            let count = bytes.len() as u64;
            let room = writer.room().await?;
            self.pay_upload(count).await;
            room.take(bytes);
            self.metrics.http_bytes(count);
            left -= count;
        }
        Ok(())
    }
}

/// A range was asked for that lies outside a blob of this size.
struct Outside {
    size: u64,
}

impl Outside {
    fn response(&self) -> Response<ResponseBody> {
        let message = range::Unsatisfiable.to_string();
        let mut response = answer::error(StatusCode::RANGE_NOT_SATISFIABLE, ErrorCode::RangeInvalid, message);
        if let Ok(value) = HeaderValue::try_from(format!("bytes */{}", self.size)) {
            response.headers_mut().insert(header::CONTENT_RANGE, value);
        }
        response
    }
}

/// The head of the answer for what is wanted of a blob, and the range that its body has to fill.
fn head(digest: Digest, size: u64, wanted: Option<&str>) -> Result<(Range<u64>, Response<()>), Outside> {
    let range = match wanted.map(|wanted| range::requested(wanted, size)) {
        None => None,
        Some(range) => range.map_err(|range::Unsatisfiable| Outside { size })?,
    };
    let mut response = Response::new(());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if let Ok(value) = HeaderValue::try_from(digest.to_string()) {
        headers.insert(DOCKER_CONTENT_DIGEST, value);
    }
    let content = range.clone().unwrap_or(0..size);
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(content.end - content.start));
    if let Some(Range { start, end }) = range {
        let value = ContentRange { start, end, total: Some(size) }.to_string();
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(header::CONTENT_RANGE, value);
        }
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok((content, response))
}

/// Where the content of a blob comes from.
enum Content {
    Stored(Arc<dyn BlobReader>),
    /// A fetch and its piece length.
    Running(Arc<Fetch>, u32),
    /// The origin, of whose body the first `skip` bytes are not wanted.
    Relay {
        body: Body,
        skip: u64,
    },
}

async fn send(writer: &BodyWriter, frame: &Frame) -> Result<(), BodyError> {
    let mut bytes = BytesMut::new();
    // Hashes are cut to fit; of a failure's text the beginning says it.
    if encode(frame, &mut bytes).is_err() {
        return Err(BodyError::Abandoned);
    }
    writer.send(Bytes::from(bytes)).await
}
