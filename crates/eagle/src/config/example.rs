//! `config example`: commented files in which every key stands at its default.
//!
//! The texts are written by hand, since only people know what to say about a key; tests hold them
//! to the code: each loads, names every key, and gives its true default.

use crate::cli::RoleArg;

const HEAD: &str = "\
# Eagle configuration. Every key stands at its default: delete what you do not change.
# A variable EAGLE_SECTION__KEY wins over this file (EAGLE_PROXY__CACHE_LIMIT=20GiB), a flag over both.
# Sizes: 4096, 512MB, 100GiB. Rates: 10MB/s, 50MiB/s, unlimited. Durations: 500ms, 30s, 5m.
";

/// A section's name and its text.
type Part = (&'static str, &'static str);

const CLUSTER: Part = ("cluster", include_str!("example/cluster.yaml"));
const TRACKER: Part = ("tracker", include_str!("example/tracker.yaml"));
const SEEDER: Part = ("seeder", include_str!("example/seeder.yaml"));
const PROXY: Part = ("proxy", include_str!("example/proxy.yaml"));
const P2P: Part = ("p2p", include_str!("example/p2p.yaml"));
const REGISTRIES: Part = ("registries", include_str!("example/registries.yaml"));
const PREHEAT: Part = ("preheat", include_str!("example/preheat.yaml"));
const CREDENTIALS: Part = ("credentials", include_str!("example/credentials.yaml"));
const LOG: Part = ("log", include_str!("example/log.yaml"));
const TRACES: Part = ("traces", include_str!("example/traces.yaml"));

/// The sections that a role reads, in order.
const fn parts(role: RoleArg) -> &'static [Part] {
    match role {
        RoleArg::Tracker => &[CLUSTER, TRACKER, LOG],
        RoleArg::Seeder => &[CLUSTER, SEEDER, P2P, REGISTRIES, CREDENTIALS, PREHEAT, LOG, TRACES],
        RoleArg::Proxy => &[CLUSTER, PROXY, P2P, REGISTRIES, CREDENTIALS, LOG, TRACES],
        RoleArg::Standalone | RoleArg::All => {
            &[CLUSTER, TRACKER, SEEDER, PROXY, P2P, REGISTRIES, CREDENTIALS, PREHEAT, LOG, TRACES]
        }
    }
}

/// Names of the sections that a role reads.
pub(crate) fn sections(role: RoleArg) -> Vec<&'static str> {
    parts(role).iter().map(|(name, _)| *name).collect()
}

/// The example for a role.
pub(crate) fn example(role: RoleArg) -> String {
    let mut text = HEAD.to_owned();
    for (_, part) in parts(role) {
        text.push('\n');
        text.push_str(part);
    }
    text
}
