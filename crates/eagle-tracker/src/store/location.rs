//! Where the state of a tracker is kept, as configured.

use std::{fmt, path::Path, str::FromStr};

use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use url::Url;
use zeroize::Zeroizing;

use crate::config::{ConfigError, TrackerConfig};

/// Redis' port where a URL names none.
const REDIS_PORT: u16 = 6379;
/// Largest file of a password or of certificates that is read, bytes.
const MAX_FILE: u64 = 1 << 20;

/// Where the state of a tracker is kept: `memory`, or `redis://[USER@]HOST[:PORT][/DATABASE]`, with TLS `rediss://...`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum StoreLocation {
    /// In the process.
    #[default]
    Memory,
    /// In a Redis that several trackers share.
    Redis(RedisUrl),
}

/// The address of a Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisUrl {
    tls: bool,
    user: Option<String>,
    host: String,
    port: u16,
    database: i64,
}

/// Why a text is no location.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreLocationError {
    /// Neither `memory` nor a URL of Redis.
    #[error("write memory, redis://HOST:6379 or, for TLS, rediss://HOST:6379")]
    Scheme,
    /// A password in the URL, which would be seen in the configuration; it is not shown here.
    #[error("no password in the URL: write it to a file and give that as store_password_file")]
    Password,
    /// No host, a query, a fragment, or a database that is no number.
    #[error("a Redis URL is redis://[USER@]HOST[:PORT][/DATABASE], where the database is a number")]
    Form,
}

impl FromStr for StoreLocation {
    type Err = StoreLocationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "memory" {
            return Ok(Self::Memory);
        }
        let url: Url = text.parse().map_err(|_| StoreLocationError::Scheme)?;
        let tls = match url.scheme() {
            "redis" => false,
            "rediss" => true,
            _ => return Err(StoreLocationError::Scheme),
        };
        if url.password().is_some() {
            return Err(StoreLocationError::Password);
        }
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or(StoreLocationError::Form)?;
        let path = url.path().trim_matches('/');
        let database = if path.is_empty() { Ok(0) } else { path.parse() };
        let database = database.ok().filter(|number: &i64| (0..1 << 16).contains(number));
        let (Some(database), None, None) = (database, url.query(), url.fragment()) else {
            return Err(StoreLocationError::Form);
        };
        Ok(Self::Redis(RedisUrl {
            tls,
            user: Some(url.username().to_owned()).filter(|user| !user.is_empty()),
            host: host.trim_matches(['[', ']']).to_owned(),
            port: url.port().unwrap_or(REDIS_PORT),
            database,
        }))
    }
}

impl fmt::Display for StoreLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory"),
            Self::Redis(url) => url.fmt(f),
        }
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.tls { "rediss://" } else { "redis://" })?;
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        if self.host.contains(':') {
            write!(f, "[{}]", self.host)?
        } else {
            f.write_str(&self.host)?
        }
        write!(f, ":{}/{}", self.port, self.database)
    }
}

impl Serialize for StoreLocation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for StoreLocation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// All that is needed to reach a Redis.
#[derive(Clone)]
pub(super) struct RedisLocation {
    pub(super) tls: bool,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) database: i64,
    pub(super) user: Option<String>,
    pub(super) password: Option<Zeroizing<String>>,
    /// Certificates of the authority of its server, PEM; `None`: those that the system trusts.
    pub(super) ca: Option<Vec<u8>>,
    /// The cluster whose state it is: several may share a Redis.
    pub(super) name: String,
}

impl fmt::Debug for RedisLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisLocation").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

impl RedisLocation {
    /// The Redis of a configuration.
    ///
    /// # Errors
    /// When a file that belongs to it cannot be used.
    pub(super) fn of(url: &RedisUrl, config: &TrackerConfig) -> Result<Self, ConfigError> {
        let (password, ca) = (config.store_password_file.as_deref(), config.store_ca_file.as_deref());
        Self::read(url, &config.store_name, password, ca).map_err(|(key, problem)| ConfigError { key, problem })
    }

    /// What all keys of the cluster begin with.
    pub(super) fn prefix(&self) -> String {
        format!("eagle:{{{}}}:", self.name)
    }

    /// Reads the files that belong to a URL.
    ///
    /// # Errors
    /// The configuration key of what cannot be used, and why.
    pub(super) fn read(
        url: &RedisUrl,
        name: &str,
        password_file: Option<&Path>,
        ca_file: Option<&Path>,
    ) -> Result<Self, (&'static str, String)> {
        let RedisUrl { tls, user, host, port, database } = url.clone();
        let password = password_file.map(|file| read("store_password_file", file)).transpose()?.map(|bytes| {
            let bytes = Zeroizing::new(bytes);
            str::from_utf8(&bytes)
                .map(|text| Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned()))
                .map_err(|_| ("store_password_file", "is not text".to_owned()))
        });
        let password = password.transpose()?;
        if password.as_ref().is_some_and(|password| password.is_empty()) {
            return Err(("store_password_file", "is empty".to_owned()));
        }
        let ca = ca_file.map(|file| read("store_ca_file", file)).transpose()?;
        if let Some(pem) = &ca {
            let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
            if !certificates.is_ok_and(|certificates| !certificates.is_empty()) {
                return Err(("store_ca_file", "holds no certificate in PEM".to_owned()));
            }
            if !tls {
                return Err(("store_ca_file", "is of use with a rediss:// URL only".to_owned()));
            }
        }
        Ok(Self { tls, host, port, database, user, password, ca, name: name.to_owned() })
    }
}

fn read(key: &'static str, file: &Path) -> Result<Vec<u8>, (&'static str, String)> {
    let error = |error: &dyn fmt::Display| (key, format!("cannot read {}: {error}", file.display()));
    let length = std::fs::metadata(file).map_err(|problem| error(&problem))?.len();
    if length > MAX_FILE {
        return Err(error(&"it is larger than 1 MiB"));
    }
    std::fs::read(file).map_err(|problem| error(&problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<String, StoreLocationError> {
        text.parse::<StoreLocation>().map(|location| location.to_string())
    }

    #[test]
    fn reads_what_it_shows() {
        assert_eq!(parse("memory").unwrap(), "memory");
        assert_eq!(parse("redis://cache").unwrap(), "redis://cache:6379/0");
        assert_eq!(parse("rediss://eagle@[::1]:7000/3").unwrap(), "rediss://eagle@[::1]:7000/3");
        for text in ["memory", "redis://cache:6379/0", "rediss://eagle@[::1]:7000/3"] {
            assert_eq!(parse(text).unwrap(), text);
        }
    }

    #[test]
    fn refuses_what_is_none_and_shows_no_password() {
        assert_eq!(parse("redis"), Err(StoreLocationError::Scheme));
        assert_eq!(parse("http://cache:6379"), Err(StoreLocationError::Scheme));
        assert_eq!(parse("redis:///1"), Err(StoreLocationError::Form));
        for text in ["redis://cache/one", "redis://cache/-1", "redis://cache?x=1", "redis://cache#1"] {
            assert_eq!(parse(text), Err(StoreLocationError::Form), "{text}");
        }
        let error = parse("redis://:hunter2@cache").unwrap_err();
        assert!(!error.to_string().contains("hunter2") && error.to_string().contains("store_password_file"));
    }

    #[test]
    fn files_are_read_with_their_bounds() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        let StoreLocation::Redis(url) = "redis://cache".parse().unwrap() else { unreachable!() };
        let read = |content: &str| {
            std::fs::write(&file, content).unwrap();
            RedisLocation::read(&url, "eagle", Some(&file), None)
        };
        assert_eq!(read("hunter2\n").unwrap().password.unwrap().as_str(), "hunter2");
        assert_eq!(read("\n").unwrap_err().0, "store_password_file");
        assert!(!format!("{:?}", read("hunter2").unwrap()).contains("hunter2"));
        let missing = RedisLocation::read(&url, "eagle", Some(&directory.path().join("none")), None);
        assert!(missing.unwrap_err().1.contains("none"));
        assert_eq!(RedisLocation::read(&url, "eagle", None, Some(&file)).unwrap_err().0, "store_ca_file");
    }
}
