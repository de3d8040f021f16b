//! Reading bodies within bounds.

use std::{
    collections::HashMap,
    fmt::Display,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use eagle_cluster::source_of;
use http_body_util::BodyExt as _;
use hyper::body::Body;

use super::reply::RequestError;
use crate::api::MAX_REQUEST_BYTES;

/// Most bytes of bodies in memory at a time, over all connections: 64 of the largest.
const BUDGET_BYTES: usize = 64 * MAX_REQUEST_BYTES;
/// Most of them from one address: a member that sends slowly keeps others out only together with seven more. A node sends one announce at a
/// time, and nodes behind one address have room for a thousand announces of 500 blobs.
const SOURCE_BYTES: usize = BUDGET_BYTES / 8;
/// Longest time for a body to arrive: 4 MiB at 3.4 Mbit/s.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// The memory that bodies may take. A sender holds what it has sent and no more, so that slow senders
/// of large bodies cannot keep others out by what they promise.
#[derive(Debug, Default)]
pub(super) struct BodyBudget(Arc<Mutex<Used>>);

/// What is taken of the budget.
#[derive(Debug, Default)]
struct Used {
    bytes: usize,
    /// Those with a share, which have a connection each at least.
    sources: HashMap<IpAddr, usize>,
}

/// A body, and its share of the budget until it is dropped.
#[derive(Debug)]
pub(super) struct BoundedBody {
    pub(super) bytes: Bytes,
    _share: Share,
}

/// A part of the budget, given back when it is dropped.
#[derive(Debug)]
struct Share {
    budget: Arc<Mutex<Used>>,
    source: IpAddr,
    bytes: usize,
}

impl Share {
    /// Takes so much more.
    fn grow(&mut self, bytes: usize) -> Result<(), RequestError> {
        let mut used = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        let of_source = used.sources.get(&self.source).copied().unwrap_or_default();
        if of_source + bytes > SOURCE_BYTES {
            return Err(RequestError::Overloaded(
                "the tracker is reading too many announces from this address; try again".to_owned(),
            ));
        }
        if used.bytes + bytes > BUDGET_BYTES {
            return Err(RequestError::Overloaded("the tracker is reading too many announces; try again".to_owned()));
        }
        used.bytes += bytes;
        used.sources.insert(self.source, of_source + bytes);
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut used = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        used.bytes -= self.bytes;
        if let Some(of_source) = used.sources.get_mut(&self.source) {
            *of_source -= self.bytes;
            if *of_source == 0 {
                used.sources.remove(&self.source);
            }
        }
    }
}

impl BodyBudget {
    /// Reads a body of at most [`MAX_REQUEST_BYTES`] that comes from this address.
    pub(super) async fn read<B>(&self, source: IpAddr, body: B) -> Result<BoundedBody, RequestError>
    where
        B: Body<Data = Bytes, Error: Display> + Unpin,
    {
        self.read_within(READ_TIMEOUT, source, body).await
    }

    async fn read_within<B>(&self, deadline: Duration, source: IpAddr, body: B) -> Result<BoundedBody, RequestError>
    where
        B: Body<Data = Bytes, Error: Display> + Unpin,
    {
        if body.size_hint().lower() > MAX_REQUEST_BYTES as u64 {
            return Err(RequestError::LargeBody);
        }
        tokio::time::timeout(deadline, self.read_frames(source, body)).await.unwrap_or(Err(RequestError::Slow))
    }

    async fn read_frames<B>(&self, source: IpAddr, mut body: B) -> Result<BoundedBody, RequestError>
    where
        B: Body<Data = Bytes, Error: Display> + Unpin,
    {
        // Most bodies come in one part, which is not copied.
        let mut whole = Bytes::new();
        let mut parts = BytesMut::new();
        let mut share = Share { budget: Arc::clone(&self.0), source: source_of(source), bytes: 0 };
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| RequestError::Bad(format!("the body broke off: {error}")))?;
            let Ok(data) = frame.into_data() else { continue };
            if whole.len() + parts.len() + data.len() > MAX_REQUEST_BYTES {
                return Err(RequestError::LargeBody);
            }
            share.grow(data.len())?;
            if whole.is_empty() && parts.is_empty() {
                whole = data;
            } else {
                parts.extend_from_slice(&std::mem::take(&mut whole));
                parts.extend_from_slice(&data);
            }
        }
        let bytes = if parts.is_empty() { whole } else { parts.freeze() };
        Ok(BoundedBody { bytes, _share: share })
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        pin::Pin,
        task::{Context, Poll},
    };

    use http_body_util::Full;
    use hyper::body::Frame;

    use super::*;

    /// So many frames of 64 KiB, of which nobody was told before, and then nothing any more and no end.
    struct Frames(usize);

    impl Body for Frames {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Self::Data>, Infallible>>> {
            let Some(left) = self.0.checked_sub(1) else { return Poll::Pending };
            self.0 = left;
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[b' '; 1 << 16])))))
        }
    }

    fn from(host: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, host])
    }

    impl BodyBudget {
        fn used(&self) -> (usize, usize) {
            let used = self.0.lock().unwrap();
            (used.bytes, used.sources.len())
        }
    }

    #[tokio::test]
    async fn a_body_that_does_not_arrive_is_given_up_with_its_share() {
        let budget = BodyBudget::default();
        let slow = budget.read_within(Duration::from_millis(20), from(1), Frames(3)).await.unwrap_err();
        assert!(matches!(slow, RequestError::Slow) && slow.reply().status() == 408, "{slow}");
        assert_eq!(budget.used(), (0, 0));
    }

    #[tokio::test]
    async fn bodies_are_bounded_one_by_one_by_source_and_together() {
        let budget = BodyBudget::default();
        let read = async |host, length: usize| budget.read(from(host), Full::<Bytes>::from(vec![0; length])).await;
        let refused = async |host, length| read(host, length).await.unwrap_err().reply().status().as_u16();
        assert_eq!(refused(1, MAX_REQUEST_BYTES + 1).await, 413);
        let endless = budget.read(from(1), Frames(usize::MAX)).await.unwrap_err();
        assert!(matches!(endless, RequestError::LargeBody), "{endless}");
        assert_eq!(budget.used(), (0, 0));

        // One host takes what it may, and others are read as if nothing was.
        let mut held = Vec::new();
        for _ in 0..SOURCE_BYTES / MAX_REQUEST_BYTES {
            held.push(read(1, MAX_REQUEST_BYTES).await.unwrap());
        }
        assert_eq!(refused(1, 1).await, 503);
        assert_eq!(read(2, 10).await.unwrap().bytes.len(), 10);
        assert_eq!(budget.used(), (SOURCE_BYTES, 1));

        // Eight of them take everything but nine bytes.
        for host in 2..=8 {
            for _ in 0..SOURCE_BYTES / MAX_REQUEST_BYTES {
                held.push(read(host, MAX_REQUEST_BYTES).await.unwrap());
            }
        }
        held.pop();
        held.push(read(8, MAX_REQUEST_BYTES - 9).await.unwrap());
        assert_eq!(refused(9, 10).await, 503);
        assert_eq!(read(9, 9).await.unwrap().bytes.len(), 9);
        drop(held);
        assert_eq!(budget.used(), (0, 0));
    }
}
