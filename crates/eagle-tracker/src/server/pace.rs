//! How often one node may announce.
//!
//! A node sends one announce at a time, and puts what happens meanwhile into the next. So one that announces without a pause, for a mistake or
//! to do harm, is held back, and not refused: each of its answers waits until it is due, and others have the processor. Members are
//! believed who they say they are, so this does not hold off one that says a new name each time; what such a one can fill is bounded
//! by the store.

use std::{num::NonZeroU32, time::Duration};

use eagle_cluster::{Pace, TooOften};
use eagle_core::NodeId;

use super::reply::RequestError;

/// Announces of a node in a second, in the long run: one that pulls many blobs at once waits 50 ms for the next peers at most, and puts
/// all blobs that it begins meanwhile into one announce. 20 announces of 500 blobs are 2 % of a core, which took 500,000 blobs a second
/// (`eagle-bench tracker`).
pub(super) const RATE: NonZeroU32 = NonZeroU32::new(20).expect("not zero");
/// Announces of a node at once: those of a hundred blobs that begin one after the other.
const BURST: NonZeroU32 = NonZeroU32::new(100).expect("not zero");
/// How long an answer is held back; after that the announce is refused. A node that waits for a second asks other trackers.
const LONGEST: Duration = Duration::from_millis(900);
/// Places in the table, 8 bytes each: of 15,000 nodes a fifth share one with another.
const PLACES: usize = 1 << 16;

/// Holds back nodes that announce too often.
#[derive(Debug)]
pub(super) struct AnnouncePace(Pace);

impl Default for AnnouncePace {
    fn default() -> Self {
        Self(Pace::new(RATE, BURST, PLACES))
    }
}

impl AnnouncePace {
    /// Waits until this node may announce; returns how long that took.
    pub(super) async fn turn(&self, node: &NodeId) -> Result<Duration, RequestError> {
        let turn = self.0.turn(node.as_str(), LONGEST).await;
        turn.map_err(|TooOften| RequestError::TooOften(node.clone()))
    }
}

#[cfg(test)]
mod tests {
    use futures::future::join_all;
    use tokio::time::{Instant, sleep};

    use super::*;

    fn node(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_announces_without_a_pause_is_held_to_the_rate_and_others_are_not() {
        let pace = AnnouncePace::default();
        let (flood, other) = (node("12D3KooWflood"), node("12D3KooWother"));
        let began = Instant::now();
        for _ in 0..BURST.get() {
            assert_eq!(pace.turn(&flood).await.unwrap(), Duration::ZERO);
        }
        for _ in 0..10 * RATE.get() {
            assert!(pace.turn(&flood).await.unwrap() > Duration::ZERO);
            assert!(began.elapsed() < Duration::from_secs(11));
        }
        assert!(began.elapsed() >= Duration::from_secs(10), "{:?}", began.elapsed());
        assert_eq!(pace.turn(&other).await.unwrap(), Duration::ZERO);
        // It is forgotten when it has been quiet.
        sleep(Duration::from_secs(6)).await;
        for _ in 0..BURST.get() {
            assert_eq!(pace.turn(&flood).await.unwrap(), Duration::ZERO);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_on_many_connections_is_refused_what_comes_too_late() {
        let pace = AnnouncePace::default();
        let flood = node("12D3KooWflood");
        let answers = join_all((0..1_000).map(|_| pace.turn(&flood))).await;
        let taken = answers.iter().filter(|answer| answer.is_ok()).count();
        let within = (RATE.get() * u32::try_from(LONGEST.as_millis()).unwrap() / 1_000) as usize;
        let burst = BURST.get() as usize;
        assert!((burst + within - 1..=burst + within + 1).contains(&taken), "{taken}");
        let error = answers.into_iter().find_map(Result::err).unwrap();
        assert!(error.to_string().contains("12D3KooWflood"), "{error}");
    }
}
