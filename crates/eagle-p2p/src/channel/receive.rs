//! Reads answers on the downloading side.

use std::{sync::atomic::Ordering, time::Duration};

use bytes::BytesMut;
use eagle_core::{
    PieceIndex,
    wire::{control::Load, data::Answer},
};
use tokio::time::{Instant, timeout};

use super::{
    ChannelEvent,
    buffers::Buffer,
    client::{Client, End},
    pool::PieceRequest,
    transport::Reader,
};

/// Length of the header of a refusal, bytes, the shortest there is: reading no more than this first
/// keeps the bytes of a piece out of the header's buffer.
const SHORT_HEADER: usize = 9;
/// Length of the header of a piece, bytes.
const LONG_HEADER: usize = 16;
/// How long a peer may leave requests unanswered. It may queue them behind those of others, at a
/// low rate; who asks knows better when to give up, and this is for the case that it does not.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// Pause between two [`ChannelEvent::Progress`] of a piece.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

impl Client {
    /// Reads answers until the channel ends.
    pub(super) async fn receive(&self, reader: &mut Reader) -> End {
        let mut header = BytesMut::with_capacity(LONG_HEADER);
        loop {
            let answered = match self.header(reader, &mut header).await {
                Ok(Answer::Piece { id, piece, length, load }) => self.piece(reader, id, piece, length, load).await,
                Ok(Answer::Reject { id, reason, load }) => match self.answered(id) {
                    Ok(PieceRequest { digest, .. }) => {
                        self.done();
                        self.emit(ChannelEvent::Rejected { peer: self.to.peer, id, digest, reason, load }).await;
                        Ok(())
                    }
                    Err(end) => Err(end),
                },
                Err(end) => Err(end),
            };
            if let Err(end) = answered {
                return end;
            }
        }
    }

    async fn emit(&self, event: ChannelEvent) {
        // Fails when the receiver is gone, and then nobody wants to know.
        let _ = self.pool.events.send(event).await;
    }

    async fn header(&self, reader: &mut Reader, buffer: &mut BytesMut) -> Result<Answer, End> {
        loop {
            match Answer::decode(buffer) {
                Ok(Some(answer)) => return Ok(answer),
                Ok(None) => {}
                Err(error) => return Err(End::Misbehaved(error.to_string())),
            }
            let wanted = if buffer.len() < SHORT_HEADER { SHORT_HEADER } else { LONG_HEADER };
            let missing = wanted.saturating_sub(buffer.len()).max(1);
            let waiting = !self.pending().is_empty();
            match timeout(ANSWER_TIMEOUT, reader.read(buffer, missing)).await {
                Ok(Ok(0)) if self.pending().is_empty() => return Err(End::Idle),
                Ok(Ok(0)) => return Err(End::Broken("the peer closed the channel".to_owned())),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error.into()),
                Err(_) if waiting => {
                    return Err(End::Broken(format!("no answer for {} s", ANSWER_TIMEOUT.as_secs())));
                }
                Err(_) => {}
            }
        }
    }

    async fn piece(&self, reader: &mut Reader, id: u32, piece: PieceIndex, length: u32, load: Load) -> Result<(), End> {
        let request = self.answered(id)?;
        let PieceRequest { digest, geometry, .. } = request;
        if request.piece.is_some_and(|asked| asked != piece) {
            return Err(End::Misbehaved(format!("it sent piece {piece} of {digest}, which was not asked for")));
        }
        if geometry.piece(piece.0).is_none() || geometry.length(piece) != length {
            return Err(End::Misbehaved(format!(
                "it announced {length} bytes for piece {piece} of {digest} instead of {}",
                geometry.length(piece)
            )));
        }
        let peer = self.to.peer;
        let began = Instant::now();
        self.emit(ChannelEvent::Started { peer, id, digest, piece, length, load }).await;
        // Fails only when the semaphore is closed, which it never is.
        let buffer = self.pool.buffers.take(length).await.map_err(|error| End::Broken(error.to_string()))?;
        let bytes = self.body(reader, id, length, buffer).await?.freeze();
        self.done();
        let elapsed = began.elapsed();
        self.emit(ChannelEvent::Piece { peer, id, digest, piece, bytes, load, elapsed }).await;
        Ok(())
    }

    async fn body(&self, reader: &mut Reader, id: u32, length: u32, mut buffer: Buffer) -> Result<Buffer, End> {
        let length = usize::try_from(length).map_err(|error| End::Broken(error.to_string()))?;
        let bytes = &mut buffer.bytes;
        let mut reported = Instant::now();
        while bytes.len() < length {
            let most = length - bytes.len();
            let read = reader.read_limited(bytes, most, &self.pool.limiter).await?;
            if read == 0 {
                return Err(End::Broken("the peer closed the channel within a piece".to_owned()));
            }
            self.pool.downloaded.fetch_add(read as u64, Ordering::Relaxed);
            if bytes.len() < length && reported.elapsed() >= PROGRESS_INTERVAL {
                reported = Instant::now();
                let so_far = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                let progress = ChannelEvent::Progress { peer: self.to.peer, id, bytes: so_far };
                // Only a hint; the next one says more.
                let _ = self.pool.events.try_send(progress);
            }
        }
        Ok(buffer)
    }
}
