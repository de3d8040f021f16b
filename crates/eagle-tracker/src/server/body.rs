//! Reading bodies within bounds.

use std::{fmt::Display, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Body;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::reply::RequestError;
use crate::api::MAX_REQUEST_BYTES;

/// Most bytes of bodies in memory at a time, over all connections: 64 of the largest.
const BUDGET_BYTES: usize = 64 * MAX_REQUEST_BYTES;
/// Longest time for a body to arrive: 4 MiB at 3.4 Mbit/s.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// The memory that bodies may take. A sender holds what it has sent and no more, so that slow senders
/// of large bodies cannot keep others out by what they promise.
#[derive(Debug)]
pub(super) struct BodyBudget(Arc<Semaphore>);

/// A body, and its share of the budget until it is dropped.
#[derive(Debug)]
pub(super) struct BoundedBody {
    pub(super) bytes: Bytes,
    _share: Option<OwnedSemaphorePermit>,
}

impl BodyBudget {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(BUDGET_BYTES)))
    }

    /// Reads a body of at most [`MAX_REQUEST_BYTES`].
    pub(super) async fn read<B>(&self, body: B) -> Result<BoundedBody, RequestError>
    where
        B: Body<Data = Bytes, Error: Display> + Unpin,
    {
        self.read_within(READ_TIMEOUT, body).await
    }

    async fn read_within<B>(&self, deadline: Duration, body: B) -> Result<BoundedBody, RequestError>
    where
        B: Body<Data = Bytes, Error: Display> + Unpin,
    {
        if body.size_hint().lower() > MAX_REQUEST_BYTES as u64 {
            return Err(RequestError::LargeBody);
        }
        tokio::time::timeout(deadline, self.read_frames(body)).await.unwrap_or(Err(RequestError::Slow))
    }

    async fn read_frames<B>(&self, mut body: B) -> Result<BoundedBody, RequestError>
    where
        B: Body<Data = Bytes, Error: Display> + Unpin,
    {
        // Most bodies come in one part, which is not copied.
        let mut whole = Bytes::new();
        let mut parts = BytesMut::new();
        let mut share: Option<OwnedSemaphorePermit> = None;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| RequestError::Bad(format!("the body broke off: {error}")))?;
            let Ok(data) = frame.into_data() else { continue };
            if whole.len() + parts.len() + data.len() > MAX_REQUEST_BYTES {
                return Err(RequestError::LargeBody);
            }
            // At most the largest body, so it fits.
            let wanted = u32::try_from(data.len()).unwrap_or(u32::MAX);
            let more = Arc::clone(&self.0).try_acquire_many_owned(wanted).map_err(|_| {
                RequestError::Overloaded("the tracker is reading too many announces; try again".to_owned())
            })?;
            match &mut share {
                Some(share) => share.merge(more),
                None => share = Some(more),
            }
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

    #[tokio::test]
    async fn a_body_that_does_not_arrive_is_given_up_with_its_share() {
        let budget = BodyBudget::new();
        let slow = budget.read_within(Duration::from_millis(20), Frames(3)).await.unwrap_err();
        assert!(matches!(slow, RequestError::Slow) && slow.reply().status() == 408, "{slow}");
        assert_eq!(budget.0.available_permits(), BUDGET_BYTES);
    }

    #[tokio::test]
    async fn bodies_are_bounded_one_by_one_and_together() {
        let budget = BodyBudget::new();
        let refused = async |body: Full<Bytes>| budget.read(body).await.unwrap_err().reply().status().as_u16();
        assert_eq!(refused(vec![0; MAX_REQUEST_BYTES + 1].into()).await, 413);
        let endless = budget.read(Frames(usize::MAX)).await.unwrap_err();
        assert!(matches!(endless, RequestError::LargeBody), "{endless}");
        let largest = budget.read(Full::<Bytes>::from(vec![0; MAX_REQUEST_BYTES])).await.unwrap();
        assert_eq!(budget.0.available_permits(), BUDGET_BYTES - largest.bytes.len());

        // Others have all but nine bytes.
        let others = u32::try_from(budget.0.available_permits() - 9).unwrap();
        let others = budget.0.try_acquire_many(others).unwrap();
        assert_eq!(refused(vec![0; 10].into()).await, 503);
        assert_eq!(budget.read(Full::<Bytes>::from(vec![0; 9])).await.unwrap().bytes.len(), 9);
        drop((others, largest));
        assert_eq!(budget.0.available_permits(), BUDGET_BYTES);
    }
}
