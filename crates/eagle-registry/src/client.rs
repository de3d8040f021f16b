//! The client of the origin registries.

mod auth;
mod challenge;
mod transport;

use std::{
    collections::BTreeMap,
    error::Error,
    fmt,
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use eagle_core::{Digest, geometry::MAX_BLOB_SIZE};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::BodyExt;
use lru::LruCache;
use rustls::RootCertStore;
use url::Url;

use self::{
    auth::Authenticator,
    transport::{Answer, Transport},
};
use crate::{
    body::{BlobBody, Body, guard},
    caller::Caller,
    config::{CONNECT_TIMEOUT, ConfigError, RESPONSE_TIMEOUT, RegistryConfig},
    headers::{number, remove_hop_by_hop},
    name::{RegistryName, RepositoryName},
    origin::OriginError,
    path::{Endpoint, is_plain},
};

/// Registries kept that are not configured. Runtimes name them, so their number must have a bound.
const MAX_UNCONFIGURED: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");
/// Most of an error body that is read, bytes: enough for any list of OCI errors.
const MAX_ERROR_BODY: usize = 64 << 10;
/// Longest path of a request, bytes: a name of 255, a reference of 135, and a query.
const MAX_PATH: usize = 4096;

/// All registries: those of the configuration, and any other with the defaults.
pub struct Registries {
    configured: BTreeMap<RegistryName, Arc<Registry>>,
    others: Mutex<LruCache<RegistryName, Arc<Registry>>>,
    transport: Transport,
}

impl Registries {
    /// Sets up the client. Reads the certificate authorities of the system and of the `ca_file`s, so it
    /// belongs to the start of a process.
    ///
    /// # Errors
    /// When an entry is not valid, or its `ca_file` cannot be read.
    pub fn new(configs: Vec<RegistryConfig>) -> Result<Self, ConfigError> {
        let roots = transport::system_roots();
        let build = |roots: RootCertStore, connect: Duration, response: Duration| {
            Transport::new(roots, connect, response).map_err(|error| ConfigError::Tls(error.to_string()))
        };
        let default = build(roots.clone(), CONNECT_TIMEOUT, RESPONSE_TIMEOUT)?;
        let mut configured = BTreeMap::new();
        for config in configs {
            config.check()?;
            let mut roots = roots.clone();
            if let Some(file) = &config.ca_file {
                transport::add_authorities(&mut roots, file).map_err(|reason| ConfigError::CaFile {
                    name: config.name.clone(),
                    file: file.clone(),
                    reason,
                })?;
            }
            let transport = build(roots, config.connect_timeout, config.response_timeout)?;
            let registry = Registry::new(&config, transport);
            if configured.insert(config.name.clone(), Arc::new(registry)).is_some() {
                return Err(ConfigError::Duplicate(config.name));
            }
        }
        Ok(Self { configured, others: Mutex::new(LruCache::new(MAX_UNCONFIGURED)), transport: default })
    }

    /// The registry of this name, with the defaults when it is not configured.
    pub fn get(&self, name: &RegistryName) -> Arc<Registry> {
        if let Some(registry) = self.configured.get(name) {
            return Arc::clone(registry);
        }
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        let registry = others.get_or_insert(name.clone(), || {
            Arc::new(Registry::new(&RegistryConfig::new(name.clone()), self.transport.clone()))
        });
        Arc::clone(registry)
    }

    /// The registry of this name, when it is configured.
    pub fn get_configured(&self, name: &RegistryName) -> Option<Arc<Registry>> {
        self.configured.get(name).cloned()
    }

    /// Names of the configured registries.
    pub fn configured(&self) -> Vec<RegistryName> {
        self.configured.keys().cloned().collect()
    }
}

impl fmt::Debug for Registries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Registries").field(&self.configured.keys()).finish()
    }
}

/// A request that is passed on to the origin: any reading endpoint of the API.
#[derive(Debug, Clone)]
pub struct ForwardRequest {
    method: Method,
    path: String,
    headers: HeaderMap,
}

/// Why a request is not passed on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ForwardRequestError {
    /// Only reading is passed on.
    #[error("Eagle passes on GET and HEAD only, not {0}")]
    Method(Method),
    /// The path could lead out of the API.
    #[error("the path is not a plain path below /v2/ of at most {MAX_PATH} bytes")]
    Path,
}

impl ForwardRequest {
    /// A request for `path`, which is below `/v2/` and may have a query: `library/debian/manifests/12`.
    ///
    /// Of `headers` every value is kept (docker sends six `Accept` headers) but those of the connection,
    /// `Host`, `Content-Length`, `Authorization` (the [`Caller`] has it), cookies, and `Accept-Encoding`:
    /// content is always asked for as it is stored, for its digest to be checked.
    ///
    /// # Errors
    /// When the method is not GET or HEAD, or the path is not plain ([`is_plain`]).
    pub fn new(method: Method, path: impl Into<String>, mut headers: HeaderMap) -> Result<Self, ForwardRequestError> {
        let path = path.into();
        if method != Method::GET && method != Method::HEAD {
            return Err(ForwardRequestError::Method(method));
        }
        if path.len() > MAX_PATH || !is_plain(&path) {
            return Err(ForwardRequestError::Path);
        }
        remove_hop_by_hop(&mut headers);
        for name in [
            header::HOST,
            header::AUTHORIZATION,
            header::CONTENT_LENGTH,
            header::COOKIE,
            header::EXPECT,
            header::ACCEPT_ENCODING,
        ] {
            headers.remove(name);
        }
        Ok(Self { method, path, headers })
    }

    /// GET or HEAD.
    pub const fn method(&self) -> &Method {
        &self.method
    }

    /// Below `/v2/`, with the query.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The headers that are passed on.
    pub const fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// What the path means, when it is one of the specification's.
    pub fn endpoint(&self) -> Option<Endpoint> {
        Endpoint::parse(self.path.split('?').next().unwrap_or_default()).ok()
    }
}

/// One origin registry. All clones of its `Arc` share connections and tokens.
pub struct Registry {
    name: RegistryName,
    base: String,
    stall_timeout: Duration,
    transport: Transport,
    auth: Authenticator,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("name", &self.name).field("base", &self.base).finish_non_exhaustive()
    }
}

impl Registry {
    fn new(config: &RegistryConfig, transport: Transport) -> Self {
        let base = config.base();
        let credentials = config.username.as_deref().zip(config.password.as_ref());
        let auth = Authenticator::new(config.name.to_string(), base.starts_with("http://"), credentials);
        Self { name: config.name.clone(), base, stall_timeout: config.stall_timeout, transport, auth }
    }

    /// Its name.
    pub const fn name(&self) -> &RegistryName {
        &self.name
    }

    /// Passes a request on. Any status is an answer; headers of the connection are removed, all others
    /// are the registry's. A caller without credentials gets those of the configuration, or an
    /// anonymous token; a caller with credentials speaks for itself, and a 401 is its own to answer.
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
        let answer = self.send(&method, &path, headers, repository, caller).await?;
        let (mut parts, body) = answer.response.into_parts();
        remove_hop_by_hop(&mut parts.headers);
        if !answer.from_registry {
            // Credentials for this registry must not be offered to the challenge of another host.
            parts.headers.remove(header::WWW_AUTHENTICATE);
        }
        Ok(Response::from_parts(parts, guard(body, None, self.stall_timeout, self.name.as_str())))
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
        let Answer { response, from_registry } =
            self.send(&Method::GET, &path, headers, Some(repository), caller).await?;
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => {
                BlobBody::from_response(response, start, self.stall_timeout, self.name.as_str())
            }
            _ => Err(self.refused(response, from_registry).await),
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
        let answer = self.send(&Method::HEAD, &path, own_headers(), Some(repository), caller).await?;
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

    /// Sends a request, with one more try after a 401 whose challenge can be answered.
    async fn send(
        &self,
        method: &Method,
        path: &str,
        headers: HeaderMap,
        repository: Option<&RepositoryName>,
        caller: &Caller,
    ) -> Result<Answer, OriginError> {
        let url = format!("{}/v2/{path}", self.base);
        let url: Url = url.parse().map_err(|error| self.protocol(&format!("{url}: {error}")))?;
        let send = |authorization: Option<&HeaderValue>| {
            let mut headers = headers.clone();
            if let Some(value) = authorization {
                headers.insert(header::AUTHORIZATION, value.clone());
            }
            self.transport.send(self.name.as_str(), method, url.clone(), headers)
        };
        if caller.authorization.is_some() {
            return send(caller.authorization.as_ref()).await;
        }
        let used = self.auth.remembered(repository);
        let answer = send(used.as_ref()).await?;
        if answer.response.status() != StatusCode::UNAUTHORIZED || !answer.from_registry {
            return Ok(answer);
        }
        let challenges = answer.response.headers();
        match self.auth.answer(&self.transport, challenges, repository, used.as_ref()).await? {
            Some(authorization) => send(Some(&authorization)).await,
            None => Ok(answer),
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
