//! Where a job gets manifests and blobs: from this seeder itself, or from whichever seeder of the cluster
//! proxies will ask for them.

use bytes::Bytes;
use eagle_core::{Digest, metainfo::Frame};
use eagle_registry::{
    Caller, ForwardRequest, ImageReference, Manifest, OriginError, Reference, RegistryName, RepositoryName,
    manifest::{MAX_MANIFEST_SIZE, MEDIA_TYPES},
};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Body;

use super::report::one_line;
use crate::{
    access::Source,
    answer::SOURCE,
    client::{SeederClient, SeederError},
    error::FetchError,
    fetch::{Blob, Fetches, Phase},
    manifests::{self, Manifests},
};

/// Why something could not be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) message: String,
    /// Whether another try may well succeed.
    pub(super) is_transient: bool,
}

impl Problem {
    pub(super) fn lasting(message: impl AsRef<str>) -> Self {
        Self { message: one_line(message.as_ref()), is_transient: false }
    }

    fn transient(message: impl AsRef<str>) -> Self {
        Self { message: one_line(message.as_ref()), is_transient: true }
    }
}

impl From<FetchError> for Problem {
    fn from(error: FetchError) -> Self {
        let is_transient = match &error {
            FetchError::Origin { error, .. } => error.is_transient(),
            FetchError::TooLarge { .. } | FetchError::Geometry { .. } | FetchError::Stopped => false,
            FetchError::SizeChanged { .. }
            | FetchError::WrongContent { .. }
            | FetchError::NoRoom { .. }
            | FetchError::NoSpace { .. }
            | FetchError::Storage { .. }
            | FetchError::Busy(_)
            | FetchError::NotHeld { .. }
            | FetchError::NotYet { .. }
            | FetchError::Broken { .. } => true,
        };
        Self { message: one_line(&error.to_string()), is_transient }
    }
}

impl From<SeederError> for Problem {
    fn from(error: SeederError) -> Self {
        let is_transient = match &error {
            SeederError::Origin { status, .. } => is_transient(*status),
            SeederError::NoSeeder => false,
            _ => true,
        };
        Self { message: one_line(&error.to_string()), is_transient }
    }
}

fn is_transient(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429)
}

/// A manifest whose content matched its digest.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) digest: Digest,
    pub(super) size: u64,
    /// `cache`, `origin` or `stale`.
    pub(super) source: String,
    pub(super) manifest: Manifest,
}

/// A blob that is stored.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Obtained {
    pub(super) size: u64,
    pub(super) source: String,
}

/// What a job asks.
#[derive(Debug)]
pub(crate) enum Sources {
    /// This seeder is the only one.
    Own {
        /// Its manifests.
        manifests: Manifests,
        /// Its blobs.
        fetches: Fetches,
    },
    /// All seeders of the cluster, this one among them.
    Cluster(SeederClient),
}

impl Sources {
    /// The manifest that a reference stands for, as the origin gives it to who brings no credentials: with
    /// those of the configuration, that is.
    pub(super) async fn manifest(&self, image: &ImageReference) -> Result<Answer, Problem> {
        let ImageReference { registry, repository, reference } = image;
        let mut headers = HeaderMap::new();
        if let Ok(accept) = HeaderValue::try_from(MEDIA_TYPES.join(", ")) {
            headers.insert(header::ACCEPT, accept);
        }
        let path = format!("{repository}/manifests/{reference}");
        let forward =
            ForwardRequest::new(Method::GET, path, headers).map_err(|error| Problem::lasting(error.to_string()))?;
        match self {
            Self::Own { manifests, .. } => {
                let endpoint = forward.endpoint().ok_or_else(|| Problem::lasting("the image has no plain name"))?;
                let request = manifests::Request::new(registry.clone(), endpoint, forward, Caller::anonymous());
                read(manifests.answer(request).await, registry, reference).await
            }
            Self::Cluster(client) => {
                let response = client.forward(registry, forward, &Caller::anonymous()).await?;
                read(response, registry, reference).await
            }
        }
    }

    /// Has a blob stored by the seeder responsible for it; tells of bytes as they are stored.
    pub(super) async fn blob(
        &self,
        digest: Digest,
        registry: &RegistryName,
        repository: &RepositoryName,
        received: impl Fn(u64),
    ) -> Result<Obtained, Problem> {
        match self {
            Self::Own { fetches, .. } => {
                let source =
                    Source { registry: registry.clone(), repository: repository.clone(), caller: Caller::anonymous() };
                match fetches.obtain(digest, &source).await? {
                    Blob::Stored(blob) => Ok(Obtained { size: blob.size(), source: "cache".to_owned() }),
                    Blob::Running(fetch) => {
                        let mut phases = fetch.follow();
                        loop {
                            match &*phases.borrow_and_update() {
                                Phase::Starting => {}
                                Phase::Running { geometry, pieces, .. } => {
                                    let bytes = u64::from(*pieces) * u64::from(geometry.piece_length());
                                    received(bytes.min(geometry.size()));
                                }
                                Phase::Complete(blob) => {
                                    return Ok(Obtained { size: blob.size(), source: "origin".to_owned() });
                                }
                                Phase::Failed { error, .. } => return Err(error.clone().into()),
                            }
                            phases.changed().await.map_err(|_| FetchError::Broken { digest })?;
                        }
                    }
                }
            }
            Self::Cluster(client) => {
                let mut last = Problem::lasting("no seeder is configured");
                for seeder in client.order(&digest) {
                    match from_seeder(client, &seeder, digest, registry, repository, &received).await {
                        Ok(size) => return Ok(Obtained { size, source: seeder.to_string() }),
                        Err(problem) => last = problem,
                    }
                }
                Err(last)
            }
        }
    }
}

/// Follows the metainfo of a blob until its seeder has all of it.
async fn from_seeder(
    client: &SeederClient,
    seeder: &url::Url,
    digest: Digest,
    registry: &RegistryName,
    repository: &RepositoryName,
    received: &impl Fn(u64),
) -> Result<u64, Problem> {
    let mut stream = client.metainfo(seeder, digest, registry, repository, &Caller::anonymous()).await?;
    let (mut size, mut piece_length, mut bytes) = (0, 0, 0u64);
    while let Some(frame) = stream.next().await {
        match frame? {
            Frame::Header { geometry, .. } => (size, piece_length) = (geometry.size(), geometry.piece_length()),
            Frame::Hashes(hashes) => {
                bytes = bytes.saturating_add((hashes.len() as u64).saturating_mul(u64::from(piece_length)));
                received(bytes.min(size));
            }
            Frame::Complete => return Ok(size),
            Frame::Failed(reason) => return Err(Problem::transient(format!("seeder {seeder}: {reason}"))),
            _ => {}
        }
    }
    Err(Problem::transient(format!("seeder {seeder} broke off")))
}

/// Reads a manifest and checks it against the digest that was asked for.
async fn read<B>(response: Response<B>, registry: &RegistryName, reference: &Reference) -> Result<Answer, Problem>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
{
    let (parts, body) = response.into_parts();
    let body = Limited::new(body, MAX_MANIFEST_SIZE).collect().await;
    let body = match body {
        Ok(body) => body.to_bytes(),
        Err(error) => return Err(Problem::transient(format!("manifest {reference} from {registry}: {error}"))),
    };
    if parts.status != StatusCode::OK {
        let text = String::from_utf8_lossy(&body);
        let message = format!("registry {registry} answered {} for manifest {reference}: {text}", parts.status);
        return Err(Problem { message: one_line(&message), is_transient: is_transient(parts.status) });
    }
    let content_type = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let manifest = Manifest::parse(&body, content_type)
        .map_err(|error| Problem::lasting(format!("manifest {reference} from {registry}: {error}")))?;
    let asked = reference.digest();
    let size = body.len() as u64;
    let like = asked.unwrap_or_else(|| Digest::of(b""));
    let hashed = tokio::task::spawn_blocking(move || {
        let mut hasher = like.hasher();
        hasher.update(&body);
        hasher.finish()
    });
    let digest = hashed.await.map_err(|error| Problem::transient(error.to_string()))?;
    if asked.is_some_and(|asked| asked != digest) {
        let problem = OriginError::Protocol {
            registry: registry.to_string(),
            problem: format!("other content for manifest {reference}"),
        };
        return Err(Problem::lasting(problem.to_string()));
    }
    let source = parts.headers.get(SOURCE).and_then(|value| value.to_str().ok()).unwrap_or("origin").to_owned();
    Ok(Answer { digest, size, source, manifest })
}
