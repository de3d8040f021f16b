//! The client of the origin registries.

mod auth;
mod buffers;
mod challenge;
mod egress;
mod exchange;
mod forward;
mod hosts;
mod limits;
mod ping;
mod push;
mod registries;
mod relay;
mod retry;
mod tls;
mod token;
mod transport;

use std::{
    error::Error,
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use eagle_core::{Digest, geometry::MAX_BLOB_SIZE};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::BodyExt;

pub use self::{
    buffers::{HTTP_READ_AHEAD, receive_buffer},
    forward::{ForwardRequest, ForwardRequestError},
    ping::Ping,
    registries::Registries,
    relay::{RelayBody, RelayRequest},
    retry::{backoff, retry_after},
};
pub(crate) use self::{
    challenge::{Wanted, wanted},
    token::read_token,
};
use self::{exchange::Question, hosts::Hosts, limits::Limits, transport::Transport};
use crate::{
    body::{BlobBody, Body, guard},
    caller::Caller,
    config::RegistryConfig,
    credentials::DockerConfigs,
    headers::{number, remove_hop_by_hop},
    name::{RegistryName, RepositoryName},
    origin::OriginError,
    path::Endpoint,
};

/// Most of an error body that is read, bytes: enough for any list of OCI errors.
const MAX_ERROR_BODY: usize = 64 << 10;

/// One origin registry. All clones of its `Arc` share connections and tokens.
pub struct Registry {
    name: RegistryName,
    stall_timeout: Duration,
    retries: u32,
    /// How long a caller may read what it was given, when everybody may read all of it.
    public: Option<Duration>,
    transport: Transport,
    hosts: Hosts,
    limits: Limits,
    push_challenge: Mutex<push::KnownChallenge>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Registry {
    fn new(config: &RegistryConfig, transport: Transport, files: &Arc<DockerConfigs>) -> Self {
        Self {
            name: config.name.clone(),
            stall_timeout: config.stall_timeout,
            retries: config.retries,
            public: config.public.then_some(config.public_grant_ttl),
            transport,
            hosts: Hosts::new(config, files),
            limits: Limits::new(config.max_connections, config.download_rate),
            push_challenge: Mutex::default(),
        }
    }

    /// Its name.
    pub const fn name(&self) -> &RegistryName {
        &self.name
    }

    /// How long a caller may read what it was given without the registry being asked again: `private`,
    /// unless the configuration says that everybody may read all of it.
    pub fn grant_ttl(&self, private: Duration) -> Duration {
        self.public.map_or(private, |public| public.max(private))
    }

    /// Notes that what came last for a blob was something else: where there is a mirror, the blob is
    /// asked for elsewhere from now on.
    pub fn distrust(&self, blob: Digest) {
        self.hosts.distrust(&blob);
    }

    /// Passes a request on. Any status is an answer; headers of the connection are removed, all others
    /// are the registry's. A caller without credentials gets those of the configuration, or an
    /// anonymous token. A caller with credentials speaks for itself, and a 401 is its own to answer; but where the
    /// registry wants a token and the caller has brought a password, the token is fetched for it.
    ///
    /// # Errors
    /// When there is no answer, or one that breaks the protocol; when the token service is overloaded.
    /// The body can fail later, with the same kinds of errors.
    pub async fn forward(&self, request: ForwardRequest, caller: &Caller) -> Result<Response<Body>, OriginError> {
        let endpoint = request.endpoint();
        let ForwardRequest { method, path, mut headers } = request;
        for (name, value) in &own_headers() {
            headers.entry(name).or_insert_with(|| value.clone());
        }
        let repository = endpoint.as_ref().and_then(Endpoint::repository);
        let blob = match &endpoint {
            Some(Endpoint::Blob(_, digest)) => Some(*digest),
            _ => None,
        };
        let question = Question { method: &method, path: &path, headers, repository, caller, blob };
        let (answer, permit) = self.ask(&question).await?;
        let (mut parts, body) = answer.response.into_parts();
        remove_hop_by_hop(&mut parts.headers);
        if !answer.from_registry {
            // Credentials for this registry must not be offered to the challenge of another host.
            parts.headers.remove(header::WWW_AUTHENTICATE);
        }
        let body = guard(body, None, self.stall_timeout, self.name.as_str());
        Ok(Response::from_parts(parts, self.limits.apply(body, permit)))
    }

    /// The content of a blob from byte `start` to its end.
    ///
    /// # Errors
    /// [`OriginError::Status`] when the registry refuses, for instance 404, or 416 for a `start` past the
    /// end; the others when there is no answer or a bad one. The body can fail later.
    pub async fn blob(
        &self,
        repository: &RepositoryName,
        digest: Digest,
        start: u64,
        caller: &Caller,
    ) -> Result<BlobBody, OriginError> {
        let mut headers = own_headers();
        if start > 0 {
            headers.insert(header::RANGE, crate::headers::value(&format!("bytes={start}-")));
        }
        let path = format!("{repository}/blobs/{digest}");
        let question = Question {
            method: &Method::GET,
            path: &path,
            headers,
            repository: Some(repository),
            caller,
            blob: Some(digest),
        };
        let (answer, permit) = self.ask(&question).await?;
        match answer.response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => {
                let blob = BlobBody::from_response(answer.response, start, self.stall_timeout, self.name.as_str())?;
                Ok(BlobBody { body: self.limits.apply(blob.body, permit), ..blob })
            }
            _ => Err(self.refused(answer.response, answer.from_registry).await),
        }
    }

    /// The size of a blob, bytes, without its content.
    ///
    /// # Errors
    /// As [`Registry::blob`].
    pub async fn blob_head(
        &self,
        repository: &RepositoryName,
        digest: Digest,
        caller: &Caller,
    ) -> Result<u64, OriginError> {
        let path = format!("{repository}/blobs/{digest}");
        let question = Question {
            method: &Method::HEAD,
            path: &path,
            headers: own_headers(),
            repository: Some(repository),
            caller,
            blob: Some(digest),
        };
        let (answer, permit) = self.ask(&question).await?;
        drop(permit);
        match answer.response.status() {
            StatusCode::OK => {
                let size = number(answer.response.headers(), &header::CONTENT_LENGTH);
                let size = size.ok_or_else(|| self.protocol("the answer to HEAD has no Content-Length"))?;
                if size > MAX_BLOB_SIZE {
                    return Err(self.protocol(&format!("a blob of {size} bytes; Eagle moves up to {MAX_BLOB_SIZE}")));
                }
                Ok(size)
            }
            // URLs of object stores can be signed for GET alone.
            StatusCode::FORBIDDEN | StatusCode::METHOD_NOT_ALLOWED if !answer.from_registry => {
                self.blob(repository, digest, 0, caller).await.map(|blob| blob.size)
            }
            _ => Err(self.refused(answer.response, answer.from_registry).await),
        }
    }

    fn protocol(&self, problem: &str) -> OriginError {
        OriginError::protocol(self.name.as_str(), problem)
    }

    async fn refused(&self, response: Response<hyper::body::Incoming>, from_registry: bool) -> OriginError {
        let (mut parts, body) = response.into_parts();
        if !from_registry {
            parts.headers.remove(header::WWW_AUTHENTICATE);
        }
        let body = guard(body, None, self.stall_timeout, self.name.as_str());
        refusal(self.name.as_str(), parts.status, &parts.headers, body, self.transport.response_timeout()).await
    }
}

/// Headers of every request of Eagle itself.
fn own_headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers.insert(header::USER_AGENT, HeaderValue::from_static(concat!("eagle/", env!("CARGO_PKG_VERSION"))));
    headers
}

/// An answer that is a refusal, with the beginning of its body.
async fn refusal(
    registry: &str,
    status: StatusCode,
    headers: &HeaderMap,
    mut body: Body,
    deadline: Duration,
) -> OriginError {
    let mut start = BytesMut::new();
    // What has come by then is good enough, and so is nothing.
    let _ = tokio::time::timeout(deadline, async {
        while let Some(Ok(frame)) = body.frame().await {
            if let Some(data) = frame.data_ref() {
                start.extend_from_slice(&data[..data.len().min(MAX_ERROR_BODY - start.len())]);
            }
            if start.len() == MAX_ERROR_BODY {
                break;
            }
        }
    })
    .await;
    let mut kept = HeaderMap::new();
    for name in [header::WWW_AUTHENTICATE, header::RETRY_AFTER, header::CONTENT_TYPE] {
        for value in headers.get_all(&name) {
            kept.append(&name, value.clone());
        }
    }
    OriginError::Status { registry: registry.to_owned(), status, headers: Box::new(kept), body: Bytes::from(start) }
}

/// An error with its causes, which `hyper` leaves out of its own text.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
