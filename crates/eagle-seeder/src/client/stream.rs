//! The reading end of a metainfo stream.

use std::{fmt, net::IpAddr, time::Duration};

use bytes::BytesMut;
use eagle_core::{
    Digest,
    metainfo::{Frame, decode, is_inline},
};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use url::Url;

use super::{SeederClient, SeederError};

/// Time without a frame after which the seeder is given up: it sends one at least every 2 s.
const IDLE: Duration = Duration::from_secs(6);

/// The frames of a metainfo stream: one [`Frame::Header`] of the blob that was asked for, then
/// [`Frame::Content`] of a small blob at most once, [`Frame::Hashes`], never more than the blob has pieces, then [`Frame::Complete`] or
/// [`Frame::Failed`]. Keep-alives are taken out.
pub struct MetainfoStream {
    client: SeederClient,
    seeder: Url,
    digest: Digest,
    /// Address that the seeder answered from.
    address: Option<IpAddr>,
    body: Incoming,
    buffer: BytesMut,
    /// Pieces whose hashes are still to come; `None` before the header.
    missing: Option<usize>,
    /// Bytes of the content that may come; `None` when it may not, or has.
    content: Option<u64>,
    done: bool,
}

impl fmt::Debug for MetainfoStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetainfoStream")
            .field("seeder", &self.seeder.as_str())
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

impl MetainfoStream {
    pub(super) fn new(
        client: SeederClient,
        seeder: Url,
        digest: Digest,
        address: Option<IpAddr>,
        body: Incoming,
    ) -> Self {
        Self {
            client,
            seeder,
            digest,
            address,
            body,
            buffer: BytesMut::new(),
            missing: None,
            content: None,
            done: false,
        }
    }

    /// The seeder that it comes from.
    pub const fn seeder(&self) -> &Url {
        &self.seeder
    }

    /// The next frame; `None` after the last. Can be given up between polls without loss.
    ///
    /// # Errors
    /// When the seeder breaks off, says nothing for 6 s, or breaks the protocol; the stream is over
    /// then, and the seeder marked as down.
    pub async fn next(&mut self) -> Option<Result<Frame, SeederError>> {
        if self.done {
            return None;
        }
        let result = self.read().await;
        self.done = !matches!(result, Ok(Frame::Header { .. } | Frame::Content(_) | Frame::Hashes(_)));
        Some(result)
    }

    async fn read(&mut self) -> Result<Frame, SeederError> {
        loop {
            let decoded = decode(&mut self.buffer);
            match decoded.map_err(|error| self.client.protocol(&self.seeder, error.to_string()))? {
                Some(Frame::KeepAlive) => {}
                Some(frame) => return self.check(frame),
                None => self.more().await?,
            }
        }
    }

    async fn more(&mut self) -> Result<(), SeederError> {
        match tokio::time::timeout(IDLE, self.body.frame()).await {
            Ok(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    self.buffer.extend_from_slice(data);
                }
                Ok(())
            }
            Ok(Some(Err(error))) => Err(self.client.unreachable(&self.seeder, &error)),
            Ok(None) => {
                self.client.mark_down(&self.seeder);
                let reason = "the metainfo stream ended early".to_owned();
                Err(SeederError::Unreachable { seeder: self.seeder.clone(), reason })
            }
            Err(_) => Err(self.client.timeout(&self.seeder, IDLE)),
        }
    }

    fn check(&mut self, mut frame: Frame) -> Result<Frame, SeederError> {
        let problem = match (&mut frame, self.missing) {
            (Frame::Header { digest, geometry, seeder }, None) => {
                // A seeder that listens on every address does not know by which one it is reached.
                if let Some(address) = self.address
                    && seeder.address.ip().is_unspecified()
                {
                    seeder.address.set_ip(address);
                }
                self.missing = Some(geometry.pieces() as usize);
                self.content = is_inline(geometry).then(|| geometry.size());
                (*digest != self.digest).then_some("the metainfo of another blob")
            }
            (Frame::Header { .. }, Some(_)) => Some("a second header"),
            (Frame::Failed(_), _) => None,
            (_, None) => Some("a frame before the header"),
            (Frame::Content(bytes), Some(_)) => {
                (self.content.take() != Some(bytes.len() as u64)).then_some("content where none belongs")
            }
            (Frame::Hashes(hashes), Some(missing)) => {
                self.missing = missing.checked_sub(hashes.len());
                self.missing.is_none().then_some("more hashes than pieces")
            }
            (Frame::Complete, Some(missing)) => (missing > 0).then_some("an end before the last hash"),
            (Frame::KeepAlive, Some(_)) => None,
        };
        match problem {
            None => Ok(frame),
            Some(problem) => Err(self.client.protocol(&self.seeder, problem)),
        }
    }
}
