//! Readers of answers over HTTP/2. What the socket says is not enough there: a reader may take all that comes and still let a stream have no window,
//! so that nothing is written, and the answer waits with all that it reads of. So each answer notes when something of it was
//! taken last.

use std::{
    collections::HashMap,
    error::Error,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use eagle_cluster::places::READER_PATIENCE;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use crate::answer::ResponseBody;

/// Most bytes that are handed to a connection at a time, which keeps them until the last has been written: about the window that a stream has by
/// itself (RFC 9113, section 6.9.2). Whoever takes less within the patience of a reader takes nothing.
const PART: usize = 64 << 10;

/// The answers on a connection; clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Readers(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// At most as many as a connection may have streams.
    answers: HashMap<u64, Taken>,
}

/// What is taken of an answer.
#[derive(Debug)]
struct Taken {
    /// When something was handed over or taken last.
    last: Instant,
    /// Parts that the connection has.
    parts: usize,
    /// Whether it is the source that is waited for.
    dry: bool,
    /// Whether all of it was handed over, or it was given up.
    over: bool,
}

impl Taken {
    /// Whether it is the reader that is waited for.
    const fn waits(&self) -> bool {
        self.parts > 0 || !(self.dry || self.over)
    }
}

impl Readers {
    /// The same answer, with a note of what is taken of it.
    pub(super) fn watch(&self, body: ResponseBody) -> WatchedBody {
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        state.answers.insert(number, Taken { last: Instant::now(), parts: 0, dry: false, over: false });
        drop(state);
        WatchedBody { body, rest: Bytes::new(), note: Note { readers: self.clone(), number } }
    }

    /// When the reader that has taken nothing for longest has been waited for long enough; `None` while none is waited for.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let state = self.lock();
        let since = state.answers.values().filter(|taken| taken.waits()).map(|taken| taken.last).min();
        since.map(|since| since + READER_PATIENCE)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics between two halves of a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where it is noted what becomes of an answer.
#[derive(Debug, Clone)]
struct Note {
    readers: Readers,
    number: u64,
}

impl Note {
    fn change(&self, change: impl FnOnce(&mut Taken)) {
        let mut state = self.readers.lock();
        if let Some(taken) = state.answers.get_mut(&self.number) {
            change(taken);
            if taken.over && taken.parts == 0 {
                state.answers.remove(&self.number);
            }
        }
    }
}

/// An answer that is given to its connection in small parts.
#[derive(Debug)]
pub(super) struct WatchedBody {
    body: ResponseBody,
    /// Of the last frame of the body.
    rest: Bytes,
    note: Note,
}

impl Body for WatchedBody {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if self.rest.is_empty() {
            let step = Pin::new(&mut self.body).poll_frame(context);
            self.note.change(|taken| (taken.dry, taken.last) = (step.is_pending(), Instant::now()));
            match ready!(step).map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(bytes))) => self.rest = bytes,
                Some(Ok(Err(other))) => return Poll::Ready(Some(Ok(other))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
        let length = self.rest.len().min(PART);
        let bytes = self.rest.split_to(length);
        self.note.change(|taken| (taken.parts, taken.last) = (taken.parts + 1, Instant::now()));
        let part = Bytes::from_owner(Part { bytes, note: self.note.clone() });
        Poll::Ready(Some(Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (of_body, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(of_body.lower() + rest);
        if let Some(upper) = of_body.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

impl Drop for WatchedBody {
    fn drop(&mut self) {
        self.note.change(|taken| taken.over = true);
    }
}

/// Bytes that a connection has; dropped when they were written.
struct Part {
    bytes: Bytes,
    note: Note,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.note.change(|taken| (taken.parts, taken.last) = (taken.parts - 1, Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt as _;
    use http_body_util::{BodyExt as _, Full, channel::Channel};
    use tokio::time::advance;

    use super::*;
    use crate::answer;

    const WHILE: Duration = Duration::from_secs(50);

    #[tokio::test(start_paused = true)]
    async fn only_readers_are_waited_for_and_not_what_they_read_of() {
        let (readers, start) = (Readers::default(), Instant::now());
        let (mut source, channel) = Channel::<Bytes, Box<dyn Error + Send + Sync>>::new(1);
        let mut body = readers.watch(channel.boxed_unsync());
        // It is not asked for.
        assert_eq!(readers.deadline(), Some(start + READER_PATIENCE));
        assert!(body.frame().now_or_never().is_none());
        assert_eq!(readers.deadline(), None, "there is nothing to take");
        advance(WHILE).await;
        source.send_data(Bytes::from(vec![7; PART + 1])).await.unwrap();
        let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!((first.len(), readers.deadline()), (PART, Some(start + WHILE + READER_PATIENCE)));
        advance(WHILE).await;
        drop(first);
        let begun = start + WHILE * 2;
        assert_eq!(readers.deadline(), Some(begun + READER_PATIENCE), "it took a part");
        let second = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(second.len(), 1);
        // Another one does not make up for it.
        advance(WHILE).await;
        let other = readers.watch(answer::empty());
        assert_eq!(readers.deadline(), Some(begun + READER_PATIENCE));
        drop((source, other));
        assert!(body.frame().await.is_none_or(|end| end.is_err()));
        drop(body);
        assert_eq!(readers.deadline().map(|_| readers.lock().answers.len()), Some(1), "a part is not taken");
        drop(second);
        assert!(readers.deadline().is_none() && readers.lock().answers.is_empty());
    }

    #[tokio::test]
    async fn an_answer_stays_what_it_is() {
        for length in [0, 1, PART, 3 * PART + 5] {
            let bytes: Bytes = (0..=u8::MAX).cycle().take(length).collect::<Vec<_>>().into();
            let readers = Readers::default();
            let body = readers.watch(Full::new(bytes.clone()).map_err(|never| match never {}).boxed_unsync());
            assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(length as u64), length == 0));
            assert!(body.collect().await.unwrap().to_bytes() == bytes);
            assert!(readers.lock().answers.is_empty());
        }
    }
}
