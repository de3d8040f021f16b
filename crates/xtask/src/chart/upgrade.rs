//! Upgrades from the versions before.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    Tools,
    manifest::{find, kind, name},
    tools::DEADLINE,
};
use crate::process::{finish, succeed};

/// Every value of the version before.
const PREVIOUS: &str = "ci/previous-values.yaml";
/// What Kubernetes refuses to change, by the version that made it.
const IMMUTABLE: &str = "ci/immutable.yaml";

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
    let names = |objects: &[Value]| -> Vec<String> {
        objects.iter().map(|object| format!("{} {}", kind(object), name(object))).collect()
    };
    ensure!(names(&before) == names(&now), "{:?} and {:?}", names(&before), names(&now));

    let objects = tools.objects(chart, None, &["redis.enabled=true"])?;
    let versions: BTreeMap<String, Vec<Value>> = serde_saphyr::from_str(&fs::read_to_string(chart.join(IMMUTABLE))?)?;
    ensure!(versions.len() >= 2, "{IMMUTABLE} has {} versions", versions.len());
    for (version, kept) in &versions {
        for before in kept {
            let called = before["name"].as_str().unwrap_or_default();
            let shown = format!("{} {called} of {version}", kind(before));
            let now = find(&objects, kind(before), called).with_context(|| shown.clone())?;
            let fields = before["spec"].as_object().with_context(|| format!("{shown} has no spec"))?;
            ensure!(!fields.is_empty(), "{shown} has nothing that is kept");
            for (field, value) in fields {
                ensure!(now["spec"][field] == *value, "{field} of {shown} was {value} and is {}", now["spec"][field]);
            }
        }
        let workloads = kept.iter().filter(|object| kind(object) == "StatefulSet").count();
        ensure!(workloads == 2, "{workloads} StatefulSets of {version}");
    }
    Ok(())
}
