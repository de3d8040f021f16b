//! Small files that are replaced as a whole.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read, Write},
    path::Path,
};

/// The content of a file of at most `limit` bytes; `None` when there is none.
///
/// # Errors
/// When it is longer, or cannot be read.
pub(crate) fn read(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::other("it is larger than any that this program writes"));
    }
    Ok(Some(bytes))
}

/// Replaces what a file holds, wholly or not at all, also when the machine stops in between.
///
/// # Errors
/// When the directory cannot be written.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // Each of these files has one writer, so one name beside it is enough, and a crash leaves at most one.
    let mut beside = OsString::from(path);
    beside.push(".new");
    let mut file = File::create(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)
}
