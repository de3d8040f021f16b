//! Names and small operations of the directory tree. Everything here blocks.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io::{self, ErrorKind, Read as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use eagle_core::{Bitfield, Digest, Geometry, Metainfo};
use serde::{Deserialize, Serialize};
use tracing::{debug, warn};

use super::disk;
use crate::{
    envelope::{self, Magic},
    ssi::{ScrubPlace, StorageError, StoredBlob},
};

/// The directory of all blobs, below the root.
pub(super) const BLOBS: &str = "blobs";
/// The lock file, below the root.
pub(super) const LOCK: &str = "lock";

/// Where the scrub is, below the root.
const SCRUB: &str = "scrub";

const DATA: &str = "data";
const PARTIAL: &str = "partial";
const PIECES: &str = "pieces";
const METAINFO: &str = "metainfo";
/// Ends the names of files that are not finished; no finished name ends so.
const TEMPORARY: &str = ".tmp";

/// The second form: hashes of pieces are chained.
pub(crate) const METAINFO_MAGIC: Magic = *b"eaglemi2";
pub(crate) const PIECES_MAGIC: Magic = *b"eaglepr1";
pub(crate) const SCRUB_MAGIC: Magic = *b"eaglesc1";
/// Largest small file that is read, bytes: metainfo of the most pieces (2^18 hashes of 32 bytes)
/// is half of it.
const MAX_SMALL_FILE: u64 = 16 << 20;

/// Which pieces of a partial blob are durable.
#[derive(Serialize, Deserialize)]
pub(crate) struct PieceRecord {
    geometry: Geometry,
    pieces: Vec<u8>,
}

impl PieceRecord {
    /// The pieces, when they are those of a blob of this geometry.
    pub(crate) fn of(self, geometry: Geometry) -> Option<Bitfield> {
        if self.geometry != geometry {
            return None;
        }
        Bitfield::from_bytes(geometry.pieces(), &self.pieces)
    }
}

/// The directory of one blob.
#[derive(Debug, Clone)]
pub(super) struct BlobDirectory {
    root: PathBuf,
    path: PathBuf,
    digest: Digest,
}

impl BlobDirectory {
    pub(super) fn new(root: &Path, digest: Digest) -> Self {
        let hex = digest.hex();
        // Two levels keep directories below a few thousand entries at a million blobs.
        let path = root.join(BLOBS).join(digest.algorithm().name()).join(&hex[..2]).join(&hex);
        Self { root: root.to_owned(), path, digest }
    }

    pub(super) fn data(&self) -> PathBuf {
        self.path.join(DATA)
    }

    pub(super) fn partial(&self) -> PathBuf {
        self.path.join(PARTIAL)
    }

    /// Makes the directory, durably; says whether it is new.
    pub(super) fn create(&self) -> Result<bool, StorageError> {
        if self.path.is_dir() {
            return Ok(false);
        }
        let below = self.path.strip_prefix(&self.root).unwrap_or(&self.path);
        let mut path = self.root.clone();
        for part in below {
            let parent = path.clone();
            path.push(part);
            if create_private(&path, "create the directory")?
                && let Err(error) = sync_directory(&parent)
            {
                // Whoever finds it takes it for durable.
                let _ = disk::remove_directory(&path);
                return Err(error);
            }
        }
        Ok(true)
    }

    /// The complete blob, when there is one.
    pub(super) fn open_data(&self) -> Result<Option<(File, Metadata)>, StorageError> {
        let path = self.data();
        let Some(file) = absent_is_none(File::open(&path)).map_err(|e| StorageError::io("open", &path, e))? else {
            return Ok(None);
        };
        let metadata = file.metadata().map_err(|e| StorageError::io("examine", &path, e))?;
        Ok(metadata.is_file().then_some((file, metadata)))
    }

    /// The partial file and the pieces of it that are durable, when it has this geometry.
    pub(super) fn open_partial(&self, geometry: Geometry) -> Result<Option<(File, Bitfield)>, StorageError> {
        let path = self.partial();
        let opened = absent_is_none(OpenOptions::new().read(true).write(true).open(&path));
        let Some(file) = opened.map_err(|e| StorageError::io("open", &path, e))? else { return Ok(None) };
        let metadata = file.metadata().map_err(|e| StorageError::io("examine", &path, e))?;
        if !metadata.is_file() || metadata.len() != geometry.size() {
            return Ok(None);
        }
        let record = self.read_small::<PieceRecord>(PIECES, PIECES_MAGIC)?;
        Ok(record.and_then(|record| record.of(geometry)).map(|pieces| (file, pieces)))
    }

    /// A partial file of holes in place of whatever there was.
    ///
    /// An old record must not meet a new file, so its removal is durable before the file is made: unless the directory is
    /// new, also when there is nothing to remove, which somebody may have done whose sync failed.
    pub(super) fn reset_partial(&self, geometry: Geometry, new: bool) -> Result<File, StorageError> {
        if remove_file(&self.path.join(PIECES))? | remove_file(&self.partial())? | !new {
            sync_directory(&self.path)?;
        }
        let path = self.partial();
        let file = create_file(&path, false)?;
        disk::set_length(&file, &path, geometry.size()).map_err(|e| StorageError::io("reserve", &path, e))?;
        Ok(file)
    }

    /// Makes the names in the directory durable.
    pub(super) fn sync(&self) -> Result<(), StorageError> {
        sync_directory(&self.path)
    }

    /// Replaces the record of durable pieces.
    pub(super) fn write_pieces(&self, geometry: Geometry, pieces: &Bitfield) -> Result<(), StorageError> {
        self.write_small(PIECES, PIECES_MAGIC, &PieceRecord { geometry, pieces: pieces.to_bytes() })
    }

    /// Turns the partial file, whose bytes are durable, into the complete blob, durably.
    pub(super) fn finish_partial(&self) -> Result<(), StorageError> {
        let (from, to) = (self.partial(), self.data());
        disk::rename(&from, &to).map_err(|e| StorageError::io("complete", &from, e))?;
        sync_directory(&self.path)?;
        if let Err(error) = remove_file(&self.path.join(PIECES)) {
            debug!(%error, "a record that is not needed stays until the next start");
        }
        Ok(())
    }

    pub(super) fn write_metainfo(&self, metainfo: &Metainfo) -> Result<(), StorageError> {
        self.write_small(METAINFO, METAINFO_MAGIC, metainfo)
    }

    /// The metainfo, when there is some and it is undamaged and of this blob.
    pub(super) fn read_metainfo(&self) -> Result<Option<Metainfo>, StorageError> {
        let metainfo = self.read_small::<Metainfo>(METAINFO, METAINFO_MAGIC)?;
        let pieces = |metainfo: &Metainfo| metainfo.geometry.pieces() as usize;
        Ok(metainfo.filter(|found| found.digest == self.digest && found.hashes.len() <= pieces(found)))
    }

    /// Removes the blob in an order that never leaves a complete one without its bytes, nor bytes
    /// that nobody knows of.
    pub(super) fn remove(&self) -> Result<(), StorageError> {
        for name in [DATA, PIECES, PARTIAL, METAINFO] {
            remove_file(&self.path.join(name))?;
            remove_file(&self.path.join(format!("{name}{TEMPORARY}")))?;
        }
        match disk::remove_directory(&self.path) {
            // Somebody else's file keeps the directory; the blob is gone all the same.
            Err(e) if !matches!(e.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => {
                Err(StorageError::io("remove", &self.path, e))
            }
            _ => Ok(()),
        }
    }

    /// Removes what a crash may leave: temporary files, a record next to a complete blob, a partial file without a
    /// record, which may not even have its length yet, and metainfo of nothing.
    fn sweep(&self) -> Result<(), StorageError> {
        for name in [PIECES, METAINFO] {
            remove_file(&self.path.join(format!("{name}{TEMPORARY}")))?;
        }
        if self.data().exists() {
            remove_file(&self.path.join(PIECES))?;
            remove_file(&self.partial())?;
        } else if !self.partial().exists() || !self.path.join(PIECES).exists() {
            self.remove()?;
        }
        Ok(())
    }

    fn stored(&self) -> Option<StoredBlob> {
        let (metadata, complete) = match fs::metadata(self.data()) {
            Ok(metadata) => (metadata, true),
            Err(_) => (fs::metadata(self.partial()).ok()?, false),
        };
        let last_used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        metadata.is_file().then_some(StoredBlob { digest: self.digest, size: metadata.len(), complete, last_used })
    }

    /// Replaces a small file: the old or the new one is there after a crash, never a part of it.
    fn write_small<T: Serialize>(&self, name: &str, magic: Magic, value: &T) -> Result<(), StorageError> {
        let reason = "it cannot be encoded";
        let bytes = envelope::encode(magic, value).ok_or(StorageError::Metainfo { digest: self.digest, reason })?;
        replace_small(&self.path, name, &bytes)
    }

    /// Reads a small file; `None` when it is absent, damaged or too large to be one.
    fn read_small<T: serde::de::DeserializeOwned>(&self, name: &str, magic: Magic) -> Result<Option<T>, StorageError> {
        read_small(&self.path.join(name), magic)
    }
}

/// Where the scrub was, when that is known.
pub(super) fn read_scrub_place(root: &Path) -> Result<Option<ScrubPlace>, StorageError> {
    read_small(&root.join(SCRUB), SCRUB_MAGIC)
}

/// Keeps where the scrub is.
pub(super) fn write_scrub_place(root: &Path, place: Option<ScrubPlace>) -> Result<(), StorageError> {
    match place.and_then(|place| envelope::encode(SCRUB_MAGIC, &place)) {
        Some(bytes) => replace_small(root, SCRUB, &bytes),
        None => remove_file(&root.join(SCRUB)).map(drop),
    }
}

/// Replaces a small file by one that is synced.
fn replace_small(directory: &Path, name: &str, bytes: &[u8]) -> Result<(), StorageError> {
    let temporary = directory.join(format!("{name}{TEMPORARY}"));
    let written = create_file(&temporary, true).and_then(|file| {
        let written = disk::write_at(&file, &temporary, bytes, 0).and_then(|()| disk::sync_data(&file, &temporary));
        written.map_err(|e| StorageError::io("write", &temporary, e))
    });
    if let Err(error) = written {
        // What is left of it would only take space that is short.
        let _ = disk::remove_file(&temporary);
        return Err(error);
    }
    let path = directory.join(name);
    disk::rename(&temporary, &path).map_err(|e| StorageError::io("replace", &path, e))
}

/// Reads a small file; `None` when it is absent, damaged or too large to be one.
fn read_small<T: serde::de::DeserializeOwned>(path: &Path, magic: Magic) -> Result<Option<T>, StorageError> {
    let Some(file) = absent_is_none(File::open(path)).map_err(|e| StorageError::io("open", path, e))? else {
        return Ok(None);
    };
    let mut bytes = Vec::new();
    let read = file.take(MAX_SMALL_FILE).read_to_end(&mut bytes);
    read.map_err(|e| StorageError::io("read", path, e))?;
    let value = envelope::decode(magic, &bytes);
    if value.is_none() {
        warn!(path = %path.display(), "ignored: the file is damaged or of another version");
    }
    Ok(value)
}

/// Every blob below `root`.
pub(super) fn list(root: &Path) -> Result<Vec<StoredBlob>, StorageError> {
    let mut blobs = Vec::new();
    for_each_blob(root, |directory| {
        blobs.extend(directory.stored());
        Ok(())
    })?;
    Ok(blobs)
}

/// Removes what a crash may have left below `root`.
pub(super) fn sweep(root: &Path) -> Result<(), StorageError> {
    remove_file(&root.join(format!("{SCRUB}{TEMPORARY}")))?;
    for_each_blob(root, |directory| {
        // One bad file is no reason not to serve the others. What stays is not used: who begins the blob removes it first.
        if let Err(error) = directory.sweep() {
            warn!(digest = %directory.digest, %error, "what a crash may have left of a blob cannot be swept");
        }
        Ok(())
    })
}

/// Calls `visit` for every directory that is named as that of a blob; other names are left alone.
fn for_each_blob(
    root: &Path,
    mut visit: impl FnMut(&BlobDirectory) -> Result<(), StorageError>,
) -> Result<(), StorageError> {
    for algorithm in names(&root.join(BLOBS))? {
        for prefix in names(&root.join(BLOBS).join(&algorithm))? {
            for name in names(&root.join(BLOBS).join(&algorithm).join(&prefix))? {
                if let Ok(digest) = format!("{algorithm}:{name}").parse::<Digest>()
                    && name.starts_with(&prefix)
                {
                    visit(&BlobDirectory::new(root, digest))?;
                }
            }
        }
    }
    Ok(())
}

/// The directories in a directory; none when it is absent.
fn names(path: &Path) -> Result<Vec<String>, StorageError> {
    let failed = |e| StorageError::io("list", path, e);
    let Some(entries) = absent_is_none(fs::read_dir(path)).map_err(failed)? else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if let (true, Ok(name)) = (entry.file_type().map_err(failed)?.is_dir(), entry.file_name().into_string()) {
            names.push(name);
        }
    }
    Ok(names)
}

/// Makes one directory; says whether it was new.
pub(super) fn create_private(path: &Path, action: &'static str) -> Result<bool, StorageError> {
    match disk::make_directory(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(false),
        Err(e) => Err(StorageError::io(action, path, e)),
    }
}

/// Opens a file for reading and writing, made when it is missing, emptied where that is asked.
pub(super) fn create_file(path: &Path, empty: bool) -> Result<File, StorageError> {
    disk::create_file(path, empty).map_err(|e| StorageError::io("create", path, e))
}

/// Makes the names in a directory durable.
pub(super) fn sync_directory(path: &Path) -> Result<(), StorageError> {
    disk::sync_directory(path).map_err(|e| StorageError::io("sync", path, e))
}

/// Removes a file; says whether it was there.
fn remove_file(path: &Path) -> Result<bool, StorageError> {
    let removed = absent_is_none(disk::remove_file(path)).map_err(|e| StorageError::io("remove", path, e))?;
    Ok(removed.is_some())
}

fn absent_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}
