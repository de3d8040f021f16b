//! The keys that a node accepts at a time.

use std::str::FromStr;

use tokio::sync::watch;

use crate::key::{ClusterKey, ParseKeyError};

/// Keys that can be accepted at a time: the one in use, and the one that comes or goes while a key is exchanged.
const MAX_KEYS: usize = 2;
/// Longest text that is read as keys, bytes: two keys with a comment beside each.
const MAX_TEXT: usize = 4096;

/// One key, or two while a cluster changes from one to the other.
///
/// The first is the one that a node uses for the connections that it begins; all are accepted. To change the key of a
/// running cluster: add the new key behind the old one on every node, then put it first on every node, then take the
/// old one away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterKeys(Vec<ClusterKey>);

/// Why a text holds no cluster keys. It never repeats the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseKeysError {
    /// There is none.
    #[error("there is no cluster key in it; make one with `eagle cluster-key`")]
    None,
    /// More than two.
    #[error("there are more than two cluster keys in it; one is in use and one comes or goes")]
    TooMany,
    /// It is no text of keys.
    #[error("it is too long for cluster keys")]
    TooLong,
    /// The same twice.
    #[error("the two cluster keys in it are the same")]
    Same,
    /// One of the lines.
    #[error("line {line} is no cluster key: {problem}")]
    Key {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        problem: ParseKeyError,
    },
}

impl ClusterKeys {
    /// One key.
    pub fn one(key: ClusterKey) -> Self {
        Self(vec![key])
    }

    /// The key for connections that this node begins.
    pub fn own(&self) -> &ClusterKey {
        &self.0[0]
    }

    /// All keys that are accepted, the own one first.
    pub fn accepted(&self) -> &[ClusterKey] {
        &self.0
    }
}

/// A key on each line; `#` begins a comment, empty lines do not count.
impl FromStr for ClusterKeys {
    type Err = ParseKeysError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_TEXT {
            return Err(ParseKeysError::TooLong);
        }
        let mut keys: Vec<ClusterKey> = Vec::new();
        for (line, text) in text.lines().enumerate() {
            let text = text.split('#').next().unwrap_or_default().trim();
            if text.is_empty() {
                continue;
            }
            let key = text.parse().map_err(|problem| ParseKeysError::Key { line: line + 1, problem })?;
            if keys.contains(&key) {
                return Err(ParseKeysError::Same);
            }
            if keys.len() == MAX_KEYS {
                return Err(ParseKeysError::TooMany);
            }
            keys.push(key);
        }
        if keys.is_empty() { Err(ParseKeysError::None) } else { Ok(Self(keys)) }
    }
}

/// How a node tells members from strangers.
#[derive(Debug, Clone)]
pub enum Membership {
    /// It does not: there is no cluster key. For loopback, and for networks that only the cluster's machines can reach.
    Open,
    /// By the cluster keys of the moment. They change while connections are open.
    Keyed(watch::Receiver<ClusterKeys>),
}

impl Membership {
    /// The keys of the moment; `None` without a key.
    pub fn keys(&self) -> Option<ClusterKeys> {
        match self {
            Self::Open => None,
            Self::Keyed(keys) => Some(keys.borrow().clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> String {
        ClusterKey::generate().unwrap().expose().to_string()
    }

    #[test]
    fn keys_stand_on_lines_with_comments() {
        let (first, second) = (key(), key());
        let keys: ClusterKeys = format!("# of 2026\n\n  {first}  # in use\n{second}\n").parse().unwrap();
        assert_eq!(*keys.own().expose(), first);
        assert_eq!(keys.accepted().len(), 2);
        assert_eq!(*keys.accepted()[1].expose(), second);
    }

    #[test]
    fn what_is_wrong_is_said_without_the_key() {
        let (first, second, third) = (key(), key(), key());
        let parse = |text: &str| text.parse::<ClusterKeys>().unwrap_err();
        assert_eq!(parse("# nothing\n"), ParseKeysError::None);
        assert_eq!(parse(&format!("{first}\n{second}\n{third}")), ParseKeysError::TooMany);
        assert_eq!(parse(&format!("{first}\n{first}")), ParseKeysError::Same);
        assert_eq!(parse(&"#".repeat(5000)), ParseKeysError::TooLong);
        let error = parse(&format!("{first}\nsecret!"));
        assert_eq!(
            error.to_string(),
            "line 2 is no cluster key: it is neither base64 nor hexadecimal; make one with `eagle cluster-key`"
        );
    }
}
