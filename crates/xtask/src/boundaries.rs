//! The boundaries between the crates, from what cargo itself says depends on what.
//!
//! `.deny.toml` says the same for cargo-deny, which also looks at licences; this needs nothing but cargo and takes no time.

use std::collections::BTreeSet;

use anyhow::ensure;
use serde::Deserialize;

use crate::{report::Report, workspace};

/// The crates from the top to the bottom. A crate may depend on those after it (`docs/architecture.md`).
const ORDER: &[&str] = &[
    "eagle",
    "eagle-bench",
    "eagle-proxy",
    "eagle-seeder",
    "eagle-tracker",
    "eagle-p2p",
    "eagle-registry",
    "eagle-store",
    "eagle-cluster",
    "eagle-sim",
    "eagle-core",
];

/// Crates beside that order, and all that they may depend on.
const APART: &[(&str, &[&str])] = &[
    ("xtask", &[]),
    (
        "eagle-fuzz",
        &[
            "eagle",
            "eagle-cluster",
            "eagle-core",
            "eagle-p2p",
            "eagle-proxy",
            "eagle-registry",
            "eagle-seeder",
            "eagle-store",
            "eagle-tracker",
        ],
    ),
];

/// Who alone may depend on crates that begin with this.
const OWNED: &[(&str, &str)] = &[("libp2p", "eagle-p2p"), ("redis", "eagle-tracker"), ("object_store", "eagle-store")];

/// What the core must not have, for it does no I/O, has no clock and no randomness of its own.
const NOT_IN_CORE: &[&str] = &["tokio", "hyper", "socket2", "rustix", "mio", "async-std", "futures-timer", "getrandom"];

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
}

/// Checks the manifests of the workspace.
pub(crate) fn check(report: &mut Report) {
    report.test("boundaries of the crates", || {
        let metadata: Metadata = serde_json::from_str(&workspace::metadata()?)?;
        let wrong = violations(&metadata.packages);
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    });
}

fn violations(packages: &[Package]) -> Vec<String> {
    let names: BTreeSet<&str> = packages.iter().map(|package| package.name.as_str()).collect();
    let mut wrong = Vec::new();
    for Package { name, dependencies } in packages {
        let place = ORDER.iter().position(|other| other == name);
        let apart = APART.iter().find(|(other, _)| other == name).map(|(_, allowed)| *allowed);
        if place.is_none() && apart.is_none() {
            wrong.push(format!("{name} has no place in the order of the crates"));
        }
        for dependency in dependencies {
            let on = dependency.name.as_str();
            // Tests may use what the code may not.
            let for_tests = dependency.kind.as_deref() == Some("dev");
            if names.contains(on) && !for_tests {
                let below = ORDER.iter().position(|other| *other == on);
                let allowed = match (place, apart) {
                    (_, Some(allowed)) => allowed.contains(&on),
                    (Some(place), None) => below.is_some_and(|below| below > place),
                    (None, None) => true,
                };
                if !allowed {
                    wrong.push(format!("{name} may not depend on {on}: dependencies point down the order"));
                }
            }
            for (prefix, owner) in OWNED {
                if on.starts_with(prefix) && name != owner && !for_tests {
                    wrong.push(format!("{name} may not depend on {on}: only {owner} may"));
                }
            }
            if name == "eagle-core" && NOT_IN_CORE.contains(&on) && !for_tests {
                wrong.push(format!("eagle-core may not depend on {on}: it does no I/O and has no clock"));
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, on: &[(&str, Option<&str>)]) -> Package {
        let dependencies =
            on.iter().map(|&(name, kind)| Dependency { name: name.into(), kind: kind.map(Into::into) }).collect();
        Package { name: name.into(), dependencies }
    }

    #[test]
    fn sees_what_points_the_wrong_way() {
        let packages = [
            package("eagle-core", &[("sha2", None), ("tokio", None), ("proptest", Some("dev"))]),
            package("eagle-store", &[("eagle-core", None), ("eagle-proxy", None), ("libp2p", Some("dev"))]),
            package("eagle-proxy", &[("eagle-store", None), ("libp2p-stream", None)]),
            package("eagle-sim", &[("eagle-core", None), ("eagle-store", None)]),
            package("eagle-new", &[]),
        ];
        let wrong = violations(&packages);
        let expected = [
            "eagle-core may not depend on tokio",
            "eagle-store may not depend on eagle-proxy",
            "eagle-proxy may not depend on libp2p-stream",
            "eagle-sim may not depend on eagle-store",
            "eagle-new has no place",
        ];
        assert_eq!(wrong.len(), expected.len(), "{wrong:?}");
        for (wrong, expected) in wrong.iter().zip(expected) {
            assert!(wrong.starts_with(expected), "{wrong}");
        }
    }
}
