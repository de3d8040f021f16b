//! Identical work that runs at the same time is done once.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, PoisonError},
};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared, WeakShared},
};

/// Number of entries from which on those of abandoned work are swept before another is added.
const SWEEP: usize = 64;

/// Work in progress, by a key that says which work is identical.
///
/// Whoever comes first starts it, all drive it, and it is dropped when nobody waits for it any more.
/// The map holds as many entries as there are waiting callers, and at most [`SWEEP`] abandoned ones.
#[derive(Debug)]
pub(crate) struct Collapse<K, V> {
    running: Mutex<HashMap<K, WeakShared<BoxFuture<'static, V>>>>,
}

impl<K: Eq + Hash + Clone, V: Clone + Send + Sync + 'static> Collapse<K, V> {
    pub(crate) fn new() -> Self {
        Self { running: Mutex::new(HashMap::new()) }
    }

    /// The result of the work with this key: of that in progress, or else of `start`.
    pub(crate) async fn run(&self, key: K, start: impl FnOnce() -> BoxFuture<'static, V>) -> V {
        let work = self.join(&key, start);
        let result = work.await;
        // Finished work must not answer who comes later. Somebody else may already have begun anew.
        let mut running = self.lock();
        if running.get(&key).is_some_and(|weak| weak.upgrade().is_none_or(|work| work.peek().is_some())) {
            running.remove(&key);
        }
        result
    }

    fn join(&self, key: &K, start: impl FnOnce() -> BoxFuture<'static, V>) -> Shared<BoxFuture<'static, V>> {
        let mut running = self.lock();
        if let Some(work) = running.get(key).and_then(WeakShared::upgrade)
            && work.peek().is_none()
        {
            return work;
        }
        if running.len() >= SWEEP {
            running.retain(|_, work| work.upgrade().is_some());
        }
        let work = start().shared();
        if let Some(weak) = work.downgrade() {
            running.insert(key.clone(), weak);
        }
        work
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<K, WeakShared<BoxFuture<'static, V>>>> {
        // The map is whole between any two operations, so a panic elsewhere leaves it usable.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn identical_work_is_done_once_at_a_time() {
        let collapse = Arc::new(Collapse::<u8, u32>::new());
        let (count, gate) = (Arc::new(AtomicU32::new(0)), Arc::new(Notify::new()));
        let start = || {
            let (count, gate) = (Arc::clone(&count), Arc::clone(&gate));
            async move {
                gate.notified().await;
                count.fetch_add(1, Ordering::Relaxed)
            }
            .boxed()
        };
        let both = futures::future::join(collapse.run(1, start), collapse.run(1, start));
        let (results, ()) = futures::future::join(both, async { gate.notify_one() }).await;
        assert_eq!(results, (0, 0));
        assert!(collapse.lock().is_empty());
        gate.notify_one();
        assert_eq!(collapse.run(1, start).await, 1);
    }

    #[tokio::test]
    async fn abandoned_work_is_begun_anew_and_swept() {
        let collapse = Collapse::<usize, u32>::new();
        for key in 0..SWEEP * 3 {
            assert_eq!(collapse.run(key, || std::future::pending().boxed()).now_or_never(), None);
        }
        assert!(collapse.lock().len() <= SWEEP);
        assert_eq!(collapse.run(SWEEP * 3 - 1, || async { 7 }.boxed()).await, 7);
    }

    #[tokio::test]
    async fn work_goes_on_when_the_first_caller_leaves() {
        let collapse = Collapse::<u8, u32>::new();
        let gate = Arc::new(Notify::new());
        let mut first = Box::pin(collapse.run(1, || {
            let gate = Arc::clone(&gate);
            async move {
                gate.notified().await;
                5
            }
            .boxed()
        }));
        assert_eq!(first.as_mut().now_or_never(), None);
        let mut second = Box::pin(collapse.run(1, || async { 6 }.boxed()));
        assert_eq!(second.as_mut().now_or_never(), None);
        drop(first);
        gate.notify_one();
        assert_eq!(second.await, 5);
    }
}
