//! Small files that are replaced as a whole.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

/// For the owner alone.
const MODE: u32 = 0o600;

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
    // Names of images may be private, whatever the umask is. What a crash left is made anew, in case others could read it.
    let _ = std::fs::remove_file(&beside);
    let mut file = File::options().write(true).create_new(true).mode(MODE).open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_is_for_its_owner_alone_whatever_was_there() {
        let directory = tempfile::tempdir().unwrap();
        let (path, beside) = (directory.path().join("list.json"), directory.path().join("list.json.new"));
        for found in [&path, &beside] {
            std::fs::write(found, "old").unwrap();
            std::fs::set_permissions(found, std::fs::Permissions::from_mode(0o644)).unwrap();
        }
        replace(&path, b"new").unwrap();
        assert_eq!(read(&path, 3).unwrap().as_deref(), Some(&b"new"[..]));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!beside.exists() && read(&path, 2).is_err());
    }
}
