//! Why a storage could not do what it was asked.

use std::{
    io,
    path::{Path, PathBuf},
};

use eagle_core::{Digest, PieceIndex};
use rustix::io::Errno;

/// Why a storage could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb and its object.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file system or the quota is full, whatever the limit of the cache says.
    #[error("no space left for {}: free some on its file system, or lower the cache limit", path.display())]
    OutOfSpace {
        /// The file that could not grow.
        path: PathBuf,
    },
    /// Another process uses the directory.
    #[error("{} is in use by another eagle process: give each process a data directory of its own", path.display())]
    Locked {
        /// The data directory.
        path: PathBuf,
    },
    /// A piece number past the end of the blob.
    #[error("blob {digest} has {pieces} pieces, so there is no piece {piece}")]
    NoSuchPiece {
        /// The blob.
        digest: Digest,
        /// The number asked for.
        piece: PieceIndex,
        /// Number of pieces of the blob.
        pieces: u32,
    },
    /// A piece of another length than the geometry says.
    #[error("piece {piece} of blob {digest} is {expected} bytes long, and {actual} were given")]
    PieceLength {
        /// The blob.
        digest: Digest,
        /// The piece.
        piece: PieceIndex,
        /// Its length, bytes.
        expected: u32,
        /// Bytes given.
        actual: usize,
    },
    /// A read past the end of a blob.
    #[error("blob {digest} has {size} bytes, so {length} bytes cannot be read at {offset}")]
    OutOfRange {
        /// The blob.
        digest: Digest,
        /// Where the read begins, bytes.
        offset: u64,
        /// Bytes asked for.
        length: usize,
        /// Size of the blob, bytes.
        size: u64,
    },
    /// A read of a piece that was not written yet.
    #[error("piece {piece} of blob {digest} is not here yet")]
    NotWritten {
        /// The blob.
        digest: Digest,
        /// The first piece missing.
        piece: PieceIndex,
    },
    /// The content on the disk is not what was stored. Nothing of it was used.
    #[error("piece {piece} of blob {digest} has changed on the disk")]
    Changed {
        /// The blob.
        digest: Digest,
        /// The first piece that was seen to be wrong.
        piece: PieceIndex,
    },
    /// A commit of a blob that has holes.
    #[error("blob {digest} cannot be completed: {missing} of its pieces were never written")]
    Incomplete {
        /// The blob.
        digest: Digest,
        /// Number of pieces missing.
        missing: u32,
    },
    /// The blob is complete already, so it cannot be written.
    #[error("blob {digest} is complete already")]
    AlreadyComplete {
        /// The blob.
        digest: Digest,
    },
    /// Somebody else in this process writes the blob.
    #[error("blob {digest} is being written already")]
    InUse {
        /// The blob.
        digest: Digest,
    },
    /// A sync of the blob failed while it was being written, so nobody can say what of it is on the disk. It has to be
    /// begun anew, from what was recorded before.
    #[error("the disk failed to take what was written of blob {digest}: check the disk, the blob is fetched again")]
    Unsynced {
        /// The blob.
        digest: Digest,
    },
    /// The blob was removed while it was being written.
    #[error("blob {digest} was removed while it was being written")]
    Removed {
        /// The blob.
        digest: Digest,
    },
    /// Metainfo that does not fit the blob or cannot be stored.
    #[error("the metainfo of blob {digest} cannot be stored: {reason}")]
    Metainfo {
        /// The blob.
        digest: Digest,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A storage that is reached over the network refused, or could not be reached.
    #[error("cannot {action} the object {object}: {reason}")]
    Remote {
        /// What was tried, as a verb.
        action: &'static str,
        /// Key of the object, with the bucket it is in.
        object: String,
        /// What the storage or the network said, without the queries of URLs, which may hold signatures.
        reason: String,
    },
    /// What was found in the storage is not what belongs there. Nothing of it was used.
    #[error("the object {object} is not what belongs there: {reason}")]
    Damaged {
        /// Key of the object, with the bucket it is in.
        object: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A setting of the storage cannot work.
    #[error("{0}")]
    Settings(String),
    /// The process is shutting down.
    #[error("the storage is shutting down")]
    Stopped,
}

impl StorageError {
    /// An error of the operating system; one that means "full" becomes [`StorageError::OutOfSpace`].
    pub fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::OutOfSpace { path: path.to_owned() },
            _ => Self::Io { action, path: path.to_owned(), source },
        }
    }

    /// Whether what is stored is wrong, so that asking again will not help and storing it anew will.
    pub const fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. })
    }

    /// Whether the content of a blob on a disk is gone, unreadable or wrong, so that it has to be had from elsewhere.
    pub const fn is_lost_content(&self) -> bool {
        matches!(self, Self::Changed { .. } | Self::Io { .. })
    }

    /// Whether the operating system says that what it was asked for is damaged or cannot be read, and not that it has too
    /// little of something at present, or that this process may not.
    pub fn is_damaged_file(&self) -> bool {
        let Self::Io { source, .. } = self else { return false };
        // A bad sector; metadata that makes no sense, and metadata with a wrong checksum; a file that a server has lost.
        let bad = [Errno::IO, Errno::UCLEAN, Errno::BADMSG, Errno::STALE];
        Errno::from_io_error(source).is_some_and(|errno| bad.contains(&errno))
    }

    /// Whether the file system or the quota is full.
    pub const fn is_out_of_space(&self) -> bool {
        matches!(self, Self::OutOfSpace { .. })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_full_device_is_told_apart() {
        let path = Path::new("/dev/full");
        let Ok(mut file) = std::fs::OpenOptions::new().write(true).open(path) else {
            eprintln!("skipped: this system has no /dev/full");
            return;
        };
        let source = file.write_all(b"x").unwrap_err();
        let error = StorageError::io("write", path, source);
        assert!(error.is_out_of_space(), "{error}");
        assert!(error.to_string().contains("/dev/full"), "{error}");
    }

    #[test]
    fn other_errors_name_the_path_and_the_cause() {
        let path = Path::new("/nonexistent/eagle");
        let error = StorageError::io("open", path, std::fs::File::open(path).unwrap_err());
        assert!(!error.is_out_of_space());
        assert!(error.to_string().starts_with("cannot open /nonexistent/eagle: "), "{error}");
    }
}
