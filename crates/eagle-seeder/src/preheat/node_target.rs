//! How many nodes are warmed.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Which nodes are warmed after the seeders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum NodeTarget {
    /// None: seeders only.
    #[default]
    None,
    /// Every proxy that this seeder knows.
    All,
    /// So many of them, chosen at random.
    Count(u32),
}

/// A text that says of no nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("write all, none, or a number of nodes")]
pub struct ParseNodeTargetError;

impl FromStr for NodeTarget {
    type Err = ParseNodeTargetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "all" => Ok(Self::All),
            "none" => Ok(Self::None),
            number => match number.parse() {
                Ok(0) => Ok(Self::None),
                Ok(number) => Ok(Self::Count(number)),
                Err(_) => Err(ParseNodeTargetError),
            },
        }
    }
}

impl fmt::Display for NodeTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::All => f.write_str("all"),
            Self::Count(number) => number.fmt(f),
        }
    }
}

impl Serialize for NodeTarget {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Count(number) => serializer.serialize_u32(*number),
            other => serializer.collect_str(other),
        }
    }
}

impl<'de> Deserialize<'de> for NodeTarget {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// A word or a number.
        struct Written;

        impl de::Visitor<'_> for Written {
            type Value = NodeTarget;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("all, none, or a number of nodes")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<NodeTarget, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<NodeTarget, E> {
                match u32::try_from(number) {
                    Ok(0) => Ok(NodeTarget::None),
                    Ok(number) => Ok(NodeTarget::Count(number)),
                    Err(_) => Err(E::custom(ParseNodeTargetError)),
                }
            }
        }

        deserializer.deserialize_any(Written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_a_word_or_a_number() {
        for (text, target) in
            [("\"all\"", NodeTarget::All), ("\"none\"", NodeTarget::None), ("3", NodeTarget::Count(3))]
        {
            assert_eq!(serde_json::from_str::<NodeTarget>(text).unwrap(), target);
            assert_eq!(serde_json::to_string(&target).unwrap(), text);
        }
        assert_eq!(serde_json::from_str::<NodeTarget>("\"7\"").unwrap(), NodeTarget::Count(7));
        for none in ["0", "\"0\"", "\"00\""] {
            assert_eq!(serde_json::from_str::<NodeTarget>(none).unwrap(), NodeTarget::None);
        }
        for bad in ["-1", "5000000000", "\"some\"", "[]", "null", "1.5"] {
            assert!(serde_json::from_str::<NodeTarget>(bad).is_err(), "{bad}");
        }
    }
}
