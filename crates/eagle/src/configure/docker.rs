//! docker: `registry-mirrors` of `daemon.json` for Docker Hub; with the containerd image store, `hosts.toml` files for
//! other registries.

use std::{fmt, path::PathBuf};

use anyhow::Result;
use serde::{Deserialize, Deserializer, de};
use serde_json::value::RawValue;

use super::{
    Wanted,
    change::{FileChange, Plan},
    hosts,
    root::Root,
};

const DAEMON_JSON: &str = "/etc/docker/daemon.json";
const CERTS: &str = "/etc/docker/certs.d";
const MIRRORS: &str = "registry-mirrors";
/// By which docker reads `daemon.json` again; mirrors are among what it takes from there without a restart.
pub(super) const RELOAD: &str = "systemctl reload docker";

pub(super) fn plan(root: &Root, wanted: &Wanted) -> Result<Plan> {
    let mut plan = Plan::default();
    if wanted.registries.is_empty() || wanted.registries.iter().any(|registry| registry.is_docker_hub()) {
        let url = wanted.url();
        plan.files.push(FileChange {
            path: PathBuf::from(DAEMON_JSON),
            added: format!("\"{url}\" in \"{MIRRORS}\""),
            edit: Box::new(move |text| edit(text, &url)),
            activate: RELOAD,
        });
    }
    let others: Vec<_> = wanted.registries.iter().filter(|registry| !registry.is_docker_hub()).collect();
    for registry in &others {
        plan.files.push(hosts::change(root, CERTS, registry.as_str(), wanted));
    }
    if !others.is_empty() {
        plan.notes.push(
            "docker mirrors registries other than Docker Hub only with the containerd image store \
             (\"features\": {\"containerd-snapshotter\": true}, the default of new installations from docker 29 on)"
                .to_owned(),
        );
    }
    Ok(plan)
}

/// The keys of an object in their order, each with its value as it is written.
struct Keys<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Keys<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Vec<(String, &'de RawValue)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut keys = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    keys.push(entry);
                }
                Ok(keys)
            }
        }
        deserializer.deserialize_map(Visitor).map(Keys)
    }
}

/// Puts the mirror first among the mirrors; every other key stays as it is written.
pub(super) fn edit(text: Option<&str>, mirror: &str) -> Result<Option<String>, String> {
    let text = text.unwrap_or_default();
    let object = if text.trim().is_empty() { "{}" } else { text };
    let Keys(mut keys) = serde_json::from_str(object).map_err(|error| format!("is not a JSON object: {error}"))?;
    if keys.iter().filter(|(key, _)| key == MIRRORS).count() > 1 {
        return Err(format!("has \"{MIRRORS}\" twice, of which docker reads the last; make it one"));
    }
    let mut mirrors: Vec<String> = match keys.iter().find(|(key, _)| key == MIRRORS) {
        Some((_, value)) => serde_json::from_str(value.get())
            .map_err(|error| format!("\"{MIRRORS}\" is not a list of URLs: {error}"))?,
        None => Vec::new(),
    };
    let plain = |url: &str| url.trim_end_matches('/').to_owned();
    if mirrors.iter().any(|known| plain(known) == plain(mirror)) {
        return Ok(None);
    }
    mirrors.insert(0, mirror.to_owned());
    let mirrors = serde_json::value::to_raw_value(&mirrors).map_err(|error| error.to_string())?;
    match keys.iter_mut().find(|(key, _)| key == MIRRORS) {
        Some((_, value)) => *value = &mirrors,
        None => keys.push((MIRRORS.to_owned(), &mirrors)),
    }
    let indent = indentation(text);
    let mut lines = Vec::new();
    for (key, value) in keys {
        let key = serde_json::to_string(&key).map_err(|error| error.to_string())?;
        lines.push(format!("{indent}{key}: {}", value.get()));
    }
    Ok(Some(format!("{{\n{}\n}}\n", lines.join(",\n"))))
}

/// What the file's first key is indented by; two spaces when that cannot be told.
fn indentation(text: &str) -> &str {
    let of = |line: &'_ str| line.len() - line.trim_start_matches([' ', '\t']).len();
    text.lines().find(|line| line.trim_start().starts_with('"') && of(line) > 0).map_or("  ", |line| &line[..of(line)])
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIRROR: &str = "http://127.0.0.1:43002";

    #[test]
    fn other_keys_stay_as_they_are_written() {
        let text = "{\n    \"log-opts\": {\"max-size\":   \"10m\"},\n    \"registry-mirrors\": [\n        \"https://other.example\"\n    ],\n    \"debug\": true\n}";
        let edited = edit(Some(text), MIRROR).unwrap().unwrap();
        assert_eq!(
            edited,
            "{\n    \"log-opts\": {\"max-size\":   \"10m\"},\n    \"registry-mirrors\": [\"http://127.0.0.1:43002\",\"https://other.example\"],\n    \"debug\": true\n}\n"
        );
        assert_eq!(edit(Some(&edited), MIRROR), Ok(None));
    }

    #[test]
    fn files_without_anything_get_the_mirror_alone() {
        for text in [None, Some(""), Some(" \n"), Some("{}")] {
            let edited = edit(text, MIRROR).unwrap().unwrap();
            assert_eq!(edited, "{\n  \"registry-mirrors\": [\"http://127.0.0.1:43002\"]\n}\n");
        }
        assert_eq!(edit(Some(r#"{"registry-mirrors": ["http://127.0.0.1:43002/"]}"#), MIRROR), Ok(None));
    }

    #[test]
    fn what_is_not_understood_is_left_alone() {
        const TWICE: &str = r#"{"registry-mirrors": [], "registry-mirrors": []}"#;
        for text in ["[]", "{", "null", r#"{"registry-mirrors": "x"}"#, r#"{"registry-mirrors": [1]}"#, "{} x", TWICE] {
            assert!(edit(Some(text), MIRROR).is_err(), "{text}");
        }
    }
}
