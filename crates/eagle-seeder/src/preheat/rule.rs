//! Which pushed images are warmed.

use std::{fmt, str::FromStr};

use eagle_registry::{ImageReference, Reference, RegistryName, RepositoryName, Tag};
use globset::{GlobBuilder, GlobMatcher};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{node_target::NodeTarget, platform::Platforms};

/// Longest pattern, bytes: the longest name of an image with its tag.
const MAX_PATTERN: usize = 700;

/// A rule: images that are warmed when they are pushed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Which images.
    pub images: ImagePattern,
    /// For which platforms.
    #[serde(default)]
    pub platforms: Platforms,
    /// Which nodes are warmed too.
    #[serde(default)]
    pub nodes: NodeTarget,
}

/// A pattern of image names: `REGISTRY/REPOSITORY` or `REGISTRY/REPOSITORY:TAG`, in which `*` stands for any
/// characters but a slash, `**` for any components, `?` for one character and `{a,b}` for either.
#[derive(Debug, Clone)]
pub struct ImagePattern {
    text: String,
    name: GlobMatcher,
    /// Any tag when absent.
    tag: Option<GlobMatcher>,
}

/// A text that is no pattern of images.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParsePatternError {
    /// It names no registry.
    #[error(
        "{0:?} names no registry; write REGISTRY/REPOSITORY[:TAG], as in docker.io/library/* or registry.example/team/**"
    )]
    Registry(String),
    /// It is longer than any name.
    #[error("the pattern has more than {MAX_PATTERN} bytes")]
    TooLong,
    /// Its brackets or braces make no sense.
    #[error("{0}")]
    Glob(String),
}

impl ImagePattern {
    /// Whether an image of this tag is meant.
    pub fn matches(&self, registry: &RegistryName, repository: &RepositoryName, tag: &Tag) -> bool {
        self.name.is_match(format!("{registry}/{repository}"))
            && self.tag.as_ref().is_none_or(|pattern| pattern.is_match(tag.as_str()))
    }
}

impl FromStr for ImagePattern {
    type Err = ParsePatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_PATTERN {
            return Err(ParsePatternError::TooLong);
        }
        let last = text.rfind('/').filter(|&slash| slash > 0 && slash + 1 < text.len());
        let last = last.ok_or_else(|| ParsePatternError::Registry(text.chars().take(80).collect()))?;
        // A colon before the last slash belongs to a port.
        let (name, tag) = match text[last..].find(':') {
            Some(colon) => (&text[..last + colon], Some(&text[last + colon + 1..])),
            None => (text, None),
        };
        // No repository is directly below a docker.io that is not written out, as nothing else expands names here.
        let glob = |pattern: &str| {
            let built = GlobBuilder::new(pattern).literal_separator(true).build();
            built.map(|glob| glob.compile_matcher()).map_err(|error| ParsePatternError::Glob(error.to_string()))
        };
        Ok(Self { text: text.to_owned(), name: glob(name)?, tag: tag.map(glob).transpose()? })
    }
}

impl fmt::Display for ImagePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialEq for ImagePattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for ImagePattern {}

impl Serialize for ImagePattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for ImagePattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A push that a registry told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Push {
    pub(crate) registry: RegistryName,
    pub(crate) repository: RepositoryName,
    pub(crate) tag: Tag,
    /// What the tag stands for now.
    pub(crate) reference: Reference,
}

impl Push {
    /// The image to warm, and the name under which it was pushed.
    pub(crate) fn image(&self) -> (ImageReference, Option<String>) {
        let Self { registry, repository, tag, reference } = self.clone();
        let named = format!("{registry}/{repository}:{tag}");
        (ImageReference { registry, repository, reference }, Some(named))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_choose_by_registry_repository_and_tag() {
        let matches = |pattern: &str, image: &str| {
            let image: ImageReference = image.parse().unwrap();
            let Reference::Tag(tag) = &image.reference else { panic!("{image}") };
            pattern.parse::<ImagePattern>().unwrap().matches(&image.registry, &image.repository, tag)
        };
        for (pattern, image, expected) in [
            ("docker.io/library/debian", "debian:12", true),
            ("docker.io/library/debian:12", "debian:12", true),
            ("docker.io/library/debian:12", "debian:12.1", false),
            ("docker.io/library/debian:v*", "debian:v1.2", true),
            ("docker.io/library/*", "debian", true),
            ("docker.io/library/*", "org/debian", false),
            ("docker.io/*", "debian", false),
            ("docker.io/**", "debian", true),
            ("localhost:5000/**", "localhost:5000/a/b/c:1", true),
            ("localhost:5000/**", "localhost:5001/a/b/c:1", false),
            ("localhost:5000/a/*:{stable,v?}", "localhost:5000/a/b:v1", true),
            ("localhost:5000/a/*:{stable,v?}", "localhost:5000/a/b:v10", false),
            ("**/app", "a.example/team/app:1", true),
            ("a.example/app", "a.example/apple:1", false),
        ] {
            assert_eq!(matches(pattern, image), expected, "{pattern} {image}");
        }
        for bad in
            ["", "debian", "/debian", "docker.io/", "docker.io/[a", "a.b/{c", &format!("a.b/{}", "c".repeat(800))]
        {
            assert!(bad.parse::<ImagePattern>().is_err(), "{bad}");
        }
    }
}
