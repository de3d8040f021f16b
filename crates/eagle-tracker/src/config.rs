//! Configuration of the tracker role.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    api::MAX_PEERS_PER_BLOB,
    networks::{NetworkPlace, Networks},
    store::StoreLocation,
};

/// Shortest interval and lifetime that make sense: below this, announces cost more than they tell.
const SHORTEST: Duration = Duration::from_millis(100);

/// Longest name of a cluster in Redis: every key begins with it.
const MAX_STORE_NAME: usize = 63;

/// Settings of a tracker. Durations are written `30s`, `500ms`, `2m`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrackerConfig {
    /// Address of the HTTP API.
    pub listen: SocketAddr,
    /// How long a node that says nothing stays known; three idle intervals by default, so that two
    /// lost announces do no harm.
    #[serde(with = "duration")]
    pub peer_ttl: Duration,
    /// How soon a node that downloads in a young or growing swarm is asked to announce again.
    #[serde(with = "duration")]
    pub interval_active: Duration,
    /// How soon every other node is asked to announce again.
    #[serde(with = "duration")]
    pub interval_idle: Duration,
    /// Most peers named for one blob.
    pub max_peers_per_answer: usize,
    /// Most blobs known at a time.
    pub max_blobs: usize,
    /// Most peers of one blob.
    pub max_peers_per_blob: usize,
    /// Most nodes known at a time.
    pub max_peers: usize,
    /// Most blobs of one node.
    pub max_blobs_per_peer: usize,
    /// Where the nodes of each network are, for those that do not say so themselves.
    pub topology: Vec<NetworkPlace>,
    /// Where the state is kept: `memory`, or a Redis that several trackers share, `redis://[USER@]HOST[:PORT][/DATABASE]`
    /// or, with TLS, `rediss://...`. While Redis is away a tracker goes on in memory.
    pub store: StoreLocation,
    /// Name of the cluster in Redis; trackers that share their state have the same.
    pub store_name: String,
    /// File with the password of Redis.
    pub store_password_file: Option<PathBuf>,
    /// File with the certificates (PEM) of the authority that Redis' certificate is signed by; without it those that the
    /// system trusts.
    pub store_ca_file: Option<PathBuf>,
}

impl Default for TrackerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 6969)),
            peer_ttl: Duration::from_secs(90),
            interval_active: Duration::from_secs(1),
            interval_idle: Duration::from_secs(30),
            max_peers_per_answer: 40,
            max_blobs: 1_000_000,
            // Twice the 15,000 hosts that Kraken gives as its largest cluster.
            max_peers_per_blob: 30_000,
            max_peers: 100_000,
            max_blobs_per_peer: 50_000,
            topology: Vec::new(),
            store: StoreLocation::Memory,
            store_name: "eagle".to_owned(),
            store_password_file: None,
            store_ca_file: None,
        }
    }
}

/// A setting that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tracker.{key}: {problem}")]
pub struct ConfigError {
    /// The key within the tracker's section.
    pub key: &'static str,
    /// What is wrong with its value, and what would be right.
    pub problem: String,
}

impl TrackerConfig {
    /// Checks what the types alone do not.
    ///
    /// # Errors
    /// With the first setting that cannot work.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let error = |key, problem| Err(ConfigError { key, problem });
        for (key, value) in [("interval_active", self.interval_active), ("interval_idle", self.interval_idle)] {
            if value < SHORTEST {
                return error(key, format!("{value:?} is too short; give at least {SHORTEST:?}"));
            }
        }
        if self.interval_active > self.interval_idle {
            return error("interval_active", "must not be longer than interval_idle".to_owned());
        }
        if self.peer_ttl < self.interval_idle * 2 {
            let least = self.interval_idle * 2;
            return error(
                "peer_ttl",
                format!("{:?} loses nodes between two announces; give at least {least:?}", self.peer_ttl),
            );
        }
        for (key, value) in [
            ("max_blobs", self.max_blobs),
            ("max_peers_per_blob", self.max_peers_per_blob),
            ("max_peers", self.max_peers),
            ("max_blobs_per_peer", self.max_blobs_per_peer),
        ] {
            if value == 0 || u32::try_from(value).is_err() {
                return error(key, format!("must be from 1 to {}", u32::MAX));
            }
        }
        if !(1..=MAX_PEERS_PER_BLOB).contains(&self.max_peers_per_answer) {
            return error("max_peers_per_answer", format!("must be from 1 to {MAX_PEERS_PER_BLOB}"));
        }
        let named = (1..=MAX_STORE_NAME).contains(&self.store_name.len())
            && self.store_name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if !named {
            return error("store_name", format!("must be 1 to {MAX_STORE_NAME} letters, digits, '-', '_' or '.'"));
        }
        for (key, file) in [("store_password_file", &self.store_password_file), ("store_ca_file", &self.store_ca_file)]
        {
            if file.is_some() && self.store == StoreLocation::Memory {
                return error(key, "is of use with a store in Redis only".to_owned());
            }
        }
        Networks::new(&self.topology).map(drop).or_else(|problem| error("topology", problem))
    }
}

mod duration {
    use std::{borrow::Cow, time::Duration};

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*duration))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        humantime::parse_duration(&text)
            .map_err(|error| de::Error::custom(format!("{text:?} is not a duration such as 30s or 500ms: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_what_it_reads() {
        let config = TrackerConfig { interval_active: Duration::from_millis(1500), ..TrackerConfig::default() };
        let text = serde_json::to_string(&config).unwrap();
        assert!(text.contains("\"1s 500ms\""), "{text}");
        assert_eq!(serde_json::from_str::<TrackerConfig>(&text).unwrap(), config);
        assert_eq!(serde_json::from_str::<TrackerConfig>("{}").unwrap(), TrackerConfig::default());
        TrackerConfig::default().validate().unwrap();
    }

    #[test]
    fn names_what_is_wrong() {
        for (text, key) in [
            (r#"{"interval_idle": "1ms"}"#, "interval_idle"),
            (r#"{"interval_active": "60s"}"#, "interval_active"),
            (r#"{"peer_ttl": "31s"}"#, "peer_ttl"),
            (r#"{"max_blobs": 0}"#, "max_blobs"),
            (r#"{"store_name": "a:b"}"#, "store_name"),
            (r#"{"store_ca_file": "ca.pem"}"#, "store_ca_file"),
            (r#"{"max_peers_per_answer": 1000}"#, "max_peers_per_answer"),
            (r#"{"topology": [{"cidr": "10.0.0.0/8"}]}"#, "topology"),
        ] {
            let config: TrackerConfig = serde_json::from_str(text).unwrap();
            assert_eq!(config.validate().unwrap_err().key, key);
        }
        for text in
            [r#"{"interval": "1s"}"#, r#"{"peer_ttl": "soon"}"#, r#"{"peer_ttl": 3}"#, r#"{"store": "etcd://x"}"#]
        {
            assert!(serde_json::from_str::<TrackerConfig>(text).is_err(), "{text}");
        }
    }
}
