//! The keys of each role's section that the schema takes are those that Eagle has.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::tools::DEADLINE;
use crate::process::succeed;

/// Keys that the chart sets itself, by the addresses, names and volumes of its own objects.
const OWN: &[(&str, &[&str])] = &[
    ("tracker", &["listen", "admin"]),
    ("seeder", &["listen", "admin", "url", "p2p_listen", "data_listen", "advertise", "data_dir", "trackers"]),
    ("proxy", &["listen", "admin", "p2p_listen", "data_listen", "advertise", "data_dir", "trackers", "seeders"]),
];
/// Keys with secrets, which do not belong in a ConfigMap: they come by `extraEnvFrom`.
const SECRET: &[(&str, &[&str])] = &[(
    "seeder",
    &[
        "object_store.access_key_id",
        "object_store.secret_access_key",
        "object_store.session_token",
        "object_store.account_key",
    ],
)];

pub(super) fn check(chart: &Path, eagle: &Path) -> Result<()> {
    let schema: Value = serde_json::from_str(&fs::read_to_string(chart.join("values.schema.json"))?)?;
    for (role, own) in OWN {
        let example = succeed(Command::new(eagle).args(["config", "example", role]), DEADLINE)?;
        let example: Value = serde_saphyr::from_str(&example)?;
        let mut keys = BTreeSet::new();
        of_example(&example[role], "", &mut keys);
        let secret = SECRET.iter().filter(|(of, _)| of == role).flat_map(|(_, keys)| *keys);
        for key in own.iter().chain(secret) {
            ensure!(keys.remove(*key), "{role} has no key {key}");
        }
        let mut accepted = BTreeSet::new();
        let config = &schema["properties"][role]["properties"]["config"];
        of_schema(config, "", &mut accepted).with_context(|| format!("config of {role}"))?;
        let lacking: Vec<_> = keys.difference(&accepted).collect();
        ensure!(lacking.is_empty(), "values.schema.json lacks keys of {role}.config: {lacking:?}");
        let unknown: Vec<_> = accepted.difference(&keys).collect();
        ensure!(
            unknown.is_empty(),
            "values.schema.json has keys in {role}.config that are not to be given: {unknown:?}"
        );
        ensure!(keys.len() > 5, "{role} has {keys:?}");
    }
    Ok(())
}

fn of_example(section: &Value, before: &str, keys: &mut BTreeSet<String>) {
    for (key, value) in section.as_object().into_iter().flatten() {
        match value.as_object() {
            Some(map) if !map.is_empty() => of_example(value, &format!("{before}{key}."), keys),
            _ => drop(keys.insert(format!("{before}{key}"))),
        }
    }
}

fn of_schema(section: &Value, before: &str, keys: &mut BTreeSet<String>) -> Result<()> {
    ensure!(section["additionalProperties"] == false, "{before} takes any key");
    for (key, value) in section["properties"].as_object().context("no properties")? {
        if value["properties"].is_object() {
            of_schema(value, &format!("{before}{key}."), keys)?;
        } else {
            keys.insert(format!("{before}{key}"));
        }
    }
    Ok(())
}
