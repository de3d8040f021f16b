//! Paths of the distribution API, below `/v2/`.

use eagle_core::Digest;

use crate::name::{ParseNameError, Reference, RepositoryName};

/// What a path below `/v2/` means (distribution-spec 1.1, "Endpoints", the reading ones).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v2/`: does the registry speak this API?
    Base,
    /// `NAME/manifests/REFERENCE`
    Manifest(RepositoryName, Reference),
    /// `NAME/blobs/DIGEST`
    Blob(RepositoryName, Digest),
    /// `NAME/tags/list`
    Tags(RepositoryName),
    /// `NAME/referrers/DIGEST`
    Referrers(RepositoryName, Digest),
}

/// Why a path is not an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// None of the API's forms.
    #[error("not an endpoint of the distribution API")]
    Unknown,
    /// One of the forms with a bad name in it.
    #[error(transparent)]
    Name(#[from] ParseNameError),
}

impl Endpoint {
    /// Reads a path below `/v2/`, without query.
    ///
    /// # Errors
    /// When it is not one of the forms above, or a name, tag or digest in it is not valid.
    pub fn parse(path: &str) -> Result<Self, EndpointError> {
        if path.is_empty() {
            return Ok(Self::Base);
        }
        // The name may hold slashes, what follows has exactly two components.
        let (rest, last) = path.rsplit_once('/').ok_or(EndpointError::Unknown)?;
        let (name, kind) = rest.rsplit_once('/').ok_or(EndpointError::Unknown)?;
        let digest = || last.parse::<Digest>().map_err(|e| ParseNameError::Digest(last.chars().take(80).collect(), e));
        match kind {
            "manifests" => Ok(Self::Manifest(name.parse()?, last.parse()?)),
            "blobs" => Ok(Self::Blob(name.parse()?, digest()?)),
            "referrers" => Ok(Self::Referrers(name.parse()?, digest()?)),
            "tags" if last == "list" => Ok(Self::Tags(name.parse()?)),
            _ => Err(EndpointError::Unknown),
        }
    }

    /// The repository, for all but the base.
    pub const fn repository(&self) -> Option<&RepositoryName> {
        match self {
            Self::Base => None,
            Self::Manifest(name, _) | Self::Blob(name, _) | Self::Tags(name) | Self::Referrers(name, _) => Some(name),
        }
    }
}

/// Whether a path with query may be put behind `/v2/` of an origin as it is: printable ASCII without a
/// fragment, and no segment that a server could read as "here" or "up", encoded or not.
pub fn is_plain(path_and_query: &str) -> bool {
    let path = path_and_query.split('?').next().unwrap_or_default();
    let printable =
        path_and_query.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'#' | b'\\' | b'"' | b'<' | b'>'));
    printable
        && !path.starts_with('/')
        && path.split('/').all(|segment| {
            let decoded = segment.to_ascii_lowercase().replace("%2e", ".").replace("%2f", "/").replace("%5c", "/");
            decoded.split('/').all(|part| part != "." && part != "..")
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_the_endpoints() {
        let digest = Digest::of(b"x");
        let name = |text: &str| text.parse::<RepositoryName>().unwrap();
        assert_eq!(Endpoint::parse(""), Ok(Endpoint::Base));
        assert_eq!(Endpoint::parse("a/b/tags/list"), Ok(Endpoint::Tags(name("a/b"))));
        assert_eq!(Endpoint::parse(&format!("blobs/blobs/{digest}")), Ok(Endpoint::Blob(name("blobs"), digest)));
        assert_eq!(Endpoint::parse(&format!("a/referrers/{digest}")), Ok(Endpoint::Referrers(name("a"), digest)));
        assert_eq!(
            Endpoint::parse("library/debian/manifests/12"),
            Ok(Endpoint::Manifest(name("library/debian"), "12".parse().unwrap()))
        );
        for bad in [
            "a",
            "a/b",
            "tags/list",
            "a/manifests/",
            "../manifests/x",
            "a/blobs/sha256:00",
            "a/tags/other",
            "A/manifests/x",
        ] {
            assert!(Endpoint::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn plain_paths() {
        for good in ["", "a/manifests/12", "a/tags/list?n=1&last=x..y", "_catalog"] {
            assert!(is_plain(good), "{good}");
        }
        for bad in ["/a", "a/../b", "a/./b", "..", "a/%2e%2E/b", "a%2f..%2fb", "a/.%2e", "a\\b", "a b", "a#b", "\u{e4}"]
        {
            assert!(!is_plain(bad), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn endpoints_are_plain(path in "[a-z0-9/.:_%-]{0,60}") {
            if Endpoint::parse(&path).is_ok() {
                prop_assert!(is_plain(&path));
            }
        }
    }
}
