//! Places for connections: bounded in number, and never all taken by connections that do nothing.
//!
//! A connection is **idle** until its first request has come, and between requests. When all places are taken, the one that has
//! been idle longest gives way to a newcomer, so that nobody can keep others out by opening connections and saying nothing, or
//! saying it very slowly. Connections with a request under way stay; when all are busy, newcomers wait.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use http_body::{Body, Frame, SizeHint};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The places of one listener; clones are the same.
#[derive(Debug, Clone)]
pub struct Places(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    most: usize,
    state: Mutex<State>,
    left: Notify,
}

#[derive(Debug, Default)]
struct State {
    taken: usize,
    /// Numbers the moments at which connections become idle.
    clock: u64,
    /// By the moment since when they are idle.
    idle: BTreeMap<u64, CancellationToken>,
}

/// The place of one connection; given back when all clones are dropped.
#[derive(Debug, Clone)]
pub struct Place(Arc<Taken>);

#[derive(Debug)]
struct Taken {
    places: Places,
    given_way: CancellationToken,
    /// Requests under way, and since when there are none.
    work: Mutex<(usize, u64)>,
}

/// A request under way; its connection keeps its place until this is dropped.
#[derive(Debug)]
pub struct Busy(Place);

impl Places {
    /// So many places.
    pub fn new(most: usize) -> Self {
        Self(Arc::new(Shared { most, state: Mutex::default(), left: Notify::new() }))
    }

    /// A place, as soon as one is free or idle.
    pub async fn take(&self) -> Place {
        loop {
            let left = self.0.left.notified();
            if let Some(place) = self.try_take() {
                return place;
            }
            left.await;
        }
    }

    fn try_take(&self) -> Option<Place> {
        let given_way = CancellationToken::new();
        let mut state = self.lock();
        if state.taken >= self.0.most {
            let (_, oldest) = state.idle.pop_first()?;
            oldest.cancel();
        } else {
            state.taken += 1;
        }
        let since = state.rest(&given_way);
        Some(Place(Arc::new(Taken { places: self.clone(), given_way, work: Mutex::new((0, since)) })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics between two halves of a change.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn rest(&mut self, connection: &CancellationToken) -> u64 {
        self.clock += 1;
        self.idle.insert(self.clock, connection.clone());
        self.clock
    }
}

impl Place {
    /// Ends when the connection was idle and its place is needed: it is to be closed.
    pub async fn given_way(&self) {
        self.0.given_way.cancelled().await;
    }

    /// A request has begun.
    pub fn busy(&self) -> Busy {
        let mut state = self.0.places.lock();
        let mut work = self.0.work.lock().unwrap_or_else(PoisonError::into_inner);
        work.0 += 1;
        state.idle.remove(&work.1);
        Busy(self.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let taken = &self.0.0;
        let mut state = taken.places.lock();
        let mut work = taken.work.lock().unwrap_or_else(PoisonError::into_inner);
        work.0 -= 1;
        if work.0 == 0 && !taken.given_way.is_cancelled() {
            work.1 = state.rest(&taken.given_way);
            drop(state);
            // Whoever waits may have this place.
            taken.places.0.left.notify_one();
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut state = self.places.lock();
        let since = self.work.get_mut().unwrap_or_else(PoisonError::into_inner).1;
        state.idle.remove(&since);
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

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

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
}
