//! Reading bodies within bounds.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
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
    pub(super) async fn read(&self, body: Incoming) -> Result<BoundedBody, RequestError> {
        if body.size_hint().lower() > MAX_REQUEST_BYTES as u64 {
            return Err(RequestError::LargeBody);
        }
        tokio::time::timeout(READ_TIMEOUT, self.read_frames(body)).await.unwrap_or(Err(RequestError::Slow))
    }

    async fn read_frames(&self, mut body: Incoming) -> Result<BoundedBody, RequestError> {
        let mut bytes = BytesMut::new();
        let mut share: Option<OwnedSemaphorePermit> = None;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| RequestError::Bad(format!("the body broke off: {error}")))?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > MAX_REQUEST_BYTES {
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
            bytes.extend_from_slice(&data);
        }
        Ok(BoundedBody { bytes: bytes.freeze(), _share: share })
    }
}
