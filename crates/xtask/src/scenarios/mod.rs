//! The end-to-end scenarios.

mod bad_input;
mod cache;
mod changed_names;
mod chart;
mod configured;
mod dashboard;
mod disk_faults;
mod documented;
mod forward;
mod host;
mod hostile;
mod limits;
mod load_test;
mod login_pushes;
mod membership;
mod monitoring;
mod newer_runtimes;
mod outages;
mod preheat;
mod private;
mod private_runtimes;
mod pulls;
mod quickstart;
mod shared_storage;
mod specification;
mod split_views;
mod tls_front;
mod two_trackers;
mod zones;

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc};

use anyhow::{Context, Result};

use crate::{
    image::Image,
    newer::{Newer, Programs, Unpacked},
    registry::Registry,
};

/// What a scenario is given.
#[derive(Debug)]
pub(crate) struct Scene<'a> {
    pub(crate) image: &'a Image,
    /// The program.
    pub(crate) eagle: &'a Path,
    /// The same without a library beside it, for the image; there when a scenario makes one.
    pub(crate) static_eagle: Option<&'a Path>,
    /// The load tests; there when a scenario runs them.
    pub(crate) eagle_bench: Option<&'a Path>,
    /// Members that mean harm; there when a scenario has some.
    pub(crate) hostile_member: Option<&'a Path>,
    /// The S3 server.
    pub(crate) s3_server: &'a Path,
    /// The registry's storage with the image in it.
    pub(crate) store: &'a Path,
    /// Programs of a newer Debian.
    pub(crate) newer: Option<&'a Unpacked>,
    /// Its own directory.
    pub(crate) directory: &'a Path,
    /// How often what is measured is measured.
    pub(crate) rounds: u32,
    /// Where what is measured is to be written.
    pub(crate) measured: Option<&'a Path>,
}

impl Scene<'_> {
    /// A registry that holds the image, with an access log of its own.
    pub(crate) fn registry(&self) -> Result<Registry> {
        Registry::start(&self.directory.join("registry"), self.store)
    }

    /// The programs of a newer Debian, with these directories in place of those of that name in its `/etc`.
    pub(crate) fn newer_programs(&self, etc: &[(&Path, &str)]) -> Result<Programs> {
        let unpacked = self.newer.context("the programs of a newer Debian are not there")?;
        Ok(Programs::Newer(Arc::new(Newer::mount(unpacked, self.directory, etc)?)))
    }
}

/// One thing that has to work, or has to be refused.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) proves: &'static str,
    pub(crate) run: fn(&Scene<'_>) -> Result<()>,
}

impl Scenario {
    /// Whether it runs programs of a newer Debian, which have to be fetched first.
    pub(crate) fn needs_newer_programs(&self) -> bool {
        newer_runtimes::NAMES.contains(&self.name)
    }
}

/// The scenarios that run what is typed in pages.
#[cfg(test)]
pub(crate) const OF_PAGES: [&str; 3] = [quickstart::DOCKER, quickstart::CONTAINERD, documented::NAME];

/// Shell functions that give a scenario's mount namespace directories of its own.
const OWN_DIRECTORIES: &str = include_str!("own_directories.sh");

/// Writes a script that can be run.
fn write_program(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

const ALL: &[Scenario] = &[
    Scenario {
        name: "without-eagle",
        proves: "docker, containerd, podman and skopeo pull the image from the registry itself: the ground the rest stands on",
        run: pulls::without_eagle,
    },
    Scenario {
        name: "three-runtimes",
        proves: "three nodes pull at once, each by another runtime; the registry serves every blob exactly once; digests and files are the pushed ones",
        run: pulls::three_runtimes,
    },
    Scenario {
        name: "registry-stopped",
        proves: "once the registry is stopped, a further node still gets every blob, with data channels in clear",
        run: pulls::registry_stopped,
    },
    Scenario {
        name: "configured-runtimes",
        proves: "eagle configure points docker, containerd and podman at the proxy; with Eagle gone each pulls from the registry; --undo brings every file back",
        run: configured::configured,
    },
    Scenario {
        name: newer_runtimes::NAMES[0],
        proves: "the same of containerd 2, docker with the containerd image store and a newer podman, by tag and by digest; layers come in parallel ranges, and the registry serves every blob once",
        run: newer_runtimes::configured,
    },
    Scenario {
        name: "chart",
        proves: "the chart's image is built without network; its containers, as rendered and with no more rights, serve containerd by the files that the init container writes, and Eagle's own image; the hook brings every file back; promtool finds nothing in the metrics",
        run: chart::in_containers,
    },
    Scenario {
        name: quickstart::DOCKER,
        proves: "every command of docs/quickstart-docker.md works as it stands there; the registry serves every blob once; the machine is as it was",
        run: quickstart::docker,
    },
    Scenario {
        name: quickstart::CONTAINERD,
        proves: "the same of docs/quickstart-containerd.md, with tracker, seeder and proxy as services of their own user",
        run: quickstart::containerd,
    },
    Scenario {
        name: documented::NAME,
        proves: "the commands that the other pages show for one machine work as they stand there: a cluster, its status and doctor, its API, podman, preheating, a change of keys",
        run: documented::commands,
    },
    Scenario {
        name: "forward-proxy-intercepts",
        proves: "dockerd and skopeo pull by way of HTTPS_PROXY and Eagle's own authority; the registry serves every blob once; other hosts are refused",
        run: forward::intercepted,
    },
    Scenario {
        name: "forward-proxy-plain",
        proves: "dockerd pulls from a registry without TLS by way of HTTP_PROXY; the registry serves every blob once, and Eagle's cache the next pull",
        run: forward::plain,
    },
    Scenario {
        name: "forward-proxy-tunnels",
        proves: "without an authority skopeo reaches the registry through a tunnel",
        run: forward::tunnelled,
    },
    Scenario {
        name: "specification",
        proves: "manifests, tags, referrers and blobs are answered as Docker Distribution answers them, by HEAD and GET, tag and digest",
        run: specification::reading,
    },
    Scenario {
        name: "pushes",
        proves: "a push through the mirror is refused as the specification says, and with push: passthrough arrives at the registry whole",
        run: specification::pushing,
    },
    Scenario {
        name: "dashboard",
        proves: "the tracker's dashboard in Chromium: swarms, the map of pieces by keyboard alone, nodes, topology, dark and light, nothing in the console; a swarm of 1,000 nodes",
        run: dashboard::dashboard,
    },
    Scenario {
        name: "prometheus",
        proves: "a Prometheus with the configuration that eagle demo --keep prints scrapes every part; every query of the chart's dashboard has data, and bytes add up",
        run: monitoring::prometheus,
    },
    Scenario {
        name: "pushes-with-login",
        proves: "docker, podman and skopeo log in to the mirror and push to a registry with a token service; who may not push there, or is nobody, does not",
        run: login_pushes::with_tokens,
    },
    Scenario {
        name: "load-test",
        proves: "eagle-bench pull has skopeo and containerd pull through Eagle, and agents have skopeo do so: every pull succeeds and is counted, the registry serves every blob once; eagle-bench cache starts a proxy with all that it has",
        run: load_test::with_runtimes,
    },
    Scenario {
        name: "warm-restart",
        proves: "a proxy that restarts serves its cache without asking anybody for a blob",
        run: pulls::warm_restart,
    },
    Scenario {
        name: "seeder-killed",
        proves: "two pulls survive the seeder's death half way through",
        run: outages::seeder_killed,
    },
    Scenario {
        name: "tracker-killed",
        proves: "two pulls survive the tracker's death half way through, and a node that starts later pulls too",
        run: outages::tracker_killed,
    },
    Scenario {
        name: "cache-smaller-than-image",
        proves: "a cache that holds each layer but not the image: the pull succeeds and the disk limit is never passed",
        run: limits::smaller_than_image,
    },
    Scenario {
        name: "cache-smaller-than-blob",
        proves: "a cache that cannot hold the largest layer: the pull succeeds and the disk limit is never passed",
        run: limits::smaller_than_blob,
    },
    Scenario {
        name: "minimum-free",
        proves: "on a file system of a known size that others fill, what the kernel says is free never goes below min_free for the cache: old blobs go, what does not fit is passed through, and all is kept again when there is room",
        run: limits::minimum_free,
    },
    Scenario {
        name: "damaged-cache",
        proves: "files of a running proxy and seeder are flipped, cut and removed: every pull is right, the damage is counted, dropped and fetched again, the tracker hears of it",
        run: disk_faults::damaged,
    },
    Scenario {
        name: "unreadable-cache",
        proves: "a file of a running proxy cannot be read any more (EIO): its runtime and its peers get the blob elsewhere, the tracker hears that it is gone, and it is cached again later",
        run: disk_faults::unreadable,
    },
    Scenario {
        name: "unwritable-cache",
        proves: "the disks of a running seeder and proxy are read-only (EROFS), then fail every write and sync (EIO), then are well: every pull is right, nothing is kept or offered that was not written, the logs say why, and all is kept again",
        run: disk_faults::unwritable,
    },
    Scenario {
        name: "failing-disk",
        proves: "the disk of a running proxy is full, then read-only, then well again: every pull is right, and what was kept is still there",
        run: disk_faults::failing,
    },
    Scenario {
        name: "full-disk-at-start",
        proves: "a node is started without a byte free: without an identity it says what is missing, with a cache it starts and serves it; with room again nothing is lost, and the registry served every blob once",
        run: disk_faults::full_at_start,
    },
    Scenario {
        name: "preheat",
        proves: "eagle preheat has the seeder and the nodes fetch an image once; a pull after that asks nobody for a blob, and works with registry and seeder gone; the report survives a restart",
        run: preheat::preheat,
    },
    Scenario {
        name: "push-notification",
        proves: "docker-registry tells the seeder of a push; the pull that follows asks the registry for no blob; a registry with the wrong secret changes nothing",
        run: preheat::push_notification,
    },
    Scenario {
        name: "preheat-schedule",
        proves: "a list of images, in a file and at a URL, is warmed when its time comes; a pull after that asks the registry for no blob",
        run: preheat::schedule,
    },
    Scenario {
        name: "private-htpasswd",
        proves: "a registry with passwords: alice pulls; bob and nobody get nothing of it on any node; she loses it within grant_ttl; no credential is left anywhere",
        run: private::htpasswd,
    },
    Scenario {
        name: "private-tokens",
        proves: "the same with a token service: a runtime finds its way to it through the proxy, and a right that is taken ends with its tokens",
        run: private::tokens,
    },
    Scenario {
        name: "private-pull-secret",
        proves: "docker pulls a private image by the identity token in a pull secret, which is replaced while all runs",
        run: private::pull_secret,
    },
    Scenario {
        name: "private-runtimes",
        proves: "docker, containerd, podman and skopeo pull a private image through Eagle with their own credentials; the registry serves every blob once; others are refused; docker, podman and skopeo pull on with registry and token service gone",
        run: private_runtimes::with_tokens,
    },
    Scenario {
        name: "private-runtimes-htpasswd",
        proves: "the same of docker, containerd and skopeo with a registry that wants passwords",
        run: private_runtimes::with_passwords,
    },
    Scenario {
        name: newer_runtimes::NAMES[1],
        proves: "containerd 2, asked as Kubernetes asks, and podman 5 pull a private image through Eagle with their own credentials; others are refused; docker with the containerd image store, and credentials given for the registry alone, go to the registry itself",
        run: newer_runtimes::private,
    },
    Scenario {
        name: "tls-front",
        proves: "nginx in front of the registry, under an authority of its own, and once more with client certificates; without them the answer says why",
        run: tls_front::tls_front,
    },
    Scenario {
        name: "cache-commands",
        proves: "eagle cache lists, pins across a restart, finds and removes a corrupt blob, and removes an image from disk and tracker",
        run: cache::cache,
    },
    Scenario {
        name: "strangers",
        proves: "nodes with another cluster key or none get no byte of an image that members pull, and ports and APIs tell strangers nothing",
        run: membership::strangers,
    },
    Scenario {
        name: "cluster-key-changes",
        proves: "docker and two clients pull through three nodes while the cluster key is exchanged in three steps; the registry serves every blob once",
        run: membership::key_changes_during_pulls,
    },
    Scenario {
        name: "bad-requests",
        proves: "bad names, digests, tags, ranges and methods get their own status and OCI errors, and a good pull follows",
        run: bad_input::requests,
    },
    Scenario {
        name: "garbage-on-ports",
        proves: "garbage on every port of every role harms nothing: a good pull follows",
        run: bad_input::garbage,
    },
    Scenario {
        name: "hostile-crowds",
        proves: "10,000 idle connections at a port, slow senders of heads and bodies, slow readers, churn, long and smuggled heads, floods of announces, members that lie: others are served, at 80 % of their rate with more than one round, and memory is bounded by role",
        run: hostile::crowds,
    },
    Scenario {
        name: "bad-configuration",
        proves: "unknown keys, bad values, ports in use and bad directories end the program with a clear line and code",
        run: bad_input::configuration,
    },
    Scenario {
        name: "shared-bucket",
        proves: "two seeders share a bucket of an S3 server: nodes that ask one of them each, at once, make the registry serve every blob exactly once",
        run: shared_storage::two_seeders,
    },
    Scenario {
        name: "bucket-outlives-seeder",
        proves: "a seeder is killed; a new one with an empty disk serves the image from the bucket, and the registry is asked for no blob",
        run: shared_storage::outlives_seeder,
    },
    Scenario {
        name: "split-views",
        proves: "two seeders with disks of their own, eight nodes with different lists of them, half without a tracker: the registry serves every blob exactly once",
        run: split_views::fetched_once,
    },
    Scenario {
        name: "zones-over-a-thin-link",
        proves: "two zones of four nodes, half a node's rate between them: with labels, at most half of the bytes cross that do without",
        run: zones::over_a_thin_link,
    },
    Scenario {
        name: "two-trackers",
        proves: "blobs are spread over two trackers; one is killed during a pull, which goes on, and the other knows everything; it comes back empty and has its swarms again; the registry serves every blob exactly once; `eagle status` and `eagle top` show both as one, and name the one that is away",
        run: two_trackers::one_dies_and_comes_back,
    },
    Scenario {
        name: "changed-names",
        proves: "the names of tracker and seeder come to mean other machines, and the first ones are killed: nodes announce at the new tracker and pull by the new seeder without a restart",
        run: changed_names::resolved_anew,
    },
    Scenario {
        name: "split-views-killed",
        proves: "the seeder that fetches is killed half way: the other one takes over, and the registry sees at most one more request for each blob",
        run: split_views::holder_killed,
    },
];

/// The scenarios whose name contains `only`.
pub(crate) fn matching(only: Option<&str>) -> impl Iterator<Item = &'static Scenario> {
    let only = only.map(|only| only.trim_start_matches("e2e/").to_owned());
    ALL.iter().filter(move |scenario| only.as_deref().is_none_or(|only| scenario.name.contains(only) || only == "e2e"))
}

/// Prints the scenarios and what each proves.
pub(crate) fn list() {
    for Scenario { name, proves, .. } in ALL {
        println!("{name}\n    {proves}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace;

    /// A table that names tests is worth something only as long as they are there.
    #[test]
    fn the_page_about_compatibility_names_tests_that_exist() {
        let page = fs::read_to_string(workspace::root().join("docs/compatibility.md")).unwrap();
        let mut named = 0;
        // Every second part is between backticks.
        for span in page.split('`').skip(1).step_by(2) {
            if let Some(name) = span.strip_prefix("e2e/").filter(|name| *name != "...") {
                assert!(ALL.iter().any(|scenario| scenario.name == name), "no scenario {name}");
                named += 1;
            } else if let Some((file, name)) = span.split_once(".rs::") {
                let file = workspace::root().join(format!("crates/{file}.rs"));
                let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
                assert!(text.contains(&format!("fn {name}(")), "no test {name} in {}", file.display());
                named += 1;
            }
        }
        assert!(named > 40, "only {named} tests were found on the page");
    }
}
