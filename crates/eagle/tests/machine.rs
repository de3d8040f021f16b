//! Commands that set up a machine: services, data directories, completions, manual pages.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::{fs, os::unix::fs::MetadataExt, process::Output};

use common::{eagle, output, stderr};

fn run(arguments: &[&str]) -> Output {
    output(eagle().args(arguments))
}

fn succeed(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_unit_is_printed_or_written_and_never_replaces_another() {
    let directory = tempfile::tempdir().unwrap();
    let units = directory.path().to_str().unwrap();
    let printed = succeed(&["install-service", "--print", "--role", "standalone"]);
    assert!(printed.contains(&format!("ExecStart={} standalone", env!("CARGO_BIN_EXE_eagle"))), "{printed}");
    let install = ["install-service", "--role", "standalone", "--directory", units];
    assert!(succeed(&install).contains("systemctl enable --now eagle-standalone.service"));
    let unit = directory.path().join("eagle-standalone.service");
    assert_eq!(fs::read_to_string(&unit).unwrap(), printed);
    assert!(succeed(&install).contains("is there already"));
    fs::write(&unit, "[Unit]\n# ours\n").unwrap();
    let refused = run(&install);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("left as it is"), "{}", stderr(&refused));
    assert_eq!(fs::read_to_string(&unit).unwrap(), "[Unit]\n# ours\n");
    assert_eq!(run(&["install-service", "--print", "--user", "a b"]).status.code(), Some(64));
}

#[test]
fn a_data_directory_is_made_and_keeps_what_it_has() {
    let directory = tempfile::tempdir().unwrap();
    let me = fs::metadata(directory.path()).unwrap();
    let (user, group) = (me.uid().to_string(), me.gid().to_string());
    let data = directory.path().join("lib/proxy");
    let prepare = ["prepare-data", "--user", &user, "--group", &group, data.to_str().unwrap()];
    succeed(&prepare);
    assert_eq!(fs::metadata(&data).unwrap().mode() & 0o777, 0o700);
    fs::write(data.join("identity"), "kept").unwrap();
    assert!(succeed(&prepare).contains("already"));
    assert_eq!(fs::read_to_string(data.join("identity")).unwrap(), "kept");
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(&data, &link).unwrap();
    let refused = run(&["prepare-data", "--user", "1", "--group", "1", link.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("symbolic link"), "{}", stderr(&refused));
}

#[test]
fn every_command_is_completed_and_has_a_page() {
    let commands = ["tracker", "seeder", "proxy", "standalone", "configure", "install-service", "completions"];
    for shell in ["bash", "zsh", "fish"] {
        let script = succeed(&["completions", shell]);
        for command in commands {
            assert!(script.contains(command), "{shell} does not know {command}");
        }
    }
    let directory = tempfile::tempdir().unwrap();
    succeed(&["man", "--dir", directory.path().to_str().unwrap()]);
    for command in commands {
        let page = fs::read_to_string(directory.path().join(format!("eagle-{command}.1"))).unwrap();
        assert!(page.contains(".SH NAME") && page.contains(".SH OPTIONS"), "{page}");
    }
    assert!(succeed(&["man"]).contains(".TH eagle 1"));
}

/// What a container of a DaemonSet does once its work is done.
#[test]
fn a_command_that_stays_ends_when_asked() {
    let root = tempfile::tempdir().unwrap();
    let mut child = eagle()
        .args(["configure", "containerd", "--undo", "--stay", "--root"])
        .arg(root.path())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.as_mut().unwrap()), &mut line).unwrap();
    assert!(line.contains("nothing to undo"), "{line}");
    assert!(child.try_wait().unwrap().is_none(), "it did not stay");
    common::kill(child.id(), "TERM");
    // Before it listens for signals it ends by the signal itself, which is as good.
    child.wait().unwrap();
}
