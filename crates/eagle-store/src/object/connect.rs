//! From a URL and settings to a connection.

use std::{fmt, path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use object_store::{
    Certificate, ClientOptions, RetryConfig, aws::AmazonS3Builder, azure::MicrosoftAzureBuilder,
    gcp::GoogleCloudStorageBuilder,
};
use url::Url;
use zeroize::Zeroizing;

use super::objects::Store;
use crate::error::StorageError;

/// Deadline of a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time without a byte after which an answer is given up.
const READ_TIMEOUT: Duration = Duration::from_secs(20);
/// Deadline of a whole request: a part of 8 MiB over a link that has 100 kB/s for it.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(90);
/// How often, and for how long in all, a request is tried again when the store is busy or out of reach.
const RETRIES: usize = 4;
const RETRY_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest prefix, bytes: keys of S3 have 1,024 at most, and those here add up to 200.
const MAX_PREFIX: usize = 512;

/// Whose object store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BucketKind {
    /// Amazon S3, and every server that speaks its protocol.
    S3,
    /// Google Cloud Storage.
    Gcs,
    /// Azure Blob Storage.
    Azure,
}

/// Which bucket, and where in it: `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`, `az://CONTAINER/PREFIX` or
/// `azure://CONTAINER/PREFIX`; the prefix may be left out.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BucketUrl {
    kind: BucketKind,
    bucket: String,
    prefix: String,
}

/// A text that names no bucket. Says nothing of what follows the scheme, which may hold a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseBucketError {
    /// Not a scheme of an object store.
    #[error("{0:?} is no object store; there are s3://, gs:// and az://")]
    UnknownScheme(String),
    /// The name of the bucket is missing or has characters that no bucket has.
    #[error("write the name of a bucket after {0}://, of letters, digits, '.', '_' and '-'")]
    Bucket(&'static str),
    /// The prefix has odd characters or segments.
    #[error("the prefix in {0}://BUCKET/PREFIX must be of plain segments: letters, digits, '.', '_' and '-'")]
    Prefix(&'static str),
}

impl BucketKind {
    /// The scheme of its URLs.
    pub const fn scheme(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Gcs => "gs",
            Self::Azure => "az",
        }
    }
}

impl BucketUrl {
    /// Whose object store.
    pub const fn kind(&self) -> BucketKind {
        self.kind
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Scheme and bucket.
    pub(super) fn bucket_name(&self) -> String {
        format!("{}://{}", self.kind.scheme(), self.bucket)
    }
}

fn is_plain(segment: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !segment.is_empty() && segment.chars().all(plain) && !matches!(segment, "." | "..")
}

impl FromStr for BucketUrl {
    type Err = ParseBucketError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (scheme, rest) = text.split_once(':').unwrap_or((text, ""));
        let kind = match scheme {
            "s3" => BucketKind::S3,
            "gs" => BucketKind::Gcs,
            "az" | "azure" => BucketKind::Azure,
            other => return Err(ParseBucketError::UnknownScheme(other.to_owned())),
        };
        let rest = rest.strip_prefix("//").unwrap_or_default();
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if !is_plain(bucket) {
            return Err(ParseBucketError::Bucket(kind.scheme()));
        }
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        if prefix.len() > MAX_PREFIX || !(prefix.is_empty() || prefix.split('/').all(is_plain)) {
            return Err(ParseBucketError::Prefix(kind.scheme()));
        }
        Ok(Self { kind, bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }
}

impl fmt::Display for BucketUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.kind.scheme(), self.bucket)?;
        if self.prefix.is_empty() { Ok(()) } else { write!(f, "/{}", self.prefix) }
    }
}

/// How to reach a bucket. What is not set comes from the environment variables that the store's own tools read
/// (`AWS_...`, `GOOGLE_...`, `AZURE_STORAGE_...`), then from the machine's or pod's identity.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct BucketSettings {
    /// Where the API is, when not at the provider. With `http` nothing is encrypted.
    pub endpoint: Option<Url>,
    /// S3: the region.
    pub region: Option<String>,
    /// S3: whether the bucket is part of the host name.
    pub virtual_hosted: bool,
    /// S3: the name of the key.
    pub access_key_id: Option<String>,
    /// S3: the key. A secret.
    pub secret_access_key: Option<Zeroizing<String>>,
    /// S3: the token that belongs to a temporary key. A secret.
    pub session_token: Option<Zeroizing<String>>,
    /// Google: JSON file with the key of a service account.
    pub service_account_file: Option<PathBuf>,
    /// Azure: name of the storage account.
    pub account: Option<String>,
    /// Azure: a key of the account. A secret.
    pub account_key: Option<Zeroizing<String>>,
    /// PEM file with certificate authorities to trust besides the system's.
    pub ca_file: Option<PathBuf>,
}

impl fmt::Debug for BucketSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secret = |value: &Option<Zeroizing<String>>| value.as_ref().map(|_| "***");
        f.debug_struct("BucketSettings")
            .field("endpoint", &self.endpoint.as_ref().map(Url::host_str))
            .field("region", &self.region)
            .field("virtual_hosted", &self.virtual_hosted)
            .field("access_key_id", &self.access_key_id)
            .field("secret_access_key", &secret(&self.secret_access_key))
            .field("session_token", &secret(&self.session_token))
            .field("service_account_file", &self.service_account_file)
            .field("account", &self.account)
            .field("account_key", &secret(&self.account_key))
            .field("ca_file", &self.ca_file)
            .finish()
    }
}

/// What all stores are told alike.
async fn client(settings: &BucketSettings) -> Result<ClientOptions, StorageError> {
    let mut options = ClientOptions::new()
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_read_timeout(READ_TIMEOUT)
        .with_timeout(REQUEST_TIMEOUT);
    if settings.endpoint.as_ref().is_some_and(|endpoint| endpoint.scheme() == "http") {
        options = options.with_allow_http(true);
    }
    if let Some(path) = &settings.ca_file {
        let pem = tokio::fs::read(path).await.map_err(|error| StorageError::io("read", path, error))?;
        let certificates = Certificate::from_pem_bundle(&pem)
            .map_err(|_| StorageError::Settings(format!("{} is no PEM file with certificates", path.display())))?;
        for certificate in certificates {
            options = options.with_root_certificate(certificate);
        }
    }
    Ok(options)
}

/// The text of an endpoint, without the slash that would be doubled.
fn endpoint(url: &Url) -> String {
    url.as_str().trim_end_matches('/').to_owned()
}

pub(super) async fn connect(url: &BucketUrl, settings: &BucketSettings) -> Result<Arc<dyn Store>, StorageError> {
    let client = client(settings).await?;
    let retry = RetryConfig { max_retries: RETRIES, retry_timeout: RETRY_TIMEOUT, ..RetryConfig::default() };
    // The messages of the builders name what is missing, and no values.
    let refused = |error: object_store::Error| StorageError::Settings(format!("cannot use {url}: {error}"));
    Ok(match url.kind {
        BucketKind::S3 => {
            let mut builder = AmazonS3Builder::from_env()
                .with_bucket_name(&url.bucket)
                .with_virtual_hosted_style_request(settings.virtual_hosted)
                .with_client_options(client)
                .with_retry(retry);
            if std::env::var("AWS_ALLOW_HTTP").is_ok_and(|allow| allow == "true") {
                // For an endpoint that the environment names too.
                builder = builder.with_allow_http(true);
            }
            if let Some(url) = &settings.endpoint {
                builder = builder.with_endpoint(endpoint(url));
            }
            if let Some(region) = &settings.region {
                builder = builder.with_region(region);
            }
            if let Some(key) = &settings.access_key_id {
                builder = builder.with_access_key_id(key);
            }
            if let Some(key) = &settings.secret_access_key {
                builder = builder.with_secret_access_key(key.as_str());
            }
            if let Some(token) = &settings.session_token {
                builder = builder.with_token(token.as_str());
            }
            Arc::new(builder.build().map_err(refused)?)
        }
        BucketKind::Gcs => {
            let mut builder = GoogleCloudStorageBuilder::from_env()
                .with_bucket_name(&url.bucket)
                .with_client_options(client)
                .with_retry(retry);
            if let Some(url) = &settings.endpoint {
                builder = builder.with_base_url(&endpoint(url));
            }
            if let Some(path) = &settings.service_account_file {
                builder = builder.with_service_account_path(path.to_string_lossy());
            }
            Arc::new(builder.build().map_err(refused)?)
        }
        BucketKind::Azure => {
            let mut builder = MicrosoftAzureBuilder::from_env()
                .with_container_name(&url.bucket)
                .with_client_options(client)
                .with_retry(retry);
            if let Some(url) = &settings.endpoint {
                builder = builder.with_endpoint(endpoint(url));
            }
            if let Some(account) = &settings.account {
                builder = builder.with_account(account);
            }
            if let Some(key) = &settings.account_key {
                builder = builder.with_access_key(key.as_str());
            }
            Arc::new(builder.build().map_err(refused)?)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_urls_of_buckets() {
        for (text, shown) in [
            ("s3://bucket", "s3://bucket"),
            ("s3://my.bucket-1/a/b/", "s3://my.bucket-1/a/b"),
            ("gs://b/p", "gs://b/p"),
            ("az://c", "az://c"),
            ("azure://c/p_1", "az://c/p_1"),
        ] {
            assert_eq!(text.parse::<BucketUrl>().unwrap().to_string(), shown);
        }
        for text in [
            "s3:",
            "s3://",
            "s3:///p",
            "s3:bucket",
            "s3://b/../p",
            "s3://b//p",
            "s3://b/./p",
            "s3://b/a?secret",
            "s3://u:secret@b/p",
            "s3://b/%2e%2e",
            "s3://b ",
            "http://b",
            "",
            "ftp",
        ] {
            let error = text.parse::<BucketUrl>().unwrap_err().to_string();
            assert!(!error.contains("secret"), "{text}: {error}");
        }
        assert!(format!("s3://b/{}", "x".repeat(600)).parse::<BucketUrl>().is_err());
    }

    #[tokio::test]
    async fn every_kind_connects_and_tells_no_secret() {
        let pem = tempfile::NamedTempFile::new().unwrap();
        let settings = BucketSettings {
            endpoint: Some("http://127.0.0.1:1".parse().unwrap()),
            region: Some("eu-1".to_owned()),
            access_key_id: Some("id".to_owned()),
            secret_access_key: Some("very-secret".to_owned().into()),
            session_token: Some("very-secret".to_owned().into()),
            account: Some("account".to_owned()),
            account_key: Some("dmVyeS1zZWNyZXQ=".to_owned().into()),
            ..BucketSettings::default()
        };
        let shown = format!("{settings:?}");
        assert!(!shown.contains("secret\"") && !shown.contains("dmVy"), "{shown}");
        for url in ["s3://b/p", "az://b/p"] {
            let store = connect(&url.parse().unwrap(), &settings).await.unwrap();
            assert!(!format!("{store:?}").contains("very-secret"), "{url}");
        }
        let wrong = BucketSettings { service_account_file: Some("/nonexistent/key.json".into()), ..settings.clone() };
        let error = connect(&"gs://b".parse().unwrap(), &wrong).await.unwrap_err().to_string();
        assert!(error.contains("gs://b") && error.contains("/nonexistent/key.json"), "{error}");
        let wrong = BucketSettings { ca_file: Some("/nonexistent/ca.pem".into()), ..settings.clone() };
        let error = connect(&"s3://b".parse().unwrap(), &wrong).await.unwrap_err().to_string();
        assert!(error.contains("/nonexistent/ca.pem"), "{error}");
        std::fs::write(pem.path(), "-----BEGIN CERTIFICATE-----\nnot base64!\n-----END CERTIFICATE-----\n").unwrap();
        let wrong = BucketSettings { ca_file: Some(pem.path().to_owned()), ..settings };
        let error = connect(&"s3://b".parse().unwrap(), &wrong).await.unwrap_err().to_string();
        assert!(error.contains("PEM"), "{error}");
    }
}
