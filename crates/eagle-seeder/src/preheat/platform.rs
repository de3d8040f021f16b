//! For which platforms an image is warmed.

use std::{fmt, str::FromStr};

use eagle_registry::{Descriptor, manifest::Platform};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Most platforms that can be named at a time; the official images of Docker Hub have about ten.
const MAX_PLATFORMS: usize = 32;
/// Longest part of a platform, bytes: longer than any name of an architecture.
const MAX_PART: usize = 32;

/// A platform as people write it: `linux/amd64`, `linux/arm/v7`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlatformName {
    os: String,
    architecture: String,
    /// Any when absent.
    variant: Option<String>,
}

/// A text that names no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParsePlatformsError {
    /// Not `os/architecture` or `os/architecture/variant`.
    #[error("{0:?} is not a platform; write for instance linux/amd64, linux/arm/v7, or all")]
    Platform(String),
    /// None, or far too many.
    #[error("give from one to {MAX_PLATFORMS} platforms, or all")]
    Count,
}

impl FromStr for PlatformName {
    type Err = ParsePlatformsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParsePlatformsError::Platform(text.chars().take(80).collect());
        let fits = |part: &str| {
            (1..=MAX_PART).contains(&part.len())
                && part.starts_with(|c: char| c.is_ascii_alphanumeric())
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        };
        let parts: Vec<&str> = text.split('/').collect();
        if !parts.iter().all(|part| fits(part)) {
            return Err(error());
        }
        let (os, architecture, variant) = match parts[..] {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant.to_owned())),
            _ => return Err(error()),
        };
        Ok(Self { os: os.to_owned(), architecture: architecture.to_owned(), variant })
    }
}

impl fmt::Display for PlatformName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl PlatformName {
    fn matches(&self, platform: &Platform) -> bool {
        self.os == platform.os
            && self.architecture == platform.architecture
            && (self.variant.is_none() || self.variant == platform.variant)
    }
}

/// Which manifests of an index are wanted; an image without an index is always wanted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Platforms {
    /// All of them, also those that are for no platform, such as attestations.
    #[default]
    All,
    /// Those for one of these platforms.
    Only(Vec<PlatformName>),
}

impl Platforms {
    /// Those of these names; `all`, alone, is all.
    ///
    /// # Errors
    /// When a name is not a platform, or there are none or too many.
    pub fn of(names: &[impl AsRef<str>]) -> Result<Self, ParsePlatformsError> {
        if let [name] = names
            && name.as_ref() == "all"
        {
            return Ok(Self::All);
        }
        if !(1..=MAX_PLATFORMS).contains(&names.len()) {
            return Err(ParsePlatformsError::Count);
        }
        Ok(Self::Only(names.iter().map(|name| name.as_ref().parse()).collect::<Result<_, _>>()?))
    }

    /// Whether a manifest of an index is wanted.
    pub(super) fn wants(&self, descriptor: &Descriptor) -> bool {
        match self {
            Self::All => true,
            Self::Only(names) => {
                descriptor.platform.as_ref().is_some_and(|platform| names.iter().any(|name| name.matches(platform)))
            }
        }
    }
}

impl FromStr for Platforms {
    type Err = ParsePlatformsError;

    /// `all`, or platforms separated by commas.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::of(&text.split(',').map(str::trim).collect::<Vec<_>>())
    }
}

impl fmt::Display for Platforms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Only(names) => {
                for (index, name) in names.iter().enumerate() {
                    write!(f, "{}{name}", if index > 0 { "," } else { "" })?;
                }
                Ok(())
            }
        }
    }
}

impl Serialize for Platforms {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::All => serializer.serialize_str("all"),
            Self::Only(names) => serializer.collect_seq(names.iter().map(ToString::to_string)),
        }
    }
}

impl<'de> Deserialize<'de> for Platforms {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// A text or a list of texts.
        struct Written;

        impl<'de> de::Visitor<'de> for Written {
            type Value = Platforms;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("all, or platforms such as linux/amd64")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Platforms, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Platforms, A::Error> {
                let mut names: Vec<String> = Vec::new();
                while let Some(name) = list.next_element()? {
                    if names.len() >= MAX_PLATFORMS {
                        return Err(de::Error::custom(ParsePlatformsError::Count));
                    }
                    names.push(name);
                }
                Platforms::of(&names).map_err(de::Error::custom)
            }
        }

        deserializer.deserialize_any(Written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(platform: &str) -> Descriptor {
        let digest = eagle_core::Digest::of(b"m");
        serde_json::from_str(&format!(r#"{{"digest":"{digest}","size":1{platform}}}"#)).unwrap()
    }

    #[test]
    fn choose_by_os_architecture_and_variant() {
        let arm = descriptor(r#","platform":{"os":"linux","architecture":"arm","variant":"v7"}"#);
        let amd = descriptor(r#","platform":{"os":"linux","architecture":"amd64"}"#);
        let none = descriptor("");
        let wanted = |text: &str| {
            let platforms: Platforms = text.parse().unwrap();
            [&arm, &amd, &none].map(|descriptor| platforms.wants(descriptor))
        };
        assert_eq!(wanted("all"), [true, true, true]);
        assert_eq!(wanted("linux/amd64"), [false, true, false]);
        assert_eq!(wanted("linux/arm, linux/amd64"), [true, true, false]);
        assert_eq!(wanted("linux/arm/v6"), [false, false, false]);
        assert_eq!(wanted("windows/amd64"), [false, false, false]);
    }

    #[test]
    fn are_written_as_they_are_read() {
        for text in [r#""all""#, r#"["linux/amd64","linux/arm/v7"]"#] {
            let platforms: Platforms = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&platforms).unwrap(), text);
            assert_eq!(platforms.to_string().parse(), Ok(platforms));
        }
        assert_eq!(serde_json::from_str::<Platforms>(r#""linux/amd64""#).unwrap().to_string(), "linux/amd64");
        let long = format!(r#"["{}"]"#, "a/".repeat(5000));
        let many = format!("[{}]", [r#""a/b""#; 33].join(","));
        for bad in ["1", "[]", r#""""#, r#"["linux"]"#, r#"["a/b/c/d"]"#, r#"["linux/../x"]"#, "[1]", &long, &many] {
            assert!(serde_json::from_str::<Platforms>(bad).is_err(), "{bad}");
        }
    }
}
