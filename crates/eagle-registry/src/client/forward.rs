//! Requests that are passed on.

use http::{HeaderMap, Method, header};

use crate::{
    headers::remove_hop_by_hop,
    path::{Endpoint, is_plain},
};

/// Longest path of a request, bytes: a name of 255, a reference of 135, and a query.
const MAX_PATH: usize = 4096;

/// A request that is passed on to the origin: any reading endpoint of the API.
#[derive(Debug, Clone)]
pub struct ForwardRequest {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) headers: HeaderMap,
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
    /// `Host`, `Content-Length`, `Authorization` (the `Caller` has it), cookies, and `Accept-Encoding`:
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

    /// The same question without the content.
    #[must_use]
    pub fn as_head(self) -> Self {
        Self { method: Method::HEAD, ..self }
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
