//! The calls that change what is on the disk, all of them. Tests record them, to see what a loss of power could leave.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _},
    path::Path,
};

#[cfg(test)]
use super::record::{self, Step};

/// What others must not read: content may be private to those whom the registry lets in.
const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;

/// Makes one directory.
pub(super) fn make_directory(path: &Path) -> io::Result<()> {
    #[cfg(test)]
    let _turn = record::note(path, || Step::MakeDirectory(path.to_owned()));
    DirBuilder::new().mode(DIRECTORY_MODE).create(path)
}

/// Opens a file for reading and writing, made when it is missing, emptied where that is asked.
pub(super) fn create_file(path: &Path, empty: bool) -> io::Result<File> {
    #[cfg(test)]
    let turn = record::turn(path);
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(empty).mode(FILE_MODE).open(path)?;
    #[cfg(test)]
    record::push(turn, || Step::Create { path: path.to_owned(), file: record::id(&file), empty });
    Ok(file)
}

/// Gives a file its length; what it had not before reads as zeros.
pub(super) fn set_length(file: &File, _path: &Path, length: u64) -> io::Result<()> {
    #[cfg(test)]
    let _turn = record::note(_path, || Step::SetLength { file: record::id(file), length });
    file.set_len(length)
}

/// Writes all of `bytes` from `offset` on.
pub(super) fn write_at(file: &File, _path: &Path, bytes: &[u8], offset: u64) -> io::Result<()> {
    #[cfg(test)]
    let _turn = record::note(_path, || Step::Write { file: record::id(file), offset, bytes: bytes.to_vec() });
    file.write_all_at(bytes, offset)
}

/// Makes the bytes of a file durable, and its length.
pub(super) fn sync_data(file: &File, _path: &Path) -> io::Result<()> {
    #[cfg(test)]
    let _turn = sync_in_turn(file, _path)?;
    file.sync_data()
}

/// Makes all of a file durable, its times included; not its name.
pub(super) fn sync_file(file: &File, _path: &Path) -> io::Result<()> {
    #[cfg(test)]
    let _turn = sync_in_turn(file, _path)?;
    file.sync_all()
}

#[cfg(test)]
fn sync_in_turn(file: &File, path: &Path) -> io::Result<Option<record::Turn>> {
    let id = record::id(file);
    record::sync(path, || Step::SyncFile(id), || Some(Step::FailSync(id)))
}

/// Makes the names in a directory durable.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    #[cfg(test)]
    let _turn = record::sync(path, || Step::SyncDirectory(path.to_owned()), || None)?;
    File::open(path).and_then(|directory| directory.sync_all())
}

/// Gives a file another name in its directory, in place of what has that name.
pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(test)]
    let _turn = record::note(from, || Step::Rename(from.to_owned(), to.to_owned()));
    fs::rename(from, to)
}

/// Removes a file.
pub(super) fn remove_file(path: &Path) -> io::Result<()> {
    #[cfg(test)]
    let _turn = record::note(path, || Step::Remove(path.to_owned()));
    fs::remove_file(path)
}

/// Removes an empty directory.
pub(super) fn remove_directory(path: &Path) -> io::Result<()> {
    #[cfg(test)]
    let turn = record::turn(path);
    fs::remove_dir(path)?;
    #[cfg(test)]
    record::push(turn, || Step::RemoveDirectory(path.to_owned()));
    Ok(())
}
