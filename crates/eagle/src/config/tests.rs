//! The layers together, on real sections.

use std::{collections::BTreeSet, ffi::OsString, io::Write as _};

use eagle_core::units::{Rate, Size};
use tempfile::NamedTempFile;

use super::{read::ConfigError, *};
use crate::{cli::RoleArg, config::tree::Key};

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::with_suffix(".yaml").unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn environment(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    pairs.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect()
}

fn load(text: &str, pairs: &[(&str, &str)], flags: Flags) -> Result<Loaded, String> {
    let file = file(text);
    let sources = Sources { file: Some(file.path().to_owned()), environment: environment(pairs), flags };
    Loaded::from(sources).map_err(|error| error.to_string().replace(&file.path().display().to_string(), "FILE"))
}

fn fails(text: &str, pairs: &[(&str, &str)]) -> String {
    match load(text, pairs, Flags::default()) {
        Err(error) => error,
        Ok(loaded) => check::check(&loaded, RoleArg::Standalone).unwrap_err().to_string(),
    }
}

#[test]
fn the_later_layer_wins_and_is_named() {
    let mut flags = Flags::default();
    flags.value("--upload-rate", &["proxy", "upload_rate"], Some(Rate::Limited(7)));
    let text = "proxy:\n  cache_limit: 1GiB\n  download_rate: 1MB/s\n  upload_rate: 1MB/s\n";
    let pairs = [("EAGLE_PROXY__DOWNLOAD_RATE", "2MB/s"), ("EAGLE_PROXY__UPLOAD_RATE", "2MB/s")];
    let loaded = load(text, &pairs, flags).unwrap();
    let proxy = &loaded.settings.proxy.role;
    assert_eq!(proxy.cache_limit, Size(1 << 30));
    assert_eq!(proxy.download_rate, Rate::Limited(2_000_000));
    assert_eq!(proxy.upload_rate, Rate::Limited(7));
    assert!(matches!(loaded.origin(&["proxy", "cache_limit"]), Origin::File { line: 2, .. }));
    assert_eq!(loaded.origin(&["proxy", "download_rate"]), Origin::Env("EAGLE_PROXY__DOWNLOAD_RATE".into()));
    assert_eq!(loaded.origin(&["proxy", "upload_rate"]), Origin::Flag("--upload-rate".into()));
    assert_eq!(loaded.origin(&["proxy", "listen"]), Origin::Default);

    let shown = loaded.show(&["proxy", "log"]);
    let line = |start: &str| shown.lines().find(|line| line.trim_start().starts_with(start)).unwrap().to_owned();
    assert!(line("cache_limit: 1GiB").ends_with(":2"), "{shown}");
    assert!(line("download_rate: 2MB/s").ends_with("# from env EAGLE_PROXY__DOWNLOAD_RATE"), "{shown}");
    assert!(line("upload_rate: 7B/s").ends_with("# from flag --upload-rate"), "{shown}");
    assert!(line("level: info").ends_with("# from default"), "{shown}");
}

#[test]
fn what_is_shown_can_be_read_back() {
    let text = "proxy: {cache_limit: 1GiB, trackers: ['http://a:1', 'http://b:2']}\np2p: {topology: {zone: '12'}}\n\
                registries: [{name: 'r.example:5000', url: 'http://r.example:5000', username: u, password: secret-word}]\n";
    let loaded = load(text, &[], Flags::default()).unwrap();
    let shown = loaded.show(&SECTIONS);
    assert!(!shown.contains("secret-word"), "{shown}");
    let again = load(&shown, &[], Flags::default()).unwrap();
    assert_eq!(show::plain(&again.settings.to_tree(&SECTIONS)), show::plain(&loaded.settings.to_tree(&SECTIONS)));
    let json = loaded.show_json(&SECTIONS);
    assert_eq!(json["sources"]["tracker.listen"], "default");
    assert!(!json.to_string().contains("secret-word"));
}

#[test]
fn lists_come_from_variables_in_both_forms() {
    let pairs = [
        ("EAGLE_PROXY__TRACKERS", "http://a:1, http://b:2"),
        ("EAGLE_PROXY__SEEDERS", "[http://c:3]"),
        ("EAGLE_REGISTRIES", "[{name: docker.io, username: u}]"),
        ("EAGLE_REGISTRIES__0__PASSWORD", "12345"),
        ("EAGLE_PROXY__LISTEN", "[::1]:5000"),
        ("EAGLE_P2P__TOPOLOGY__ZONE", "1"),
        // A template's way to give nothing.
        ("EAGLE_PROXY__CACHE_LIMIT", ""),
        ("EAGLE_TRACKER_SERVICE_HOST", "10.0.0.1"),
    ];
    let settings = load("", &pairs, Flags::default()).unwrap().settings;
    assert_eq!(settings.proxy.role.trackers.len(), 2);
    assert_eq!(settings.proxy.role.seeders.len(), 1);
    assert_eq!(settings.registries[0].password.as_ref().unwrap().expose(), "12345");
    assert_eq!(settings.proxy.role.listen.to_string(), "[::1]:5000");
    assert_eq!(settings.p2p.topology.zone.as_deref(), Some("1"));
    assert_eq!(settings.proxy.role.cache_limit, ProxyConfig::default().cache_limit);
}

#[test]
fn a_registry_flag_replaces_the_configured_one_of_its_name() {
    let text = "registries:\n- {name: docker.io, url: 'https://old.example', username: u, password: p}\n";
    let mut flags = Flags::default();
    flags.registry("docker.io", "https://new.example");
    flags.registry("other.example", "http://other.example");
    let registries = load(text, &[], flags).unwrap().settings.registries;
    assert_eq!(registries.len(), 2);
    assert_eq!(registries[0].url.as_ref().unwrap().host_str(), Some("new.example"));
    assert_eq!(registries[0].username.as_deref(), Some("u"));

    let mut flags = Flags::default();
    flags.registry("a.example", "http://a.example");
    assert_eq!(load("", &[], flags).unwrap().settings.registries.len(), 1);
}

#[test]
fn errors_name_the_key_and_the_place() {
    for (text, pairs, expected) in [
        ("proxy:\n  listn: 1\n", vec![], "FILE:2:3: unknown key `proxy.listn`; did you mean `listen`?"),
        ("proxi:\n  a: 1\n", vec![], "FILE:1:1: unknown key `proxi`; did you mean `proxy`?"),
        ("proxy:\n  admn: 1\n", vec![], "FILE:2:3: unknown key `proxy.admn`; did you mean `admin`?"),
        ("proxy:\n  cache_limit: 10 parsecs\n", vec![], "FILE:2:16: proxy.cache_limit: \"10 parsecs\" is not a size"),
        ("tracker: {admin: here}\n", vec![], "FILE:1:18: tracker.admin: invalid socket address"),
        ("tracker: {max_peers: many}\n", vec![], "tracker.max_peers: expected a whole number, found \"many\""),
        (
            "registries:\n- name: a.example\n  urk: x\n",
            vec![],
            "FILE:3:3: unknown key `registries.0.urk`; did you mean `url`?",
        ),
        ("registries:\n- url: http://a\n", vec![], "registries.0: `name` is missing"),
        ("log: {level: loud}\n", vec![], "FILE:1:14: log.level: \"loud\" is not a log level"),
        ("traces: {endpoint: 'ftp://x'}\n", vec![], ":1:20: traces.endpoint: not the URL of a collector"),
        ("traces: {endpoint: 'http://u:p@x'}\n", vec![], "OTEL_EXPORTER_OTLP_HEADERS"),
        ("traces: {sample_ratio: 1.5}\n", vec![], "traces.sample_ratio: give a share from 0 to 1"),
        ("proxy: [\n", vec![], "FILE:1:8: not valid YAML"),
        ("proxy: {}\nproxy: {}\n", vec![], "FILE:2:1: not valid YAML: duplicate mapping key"),
        ("- a\n", vec![], "the file must hold sections"),
        ("", vec![("EAGLE_FOO", "1")], "environment variable EAGLE_FOO: unknown key `foo`"),
        (
            "",
            vec![("EAGLE_PROXY__LISTN", "1")],
            "environment variable EAGLE_PROXY__LISTN: unknown key `proxy.listn`; did you mean EAGLE_PROXY__LISTEN?",
        ),
        ("", vec![("EAGLE_PROXY__LISTEN", "x")], "environment variable EAGLE_PROXY__LISTEN: proxy.listen: "),
        // Across keys.
        (
            "proxy:\n  admin: 127.0.0.1:43002\n",
            vec![],
            ":2:10: proxy.admin: 127.0.0.1:43002 is the address of proxy.listen too",
        ),
        ("proxy: {data_dir: /d}\nseeder: {data_dir: /d}\n", vec![], "proxy.data_dir: is the seeder's directory too"),
        ("proxy:\n  trackers: ['ftp://x']\n", vec![], ":2:13: proxy.trackers: "),
        (
            "registries:\n- {name: a.example, ca_file: /nowhere}\n",
            vec![],
            "registries.0.ca_file: /nowhere: No such file",
        ),
        ("registries:\n- {name: a.example, username: u}\n", vec![], "username and password must be given together"),
        (
            "registries:\n- {name: a.example, client_cert_file: /nowhere, client_key_file: /etc/hostname}\n",
            vec![],
            "registries.0.client_cert_file: /nowhere: No such file",
        ),
        ("registries:\n- {name: a.example, max_connections: 1}\n", vec![], "max_connections: give at least 2"),
        ("registries:\n- {name: a.example, egress_proxy: 'socks5://p'}\n", vec![], "egress_proxy: not an egress proxy"),
        ("credentials: {docker_configs: [/nowhere]}\n", vec![], "credentials.docker_configs.0: /nowhere: No such file"),
        ("credentials: {docker_configs: [/etc/hostname]}\n", vec![], "is not a docker configuration"),
        ("tracker: {peer_ttl: 1s}\n", vec![], ":1:21: tracker.peer_ttl: "),
        ("seeder: {cache_limit: 0}\n", vec![], ":1:23: seeder.cache_limit: "),
    ] {
        let error = fails(text, &pairs);
        assert!(error.contains(expected), "{text:?} {pairs:?}:\n{error}\nshould say\n{expected}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn every_section_is_read_though_an_earlier_one_is_wrong() {
    let error = fails("proxy: {x: 1}\nseeder: {y: 2}\n", &[]);
    assert_eq!(error.lines().count(), 2, "{error}");
}

/// Paths of all keys, with the numbers of list items left out.
fn keys(node: &Node, path: &mut Vec<String>, found: &mut BTreeSet<String>) {
    match &node.value {
        Value::Map(entries) => {
            for (Key { name, .. }, value) in entries {
                path.push(name.clone());
                found.insert(path.join("."));
                keys(value, path, found);
                path.pop();
            }
        }
        Value::List(items) => items.iter().for_each(|item| keys(item, path, found)),
        _ => {}
    }
}

fn all_keys(node: &Node) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    keys(node, &mut Vec::new(), &mut found);
    found
}

#[test]
fn the_examples_load_name_every_key_and_give_its_default() {
    for role in [RoleArg::Tracker, RoleArg::Seeder, RoleArg::Proxy, RoleArg::All] {
        let text = example::example(role);
        let loaded = load(&text, &[], Flags::default()).unwrap();
        check::check(&loaded, role).unwrap();
        let sections = example::sections(role);
        let defaults = Loaded::from(Sources::default()).unwrap().settings.to_tree(&sections);
        assert_eq!(show::plain(&loaded.settings.to_tree(&sections)), show::plain(&defaults));
        let written = yaml::parse_file(&text, std::path::Path::new("example")).unwrap();
        let (written, known) = (all_keys(&written), all_keys(&defaults));
        let missing: Vec<_> = known.difference(&written).collect();
        assert!(missing.is_empty(), "the example lacks {missing:?}");
    }
}

#[test]
fn the_example_of_a_registry_loads_and_names_every_key() {
    let part = include_str!("example/registries.yaml");
    // Without the comment mark that hides the sample entry.
    let text = part.replace("registries: []", "registries:").replace("\n#  ", "\n  ");
    let loaded = load(&text, &[], Flags::default()).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let sample = &loaded.settings.registries[0];
    let defaults = RegistryConfig::new(sample.name.clone());
    assert_eq!(
        RegistryConfig { url: None, ..sample.clone() },
        defaults,
        "the example gives other values than the defaults"
    );
    let written = all_keys(&yaml::parse_file(&text, std::path::Path::new("example")).unwrap());
    // The reader itself says which keys it knows.
    let Err(error) = load("registries: [{name: a.example, '': 1}]", &[], Flags::default()) else { panic!("was taken") };
    let known = error.split("known here: ").nth(1).unwrap();
    for key in known.split(", ") {
        assert!(written.contains(&format!("registries.{key}")), "the example lacks registries.{key}");
    }
}

#[test]
fn an_error_that_shows_late_names_the_place_too() {
    let loaded = load("proxy:\n  listen: 127.0.0.1:1\n", &[], Flags::default()).unwrap();
    let error: ConfigError = loaded.error(&["proxy", "listen"], "address in use");
    assert!(error.to_string().ends_with(":2:11: proxy.listen: address in use"), "{error}");
}
