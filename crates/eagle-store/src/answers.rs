//! How much of blobs is in memory for the answers that are under way.
//!
//! A block that was read stays in memory until its runtime has taken it. Large blocks cost the processor least; small ones keep
//! crowds of readers that take nothing from filling the memory. So an answer begins with small blocks, and goes on with large ones
//! once its reader has shown that it takes them, as long as not too many have.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};

/// Bytes that are read and handed on at a time: a few socket buffers, and at least as small as any
/// piece but the smallest ones.
pub const BLOCK: u64 = 256 << 10;
/// The same at the start of an answer, and of all but some: half of what the kernel holds for a connection.
const SMALL_BLOCK: u64 = 64 << 10;
/// The same where there are very many answers.
const TINY_BLOCK: u64 = 16 << 10;
/// Answers that are very many: with small blocks they would hold 256 MiB.
const VERY_MANY: usize = 1024;
/// Bytes after which an answer has a reader: more than the kernel takes in by itself at both ends.
const TAKEN: u64 = 512 << 10;
/// Blocks read ahead of the runtime where they come from a disk or the network, so that these and the
/// socket overlap: at most this many and one more, which is in hand.
const AHEAD: usize = 3;
/// The same when there are many answers.
const CROWDED_AHEAD: usize = 1;
/// Answers with large blocks, and those that are not yet many: they hold 64 MiB at most, with five blocks each, one of them with the
/// connection.
const MOST_LARGE: usize = (64 << 20) / (5 * (256 << 10));

/// The answers under way; clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Answers(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    all: AtomicUsize,
    large: AtomicUsize,
}

/// An answer; it is over when the last clone of this is dropped.
#[derive(Debug, Clone)]
pub struct Answer(Arc<State>);

#[derive(Debug)]
struct State {
    answers: Answers,
    given: AtomicU64,
    is_large: AtomicBool,
}

impl Answers {
    /// One more.
    pub fn begin(&self) -> Answer {
        self.0.all.fetch_add(1, Ordering::Relaxed);
        Answer(Arc::new(State { answers: self.clone(), given: AtomicU64::new(0), is_large: AtomicBool::new(false) }))
    }
}

impl Answer {
    /// Bytes to read at a time now: a power of two, at most [`BLOCK`].
    pub fn block(&self) -> u64 {
        let State { answers, given, is_large } = &*self.0;
        if is_large.load(Ordering::Relaxed) {
            return BLOCK;
        }
        let one_more = |large: usize| (large < MOST_LARGE).then_some(large + 1);
        if given.load(Ordering::Relaxed) < TAKEN
            || answers.0.large.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_err()
        {
            return if answers.0.all.load(Ordering::Relaxed) > VERY_MANY { TINY_BLOCK } else { SMALL_BLOCK };
        }
        is_large.store(true, Ordering::Relaxed);
        BLOCK
    }

    /// Blocks that may be read ahead of an answer that begins now.
    pub fn ahead(&self) -> usize {
        if self.0.answers.0.all.load(Ordering::Relaxed) > MOST_LARGE { CROWDED_AHEAD } else { AHEAD }
    }

    /// So many bytes were handed on.
    pub fn gave(&self, bytes: u64) {
        self.0.given.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.answers.0.all.fetch_sub(1, Ordering::Relaxed);
        if *self.is_large.get_mut() {
            self.answers.0.large.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn very_many_answers_get_still_smaller_blocks() {
        let answers = Answers::default();
        let first = answers.begin();
        let crowd: Vec<Answer> = (1..VERY_MANY).map(|_| answers.begin()).collect();
        assert_eq!(first.block(), SMALL_BLOCK);
        let last = answers.begin();
        assert_eq!((first.block(), last.block()), (TINY_BLOCK, TINY_BLOCK));
        drop(crowd);
        assert_eq!(first.block(), SMALL_BLOCK);
    }

    #[test]
    fn who_takes_gets_large_blocks_in_a_crowd_of_those_who_do_not() {
        let answers = Answers::default();
        let crowd: Vec<Answer> = (0..10 * MOST_LARGE).map(|_| answers.begin()).collect();
        assert!(crowd.iter().all(|answer| answer.block() == SMALL_BLOCK));
        let reader = answers.begin();
        reader.gave(TAKEN);
        assert_eq!((reader.block(), reader.ahead()), (BLOCK, CROWDED_AHEAD));
        // They have taken something too, and then no more.
        crowd.iter().for_each(|answer| answer.gave(TAKEN));
        let large = crowd.iter().filter(|answer| answer.block() == BLOCK).count();
        assert_eq!((large, reader.block()), (MOST_LARGE - 1, BLOCK));
        drop((crowd, reader));
        let last = answers.begin();
        last.gave(TAKEN);
        assert_eq!((last.block(), last.ahead()), (BLOCK, AHEAD));
        drop(last);
        let Counts { all, large } = &*answers.0;
        assert_eq!((all.load(Ordering::Relaxed), large.load(Ordering::Relaxed)), (0, 0));
    }
}
