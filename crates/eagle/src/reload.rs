//! Configuration that changes while a role runs: at SIGHUP, and when its file has changed.
//!
//! What can change without a restart is the host's limits, the log level, a proxy's rules, the addresses of trackers and seeders, and registries
//! with their credentials and certificates. The cluster key and the members' certificates are followed by those that use them. Everything else is named in the
//! log when it has changed, and counts from the next start on. A configuration with a mistake changes nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use eagle_proxy::Rules;
use eagle_registry::Registries;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::spawn_blocking,
    time::sleep,
};
use url::Url;

use crate::{
    cli::RoleArg,
    commands::load_from,
    config::{Loaded, Settings, Sources, example},
    limits::HostLimits,
    stamp::Stamp,
    telemetry,
};

/// How often the file is looked at: a look is one system call. A file that differs is read at the next look at which it has stayed the
/// same, so that one that is being written is not read half.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What of a role can change while it runs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Handles {
    /// Section of the role.
    pub(crate) role: &'static str,
    pub(crate) limits: Option<HostLimits>,
    pub(crate) registries: Option<Arc<Registries>>,
    pub(crate) rules: Option<Rules>,
    pub(crate) trackers: Option<UrlList>,
    pub(crate) seeders: Option<UrlList>,
}

/// Takes a list of addresses in place of the one before.
#[derive(Clone)]
pub(crate) struct UrlList(Arc<dyn Fn(Vec<Url>) + Send + Sync>);

impl UrlList {
    pub(crate) fn new(replace: impl Fn(Vec<Url>) + Send + Sync + 'static) -> Self {
        Self(Arc::new(replace))
    }

    /// The same, with this address where the list is empty.
    pub(crate) fn or(self, own: Url) -> Self {
        Self::new(move |urls| (self.0)(if urls.is_empty() { vec![own.clone()] } else { urls }))
    }
}

impl fmt::Debug for UrlList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UrlList").finish_non_exhaustive()
    }
}

/// The signal that asks for the configuration to be read again. From the moment that it is listened for, it ends no process.
#[derive(Debug)]
pub(crate) struct Hangup(Signal);

impl Hangup {
    /// Takes over the signal.
    pub(crate) fn listen() -> io::Result<Self> {
        signal(SignalKind::hangup()).map(Self)
    }
}

/// Reads the configuration again when there is a reason to.
#[derive(Debug)]
pub(crate) struct Reloader {
    sources: Sources,
    role: RoleArg,
    handles: Vec<Handles>,
    /// What was written when the process started, by the path of each value.
    started: BTreeMap<String, String>,
    /// The same of what is in effect.
    present: BTreeMap<String, String>,
}

/// Whether a value can change while the role runs.
fn can_change(path: &str) -> bool {
    let mut keys = path.split('.');
    matches!(
        (keys.next().unwrap_or_default(), keys.next().unwrap_or_default()),
        ("registries" | "credentials", _)
            | ("proxy", "rules" | "seeders")
            | ("proxy" | "seeder", "download_rate" | "upload_rate" | "trackers")
            | ("log", "level")
    )
}

/// Paths whose values differ.
fn differing(one: &BTreeMap<String, String>, other: &BTreeMap<String, String>) -> BTreeSet<String> {
    let paths: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    paths.into_iter().filter(|path| one.get(*path) != other.get(*path)).cloned().collect()
}

impl Reloader {
    /// For a process that runs with what was loaded from these sources.
    pub(crate) fn new(sources: Sources, role: RoleArg, loaded: &Loaded, handles: Vec<Handles>) -> Self {
        let started = loaded.written(&example::sections(role));
        Self { sources, role, handles, present: started.clone(), started }
    }

    /// Reads the configuration again whenever that is asked for or the file has changed; goes on for ever.
    pub(crate) async fn run(mut self, mut hangup: Hangup) {
        let file = self.sources.file.clone();
        let mut read = look(file.clone()).await;
        let mut seen = read;
        loop {
            let asked = tokio::select! {
                signal = hangup.0.recv() => match signal {
                    Some(()) => true,
                    // No signal will come any more, which happens only when the runtime ends.
                    None => return,
                },
                () = sleep(LOOK_EVERY) => false,
            };
            let now = look(file.clone()).await;
            // Gone for a moment while it is replaced, or being written.
            let settled = now.is_some() && now == seen;
            seen = now;
            if !asked && (now == read || !settled) {
                continue;
            }
            read = now;
            let turn = spawn_blocking(move || {
                self.reload(asked);
                self
            });
            // Comes back only when nothing went wrong in there, and nothing does.
            let Ok(back) = turn.await else { return };
            self = back;
        }
    }

    /// Reads the configuration and takes over what differs. `asked` reads files of registries again although nothing differs.
    fn reload(&mut self, asked: bool) {
        let loaded = match load_from(self.sources.clone(), self.role) {
            Ok(loaded) => loaded,
            Err(errors) => {
                let problem = errors.to_string().replace('\n', "; ");
                tracing::error!(problem, "the new configuration cannot be used; the one before stays in effect");
                return;
            }
        };
        let written = loaded.written(&example::sections(self.role));
        let settings = loaded.settings;
        let changed: BTreeSet<String> =
            differing(&self.present, &written).into_iter().filter(|path| can_change(path)).collect();
        if let Err(problem) = self.apply(&settings, &changed, asked) {
            tracing::error!(problem, "the new configuration cannot be used; the one before stays in effect");
            return;
        }
        let at_restart: Vec<String> =
            differing(&self.started, &written).into_iter().filter(|path| !can_change(path)).collect();
        let changed: Vec<String> = changed.into_iter().collect();
        tracing::info!(changed = changed.join(", "), "configuration read again");
        if !at_restart.is_empty() {
            tracing::warn!(
                keys = at_restart.join(", "),
                "these keys of the configuration count from the next start on"
            );
        }
        self.present = written;
    }

    /// All of it or, with an error, nothing.
    fn apply(&self, settings: &Settings, changed: &BTreeSet<String>, asked: bool) -> Result<(), String> {
        let is_below =
            |path: &str, key: &str| path.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        let has = |key: &str| changed.iter().any(|path| is_below(path, key));
        // First, since it reads files, which can fail. Roles of one process share them.
        if asked || has("registries") || has("credentials") {
            let mut replaced: Vec<&Arc<Registries>> = Vec::new();
            for registries in self.handles.iter().filter_map(|handles| handles.registries.as_ref()) {
                if !replaced.iter().any(|known| Arc::ptr_eq(known, registries)) {
                    let result = registries.replace(settings.registries.clone(), &settings.credentials);
                    result.map_err(|error| format!("registries: {error}"))?;
                    replaced.push(registries);
                }
            }
        }
        if has("log.level") {
            telemetry::set_level(&settings.log.level).map_err(|problem| format!("log.level: {problem}"))?;
        }
        for handles in &self.handles {
            let (download, upload) = match handles.role {
                "seeder" => (settings.seeder.role.download_rate, settings.seeder.role.upload_rate),
                _ => (settings.proxy.role.download_rate, settings.proxy.role.upload_rate),
            };
            if let Some(limits) = &handles.limits {
                // One that was changed by `PUT /limits` stays until the configuration changes it.
                let of = |key: &str, rate| has(&format!("{}.{key}", handles.role)).then_some(rate);
                limits.set(of("download_rate", download), of("upload_rate", upload));
            }
            let trackers = match handles.role {
                "seeder" => &settings.seeder.role.trackers,
                _ => &settings.proxy.role.trackers,
            };
            if let Some(list) = handles.trackers.as_ref().filter(|_| has(&format!("{}.trackers", handles.role))) {
                (list.0)(trackers.clone());
            }
            if let Some(list) = handles.seeders.as_ref().filter(|_| has("proxy.seeders")) {
                (list.0)(settings.proxy.role.seeders.clone());
            }
            if let Some(rules) = handles.rules.as_ref().filter(|_| has("proxy.rules")) {
                rules.replace(settings.proxy.role.rules.clone());
            }
        }
        Ok(())
    }
}

async fn look(file: Option<PathBuf>) -> Option<Stamp> {
    let file = file?;
    spawn_blocking(move || Stamp::at(&file)).await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use eagle_core::units::Rate;
    use eagle_p2p::limits::Limiter;

    use super::*;

    fn limits(rate: u64) -> HostLimits {
        let limiter = || Limiter::new(Rate::Limited(rate));
        HostLimits { download: limiter(), upload: limiter() }
    }

    /// A reloader of a proxy with this file.
    fn reloader(file: &std::path::Path, handles: Handles) -> Reloader {
        let sources = Sources { file: Some(file.to_owned()), ..Sources::default() };
        let loaded = load_from(sources.clone(), RoleArg::Proxy).unwrap();
        Reloader::new(sources, RoleArg::Proxy, &loaded, vec![handles])
    }

    #[test]
    fn what_differs_is_taken_and_a_mistake_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("eagle.yaml");
        let write = |text: &str| std::fs::write(&file, text).unwrap();
        write("proxy:\n  download_rate: 1MB/s\n");
        let (limits, rules) = (limits(1_000_000), Rules::default());
        let registries = Arc::new(Registries::new(Vec::new()).unwrap());
        let handles = Handles {
            role: "proxy",
            limits: Some(limits.clone()),
            registries: Some(Arc::clone(&registries)),
            rules: Some(rules.clone()),
            ..Handles::default()
        };
        let mut reloader = reloader(&file, handles);
        // By PUT /limits; not a matter of the configuration.
        limits.set(None, Some(Rate::Limited(7)));
        write(
            "proxy:\n  download_rate: 2MB/s\n  listen: 127.0.0.1:1\n  rules: [{registry: a.example, action: refuse}]\n\
             registries: [{name: b.example}]\n",
        );
        reloader.reload(false);
        let rates =
            |down: u64, up: u64| crate::limits::Limits { download: Rate::Limited(down), upload: Rate::Limited(up) };
        assert_eq!(limits.present(), rates(2_000_000, 7));
        assert!(!rules.is_empty());
        assert_eq!(registries.configured().len(), 1);
        assert_eq!(differing(&reloader.started, &reloader.present).len(), 5, "{:?}", reloader.present.keys());

        for bad in [
            "proxy:\n  download_rate: fast\n",
            "proxy: [",
            "proxy:\n  download_rate: 5MB/s\nregistries: [{name: c.example, ca_file: /nonexistent}]\n",
        ] {
            write(bad);
            reloader.reload(true);
            assert_eq!(limits.present(), rates(2_000_000, 7), "{bad}");
            assert_eq!(registries.configured(), ["b.example".parse().unwrap()], "{bad}");
        }
        write("{}");
        reloader.reload(false);
        assert!(rules.is_empty() && registries.configured().is_empty());
        assert_eq!(limits.present().download, Settings::default().proxy.role.download_rate, "the default counts again");
    }

    #[test]
    fn keys_that_can_change_are_told_apart() {
        for path in [
            "registries.0.url",
            "credentials.docker_configs.0",
            "proxy.rules.1.action",
            "seeder.upload_rate",
            "seeder.trackers.0",
            "proxy.trackers",
            "proxy.seeders.1",
            "log.level",
        ] {
            assert!(can_change(path), "{path}");
        }
        for path in [
            "proxy.listen",
            "proxy.download",
            "log.format",
            "tracker.download_rate",
            "seeder.seeders",
            "cluster.key",
            "proxy",
        ] {
            assert!(!can_change(path), "{path}");
        }
    }
}
