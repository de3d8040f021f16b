//! The key that a node proves its identity with.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use eagle_core::{NodeId, peer::ParseNodeIdError};
pub use libp2p::{PeerId, identity::Keypair};
use zeroize::Zeroizing;

/// Longest key file that is read, bytes. An encoded Ed25519 key pair has 68.
const MAX_KEY_FILE: u64 = 4096;
/// Permissions that let someone else take the identity.
const OTHERS: u32 = 0o007;

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file cannot be read or written.
    #[error("cannot {action} the node identity {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The key file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file holds something else.
    #[error("{} is not an Ed25519 node identity; remove it to get a new one", path.display())]
    Malformed {
        /// The key file.
        path: PathBuf,
    },
    /// Every user of the machine can read or change the key.
    #[error("{} is open to every user of this machine (mode {mode:o}); run chmod 600 on it", path.display())]
    Exposed {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

/// The identity kept in `path`; on the first start a new one is made and kept there.
///
/// The file has mode 0600 and appears whole or not at all. This reads and writes files and so
/// belongs before the asynchronous part of a program, or on a blocking thread.
///
/// # Errors
/// When the file cannot be read or written, holds no Ed25519 key, or is open to other users.
pub fn load_or_create(path: &Path) -> Result<Keypair, IdentityError> {
    let io = |action, source| IdentityError::Io { action, path: path.to_owned(), source };
    let keypair = match File::open(path) {
        Ok(file) => load(path, file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let keypair = ephemeral();
            match (create(path, &keypair), File::open(path)) {
                (Ok(()), _) => Ok(keypair),
                // Another process was quicker, and has swept the file that was to be this one.
                (Err(_), Ok(file)) => load(path, file),
                (Err(error), Err(_)) => Err(io("create", error)),
            }
        }
        Err(error) => Err(io("open", error)),
    }?;
    // There is an identity, so nobody needs another one.
    sweep(path);
    Ok(keypair)
}

/// A new identity that is kept nowhere.
pub fn ephemeral() -> Keypair {
    Keypair::generate_ed25519()
}

/// The name of a peer as trackers and the core know it.
///
/// # Errors
/// When the PeerId is of an exotic kind whose text is not a node identity.
pub fn node_id(peer: &PeerId) -> Result<NodeId, ParseNodeIdError> {
    peer.to_base58().parse()
}

/// The PeerId that a node is named after; `None` when it is none.
pub fn peer_id(node: &NodeId) -> Option<PeerId> {
    node.as_str().parse().ok()
}

fn load(path: &Path, file: File) -> Result<Keypair, IdentityError> {
    let io = |source| IdentityError::Io { action: "read", path: path.to_owned(), source };
    let mode = file.metadata().map_err(io)?.permissions().mode() & 0o777;
    if mode & OTHERS != 0 {
        return Err(IdentityError::Exposed { path: path.to_owned(), mode });
    }
    // With room for all from the first: what grows moves, and leaves what it was behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(2 * MAX_KEY_FILE).unwrap_or_default()));
    file.take(MAX_KEY_FILE).read_to_end(&mut bytes).map_err(io)?;
    read(&bytes).ok_or_else(|| IdentityError::Malformed { path: path.to_owned() })
}

/// The identity that a key file holds.
pub(crate) fn read(bytes: &[u8]) -> Option<Keypair> {
    Keypair::from_protobuf_encoding(bytes).ok()
}

/// What the name of an identity begins with while it is being written; the number of the process follows.
fn beside(name: &OsStr) -> OsString {
    let mut beside = OsString::from(".");
    beside.push(name);
    beside.push(".");
    beside
}

/// The directory that a file is in.
fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}

/// Removes identities that processes were writing when they were killed: secrets that nobody uses.
fn sweep(path: &Path) {
    let (Some(name), Ok(entries)) = (path.file_name(), fs::read_dir(directory(path))) else { return };
    let beside = beside(name);
    for entry in entries.flatten() {
        let name = entry.file_name();
        let number = name.as_bytes().strip_prefix(beside.as_bytes());
        if number.is_some_and(|number| !number.is_empty() && number.iter().all(u8::is_ascii_digit)) {
            // It stays until the next start when it cannot be removed.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Writes the key beside its place and then moves it there.
fn create(path: &Path, keypair: &Keypair) -> io::Result<()> {
    let bytes = Zeroizing::new(keypair.to_protobuf_encoding().map_err(io::Error::other)?);
    let directory = directory(path);
    fs::create_dir_all(directory)?;
    let name = path.file_name().ok_or(io::ErrorKind::IsADirectory)?;
    let mut temporary = beside(name);
    temporary.push(std::process::id().to_string());
    let temporary = directory.join(temporary);
    let written = write(&temporary, &bytes).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // Only tidiness: the error that matters is the one above.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    File::open(directory)?.sync_all()
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // A file of this name is left over from a crash of a process with the same number.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_kept_and_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data/identity");
        let first = load_or_create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let second = load_or_create(&path).unwrap();
        assert_eq!(first.public(), second.public());
        let left: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[test]
    fn what_a_process_was_writing_when_it_was_killed_is_swept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("identity");
        let names = || {
            let entries = fs::read_dir(directory.path()).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        for kept in [".identity.old", ".identity.", ".other.12"] {
            fs::write(directory.path().join(kept), "somebody else's").unwrap();
        }
        // The first start makes an identity, the second finds it.
        let mut keys = Vec::new();
        for _ in 0..2 {
            fs::write(directory.path().join(".identity.4194305"), "half").unwrap();
            keys.push(load_or_create(&path).unwrap().public());
            assert_eq!(names(), [".identity.", ".identity.old", ".other.12", "identity"]);
        }
        assert_eq!(keys[0], keys[1]);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("identity");
        fs::write(&path, b"not a key").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let error = load_or_create(&path).unwrap_err();
        assert!(error.to_string().contains("is not an Ed25519 node identity"), "{error}");

        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = load_or_create(&path).unwrap_err();
        assert!(error.to_string().contains("mode 644"), "{error}");

        let error = load_or_create(directory.path()).unwrap_err();
        assert!(error.to_string().contains(&directory.path().display().to_string()), "{error}");
    }

    #[test]
    fn names_and_peer_ids_are_one() {
        let peer = ephemeral().public().to_peer_id();
        let node = node_id(&peer).unwrap();
        assert_eq!(peer_id(&node), Some(peer));
        assert_eq!(peer_id(&"notapeer".parse().unwrap()), None);
    }
}
