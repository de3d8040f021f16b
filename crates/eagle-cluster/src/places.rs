//! Places for connections: bounded in number, and never all taken by connections that do nothing.
//!
//! A connection is **idle** until its first request has come, and between requests. When all places are taken, the one that has
//! been idle longest gives way to a newcomer, so that nobody can keep others out by opening connections and saying nothing, or
//! saying it very slowly; those of strangers before those of members. Connections with a request under way stay, unless their reader has taken nothing of the answer for
//! ten seconds: then the one that has taken nothing for longest gives way. When all others are busy, newcomers wait.
//! Whether or not anybody waits, who takes nothing for two minutes loses the connection.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use http_body::{Body, Frame, SizeHint};
use rustix::process::{Resource, getrlimit};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::Notify,
    time::{Instant, Sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

/// How long a reader may take nothing before it has to give way to newcomers, when there is no other place. A runtime that unpacks
/// what it has may pause for seconds; one that is cut off goes on where it was with its next request.
const STALLED: Duration = Duration::from_secs(10);
/// How long a reader may take nothing before its connection ends, also where nobody needs the place: what it reads of is kept in
/// memory, and cannot be evicted. Longer than runtimes wait for a registry that says nothing, so that it is never this that ends a
/// slow pull.
pub const READER_PATIENCE: Duration = Duration::from_secs(120);
/// How often those who wait for a place look for connections that have stalled meanwhile.
const LOOK: Duration = Duration::from_secs(1);

/// The places of one listener; clones are the same.
#[derive(Debug, Clone)]
pub struct Places(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    most: usize,
    state: Mutex<State>,
    left: Notify,
    /// What moments are counted from.
    start: Instant,
}

#[derive(Debug, Default)]
struct State {
    taken: usize,
    /// Numbers the moments at which connections become idle.
    clock: u64,
    /// Strangers first, then by the moment since when they are idle.
    idle: BTreeMap<(Standing, u64), CancellationToken>,
    /// Those with a request under way, by the moment until which they were idle.
    busy: HashMap<u64, (CancellationToken, Arc<Waiting>)>,
}

/// Since when a connection cannot be written to, in milliseconds from the first moment on and one more; 0 when it can.
#[derive(Debug, Default)]
struct Waiting(AtomicU64);

/// Who gives way first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    /// Anybody.
    Stranger,
    /// A member, whose connections are kept between requests for good reason.
    Member,
}

/// The place of one connection; given back when all clones are dropped.
#[derive(Debug, Clone)]
pub struct Place(Arc<Taken>);

#[derive(Debug)]
struct Taken {
    places: Places,
    given_way: CancellationToken,
    work: Mutex<Work>,
    waiting: Arc<Waiting>,
}

#[derive(Debug)]
struct Work {
    standing: Standing,
    /// Requests under way.
    requests: usize,
    /// Since when there are none; while there are, until when there were none.
    idle: u64,
}

/// A request under way; its connection keeps its place until this is dropped.
#[derive(Debug)]
pub struct Busy(Place);

impl Places {
    /// So many places.
    pub fn new(most: usize) -> Self {
        Self(Arc::new(Shared { most, state: Mutex::default(), left: Notify::new(), start: Instant::now() }))
    }

    /// So many places, or fewer where the process may not open as many files: the accept of a connection that fails for want of a
    /// descriptor would close no idle one.
    pub fn within_descriptors(most: usize) -> Self {
        let descriptors = getrlimit(Resource::Nofile)
            .current
            .map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        Self::new(most.min(descriptors / 4 * 3).max(1))
    }

    /// A place, as soon as one is free, idle or stalled.
    pub async fn take(&self) -> Place {
        loop {
            let left = self.0.left.notified();
            if let Some(place) = self.try_take() {
                return place;
            }
            // Nobody says when a connection has stalled for long enough.
            let _ = timeout(LOOK, left).await;
        }
    }

    fn try_take(&self) -> Option<Place> {
        let given_way = CancellationToken::new();
        let mut state = self.lock();
        if state.taken >= self.0.most {
            let oldest = match state.idle.pop_first() {
                Some((_, oldest)) => oldest,
                None => state.stalled(self.now())?,
            };
            oldest.cancel();
        } else {
            state.taken += 1;
        }
        let standing = Standing::Stranger;
        let idle = state.rest(standing, &given_way);
        let work = Mutex::new(Work { standing, requests: 0, idle });
        Some(Place(Arc::new(Taken { places: self.clone(), given_way, work, waiting: Arc::default() })))
    }

    /// Milliseconds from the first moment on, and one more.
    fn now(&self) -> u64 {
        u64::try_from(self.0.start.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics between two halves of a change.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn rest(&mut self, standing: Standing, connection: &CancellationToken) -> u64 {
        self.clock += 1;
        self.idle.insert((standing, self.clock), connection.clone());
        self.clock
    }

    /// The busy connection whose reader has taken nothing for longest, if that is long enough; it is busy no more.
    fn stalled(&mut self, now: u64) -> Option<CancellationToken> {
        let since = |waiting: &Waiting| Some(waiting.0.load(Ordering::Relaxed)).filter(|since| *since > 0);
        let waiting = self.busy.iter().filter_map(|(id, (_, waiting))| Some((since(waiting)?, *id)));
        let (since, id) = waiting.min()?;
        let long = u128::from(now.saturating_sub(since)) >= STALLED.as_millis();
        long.then(|| self.busy.remove(&id)).flatten().map(|(connection, _)| connection)
    }
}

impl Place {
    /// Ends when the connection was idle and its place is needed: it is to be closed.
    pub async fn given_way(&self) {
        self.0.given_way.cancelled().await;
    }

    /// Waits for the first byte of a client; false when none comes in this time, when the place is needed, or on `shutdown`.
    ///
    /// Until then a connection costs a kilobyte. What serves it takes 20 to 30: with crowds that say nothing, hundreds of megabytes.
    pub async fn first_byte(&self, stream: &TcpStream, within: Duration, shutdown: &CancellationToken) -> bool {
        let mut byte = [0];
        tokio::select! {
            biased;
            () = self.given_way() => false,
            () = shutdown.cancelled() => false,
            // The system calls a stream readable too soon at times, so one byte is really looked at.
            peeked = timeout(within, stream.peek(&mut byte)) => matches!(peeked, Ok(Ok(1..))),
        }
    }

    /// The connection has turned out to be a member's: those of strangers give way before it.
    pub fn of_member(&self) {
        let mut state = self.0.places.lock();
        let mut work = self.0.lock();
        if let Some(connection) = state.idle.remove(&(work.standing, work.idle)) {
            state.idle.insert((Standing::Member, work.idle), connection);
        }
        work.standing = Standing::Member;
    }

    /// A request has begun.
    pub fn busy(&self) -> Busy {
        let mut state = self.0.places.lock();
        let mut work = self.0.lock();
        work.requests += 1;
        if state.idle.remove(&(work.standing, work.idle)).is_some() {
            state.busy.insert(work.idle, (self.0.given_way.clone(), Arc::clone(&self.0.waiting)));
        }
        Busy(self.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let taken = &self.0.0;
        let mut state = taken.places.lock();
        let mut work = taken.lock();
        work.requests -= 1;
        if work.requests == 0 && !taken.given_way.is_cancelled() {
            state.busy.remove(&work.idle);
            work.idle = state.rest(work.standing, &taken.given_way);
            drop(state);
            // Whoever waits may have this place.
            taken.places.0.left.notify_one();
        }
    }
}

impl Taken {
    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut state = self.places.lock();
        let Work { standing, idle, .. } = *self.lock();
        state.idle.remove(&(standing, idle));
        state.busy.remove(&idle);
        // Whoever gave way has left its place to another already.
        if !self.given_way.is_cancelled() {
            state.taken -= 1;
            drop(state);
            self.places.0.left.notify_one();
        }
    }
}

/// A body whose connection is busy until it has been sent or given up.
#[derive(Debug)]
pub struct BusyBody<B> {
    body: B,
    _busy: Busy,
}

impl<B> BusyBody<B> {
    /// The body of the answer to the request that `busy` stands for.
    pub fn new(body: B, busy: Busy) -> Self {
        Self { body, _busy: busy }
    }
}

impl<B: Body + Unpin> Body for BusyBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A connection that tells its place whether its reader takes what is written, and that fails when it takes nothing for
/// [`READER_PATIENCE`].
#[derive(Debug)]
pub struct Watched<S> {
    stream: S,
    place: Place,
    /// Made when a reader is waited for the first time, and never later than its patience ends.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<S> Watched<S> {
    /// The connection that has this place.
    pub fn new(stream: S, place: Place) -> Self {
        Self { stream, place, deadline: None }
    }

    fn note<T>(&mut self, context: &mut Context<'_>, step: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        let Taken { places, waiting, .. } = &*self.place.0;
        let mut since = waiting.0.load(Ordering::Relaxed);
        if step.is_ready() {
            if since > 0 {
                waiting.0.store(0, Ordering::Relaxed);
            }
            return step;
        }
        if since == 0 {
            since = places.now();
            waiting.0.store(since, Ordering::Relaxed);
        }
        let end = places.0.start + Duration::from_millis(since - 1) + READER_PATIENCE;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep_until(end)));
        // That of an earlier wait is put off when it comes, not with every wait: there are thousands in a second.
        while deadline.as_mut().poll(context).is_ready() {
            if Instant::now() >= end {
                let message = format!("the reader took nothing for {READER_PATIENCE:?}");
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, message)));
            }
            deadline.as_mut().reset(end);
        }
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let step = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.note(context, step)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let step = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.note(context, step)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let step = Pin::new(&mut self.stream).poll_flush(context);
        self.note(context, step)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let step = Pin::new(&mut self.stream).poll_shutdown(context);
        self.note(context, step)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn is_out(place: &Place) -> bool {
        place.given_way().now_or_never().is_some()
    }

    #[tokio::test]
    async fn the_one_that_is_idle_longest_gives_way() {
        let places = Places::new(2);
        let (first, second) = (places.take().await, places.take().await);
        // A request makes it the one that was idle last.
        drop(first.busy());
        let third = places.take().await;
        assert_eq!([&first, &second, &third].map(is_out), [false, true, false]);
        drop(second);
        assert_eq!(places.lock().taken, 2);
        drop((first, third));
        let state = places.lock();
        assert_eq!((state.taken, state.idle.len()), (0, 0));
    }

    #[tokio::test]
    async fn who_says_nothing_is_not_served() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (places, shutdown) = (Places::new(1), CancellationToken::new());
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let place = places.take().await;
        assert!(!place.first_byte(&stream, Duration::from_millis(10), &shutdown).await, "no byte came");
        client.write_all(b"G").await.unwrap();
        assert!(place.first_byte(&stream, Duration::from_secs(60), &shutdown).await);
        assert_eq!(stream.try_read(&mut [0; 2]).unwrap(), 1, "it is still to be read");
        let _next = places.take().await;
        assert!(!place.first_byte(&stream, Duration::from_secs(60), &shutdown).await, "its place was needed");
    }

    #[tokio::test]
    async fn strangers_give_way_before_members() {
        let places = Places::new(2);
        let (member, stranger) = (places.take().await, places.take().await);
        member.of_member();
        drop((member.busy(), stranger.busy()));
        let (late, later) = (places.take().await, places.take().await);
        assert_eq!([&member, &stranger, &late, &later].map(is_out), [false, true, true, false]);
        // With no stranger left a member gives way too.
        later.of_member();
        let last = places.take().await;
        assert_eq!([&member, &later, &last].map(is_out), [true, false, false]);
        drop((member, stranger, late, later, last));
        let state = places.lock();
        assert_eq!((state.taken, state.idle.len(), state.busy.len()), (0, 0, 0));
    }

    #[tokio::test]
    async fn the_busy_stay_and_newcomers_wait() {
        let places = Places::new(1);
        let place = places.take().await;
        let (one, two) = (place.busy(), place.busy());
        assert!(places.take().now_or_never().is_none());
        drop(one);
        assert!(places.take().now_or_never().is_none() && !is_out(&place));
        let waiting = tokio::spawn({
            let places = places.clone();
            async move { places.take().await }
        });
        tokio::task::yield_now().await;
        drop(two);
        let next = waiting.await.unwrap();
        assert!(is_out(&place) && !is_out(&next));
        drop(place);
        drop(next);
        assert_eq!(places.lock().taken, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_gives_way_in_the_end() {
        let places = Places::new(2);
        let (slow, stalled) = (places.take().await, places.take().await);
        let work = [slow.busy(), stalled.busy()];
        let ((mut slow_writer, mut reader), (mut writer, _unread)) = (tokio::io::duplex(8), tokio::io::duplex(8));
        let mut slow_stream = Watched::new(&mut slow_writer, slow.clone());
        let mut stream = Watched::new(&mut writer, stalled.clone());
        assert!(slow_stream.write_all(&[0; 9]).now_or_never().is_none());
        tokio::time::advance(Duration::from_millis(5)).await;
        assert!(stream.write_all(&[0; 9]).now_or_never().is_none());
        // The other one has been read from meanwhile, and waits again.
        tokio::time::advance(STALLED / 2).await;
        reader.read_exact(&mut [0; 8]).await.unwrap();
        assert!(slow_stream.write_all(&[0; 9]).now_or_never().is_none());
        assert!(places.take().now_or_never().is_none() && !is_out(&stalled));
        let next = timeout(STALLED, places.take()).await.expect("nobody gave way");
        assert_eq!([&slow, &stalled].map(is_out), [false, true]);
        drop((stream, stalled, work));
        assert!(!is_out(&next));
        drop((slow_stream, slow, next));
        let state = places.lock();
        assert_eq!((state.taken, state.idle.len(), state.busy.len()), (0, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_for_long_is_given_up_and_who_takes_little_is_not() {
        let place = Places::new(1).take().await;
        let (mut writer, mut reader) = tokio::io::duplex(8);
        let mut stream = Watched::new(&mut writer, place);
        let begun = Instant::now();
        let write = tokio::spawn(async move {
            for _ in 0..3 {
                reader.read_exact(&mut [0; 8]).await.unwrap();
                tokio::time::sleep(READER_PATIENCE - Duration::from_secs(1)).await;
            }
            reader
        });
        let problem = stream.write_all(&[0; 100]).await.unwrap_err();
        assert_eq!(problem.kind(), io::ErrorKind::TimedOut);
        assert!(problem.to_string().contains("120s"), "{problem}");
        // Each of the three times it waited for nearly as long as it may, and then once for all of it.
        let waited = begun.elapsed().as_secs();
        assert_eq!(waited, READER_PATIENCE.as_secs() * 3 - 2, "{waited}");
        drop(write.await.unwrap());
    }
}
