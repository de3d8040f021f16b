//! `eagle doctor` beside real roles: what it finds well, and what it says when somebody else is not what he should be.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    path::{Path, PathBuf},
    thread,
};

use common::{Role, eagle, output, stderr};
use eagle_registry::{EmbeddedRegistry, embedded::EmbeddedConfig};
use serde_json::Value;
use tempfile::TempDir;

const KEY: &str = "RWFnbGUncyB0ZXN0cyBhcmUgbWVtYmVycyBvZiBvbmU=";
const OTHER_KEY: &str = "QW5vdGhlciBjbHVzdGVyIGhhcyBhbm90aGVyIGtleS4=";
const ANY: &str = "127.0.0.1:0";

/// A directory for the files of a test, and a registry that is there as long as the test.
struct Machine {
    directory: TempDir,
    registry: String,
    _runtime: tokio::runtime::Runtime,
    _origin: EmbeddedRegistry,
}

impl Machine {
    fn new() -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let listen = ([127, 0, 0, 1], 0).into();
        let origin = runtime.block_on(EmbeddedRegistry::start(EmbeddedConfig::new(listen, Vec::new()))).unwrap();
        let registry = origin.local_addr().to_string();
        Self { directory: tempfile::tempdir().unwrap(), registry, _runtime: runtime, _origin: origin }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A configuration with this section, with a cluster key unless it is empty.
    fn config(&self, name: &str, key: &str, section: &str) -> PathBuf {
        let cluster = if key.is_empty() { String::new() } else { format!("cluster: {{key: \"{key}\"}}\n") };
        let registries = format!("registries: [{{name: \"{0}\", url: \"http://{0}\"}}]\n", self.registry);
        let file = self.path().join(format!("{name}.yaml"));
        fs::write(&file, format!("{cluster}{registries}{section}")).unwrap();
        file
    }

    /// What a seeder or a proxy has on any ports, but for those given.
    fn node(&self, name: &str, listen: &str, admin: &str) -> String {
        let data = self.path().join(name).display().to_string();
        format!(
            "listen: \"{listen}\", admin: \"{admin}\", p2p_listen: \"{ANY}\", data_listen: \"{ANY}\", data_dir: {data}, min_free: 1"
        )
    }

    fn start(&self, role: &str, section: &str) -> (Role, Value) {
        let file = self.config(role, KEY, section);
        let mut started = Role::start(eagle().arg(role).arg("--config").arg(file));
        let ready = started.ready();
        (started, ready)
    }

    fn doctor(&self, role: &str, config: &Path) -> Said {
        let mut command = eagle();
        command.args(["doctor", "--json", "--role", role, "--root"]).arg(self.path()).arg("--config").arg(config);
        let output = output(&mut command);
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", stderr(&output)));
        assert_eq!(output.status.code(), Some(i32::from(answer["problems"] != 0)), "{answer}");
        Said(answer)
    }
}

/// What the doctor said.
struct Said(Value);

impl Said {
    /// Level and advice of the finding of a check that has this text.
    fn of(&self, check: &str, text: &str) -> (&str, &str) {
        let findings = self.0["findings"].as_array().unwrap();
        let found = findings
            .iter()
            .find(|finding| finding["check"] == check && finding["message"].as_str().unwrap().contains(text))
            .unwrap_or_else(|| panic!("no finding of {check} with {text:?}: {:#}", self.0));
        (found["level"].as_str().unwrap(), found["advice"].as_str().unwrap_or_default())
    }

    fn checks(&self) -> Vec<&str> {
        self.0["findings"].as_array().unwrap().iter().map(|finding| finding["check"].as_str().unwrap()).collect()
    }
}

fn address(ready: &Value, key: &str) -> String {
    ready[key].as_str().unwrap().to_owned()
}

#[test]
fn a_whole_cluster_is_well_until_its_nodes_are_gone() {
    let machine = Machine::new();
    let (_tracker, ready) = machine.start("tracker", &format!("tracker: {{listen: \"{ANY}\", admin: \"{ANY}\"}}\n"));
    let tracker = address(&ready, "listen");
    let known = format!("trackers: [\"http://{tracker}\"]");
    let section = format!("seeder: {{{}, {known}}}\n", machine.node("seeder", ANY, ANY));
    let (mut seeder, ready) = machine.start("seeder", &section);
    let known = format!("{known}, seeders: [\"http://{}\"]", address(&ready, "listen"));
    let section = format!("proxy: {{{}, {known}}}\n", machine.node("proxy", ANY, ANY));
    let (mut proxy, ready) = machine.start("proxy", &section);

    let listen = address(&ready, "listen");
    let mut configure = eagle();
    configure.args(["configure", "podman", "--address", &listen, "--root"]).arg(machine.path());
    let configured = output(&mut configure);
    assert!(configured.status.success(), "{}", stderr(&configured));
    // As it would be on a machine whose ports are fixed.
    let section = format!("proxy: {{{}, {known}}}\n", machine.node("proxy", &listen, &address(&ready, "admin")));
    let config = machine.config("doctor", KEY, &section);
    let well = machine.doctor("proxy", &config);
    for (check, text) in [
        ("configuration", "makes sense"),
        ("ports", "the proxy runs"),
        ("tracker", "knows 2 nodes"),
        ("peers", "2 of 2 tried accept connections"),
        ("seeder", "answers"),
        ("registry", &machine.registry),
        ("clock", "agrees with 3 others"),
        ("runtime", "as Eagle wrote it"),
    ] {
        assert_eq!(well.of(check, text), ("fine", ""), "{check}");
    }
    assert_eq!((well.checks().len(), &well.0["problems"]), (9, &0.into()), "{:#}", well.0);
    // A test may run on the layer of a container, which is said of it.
    assert_ne!(well.of("disk", "").0, "problem");
    let page = output(eagle().args(["doctor", "--root"]).arg(machine.path()).arg("--config").arg(&config));
    assert!(String::from_utf8_lossy(&page.stdout).ends_with("\nNothing is wrong.\n"));

    // As a node that is off, and then as a firewall does it.
    proxy.signal("KILL");
    proxy.end(std::time::Duration::from_secs(5));
    let config = machine.config(
        "elsewhere",
        KEY,
        &format!("seeder: {{{}, trackers: [\"http://{tracker}\"]}}\n", machine.node("new", ANY, ANY)),
    );
    let (level, advice) = {
        let said = machine.doctor("seeder", &config);
        let (level, advice) = said.of("peers", "1 of 2 tried do not accept connections");
        (level.to_owned(), advice.to_owned())
    };
    assert!(level == "note" && advice.contains("firewall") && advice.contains("advertise"), "{level}: {advice}");
    seeder.signal("KILL");
    seeder.end(std::time::Duration::from_secs(5));
    assert_eq!(machine.doctor("seeder", &config).of("peers", "2 of 2 tried do not accept connections").0, "problem");
}

#[test]
fn who_has_no_key_or_another_is_told_of_it() {
    let machine = Machine::new();
    let (_tracker, ready) = machine.start("tracker", &format!("tracker: {{listen: \"{ANY}\", admin: \"{ANY}\"}}\n"));
    let tracker = address(&ready, "listen");
    let section = format!("seeder: {{{}, trackers: [\"http://{tracker}\"]}}\n", machine.node("seeder", ANY, ANY));
    let (_seeder, ready) = machine.start("seeder", &section);
    let seeder = address(&ready, "listen");
    let node = machine.node("proxy", ANY, ANY);
    let section = format!("proxy: {{{node}, trackers: [\"http://{tracker}\"], seeders: [\"http://{seeder}\"]}}\n");
    let strangers = machine.doctor("proxy", &machine.config("stranger", "", &section));
    let others = machine.doctor("proxy", &machine.config("other", OTHER_KEY, &section));
    for check in ["tracker", "seeder"] {
        let (level, advice) = strangers.of(check, "answered 403");
        assert!(level == "problem" && advice.contains("cluster.key_file"), "{check}: {advice}");
        let (level, advice) = others.of(check, "cannot be reached");
        assert!(level == "problem" && advice.contains("the same cluster key"), "{check}: {advice}");
    }
    assert!(!others.0.to_string().contains(OTHER_KEY));
}

/// Answers every request with an empty JSON object, until the process ends.
fn something_else() -> String {
    let listener = TcpListener::bind(ANY).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = [0; 4096];
            // Whoever asks has gone away or is answered.
            let _ = stream.read(&mut head);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}");
        }
    });
    address
}

#[test]
fn another_service_behind_a_url_is_told_from_the_right_one() {
    let machine = Machine::new();
    let wrong = &machine.registry;
    let node = machine.node("proxy", ANY, ANY);
    let section = |url: &str| format!("proxy: {{{node}, trackers: [\"http://{url}\"], seeders: [\"http://{url}\"]}}\n");
    let said = machine.doctor("proxy", &machine.config("wrong", "", &section(wrong)));
    for check in ["tracker", "seeder"] {
        let (level, advice) = said.of(check, "answered 404");
        assert!(level == "problem" && advice.contains(&format!("{check}.listen")), "{check}: {advice}");
    }
    let other = something_else();
    let said = machine.doctor("proxy", &machine.config("other", "", &section(&other)));
    let (level, advice) = said.of("tracker", "something else than a tracker");
    assert!(level == "problem" && advice.contains("tracker.listen"), "{advice}");
}

#[test]
fn a_registry_that_is_none_is_told_of() {
    let mut machine = Machine::new();
    let (_tracker, ready) = machine.start("tracker", &format!("tracker: {{listen: \"{ANY}\", admin: \"{ANY}\"}}\n"));
    // Its admin address knows no /v2/.
    machine.registry = address(&ready, "admin");
    let section = format!("proxy: {{{}}}\n", machine.node("proxy", ANY, ANY));
    let said = machine.doctor("proxy", &machine.config("registry", "", &section));
    let (level, advice) = said.of("registry", "not what a registry answers");
    assert!(level == "problem" && advice.contains("without /v2"), "{advice}");
}

#[test]
fn each_role_is_looked_at_for_what_it_has() {
    let machine = Machine::new();
    let section = format!(
        "tracker: {{listen: \"{ANY}\", admin: \"{ANY}\"}}\nseeder: {{{}}}\nproxy: {{{}}}\n",
        machine.node("seeder", ANY, ANY),
        machine.node("proxy", ANY, ANY)
    );
    let config = machine.config("all", KEY, &section);
    let seeder = machine.doctor("seeder", &config);
    assert_eq!(seeder.of("ports", "the seeder does not run, and its ports are free").0, "fine");
    assert_ne!(seeder.of("disk", &machine.path().join("seeder").display().to_string()).0, "problem");
    assert_eq!(seeder.of("registry", "answers").0, "fine");
    assert!(!seeder.checks().contains(&"runtime"), "{:#}", seeder.0);
    let all = machine.doctor("standalone", &config);
    for role in ["tracker", "seeder", "proxy"] {
        assert_eq!(all.of("ports", &format!("the {role} does not run, and its ports are free")).0, "fine");
    }
    assert_eq!(all.checks().iter().filter(|check| **check == "disk").count(), 2, "{:#}", all.0);
    // In one process they have each other.
    assert!(!all.checks().iter().any(|check| ["tracker", "seeder"].contains(check)), "{:#}", all.0);
    assert_eq!(all.of("runtime", "no runtime of this machine").0, "note");
    assert_eq!(all.0["problems"], 0, "{:#}", all.0);
}
