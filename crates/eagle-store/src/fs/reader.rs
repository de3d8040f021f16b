//! Reading blobs.

use std::{
    fs::File,
    io::{self, IoSliceMut},
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use bytes::Bytes;
use eagle_core::Digest;
use rustix::{
    buffer::spare_capacity,
    io::{Errno, ReadWriteFlags},
};

use super::{
    blocking,
    buffers::{BLOCK, Buffer, Buffers},
};
use crate::ssi::{BlobReader, StorageError, check_range};

/// An open file that is a whole blob.
#[derive(Debug)]
pub(super) struct FsReader {
    digest: Digest,
    file: Arc<File>,
    size: u64,
    /// For messages.
    path: PathBuf,
    buffers: Arc<Buffers>,
}

impl FsReader {
    pub(super) fn new(digest: Digest, file: Arc<File>, size: u64, path: PathBuf, buffers: Arc<Buffers>) -> Self {
        Self { digest, file, size, path, buffers }
    }
}

#[async_trait]
impl BlobReader for FsReader {
    fn size(&self) -> u64 {
        self.size
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, StorageError> {
        check_range(self.digest, self.size, offset, length)?;
        read(&self.file, &self.path, &self.buffers, offset, length).await
    }

    async fn read_aside(&self, offset: u64, length: usize) -> Result<Bytes, StorageError> {
        check_range(self.digest, self.size, offset, length)?;
        let (file, path) = (Arc::clone(&self.file), self.path.clone());
        blocking(move || {
            // What is in memory at its start was in use, and stays; the rest goes again.
            let mut probe = [0];
            let present =
                rustix::io::preadv2(&file, &mut [IoSliceMut::new(&mut probe)], offset, ReadWriteFlags::NOWAIT);
            let bytes = read_new(&file, &path, offset, length)?;
            if present != Ok(1)
                && let Some(length) = std::num::NonZeroU64::new(length as u64)
            {
                // Advice: where it is not heeded, nothing is lost.
                let _ = rustix::fs::fadvise(&file, offset, Some(length), rustix::fs::Advice::DontNeed);
            }
            Ok(bytes)
        })
        .await
    }

    fn file(&self) -> Option<Arc<File>> {
        Some(Arc::clone(&self.file))
    }
}

/// Exactly `length` bytes from `offset` on: at once where a block of them is in memory, else on a
/// blocking thread.
pub(super) async fn read(
    file: &Arc<File>,
    path: &Path,
    buffers: &Arc<Buffers>,
    offset: u64,
    length: usize,
) -> Result<Bytes, StorageError> {
    if length > BLOCK {
        // Copying so much would keep an async thread busy for too long.
        let (file, path) = (Arc::clone(file), path.to_owned());
        return blocking(move || read_new(&file, &path, offset, length)).await;
    }
    let mut buffer = buffers.take(length);
    let present = read_present(file, &mut buffer, offset);
    if present == length {
        return Ok(buffer.into_bytes());
    }
    let (file, path) = (Arc::clone(file), path.to_owned());
    blocking(move || {
        let mut done = present;
        while done < length {
            let rest = buffer.as_mut().get_mut(done..).unwrap_or_default();
            match rustix::io::pread(&file, rest, offset + done as u64) {
                Ok(0) => return Err(StorageError::io("read", &path, io::ErrorKind::UnexpectedEof.into())),
                Ok(read) => done += read,
                Err(Errno::INTR) => {}
                Err(error) => return Err(StorageError::io("read", &path, error.into())),
            }
        }
        Ok(buffer.into_bytes())
    })
    .await
}

/// Reads what is in the page cache, up to the first byte that is not; returns how many bytes that
/// is. Never waits for a disk. An error is left to the read that does.
fn read_present(file: &File, buffer: &mut Buffer, offset: u64) -> usize {
    let buffer = buffer.as_mut();
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let at = offset + done as u64;
        match rustix::io::preadv2(file, &mut [IoSliceMut::new(rest)], at, ReadWriteFlags::NOWAIT) {
            Ok(read @ 1..) => done += read,
            Err(Errno::INTR) => {}
            Ok(0) | Err(_) => break,
        }
    }
    done
}

/// Exactly `length` bytes from `offset` on, into memory that is not zeroed first.
fn read_new(file: &File, path: &Path, offset: u64, length: usize) -> Result<Bytes, StorageError> {
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[tokio::test]
    async fn every_length_is_read_wherever_it_lies() {
        // Every byte differs from its neighbours, and from those a block away.
        let content: Vec<u8> = (0u32..).flat_map(|word| word.to_be_bytes()).take(3 * BLOCK / 2).collect();
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&content, 0).unwrap();
        let (file, buffers) = (Arc::new(file), Arc::new(Buffers::default()));
        for offset in [0, 1, 4096, 100_001] {
            for length in [0, 1, 4096, 20_000, BLOCK, BLOCK + 1] {
                let range = offset..offset + length;
                let bytes = read(&file, Path::new("x"), &buffers, offset as u64, length).await.unwrap();
                assert_eq!(bytes, content[range], "{length} at {offset}");
            }
        }
        for (offset, length) in [(content.len() - 10, 11), (content.len(), 1), (10, content.len())] {
            let error = read(&file, Path::new("x"), &buffers, offset as u64, length).await.unwrap_err();
            assert!(matches!(error, StorageError::Io { .. }), "{error}");
        }
    }

    #[test]
    fn what_is_in_memory_needs_no_thread() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[9; 100_000], 0).unwrap();
        let mut buffer = Arc::new(Buffers::default()).take(100_000);
        // File systems without such reads give nothing; then a blocking thread does all of it.
        let present = read_present(&file, &mut buffer, 0);
        assert!(present == 100_000 || present == 0, "{present}");
        assert!(buffer.as_mut()[..present].iter().all(|byte| *byte == 9));
    }
}
