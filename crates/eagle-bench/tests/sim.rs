//! Every plan of `benches/plans`, scaled down.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use tempfile::TempDir;

fn plans() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../benches/plans");
    let mut plans: Vec<PathBuf> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    plans.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    plans.sort();
    plans
}

/// Runs a plan; returns the report and the picture.
fn sim(plan: &Path, arguments: &[&str]) -> (Value, String) {
    let results = TempDir::new().unwrap();
    let (json, svg) = (results.path().join("sim.json"), results.path().join("sim.svg"));
    let output = Command::new(env!("CARGO_BIN_EXE_eagle-bench"))
        .args(["sim", "--plan"])
        .arg(plan)
        .arg("--json")
        .arg(&json)
        .arg("--svg")
        .arg(&svg)
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}: {}", plan.display(), String::from_utf8_lossy(&output.stderr));
    (serde_json::from_slice(&fs::read(json).unwrap()).unwrap(), fs::read_to_string(svg).unwrap())
}

#[test]
fn every_plan_runs_to_its_end() {
    let plans = plans();
    let names: Vec<_> = plans.iter().map(|plan| plan.file_stem().unwrap().to_str().unwrap()).collect();
    for name in
        ["churn", "flash-10k", "flash-1k", "kraken", "lopsided", "mixed", "racks", "staggered", "two-regions", "zones"]
    {
        assert!(names.contains(&name), "{name} is missing in {names:?}");
    }
    for plan in &plans {
        // Few nodes, whatever the plan has.
        let text = fs::read_to_string(plan).unwrap();
        let scale = if text.contains("count = 10000") { "0.002" } else { "0.01" };
        let (report, svg) = sim(plan, &["--scale", scale]);
        let number = |name: &str| report[name].as_u64().unwrap_or_else(|| panic!("{name} in {report:#}"));
        assert_eq!(number("finished") + number("vanished"), number("nodes"), "{}", plan.display());
        // The ideal knows nothing of links that nodes share: with a handful of nodes those of racks and regions decide.
        let least = if text.contains("rack_rate") || text.contains("region_rate") { 0.02 } else { 0.1 };
        assert!(report["efficiency"]["max"].as_f64().unwrap() > least, "{report:#}");
        assert!(!report["targets"].as_array().unwrap().is_empty(), "{}", plan.display());
        assert!(svg.starts_with("<svg") && svg.matches("<polyline").count() == 7, "{svg}");
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let plan = plans().into_iter().find(|plan| plan.ends_with("churn.toml")).unwrap();
    let trace = |seed: &str| sim(&plan, &["--scale", "0.01", "--seed", seed]).0["trace"].as_str().unwrap().to_owned();
    let first = trace("7");
    assert_eq!(first.len(), 64);
    assert_eq!(first, trace("7"));
    assert_ne!(first, trace("8"));
}

#[test]
fn a_mistake_in_a_plan_is_named_with_its_line() {
    let directory = TempDir::new().unwrap();
    let plan = directory.path().join("wrong.toml");
    fs::write(&plan, "description = \"wrong\"\nnodes = 5\n").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_eagle-bench")).args(["sim", "--plan"]).arg(&plan).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("line 2") && error.contains("nodes"), "{error}");
}
