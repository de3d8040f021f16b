//! Names of registries, repositories, tags and images, validated once.
//!
//! The grammar is that of the OCI distribution specification 1.1 ("Pulling manifests"); how a short
//! image name expands is that of docker (`debian` is `docker.io/library/debian:latest`). A value of
//! these types holds no character that means something in a path, a URL or a header.

use std::{borrow::Cow, fmt, str::FromStr};

use eagle_core::Digest;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use url::Url;

use crate::headers::digits;

/// Longest registry name, bytes: a DNS name (253) with a port.
const MAX_REGISTRY: usize = 260;
/// Longest repository name, bytes: many clients limit it to 255 (distribution-spec).
const MAX_REPOSITORY: usize = 255;
/// Longest tag, bytes (distribution-spec).
const MAX_TAG: usize = 128;
/// The name of Docker Hub, and the other names under which clients know it.
const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_ALIASES: [&str; 3] = ["index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"];

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseNameError {
    /// Not a registry name.
    #[error("{0:?} is not a registry; write HOST or HOST:PORT, for instance ghcr.io or localhost:5000")]
    Registry(String),
    /// Not a repository name.
    #[error("{0:?} is not a repository; write lower-case components separated by slashes, for instance library/debian")]
    Repository(String),
    /// Not a tag.
    #[error("{0:?} is not a tag; a tag is up to 128 letters, digits, dots, dashes and underscores")]
    Tag(String),
    /// Not a digest.
    #[error("{0:?} is not a digest: {1}")]
    Digest(String, eagle_core::digest::ParseDigestError),
}

/// Texts from outside are cut before they are quoted in an error.
fn quote(text: &str) -> String {
    text.chars().take(80).collect()
}

/// A registry: `host` or `host:port`, in lower case. All names of Docker Hub become `docker.io`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegistryName(String);

impl RegistryName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is Docker Hub.
    pub fn is_docker_hub(&self) -> bool {
        self.0 == DOCKER_HUB
    }
}

impl FromStr for RegistryName {
    type Err = ParseNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let name = text.to_ascii_lowercase();
        if !is_authority(&name) {
            return Err(ParseNameError::Registry(quote(text)));
        }
        if DOCKER_HUB_ALIASES.contains(&name.as_str()) {
            return Ok(Self(DOCKER_HUB.to_owned()));
        }
        Ok(Self(name))
    }
}

/// `host` or `host:port`, the host written as the URL standard would, so that what is checked is what
/// is connected to (`0x7f.1` is not: it means 127.0.0.1).
fn is_authority(name: &str) -> bool {
    if name.len() > MAX_REGISTRY || name.contains(['/', '\\', '?', '#', '@']) {
        return false;
    }
    let port_start = name.rfind(':').filter(|&colon| !name[colon..].contains(']'));
    let (host, port) = name.split_at(port_start.unwrap_or(name.len()));
    let port_fits = match port.strip_prefix(':') {
        None => true,
        Some(port) => digits(port).is_some_and(|port| (1..=65_535).contains(&port)),
    };
    port_fits
        && Url::parse(&format!("https://{host}/")).is_ok_and(|url| url.host_str() == Some(host))
        && (host.starts_with('[') || host.split('.').all(is_label))
}

fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
}

/// A repository within a registry, for instance `library/debian`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepositoryName(String);

impl RepositoryName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RepositoryName {
    type Err = ParseNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() <= MAX_REPOSITORY && text.split('/').all(is_component) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseNameError::Repository(quote(text)))
        }
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(component: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else { return false };
    alphanumeric(first)
        && alphanumeric(last)
        && bytes
            .split(|&b| alphanumeric(b))
            .all(|separator| matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|&b| b == b'-'))
}

/// A tag of a manifest, for instance `12-slim`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(String);

impl Tag {
    /// The tag as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The tag that docker takes when none is given.
    pub fn latest() -> Self {
        Self("latest".to_owned())
    }
}

impl FromStr for Tag {
    type Err = ParseNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let fits = text.len() <= MAX_TAG
            && text.bytes().next().is_some_and(word)
            && text.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'));
        if fits { Ok(Self(text.to_owned())) } else { Err(ParseNameError::Tag(quote(text))) }
    }
}

/// How a manifest is named within its repository.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reference {
    /// By a tag, which may move.
    Tag(Tag),
    /// By the digest of its content, for ever.
    Digest(Digest),
}

impl Reference {
    /// The digest, when the reference is one.
    pub const fn digest(&self) -> Option<Digest> {
        match self {
            Self::Tag(_) => None,
            Self::Digest(digest) => Some(*digest),
        }
    }
}

impl FromStr for Reference {
    type Err = ParseNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // A tag has no colon, a digest always has one.
        if text.contains(':') {
            text.parse().map(Self::Digest).map_err(|error| ParseNameError::Digest(quote(text), error))
        } else {
            text.parse().map(Self::Tag)
        }
    }
}

/// An image: registry, repository and reference, as people write it for `docker pull`.
///
/// `debian:12` is `docker.io/library/debian:12`. Of `name:tag@digest` the digest counts and the tag
/// is dropped.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageReference {
    /// Where the repository is.
    pub registry: RegistryName,
    /// Which repository.
    pub repository: RepositoryName,
    /// Which manifest.
    pub reference: Reference,
}

impl FromStr for ImageReference {
    type Err = ParseNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (text, None),
        };
        // The first component is a registry when it could not be one of a repository.
        let (registry, rest) = match name.split_once('/') {
            Some((first, rest)) if first == "localhost" || first.contains(['.', ':']) => (first.parse()?, rest),
            _ => (RegistryName(DOCKER_HUB.to_owned()), name),
        };
        let (repository, tag) = match rest.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag.parse::<Tag>()?)),
            None => (rest, None),
        };
        let repository = if registry.is_docker_hub() && !repository.contains('/') {
            format!("library/{repository}").parse().map_err(|_| ParseNameError::Repository(quote(repository)))?
        } else {
            repository.parse()?
        };
        let reference = match digest {
            Some(digest) => {
                Reference::Digest(digest.parse().map_err(|error| ParseNameError::Digest(quote(digest), error))?)
            }
            None => Reference::Tag(tag.unwrap_or_else(Tag::latest)),
        };
        Ok(Self { registry, repository, reference })
    }
}

impl fmt::Display for RegistryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => fmt::Display::fmt(digest, f),
        }
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if matches!(self.reference, Reference::Tag(_)) { ':' } else { '@' };
        write!(f, "{}/{}{separator}{}", self.registry, self.repository, self.reference)
    }
}

macro_rules! as_text {
    ($($type:ty),*) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    )*};
}

as_text!(RegistryName, RepositoryName, Tag, Reference, ImageReference);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn registries() {
        for good in ["ghcr.io", "localhost", "localhost:5000", "127.0.0.1:43002", "[::1]:5000", "[fd00::1]", "my_host"]
        {
            assert_eq!(good.parse::<RegistryName>().map(|name| name.to_string()), Ok(good.to_owned()));
        }
        for hub in ["docker.io", "index.docker.io", "Registry-1.docker.io"] {
            assert!(hub.parse::<RegistryName>().unwrap().is_docker_hub(), "{hub}");
        }
        for bad in [
            "",
            ":",
            "a:",
            "a:0",
            "a:65536",
            "a:+1",
            "a/b",
            "a..b",
            "-a",
            "a@b",
            "a b",
            "[::1",
            "[x]:1",
            "[::1]x",
            "[::1]:",
            "a:1:2",
            "0x7f.1",
            "256.1.1.1",
            "a?b",
            "a#b",
            "a\\b",
            "[::1",
            "::1",
        ] {
            assert!(bad.parse::<RegistryName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn repositories() {
        for good in ["debian", "library/debian", "a/b/c", "a--b", "a__b", "a.b_c-d", "0/1"] {
            assert!(good.parse::<RepositoryName>().is_ok(), "{good}");
        }
        for bad in
            ["", "/", "a/", "/a", "a//b", "A", "a..b", "a___b", "a._b", "-a", "a-", "..", "../a", "a/../b", "a%2fb"]
        {
            assert!(bad.parse::<RepositoryName>().is_err(), "{bad}");
        }
        assert!("a".repeat(255).parse::<RepositoryName>().is_ok());
        assert!("a".repeat(256).parse::<RepositoryName>().is_err());
    }

    #[test]
    fn tags() {
        assert!("12-slim".parse::<Tag>().is_ok());
        assert!("_a.B".parse::<Tag>().is_ok());
        for bad in ["", ".", "..", "-a", "a/b", "../../etc", "a:b", "a b"] {
            assert!(bad.parse::<Tag>().is_err(), "{bad}");
        }
        assert!("a".repeat(129).parse::<Tag>().is_err());
    }

    #[test]
    fn images_expand_as_docker_does() {
        let digest = Digest::of(b"x");
        for (short, long) in [
            ("debian", "docker.io/library/debian:latest".to_owned()),
            ("debian:12", "docker.io/library/debian:12".to_owned()),
            ("a/b:1", "docker.io/a/b:1".to_owned()),
            ("docker.io/debian", "docker.io/library/debian:latest".to_owned()),
            ("localhost/a:1", "localhost/a:1".to_owned()),
            ("host:5000/a/b", "host:5000/a/b:latest".to_owned()),
            (&format!("ghcr.io/a/b:1@{digest}"), format!("ghcr.io/a/b@{digest}")),
            (&format!("debian@{digest}"), format!("docker.io/library/debian@{digest}")),
        ] {
            let image = short.parse::<ImageReference>().unwrap();
            assert_eq!(image.to_string(), long, "{short}");
            assert_eq!(long.parse(), Ok(image));
        }
        for bad in ["", ":1", "a:", "a@", "a@sha256:00", "a/b:c/d", "host:5000/", "https://a/b", "A/a"] {
            assert!(bad.parse::<ImageReference>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_parses_prints_the_same(text in "[a-zA-Z0-9:/@._\\[\\]-]{0,60}") {
            if let Ok(image) = text.parse::<ImageReference>() {
                prop_assert_eq!(image.to_string().parse(), Ok(image));
            }
            if let Ok(name) = text.parse::<RegistryName>() {
                prop_assert_eq!(name.to_string().parse(), Ok(name.clone()));
                let url = Url::parse(&format!("https://{name}/")).unwrap();
                prop_assert_eq!(url.path(), "/");
            }
        }

        #[test]
        fn never_panics(text in ".{0,300}") {
            let _ = (text.parse::<ImageReference>(), text.parse::<Reference>());
        }
    }
}
