//! Configuration of registries.

use std::{fmt, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize, Serializer};
use url::Url;

use crate::name::RegistryName;

/// Default deadline of a TCP connection: a host that is there answers in well under a second; docker
/// and containerd allow 30 s, of which the fallback to another source must leave something.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Default deadline from the request to the headers of the answer: registries on object stores take
/// seconds for a cold blob.
pub const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
/// Default time without a byte after which a body is given up; runtimes give up later than this.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(20);

/// A password or token: never shown, wiped from every configuration that is printed.
#[derive(Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// A secret with this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself. Only for the wire.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}

/// How one registry is reached. All but the name has a default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistryConfig {
    /// The name that runtimes use for it, for instance `docker.io`.
    pub name: RegistryName,
    /// Where its API is, without `/v2/`; `https://NAME` when absent (`https://registry-1.docker.io` for
    /// Docker Hub). `http` is possible and then nothing is encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<Url>,
    /// PEM file with certificate authorities to trust for it, besides those of the system (which its
    /// redirects to an object store may need).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// User for callers that bring no credentials of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Password of that user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// Deadline of a connection.
    #[serde(default = "connect_timeout", with = "duration")]
    pub connect_timeout: Duration,
    /// Deadline from a request to the headers of its answer.
    #[serde(default = "response_timeout", with = "duration")]
    pub response_timeout: Duration,
    /// Time without a byte after which a body is given up.
    #[serde(default = "stall_timeout", with = "duration")]
    pub stall_timeout: Duration,
}

const fn connect_timeout() -> Duration {
    CONNECT_TIMEOUT
}

const fn response_timeout() -> Duration {
    RESPONSE_TIMEOUT
}

const fn stall_timeout() -> Duration {
    STALL_TIMEOUT
}

/// Why a configuration of registries cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The URL is not one of a registry.
    #[error("registry {name}: the url {url} cannot be used: {problem}")]
    Url {
        /// The registry.
        name: RegistryName,
        /// Its URL, without credentials.
        url: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Two entries for one registry.
    #[error("registry {0} is configured twice; merge the two entries")]
    Duplicate(RegistryName),
    /// The certificate authorities cannot be read.
    #[error("registry {name}: ca_file {file}: {reason}", file = .file.display())]
    CaFile {
        /// The registry.
        name: RegistryName,
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Half of a pair of credentials.
    #[error("registry {0}: username and password must be given together")]
    Credentials(RegistryName),
    /// A deadline of zero would fail every request.
    #[error("registry {0}: timeouts must be longer than zero")]
    Timeout(RegistryName),
    /// TLS cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
}

impl RegistryConfig {
    /// The defaults for a registry that is not configured.
    pub const fn new(name: RegistryName) -> Self {
        Self {
            name,
            url: None,
            ca_file: None,
            username: None,
            password: None,
            connect_timeout: CONNECT_TIMEOUT,
            response_timeout: RESPONSE_TIMEOUT,
            stall_timeout: STALL_TIMEOUT,
        }
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// When the URL is not `http` or `https` with a host, or has a query or credentials; when only one
    /// of username and password is given; when a timeout is zero. Files are not looked at.
    pub fn check(&self) -> Result<(), ConfigError> {
        if let Some(url) = &self.url {
            let problem = if !matches!(url.scheme(), "http" | "https") {
                Some("it must begin with http:// or https://")
            } else if url.host_str().is_none_or(str::is_empty) {
                Some("it has no host")
            } else if !url.username().is_empty() || url.password().is_some() {
                Some("credentials belong into username and password")
            } else if url.query().is_some() || url.fragment().is_some() {
                Some("it must not have a query or a fragment")
            } else {
                None
            };
            if let Some(problem) = problem {
                let mut url = url.clone();
                // Never print credentials, not even misplaced ones.
                let _ = url.set_username("");
                let _ = url.set_password(None);
                return Err(ConfigError::Url { name: self.name.clone(), url: url.into(), problem });
            }
        }
        if self.username.is_some() != self.password.is_some() {
            return Err(ConfigError::Credentials(self.name.clone()));
        }
        if self.connect_timeout.is_zero() || self.response_timeout.is_zero() || self.stall_timeout.is_zero() {
            return Err(ConfigError::Timeout(self.name.clone()));
        }
        Ok(())
    }

    /// Where the registry's API is, without a slash at the end and without `/v2`.
    pub fn base(&self) -> String {
        match &self.url {
            Some(url) => url.as_str().trim_end_matches('/').to_owned(),
            None if self.name.is_docker_hub() => "https://registry-1.docker.io".to_owned(),
            None => format!("https://{}", self.name),
        }
    }
}

/// Durations in configuration files: `20s`, `500ms`, `5m`, or a number of seconds.
pub mod duration {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Seconds(f64),
        Text(String),
    }

    /// Reads a duration as people write it; `None` when it is not one.
    pub fn parse(text: &str) -> Option<Duration> {
        let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let factor = match unit.trim() {
            "ms" => 0.001,
            "" | "s" => 1.0,
            "m" | "min" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        Duration::try_from_secs_f64(number.parse::<f64>().ok()? * factor).ok()
    }

    /// Shows a duration so that [`parse`] reads it.
    pub fn format(duration: Duration) -> String {
        match duration.as_millis() {
            millis if millis % 1000 == 0 => format!("{}s", millis / 1000),
            millis => format!("{millis}ms"),
        }
    }

    /// For `#[serde(with)]`.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format(*duration))
    }

    /// For `#[serde(with)]`.
    ///
    /// # Errors
    /// When it is not a duration.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let (text, duration) = match Written::deserialize(deserializer)? {
            Written::Seconds(seconds) => (seconds.to_string(), Duration::try_from_secs_f64(seconds).ok()),
            Written::Text(text) => {
                let duration = parse(&text);
                (text, duration)
            }
        };
        duration.ok_or_else(|| {
            de::Error::custom(format_args!("{text:?} is not a duration; write for instance 20s, 500ms or 5m"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<RegistryConfig, serde_json::Error> {
        serde_json::from_str(json)
    }

    #[test]
    fn defaults_and_base() {
        let hub = read(r#"{"name":"docker.io"}"#).unwrap();
        assert_eq!(hub, RegistryConfig::new("docker.io".parse().unwrap()));
        assert_eq!(hub.base(), "https://registry-1.docker.io");
        let other = read(r#"{"name":"ghcr.io","url":"http://10.0.0.1:5000/x/","stall_timeout":"1500ms"}"#).unwrap();
        assert_eq!(other.base(), "http://10.0.0.1:5000/x");
        assert_eq!(other.stall_timeout, Duration::from_millis(1500));
        assert!(read(r#"{"name":"ghcr.io","urll":"x"}"#).is_err());
        assert!(read(r#"{"name":"ghcr.io","stall_timeout":"soon"}"#).is_err());
    }

    #[test]
    fn refuses_what_cannot_work_and_shows_no_secret() {
        for bad in [
            r#"{"name":"a.b","url":"ftp://a"}"#,
            r#"{"name":"a.b","url":"https://u:secret@a"}"#,
            r#"{"name":"a.b","url":"https://a/?x"}"#,
            r#"{"name":"a.b","username":"u"}"#,
            r#"{"name":"a.b","connect_timeout":0}"#,
        ] {
            let error = read(bad).unwrap().check().unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
        let config = read(r#"{"name":"a.b","username":"u","password":"secret"}"#).unwrap();
        assert!(config.check().is_ok());
        assert!(!format!("{config:?}").contains("secret"));
        assert!(!serde_json::to_string(&config).unwrap().contains("secret"));
    }

    #[test]
    fn durations_read_what_they_show() {
        for (text, millis) in
            [("20s", 20_000), ("500ms", 500), ("5m", 300_000), ("1.5s", 1500), ("3", 3000), ("1h", 3_600_000)]
        {
            let duration = duration::parse(text).unwrap();
            assert_eq!(duration.as_millis(), millis);
            assert_eq!(duration::parse(&duration::format(duration)), Some(duration));
        }
        for bad in ["", "s", "-1s", "1 parsec", "1..2s", "99999999999999999999999h"] {
            assert_eq!(duration::parse(bad), None, "{bad}");
        }
    }
}
