//! The set of benchmarks, quick, as far as it needs no other program.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "../src/report/markup.rs"]
mod markup;

use std::{fs, process::Command};

use tempfile::TempDir;

#[test]
fn a_suite_is_one_page_that_needs_nothing_else() {
    let results = TempDir::new().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_eagle-bench"))
        .args(["suite", "--quick", "--only", "floor", "--only", "sim", "--output"])
        .arg(results.path().join("new"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("2 of 3: sim-flash-1k done"), "{text}");
    let page = fs::read_to_string(results.path().join("new/report.html")).unwrap();
    markup::check(&page).unwrap();
    for name in ["floor", "sim-flash-1k", "sim-zones"] {
        assert!(page.contains(&format!("<h2>{name}</h2>")), "{name}");
        assert!(results.path().join(format!("new/{name}.json")).is_file(), "{name}");
    }
    // Two of the floor, two of each simulation.
    assert_eq!(page.matches("<svg role=\"img\"").count(), 6);
    assert!(page.len() < 100_000, "{} bytes", page.len());
}

#[test]
fn what_failed_is_in_the_page() {
    let results = TempDir::new().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_eagle-bench"))
        .args(["suite", "--quick", "--only", "swarm-8-20", "--eagle", "/nowhere/<eagle>", "--output"])
        .arg(results.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("1 of them failed: swarm-8-20MBps"), "{text}");
    let page = fs::read_to_string(results.path().join("report.html")).unwrap();
    markup::check(&page).unwrap();
    assert!(page.contains("there is no eagle program at /nowhere/&lt;eagle&gt;"), "{page}");
}
