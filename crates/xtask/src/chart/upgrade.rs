//! Upgrades from the version before.

use std::{fs, path::Path, process::Command};

use anyhow::{Result, ensure};
use serde_json::json;

use super::{
    Tools, defaults,
    manifest::{kind, name},
    tools::DEADLINE,
};
use crate::process::{finish, succeed};

/// Every value of the version before.
const PREVIOUS: &str = "ci/previous-values.yaml";

pub(super) fn check(tools: &Tools, chart: &Path) -> Result<()> {
    // That these values are accepted is checked with the others of `ci/`. What helm does with --reuse-values is to put the
    // old chart's values in the place of the new one's, so that new ones are missing.
    let directory = tempfile::tempdir()?;
    succeed(Command::new("cp").arg("-r").arg(chart).arg(directory.path()), DEADLINE)?;
    let reused = directory.path().join("eagle");
    fs::copy(chart.join(PREVIOUS), reused.join("values.yaml"))?;
    let finished = finish(&mut tools.template(&reused), DEADLINE)?;
    ensure!(
        !finished.status.success() && finished.stderr.contains("--reset-then-reuse-values"),
        "with the values of the version before alone: {}",
        finished.stderr
    );

    // What the version before rendered for them, but for the configuration, this one renders too.
    let before = tools.objects(chart, Some(&chart.join(PREVIOUS)), &[])?;
    let now = tools.objects(chart, None, &[])?;
    let names = |objects: &[serde_json::Value]| -> Vec<String> {
        objects.iter().map(|object| format!("{} {}", kind(object), name(object))).collect()
    };
    ensure!(names(&before) == names(&now), "{:?} and {:?}", names(&before), names(&now));

    // Kubernetes refuses to change these.
    let (_, seeder) = defaults(tools, chart, &[], ("StatefulSet", "seeder"))?;
    let spec = &seeder["spec"];
    ensure!(spec["serviceName"] == "release-eagle-seeder" && spec["podManagementPolicy"] == "Parallel", "{spec}");
    let claims = json!([{
        "metadata": { "name": "data" },
        "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "100Gi" } } },
    }]);
    ensure!(spec["volumeClaimTemplates"] == claims, "{}", spec["volumeClaimTemplates"]);
    for (kind, role) in [("StatefulSet", "tracker"), ("StatefulSet", "seeder"), ("DaemonSet", "proxy")] {
        let (_, workload) = defaults(tools, chart, &[], (kind, role))?;
        let labels = json!({
            "app.kubernetes.io/name": "eagle", "app.kubernetes.io/instance": "release", "app.kubernetes.io/component": role,
        });
        ensure!(workload["spec"]["selector"] == json!({ "matchLabels": labels }), "{}", workload["spec"]["selector"]);
    }
    Ok(())
}
