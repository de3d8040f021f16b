//! The `cluster` section: what makes this process a member of its cluster.

pub(crate) mod command;
mod key_file;
mod metrics;

use std::path::PathBuf;

use eagle_cluster::{ClusterKey, ClusterKeys, MemberTls, Membership, ParseKeysError, TlsError, TlsFiles};
use eagle_registry::Secret;
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

pub(crate) use self::key_file::KeyFileError;
use self::{key_file::KeyFile, metrics::KeyCollector};

/// Who belongs to the cluster; the same for every role of a process.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ClusterConfig {
    /// File with the cluster key, or with two while it is changed.
    pub(crate) key_file: Option<PathBuf>,
    /// The same text itself.
    pub(crate) key: Option<Secret>,
    /// Whether a node without a key may listen for others than this machine.
    pub(crate) insecure: bool,
    /// Certificates for the APIs of trackers and seeders, in place of those made from the key.
    pub(crate) tls: TlsConfig,
}

/// Certificates in files; all three or none.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct TlsConfig {
    /// This node's certificate, and those between it and the authority.
    pub(crate) certificate: Option<PathBuf>,
    /// The certificate's private key.
    pub(crate) key: Option<PathBuf>,
    /// The authorities whose certificates make a member.
    pub(crate) ca: Option<PathBuf>,
}

impl TlsConfig {
    /// The files; `None` without any.
    ///
    /// # Errors
    /// With the key of the section that is missing.
    pub(crate) fn files(&self) -> Result<Option<TlsFiles>, &'static str> {
        match (self.certificate.clone(), self.key.clone(), self.ca.clone()) {
            (None, None, None) => Ok(None),
            (Some(certificate), Some(key), Some(ca)) => Ok(Some(TlsFiles { certificate, key, ca })),
            (None, ..) => Err("certificate"),
            (_, None, _) => Err("key"),
            (.., None) => Err("ca"),
        }
    }
}

/// Why there is no key where one is configured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClusterError {
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] KeyFileError),
    /// `key` is no text of keys.
    #[error(transparent)]
    Key(#[from] ParseKeysError),
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl ClusterError {
    /// The key of the section that the error is about.
    pub(crate) const fn key(&self) -> &'static str {
        match self {
            Self::File(_) => "key_file",
            Self::Key(_) => "key",
            Self::Tls(_) => "tls",
        }
    }
}

impl ClusterConfig {
    /// The key that a command is given, as a role would be: by a file, else by `EAGLE_CLUSTER_KEY`, and never by an argument, which
    /// everybody sees in the list of processes.
    pub(crate) fn of_command(key_file: Option<PathBuf>) -> Self {
        let key = std::env::var("EAGLE_CLUSTER_KEY").ok().filter(|key| !key.is_empty() && key_file.is_none());
        Self { key_file, key: key.map(Secret::new), ..Self::default() }
    }

    /// Whether there is to be a key, good or not.
    pub(crate) const fn has_key(&self) -> bool {
        self.key_file.is_some() || self.key.is_some()
    }

    /// Whether there are to be certificates from files.
    pub(crate) const fn has_tls(&self) -> bool {
        self.tls.certificate.is_some()
    }

    /// The keys that are configured now; `None` without any.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(crate) fn keys(&self) -> Result<Option<ClusterKeys>, ClusterError> {
        Ok(match (&self.key_file, &self.key) {
            (Some(path), _) => Some(KeyFile::open(path)?.0),
            (None, Some(text)) => Some(text.expose().parse()?),
            (None, None) => None,
        })
    }
}

/// What a running process is in its cluster. Keys from a file are followed as long as this lives.
#[derive(Debug)]
pub(crate) struct Cluster {
    membership: Membership,
    members: MemberTls,
    /// Looks at the file.
    _watcher: Option<AbortOnDropHandle<()>>,
    /// Of keys that never change: receivers keep them also when this is gone.
    _fixed: Option<watch::Sender<ClusterKeys>>,
}

impl Cluster {
    /// Reads keys and certificates, and follows those of files from now on.
    ///
    /// # Errors
    /// When they cannot be read or used.
    pub(crate) async fn start(config: &ClusterConfig) -> Result<Self, ClusterError> {
        let (membership, watcher, fixed) = match (&config.key_file, &config.key) {
            (Some(path), _) => {
                let (keys, file) = KeyFile::open(path)?;
                let (sender, receiver) = watch::channel(keys);
                let watcher = AbortOnDropHandle::new(tokio::spawn(file.follow(sender)));
                (Membership::Keyed(receiver), Some(watcher), None)
            }
            (None, Some(text)) => {
                let (sender, receiver) = watch::channel(text.expose().parse()?);
                (Membership::Keyed(receiver), None, Some(sender))
            }
            (None, None) => (Membership::Open, None, None),
        };
        if let Some(keys) = membership.keys() {
            tracing::info!(key = keys.own().id(), accepted = ?ids(&keys), "member by the cluster key");
        }
        let members = match config.tls.files() {
            Ok(Some(files)) => MemberTls::from_files(files).await?,
            // That one is missing was said when the configuration was checked.
            Ok(None) | Err(_) => MemberTls::new(&membership)?,
        };
        Ok(Self { membership, members, _watcher: watcher, _fixed: fixed })
    }

    /// Who is a member.
    pub(crate) const fn membership(&self) -> &Membership {
        &self.membership
    }

    /// How members prove themselves to the APIs of trackers and seeders.
    pub(crate) const fn members(&self) -> &MemberTls {
        &self.members
    }

    /// Makes the names of the keys visible among the metrics of a role.
    pub(crate) fn register(&self, role: &str, metrics: &mut Registry) {
        let collector = KeyCollector(self.membership.clone());
        metrics.sub_registry_with_prefix(format!("eagle_{role}")).register_collector(Box::new(collector));
    }
}

/// What `/status` says of the membership: names of keys, never more.
pub(crate) fn status(membership: &Membership) -> Value {
    match membership.keys() {
        Some(keys) => json!({ "key": keys.own().id(), "accepted_keys": ids(&keys) }),
        None => json!({ "key": null, "accepted_keys": [] }),
    }
}

fn ids(keys: &ClusterKeys) -> Vec<String> {
    keys.accepted().iter().map(ClusterKey::id).collect()
}
