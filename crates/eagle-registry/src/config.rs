//! Configuration of registries.

pub mod duration;
mod egress_proxy;
mod secret;

use std::{path::PathBuf, time::Duration};

use eagle_core::units::Rate;
use serde::{Deserialize, Serialize};
use url::Url;

pub use self::{
    egress_proxy::{EgressProxy, ParseEgressProxyError},
    secret::Secret,
};
use crate::name::RegistryName;

/// Default deadline of a TCP connection: a host that is there answers in well under a second; docker
/// and containerd allow 30 s, of which the fallback to another source must leave something.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Default deadline from the request to the headers of the answer: registries on object stores take
/// seconds for a cold blob.
pub const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
/// Default time without a byte after which a body is given up; runtimes give up later than this.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(20);
/// Default number of further tries: with the delays of a retry, an origin that restarts within a second
/// costs nothing but time.
pub const RETRIES: u32 = 3;
/// Most further tries that can be configured: more fit into no deadline of a runtime.
pub const MAX_RETRIES: u32 = 10;
/// Least number of connections that can be configured: one for a blob, which takes long, and one for
/// manifests besides.
pub const MIN_CONNECTIONS: usize = 2;
/// Default time for which a caller may read what a public registry has given it: a day of pulls costs
/// one question.
pub const PUBLIC_GRANT_TTL: Duration = Duration::from_secs(24 * 3600);
/// Most mirrors of a registry: each that is down may cost a deadline.
pub const MAX_MIRRORS: usize = 8;

/// Where credentials come from that are not written with their registry.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CredentialsConfig {
    /// Files in the form of docker's `config.json` (the `.dockerconfigjson` of a Kubernetes pull secret):
    /// the first that names a registry's host counts for it. They are read again when they change.
    pub docker_configs: Vec<PathBuf>,
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
    /// Other places with the same content, asked in this order before `url`, for callers that bring no
    /// credentials of their own. No credentials of the registry are sent there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mirrors: Vec<Url>,
    /// PEM file with certificate authorities to trust for it, besides those of the system (which its
    /// redirects to an object store may need).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// PEM file with the certificate, and its chain, that is shown to the registry and its mirrors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_cert_file: Option<PathBuf>,
    /// PEM file with the private key of that certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_key_file: Option<PathBuf>,
    /// The way out of the network; as `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` of the process say when
    /// absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_proxy: Option<EgressProxy>,
    /// User for callers that bring no credentials of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Password of that user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// Whether everybody may read all of it, so that a caller is asked for less often.
    #[serde(default)]
    pub public: bool,
    /// How long a caller may read what a manifest names, without a further question, when it is public.
    #[serde(default = "public_grant_ttl", with = "duration")]
    pub public_grant_ttl: Duration,
    /// Most bytes of bodies a second, from the registry and its mirrors together.
    #[serde(default = "unlimited")]
    pub download_rate: Rate,
    /// Most connections in use at a time; one of them is kept for what is no blob. No limit when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<usize>,
    /// Further tries after a failure that may pass.
    #[serde(default = "retries")]
    pub retries: u32,
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

const fn public_grant_ttl() -> Duration {
    PUBLIC_GRANT_TTL
}

const fn unlimited() -> Rate {
    Rate::Unlimited
}

const fn retries() -> u32 {
    RETRIES
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
    /// The client certificate or its key cannot be used.
    #[error("registry {name}: client_cert_file {file}: {reason}", file = .file.display())]
    ClientCertificate {
        /// The registry.
        name: RegistryName,
        /// The file of the certificate.
        file: PathBuf,
        /// What is wrong with it or its key.
        reason: String,
    },
    /// Half of a certificate and its key.
    #[error("registry {0}: client_cert_file and client_key_file must be given together")]
    HalfIdentity(RegistryName),
    /// A setting out of its bounds.
    #[error("registry {name}: {problem}")]
    Bounds {
        /// The registry.
        name: RegistryName,
        /// Which, and what would be right.
        problem: String,
    },
    /// A docker configuration cannot be read.
    #[error("credentials.docker_configs {file}: {reason}", file = .file.display())]
    DockerConfig {
        /// The file.
        file: PathBuf,
        /// What is wrong with it, without anything of its content.
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
            mirrors: Vec::new(),
            ca_file: None,
            client_cert_file: None,
            client_key_file: None,
            egress_proxy: None,
            username: None,
            password: None,
            public: false,
            public_grant_ttl: PUBLIC_GRANT_TTL,
            download_rate: Rate::Unlimited,
            max_connections: None,
            retries: RETRIES,
            connect_timeout: CONNECT_TIMEOUT,
            response_timeout: RESPONSE_TIMEOUT,
            stall_timeout: STALL_TIMEOUT,
        }
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// When a URL is not `http` or `https` with a host, or has a query or credentials; when only half of
    /// a pair is given; when a number is out of its bounds. Files are not looked at.
    pub fn check(&self) -> Result<(), ConfigError> {
        let name = || self.name.clone();
        for url in self.url.iter().chain(&self.mirrors) {
            check_url(url).map_err(|problem| {
                let mut url = url.clone();
                // Never print credentials, not even misplaced ones.
                let _ = url.set_username("");
                let _ = url.set_password(None);
                ConfigError::Url { name: name(), url: url.into(), problem }
            })?;
        }
        if self.username.is_some() != self.password.is_some() {
            return Err(ConfigError::Credentials(name()));
        }
        if self.client_cert_file.is_some() != self.client_key_file.is_some() {
            return Err(ConfigError::HalfIdentity(name()));
        }
        if self.connect_timeout.is_zero() || self.response_timeout.is_zero() || self.stall_timeout.is_zero() {
            return Err(ConfigError::Timeout(name()));
        }
        let bounds = |problem: String| Err(ConfigError::Bounds { name: name(), problem });
        if self.mirrors.len() > MAX_MIRRORS {
            return bounds(format!("mirrors: at most {MAX_MIRRORS} are asked"));
        }
        if self.max_connections.is_some_and(|most| most < MIN_CONNECTIONS) {
            return bounds(format!("max_connections: give at least {MIN_CONNECTIONS}, or null for no limit"));
        }
        if self.retries > MAX_RETRIES {
            return bounds(format!("retries: give at most {MAX_RETRIES}"));
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

fn check_url(url: &Url) -> Result<(), &'static str> {
    if !matches!(url.scheme(), "http" | "https") {
        return Err("it must begin with http:// or https://");
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err("it has no host");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("credentials belong into username and password");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("it must not have a query or a fragment");
    }
    Ok(())
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
            r#"{"name":"a.b","mirrors":["https://u:secret@a"]}"#,
            r#"{"name":"a.b","mirrors":["https://a/", "https://a/?x"]}"#,
            r#"{"name":"a.b","client_cert_file":"/c.pem"}"#,
            r#"{"name":"a.b","max_connections":1}"#,
            r#"{"name":"a.b","retries":11}"#,
        ] {
            let error = read(bad).unwrap().check().unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
        let many = format!(r#"{{"name":"a.b","mirrors":[{}]}}"#, ["\"http://m\""; 9].join(","));
        assert!(read(&many).unwrap().check().is_err());
        let config = r#"{"name":"a.b","username":"u","password":"secret","egress_proxy":"http://u:secret@p:1"}"#;
        let config = read(config).unwrap();
        assert!(config.check().is_ok());
        assert!(!format!("{config:?}").contains("secret"));
        assert!(!serde_json::to_string(&config).unwrap().contains("secret"));
    }
}
