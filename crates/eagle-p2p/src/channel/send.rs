//! Sends answers on the uploading side.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::{Buf, Bytes, BytesMut};
use eagle_core::{
    Digest, PieceIndex,
    geometry::MAX_PIECE_LENGTH,
    wire::{
        control::Load,
        data::{Answer, RejectReason},
    },
};
use eagle_store::ssi::BlobReader;
use libp2p::PeerId;

use super::{
    Permit, Upload, UploadHandler,
    patience::Patience,
    transport::{Writer, send_file},
};
use crate::limits::Limiter;

/// Bytes read from the storage at once where the kernel cannot send from the file.
const BLOCK: usize = 256 << 10;

/// An upload that the handler granted; it is told of the end when this is dropped.
pub(super) struct Granted {
    handler: Arc<dyn UploadHandler>,
    peer: PeerId,
    digest: Digest,
    piece: PieceIndex,
    reader: Arc<dyn BlobReader>,
    offset: u64,
    length: u32,
    load: Load,
    sent: u64,
    ok: bool,
    /// Until the upload begins.
    permit: Option<Box<dyn Permit>>,
}

impl Granted {
    /// The next block of the piece from the storage.
    fn next_block(&self) -> impl Future<Output = io::Result<Bytes>> + Send + use<> {
        let left = u64::from(self.length) - self.sent;
        let size = usize::try_from(left).unwrap_or(usize::MAX).min(BLOCK);
        let (reader, offset) = (Arc::clone(&self.reader), self.offset + self.sent);
        let (digest, piece) = (self.digest, self.piece);
        async move {
            reader.read_at(offset, size).await.map_err(|error| {
                tracing::warn!(%digest, %piece, %error, "cannot read a piece to send it");
                io::Error::other(error)
            })
        }
    }
}

impl Drop for Granted {
    fn drop(&mut self) {
        self.handler.finished(self.peer, self.digest, self.piece, self.sent, self.ok);
    }
}

/// What goes out for one request.
pub(super) enum Reply {
    Piece(Box<Granted>),
    Reject { reason: RejectReason, load: Load },
}

impl Reply {
    pub(super) fn new(handler: &Arc<dyn UploadHandler>, peer: PeerId, digest: Digest, upload: Upload) -> Self {
        match upload {
            Upload::Serve { piece, reader, offset, length, load, permit } => Self::Piece(Box::new(Granted {
                handler: Arc::clone(handler),
                peer,
                digest,
                piece,
                reader,
                offset,
                length,
                load,
                sent: 0,
                ok: false,
                permit: Some(permit),
            })),
            Upload::Reject { reason, load } => Self::Reject { reason, load },
        }
    }
}

/// The sending end of a channel.
pub(super) struct Sender {
    pub(super) writer: Writer,
    pub(super) limiter: Limiter,
    /// Bytes of pieces sent by this node.
    pub(super) uploaded: Arc<AtomicU64>,
}

impl Sender {
    /// Sends one answer. After an error the channel is useless.
    pub(super) async fn send(&mut self, id: u32, reply: Reply) -> io::Result<()> {
        match reply {
            Reply::Reject { reason, load } => self.reject(id, reason, load).await,
            Reply::Piece(granted) => self.piece(id, granted).await,
        }
    }

    async fn reject(&mut self, id: u32, reason: RejectReason, load: Load) -> io::Result<()> {
        // Without a slot nobody waits for it.
        let mut patience = Patience::with(None);
        self.header(&Answer::Reject { id, reason, load }, &mut patience).await?;
        self.writer.flush(&mut patience).await
    }

    async fn header(&mut self, answer: &Answer, patience: &mut Patience) -> io::Result<()> {
        let mut header = BytesMut::new();
        answer.encode(&mut header);
        self.writer.write_all(&header, patience).await
    }

    async fn piece(&mut self, id: u32, mut granted: Box<Granted>) -> io::Result<()> {
        let Granted { piece, offset, length, load, .. } = *granted;
        let end = offset.saturating_add(u64::from(length));
        if length > MAX_PIECE_LENGTH || end > granted.reader.size() {
            tracing::error!(digest = %granted.digest, %piece, length, "not sending a piece with impossible bounds");
            return self.reject(id, RejectReason::Failed, load).await;
        }
        // Its first bytes may have to wait for those of the piece before, which the peer has not taken.
        let mut patience = Patience::with(granted.permit.take());
        let answer = Answer::Piece { id, piece, length, load };
        if let (Some(stream), Some(file)) = (self.writer.plain().cloned(), granted.reader.file()) {
            if let Err(error) = granted.reader.check(offset, length as usize).await {
                tracing::warn!(digest = %granted.digest, %piece, %error, "cannot send a piece");
                return self.reject(id, RejectReason::Failed, load).await;
            }
            self.header(&answer, &mut patience).await?;
            while granted.sent < u64::from(length) {
                let left = usize::try_from(u64::from(length) - granted.sent).unwrap_or(usize::MAX);
                let at = offset + granted.sent;
                let sent = send_file(&stream, &file, at, left, &self.limiter, &mut patience).await?;
                self.count(&mut granted, sent);
            }
        } else {
            let Ok(mut block) = granted.next_block().await else {
                return self.reject(id, RejectReason::Failed, load).await;
            };
            self.header(&answer, &mut patience).await?;
            loop {
                while !block.is_empty() {
                    let sent = self.writer.write_limited(&block, &self.limiter, &mut patience).await?;
                    block.advance(sent);
                    self.count(&mut granted, sent);
                }
                if granted.sent == u64::from(length) {
                    break;
                }
                // The header promised these bytes, so there is no way to refuse them now.
                block = granted.next_block().await?;
            }
        }
        self.writer.flush(&mut patience).await?;
        granted.ok = true;
        Ok(())
    }

    fn count(&self, granted: &mut Granted, size: usize) {
        granted.sent += size as u64;
        self.uploaded.fetch_add(size as u64, Ordering::Relaxed);
    }
}
