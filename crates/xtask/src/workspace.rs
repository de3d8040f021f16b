//! The workspace: where it is, its programs, its own tests.

use std::{
    env,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{
    process::succeed,
    report::{Counts, Report},
};

/// cargo may have to wait for another cargo.
const METADATA_DEADLINE: Duration = Duration::from_secs(300);

/// The example of `eagle-store` that is an S3 server.
const S3_SERVER: &str = "s3-server";

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest).to_owned()
}

/// Where the tasks keep what they build and what they download.
pub(crate) fn cache() -> Result<PathBuf> {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let cache = target.join("xtask");
    std::fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
    Ok(cache)
}

fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Runs every test of the workspace and counts them from cargo's own lines.
pub(crate) fn test(report: &mut Report, only: Option<&str>) -> Result<()> {
    let mut command = cargo();
    command.args(["test", "--workspace", "--no-fail-fast"]);
    if let Some(only) = only {
        command.args(["--", only]);
    }
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start cargo test")?;
    let mut counts = Counts::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            println!("{line}");
            count(&line, &mut counts);
        }
    }
    let status = child.wait()?;
    if !status.success() && counts.failed == 0 {
        println!("cargo test ended with {status} before any test failed: the build is broken");
        counts.failed += 1;
    }
    report.add("cargo test", counts);
    Ok(())
}

/// Adds a line like `test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s`.
fn count(line: &str, counts: &mut Counts) {
    let Some(rest) = line.strip_prefix("test result: ") else { return };
    for part in rest.split(&['.', ';'][..]) {
        let mut words = part.split_whitespace();
        let (Some(number), Some(what)) = (words.next(), words.next()) else { continue };
        let Ok(number) = number.parse::<u64>() else { continue };
        match what {
            "passed" => counts.passed += number,
            "failed" => counts.failed += number,
            "ignored" => counts.skipped += number,
            _ => {}
        }
    }
}

/// What cargo knows of the workspace's own crates, as JSON.
pub(crate) fn metadata() -> Result<String> {
    let mut command = cargo();
    command.args(["metadata", "--no-deps", "--format-version", "1"]);
    succeed(&mut command, METADATA_DEADLINE)
}

/// Builds the `eagle` program and says where it is.
pub(crate) fn eagle() -> Result<PathBuf> {
    build("eagle", "--bin", "eagle", |_| Ok(()))
}

/// Builds the `eagle` program as the image has it, with no library beside it, and says where it is.
///
/// The crates are those of [`eagle`], linked once more: which C library a program is linked with is decided by its last link. What is
/// built is put aside, for the next build of the program takes its place.
pub(crate) fn static_eagle() -> Result<PathBuf> {
    let mut command = cargo();
    command.args(["rustc", "--package", "eagle", "--bin", "eagle", "--message-format", "json-render-diagnostics"]);
    command.args(["--", "-C", "target-feature=+crt-static"]);
    let built = built(command, "eagle")?;
    let aside = cache()?.join("static-eagle");
    std::fs::copy(&built, &aside).with_context(|| format!("cannot write {}", aside.display()))?;
    Ok(aside)
}

/// Builds the `eagle-bench` program and says where it is.
pub(crate) fn eagle_bench() -> Result<PathBuf> {
    beside_tests("--bin", "eagle-bench")
}

/// Builds the members of a cluster that mean harm and says where they are. Those of a release build leave the processors that all share to others: the
/// key exchanges of a debug build take a whole one.
pub(crate) fn hostile_member(release: bool) -> Result<PathBuf> {
    let name = "hostile-member";
    if !release {
        return beside_tests("--example", name);
    }
    build("eagle-seeder", "--example", name, |command| {
        command.arg("--release");
        Ok(())
    })
}

/// Builds the S3 server of the scenarios and says where it is.
pub(crate) fn s3_server() -> Result<PathBuf> {
    beside_tests("--example", S3_SERVER)
}

/// Builds a program from the crates as the workspace's tests have them, and says where it is. Built for its package alone, it would
/// have crates with other features: each of these programs took minutes more.
fn beside_tests(kind: &str, name: &str) -> Result<PathBuf> {
    let mut command = cargo();
    // Only where there is an example among what is built do the features that tests want count.
    command.args(["build", "--workspace", "--example", S3_SERVER, kind, name]);
    command.args(["--message-format", "json-render-diagnostics"]);
    built(command, name)
}

/// Builds one program of a package, of this kind of target, in a way of its own, and says where it is.
pub(crate) fn build(
    package: &str,
    kind: &str,
    name: &str,
    way: impl FnOnce(&mut Command) -> Result<()>,
) -> Result<PathBuf> {
    let mut command = cargo();
    command.args(["build", "--package", package, kind, name, "--message-format", "json-render-diagnostics"]);
    way(&mut command)?;
    built(command, name)
}

/// Runs a build of cargo's, and says where it put the program.
fn built(mut command: Command, name: &str) -> Result<PathBuf> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("cannot start cargo build")?;
    if !output.status.success() {
        bail!("cargo build of {name} ended with {}", output.status);
    }
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["reason"] == "compiler-artifact" && message["target"]["name"] == name)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .with_context(|| format!("cargo did not say where it built {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_cargo_says() {
        let mut counts = Counts::default();
        count(
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.10s",
            &mut counts,
        );
        count("test result: FAILED. 2 passed; 4 failed; 0 ignored; 0 measured; 0 filtered out", &mut counts);
        count("test something ... ok", &mut counts);
        assert_eq!((counts.passed, counts.failed, counts.skipped), (14, 4, 1));
    }
}
