//! What a request to the HTTP API asks for. Everything in it comes from outside and is checked here.

use std::borrow::Cow;

use eagle_core::{Digest, digest::ParseDigestError};
use eagle_registry::{
    RegistryName, RepositoryName,
    errors::ErrorCode,
    path::{Endpoint, EndpointError, is_plain},
};
use http::{StatusCode, Uri};
use percent_encoding::percent_decode_str;

/// Longest path and query, bytes. A repository has at most 255, a digest 135; `tags/list` adds a tag.
const MAX_TARGET: usize = 4096;

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    /// `/v1/blobs`
    List,
    /// `/v1/blobs/{digest}/metainfo`
    Metainfo(BlobName),
    /// `/v1/blobs/{digest}`
    Content(BlobName),
    /// `/v1/registries/{registry}/v2/{rest}`; `target` is the rest with its query, as it was sent.
    Forward { registry: RegistryName, endpoint: Endpoint, target: String },
}

/// A blob and where it is said to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BlobName {
    pub(crate) digest: Digest,
    pub(crate) registry: RegistryName,
    pub(crate) repository: RepositoryName,
}

/// Why a request asks for nothing that there is.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("the path and query have more than {MAX_TARGET} bytes")]
    TooLong,
    #[error("there is no such path; this is the API of an Eagle seeder")]
    Unknown,
    #[error("the digest is not valid: {0}")]
    Digest(#[from] ParseDigestError),
    #[error("{key} is not valid: {problem}")]
    Name { key: &'static str, problem: String },
    #[error("the query must have {0} exactly once")]
    Missing(&'static str),
    #[error("{0}")]
    Endpoint(#[from] EndpointError),
    #[error("blobs are served at /v1/blobs/DIGEST?registry=REGISTRY&repository=REPOSITORY")]
    BlobForwarded,
}

impl RouteError {
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::TooLong => StatusCode::URI_TOO_LONG,
            Self::Unknown | Self::BlobForwarded | Self::Endpoint(EndpointError::Unknown) => StatusCode::NOT_FOUND,
            Self::Digest(_) | Self::Name { .. } | Self::Missing(_) | Self::Endpoint(_) => StatusCode::BAD_REQUEST,
        }
    }

    pub(crate) const fn code(&self) -> ErrorCode {
        match self {
            Self::Digest(_) => ErrorCode::DigestInvalid,
            Self::Name { .. } | Self::Missing(_) | Self::Endpoint(EndpointError::Name(_)) => ErrorCode::NameInvalid,
            Self::TooLong | Self::Unknown | Self::Endpoint(EndpointError::Unknown) | Self::BlobForwarded => {
                ErrorCode::Unsupported
            }
        }
    }
}

impl Route {
    pub(crate) fn parse(uri: &Uri) -> Result<Self, RouteError> {
        let target = uri.path_and_query().map_or("", |target| target.as_str());
        if target.len() > MAX_TARGET {
            return Err(RouteError::TooLong);
        }
        if let Some(rest) = target.strip_prefix("/v1/registries/") {
            return forward(rest);
        }
        let path = uri.path();
        if path == "/v1/blobs" {
            return Ok(Self::List);
        }
        let rest = path.strip_prefix("/v1/blobs/").ok_or(RouteError::Unknown)?;
        match rest.split_once('/') {
            None => Ok(Self::Content(blob(rest, uri.query())?)),
            Some((digest, "metainfo")) => Ok(Self::Metainfo(blob(digest, uri.query())?)),
            Some(_) => Err(RouteError::Unknown),
        }
    }
}

fn forward(rest: &str) -> Result<Route, RouteError> {
    let (registry, rest) = rest.split_once('/').ok_or(RouteError::Unknown)?;
    let target = rest.strip_prefix("v2/").ok_or(RouteError::Unknown)?;
    let registry = name("registry", registry)?;
    // Decoded names would have to be encoded again for the origin; none of them needs it.
    if !is_plain(target) {
        return Err(RouteError::Endpoint(EndpointError::Unknown));
    }
    let endpoint = Endpoint::parse(target.split('?').next().unwrap_or_default())?;
    if matches!(endpoint, Endpoint::Blob(..)) {
        return Err(RouteError::BlobForwarded);
    }
    Ok(Route::Forward { registry, endpoint, target: target.to_owned() })
}

fn blob(digest: &str, query: Option<&str>) -> Result<BlobName, RouteError> {
    let digest = decode("digest", digest)?.parse()?;
    let parameter = |key: &'static str| {
        let mut values = query.unwrap_or_default().split('&').filter_map(|pair| {
            let (found, value) = pair.split_once('=')?;
            (found == key).then_some(value)
        });
        match (values.next(), values.next()) {
            (Some(value), None) => Ok(value),
            // Two answers to "from where" must not be resolved by guessing.
            _ => Err(RouteError::Missing(key)),
        }
    };
    Ok(BlobName {
        digest,
        registry: name("registry", parameter("registry")?)?,
        repository: name("repository", parameter("repository")?)?,
    })
}

fn name<T: std::str::FromStr<Err: std::fmt::Display>>(key: &'static str, text: &str) -> Result<T, RouteError> {
    decode(key, text)?.parse().map_err(|error: T::Err| RouteError::Name { key, problem: error.to_string() })
}

fn decode<'a>(key: &'static str, text: &'a str) -> Result<Cow<'a, str>, RouteError> {
    let problem = |_| RouteError::Name { key, problem: "it is not UTF-8".to_owned() };
    percent_decode_str(text).decode_utf8().map_err(problem)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(target: &str) -> Result<Route, RouteError> {
        Route::parse(&target.parse().unwrap())
    }

    #[test]
    fn reads_the_api() {
        let digest = Digest::of(b"layer");
        let name = BlobName {
            digest,
            registry: "localhost:5000".parse().unwrap(),
            repository: "library/debian".parse().unwrap(),
        };
        let query = "registry=localhost%3A5000&repository=library%2Fdebian";
        assert_eq!(parse("/v1/blobs"), Ok(Route::List));
        assert_eq!(parse(&format!("/v1/blobs/{digest}/metainfo?{query}")), Ok(Route::Metainfo(name.clone())));
        assert_eq!(parse(&format!("/v1/blobs/{digest}?x=1&{query}")), Ok(Route::Content(name.clone())));
        let encoded = digest.to_string().replace(':', "%3A");
        assert_eq!(parse(&format!("/v1/blobs/{encoded}?{query}")), Ok(Route::Content(name)));
        let Ok(Route::Forward { registry, endpoint, target }) =
            parse("/v1/registries/localhost:5000/v2/library/debian/tags/list?n=5&last=a%2Fb")
        else {
            panic!()
        };
        assert_eq!(registry.as_str(), "localhost:5000");
        assert_eq!(endpoint, Endpoint::Tags("library/debian".parse().unwrap()));
        assert_eq!(target, "library/debian/tags/list?n=5&last=a%2Fb");
        assert!(matches!(parse("/v1/registries/docker.io/v2/"), Ok(Route::Forward { endpoint: Endpoint::Base, .. })));
    }

    #[test]
    fn refuses_the_rest_with_a_fitting_status() {
        let digest = Digest::of(b"layer");
        for (target, status) in [
            ("/".to_owned(), 404),
            ("/v1/blobs/".to_owned(), 400),
            ("/v1/blobs/sha256?registry=a.b&repository=c".to_owned(), 400),
            ("/v1/blobs/sha256:00?registry=a.b&repository=c".to_owned(), 400),
            (format!("/v1/blobs/{digest}"), 400),
            (format!("/v1/blobs/{digest}?registry=a.b"), 400),
            (format!("/v1/blobs/{digest}?registry=a.b&repository=..%2Fc"), 400),
            (format!("/v1/blobs/{digest}?registry=a%2Fb&repository=c"), 400),
            (format!("/v1/blobs/{digest}?registry=%ff&repository=c"), 400),
            (format!("/v1/blobs/{digest}?registry=a.b&registry=c.d&repository=c"), 400),
            (format!("/v1/blobs/{digest}/other?registry=a.b&repository=c"), 404),
            ("/v1/registries/a.b/v2".to_owned(), 404),
            ("/v1/registries/a.b/v1/x".to_owned(), 404),
            ("/v1/registries/..%2f/v2/x/manifests/1".to_owned(), 400),
            ("/v1/registries/a.b/v2/x/manifests/../../y".to_owned(), 404),
            ("/v1/registries/a.b/v2/X/manifests/1".to_owned(), 400),
            ("/v1/registries/a.b/v2/x/manifests/sha256:1".to_owned(), 400),
            (format!("/v1/registries/a.b/v2/x/blobs/{digest}"), 404),
            (format!("/v1/registries/a.b/v2/{}", "x".repeat(5000)), 414),
        ] {
            let error = parse(&target).unwrap_err();
            assert_eq!(error.status(), status, "{target}: {error}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(path in "[!-~]{0,120}") {
            if let Ok(uri) = format!("/v1/{path}").parse::<Uri>() {
                let _ = Route::parse(&uri);
            }
        }
    }
}
