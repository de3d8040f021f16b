//! Getting a blob for later: nobody reads it now.

use eagle_core::Digest;

use super::{BlobRequest, Downloads, Phase};

/// Why a blob is not on this node.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeepError {
    /// No source could give it.
    #[error("{0}")]
    Failed(String),
    /// There is no room for it.
    #[error("blob {0} does not fit on this node beside what is in use; see proxy.cache_limit")]
    NoRoom(Digest),
}

impl Downloads {
    /// Waits until a blob is whole in the cache, and fetches it if nobody does. A use of the blob.
    ///
    /// # Errors
    /// When no source can give it, or it does not fit.
    pub(crate) async fn keep(&self, request: BlobRequest) -> Result<(), KeepError> {
        let digest = request.digest;
        if self.0.context.cache.touch(digest) {
            return Ok(());
        }
        // A reader that stays at the beginning: nothing is needed before the rest.
        let (ticket, _) = self.attach(request);
        let mut phases = ticket.download().phase();
        loop {
            match &*phases.borrow_and_update() {
                Phase::Starting | Phase::Running(_) => {}
                Phase::Complete(_) => return Ok(()),
                Phase::PassThrough { .. } => return Err(KeepError::NoRoom(digest)),
                Phase::Failed(error) => return Err(KeepError::Failed(error.to_string())),
            }
            if phases.changed().await.is_err() {
                return Err(KeepError::Failed("the proxy is shutting down".to_owned()));
            }
        }
    }
}
