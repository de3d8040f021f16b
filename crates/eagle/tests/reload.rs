//! Configuration that changes while a role runs, and what the log says of a pull, with a real process.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use common::{Role, eagle, get};
use eagle_core::Digest;
use eagle_registry::{
    EmbeddedRegistry,
    embedded::{Access, EmbeddedConfig, GeneratedImage, User},
};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);
/// At the first limit this takes three minutes, longer than anybody here waits.
const LAYER: u64 = 12 << 20;
const MISTAKE: &str = "the new configuration cannot be used; the one before stays in effect";

/// A registry with one image, for as long as the runtime lives.
fn registry(runtime: &tokio::runtime::Runtime) -> EmbeddedRegistry {
    let image = GeneratedImage {
        repository: "demo/app".parse().unwrap(),
        tag: "v1".parse().unwrap(),
        layers: vec![LAYER],
        seed: 7,
        config_size: 0,
    };
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    runtime.block_on(EmbeddedRegistry::start(EmbeddedConfig::new(listen, vec![image]))).unwrap()
}

fn write(file: &Path, registry: &str, rate: &str, more: &str) {
    let any = "127.0.0.1:0";
    let data = file.parent().unwrap().display();
    let text = format!(
        "registries: [{{name: \"{registry}\", url: \"http://{registry}\"}}]\n\
         tracker: {{listen: \"{any}\", admin: \"{any}\"}}\n\
         seeder: {{listen: \"{any}\", admin: \"{any}\", p2p_listen: \"{any}\", data_listen: \"{any}\", data_dir: {data}/seeder,\n\
         \x20 min_free: 1MiB, download_rate: unlimited, upload_rate: unlimited}}\n\
         proxy:\n  listen: \"{any}\"\n  admin: \"{any}\"\n  p2p_listen: \"{any}\"\n  data_listen: \"{any}\"\n\
         \x20 data_dir: {data}/proxy\n  min_free: 1MiB\n  default_registry: \"{registry}\"\n  download_rate: {rate}\n{more}"
    );
    // As an editor does it: whole or not at all.
    let new = file.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(&new, file).unwrap();
}

/// Status and body of a request with a name.
fn request(address: &str, path: &str, id: &str) -> (u16, Vec<u8>) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let accept = "application/vnd.oci.image.manifest.v1+json";
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nAccept: {accept}\r\nX-Request-Id: {id}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    assert!(head.to_ascii_lowercase().contains(&format!("x-request-id: {id}")), "{head}");
    (head.split(' ').nth(1).unwrap().parse().unwrap(), answer.split_off(end + 4))
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not come about");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn limits_rules_and_levels_change_during_a_pull_and_mistakes_change_nothing() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let origin = registry(&runtime);
    let name = origin.local_addr().to_string();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("eagle.yaml");
    write(&file, &name, "64KiB/s", "");
    // The log is looked at while it is written.
    let log_file = directory.path().join("log");
    let mut shell = Command::new("sh");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("EAGLE_")) {
        shell.env_remove(name);
    }
    shell.args(["-c", "exec \"$0\" \"$@\" 2>\"$LOG_FILE\""]).env("LOG_FILE", &log_file);
    let mut role = Role::start(shell.arg(env!("CARGO_BIN_EXE_eagle")).arg("standalone").arg("--config").arg(&file));
    let log = || std::fs::read_to_string(&log_file).unwrap();
    let ready = role.ready();
    let (proxy, admin) = (ready["listen"].as_str().unwrap().to_owned(), ready["admin"].as_str().unwrap().to_owned());
    let download = || {
        let (status, body) = get(&admin, "/limits");
        assert_eq!(status, 200, "{body}");
        serde_json::from_str::<Value>(&body).unwrap()["download"].as_str().unwrap().to_owned()
    };
    assert_eq!(download(), "64KiB/s");

    let (status, manifest) = request(&proxy, "/v2/demo/app/manifests/v1", "manifest-1");
    assert_eq!(status, 200);
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let layer = manifest["layers"][0]["digest"].as_str().unwrap().to_owned();
    let pull = thread::spawn({
        let (proxy, path) = (proxy.clone(), format!("/v2/demo/app/blobs/{layer}"));
        move || request(&proxy, &path, "layer-1")
    });
    let running = || {
        let (_, metrics) = get(&admin, "/metrics");
        metrics.lines().any(|line| line == "eagle_proxy_downloads_running 1")
    };
    until("the download", running);

    // A mistake first: it is told, and nothing changes, not even what is right in the same file.
    write(&file, &name, "fast", "log: {level: debug}\n");
    role.signal("HUP");
    until("the mistake to be told", || log().contains(MISTAKE));
    assert_eq!(download(), "64KiB/s");
    // A key that cannot change, beside one that can.
    write(&file, &name, "48KiB/s", "  cache_limit: 1GiB\n");
    role.signal("HUP");
    until("the first change", || download() == "48KiB/s");
    assert!(running(), "the pull was over before the limit changed");
    // Without a signal.
    write(&file, &name, "unlimited", "  cache_limit: 1GiB\nlog: {level: debug}\n");
    until("the second change", || download() == "unlimited");
    let (status, content) = pull.join().unwrap();
    assert_eq!((status, content.len() as u64), (200, LAYER));
    assert_eq!(Digest::of(&content).to_string(), layer);

    write(&file, &name, "unlimited", "  rules: [{registry: \"**\", action: refuse}]\n");
    role.signal("HUP");
    until("the rule", || request(&proxy, "/v2/demo/app/manifests/v1", "manifest-2").0 == 403);

    role.signal("TERM");
    let (code, _) = role.end(PATIENCE);
    let log = log();
    assert_eq!(code, Some(0), "{log}");
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let said = |message: &str| lines.iter().filter(|line| line["message"] == message).collect::<Vec<_>>();
    let wrong = said(MISTAKE);
    assert!(!wrong.is_empty(), "{log}");
    assert!(wrong.iter().all(|line| line["problem"].as_str().unwrap().contains("proxy.download_rate")), "{wrong:?}");
    let later = said("these keys of the configuration count from the next start on");
    assert_eq!(later[0]["keys"], "proxy.cache_limit");
    assert!(lines.iter().any(|line| line["level"] == "DEBUG"), "the level did not change");

    let pulls = said("pull");
    assert_eq!(pulls.len(), 1, "one line for each pull: {pulls:?}");
    let pull = pulls[0];
    assert_eq!((pull["request"].as_str(), pull["outcome"].as_str()), (Some("layer-1"), Some("complete")));
    assert_eq!((pull["digest"].as_str(), pull["bytes"].as_u64()), (Some(layer.as_str()), Some(LAYER)));
    assert_eq!(pull["from_seeders"].as_u64(), Some(LAYER), "{pull}");
    assert!(pull["seconds"].as_f64().unwrap() > 0.0);
    let fetched = said("fetched a blob");
    assert_eq!(
        (fetched.len(), &fetched[0]["request"]),
        (1, &pull["request"]),
        "the seeder knows the request by its name"
    );
    drop(origin);
}

#[test]
fn a_registry_gets_another_password_and_another_url() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let origin = |tag: &str| {
        let image = GeneratedImage {
            repository: "demo/app".parse().unwrap(),
            tag: tag.parse().unwrap(),
            layers: vec![1 << 10],
            seed: 7,
            config_size: 0,
        };
        let config = EmbeddedConfig::new(SocketAddr::from(([127, 0, 0, 1], 0)), vec![image]);
        let access = Access::Basic(vec![User::new("ann", "second-secret")]);
        runtime.block_on(EmbeddedRegistry::start(EmbeddedConfig { access, ..config })).unwrap()
    };
    let origins = [origin("v1"), origin("v2")];
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("eagle.yaml");
    let any = "127.0.0.1:0";
    // One name all the time; what is behind it changes.
    let write = |url: SocketAddr, password: &str| {
        let data = directory.path().display();
        let node = |role: &str| {
            format!(
                "listen: \"{any}\", admin: \"{any}\", p2p_listen: \"{any}\", data_listen: \"{any}\", data_dir: {data}/{role}, min_free: 1MiB"
            )
        };
        let text = format!(
            "registries: [{{name: registry.test, url: \"http://{url}\", username: ann, password: {password}}}]\n\
             tracker: {{listen: \"{any}\", admin: \"{any}\"}}\nseeder: {{{}}}\nproxy: {{{}, default_registry: registry.test}}\n",
            node("seeder"),
            node("proxy")
        );
        let new = file.with_extension("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, &file).unwrap();
    };
    write(origins[0].local_addr(), "first-secret");
    let mut role = Role::start(eagle().arg("standalone").arg("--config").arg(&file));
    let proxy = role.ready()["listen"].as_str().unwrap().to_owned();
    let ask = |tag: &str| request(&proxy, &format!("/v2/demo/app/manifests/{tag}"), "registries");
    assert_eq!(ask("v1").0, 401);

    write(origins[0].local_addr(), "second-secret");
    role.signal("HUP");
    until("the new password", || ask("v1").0 == 200);
    assert_eq!(ask("v2").0, 404);
    let (_, manifest) = ask("v1");
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let layer = manifest["layers"][0]["digest"].as_str().unwrap().to_owned();
    let (status, content) = request(&proxy, &format!("/v2/demo/app/blobs/{layer}"), "layer");
    assert_eq!((status, Digest::of(&content).to_string()), (200, layer));

    write(origins[1].local_addr(), "second-secret");
    role.signal("HUP");
    until("the new URL", || ask("v2").0 == 200);
    role.signal("TERM");
    let (code, log) = role.end(PATIENCE);
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("-secret") && !log.contains("count from the next start on"), "{log}");
}

/// A part of a cluster and its addresses.
struct Part {
    role: Role,
    listen: String,
    admin: String,
}

impl Part {
    fn start(role: &str, file: &Path) -> Self {
        let mut role = Role::start(eagle().arg(role).arg("--config").arg(file));
        let ready = role.ready();
        let address = |key: &str| ready[key].as_str().unwrap().to_owned();
        Self { listen: address("listen"), admin: address("admin"), role }
    }
}

#[test]
fn trackers_and_seeders_change_during_a_pull() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let origin = registry(&runtime);
    let name = origin.local_addr().to_string();
    let directory = tempfile::tempdir().unwrap();
    let any = "127.0.0.1:0";
    let node = |role: &str, rate: &str, more: &str| {
        let data = directory.path().join(role);
        format!(
            "registries: [{{name: \"{name}\", url: \"http://{name}\"}}]\n{}:\n  listen: \"{any}\"\n  admin: \"{any}\"\n\
             \x20 p2p_listen: \"{any}\"\n  data_listen: \"{any}\"\n  data_dir: {}\n  min_free: 1MiB\n\
             \x20 download_rate: {rate}\n  upload_rate: unlimited\n{more}",
            role.split('-').next().unwrap(),
            data.display()
        )
    };
    let put = |file: &str, text: &str| {
        let (new, file) = (directory.path().join("new"), directory.path().join(file).with_extension("yaml"));
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, &file).unwrap();
        file
    };
    let file = put("tracker", &format!("tracker: {{listen: \"{any}\", admin: \"{any}\"}}\n"));
    let trackers = [Part::start("tracker", &file), Part::start("tracker", &file)];
    let list = |key: &str, part: &Part| format!("  {key}: [\"http://{}\"]\n", part.listen);
    let seeder = |number: usize| {
        let text = node(&format!("seeder-{number}"), "unlimited", &list("trackers", &trackers[number]));
        Part::start("seeder", &put(&format!("seeder-{number}"), &text))
    };
    let seeders = [seeder(0), seeder(1)];
    let write = |rate: &str, number: usize| {
        let lists = list("trackers", &trackers[number]) + &list("seeders", &seeders[number]);
        put("proxy", &node("proxy", rate, &format!("{lists}  default_registry: \"{name}\"\n")))
    };
    let mut proxy = Part::start("proxy", &write("64KiB/s", 0));

    let (_, manifest) = request(&proxy.listen, "/v2/demo/app/manifests/v1", "before");
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let layer = manifest["layers"][0]["digest"].as_str().unwrap().to_owned();
    let pull = thread::spawn({
        let (proxy, path) = (proxy.listen.clone(), format!("/v2/demo/app/blobs/{layer}"));
        move || request(&proxy, &path, "layer-1")
    });
    let nodes = |number: usize| {
        let (_, body) = get(&trackers[number].admin, "/v1/peers");
        serde_json::from_str::<Value>(&body).unwrap()["peers"].as_array().unwrap().len()
    };
    until("the first tracker to know seeder and proxy", || nodes(0) == 2);
    let running = || get(&proxy.admin, "/metrics").1.lines().any(|line| line == "eagle_proxy_downloads_running 1");
    until("the download", running);
    write("64KiB/s", 1);
    until("the second tracker to know seeder and proxy", || nodes(1) == 2);
    assert!(running(), "the pull was over before the trackers changed");
    // A seeder takes other trackers too.
    put("seeder-0", &node("seeder-0", "unlimited", &list("trackers", &trackers[1])));
    until("the second tracker to know both seeders", || nodes(1) == 3);
    write("unlimited", 1);
    let (status, content) = pull.join().unwrap();
    assert_eq!((status, content.len() as u64), (200, LAYER));
    assert_eq!(Digest::of(&content).to_string(), layer);

    // The first ones may go now.
    let [first, second] = seeders;
    drop(first);
    assert_eq!(request(&proxy.listen, "/v2/demo/app/manifests/v1", "after").0, 200);
    let (_, metrics) = get(&second.admin, "/metrics");
    let asked = metrics.lines().filter(|line| line.starts_with("eagle_seeder_manifest_requests_total"));
    assert!(asked.into_iter().any(|line| !line.ends_with(" 0")), "the second seeder was not asked: {metrics}");
    proxy.role.signal("TERM");
    let (code, log) = proxy.role.end(PATIENCE);
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("count from the next start on"), "{log}");
    drop(origin);
}
