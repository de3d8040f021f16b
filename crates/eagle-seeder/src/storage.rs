//! Where blobs are kept: the keys `storage` and `object_store`, and what they open.

use std::{
    fmt,
    num::NonZeroU64,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use eagle_core::units::Rate;
use eagle_registry::config::{Secret, duration};
use eagle_store::{
    BlobStorage, BucketKind, BucketSettings, BucketUrl, FsStorage, MemoryStorage, ObjectStorage, ParseBucketError,
    StorageError,
    wrappers::{RateLimit, Wrapped},
};
use serde::{Deserialize, Serialize};
use url::Url;

use crate::config::SeederConfig;

/// Directory of blobs on their way into an object store piece by piece, below the data directory. A seeder
/// uploads whole ones from where they are, so it stays empty.
const STAGING: &str = "staging";

/// Where a seeder keeps its blobs, written as a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StorageLocation {
    /// `fs:`, in `blobs` below the data directory, or `fs:///path`, in that directory.
    Fs(Option<PathBuf>),
    /// `memory:`; nothing survives a restart.
    Memory,
    /// `s3://BUCKET/PREFIX`, `gs://...` or `az://...`: in an object store, which several seeders may share, with what
    /// is used at present in `blobs` below the data directory.
    Bucket(BucketUrl),
}

impl Default for StorageLocation {
    fn default() -> Self {
        Self::Fs(None)
    }
}

/// A text that is no place for blobs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseStorageError {
    /// The scheme names no storage.
    #[error("unknown storage {0:?}: there are fs:, fs:///path, memory:, s3://, gs:// and az://")]
    UnknownScheme(String),
    /// A directory is missing or relative.
    #[error("the storage {0:?} needs an absolute path, for instance fs:///srv/eagle")]
    Path(String),
    /// `memory` takes nothing further.
    #[error("the storage memory: takes no path")]
    MemoryPath,
    /// No place in an object store.
    #[error("the storage: {0}")]
    Bucket(ParseBucketError),
}

impl FromStr for StorageLocation {
    type Err = ParseStorageError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (scheme, rest) = text.split_once(':').unwrap_or((text, ""));
        match scheme {
            "fs" if rest.is_empty() => Ok(Self::Fs(None)),
            "fs" => match rest.strip_prefix("//").map(Path::new) {
                Some(path) if path.is_absolute() => Ok(Self::Fs(Some(path.to_owned()))),
                _ => Err(ParseStorageError::Path(text.to_owned())),
            },
            "memory" if rest.is_empty() => Ok(Self::Memory),
            "memory" => Err(ParseStorageError::MemoryPath),
            other => match text.parse() {
                Ok(url) => Ok(Self::Bucket(url)),
                // What follows the scheme may hold credentials.
                Err(ParseBucketError::UnknownScheme(_)) => Err(ParseStorageError::UnknownScheme(other.to_owned())),
                Err(error) => Err(ParseStorageError::Bucket(error)),
            },
        }
    }
}

impl fmt::Display for StorageLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fs(None) => f.write_str("fs:"),
            Self::Fs(Some(path)) => write!(f, "fs://{}", path.display()),
            Self::Memory => f.write_str("memory:"),
            Self::Bucket(url) => url.fmt(f),
        }
    }
}

/// How an object store is reached. What is not given comes from the variables that the store's own tools read
/// (`AWS_...`, `GOOGLE_...`, `AZURE_STORAGE_...`), then from the identity of the machine or pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ObjectStoreConfig {
    /// URL of the API, when it is not the provider's.
    pub endpoint: Option<Url>,
    /// S3: region of the bucket.
    pub region: Option<String>,
    /// S3: whether the bucket's name is part of the host name.
    pub virtual_hosted: bool,
    /// S3: name of the key.
    pub access_key_id: Option<String>,
    /// S3: the key.
    pub secret_access_key: Option<Secret>,
    /// S3: the token that belongs to a temporary key.
    pub session_token: Option<Secret>,
    /// Google Cloud Storage: JSON file with the key of a service account.
    pub service_account_file: Option<PathBuf>,
    /// Azure: name of the storage account.
    pub account: Option<String>,
    /// Azure: a key of the account.
    pub account_key: Option<Secret>,
    /// PEM file with certificate authorities to trust besides the system's.
    pub ca_file: Option<PathBuf>,
    /// How long to wait for another seeder that fetches the same blob and gives nothing of it, before this one does so
    /// as well.
    #[serde(with = "duration")]
    pub wait: Duration,
    /// Most bytes per second to and from the object store, together.
    pub rate: Rate,
}

impl Default for ObjectStoreConfig {
    fn default() -> Self {
        Self {
            endpoint: None,
            region: None,
            virtual_hosted: false,
            access_key_id: None,
            secret_access_key: None,
            session_token: None,
            service_account_file: None,
            account: None,
            account_key: None,
            ca_file: None,
            // Longer than the lease of a seeder that was killed lives. One request more is better than keeping everybody waiting.
            wait: Duration::from_secs(15),
            rate: Rate::Unlimited,
        }
    }
}

impl ObjectStoreConfig {
    /// Checks that the settings are those of this storage.
    ///
    /// # Errors
    /// What is wrong, without values.
    pub(crate) fn check(&self, storage: &StorageLocation) -> Result<(), String> {
        let kind = match storage {
            StorageLocation::Bucket(url) => url.kind(),
            _ if *self == Self::default() => return Ok(()),
            _ => return Err("it says how an object store is reached, but seeder.storage is none".to_owned()),
        };
        if let Some(endpoint) = &self.endpoint {
            if !matches!(endpoint.scheme(), "http" | "https") || endpoint.host_str().is_none() {
                return Err("endpoint: give an http or https URL".to_owned());
            }
            if !endpoint.username().is_empty() || endpoint.password().is_some() || endpoint.query().is_some() {
                return Err("endpoint: give no credentials in the URL; there are keys for them".to_owned());
            }
        }
        let keys = [
            (BucketKind::S3, "region", self.region.is_some()),
            (BucketKind::S3, "access_key_id", self.access_key_id.is_some()),
            (BucketKind::S3, "secret_access_key", self.secret_access_key.is_some()),
            (BucketKind::S3, "session_token", self.session_token.is_some()),
            (BucketKind::S3, "virtual_hosted", self.virtual_hosted),
            (BucketKind::Gcs, "service_account_file", self.service_account_file.is_some()),
            (BucketKind::Azure, "account", self.account.is_some()),
            (BucketKind::Azure, "account_key", self.account_key.is_some()),
        ];
        if let Some((_, key, _)) = keys.iter().find(|(of, _, given)| *given && *of != kind) {
            return Err(format!("{key} has no meaning for a storage of {}://", kind.scheme()));
        }
        if self.access_key_id.is_some() != self.secret_access_key.is_some() {
            return Err("access_key_id and secret_access_key belong together".to_owned());
        }
        Ok(())
    }

    /// The same for `eagle-store`.
    pub(crate) fn settings(&self) -> BucketSettings {
        let secret = |secret: &Option<Secret>| secret.as_ref().map(|secret| secret.expose().to_owned().into());
        BucketSettings {
            endpoint: self.endpoint.clone(),
            region: self.region.clone(),
            virtual_hosted: self.virtual_hosted,
            access_key_id: self.access_key_id.clone(),
            secret_access_key: secret(&self.secret_access_key),
            session_token: secret(&self.session_token),
            service_account_file: self.service_account_file.clone(),
            account: self.account.clone(),
            account_key: secret(&self.account_key),
            ca_file: self.ca_file.clone(),
        }
    }
}

/// The storage of this machine's cache.
pub(crate) async fn open_local(config: &SeederConfig) -> Result<Arc<dyn BlobStorage>, StorageError> {
    match config.blob_dir() {
        Some(directory) => Ok(Arc::new(FsStorage::open(&directory).await?)),
        None => Ok(Arc::new(MemoryStorage::new())),
    }
}

/// The storage that seeders share, when one is configured. `owner` is this seeder's name in it.
pub(crate) async fn open_shared(
    config: &SeederConfig,
    owner: &str,
) -> Result<Option<Arc<dyn BlobStorage>>, StorageError> {
    let StorageLocation::Bucket(url) = &config.storage else { return Ok(None) };
    let settings = config.object_store.settings();
    let storage = ObjectStorage::open(url, &settings, owner, &config.data_dir.join(STAGING)).await?;
    let limit = match config.object_store.rate {
        Rate::Limited(rate) => NonZeroU64::new(rate),
        Rate::Unlimited => None,
    };
    Ok(Some(match limit {
        Some(limit) => Arc::new(Wrapped::new(Arc::new(storage), RateLimit::new(limit))),
        None => Arc::new(storage),
    }))
}
/// Has a type read and written as its text.
macro_rules! as_text {
    ($type:ty) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

pub(crate) use as_text;

as_text!(StorageLocation);
