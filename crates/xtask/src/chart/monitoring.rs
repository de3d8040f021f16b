//! The chart's alerts and dashboard: the rules are good ones, each alert fires when it should, and all of them ask for metrics and
//! labels that `docs/metrics.md` has.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    manifest::kind,
    tools::{DEADLINE, Tools},
};
use crate::{process::succeed, workspace};

/// Labels that Prometheus itself gives to what it scrapes, or to buckets.
const GIVEN: [&str; 3] = ["namespace", "pod", "le"];

/// The rules as the chart renders them, by `promtool check rules` and `promtool test rules`.
pub(super) fn rules(tools: &Tools, chart: &Path) -> Result<()> {
    let objects = tools.objects(chart, None, &["metrics.prometheusRule.enabled=true"])?;
    let rules = objects.iter().find(|object| kind(object) == "PrometheusRule").context("no PrometheusRule")?;
    let directory = tempfile::tempdir()?;
    // JSON is YAML.
    fs::write(directory.path().join("rules.yaml"), rules["spec"].to_string())?;
    fs::copy(chart.join("ci/alerts-test.yaml"), directory.path().join("alerts-test.yaml"))?;
    let promtool =
        |arguments: &[&str]| succeed(Command::new("promtool").args(arguments).current_dir(directory.path()), DEADLINE);
    promtool(&["check", "rules", "rules.yaml"])?;
    let tests = fs::read_to_string(chart.join("ci/alerts-test.yaml"))?;
    let groups = rules["spec"]["groups"].as_array().context("no groups")?;
    let names = groups.iter().filter_map(|group| group["rules"].as_array()).flatten();
    for name in names.map(|rule| rule["alert"].as_str().unwrap_or_default()) {
        ensure!(tests.contains(&format!("  - name: {name}\n")), "ci/alerts-test.yaml has no test of {name}");
    }
    promtool(&["test", "rules", "alerts-test.yaml"]).map(drop)
}

/// The metrics of the page, with the values of their labels.
fn documented() -> Result<BTreeMap<String, BTreeMap<String, BTreeSet<String>>>> {
    let page = fs::read_to_string(workspace::root().join("docs/metrics.md"))?;
    let rows = page.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `eagle_")?.split(" | ");
        let name = format!("eagle_{}", cells.next()?.trim_end_matches('`'));
        let labels = cells.nth(1)?.split("; ").filter_map(|label| {
            let (name, values) = label.split_once(": ")?;
            Some((name.trim_matches('`').to_owned(), values.split(", ").map(str::to_owned).collect()))
        });
        Some((name, labels.collect()))
    });
    let metrics: BTreeMap<_, _> = rows.collect();
    ensure!(metrics.len() > 50, "docs/metrics.md lists only {}", metrics.len());
    Ok(metrics)
}

/// Every metric in the dashboard, the alerts and the page's own examples is in the table of the page, and so is every value of a label
/// that is asked for by equality.
pub(super) fn names(chart: &Path) -> Result<()> {
    let metrics = documented()?;
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(chart.join("files/dashboard.json"))?)?;
    let mut asked: Vec<String> = expressions(&dashboard);
    ensure!(asked.len() > 30, "the dashboard has only {} expressions", asked.len());
    asked.push(fs::read_to_string(chart.join("files/alerts.yaml"))?);
    asked.push(fs::read_to_string(workspace::root().join("docs/metrics.md"))?);
    let mut looked = 0;
    for text in &asked {
        for (at, _) in text.match_indices("eagle_") {
            let rest = &text[at..];
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            let name = word.strip_suffix("_bucket").unwrap_or(word);
            // The page speaks of prefixes too.
            if word.ends_with('_') || word == "eagle_" {
                continue;
            }
            let known = metrics.get(name).with_context(|| format!("{word} is no metric of docs/metrics.md"))?;
            looked += 1;
            let Some((selector, _)) = after.strip_prefix('{').and_then(|after| after.split_once('}')) else { continue };
            for matcher in selector.split(',') {
                let Some((label, value)) = matcher.split_once('=') else { continue };
                let label = label.trim_end_matches('!').trim();
                let value = value.trim_start_matches('~').trim_matches('"');
                if GIVEN.contains(&label) {
                    continue;
                }
                let values = known.get(label).with_context(|| format!("{word} has no label {label}"))?;
                for value in value.split('|') {
                    ensure!(values.contains(value), "{word} has no {label} {value:?}: {values:?}");
                }
            }
        }
    }
    ensure!(looked > 60, "only {looked} names of metrics were found");
    Ok(())
}

/// The expressions of a dashboard's panels.
pub(crate) fn expressions(dashboard: &Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().into_iter().flatten();
    let targets = panels.filter_map(|panel| panel["targets"].as_array()).flatten();
    targets.filter_map(|target| target["expr"].as_str().map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn dashboard_alerts_and_page_name_metrics_that_exist() {
        super::names(&super::super::directory()).unwrap();
    }
}
