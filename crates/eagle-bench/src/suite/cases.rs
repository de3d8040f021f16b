//! The standard set, and the same with little to do.

use std::path::Path;

/// A benchmark of the set.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) name: &'static str,
    /// As one would write it behind `eagle-bench`.
    line: &'static str,
}

/// The plans that are simulated, written beside the results so that their command lines can be repeated.
pub(super) const PLANS: [(&str, &str); 2] = [
    ("flash-1k.toml", include_str!("../../../../benches/plans/flash-1k.toml")),
    ("zones.toml", include_str!("../../../../benches/plans/zones.toml")),
];

/// In the order in which they run: name, standard, quick.
const CASES: [(&str, &str, Option<&str>); 16] = [
    ("floor", "floor", Some("floor --size 64MiB")),
    ("swarm-8-20MBps", "swarm --nodes 8 --size 128MiB --rate 20MB/s", Some("swarm --nodes 3 --size 4MiB --rate 8MB/s")),
    ("swarm-16-10MBps", "swarm --nodes 16 --size 256MiB --rate 10MB/s", None),
    ("swarm-16-10MBps-none", "swarm --nodes 16 --size 256MiB --rate 10MB/s --encryption none", None),
    ("swarm-16-10MBps-stagger-5s", "swarm --nodes 16 --size 256MiB --rate 10MB/s --stagger 5s", None),
    (
        "swarm-8-unlimited-tls",
        "swarm --nodes 8 --size 1GiB --rate unlimited --encryption tls",
        Some("swarm --nodes 3 --size 16MiB --rate unlimited --encryption tls"),
    ),
    ("swarm-8-unlimited-none", "swarm --nodes 8 --size 1GiB --rate unlimited --encryption none", None),
    ("swarm-1-unlimited-4GiB", "swarm --nodes 1 --size 4GiB --rate unlimited --encryption none", None),
    (
        "pull-local",
        "pull --local --nodes 4 --size 64MiB --warm-up 1",
        Some("pull --local --nodes 2 --size 2MiB --warm-up 1 --concurrency 1,8 --iterations 2"),
    ),
    (
        "pull-unique",
        "pull --local --nodes 4 --size 64MiB --warm-up 1 --unique",
        Some("pull --local --nodes 2 --size 2MiB --warm-up 1 --unique --concurrency 1,8 --iterations 2"),
    ),
    ("serve", "serve", Some("serve --large 4MiB --clients 1,4 --rounds 2 --seconds 0.2")),
    ("cache", "cache", Some("cache --entries 2000 --size 8MiB --blobs 200 --victims 50 --rounds 1")),
    ("limits", "limits", Some("limits --rates 1MiB/s --seconds 1.5 --no-processes")),
    (
        "tracker",
        "tracker",
        Some(
            "tracker --peers 500 --blobs 200 --blobs-per-peer 20 --updates 10 --connections 8 --duration 1s --no-expiry",
        ),
    ),
    ("sim-flash-1k", "sim --plan {plans}/flash-1k.toml", Some("sim --plan {plans}/flash-1k.toml --scale 0.02")),
    ("sim-zones", "sim --plan {plans}/zones.toml", Some("sim --plan {plans}/zones.toml --scale 0.02")),
];

/// What is run.
pub(super) fn all(quick: bool) -> Vec<Case> {
    let picked = |&(name, standard, short): &(&'static str, &'static str, Option<&'static str>)| {
        Some(Case { name, line: if quick { short? } else { standard } })
    };
    CASES.iter().filter_map(picked).collect()
}

/// All names, for an error.
pub(super) fn names() -> String {
    CASES.map(|(name, ..)| name).join(", ")
}

impl Case {
    /// The subcommand and its arguments, for results in this directory.
    pub(super) fn arguments(&self, directory: &Path) -> Vec<String> {
        let plans = directory.join("plans").to_string_lossy().into_owned();
        self.line.split(' ').map(|word| word.replace("{plans}", &plans)).collect()
    }

    /// Whether it starts the eagle program.
    pub(super) fn starts_eagle(&self) -> bool {
        ["swarm", "pull", "serve", "limits", "tracker", "cache"].iter().any(|command| self.line.starts_with(command))
    }
}
