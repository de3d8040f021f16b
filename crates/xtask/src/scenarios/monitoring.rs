//! A Prometheus fed by `eagle demo --keep`, and the queries of the chart's dashboard and alerts on what it has collected.

use std::{fs, net::SocketAddr, process::Command, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::Scene;
use crate::{
    chart::{directory, monitoring::expressions},
    http,
    process::{Process, succeed, wait_until},
    registry::free_address,
};

const DEADLINE: Duration = Duration::from_secs(60);

pub(super) fn prometheus(scene: &Scene<'_>) -> Result<()> {
    let dir = scene.directory;
    let log = dir.join("demo.log");
    let mut demo = Command::new(scene.eagle);
    // It is killed in the end, and could not remove what it has elsewhere.
    demo.args(["demo", "--keep", "--nodes", "2", "--size", "8MiB", "--rate", "unlimited"]).env("TMPDIR", dir);
    let mut demo = Process::start("eagle demo", &mut demo, &log)?;
    let config = wait_until("the demonstration to print how to watch it", DEADLINE, || {
        demo.check_running()?;
        scrape_config(&fs::read_to_string(&log)?)
    })?;
    let file = dir.join("prometheus.yml");
    // As printed, and more often: rates need two scrapes.
    fs::write(&file, config.replace("scrape_interval: 5s", "scrape_interval: 1s"))?;
    succeed(Command::new("promtool").args(["check", "config"]).arg(&file), DEADLINE)?;
    let address = free_address()?;
    let mut prometheus = Command::new("prometheus");
    prometheus.arg(format!("--config.file={}", file.display()));
    prometheus.arg(format!("--web.listen-address={address}"));
    prometheus.arg(format!("--storage.tsdb.path={}", dir.join("tsdb").display()));
    let mut prometheus = Process::start("prometheus", &mut prometheus, &dir.join("prometheus.log"))?;
    let up = wait_until("Prometheus to have scraped everybody twice", DEADLINE, || {
        prometheus.check_running()?;
        let answer = query(address, "count(count_over_time(eagle_process_tasks[1m]) >= 3)");
        Ok(answer.ok().and_then(|result| number(&result)).filter(|count| *count >= 4.0))
    })?;
    ensure!((up - 4.0).abs() < 0.5, "{up} parts are scraped: not a tracker, a seeder and two proxies");

    let dashboard: Value = serde_json::from_str(&fs::read_to_string(directory().join("files/dashboard.json"))?)?;
    for expression in expressions(&dashboard) {
        let asked = expression.replace("$namespace", "demo").replace("$__rate_interval", "20s");
        let result = query(address, &asked).with_context(|| expression.clone())?;
        let series = result.as_array().with_context(|| format!("{expression}: no vector"))?;
        ensure!(!series.is_empty(), "{expression}: no data");
        // A ratio may be no number: of what happened before the first scrape there is no increase.
    }
    let told = |expression: &str| -> Result<f64> {
        number(&query(address, expression)?).with_context(|| format!("{expression}: no number"))
    };
    // An image of 8 MiB by two nodes, and once from the registry.
    let size = f64::from(8 << 20);
    let (given, fetched) =
        (told("sum(eagle_proxy_delivered_bytes_total)")?, told("sum(eagle_seeder_origin_bytes_total)")?);
    ensure!((2.0 * size..2.2 * size).contains(&given), "{given} bytes were given to runtimes");
    ensure!((size..1.1 * size).contains(&fetched), "{fetched} bytes came from the registry");
    ensure!(told("sum(eagle_proxy_pulls_total{outcome=\"complete\"})")? >= 2.0, "no pull is counted");
    ensure!(told("sum(eagle_proxy_pull_bytes_per_second_count)")? >= 2.0, "no throughput is counted");
    Ok(())
}

/// What the demonstration prints of Prometheus, as a file; `None` while it has not.
fn scrape_config(printed: &str) -> Result<Option<String>> {
    let Some((_, rest)) = printed.split_once("    scrape_configs:\n") else { return Ok(None) };
    let lines = rest.lines().take_while(|line| line.starts_with("    ")).map(|line| &line[4..]);
    let config = format!("scrape_configs:\n{}\n", lines.collect::<Vec<_>>().join("\n"));
    Ok(config.contains("targets: [").then_some(config))
}

/// The result of an instant query (HTTP API of Prometheus, v1).
fn query(address: SocketAddr, expression: &str) -> Result<Value> {
    let encoded: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let answer = http::request(address, "GET", &format!("/api/v1/query?query={encoded}"), &[])?;
    let body: Value = serde_json::from_slice(&answer.bytes()?)?;
    if body["status"] != "success" {
        bail!("{body}");
    }
    Ok(body["data"]["result"].clone())
}

/// The value of a vector of one.
fn number(result: &Value) -> Option<f64> {
    result[0]["value"][1].as_str()?.parse().ok()
}
