//! Configuration of the seeder role.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use eagle_core::{
    Geometry,
    geometry::{GeometryError, MAX_PIECE_LENGTH, MIN_PIECE_LENGTH},
    units::{FreeSpace, Percent, Rate, Size},
};
use eagle_registry::config::duration;
use eagle_store::cache::{CacheSettings, defaults};
use serde::{Deserialize, Serialize};
use url::Url;

use crate::{
    preheat::PreheatConfig,
    storage::{ObjectStoreConfig, StorageLocation, as_text},
};

/// Settings of a seeder. What all roles of a machine share (registries, topology, encryption) is
/// given apart, as [`crate::SeederDeps`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SeederConfig {
    /// Address of the HTTP API for proxies.
    pub listen: SocketAddr,
    /// Address of the libp2p listener.
    pub p2p_listen: SocketAddr,
    /// Address of the listener for data channels.
    pub data_listen: SocketAddr,
    /// Address that other nodes are told to connect to; found out when absent.
    pub advertise: Option<IpAddr>,
    /// Where proxies and other seeders reach the HTTP API; made of `advertise` or `listen` when absent.
    pub url: Option<Url>,
    /// Directory of the node's identity and, unless `storage` says otherwise, of its blobs.
    pub data_dir: PathBuf,
    /// Where blobs are kept.
    pub storage: StorageLocation,
    /// How the object store is reached, when `storage` is one.
    pub object_store: ObjectStoreConfig,
    /// Most bytes of blobs that are kept on this machine.
    pub cache_limit: Size,
    /// The part of `cache_limit` above which the least recently used blobs are removed in the background.
    pub cache_high: Percent,
    /// The part of `cache_limit` that is left then.
    pub cache_low: Percent,
    /// What is left free on the file system of the blobs.
    pub min_free: FreeSpace,
    /// How fast blobs are read again to find damaged ones; `None`: they are not.
    pub scrub_rate: Option<Rate>,
    /// How blobs are cut into pieces.
    pub piece_length: PieceLength,
    /// How long the manifest of a tag is served without asking the origin again.
    #[serde(with = "duration")]
    pub manifest_ttl: Duration,
    /// How long the origin's word that a caller may read something is believed.
    #[serde(with = "duration")]
    pub grant_ttl: Duration,
    /// Most bytes per second from origins and peers.
    pub download_rate: Rate,
    /// Most bytes per second to peers and proxies.
    pub upload_rate: Rate,
    /// Trackers that are told what this seeder has.
    pub trackers: Vec<Url>,
    /// Preheating, which has a section of its own.
    #[serde(skip)]
    pub preheat: PreheatConfig,
}

impl Default for SeederConfig {
    fn default() -> Self {
        let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        Self {
            listen: any(55008),
            p2p_listen: any(61008),
            data_listen: any(61018),
            advertise: None,
            url: None,
            data_dir: PathBuf::from("/var/lib/eagle/seeder"),
            storage: StorageLocation::default(),
            object_store: ObjectStoreConfig::default(),
            cache_limit: Size(1 << 40),
            cache_high: defaults::HIGH,
            cache_low: defaults::LOW,
            min_free: defaults::MIN_FREE,
            scrub_rate: Some(defaults::SCRUB_RATE),
            piece_length: PieceLength::Auto,
            manifest_ttl: Duration::from_secs(30),
            // A pull of a large image ends within it, and Docker Hub's tokens live as long.
            grant_ttl: Duration::from_secs(300),
            download_rate: Rate::Limited(50 << 20),
            upload_rate: Rate::Limited(50 << 20),
            trackers: Vec::new(),
            preheat: PreheatConfig::default(),
        }
    }
}

/// A setting that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("seeder.{key}: {problem}")]
pub struct ConfigError {
    /// The key within the seeder's section.
    pub key: &'static str,
    /// What is wrong with its value, and what would be right.
    pub problem: String,
}

impl SeederConfig {
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
        if self.cache_limit.0 == 0 {
            return error("cache_limit", "nothing could be kept; give for instance 100GiB".to_owned());
        }
        if let Err((key, problem)) = self.cache_settings().check() {
            return error(key, problem);
        }
        if self.advertise.is_some_and(|address| address.is_unspecified()) {
            return error("advertise", "give the address at which other nodes reach this one".to_owned());
        }
        if let Some(problem) = self.url.as_ref().and_then(|url| crate::client::check_seeder_url(url).err()) {
            return error("url", problem.to_owned());
        }
        if self.data_dir.as_os_str().is_empty() {
            return error("data_dir", "give a directory".to_owned());
        }
        if let Err(problem) = self.object_store.check(&self.storage) {
            return error("object_store", problem);
        }
        for tracker in &self.trackers {
            if let Err(problem) = eagle_tracker::check_tracker_url(tracker) {
                return error("trackers", problem.to_string());
            }
        }
        Ok(())
    }

    /// The directory of blobs on this machine; `None` when they are in memory.
    pub fn blob_dir(&self) -> Option<PathBuf> {
        match &self.storage {
            StorageLocation::Fs(None) | StorageLocation::Bucket(_) => Some(self.data_dir.join("blobs")),
            StorageLocation::Fs(Some(path)) => Some(path.clone()),
            StorageLocation::Memory => None,
        }
    }
}

/// How a seeder cuts blobs into pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PieceLength {
    /// By the size of the blob, as [`Geometry::auto`] does.
    #[default]
    Auto,
    /// All alike, except where a blob would have too many pieces. Bytes; a power of two.
    Fixed(u32),
}

/// A text that is no piece length.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a piece length; write auto or a power of two from {least} to {most}",
    least = Size(u64::from(MIN_PIECE_LENGTH)), most = Size(u64::from(MAX_PIECE_LENGTH)))]
pub struct ParsePieceLengthError(String);

impl PieceLength {
    /// How a blob of `size` bytes is cut.
    ///
    /// # Errors
    /// When the blob is larger than any that Eagle moves.
    pub fn geometry(self, size: u64) -> Result<Geometry, GeometryError> {
        match self {
            Self::Fixed(length) => Geometry::new(size, length).or_else(|_| Geometry::auto(size)),
            Self::Auto => Geometry::auto(size),
        }
    }
}

impl FromStr for PieceLength {
    type Err = ParsePieceLengthError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let error = || ParsePieceLengthError(text.to_owned());
        let size: Size = text.parse().map_err(|_| error())?;
        let length = u32::try_from(size.0).map_err(|_| error())?;
        Geometry::new(0, length).map_err(|_| error())?;
        Ok(Self::Fixed(length))
    }
}

impl fmt::Display for PieceLength {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Fixed(length) => write!(f, "{}", Size(u64::from(*length))),
        }
    }
}

as_text!(PieceLength);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_what_it_reads() {
        let config = SeederConfig {
            storage: StorageLocation::Fs(Some("/srv/eagle".into())),
            piece_length: PieceLength::Fixed(1 << 20),
            trackers: vec!["http://tracker:6969".parse().unwrap()],
            ..SeederConfig::default()
        };
        let text = serde_json::to_string(&config).unwrap();
        assert!(text.contains("\"fs:///srv/eagle\"") && text.contains("\"1MiB\""), "{text}");
        assert_eq!(serde_json::from_str::<SeederConfig>(&text).unwrap(), config);
        assert_eq!(serde_json::from_str::<SeederConfig>("{}").unwrap(), SeederConfig::default());
        assert_eq!(config.blob_dir(), Some("/srv/eagle".into()));
        assert_eq!(SeederConfig::default().blob_dir(), Some("/var/lib/eagle/seeder/blobs".into()));
        config.validate().unwrap();
    }

    #[test]
    fn names_what_is_wrong() {
        for (text, part) in [
            (r#"{"storage": "ftp://bucket/key?sesame=x"}"#, "unknown storage \"ftp\""),
            (r#"{"storage": "s3://bucket/key?sesame=x"}"#, "plain segments"),
            (r#"{"storage": "s3://key:sesame@bucket"}"#, "name of a bucket"),
            (r#"{"object_store": {"key": "x"}}"#, "unknown field `key`"),
            (r#"{"storage": "fs://relative"}"#, "absolute path"),
            (r#"{"storage": "memory:x"}"#, "no path"),
            (r#"{"piece_length": "3MiB"}"#, "power of two from 64KiB to 16MiB"),
            (r#"{"piece_length": "1GiB"}"#, "power of two"),
            (r#"{"cache": "1GiB"}"#, "unknown field `cache`"),
        ] {
            let error = serde_json::from_str::<SeederConfig>(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
            assert!(!error.contains("sesame"), "{error}");
        }
        for (text, key) in [
            (r#"{"cache_limit": 0}"#, "cache_limit"),
            (r#"{"cache_high": "80%", "cache_low": "81%"}"#, "cache_low"),
            (r#"{"advertise": "0.0.0.0"}"#, "advertise"),
            (r#"{"data_dir": ""}"#, "data_dir"),
            (r#"{"url": "http://seeder:55008?x"}"#, "url"),
            (r#"{"trackers": ["ftp://x"]}"#, "trackers"),
            (r#"{"object_store": {"region": "eu"}}"#, "object_store"),
            (r#"{"storage": "s3://b", "object_store": {"account": "a"}}"#, "object_store"),
            (r#"{"storage": "s3://b", "object_store": {"endpoint": "ftp://x"}}"#, "object_store"),
            (r#"{"storage": "s3://b", "object_store": {"endpoint": "http://u:p@x"}}"#, "object_store"),
            (r#"{"storage": "s3://b", "object_store": {"access_key_id": "a"}}"#, "object_store"),
            (r#"{"storage": "az://b", "object_store": {"secret_access_key": "a"}}"#, "object_store"),
        ] {
            let config: SeederConfig = serde_json::from_str(text).unwrap();
            assert_eq!(config.validate().unwrap_err().key, key);
        }
    }

    #[test]
    fn a_bucket_is_told_how_to_be_reached_and_tells_no_secret() {
        let text = r#"{"storage": "s3://b/p", "object_store": {"endpoint": "https://s3.example", "access_key_id": "id",
            "secret_access_key": "very-secret", "session_token": "very-secret", "rate": "10MiB/s"}}"#;
        let config: SeederConfig = serde_json::from_str(text).unwrap();
        config.validate().unwrap();
        assert_eq!(config.storage.to_string(), "s3://b/p");
        assert_eq!(config.blob_dir(), Some("/var/lib/eagle/seeder/blobs".into()));
        assert_eq!(config.object_store.rate, Rate::Limited(10 << 20));
        let shown = format!("{config:?} {}", serde_json::to_string(&config).unwrap());
        assert!(!shown.contains("very-secret") && shown.contains("***"), "{shown}");
        assert!(!format!("{:?}", config.object_store.settings()).contains("very-secret"));
    }

    #[test]
    fn a_fixed_piece_length_gives_way_to_the_size_of_a_blob() {
        let fixed = PieceLength::Fixed(64 << 10);
        assert_eq!(fixed.geometry(1 << 20).unwrap().piece_length(), 64 << 10);
        assert!(fixed.geometry(1 << 40).unwrap().piece_length() > 64 << 10);
        assert!(fixed.geometry(u64::MAX).is_err());
    }
}
