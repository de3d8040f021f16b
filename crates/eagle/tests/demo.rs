//! The demonstration, end to end and cut short.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::{
    fs,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use common::{eagle, kill, output, stderr};
use serde_json::Value;

fn left_in(directory: &std::path::Path) -> Vec<String> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn every_node_has_the_image_and_the_origin_sent_it_once() {
    for encryption in ["tls", "none"] {
        let temporary = tempfile::tempdir().unwrap();
        let arguments =
            ["demo", "--nodes", "3", "--size", "8MiB", "--rate", "20MB/s", "--json", "--encryption", encryption];
        let output = output(eagle().args(arguments).env("TMPDIR", temporary.path()));
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["origin_multiple"], 1.0, "{report:#}");
        assert_eq!(report["per_node"].as_array().unwrap().len(), 3);
        let size = report["size_bytes"].as_u64().unwrap();
        assert!(size >= 8 << 20);
        assert_eq!(report["delivered_bytes"], 3 * size);
        for blob in report["blobs"].as_array().unwrap() {
            assert_eq!(blob["origin_requests"], 1, "{report:#}");
        }
        for node in report["per_node"].as_array().unwrap() {
            let sum: u64 =
                ["peer_bytes", "seeder_bytes", "origin_bytes"].iter().map(|key| node[key].as_u64().unwrap()).sum();
            assert!(sum >= size, "a node has bytes from nowhere: {node}");
            assert_eq!(node["origin_bytes"], 0, "{node}");
        }
        assert!(report["efficiency"].as_f64().unwrap() > 0.0);
        assert!(stderr(&output).is_empty(), "{}", stderr(&output));
        assert_eq!(left_in(temporary.path()), Vec::<String>::new());
    }
}

#[test]
fn a_person_reads_a_table() {
    let output = output(eagle().args(["demo", "--nodes", "2", "--size", "4MiB", "--rate", "unlimited"]));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    for part in ["MB from peers", "efficiency", "1.00 times the image", "n/a"] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
}

#[test]
fn an_interrupt_ends_it_and_leaves_nothing() {
    // A tenth of a second is within the start, a second and a half within the pull.
    for (after, signal) in [(100, "INT"), (1500, "INT"), (1500, "TERM")] {
        let temporary = tempfile::tempdir().unwrap();
        let mut child = eagle()
            .args(["demo", "--nodes", "2", "--size", "64MiB", "--rate", "2MB/s"])
            .env("TMPDIR", temporary.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(Duration::from_millis(after));
        assert!(child.try_wait().unwrap().is_none(), "it ended before the signal");
        kill(child.id(), signal);
        let asked = Instant::now();
        let status = child.wait().unwrap();
        assert!(asked.elapsed() < Duration::from_secs(2), "it took {:?}", asked.elapsed());
        assert_eq!(status.code(), Some(130));
        assert_eq!(left_in(temporary.path()), Vec::<String>::new());
    }
}

#[test]
fn an_origin_that_is_not_there_is_a_clear_failure() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let temporary = tempfile::tempdir().unwrap();
    let origin = format!("http://{free}");
    let output = output(
        eagle().args(["demo", "--nodes", "2", "--origin", &origin, "--image", "a/b:c"]).env("TMPDIR", temporary.path()),
    );
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains(&free.to_string()) || stderr(&output).contains("a/b"), "{}", stderr(&output));
    assert_eq!(left_in(temporary.path()), Vec::<String>::new());
}
