//! The file with the cluster keys, followed while the process runs.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use eagle_cluster::{ClusterKey, ClusterKeys, ParseKeysError};
use tokio::{sync::watch, task::spawn_blocking, time::sleep};
use zeroize::Zeroizing;

use crate::stamp::Stamp;

/// How often the file is looked at: a change is known within about a second, and a look is one system call.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Longest file that is read, bytes: two keys with comments, and then some.
const MAX_FILE: u64 = 4096;
/// Permissions that let everybody on the machine be a member.
const OTHERS: u32 = 0o007;

/// Why a file holds no cluster keys. Errors repeat nothing of its content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub(crate) struct KeyFileError {
    path: PathBuf,
    problem: String,
}

/// A file that was read, and how it looked then.
#[derive(Debug)]
pub(super) struct KeyFile {
    path: PathBuf,
    stamp: Option<Stamp>,
}

/// What a look at the file found.
enum Look {
    /// What was there before.
    Same,
    /// Something else.
    Changed(ClusterKeys),
    /// Nothing that can be used.
    Bad(KeyFileError),
}

impl KeyFile {
    /// Reads the file.
    ///
    /// # Errors
    /// When it cannot be read, is open to other users, or holds no keys.
    pub(super) fn open(path: &Path) -> Result<(ClusterKeys, Self), KeyFileError> {
        let (keys, stamp) = read(path)?;
        Ok((keys, Self { path: path.to_owned(), stamp: Some(stamp) }))
    }

    /// Looks at the file for ever, and passes its keys on when they have changed. Keys that cannot be read leave those
    /// before in place, which is said once for each change of the file.
    pub(super) async fn follow(mut self, keys: watch::Sender<ClusterKeys>) {
        loop {
            sleep(LOOK_EVERY).await;
            // Comes back only when nothing went wrong in there, and nothing does.
            let Ok((file, look)) = spawn_blocking(move || self.look()).await else { return };
            self = file;
            match look {
                Look::Same => {}
                Look::Changed(found) => {
                    if *keys.borrow() != found {
                        let accepted: Vec<String> = found.accepted().iter().map(ClusterKey::id).collect();
                        tracing::info!(key = found.own().id(), ?accepted, "the cluster keys have changed");
                        keys.send_replace(found);
                    }
                }
                Look::Bad(error) => {
                    let key = keys.borrow().own().id();
                    tracing::warn!(%error, key, "the cluster key file cannot be used; the keys it held still count");
                }
            }
        }
    }

    fn look(mut self) -> (Self, Look) {
        let now = fs::metadata(&self.path).ok().map(|metadata| Stamp::of(&metadata));
        if now == self.stamp {
            return (self, Look::Same);
        }
        self.stamp = now;
        let look = match read(&self.path) {
            Ok((keys, stamp)) => {
                // The file may have changed again since the look.
                self.stamp = Some(stamp);
                Look::Changed(keys)
            }
            Err(error) => Look::Bad(error),
        };
        (self, look)
    }
}

fn read(path: &Path) -> Result<(ClusterKeys, Stamp), KeyFileError> {
    let error = |problem: String| KeyFileError { path: path.to_owned(), problem };
    let io = |source: io::Error| error(source.to_string());
    let file = File::open(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    if !metadata.is_file() {
        return Err(error("is not a file".to_owned()));
    }
    let mode = metadata.mode() & 0o777;
    if mode & OTHERS != 0 {
        return Err(error(format!("is open to every user of this machine (mode {mode:o}); run chmod 600 on it")));
    }
    if metadata.len() > MAX_FILE {
        return Err(error(ParseKeysError::TooLong.to_string()));
    }
    // As long as it can get, so that nothing of it is left behind where it was before it grew.
    let mut text = Zeroizing::new(String::with_capacity(usize::try_from(MAX_FILE).unwrap_or_default() + 1));
    file.take(MAX_FILE).read_to_string(&mut text).map_err(io)?;
    let keys = text.parse().map_err(|problem: ParseKeysError| error(problem.to_string()))?;
    Ok((keys, Stamp::of(&metadata)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use tokio::time::timeout;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn write(path: &Path, text: &str) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn key() -> ClusterKey {
        ClusterKey::generate().unwrap()
    }

    fn line(key: &ClusterKey) -> String {
        format!("{}\n", *key.expose())
    }

    #[test]
    fn what_is_wrong_is_said_without_the_key() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let problem = || KeyFile::open(&path).unwrap_err().to_string();
        assert!(problem().contains("No such file"), "{}", problem());
        let text = line(&key());
        write(&path, &text);
        for (mode, open) in [(0o644, true), (0o602, true), (0o640, false), (0o400, false)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(KeyFile::open(&path).is_err(), open, "{mode:o}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(problem().contains("mode 644") && problem().contains("chmod 600"), "{}", problem());
        for (text, said) in [
            ("", "there is no cluster key in it"),
            ("hello\n", "line 1 is no cluster key"),
            (&text[..20], "line 1 is no cluster key"),
            (&text.repeat(3), "the two cluster keys in it are the same"),
            (&"#".repeat(5000), "too long"),
        ] {
            write(&path, text);
            let problem = problem();
            assert!(problem.starts_with(&path.display().to_string()) && problem.contains(said), "{problem}");
            assert!(!problem.contains(&line(&key())[..10]), "{problem}");
        }
        assert!(KeyFile::open(directory.path()).unwrap_err().to_string().contains("is not a file"));
    }

    #[tokio::test]
    async fn changes_are_followed_and_what_makes_no_sense_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        // As Kubernetes mounts a Secret: the name is a link through a directory that is replaced as a whole.
        let (first, second) = (key(), key());
        for (version, text) in [("1", line(&first)), ("2", line(&second) + &line(&first)), ("3", "oops".to_owned())] {
            fs::create_dir(directory.path().join(version)).unwrap();
            write(&directory.path().join(version).join("key"), &text);
        }
        let turn_to = |version: &str| {
            let next = directory.path().join("next");
            symlink(version, &next).unwrap();
            fs::rename(&next, directory.path().join("data")).unwrap();
        };
        turn_to("1");
        let path = directory.path().join("key");
        symlink("data/key", &path).unwrap();
        let (keys, file) = KeyFile::open(&path).unwrap();
        assert_eq!(keys.accepted(), std::slice::from_ref(&first));
        let (sender, mut receiver) = watch::channel(keys);
        let follower = tokio::spawn(file.follow(sender));
        turn_to("2");
        let both = [second.clone(), first.clone()];
        timeout(PATIENCE, receiver.wait_for(|keys| keys.accepted() == both)).await.unwrap().unwrap();
        turn_to("3");
        sleep(3 * LOOK_EVERY).await;
        assert_eq!(receiver.borrow().accepted(), both);
        // Gone for a while, then right again.
        fs::remove_file(&path).unwrap();
        sleep(2 * LOOK_EVERY).await;
        assert_eq!(receiver.borrow().accepted(), both);
        write(&path, &line(&second));
        timeout(PATIENCE, receiver.wait_for(|keys| keys.accepted() == [second.clone()])).await.unwrap().unwrap();
        follower.abort();
    }
}
