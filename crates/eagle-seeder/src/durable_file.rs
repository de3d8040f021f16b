//! Small files that are replaced as a whole.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

/// For the owner alone.
const MODE: u32 = 0o600;

/// The content of a file of at most `limit` bytes; `None` when there is none. What a writer left that was killed is removed: this
/// is for the start of a process, which is the only one that writes the file.
///
/// # Errors
/// When it is longer, or cannot be read.
pub(crate) fn read(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    // It is no use to anybody, and it is made anew by the next writer, in case it stays.
    let _ = std::fs::remove_file(beside(path));
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
    let beside = beside(path);
    // Names of images may be private, whatever the umask is. What a crash left is made anew, in case others could read it.
    let _ = std::fs::remove_file(&beside);
    let mut file = File::options().write(true).create_new(true).mode(MODE).open(&beside)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| std::fs::rename(&beside, path));
    if written.is_err() {
        // Only tidiness: the error that matters is the one above.
        let _ = std::fs::remove_file(&beside);
    }
    written
}

/// Where a file is written before it takes the place of the one before. Each has one writer, so one name is enough, and a crash
/// leaves at most one.
fn beside(path: &Path) -> PathBuf {
    let mut beside = OsString::from(path);
    beside.push(".new");
    PathBuf::from(beside)
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
        // A process that was killed between writing and renaming, and then one whose rename fails.
        std::fs::write(&beside, "half").unwrap();
        assert_eq!(read(&path, 3).unwrap().as_deref(), Some(&b"new"[..]));
        assert!(!beside.exists());
        let directory_in_its_place = directory.path().join("a");
        std::fs::create_dir(&directory_in_its_place).unwrap();
        assert!(replace(&directory_in_its_place, b"x").is_err());
        assert!(!directory.path().join("a.new").exists());
    }
}
