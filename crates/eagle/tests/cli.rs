//! The binary as people and scripts meet it: exit codes, messages, endpoints, signals.

mod common;

use std::{fs, path::Path, time::Duration};

use common::{Role, anywhere, ask, eagle, get, output, stderr};
use serde_json::Value;

#[test]
fn bad_usage_is_64_and_help_is_0() {
    for arguments in [
        &["prox"][..],
        &[],
        &["proxy", "--listn", "127.0.0.1:0"],
        &["proxy", "--upload-rate", "fast"],
        &["proxy", "--registry", "docker.io"],
        &["demo", "--nodes", "0"],
        &["demo", "--origin", "http://127.0.0.1:1"],
        &["config", "show", "--listen", "127.0.0.1:1"],
        &["status", "--admin", "https://"],
    ] {
        let output = output(eagle().args(arguments));
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {}", stderr(&output));
        assert!(!output.stderr.is_empty(), "{arguments:?}");
    }
    for arguments in [&["--help"][..], &["--version"], &["proxy", "--help"], &["help", "demo"], &["config", "--help"]] {
        let output = output(eagle().args(arguments));
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(!output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn bad_configuration_is_78_and_names_key_and_line() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("eagle.yaml");
    fs::write(&file, "tracker:\n  listen: 127.0.0.1:0\n  listn: 127.0.0.1:0\n").unwrap();
    for command in [&["tracker"][..], &["config", "check"], &["config", "show"]] {
        let output = output(eagle().args(command).arg("--config").arg(&file));
        assert_eq!(output.status.code(), Some(78));
        let place = format!("{}:3:3: unknown key `tracker.listn`; did you mean `listen`?", file.display());
        assert!(stderr(&output).contains(&place), "{}", stderr(&output));
    }
    let output = output(eagle().arg("tracker").env("EAGLE_TRACKR__LISTEN", "127.0.0.1:0"));
    assert_eq!(output.status.code(), Some(78));
    assert!(stderr(&output).contains("EAGLE_TRACKR__LISTEN"), "{}", stderr(&output));
}

#[test]
fn an_authority_is_made_once_and_its_key_is_kept_from_others() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("ca");
    let init = |arguments: &[&str]| output(eagle().args(["ca", "init", "--dir"]).arg(&ca).args(arguments));
    let made = init(&["--registry", "ghcr.io"]);
    assert_eq!(made.status.code(), Some(0), "{}", stderr(&made));
    let shown = String::from_utf8(made.stdout).unwrap();
    assert!(shown.contains("ca_dir:") && !shown.contains("PRIVATE"), "{shown}");
    assert_eq!(fs::metadata(ca.join("ca.key")).unwrap().permissions().mode() & 0o777, 0o600);
    let certificate = fs::read_to_string(ca.join("ca.pem")).unwrap();
    assert!(certificate.starts_with("-----BEGIN CERTIFICATE-----"), "{certificate}");
    let file = directory.path().join("eagle.yaml");
    fs::write(&file, format!("proxy:\n  forward:\n    ca_dir: {}\n", ca.display())).unwrap();
    let check = || output(eagle().args(["config", "check", "--role", "proxy", "--config"]).arg(&file));
    assert_eq!(check().status.code(), Some(0));
    fs::set_permissions(ca.join("ca.key"), fs::Permissions::from_mode(0o644)).unwrap();
    let refused = check();
    assert_eq!(refused.status.code(), Some(78));
    assert!(stderr(&refused).contains(":3:") && stderr(&refused).contains("chmod 600"), "{}", stderr(&refused));
    let again = init(&[]);
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("is there already"), "{}", stderr(&again));
    assert_eq!(fs::read_to_string(ca.join("ca.pem")).unwrap(), certificate);
    assert_eq!(init(&["--registry", "a/b"]).status.code(), Some(64));
}

#[test]
fn a_missing_file_is_78_and_named() {
    let output = output(eagle().args(["tracker", "--config", "/nowhere/eagle.yaml"]));
    assert_eq!(output.status.code(), Some(78));
    assert!(stderr(&output).contains("/nowhere/eagle.yaml"), "{}", stderr(&output));
}

#[test]
fn the_example_is_a_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("eagle.yaml");
    for role in ["tracker", "seeder", "proxy", "all"] {
        fs::write(&file, output(eagle().args(["config", "example", role])).stdout).unwrap();
        let output = output(eagle().args(["config", "check", "--role", role, "--config"]).arg(&file));
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    }
    let shown =
        output(eagle().args(["config", "show", "--json", "--role", "proxy"]).env("EAGLE_PROXY__CACHE_LIMIT", "1GiB"));
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown["config"]["proxy"]["cache_limit"], "1GiB");
    assert_eq!(shown["sources"]["proxy.cache_limit"], "env EAGLE_PROXY__CACHE_LIMIT");
}

/// Flags that let a role run beside others, without a fixed port.
#[test]
fn every_role_is_ready_in_a_second_answers_and_drains() {
    for role in ["tracker", "seeder", "proxy"] {
        let data = tempfile::tempdir().unwrap();
        let mut process = Role::start(eagle().args(anywhere(role, data.path())));
        let ready = process.ready();
        assert_eq!(ready["role"], role);
        let admin = ready["admin"].as_str().unwrap();
        for (path, body) in
            [("/healthz", "ok"), ("/readyz", "ready"), ("/version", "\"version\""), ("/status", "\"state\": \"ready\"")]
        {
            let (status, text) = get(admin, path);
            assert_eq!(status, 200, "{role} {path}: {text}");
            assert!(text.contains(body), "{role} {path}: {text}");
        }
        let (status, text) = get(admin, "/metrics");
        assert_eq!(status, 200);
        assert!(text.contains(&format!("# TYPE eagle_{role}_")) && !text.contains("# EOF"), "{text}");
        let tasks = text.lines().find_map(|line| line.strip_prefix("eagle_process_tasks "));
        assert!(tasks.unwrap().parse::<u32>().unwrap() > 0, "{text}");
        assert_eq!(get(admin, "/nothing").0, 404);
        let status = output(eagle().args(["status", "--admin", admin]));
        assert!(String::from_utf8_lossy(&status.stdout).contains(role), "{}", stderr(&status));

        process.signal("TERM");
        let (code, log) = process.end(Duration::from_secs(10));
        assert_eq!(code, Some(0), "{role}: {log}");
        // The log names the bound addresses, one JSON object a line.
        let line = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .find(|line| line["message"] == "ready");
        let line = line.unwrap_or_else(|| panic!("{role}: no line says ready: {log}"));
        assert_eq!(line["listen"], ready["listen"]);
        assert!(line["start_seconds"].as_f64().unwrap() < 1.0, "{role} took {}", line["start_seconds"]);
    }
}

#[test]
fn limits_of_a_running_role_can_be_changed() {
    for role in ["seeder", "proxy"] {
        let data = tempfile::tempdir().unwrap();
        let mut process = Role::start(eagle().args(anywhere(role, data.path())).args(["--upload-rate", "20MiB/s"]));
        let ready = process.ready();
        let admin = ready["admin"].as_str().unwrap();
        let json = |(status, text): (u16, String)| (status, serde_json::from_str::<Value>(&text).unwrap());
        let limits = |download: &str, upload: &str| serde_json::json!({"download": download, "upload": upload});
        assert_eq!(json(get(admin, "/limits")), (200, limits("50MiB/s", "20MiB/s")), "{role}");
        let changed = ask(admin, "PUT", "/limits", r#"{"download": "8KiB/s"}"#);
        assert_eq!(json(changed), (200, limits("8KiB/s", "20MiB/s")));
        let changed = ask(admin, "PUT", "/limits", r#"{"upload": "unlimited", "download": "5GiB/s"}"#);
        assert_eq!(json(changed), (200, limits("5GiB/s", "unlimited")));
        for bad in ["", "{}", r#"{"download": "0"}"#, r#"{"down": "1MB/s"}"#, &" ".repeat(5000)] {
            let (status, text) = ask(admin, "PUT", "/limits", bad);
            assert_eq!(status, 400, "{bad}: {text}");
        }
        assert_eq!(ask(admin, "PUT", "/status", "{}").0, 405);
        assert_eq!(json(get(admin, "/status")).1["limits"], limits("5GiB/s", "unlimited"), "{role}");
    }
    let mut tracker = Role::start(eagle().args(anywhere("tracker", Path::new(""))));
    let ready = tracker.ready();
    for method in ["GET", "PUT"] {
        assert_eq!(ask(ready["admin"].as_str().unwrap(), method, "/limits", "{}").0, 404);
    }
}

#[test]
fn standalone_is_three_roles_in_one() {
    let data = tempfile::tempdir().unwrap();
    let any = "127.0.0.1:0";
    let mut command = eagle();
    command.args(["standalone", "--listen", any, "--admin-listen", any, "--data-dir"]).arg(data.path());
    for key in [
        "TRACKER__LISTEN",
        "TRACKER__ADMIN",
        "SEEDER__LISTEN",
        "SEEDER__ADMIN",
        "SEEDER__P2P_LISTEN",
        "SEEDER__DATA_LISTEN",
        "PROXY__P2P_LISTEN",
        "PROXY__DATA_LISTEN",
    ] {
        command.env(format!("EAGLE_{key}"), any);
    }
    let mut process = Role::start(&mut command);
    let ready = process.ready();
    assert_eq!(ready["role"], "standalone");
    assert_eq!(ready["roles"].as_array().unwrap().len(), 3);
    for role in ready["roles"].as_array().unwrap() {
        assert_eq!(get(role["admin"].as_str().unwrap(), "/readyz").0, 200, "{role}");
    }
    // A registry that asks who is there.
    assert_eq!(get(ready["listen"].as_str().unwrap(), "/v2/").0, 401);
    process.signal("INT");
    assert_eq!(process.end(Duration::from_secs(10)).0, Some(0));
}

#[test]
fn a_port_in_use_is_named_with_its_key() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (role, key) in [
        ("tracker", "listen"),
        ("tracker", "admin"),
        ("seeder", "listen"),
        ("seeder", "p2p_listen"),
        ("seeder", "data_listen"),
        ("proxy", "listen"),
        ("proxy", "admin"),
        ("proxy", "p2p_listen"),
        ("proxy", "data_listen"),
    ] {
        let data = tempfile::tempdir().unwrap();
        let mut arguments = anywhere(role, data.path());
        let flag = if key == "admin" { "--admin-listen".to_owned() } else { format!("--{}", key.replace('_', "-")) };
        let at = arguments.iter().position(|argument| *argument == flag).unwrap();
        arguments[at + 1].clone_from(&address);
        let output = output(eagle().args(&arguments).args(["--log-level", "error"]));
        assert_eq!(output.status.code(), Some(1), "{role} {key}: {}", stderr(&output));
        let line = stderr(&output);
        assert_eq!(line.lines().count(), 1, "{line}");
        assert!(line.contains(&format!("{role}.{key}")) && line.contains(&address), "{line}");
    }
}

#[test]
fn a_data_directory_that_cannot_be_written_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let below = file.join("data");
    for role in ["seeder", "proxy"] {
        let output = output(eagle().args(anywhere(role, &below)).args(["--log-level", "error"]));
        assert_eq!(output.status.code(), Some(1), "{role}: {}", stderr(&output));
        let line = stderr(&output);
        assert_eq!(line.lines().count(), 1, "{line}");
        assert!(line.contains("data_dir") && line.contains(&below.display().to_string()), "{line}");
    }
}

#[test]
fn status_of_nobody_says_so() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let output = output(eagle().args(["status", "--admin", &free]));
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains(&free), "{}", stderr(&output));
}

#[test]
fn a_cluster_key_is_made_once_and_read_by_every_role() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cluster.key");
    let make = || output(eagle().args(["cluster-key", "--file"]).arg(&path));
    let made = make();
    assert_eq!(made.status.code(), Some(0), "{}", stderr(&made));
    let key = fs::read_to_string(&path).unwrap().trim().to_owned();
    let shown = String::from_utf8(made.stdout).unwrap();
    assert!(shown.contains("cluster key ") && !shown.contains(&key), "{shown}");
    let id = shown.split("cluster key ").nth(1).unwrap().split(',').next().unwrap().to_owned();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    // It is never written over.
    assert_eq!(make().status.code(), Some(1));
    assert_eq!(fs::read_to_string(&path).unwrap().trim(), key);
    let printed = String::from_utf8(output(eagle().arg("cluster-key")).stdout).unwrap();
    assert_eq!((printed.len(), printed == key), (key.len() + 1, false));

    let flag = ["--cluster-key-file".to_owned(), path.display().to_string()];
    for role in ["tracker", "seeder", "proxy"] {
        let data = tempfile::tempdir().unwrap();
        let mut process = Role::start(eagle().args(anywhere(role, data.path())).args(&flag));
        let ready = process.ready();
        let admin = ready["admin"].as_str().unwrap();
        let status: Value = serde_json::from_str(&get(admin, "/status").1).unwrap();
        assert_eq!(status["cluster"], serde_json::json!({"key": id, "accepted_keys": [id]}));
        let metric = format!("eagle_{role}_cluster_key_info{{id=\"{id}\",use=\"own\"}} 1\n");
        let (_, metrics) = get(admin, "/metrics");
        assert!(metrics.contains(&metric), "{metrics}");
        process.signal("TERM");
        let (code, log) = process.end(Duration::from_secs(10));
        assert_eq!(code, Some(0));
        assert!(log.contains(&id) && !log.contains(&key) && !log.contains("there is no cluster key"), "{log}");
    }
    let shown = output(eagle().args(["config", "show"]).args(&flag).env("EAGLE_CLUSTER_KEY", ""));
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("key_file: ") && shown.contains("listen: 0.0.0.0:6969") && !shown.contains(&key), "{shown}");

    // The steps of an exchange, as docs/membership.md has them.
    let shell = |script: &str| {
        let program = env!("CARGO_BIN_EXE_eagle");
        let mut command = std::process::Command::new("sh");
        command.args(["-ec", &format!("umask 077; eagle() {{ {program} \"$@\"; }}; {script}")]);
        let output = output(command.current_dir(directory.path()));
        assert_eq!(output.status.code(), Some(0), "{script}: {}", stderr(&output));
        let checked = eagle().args(["config", "check"]).args(&flag).output().unwrap();
        assert_eq!(checked.status.code(), Some(0), "{script}: {}", stderr(&checked));
        fs::read_to_string(&path).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let both = shell("cp -p cluster.key next.key; eagle cluster-key >> next.key; mv next.key cluster.key");
    assert_eq!((both.len(), &both[0]), (2, &key));
    let turned = shell("tac cluster.key > next.key; chmod 600 next.key; mv next.key cluster.key");
    assert_eq!(turned, [both[1].clone(), both[0].clone()]);
    let new = shell("head -n 1 cluster.key > next.key; chmod 600 next.key; mv next.key cluster.key");
    assert_eq!(new, both[1..]);

    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let refused = output(eagle().arg("tracker").args(&flag));
    assert_eq!(refused.status.code(), Some(78));
    assert!(stderr(&refused).contains("--cluster-key-file: cluster.key_file: "), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("chmod 600"), "{}", stderr(&refused));
}

#[test]
fn without_a_cluster_key_nothing_is_opened_to_others() {
    for (role, flag) in [
        ("tracker", "--listen"),
        ("seeder", "--listen"),
        ("seeder", "--p2p-listen"),
        ("seeder", "--data-listen"),
        ("proxy", "--p2p-listen"),
        ("proxy", "--data-listen"),
    ] {
        let data = tempfile::tempdir().unwrap();
        let mut arguments = anywhere(role, data.path());
        let at = arguments.iter().position(|argument| argument == flag).unwrap();
        arguments[at + 1] = "0.0.0.0:0".to_owned();
        let refused = output(eagle().args(&arguments));
        assert_eq!(refused.status.code(), Some(78), "{role} {flag}");
        assert!(stderr(&refused).contains("eagle cluster-key"), "{}", stderr(&refused));
        let mut process = Role::start(eagle().args(&arguments).env("EAGLE_CLUSTER__INSECURE", "true"));
        process.ready();
        process.signal("TERM");
        let (_, log) = process.end(Duration::from_secs(10));
        assert!(log.contains("cluster.insecure"), "{log}");
    }
    let checked = output(eagle().args(["config", "check", "--role", "tracker"]));
    let said = String::from_utf8(checked.stdout).unwrap();
    assert!(checked.status.success() && said.contains("only nodes on this machine can connect"), "{said}");
}

#[test]
fn the_doctor_finds_a_running_tracker_well_and_says_what_is_wrong_otherwise() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("eagle.yaml");
    let mut tracker = Role::start(eagle().args(anywhere("tracker", directory.path())));
    let admin = tracker.ready()["admin"].as_str().unwrap().to_owned();
    let doctor = || {
        let output = output(eagle().args(["doctor", "--json", "--role", "tracker", "--config"]).arg(&file));
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", stderr(&output)));
        (output.status.code(), answer)
    };
    fs::write(&file, format!("tracker: {{listen: \"127.0.0.1:0\", admin: \"{admin}\"}}\n")).unwrap();
    let (code, answer) = doctor();
    assert_eq!((code, answer["problems"].as_u64()), (Some(0), Some(0)), "{answer}");
    assert!(answer.to_string().contains("the tracker runs"), "{answer}");

    fs::write(&file, format!("tracker: {{listen: \"{admin}\", admin: \"127.0.0.1:0\"}}\n")).unwrap();
    let (code, answer) = doctor();
    assert_eq!((code, answer["problems"].as_u64()), (Some(1), Some(1)), "{answer}");
    fs::write(&file, "tracker: {listn: \"127.0.0.1:0\"}\n").unwrap();
    let (code, answer) = doctor();
    assert_eq!(code, Some(1));
    let finding = &answer["findings"][0];
    assert_eq!((&finding["check"], &finding["level"]), (&"configuration".into(), &"problem".into()));
    assert!(finding["message"].as_str().unwrap().contains("did you mean `listen`"), "{finding}");
    let page = output(eagle().args(["doctor", "--role", "tracker", "--config"]).arg(&file));
    let text = String::from_utf8_lossy(&page.stdout).into_owned();
    assert!(text.contains("PROBLEM  configuration") && text.contains("-> correct the key"), "{text}");
}
