//! One reader of a blob: bytes in order, as soon as they may be given away.
//!
//! The last piece is kept back until the whole blob matched its digest, so that no runtime ever gets
//! a complete response with wrong bytes in it.

use std::{
    ops::Range,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context as TaskContext, Poll},
};

use bytes::Bytes;
use eagle_store::answers::Answer;
use futures::Stream;
use tokio::{sync::mpsc, time::Instant};

use super::{
    BlobError, BlobRequest, Context, Downloads, again, passthrough,
    state::{Download, Phase, Ticket, Whole},
};
use crate::metrics::Source;

/// How often a response goes on with another copy of a blob that could not be read further. One that is fetched anew and cannot be
/// read either is on a disk that does not give back what it takes.
const MAX_REOPENED: u32 = 1;

/// A blob that can be read; dropping it gives up the interest in the blob.
#[derive(Debug)]
pub struct OpenBlob {
    /// What opened it, and for whom: where the rest comes from when it cannot be read to its end.
    pub(super) downloads: Downloads,
    pub(super) request: BlobRequest,
    pub(super) size: u64,
    source: Opened,
}

/// The bytes of a blob on its way, by where they come from.
#[derive(Debug)]
pub(crate) struct BlobProgress(Arc<Download>);

impl BlobProgress {
    /// Bytes so far from proxies, from seeders over the peer network, from seeders over HTTP, and from the origin.
    pub(crate) fn received(&self) -> [u64; 4] {
        self.0.received.get()
    }
}

#[derive(Debug)]
pub(crate) enum Opened {
    /// A small blob, checked against its digest.
    Memory(Bytes),
    Cached(Arc<Whole>),
    Arriving(Ticket),
}

/// The bytes of a blob or a part of it; an error means that the connection must be cut.
#[derive(Debug)]
pub struct BlobStream(Bytewise);

#[derive(Debug)]
enum Bytewise {
    /// All of it, in memory.
    Whole(Option<Bytes>),
    /// Read from the page cache when the connection wants more.
    Direct(Box<Direct>),
    /// From a task that reads ahead.
    Ahead(mpsc::Receiver<Result<Bytes, Arc<BlobError>>>),
}

impl Stream for BlobStream {
    type Item = Result<Bytes, Arc<BlobError>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match &mut self.0 {
                Bytewise::Whole(bytes) => return Poll::Ready(bytes.take().map(Ok)),
                Bytewise::Ahead(receiver) => return receiver.poll_recv(cx),
                Bytewise::Direct(direct) => match direct.next(cx) {
                    Poll::Ready(item) => return Poll::Ready(item),
                    // Not in memory: from here on a task waits for the disk, and reads ahead.
                    Poll::Pending => self.0 = Bytewise::Ahead(direct.ahead()),
                },
            }
        }
    }
}

/// A cached blob that is read on the task of its connection. No task, queue or thread lies between the
/// page cache and the socket: a block is copied by the core that then sends it.
#[derive(Debug)]
struct Direct {
    downloads: Downloads,
    request: BlobRequest,
    size: u64,
    whole: Arc<Whole>,
    /// Where the answer began, bytes from the start of the blob.
    begin: u64,
    left: Range<u64>,
    started: Option<Instant>,
    answer: Answer,
}

impl Direct {
    /// The next block; pending when it has to be waited for, which is then left to somebody else.
    fn next(&mut self, cx: &mut TaskContext<'_>) -> Poll<Option<Result<Bytes, Arc<BlobError>>>> {
        let Range { start, end } = self.left;
        if start >= end {
            return Poll::Ready(None);
        }
        let block = block_end(start, end, self.answer.block());
        let Poll::Ready(read) = pin!(read(&self.whole, start, block)).poll(cx) else { return Poll::Pending };
        // What cannot be read is had from elsewhere, which takes time too.
        let Ok(bytes) = read else { return Poll::Pending };
        self.left.start = block;
        self.answer.gave(bytes.len() as u64);
        let context = self.downloads.context();
        context.metrics.bytes(Source::Cache, bytes.len() as u64);
        delivered(context, bytes.len() as u64, &mut self.started);
        Poll::Ready(Some(Ok(bytes)))
    }

    /// The rest, read ahead by a task.
    fn ahead(&self) -> mpsc::Receiver<Result<Bytes, Arc<BlobError>>> {
        let source = Opened::Cached(Arc::clone(&self.whole));
        let blob = OpenBlob::new(self.downloads.clone(), self.request.clone(), self.size, source);
        blob.read_ahead(self.begin, self.left.clone(), self.started, self.answer.clone())
    }
}

/// Counts what a runtime was given.
fn delivered(context: &Context, bytes: u64, started: &mut Option<Instant>) {
    context.metrics.delivered(bytes);
    if let Some(started) = started.take() {
        context.metrics.first_byte(started.elapsed());
    }
}

/// Where a reader gives its bytes to, and how far it is.
#[derive(Debug)]
pub(crate) struct Sink {
    out: mpsc::Sender<Result<Bytes, Arc<BlobError>>>,
    context: Arc<Context>,
    /// Where the answer began, bytes from the start of the blob. What was given from there on and what is still to be given have to be
    /// the blob together.
    begin: u64,
    started: Option<Instant>,
    answer: Answer,
}

/// The runtime has closed its connection.
#[derive(Debug)]
pub(crate) struct Closed;

impl Sink {
    /// Hands on bytes as soon as there is room.
    pub(crate) async fn send(&mut self, bytes: Bytes) -> Result<(), Closed> {
        let length = bytes.len() as u64;
        self.out.send(Ok(bytes)).await.map_err(|_| Closed)?;
        self.answer.gave(length);
        delivered(&self.context, length, &mut self.started);
        Ok(())
    }

    /// Where the answer began, bytes from the start of the blob.
    pub(crate) const fn begin(&self) -> u64 {
        self.begin
    }

    async fn fail(&self, error: Arc<BlobError>) {
        let _ = self.out.send(Err(error)).await;
    }
}

impl OpenBlob {
    pub(crate) fn new(downloads: Downloads, request: BlobRequest, size: u64, source: Opened) -> Self {
        Self { downloads, request, size, source }
    }

    /// Size of the whole blob, bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Where its bytes come from; `None` for one that is in the cache.
    pub(crate) fn progress(&self) -> Option<BlobProgress> {
        match &self.source {
            Opened::Memory(_) | Opened::Cached(_) => None,
            Opened::Arriving(ticket) => Some(BlobProgress(Arc::clone(ticket.download()))),
        }
    }

    /// The bytes of `range`, which lies within the blob. `started` is when the runtime asked.
    pub fn read(self, range: Range<u64>, started: Instant) -> BlobStream {
        let range = range.start.min(self.size)..range.end.min(self.size);
        let answer = self.downloads.context().answers.begin();
        BlobStream(match self.source {
            Opened::Memory(content) => {
                let bytes = part(&content, &range);
                let context = self.downloads.context();
                context.metrics.bytes(Source::Cache, bytes.len() as u64);
                delivered(context, bytes.len() as u64, &mut Some(started));
                Bytewise::Whole(Some(bytes).filter(|bytes| !bytes.is_empty()))
            }
            Opened::Cached(whole) => {
                let Self { downloads, request, size, .. } = self;
                let started = Some(started);
                let begin = range.start;
                let direct = Direct { downloads, request, size, whole, begin, left: range, started, answer };
                Bytewise::Direct(Box::new(direct))
            }
            Opened::Arriving(_) => Bytewise::Ahead(self.read_ahead(range.start, range, Some(started), answer)),
        })
    }

    /// The bytes of `range` from a task that reads ahead, in an answer that began at `begin`.
    fn read_ahead(
        self,
        begin: u64,
        range: Range<u64>,
        started: Option<Instant>,
        answer: Answer,
    ) -> mpsc::Receiver<Result<Bytes, Arc<BlobError>>> {
        let context = Arc::clone(self.downloads.context());
        let (out, stream) = mpsc::channel(answer.ahead());
        let sink = Sink { out, context: Arc::clone(&context), begin, started, answer };
        context.tasks.clone().spawn(async move {
            let closed = sink.out.clone();
            tokio::select! {
                () = pump(self, range, sink) => {}
                () = closed.closed() => {}
                () = context.stop.cancelled() => {}
            }
        });
        stream
    }
}

impl BlobStream {
    /// The bytes where they are all at hand, so that head and body can go in one write.
    pub(crate) fn take_whole(&mut self) -> Option<Bytes> {
        match &mut self.0 {
            Bytewise::Whole(bytes) => Some(bytes.take().unwrap_or_default()),
            _ => None,
        }
    }
}

async fn pump(mut blob: OpenBlob, mut range: Range<u64>, mut sink: Sink) {
    let mut reopened = 0;
    let failure = loop {
        let result = match &blob.source {
            Opened::Memory(content) => sink.send(part(content, &range)).await.map_err(Stop::from),
            Opened::Cached(whole) => serve_cached(whole, &mut range, &mut sink).await,
            Opened::Arriving(ticket) => serve_arriving(&blob, ticket, &mut range, &mut sink).await,
        };
        let error = match result {
            Ok(()) | Err(Stop::Closed) => return,
            Err(Stop::Failed(error) | Stop::Wrong(error)) => break error,
            Err(Stop::Unreadable(error)) => error,
        };
        let digest = blob.request.digest;
        tracing::warn!(%digest, %error, at = range.start, "a blob cannot be read on; the rest comes from elsewhere");
        reopened += 1;
        if reopened > MAX_REOPENED {
            match past_the_disk(&blob, &range, &mut sink).await {
                Ok(()) | Err(passthrough::Stop::Closed) => return,
                Err(passthrough::Stop::Failed(error)) => break Arc::new(error),
            }
        }
        // The cache has dropped what is damaged. It may have another copy already.
        let (downloads, request, size) = (blob.downloads.clone(), blob.request.clone(), blob.size);
        drop(blob);
        blob = match downloads.open(request).await {
            Ok(again) if again.size == size => again,
            Ok(_) => break Arc::new(error),
            Err(error) => break error,
        };
    };
    tracing::warn!(error = %failure, "a response had to be cut short");
    sink.context.metrics.error(failure.kind());
    sink.fail(failure).await;
}

/// Gives the rest of an answer as it comes from a seeder or the registry, without the disk of this node.
async fn past_the_disk(blob: &OpenBlob, left: &Range<u64>, sink: &mut Sink) -> Result<(), passthrough::Stop> {
    let OpenBlob { downloads, request, size, .. } = blob;
    // Known to nobody else: who asks next may find the disk well again.
    let alone = Arc::new(Download::new(request.digest, downloads.is_distrusted(&request.digest)));
    let _reader = alone.attach(request.clone());
    // A blob that was whole has matched its digest: nothing of what it gave is in doubt.
    let part = passthrough::Part { size: *size, end: left.end, doubtful: left.start..left.start, prefix: None };
    passthrough::relay(downloads.context(), &alone, part, sink).await
}

/// Why a reader ends early.
enum Stop {
    Closed,
    Failed(Arc<BlobError>),
    /// The disk does not give what it should. Another copy may do.
    Unreadable(BlobError),
    /// The download brought something else than the blob, and another one may do better.
    Wrong(Arc<BlobError>),
}

impl From<Closed> for Stop {
    fn from(_: Closed) -> Self {
        Self::Closed
    }
}

impl From<BlobError> for Stop {
    fn from(error: BlobError) -> Self {
        Self::Failed(Arc::new(error))
    }
}

async fn serve_cached(whole: &Whole, range: &mut Range<u64>, sink: &mut Sink) -> Result<(), Stop> {
    while range.start < range.end {
        let end = block_end(range.start, range.end, sink.answer.block());
        let bytes = read(whole, range.start, end).await.map_err(Stop::Unreadable)?;
        sink.context.metrics.bytes(Source::Cache, bytes.len() as u64);
        sink.send(bytes).await?;
        range.start = end;
    }
    Ok(())
}

/// Follows the download of the blob; when what it brought was wrong, a second one.
async fn serve_arriving(blob: &OpenBlob, ticket: &Ticket, range: &mut Range<u64>, sink: &mut Sink) -> Result<(), Stop> {
    let start = range.start;
    let error = match follow(blob, ticket, range, sink).await {
        Err(Stop::Wrong(error)) => error,
        result => return result,
    };
    match again::begin(blob, ticket.download(), start..range.start).await {
        Some(second) => {
            let digest = blob.request.digest;
            tracing::info!(%digest, %error, at = range.start, "the answer goes on with what the registry gives");
            match follow(blob, &second, range, sink).await {
                Err(Stop::Wrong(error)) => Err(Stop::Failed(error)),
                result => result,
            }
        }
        None => Err(Stop::Failed(error)),
    }
}

/// Gives away what a download has, as it comes, from the start of the range on. What the answer had before is that of the blob.
async fn follow(blob: &OpenBlob, ticket: &Ticket, range: &mut Range<u64>, sink: &mut Sink) -> Result<(), Stop> {
    let first = range.start;
    let mut phases = ticket.download().phase();
    ticket.moved(range.start);
    while range.start < range.end {
        let at = range.start;
        let phase = phases.borrow_and_update().clone();
        match phase {
            Phase::Running(running) => {
                let step = u64::from(running.geometry.piece_length()).min(sink.answer.block());
                let Some(piece) = running.geometry.piece_at(at) else { break };
                let last = piece.0 + 1 == running.geometry.pieces();
                let mut owned = running.pieces.clone();
                let here = async {
                    if last {
                        // Only the next phase says that the whole blob is right.
                        return std::future::pending().await;
                    }
                    if owned.wait_for(|owned| owned.contains(piece)).await.is_err() {
                        // The swarm is gone: the phase is about to change.
                        std::future::pending().await
                    }
                };
                tokio::select! {
                    biased;
                    changed = phases.changed() => {
                        changed.map_err(|_| BlobError::Stopped)?;
                        continue;
                    }
                    () = here => {}
                }
                let end = block_end(at, range.end, step);
                let length = usize::try_from(end - at).unwrap_or(usize::MAX);
                let bytes = match running.reader.read_at(at, length).await {
                    Ok(bytes) => bytes,
                    Err(error) => {
                        // The task may have given up the disk at this moment; then another way is open.
                        if phases.has_changed().unwrap_or(false) {
                            continue;
                        }
                        ticket.download().disk_failed(error.to_string());
                        phases.changed().await.map_err(|_| BlobError::Stopped)?;
                        continue;
                    }
                };
                ticket.gives(at);
                sink.send(bytes).await?;
                range.start = end;
                ticket.moved(end);
            }
            Phase::Complete(whole) => {
                let end = block_end(at, range.end, sink.answer.block());
                let bytes = read(&whole, at, end).await.map_err(Stop::Unreadable)?;
                sink.send(bytes).await?;
                range.start = end;
                ticket.moved(end);
            }
            Phase::PassThrough { size, prefix } => {
                let part = passthrough::Part { size, end: range.end, doubtful: first..at, prefix };
                return match passthrough::relay(blob.downloads.context(), ticket.download(), part, sink).await {
                    Ok(()) => Ok(()),
                    Err(passthrough::Stop::Closed) => Err(Stop::Closed),
                    Err(passthrough::Stop::Failed(error)) => Err(error.into()),
                };
            }
            Phase::Failed(error) if again::is_wrong_content(&error) => return Err(Stop::Wrong(error)),
            Phase::Failed(error) => return Err(Stop::Failed(error)),
            Phase::Starting => {
                phases.changed().await.map_err(|_| BlobError::Stopped)?;
            }
        }
    }
    Ok(())
}

async fn read(whole: &Whole, at: u64, end: u64) -> Result<Bytes, BlobError> {
    let length = usize::try_from(end - at).unwrap_or(usize::MAX);
    whole.reader.read_at(at, length).await.map_err(|error| BlobError::Storage(error.to_string()))
}

/// A part of what is in memory; nothing where the range is empty.
fn part(content: &Bytes, range: &Range<u64>) -> Bytes {
    let within = |at: u64| usize::try_from(at).unwrap_or(content.len()).min(content.len());
    let start = within(range.start);
    content.slice(start..within(range.end).max(start))
}

/// Blocks end at multiples of their size, so that one never spans two pieces.
fn block_end(at: u64, end: u64, step: u64) -> u64 {
    ((at / step + 1) * step).min(end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use eagle_store::answers::BLOCK;

    use super::*;

    proptest! {
        #[test]
        fn blocks_cover_a_range_and_stay_within_pieces(start in 0u64..2_000_000, length in 1u64..3_000_000, shift in 16u32..25) {
            let piece_length = 1u64 << shift;
            let step = piece_length.min(BLOCK);
            let end = start + length;
            let mut at = start;
            while at < end {
                let next = block_end(at, end, step);
                prop_assert!(next > at && next <= end);
                prop_assert_eq!(at / piece_length, (next - 1) / piece_length);
                prop_assert!(next - at <= BLOCK);
                at = next;
            }
        }
    }
}
