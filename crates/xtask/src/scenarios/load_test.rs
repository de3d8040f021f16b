//! `eagle-bench` with what it needs besides itself: runtimes that pull, and a proxy.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Scene;
use crate::{
    browser::Browser,
    cluster::{Cluster, Settings},
    image::{REPOSITORY, TAG},
    process::{Process, succeed, wait_until},
    registry::free_address,
    runtimes::{Containerd, Mirror},
};

/// A few pulls of the image, and the removal of what they left.
const DEADLINE: Duration = Duration::from_secs(240);
/// Plots of a report of pulls, at least: time against iteration, percentiles, throughput, the registry's bytes.
const LEAST_PLOTS: u64 = 4;
/// Both ends of what agents and controller say.
const TOKEN: &str = "a-token-that-nobody-guesses";

pub(super) fn with_runtimes(scene: &Scene<'_>) -> Result<()> {
    let registry = scene.registry()?;
    let cluster = Cluster::start(scene, registry.address(), Settings { nodes: 2, ..Settings::default() })?;
    let proxies = [0, 1].map(|node| format!("http://{}", cluster.proxy(node)));
    let image = format!("docker.io/{REPOSITORY}:{TAG}");
    let pull = |runtime: &str, proxies: &[String]| -> Result<Command> {
        let mut command = bench(scene)?;
        command.args(["pull", "--runtime", runtime, "--iterations", "1", "--image", &image]);
        command.args(proxies.iter().flat_map(|proxy| ["--proxy", proxy]));
        Ok(command)
    };

    // Of two that pull at once each has a proxy of its own.
    let report = measured(scene, pull("skopeo", &proxies)?.args(["--concurrency", "2"]))?;
    expect(&report, "skopeo", &[("eagle", 2)])?;
    registry.expect_each_once(scene.image.blobs())?;
    for pull in list(&report, "pulls") {
        ensure!(pull["bytes"] == scene.image.blob_bytes(), "the image has {} bytes: {pull}", scene.image.blob_bytes());
    }

    let containerd = Containerd::start(&scene.directory.join("containerd"), Mirror::Eagle(cluster.proxy(0)))?;
    let mut command = pull("containerd", &proxies[..1])?;
    command.env("CONTAINERD_ADDRESS", containerd.socket()).args(["--concurrency", "1"]);
    let report = measured(scene, &mut command)?;
    expect(&report, "containerd", &[("eagle", 1)])?;
    // All of it came from the cache.
    registry.expect_each_once(scene.image.blobs())?;

    with_agents(scene)?;
    cache(scene)
}

/// A proxy with a cache that is full starts with all of it, and how long that takes is measured.
fn cache(scene: &Scene<'_>) -> Result<()> {
    let json = scene.directory.join("cache.json");
    let mut command = bench(scene)?;
    command.args("cache --entries 1000 --size 1MiB --blobs 300 --victims 50 --rounds 1".split(' '));
    succeed(command.arg("--eagle").arg(scene.eagle).arg("--json").arg(&json), DEADLINE)?;
    let start = &serde_json::from_slice::<Value>(&fs::read(json)?)?["start"];
    let seconds = ["seconds", "proxy_seconds"].map(|name| start[name].as_f64().unwrap_or_default());
    // A proxy opens a cache, too, and has more to do.
    ensure!(start["blobs"] == 300 && 0.0 < seconds[0] && seconds[0] < seconds[1], "{start}");
    Ok(())
}

/// Two agents have skopeo pull from a registry that counts what it sends.
fn with_agents(scene: &Scene<'_>) -> Result<()> {
    let agents = [agent(scene, "agent-1")?, agent(scene, "agent-2")?];
    let mut command = bench(scene)?;
    command.args(["pull", "--runtime", "skopeo", "--local", "--nodes", "2", "--size", "4MiB", "--eagle"]);
    command.arg(scene.eagle).args(["--concurrency", "2", "--iterations", "2"]);
    command.args(agents.iter().flat_map(|(_, url)| ["--agent", url]));
    let page = scene.directory.join("pulls.html");
    let report = measured(scene, command.arg("--html").arg(&page))?;
    in_a_browser(scene, &page, &report)?;
    expect(&report, "skopeo", &[("direct", 4), ("eagle", 4)])?;
    for step in list(&report, "steps") {
        let (sent, got) = (step["origin_bytes"].as_u64(), step["bytes"].as_u64().context("no bytes")?);
        let times = if step["series"] == "eagle" { 1 } else { 4 };
        ensure!(got > 4 * (4 << 20) && sent == Some(got / 4 * times), "the registry sent {sent:?} bytes: {step}");
    }
    for (_, url) in &agents {
        let pulls =
            list(&report, "pulls").filter(|pull| pull["agent"].as_str().is_some_and(|name| url.ends_with(name)));
        let pulls = pulls.count();
        ensure!(pulls == 4, "{url} made {pulls} pulls, not a half of 8: {report}");
    }
    Ok(())
}

/// The page of a run as people see it: drawn without a complaint of the browser, in light and dark, and nothing of it beside a narrow window.
fn in_a_browser(scene: &Scene<'_>, page: &Path, report: &Value) -> Result<()> {
    let browser = Browser::start(&scene.directory.join("browser"))?;
    browser.open(&format!("file://{}", page.display()))?;
    let plots = browser.script(
        "return [...document.querySelectorAll('svg[role=img]')].filter(plot => plot.getBoundingClientRect().height > 50 \
         && plot.querySelector('path, circle, rect')).length",
    )?;
    ensure!(plots.as_u64() >= Some(LEAST_PLOTS), "{plots} plots are drawn");
    let shown = browser.script("return document.body.textContent")?;
    let shown = shown.as_str().context("the page has no text")?;
    for told in [&report["host"]["cpu"], &report["version"], &report["runtime"]] {
        ensure!(told.as_str().is_some_and(|told| shown.contains(told)), "the page does not say {told}");
    }
    let background = "return getComputedStyle(document.documentElement).backgroundColor + getComputedStyle(document.body).backgroundColor";
    let light = browser.script(background)?;
    browser.emulate_dark()?;
    ensure!(browser.script(background)? != light, "dark and light look the same");
    let beside =
        browser.script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")?;
    ensure!(beside == 0, "{beside} pixels of the page are beside the window");
    browser.screenshot(&scene.directory.join("pulls.png"))?;
    let problems = browser.problems()?;
    ensure!(problems.is_empty(), "the browser complains: {problems:?}");
    Ok(())
}

/// An agent, and its URL.
fn agent(scene: &Scene<'_>, name: &str) -> Result<(Process, String)> {
    let address = free_address()?.to_string();
    let log = scene.directory.join(format!("{name}.log"));
    let mut agent = Process::start(name, bench(scene)?.args(["agent", "--listen", &address]), &log)?;
    wait_until("an agent to wait", DEADLINE, || {
        agent.check_running()?;
        Ok(fs::read_to_string(&log)?.contains("Waiting for a controller").then_some(()))
    })?;
    Ok((agent, format!("http://{address}")))
}

/// The program, which leaves nothing but in the directory of the scenario.
fn bench(scene: &Scene<'_>) -> Result<Command> {
    let mut command = Command::new(scene.eagle_bench.context("there is no eagle-bench")?);
    command.env("TMPDIR", scene.directory).env("EAGLE_BENCH_TOKEN", TOKEN);
    Ok(command)
}

/// What a run writes, which has to succeed.
fn measured(scene: &Scene<'_>, command: &mut Command) -> Result<Value> {
    let (json, csv): (&Path, &Path) = (&scene.directory.join("pulls.json"), &scene.directory.join("pulls.csv"));
    succeed(command.arg("--json").arg(json).arg("--csv").arg(csv), DEADLINE)?;
    let report: Value = serde_json::from_slice(&fs::read(json)?)?;
    let csv = fs::read_to_string(csv)?;
    let runtime = report["runtime"].as_str().context("no runtime")?;
    let lines = csv.lines().skip(1).filter(|line| line.contains(",true,") && line.contains(&format!(",{runtime},")));
    let (lines, pulls) = (lines.count(), list(&report, "pulls").count());
    ensure!(csv.starts_with("iteration,success,seconds,") && lines == pulls, "{pulls} pulls by {runtime}:\n{csv}");
    Ok(report)
}

/// That these are the series of the only step, with so many pulls by the runtime that succeeded.
fn expect(report: &Value, runtime: &str, series: &[(&str, u64)]) -> Result<()> {
    let steps: Vec<_> = list(report, "steps").collect();
    let as_wanted = |(step, (name, pulls)): (&&Value, &(&str, u64))| {
        step["series"] == *name
            && step["pulls"] == *pulls
            && step["succeeded"] == *pulls
            && step["seconds"]["p50"].is_f64()
    };
    let whose = report["agents"].as_array().filter(|agents| !agents.is_empty());
    let versions = whose.map_or_else(|| vec![report], |agents| agents.iter().collect());
    let dotted = |of: &&Value| of["runtime_version"].as_str().is_some_and(|version| version.contains('.'));
    ensure!(versions.iter().all(dotted), "the version of {runtime} is not told: {report}");
    ensure!(
        report["runtime"] == runtime && steps.len() == series.len() && steps.iter().zip(series).all(as_wanted),
        "not {series:?} by {runtime}: {report}"
    );
    Ok(())
}

fn list<'a>(report: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    report[name].as_array().map(Vec::as_slice).unwrap_or_default().iter()
}
