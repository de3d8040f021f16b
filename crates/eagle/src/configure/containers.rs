//! podman, CRI-O and the other programs that read `registries.conf`.

use std::path::{Path, PathBuf};

use anyhow::Result;
use eagle_registry::RegistryName;
use toml_edit::{DocumentMut, Item};

use super::{
    Wanted,
    change::{FileChange, Plan},
    root::Root,
};

const DROP_IN: &str = "/etc/containers/registries.conf.d/eagle.conf";
const DROP_INS: &str = "/etc/containers/registries.conf.d";
const MAIN: &str = "/etc/containers/registries.conf";

/// `activate` is how the runtime reads the files again; empty when it does by itself.
pub(super) fn plan(root: &Root, wanted: &Wanted, activate: &'static str) -> Result<Plan> {
    let mut plan = Plan::default();
    let hub: RegistryName = "docker.io".parse()?;
    // There is no form for "every registry".
    let registries = if wanted.registries.is_empty() { vec![hub] } else { wanted.registries.clone() };
    let others = others(root)?;
    let mut missing = Vec::new();
    for registry in registries {
        let location = wanted.location(&registry);
        let mut has = false;
        for (path, text) in &others {
            let shown = root.shown(path);
            let shown = shown.display();
            match find(text, &registry, &location) {
                Ok(Entry::None) => {}
                Ok(Entry::WithMirror) => has = true,
                Ok(Entry::WithoutMirror) => plan.problems.push(format!(
                    "{shown}: has an entry for {registry}, which a second one would replace; add to it by hand:\n\
                     [[registry.mirror]]\nlocation = \"{location}\"\ninsecure = true"
                )),
                Err(problem) => plan.problems.push(format!("{shown}: {problem}")),
            }
        }
        if !has {
            missing.push(registry);
        }
    }
    if !missing.is_empty() {
        let list: Vec<String> = missing.iter().map(ToString::to_string).collect();
        let wanted = wanted.clone();
        plan.files.push(FileChange {
            path: PathBuf::from(DROP_IN),
            added: format!("a mirror for {}", list.join(", ")),
            edit: Box::new(move |text| edit(text, &missing, &wanted)),
            activate,
        });
    }
    Ok(plan)
}

/// The files besides Eagle's own that podman and CRI-O read.
fn others(root: &Root) -> Result<Vec<(PathBuf, String)>> {
    let mut paths = vec![PathBuf::from(MAIN)];
    let names = root.names(Path::new(DROP_INS))?;
    paths.extend(names.iter().filter(|name| name.ends_with(".conf")).map(|name| Path::new(DROP_INS).join(name)));
    let mut files = Vec::new();
    for path in paths.into_iter().filter(|path| path != Path::new(DROP_IN)) {
        if let Some(text) = root.text(&path)? {
            files.push((path, text));
        }
    }
    Ok(files)
}

/// What a file says about a registry.
#[derive(Debug, PartialEq, Eq)]
enum Entry {
    None,
    WithMirror,
    WithoutMirror,
}

fn find(text: &str, registry: &RegistryName, location: &str) -> Result<Entry, String> {
    let document: DocumentMut =
        text.parse().map_err(|error: toml_edit::TomlError| format!("is not valid TOML: {}", error.message()))?;
    let Some(entries) = document.get("registry") else { return Ok(Entry::None) };
    let Some(entries) = entries.as_array_of_tables() else {
        return Err("has `registry` in another form than [[registry]], which eagle does not change".to_owned());
    };
    for entry in entries {
        let text = |key| entry.get(key).and_then(Item::as_str);
        if text("prefix").filter(|prefix| !prefix.is_empty()).or_else(|| text("location")) != Some(registry.as_str()) {
            continue;
        }
        let mut mirrors = entry.get("mirror").and_then(Item::as_array_of_tables).into_iter().flatten();
        let has = mirrors.any(|mirror| mirror.get("location").and_then(Item::as_str) == Some(location));
        return Ok(if has { Entry::WithMirror } else { Entry::WithoutMirror });
    }
    Ok(Entry::None)
}

/// Adds an entry for each registry that has none.
pub(super) fn edit(text: Option<&str>, registries: &[RegistryName], wanted: &Wanted) -> Result<Option<String>, String> {
    let mut edited = match text.filter(|text| !text.trim().is_empty()) {
        Some(text) => text.to_owned(),
        None => "# Written by `eagle configure`, which can undo it.\n".to_owned(),
    };
    let mut changed = false;
    for registry in registries {
        let location = wanted.location(registry);
        match find(&edited, registry, &location)? {
            Entry::WithMirror => continue,
            Entry::WithoutMirror => {
                return Err(format!(
                    "has an entry for {registry} without the mirror; add to it by hand:\n\
                     [[registry.mirror]]\nlocation = \"{location}\"\ninsecure = true"
                ));
            }
            Entry::None => changed = true,
        }
        if !edited.ends_with('\n') {
            edited.push('\n');
        }
        // `insecure`: plain http, on this machine's own loopback interface.
        edited.push_str(&format!(
            "\n[[registry]]\nprefix = \"{registry}\"\nlocation = \"{registry}\"\n\n\
             [[registry.mirror]]\nlocation = \"{location}\"\ninsecure = true\n"
        ));
    }
    // What was added stands at the end; a file of an unusual form would come out as something else.
    if !registries.iter().all(|registry| find(&edited, registry, &wanted.location(registry)) == Ok(Entry::WithMirror)) {
        return Err("has a form that eagle does not change".to_owned());
    }
    Ok(changed.then_some(edited))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(registries: &[&str]) -> Wanted {
        Wanted {
            address: "127.0.0.1:43002".parse().unwrap(),
            registries: registries.iter().map(|name| name.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn entries_are_added_once() {
        let wanted = wanted(&["docker.io", "ghcr.io"]);
        let text = edit(None, &wanted.registries[..1], &wanted).unwrap().unwrap();
        assert!(text.contains("location = \"127.0.0.1:43002/docker.io\"\ninsecure = true\n"), "{text}");
        assert_eq!(edit(Some(&text), &wanted.registries[..1], &wanted), Ok(None));
        let both = edit(Some(&text), &wanted.registries, &wanted).unwrap().unwrap();
        assert!(both.starts_with(&text), "{both}");
        assert_eq!(edit(Some(&both), &wanted.registries, &wanted), Ok(None));
    }

    #[test]
    fn entries_by_hand_are_recognised() {
        let registry: RegistryName = "docker.io".parse().unwrap();
        let location = "127.0.0.1:43002/docker.io";
        for (text, entry) in [
            ("unqualified-search-registries = [\"docker.io\"]\n", Entry::None),
            ("[[registry]]\nlocation = \"docker.io\"\n", Entry::WithoutMirror),
            ("[[registry]]\nprefix = \"docker.io\"\nlocation = \"mirror.example\"\n", Entry::WithoutMirror),
            ("[[registry]]\nprefix = \"other.io\"\nlocation = \"docker.io\"\n", Entry::None),
            (
                "[[registry]]\nlocation = \"docker.io\"\n[[registry.mirror]]\nlocation = \"127.0.0.1:43002/docker.io\"\n",
                Entry::WithMirror,
            ),
        ] {
            assert_eq!(find(text, &registry, location), Ok(entry), "{text}");
        }
        assert!(find("[[registry", &registry, location).is_err());
        // The fuzzer found the first: an entry after it would be a second `registry`.
        for text in ["[[registry.mirror]]\nlocation = \"a\"\n", "registry = [{ prefix = \"a\" }]\n", "registry = 1\n"] {
            assert!(edit(Some(text), std::slice::from_ref(&registry), &wanted(&[])).is_err(), "{text}");
        }
    }
}
