//! Reading a complete blob.

use std::{fs::File, io, path::Path, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use eagle_core::Digest;
use rustix::{buffer::spare_capacity, io::Errno};

use super::blocking;
use crate::ssi::{BlobReader, StorageError, check_range};

/// An open file that is a whole blob.
#[derive(Debug)]
pub(super) struct FsReader {
    digest: Digest,
    file: Arc<File>,
    size: u64,
    /// For messages.
    path: PathBuf,
}

impl FsReader {
    pub(super) fn new(digest: Digest, file: Arc<File>, size: u64, path: PathBuf) -> Self {
        Self { digest, file, size, path }
    }
}

#[async_trait]
impl BlobReader for FsReader {
    fn size(&self) -> u64 {
        self.size
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, StorageError> {
        check_range(self.digest, self.size, offset, length)?;
        let (file, path) = (Arc::clone(&self.file), self.path.clone());
        blocking(move || read_exact(&file, &path, offset, length)).await
    }

    fn file(&self) -> Option<Arc<File>> {
        Some(Arc::clone(&self.file))
    }
}

/// Exactly `length` bytes from `offset` on, into memory that is not zeroed first.
pub(super) fn read_exact(file: &File, path: &Path, offset: u64, length: usize) -> Result<Bytes, StorageError> {
    let mut buffer = Vec::with_capacity(length);
    while buffer.len() < length {
        let at = offset + buffer.len() as u64;
        match rustix::io::pread(file, spare_capacity(&mut buffer), at) {
            Ok(0) => return Err(StorageError::io("read", path, io::ErrorKind::UnexpectedEof.into())),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(StorageError::io("read", path, error.into())),
        }
    }
    // The capacity may exceed the length, and the read then too.
    buffer.truncate(length);
    Ok(buffer.into())
}
