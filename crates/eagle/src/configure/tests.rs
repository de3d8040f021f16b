//! Runs that are killed before each of their changes, and what the next one makes of that.

use std::{
    cell::Cell,
    collections::BTreeMap,
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    rc::Rc,
};

use anyhow::Result;
use clap::Parser as _;

use super::{carry_out, root::Root};
use crate::cli::{Cli, Command, ConfigureArgs};

/// How many changes a process may still make. The one after that fails, and so does every later one: the process is dead.
#[derive(Debug, Clone, Default)]
pub(super) struct End {
    limit: Option<usize>,
    passed: Rc<Cell<usize>>,
}

impl End {
    pub(super) fn pass(&self) -> io::Result<()> {
        if self.limit.is_some_and(|limit| self.passed.get() >= limit) {
            return Err(io::Error::other("killed"));
        }
        self.passed.set(self.passed.get() + 1);
        Ok(())
    }
}

/// How each runtime is configured, and the file that it reads only when it is told to.
const RUNTIMES: [(&[&str], &str); 3] = [
    (&["docker", "--registry", "docker.io", "--registry", "ghcr.io"], "etc/docker/daemon.json"),
    (&["containerd", "--registry", "docker.io", "--registry", "ghcr.io"], "etc/containerd/config.toml"),
    (&["crio", "--registry", "quay.io"], "etc/containers/registries.conf.d/eagle.conf"),
];

/// A system with a runtime that is running.
struct System {
    directory: tempfile::TempDir,
    /// The file that the runtime reads only when it is told to.
    file: &'static str,
    /// What it was when the runtime read it.
    loaded: Option<Vec<u8>>,
}

impl System {
    /// Some of the files are there, some are not, nor are their directories.
    fn new(file: &'static str) -> Self {
        // In memory where that is possible: every write waits for the disk, and there are thousands.
        let memory = Path::new("/dev/shm");
        let directory = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        let write = |path: &str, text: &str| {
            let path = directory.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("etc/docker/daemon.json", "{\"debug\": true}");
        write("etc/containerd/config.toml", "version = 2\n");
        write("etc/containerd/certs.d/docker.io/hosts.toml", "server = \"https://registry-1.docker.io\"\n");
        fs::create_dir_all(directory.path().join("var/lib")).unwrap();
        let loaded = fs::read(directory.path().join(file)).ok();
        Self { directory, file, loaded }
    }

    /// How many changes it makes, when it may make this many.
    fn run(&mut self, words: &[&str], limit: Option<usize>) -> (usize, Result<()>) {
        let mut root = Root::new(self.directory.path()).unwrap();
        root.end.limit = limit;
        let end = root.end.clone();
        let tell = |root: Root, _: &str| {
            // systemctl may fail, or this process may be killed while it waits for systemctl.
            end.pass()?;
            self.loaded = fs::read(self.directory.path().join(self.file)).ok();
            end.pass()?;
            Ok(root)
        };
        let outcome = carry_out(&arguments(words), root, tell);
        (end.passed.get(), outcome)
    }

    fn succeed(&mut self, words: &[&str]) -> usize {
        let (changes, outcome) = self.run(words, None);
        outcome.unwrap();
        changes
    }

    fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    /// Everything below a directory with its mode and content.
    fn tree(&self, below: &str) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
        let (mut found, mut directories) = (BTreeMap::new(), vec![self.path(below)]);
        while let Some(directory) = directories.pop() {
            for path in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
                let mode = fs::symlink_metadata(&path).unwrap().permissions().mode();
                let content = fs::read(&path).unwrap_or_default();
                found.insert(path.strip_prefix(self.directory.path()).unwrap().to_owned(), (mode, content));
                if path.is_dir() {
                    directories.push(path);
                }
            }
        }
        found
    }

    /// The runtime goes by what the file says now.
    fn assert_loaded(&self, context: &str) {
        assert_eq!(self.loaded, fs::read(self.path(self.file)).ok(), "{context}");
    }

    /// Undoes it, and looks whether everything is as it was.
    fn assert_undone(&mut self, runtime: &str, context: &str) {
        self.succeed(&[runtime, "--undo"]);
        assert_eq!(self.tree(""), Self::new(self.file).tree(""), "{context}");
        // With a restart that came to nothing containerd has not read the file, or it does no harm: the directory that it names is empty.
        if runtime != "containerd" {
            self.assert_loaded(context);
        }
    }
}

fn arguments(words: &[&str]) -> ConfigureArgs {
    let cli = Cli::try_parse_from([&["eagle", "configure", "--activate"], words].concat()).unwrap();
    let Command::Configure(arguments) = cli.command else { panic!("another command") };
    arguments
}

/// Runs each of the commands but the last to its end, and the last up to each of its changes; then `next`, with what was left.
fn killed(file: &'static str, commands: &[&[&str]], next: impl Fn(&mut System, &str)) {
    let (last, first) = commands.split_last().unwrap();
    let prepared = || {
        let mut system = System::new(file);
        for command in first {
            system.succeed(command);
        }
        system
    };
    let changes = prepared().succeed(last);
    assert!(changes > 10, "{last:?} makes {changes} changes");
    for limit in 0..changes {
        let mut system = prepared();
        let (made, _) = system.run(last, Some(limit));
        assert_eq!(made, limit, "{last:?}");
        next(&mut system, &format!("{commands:?}, killed after {limit} of {changes} changes"));
    }
}

#[test]
fn an_apply_that_was_killed_can_be_done_again_or_undone() {
    for (configure, file) in RUNTIMES {
        let mut whole = System::new(file);
        whole.succeed(configure);
        killed(file, &[configure], |system, context| {
            system.succeed(configure);
            assert_eq!(system.tree("etc"), whole.tree("etc"), "{context}");
            system.assert_loaded(context);
            system.assert_undone(configure[0], context);
        });
        killed(file, &[configure], |system, context| system.assert_undone(configure[0], context));
    }
}

#[test]
fn an_undo_that_was_killed_can_be_done_again_or_taken_back() {
    for (configure, file) in RUNTIMES {
        let undo = [configure[0], "--undo"];
        let mut whole = System::new(file);
        whole.succeed(configure);
        killed(file, &[configure, &undo], |system, context| system.assert_undone(configure[0], context));
        killed(file, &[configure, &undo], |system, context| {
            system.succeed(configure);
            assert_eq!(system.tree("etc"), whole.tree("etc"), "{context}");
            system.assert_loaded(context);
            system.assert_undone(configure[0], context);
        });
    }
}

/// The files are neither as they were nor as the record says that they were to become.
#[test]
fn a_change_of_the_address_that_was_killed_is_nobody_elses() {
    for (configure, file) in RUNTIMES {
        let moved = [configure, &["--address", "127.0.0.1:5000"]].concat();
        killed(file, &[configure, &moved], |system, context| {
            system.succeed(&moved);
            system.assert_loaded(context);
            system.assert_undone(configure[0], context);
        });
        killed(file, &[configure, &moved], |system, context| system.assert_undone(configure[0], context));
    }
}

#[test]
fn a_runtime_is_told_of_files_that_are_back_although_another_is_kept() {
    let (configure, file) = RUNTIMES[0];
    let mut system = System::new(file);
    system.succeed(configure);
    let hosts = system.path("etc/docker/certs.d/ghcr.io/hosts.toml");
    let written = fs::read_to_string(&hosts).unwrap();
    fs::write(&hosts, format!("{written}# ours\n")).unwrap();
    let undo = ["docker", "--undo"];
    for _ in 0..2 {
        let error = system.run(&undo, None).1.unwrap_err().to_string();
        assert!(error.contains("ghcr.io/hosts.toml: somebody has changed it"), "{error}");
        system.assert_loaded("after an undo that kept a file");
    }
    fs::write(&hosts, written).unwrap();
    system.assert_undone("docker", "once the file is as Eagle wrote it");
}

/// Docker Hub's mirror is in a file of its own: docker has to be told that it is gone.
#[test]
fn a_runtime_is_told_of_what_is_not_wanted_any_more() {
    let (configure, file) = RUNTIMES[0];
    let mut system = System::new(file);
    system.succeed(configure);
    system.succeed(&["docker", "--registry", "ghcr.io"]);
    assert!(!fs::read_to_string(system.path(file)).unwrap().contains("43002"));
    system.assert_loaded("with other registries");
    system.assert_undone("docker", "with other registries");
}

#[test]
fn a_copy_that_is_gone_does_not_keep_the_other_files() {
    let (configure, file) = RUNTIMES[1];
    let mut system = System::new(file);
    system.succeed(configure);
    fs::remove_file(system.path("var/lib/eagle/configure/containerd/etc_containerd_config.toml.before")).unwrap();
    let error = system.run(&["containerd", "--undo"], None).1.unwrap_err().to_string();
    assert!(error.contains("config.toml.before is gone, so it is kept"), "{error}");
    let hosts = fs::read_to_string(system.path("etc/containerd/certs.d/docker.io/hosts.toml")).unwrap();
    assert!(!hosts.contains("43002") && !system.path("etc/containerd/certs.d/ghcr.io").exists(), "{hosts}");
}
