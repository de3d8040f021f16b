//! How much is asked of a registry at a time: connections in use, and bytes a second.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use eagle_core::units::Rate;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Sleep,
};

use crate::{body::Body, origin::OriginError, pace::Pace};

/// The limits of one registry; shared by its mirrors.
#[derive(Debug)]
pub(crate) struct Limits {
    connections: Option<Connections>,
    pace: Option<Arc<Pace>>,
}

#[derive(Debug)]
struct Connections {
    all: Arc<Semaphore>,
    /// One less than all: a manifest does not wait behind blobs.
    blobs: Arc<Semaphore>,
}

/// A connection that may be used; given back when dropped.
#[derive(Debug, Default)]
pub(crate) struct Permit {
    _held: [Option<OwnedSemaphorePermit>; 2],
}

impl Limits {
    pub(crate) fn new(max_connections: Option<usize>, rate: Rate) -> Self {
        let connections = max_connections.map(|most| {
            let most = most.min(Semaphore::MAX_PERMITS);
            let blobs = most.saturating_sub(1).max(1);
            Connections { all: Arc::new(Semaphore::new(most)), blobs: Arc::new(Semaphore::new(blobs)) }
        });
        let pace = (rate != Rate::Unlimited).then(|| Arc::new(Pace::new(rate)));
        Self { connections, pace }
    }

    /// Waits for a connection, `patience` at most.
    ///
    /// # Errors
    /// When none was free in time.
    pub(crate) async fn connection(
        &self,
        registry: &str,
        for_blob: bool,
        patience: Duration,
    ) -> Result<Permit, OriginError> {
        let Some(Connections { all, blobs }) = &self.connections else { return Ok(Permit::default()) };
        let both = async {
            // The semaphores are never closed.
            let blob = match for_blob {
                true => Arc::clone(blobs).acquire_owned().await.ok(),
                false => None,
            };
            [blob, Arc::clone(all).acquire_owned().await.ok()]
        };
        let held = tokio::time::timeout(patience, both).await.map_err(|_| OriginError::Timeout {
            registry: registry.to_owned(),
            what: "one of max_connections to be free",
            after: patience,
        })?;
        Ok(Permit { _held: held })
    }

    /// The body under the limit of bytes, holding its connection until it ends or is dropped.
    pub(crate) fn apply(&self, body: Body, permit: Permit) -> Body {
        if self.connections.is_none() && self.pace.is_none() {
            return body;
        }
        Limited { body, permit: Some(permit), pace: self.pace.clone(), waiting: None }.boxed()
    }
}

struct Limited {
    body: Body,
    permit: Option<Permit>,
    pace: Option<Arc<Pace>>,
    /// A frame that came before its time.
    waiting: Option<(Frame<Bytes>, Pin<Box<Sleep>>)>,
}

impl HttpBody for Limited {
    type Data = Bytes;
    type Error = OriginError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, OriginError>>> {
        loop {
            if let Some((_, sleep)) = &mut self.waiting {
                ready!(sleep.as_mut().poll(cx));
                return Poll::Ready(self.waiting.take().map(|(frame, _)| Ok(frame)));
            }
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                end => {
                    self.permit = None;
                    return Poll::Ready(end);
                }
            };
            let length = frame.data_ref().map_or(0, Bytes::len);
            match self.pace.as_ref().and_then(|pace| pace.slot(length)) {
                Some(at) => self.waiting = Some((frame, Box::pin(tokio::time::sleep_until(at)))),
                None => return Poll::Ready(Some(Ok(frame))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.waiting.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.body.size_hint();
        if let Some((frame, _)) = &self.waiting {
            let held = frame.data_ref().map_or(0, Bytes::len) as u64;
            let upper = hint.upper().map(|upper| upper + held);
            hint.set_lower(hint.lower() + held);
            if let Some(upper) = upper {
                hint.set_upper(upper);
            }
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::body::full;

    const PATIENCE: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn a_manifest_does_not_wait_behind_blobs() {
        let limits = Limits::new(Some(2), Rate::Unlimited);
        let blob = limits.connection("a", true, PATIENCE).await.unwrap();
        let error = limits.connection("a", true, PATIENCE).await.unwrap_err();
        assert!(matches!(error, OriginError::Timeout { .. }), "{error}");
        let manifest = limits.connection("a", false, PATIENCE).await.unwrap();
        assert!(limits.connection("a", false, PATIENCE).await.is_err());
        // A connection is in use until its body has ended or is dropped.
        let body = limits.apply(full("content"), blob);
        assert!(limits.connection("a", false, PATIENCE).await.is_err());
        assert_eq!(body.collect().await.unwrap().to_bytes(), "content");
        let blob = limits.connection("a", true, PATIENCE).await.unwrap();
        drop(limits.apply(full("content"), blob));
        assert!(limits.connection("a", true, PATIENCE).await.is_ok());
        drop(manifest);
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_together_keep_the_rate() {
        let limits = Limits::new(None, Rate::Limited(1000));
        let begin = Instant::now();
        let bodies = (0..4).map(|_| limits.apply(full(vec![7; 2500]), Permit::default()).collect());
        for body in futures::future::join_all(bodies).await {
            assert_eq!(body.unwrap().to_bytes(), vec![7; 2500]);
        }
        assert_eq!(begin.elapsed().as_secs(), 10);
    }
}
