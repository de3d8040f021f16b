//! Configuration of the proxy role.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use eagle_core::units::{FreeSpace, Percent, Rate, Size};
use eagle_registry::{RegistryName, config::duration};
use eagle_seeder::client::check_seeder_url;
use eagle_store::cache::{CacheSettings, defaults};
use serde::{Deserialize, Serialize};
use url::Url;

use crate::rules::{Action, Rule};

/// Shortest stall timeout that makes sense: below this, a busy machine looks like a stalled peer.
const SHORTEST_STALL: Duration = Duration::from_millis(100);
/// Longest stall timeout: containerd gives up a pull that stands still for five minutes, and several
/// sources may have to be tried within them.
const LONGEST_STALL: Duration = Duration::from_secs(60);

/// Settings of a proxy. What all roles of a machine share (registries, topology, encryption) is
/// given apart, as [`crate::ProxyDeps`]. Durations are written `5s`, `500ms`, `5m`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProxyConfig {
    /// Address that container runtimes use as a registry mirror.
    pub listen: SocketAddr,
    /// Address of the libp2p listener.
    pub p2p_listen: SocketAddr,
    /// Address of the listener for data channels.
    pub data_listen: SocketAddr,
    /// Address that other nodes are told to connect to; found out when absent.
    pub advertise: Option<IpAddr>,
    /// Directory of the node's identity and its blobs.
    pub data_dir: PathBuf,
    /// Most bytes of blobs that are kept.
    pub cache_limit: Size,
    /// The part of `cache_limit` above which the least recently used blobs are removed in the background.
    pub cache_high: Percent,
    /// The part of `cache_limit` that is left then.
    pub cache_low: Percent,
    /// What is left free on the file system of the blobs.
    pub min_free: FreeSpace,
    /// How fast blobs are read again to find damaged ones; `None`: they are not.
    pub scrub_rate: Option<Rate>,
    /// Most bytes per second from peers, seeders and origins.
    pub download_rate: Rate,
    /// Most bytes per second to peers.
    pub upload_rate: Rate,
    /// HTTP APIs of the seeders. Without any, everything comes from the origin.
    pub seeders: Vec<Url>,
    /// Trackers that are told what this proxy has and asked for peers.
    pub trackers: Vec<Url>,
    /// The registry that a request means when it names none: docker mirrors Docker Hub only.
    pub default_registry: RegistryName,
    /// How long no piece may arrive before another source takes over.
    #[serde(with = "duration")]
    pub stall_timeout: Duration,
    /// How long a caller may read the blobs of a manifest that it was given, without the origin being
    /// asked again.
    #[serde(with = "duration")]
    pub grant_ttl: Duration,
    /// Which way pulls take, by registry and repository; the first rule that fits decides.
    pub rules: Vec<Rule>,
    /// Whether the origin is asked when seeders and peers do not give something. Without it, this
    /// proxy never connects to a registry; seeders still do, where they can.
    pub origin_fallback: bool,
    /// What happens to pushes and deletes through the mirror.
    pub push: Push,
    /// Which runtimes are asked for their credentials by the mirror's `/v2/`.
    pub login: Login,
    /// The forward proxy, for daemons that are configured by `HTTP_PROXY` and `HTTPS_PROXY`.
    pub forward: ForwardConfig,
}

/// What happens to pushes and deletes through the mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Push {
    /// They are refused, with the specification's error.
    #[default]
    Refuse,
    /// They are passed on to the registry, with the caller's credentials.
    Passthrough,
}

/// Which runtimes are asked for their credentials. docker, podman, CRI-O and skopeo send them only where `/v2/` asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Login {
    /// None.
    Off,
    /// Those of this machine, over a loopback address.
    #[default]
    Loopback,
    /// Whoever reaches the address, over plain HTTP.
    Any,
}

/// Settings of the forward proxy, which serves at the same address as the mirror.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ForwardConfig {
    /// Who is served.
    pub mode: ForwardMode,
    /// Directory of the certificate authority under which connections to registries are intercepted;
    /// without it they are tunnelled.
    pub ca_dir: Option<PathBuf>,
}

/// Whom the forward proxy serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ForwardMode {
    /// Nobody.
    Off,
    /// This machine: connections to a loopback address.
    #[default]
    Loopback,
    /// Whoever reaches the address.
    Any,
}

impl Default for ProxyConfig {
    fn default() -> Self {
        let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 43002)),
            p2p_listen: any(61007),
            data_listen: any(61017),
            advertise: None,
            data_dir: PathBuf::from("/var/lib/eagle/proxy"),
            cache_limit: Size(100 << 30),
            cache_high: defaults::HIGH,
            cache_low: defaults::LOW,
            min_free: defaults::MIN_FREE,
            scrub_rate: Some(defaults::SCRUB_RATE),
            download_rate: Rate::Limited(50 << 20),
            upload_rate: Rate::Limited(50 << 20),
            seeders: Vec::new(),
            trackers: Vec::new(),
            default_registry: docker_hub(),
            stall_timeout: Duration::from_secs(5),
            grant_ttl: Duration::from_secs(300),
            rules: Vec::new(),
            origin_fallback: true,
            push: Push::default(),
            login: Login::default(),
            forward: ForwardConfig::default(),
        }
    }
}

fn docker_hub() -> RegistryName {
    "docker.io".parse().expect("docker.io is the name of a registry")
}

/// A setting that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("proxy.{key}: {problem}")]
pub struct ConfigError {
    /// The key within the proxy's section.
    pub key: &'static str,
    /// What is wrong with its value, and what would be right.
    pub problem: String,
}

impl ProxyConfig {
    /// How the cache is kept.
    pub(crate) fn cache_settings(&self) -> CacheSettings {
        let Self { cache_limit, cache_high, cache_low, min_free, scrub_rate, .. } = *self;
        CacheSettings { limit: cache_limit.0, high: cache_high, low: cache_low, min_free, scrub_rate }
    }

    /// Checks what the types alone do not.
    ///
    /// # Errors
    /// With the first setting that cannot work.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let error = |key, problem: String| Err(ConfigError { key, problem });
        if self.advertise.is_some_and(|address| address.is_unspecified()) {
            return error("advertise", "give the address at which other nodes reach this one".to_owned());
        }
        if self.data_dir.as_os_str().is_empty() {
            return error("data_dir", "give a directory".to_owned());
        }
        if let Err((key, problem)) = self.cache_settings().check() {
            return error(key, problem);
        }
        if !(SHORTEST_STALL..=LONGEST_STALL).contains(&self.stall_timeout) {
            let problem = format!("{:?} is not from {SHORTEST_STALL:?} to {LONGEST_STALL:?}", self.stall_timeout);
            return error("stall_timeout", problem);
        }
        for seeder in &self.seeders {
            if let Err(problem) = check_seeder_url(seeder) {
                // Without what may be a secret in it.
                let host = seeder.host_str().unwrap_or_default();
                return error("seeders", format!("{}://{host}: {problem}", seeder.scheme()));
            }
        }
        if self.forward.ca_dir.as_ref().is_some_and(|directory| directory.as_os_str().is_empty()) {
            return error("forward", "ca_dir: give the directory that `eagle ca init` has made, or null".to_owned());
        }
        if !self.origin_fallback {
            if self.seeders.is_empty() {
                return error(
                    "origin_fallback",
                    "without it there must be seeders: they are all that is left".to_owned(),
                );
            }
            if self.push == Push::Passthrough {
                return error(
                    "push",
                    "passthrough goes to the registry, which origin_fallback: false forbids".to_owned(),
                );
            }
            if let Some(rule) = self.rules.iter().find(|rule| rule.action == Action::Origin) {
                let problem = format!("the rule for {} needs it: its action is origin", rule.registry.as_str());
                return error("origin_fallback", problem);
            }
        }
        for tracker in &self.trackers {
            if let Err(problem) = eagle_tracker::check_tracker_url(tracker) {
                return error("trackers", problem.to_string());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_what_it_reads() {
        let config = ProxyConfig {
            seeders: vec!["http://seeder-0:55008".parse().unwrap()],
            stall_timeout: Duration::from_millis(1500),
            upload_rate: Rate::Unlimited,
            ..ProxyConfig::default()
        };
        let text = serde_json::to_string(&config).unwrap();
        assert!(text.contains("\"1500ms\"") && text.contains("\"unlimited\"") && text.contains("\"100GiB\""), "{text}");
        assert_eq!(serde_json::from_str::<ProxyConfig>(&text).unwrap(), config);
        assert_eq!(serde_json::from_str::<ProxyConfig>("{}").unwrap(), ProxyConfig::default());
        config.validate().unwrap();
        ProxyConfig::default().validate().unwrap();
    }

    #[test]
    fn names_what_is_wrong() {
        for (text, key) in [
            (r#"{"advertise": "0.0.0.0"}"#, "advertise"),
            (r#"{"data_dir": ""}"#, "data_dir"),
            (r#"{"cache_high": "80%", "cache_low": "81%"}"#, "cache_low"),
            (r#"{"min_free": "100%"}"#, "min_free"),
            (r#"{"stall_timeout": "1ms"}"#, "stall_timeout"),
            (r#"{"stall_timeout": "10m"}"#, "stall_timeout"),
            (r#"{"seeders": ["ftp://x"]}"#, "seeders"),
            (r#"{"seeders": ["http://user:secret@x"]}"#, "seeders"),
            (r#"{"trackers": ["ftp://x"]}"#, "trackers"),
            (r#"{"forward": {"ca_dir": ""}}"#, "forward"),
            (r#"{"origin_fallback": false}"#, "origin_fallback"),
            (
                r#"{"origin_fallback": false, "seeders": ["http://s:1"], "rules": [{"action": "origin"}]}"#,
                "origin_fallback",
            ),
        ] {
            let config: ProxyConfig = serde_json::from_str(text).unwrap();
            let error = config.validate().unwrap_err();
            assert_eq!(error.key, key);
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        for text in [r#"{"cache": "1GiB"}"#, r#"{"default_registry": "a/b"}"#, r#"{"grant_ttl": "soon"}"#] {
            assert!(serde_json::from_str::<ProxyConfig>(text).is_err(), "{text}");
        }
    }
}
