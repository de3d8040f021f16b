//! `eagle configure` on the root of a system that a test has made.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Output,
};

use common::{eagle, output, stderr};

const RUNTIMES: [&str; 4] = ["docker", "containerd", "podman", "crio"];

fn configure(root: &Path, arguments: &[&str]) -> Output {
    output(eagle().arg("configure").args(arguments).arg("--root").arg(root))
}

fn succeed(root: &Path, arguments: &[&str]) -> String {
    let output = configure(root, arguments);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn fail(root: &Path, arguments: &[&str]) -> String {
    let output = configure(root, arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", stderr(&output));
    stderr(&output)
}

fn write(root: &Path, path: &str, content: impl AsRef<[u8]>) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn read(root: &Path, path: &str) -> String {
    fs::read_to_string(root.join(path)).unwrap()
}

/// Every file and directory with its mode and content.
fn tree(root: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let content = if metadata.is_dir() { Vec::new() } else { fs::read(&path).unwrap() };
            if metadata.is_dir() {
                directories.push(path.clone());
            }
            found.insert(path, (metadata.permissions().mode(), content));
        }
    }
    found
}

/// Files as an administrator may have left them, in odd but valid forms.
fn administered() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    write(
        root.path(),
        "etc/docker/daemon.json",
        "{\r\n\t\"debug\": true, \"registry-mirrors\": [\"https://other.example\"] }",
    );
    write(root.path(), "etc/containerd/config.toml", "version = 3\n# ours\nroot = '/data'   # keep\n");
    write(root.path(), "etc/containerd/certs.d/_default/hosts.toml", "# by hand\n[host.\"https://mirror.example\"]\n");
    write(root.path(), "etc/containers/registries.conf", "unqualified-search-registries = [\"docker.io\"]\n");
    fs::set_permissions(root.path().join("etc/docker/daemon.json"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::create_dir_all(root.path().join("var/lib")).unwrap();
    root
}

#[test]
fn undo_is_exact() {
    let empty = tempfile::tempdir().unwrap();
    fs::create_dir_all(empty.path().join("var/lib")).unwrap();
    fs::create_dir_all(empty.path().join("etc")).unwrap();
    for root in [empty, administered()] {
        let root = root.path();
        let before = tree(root);
        for runtime in RUNTIMES {
            succeed(root, &[runtime]);
            assert_ne!(tree(root), before, "{runtime}");
            succeed(root, &[runtime, "--undo"]);
            assert_eq!(tree(root), before, "{runtime}");
            assert!(succeed(root, &[runtime, "--undo"]).contains("nothing to undo"));
        }
        // All at once, some twice, and with other registries in between.
        for arguments in [
            &["docker"][..],
            &["containerd"],
            &["podman"],
            &["crio", "--registry", "quay.io"],
            &["docker", "--registry", "ghcr.io"],
        ] {
            succeed(root, arguments);
        }
        for runtime in RUNTIMES {
            succeed(root, &[runtime, "--undo"]);
        }
        assert_eq!(tree(root), before);
    }
}

#[test]
fn a_second_time_changes_nothing() {
    let root = administered();
    let root = root.path();
    for runtime in RUNTIMES {
        assert!(fail(root, &[runtime, "--check"]).contains("lacks"), "{runtime}");
        succeed(root, &[runtime]);
        let after = tree(root);
        let said = succeed(root, &[runtime]);
        assert!(said.contains("has it already") && !said.contains("now run"), "{runtime}: {said}");
        succeed(root, &[runtime, "--check"]);
        assert_eq!(tree(root), after, "{runtime}");
        succeed(root, &[runtime, "--undo"]);
    }
}

#[test]
fn what_is_written_is_what_runtimes_read() {
    let root = administered();
    let root = root.path();
    let said = succeed(root, &["docker"]);
    assert!(said.contains("now run: systemctl reload docker"), "{said}");
    let daemon: serde_json::Value = serde_json::from_str(&read(root, "etc/docker/daemon.json")).unwrap();
    assert_eq!(daemon["registry-mirrors"], serde_json::json!(["http://127.0.0.1:43002", "https://other.example"]));
    assert_eq!(daemon["debug"], true);
    assert_eq!(fs::metadata(root.join("etc/docker/daemon.json")).unwrap().permissions().mode() & 0o777, 0o600);

    let said = succeed(root, &["containerd"]);
    assert!(said.contains("now run: systemctl restart containerd"), "{said}");
    let config = read(root, "etc/containerd/config.toml");
    assert!(config.contains("# ours\nroot = '/data'   # keep\n"), "{config}");
    assert!(
        config
            .contains("[plugins.\"io.containerd.cri.v1.images\".registry]\nconfig_path = \"/etc/containerd/certs.d\""),
        "{config}"
    );
    let hosts = read(root, "etc/containerd/certs.d/_default/hosts.toml");
    assert!(
        hosts.starts_with("# by hand\n") && hosts.find("127.0.0.1:43002") < hosts.find("mirror.example"),
        "{hosts}"
    );

    let said = succeed(root, &["crio", "--registry", "ghcr.io", "--address", "[::1]:5000"]);
    assert!(said.contains("systemctl reload crio"), "{said}");
    let conf = read(root, "etc/containers/registries.conf.d/eagle.conf");
    assert!(conf.contains("location = \"[::1]:5000/ghcr.io\"") && !conf.contains("docker.io"), "{conf}");
}

#[test]
fn other_registries_take_the_place_of_the_earlier_ones() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    succeed(root, &["containerd", "--registry", "ghcr.io", "--registry", "host.example:5000"]);
    let certs = root.join("etc/containerd/certs.d");
    assert!(certs.join("ghcr.io/hosts.toml").exists() && certs.join("host.example:5000/hosts.toml").exists());
    succeed(root, &["containerd", "--address", "127.0.0.1:5000"]);
    assert!(!certs.join("ghcr.io").exists() && !certs.join("host.example:5000").exists());
    let hosts = read(root, "etc/containerd/certs.d/_default/hosts.toml");
    assert!(hosts.contains("127.0.0.1:5000") && !hosts.contains("43002"), "{hosts}");
    let note = {
        write(root, "etc/containerd/certs.d/quay.io/hosts.toml", "server = \"https://quay.io\"\n");
        succeed(root, &["containerd", "--address", "127.0.0.1:5000"])
    };
    assert!(note.contains("configure containerd --registry quay.io"), "{note}");
}

#[test]
fn files_changed_by_hand_are_kept_and_explained() {
    let root = administered();
    let root = root.path();
    succeed(root, &["docker"]);
    let by_hand = read(root, "etc/docker/daemon.json").replace("\"debug\": true", "\"debug\": false");
    write(root, "etc/docker/daemon.json", &by_hand);
    // Right as it is: nothing to explain.
    assert!(succeed(root, &["docker"]).contains("kept"));
    let said = fail(root, &["docker", "--undo"]);
    assert!(said.contains("kept") && said.contains("daemon.json.before") && said.contains("127.0.0.1:43002"), "{said}");
    assert_eq!(read(root, "etc/docker/daemon.json"), by_hand);
    write(root, "etc/docker/daemon.json", "{\"debug\": false}");
    let said = fail(root, &["docker"]);
    assert!(said.contains("kept; add by hand"), "{said}");
    assert_eq!(read(root, "etc/docker/daemon.json"), "{\"debug\": false}");
    // Back to what it was before Eagle: undone by hand.
    write(
        root,
        "etc/docker/daemon.json",
        "{\r\n\t\"debug\": true, \"registry-mirrors\": [\"https://other.example\"] }",
    );
    assert!(succeed(root, &["docker", "--undo"]).contains("is as it was"));
    assert!(!root.join("var/lib/eagle").exists());
}

#[test]
fn nothing_is_changed_when_a_part_cannot_be() {
    let root = administered();
    let root = root.path();
    write(
        root,
        "etc/containerd/config.toml",
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\nendpoint = [\"https://x\"]\n",
    );
    write(root, "etc/docker/daemon.json", "not json");
    write(root, "etc/containers/registries.conf", "[[registry]]\nlocation = \"docker.io\"\nblocked = true\n");
    let before = tree(root);
    assert!(fail(root, &["containerd"]).contains("registry.mirrors"));
    assert!(fail(root, &["docker"]).contains("not a JSON object"));
    assert!(fail(root, &["podman"]).contains("registries.conf: has an entry for docker.io"));
    assert_eq!(tree(root), before);
    succeed(root, &["podman", "--registry", "quay.io"]);
}

#[test]
fn links_do_not_lead_out_of_the_root() {
    let root = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("daemon.json"), "{}").unwrap();
    fs::create_dir_all(root.path().join("etc")).unwrap();
    symlink(outside.path(), root.path().join("etc/docker")).unwrap();
    let said = fail(root.path(), &["docker"]);
    assert!(said.contains("symbolic link"), "{said}");
    assert_eq!(fs::read_to_string(outside.path().join("daemon.json")).unwrap(), "{}");
}

#[test]
fn bad_usage_is_64() {
    let root = tempfile::tempdir().unwrap();
    for arguments in [
        &["lxc"][..],
        &[],
        &["docker", "--check", "--undo"],
        &["docker", "--undo", "--registry", "a.example"],
        &["docker", "--registry", "a/b"],
        &["docker", "--registry", "../../etc"],
        &["docker", "--address", "127.0.0.1:0"],
        &["docker", "--address", "a\"]\nb"],
    ] {
        assert_eq!(configure(root.path(), arguments).status.code(), Some(64), "{arguments:?}");
    }
    assert!(fail(&root.path().join("none"), &["docker"]).contains("--root"));
}

/// In a root without systemctl the command cannot run, and for a user that is not root not even the root can be entered.
/// Either way a second try must not take the files that are right by now for a runtime that has read them.
#[test]
fn a_runtime_that_was_not_told_is_told_at_the_next_try() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    write(root, "etc/containerd/config.toml", "version = 2\n");
    fs::create_dir_all(root.join("var/lib")).unwrap();
    let before = tree(root);
    for _ in 0..2 {
        let problem = fail(root, &["containerd", "--activate"]);
        assert!(problem.contains("systemctl restart containerd"), "{problem}");
    }
    assert!(read(root, "etc/containerd/config.toml").contains("config_path"));
    // The file that was changed needs a restart; hosts.toml does not.
    assert!(!succeed(root, &["containerd"]).contains("now run"), "nothing has changed since");
    succeed(root, &["containerd", "--undo"]);
    assert_eq!(tree(root), before);
    assert!(succeed(root, &["docker"]).contains("now run: systemctl reload docker"));
    assert!(succeed(root, &["docker", "--undo"]).contains("now run: systemctl reload docker"));
    assert!(!succeed(root, &["docker", "--undo"]).contains("now run"));
}

/// The same of undoing: what is left to do is not forgotten with the files that are back.
#[test]
fn a_runtime_that_was_not_told_of_an_undo_is_told_at_the_next_try() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    write(root, "etc/docker/daemon.json", "{}");
    fs::create_dir_all(root.join("var/lib")).unwrap();
    let before = tree(root);
    succeed(root, &["docker"]);
    for _ in 0..2 {
        let problem = fail(root, &["docker", "--undo", "--activate"]);
        assert!(problem.contains("systemctl reload docker"), "{problem}");
        assert_eq!(read(root, "etc/docker/daemon.json"), "{}");
    }
    assert!(succeed(root, &["docker", "--undo"]).contains("now run: systemctl reload docker"));
    assert_eq!(tree(root), before);
    assert!(succeed(root, &["docker", "--undo", "--activate"]).contains("nothing to undo"));
}
