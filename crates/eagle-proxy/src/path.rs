//! Paths of the registry API that a pull uses (OCI distribution-spec 1.1, "Endpoints").
//!
//! The path is decoded once and cut from its end, since a repository name may itself contain words
//! such as `blobs`. The name is not judged here: it may still carry the registry's host in front,
//! which only [`crate::upstream`] takes off.

use eagle_core::{Digest, digest::ParseDigestError};
use eagle_registry::{Reference, name::ParseNameError};
use percent_encoding::percent_decode_str;

/// Longest path that is looked at, bytes: a name of 255, a host of 255 and a reference of 135, with
/// room for percent-encoding.
const MAX_PATH: usize = 4096;

/// What a path asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiPath {
    /// `/v2/`: whether this is a registry.
    Base,
    /// Something of one repository.
    Repository {
        /// The name as written, decoded: maybe with a registry in front, not validated yet.
        name: String,
        /// What of it.
        resource: Resource,
    },
}

/// What of a repository is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resource {
    /// `manifests/<tag or digest>`.
    Manifest(Reference),
    /// `blobs/<digest>`.
    Blob(Digest),
    /// `tags/list`.
    Tags,
    /// `referrers/<digest>`.
    Referrers(Digest),
}

impl Resource {
    /// The resource as it stands in a path, after the repository's name.
    pub fn suffix(&self) -> String {
        match self {
            Self::Manifest(reference) => format!("manifests/{reference}"),
            Self::Blob(digest) => format!("blobs/{digest}"),
            Self::Tags => "tags/list".to_owned(),
            Self::Referrers(digest) => format!("referrers/{digest}"),
        }
    }
}

/// What a push asks for (distribution-spec 1.1, "Push" and "Content Management").
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PushPath {
    /// `blobs/uploads/`, or `blobs/uploads/<session>`.
    Upload(Option<String>),
    /// `manifests/<tag or digest>`.
    Manifest(Reference),
    /// `blobs/<digest>`.
    Blob(Digest),
}

impl PushPath {
    /// The resource as it stands in a path, after the repository's name.
    pub fn suffix(&self) -> String {
        match self {
            Self::Upload(session) => format!("blobs/uploads/{}", session.as_deref().unwrap_or_default()),
            Self::Manifest(reference) => format!("manifests/{reference}"),
            Self::Blob(digest) => format!("blobs/{digest}"),
        }
    }
}

/// Reads the path of a push, still percent-encoded: the repository's name as written, decoded and not
/// validated, and what of it.
///
/// # Errors
/// When it is not one of the paths of [`PushPath`].
pub fn parse_push(path: &str) -> Result<(String, PushPath), PathError> {
    if path.len() > MAX_PATH {
        return Err(PathError::TooLong);
    }
    let decoded = percent_decode_str(path).decode_utf8().map_err(|_| PathError::Encoding)?;
    let rest = decoded.strip_prefix("/v2/").ok_or(PathError::Unknown)?;
    if let Some((name, session)) = rest.rsplit_once("/blobs/uploads/") {
        let is_session = session.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if !is_session || session.bytes().all(|byte| byte == b'.') && !session.is_empty() {
            return Err(PathError::Unknown);
        }
        return Ok((name.to_owned(), PushPath::Upload(Some(session.to_owned()).filter(|session| !session.is_empty()))));
    }
    match parse(path)? {
        ApiPath::Repository { name, resource: Resource::Manifest(reference) } => {
            Ok((name, PushPath::Manifest(reference)))
        }
        ApiPath::Repository { name, resource: Resource::Blob(digest) } => Ok((name, PushPath::Blob(digest))),
        _ => Err(PathError::Unknown),
    }
}

/// Why a path is not one that a pull uses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Not a path of the API, or of a part of it that Eagle does not have.
    #[error("this is not a path of the registry API that a pull uses")]
    Unknown,
    /// The escapes do not decode to text.
    #[error("the path is not valid percent-encoded UTF-8")]
    Encoding,
    /// The path is longer than any valid one.
    #[error("the path is longer than {MAX_PATH} bytes")]
    TooLong,
    /// The digest is malformed.
    #[error("{0}")]
    Digest(#[from] ParseDigestError),
    /// The tag or digest of a manifest is malformed.
    #[error("{0}")]
    Reference(#[from] ParseNameError),
}

/// Reads the path of a request, still percent-encoded.
///
/// # Errors
/// When it is not one of the paths of [`ApiPath`].
pub fn parse(path: &str) -> Result<ApiPath, PathError> {
    if path.len() > MAX_PATH {
        return Err(PathError::TooLong);
    }
    let decoded = percent_decode_str(path).decode_utf8().map_err(|_| PathError::Encoding)?;
    let rest = match decoded.strip_prefix("/v2") {
        Some("" | "/") => return Ok(ApiPath::Base),
        Some(rest) => rest.strip_prefix('/').ok_or(PathError::Unknown)?,
        None => return Err(PathError::Unknown),
    };
    let (head, last) = rest.rsplit_once('/').ok_or(PathError::Unknown)?;
    let (name, kind) = head.rsplit_once('/').ok_or(PathError::Unknown)?;
    let resource = match (kind, last) {
        ("manifests", reference) if reference.contains(':') => {
            Resource::Manifest(Reference::Digest(reference.parse()?))
        }
        ("manifests", tag) => Resource::Manifest(tag.parse()?),
        ("blobs", digest) => Resource::Blob(digest.parse()?),
        ("tags", "list") => Resource::Tags,
        ("referrers", digest) => Resource::Referrers(digest.parse()?),
        _ => return Err(PathError::Unknown),
    };
    Ok(ApiPath::Repository { name: name.to_owned(), resource })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn repository(path: &str) -> (String, Resource) {
        match parse(path) {
            Ok(ApiPath::Repository { name, resource }) => (name, resource),
            other => panic!("{path}: {other:?}"),
        }
    }

    #[test]
    fn reads_every_endpoint() {
        let digest = Digest::of(b"x");
        assert_eq!(parse("/v2"), Ok(ApiPath::Base));
        assert_eq!(parse("/v2/"), Ok(ApiPath::Base));
        let (name, resource) = repository("/v2/library/debian/manifests/12");
        assert_eq!((name.as_str(), resource.suffix().as_str()), ("library/debian", "manifests/12"));
        assert_eq!(repository(&format!("/v2/a/blobs/{digest}")), ("a".into(), Resource::Blob(digest)));
        assert_eq!(repository("/v2/a/b/tags/list"), ("a/b".into(), Resource::Tags));
        assert_eq!(repository(&format!("/v2/a/referrers/{digest}")), ("a".into(), Resource::Referrers(digest)));
        let (_, resource) = repository(&format!("/v2/a/manifests/{digest}"));
        assert_eq!(resource, Resource::Manifest(Reference::Digest(digest)));
    }

    #[test]
    fn names_may_contain_the_words_of_the_api() {
        assert_eq!(repository("/v2/a/manifests/b/tags/list").0, "a/manifests/b");
        assert_eq!(repository("/v2/blobs/tags/list").0, "blobs");
    }

    #[test]
    fn escapes_are_undone_once() {
        let digest = Digest::of(b"x");
        let escaped = digest.to_string().replace(':', "%3A");
        assert_eq!(repository(&format!("/v2/a/blobs/{escaped}")).1, Resource::Blob(digest));
        assert!(parse("/v2/a/manifests/%252e%252e").is_err());
        assert!(parse("/v2/a/manifests/%2e%2e").is_err());
        assert_eq!(parse("/v2/a/manifests/%ff"), Err(PathError::Encoding));
    }

    #[test]
    fn refuses_the_rest() {
        for path in [
            "",
            "/",
            "/v1/",
            "/v2x",
            "/v2/a",
            "/v2/manifests/latest",
            "/v2/_catalog",
            "/v2/a/blobs/",
            "/v2/a/manifests/",
            "/v2/a/blobs/sha256:00",
            "/v2/a/blobs/uploads/",
            "/v2/a/manifests/..",
            "/v2/a/manifests/a b",
            "/v2/a/referrers/latest",
            "/v2/a/manifests/sha256:../../x",
            "/v2/a/tags/other",
        ] {
            assert!(parse(path).is_err(), "{path}");
        }
        assert_eq!(parse(&format!("/v2/{}/tags/list", "a".repeat(MAX_PATH))), Err(PathError::TooLong));
    }

    #[test]
    fn pushes_have_paths_of_their_own() {
        let digest = Digest::of(b"x");
        let push = |path: &str| parse_push(path).map(|(name, path)| (name, path.suffix()));
        for (path, name, suffix) in [
            ("/v2/a/b/blobs/uploads/", "a/b", "blobs/uploads/".to_owned()),
            ("/v2/ghcr.io/a/blobs/uploads/1f-2_3.x", "ghcr.io/a", "blobs/uploads/1f-2_3.x".to_owned()),
            ("/v2/a/manifests/1", "a", "manifests/1".to_owned()),
            (&format!("/v2/a/blobs/{digest}"), "a", format!("blobs/{digest}")),
        ] {
            assert_eq!(push(path), Ok((name.to_owned(), suffix)), "{path}");
        }
        for bad in [
            "/v2/",
            "/v2/a/blobs/uploads",
            "/v2/a/blobs/uploads/..",
            "/v2/a/blobs/uploads/%2e%2e%2fx",
            "/v2/a/blobs/uploads/a/b",
            "/v2/a/blobs/uploads/a?b%3Fc",
            "/v2/a/tags/list",
            "/v2/a/manifests/..",
        ] {
            assert!(parse_push(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(path in ".{0,300}") {
            let _ = parse(&path);
        }

        #[test]
        fn what_is_accepted_holds_no_traversal(path in "/v2/[a-z./%0-9-]{0,40}/(manifests|blobs)/[a-z.%/:A-Z0-9]{1,80}") {
            if let Ok(ApiPath::Repository { resource, .. }) = parse(&path) {
                let suffix = resource.suffix();
                prop_assert!(!suffix.contains("..") || suffix.matches('/').count() == 1);
                prop_assert!(!suffix.contains('%'));
            }
        }
    }
}
