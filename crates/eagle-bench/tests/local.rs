//! The benchmarks on a small cluster of real processes.
//!
//! They need the `eagle` program beside `eagle-bench`, where `cargo test --workspace` and `cargo xtask test`
//! build it.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "../src/report/markup.rs"]
mod markup;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

/// Runs take some seconds; this is for a machine that compiles at the same time.
const PATIENCE: Duration = Duration::from_secs(120);

/// The program, and a directory for all that it leaves.
fn bench(temporary: &TempDir) -> Command {
    let program = Path::new(env!("CARGO_BIN_EXE_eagle-bench"));
    let eagle = program.with_file_name("eagle");
    assert!(eagle.is_file(), "{} is missing; build it first: cargo build -p eagle", eagle.display());
    let mut command = Command::new(program);
    command.env("TMPDIR", temporary.path()).env("EAGLE_CONFIG", "/nowhere").stdin(Stdio::null());
    command
}

fn succeed(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{command:?}: {status}\n{stdout}\n{stderr}");
    stdout.into_owned()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn files(directory: &TempDir) -> Vec<PathBuf> {
    fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// Processes that were started with files in this directory.
fn processes(directory: &TempDir) -> Vec<String> {
    let name = directory.path().to_string_lossy().into_owned();
    let processes =
        fs::read_dir("/proc").unwrap().filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok());
    processes
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(&name))
        .collect()
}

#[test]
fn a_swarm_gets_the_blob_and_the_origin_sends_it_once() {
    const SIZE: u64 = 4 << 20;
    let (temporary, results) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let file = results.path().join("swarm.json");
    let logs = results.path().join("logs");
    let mut command = bench(&temporary);
    command.args([
        "swarm",
        "--nodes",
        "3",
        "--size",
        "4MiB",
        "--rate",
        "unlimited",
        "--piece-length",
        "128KiB",
        "--json",
    ]);
    let text = succeed(command.arg(&file).arg("--keep-logs").arg(&logs));
    assert!(text.contains("4MiB to 3 nodes at unlimited each, encryption tls, 32 pieces of 128KiB"), "{text}");

    let report = json(&file);
    let number = |name: &str| report[name].as_u64().unwrap_or_else(|| panic!("{name} in {report:#}"));
    assert_eq!((number("nodes"), number("size_bytes"), number("piece_length")), (3, SIZE, 128 << 10));
    assert_eq!((number("origin_bytes"), number("origin_requests")), (SIZE, 1), "{report:#}");
    assert_eq!(number("delivered_bytes"), 3 * SIZE);
    for nothing in ["rate_bytes_per_second", "ideal_seconds"] {
        assert!(report[nothing].is_null() && report.get(nothing).is_some(), "{nothing}");
    }
    assert!(report["efficiency"]["max"].is_null());
    assert!(
        report["complete_seconds"]["max"].as_f64().unwrap() >= report["first_byte_seconds"]["p50"].as_f64().unwrap()
    );
    assert!(report["cpu_seconds"].as_f64().unwrap() > 0.0);
    for role in ["proxy", "seeder", "tracker"] {
        let memory = |when: &str| report[when][role].as_u64().unwrap();
        assert!(memory("idle_rss_bytes") > 1 << 20 && memory("max_rss_bytes") >= memory("idle_rss_bytes"), "{role}");
    }
    for node in report["per_node"].as_array().unwrap() {
        let from = |source: &str| node[source].as_u64().unwrap();
        assert!(from("peer_bytes") + from("seeder_bytes") + from("origin_bytes") >= SIZE, "{node:#}");
    }
    assert_eq!(report["eagle_version"], format!("eagle {}", report["version"].as_str().unwrap()));
    for log in ["tracker.log", "seeder.log", "proxy-3.log", "proxy-3.yaml"] {
        assert!(fs::metadata(logs.join(log)).unwrap().len() > 0, "{log}");
    }
    assert_eq!(files(&temporary), [] as [PathBuf; 0], "data left behind");
    assert_eq!(processes(&temporary), [] as [String; 0]);
}

#[test]
fn a_rate_makes_an_ideal_that_no_node_beats() {
    let (temporary, results) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let file = results.path().join("swarm.json");
    let mut command = bench(&temporary);
    command.args(["swarm", "--nodes", "2", "--size", "4MiB", "--rate", "4MB/s", "--encryption", "none", "--json"]);
    succeed(command.arg(&file));
    let report = json(&file);
    let ideal = report["ideal_seconds"].as_f64().unwrap();
    assert!((ideal - (4_194_304.0 + 262_144.0) / 4e6).abs() < 1e-9, "{ideal}");
    let efficiency = report["efficiency"]["max"].as_f64().unwrap();
    // A limiter may let a little through at the start.
    assert!(efficiency > 0.0 && efficiency < 1.1, "{efficiency}");
    assert_eq!(report["encryption"], "none");
    let baseline = |part: &str| report["first_byte_baseline_seconds"][part].as_f64().unwrap();
    assert!(baseline("origin") > 0.0 && baseline("piece") > 0.0);
    assert!((baseline("total") - baseline("origin") - baseline("piece")).abs() < 1e-9);
}

#[test]
fn pulls_are_counted_one_by_one() {
    let (temporary, results) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (csv, file) = (results.path().join("pulls.csv"), results.path().join("pulls.json"));
    let mut command = bench(&temporary);
    command.args(["pull", "--local", "--nodes", "2", "--size", "2MiB", "--concurrency", "1,3", "--iterations", "2"]);
    command.arg("--html").arg(results.path().join("pulls.html"));
    let text = succeed(command.arg("--csv").arg(&csv).arg("--json").arg(&file));
    assert!(text.contains("direct") && text.contains("eagle") && text.contains("100.0 %"), "{text}");
    let csv = fs::read_to_string(&csv).unwrap();
    let lines: Vec<_> = csv.lines().collect();
    assert_eq!(
        lines[0],
        "iteration,success,seconds,series,concurrency,bytes,manifest_seconds,first_byte_seconds,error,runtime,agent"
    );
    // Two series, and two pulls of each of 1 + 3 clients.
    assert_eq!(lines.len(), 1 + 2 * 2 * 4);
    assert!(lines[1].starts_with("1,true,") && lines[1].contains(",direct,1,"), "{csv}");
    assert!(lines[16].starts_with("6,true,") && lines[16].contains(",eagle,3,"), "{csv}");
    let page = fs::read_to_string(results.path().join("pulls.html")).unwrap();
    markup::check(&page).unwrap();
    assert!(page.contains("Time of each pull, 3 at a time"), "{page}");
    let report = json(&file);
    let steps = report["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 4);
    for step in steps {
        assert_eq!(step["success_rate"], 1.0);
        let at = |name: &str| step["seconds"][name].as_f64().unwrap();
        assert!(at("min") <= at("p50") && at("p50") <= at("p99") && at("p99") <= at("max"), "{step:#}");
        assert!(step["manifest_seconds"]["max"].as_f64().unwrap() <= at("max"), "{step:#}");
        // The configuration comes on top of the layers.
        assert!(step["bytes"].as_u64().unwrap() > step["pulls"].as_u64().unwrap() * (2 << 20));
    }
    assert_eq!(files(&temporary), [] as [PathBuf; 0]);
}

#[test]
fn an_image_of_its_own_is_cold_in_every_iteration() {
    let (temporary, results) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let file = results.path().join("pulls.json");
    let mut command = bench(&temporary);
    command.args(["pull", "--local", "--nodes", "2", "--size", "1MiB", "--concurrency", "1,4", "--iterations", "3"]);
    succeed(command.args(["--unique", "--warm-up", "1", "--json"]).arg(&file));
    let report = json(&file);
    assert_eq!((&report["unique"], &report["warm_up"]), (&Value::from(true), &Value::from(1)));
    for step in report["steps"].as_array().unwrap() {
        let (sent, got) = (step["origin_bytes"].as_u64().unwrap(), step["bytes"].as_u64().unwrap());
        let pulls = step["pulls"].as_u64().unwrap();
        // Eagle fetches each image once, whoever asks and how often; without it each pull is the registry's.
        let images = if step["series"] == "eagle" { 3 } else { pulls };
        assert_eq!(sent, got / pulls * images, "{step:#}");
    }
    assert_eq!(files(&temporary), [] as [PathBuf; 0]);
}

#[test]
fn serving_is_measured_with_and_without_nginx() {
    let (temporary, results) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let file = results.path().join("serve.json");
    let mut command = bench(&temporary);
    command.args(["serve", "--large", "4MiB", "--clients", "1,3", "--rounds", "1", "--seconds", "0.1", "--json"]);
    let text = succeed(command.arg(&file));
    let report = json(&file);
    let cases = report["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 4);
    let compared = !report["nginx_version"].is_null();
    assert_eq!(text.contains("there is no nginx"), !compared, "{text}");
    for (case, (size, clients)) in cases.iter().zip([(4 << 20, 1), (4 << 20, 3), (1 << 10, 1), (1 << 10, 3)]) {
        assert_eq!((&case["blob_bytes"], &case["clients"]), (&Value::from(size), &Value::from(clients)));
        assert!(case["eagle"]["bytes_per_second"].as_f64().unwrap() > 0.0, "{case:#}");
        assert_eq!(case["eagle"]["rounds"].as_array().unwrap().len(), 1);
        assert_eq!(case["ratio"]["throughput"].as_f64().is_some(), compared);
    }
    assert!(cases[3]["eagle"]["latency_seconds"]["p99"].as_f64().unwrap() > 0.0, "{report:#}");
    assert_eq!(files(&temporary), [] as [PathBuf; 0]);
    assert_eq!(processes(&temporary), [] as [String; 0]);
}

#[test]
fn limits_are_measured_both_ways() {
    let (temporary, results) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let file = results.path().join("limits.json");
    let mut command = bench(&temporary);
    command.args(["limits", "--rates", "256KiB/s", "--seconds", "1.5", "--encryption", "none", "--json"]);
    let text = succeed(command.arg(&file).arg("--no-processes"));
    assert!(text.contains("256KiB/s") && !text.contains("PUT /limits"), "{text}");
    let report = json(&file);
    let directions = |part: &str| {
        let all = report[part].as_array().unwrap().iter().map(|result| result["direction"].as_str().unwrap());
        all.collect::<Vec<_>>()
    };
    assert_eq!((directions("rates"), directions("beyond")), (vec!["download", "upload"], Vec::new()));
    assert_eq!(directions("changes"), ["download", "download", "upload", "upload"]);
    for result in report["rates"].as_array().unwrap() {
        assert!(result["errors"]["windows"].as_u64().unwrap() > 1, "{result:#}");
        assert!(result["errors"]["over"].as_f64().unwrap() >= result["errors"]["under"].as_f64().unwrap());
    }
    assert_eq!(files(&temporary), [] as [PathBuf; 0]);
}

#[test]
fn an_interrupt_leaves_nothing_behind() {
    let temporary = TempDir::new().unwrap();
    let mut command = bench(&temporary);
    // Would take minutes.
    command.args(["swarm", "--nodes", "2", "--size", "64MiB", "--rate", "300kB/s"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("Pulling")), "the pull did not begin");
    assert_eq!(processes(&temporary).len(), 5, "origin, tracker, seeder, two proxies");
    let pid = rustix::process::Pid::from_raw(child.id().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if Instant::now() > deadline => {
                child.kill().unwrap();
                panic!("the interrupt had no effect");
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    assert_eq!(status.code(), Some(130));
    assert_eq!(processes(&temporary), [] as [String; 0]);
    assert_eq!(files(&temporary), [] as [PathBuf; 0]);
}

#[test]
fn a_kill_takes_the_cluster_along() {
    let temporary = TempDir::new().unwrap();
    let mut command = bench(&temporary);
    command.args(["swarm", "--nodes", "1", "--size", "64MiB", "--rate", "300kB/s"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("Pulling")), "the pull did not begin");
    child.kill().unwrap();
    child.wait().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !processes(&temporary).is_empty() {
        assert!(Instant::now() < deadline, "still there: {:?}", processes(&temporary));
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn what_does_not_start_is_named_with_its_log() {
    let (temporary, logs) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let output = bench(&temporary)
        .args(["swarm", "--nodes", "1", "--size", "1MiB", "--log-level", "loud", "--keep-logs"])
        .arg(logs.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("eagle tracker ended") && text.contains("tracker.log") && text.contains("loud"), "{text}");

    let output = bench(&temporary).args(["swarm", "--size", "1000"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("the origin registry ended") && text.contains("multiples of 512 bytes"), "{text}");

    let output = bench(&temporary).args(["swarm", "--eagle", "/nowhere/eagle"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("there is no eagle program at /nowhere/eagle"), "{text}");

    let output = bench(&temporary)
        .args(["pull", "--image", "127.0.0.1:1/a/b:c", "--direct", "http://127.0.0.1:1"])
        .args(["--concurrency", "1", "--iterations", "1"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("1 of 1 pulls failed") && text.contains("manifest c of a/b"), "{text}");
    assert_eq!(files(&temporary), [] as [PathBuf; 0]);
}
