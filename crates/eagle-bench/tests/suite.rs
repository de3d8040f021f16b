//! The set of benchmarks, quick, as far as it needs no other program.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "../src/report/markup.rs"]
mod markup;
#[path = "../../xtask/src/pages/mod.rs"]
#[allow(dead_code, reason = "what looks at command lines is for the program's own tests")]
mod pages;

use std::{fs, os::unix::fs::symlink, path::Path, process::Command};

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

#[test]
fn commands_of_pages_show_and_compare_results() {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).canonicalize().unwrap();
    let place = TempDir::new().unwrap();
    fs::create_dir_all(place.path().join("target/release")).unwrap();
    symlink(env!("CARGO_BIN_EXE_eagle-bench"), place.path().join("target/release/eagle-bench")).unwrap();
    symlink(root.join("benches"), place.path().join("benches")).unwrap();
    for name in ["before.json", "after.json"] {
        fs::copy(root.join("benches/results/2026-11-21/swarm-8-20MBps.json"), place.path().join(name)).unwrap();
    }
    let blocks = pages::run_by(&root, "eagle-bench/tests/suite.rs").unwrap();
    for block in &blocks {
        let mut shell = Command::new("sh");
        let output = shell.args(["-ec", &block.script()]).current_dir(place.path()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {text}", block.place());
    }
    for page in ["report.html", "compared.html"] {
        markup::check(&fs::read_to_string(place.path().join(page)).unwrap()).unwrap();
    }
    assert_eq!(blocks.len(), 2);
}
