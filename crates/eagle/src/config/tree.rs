//! Configuration before it has types: what was written, and where.
//!
//! Every layer (file, environment, flags) becomes one tree; laid over each other they make the
//! effective one. Each node remembers where it was written, so that an error can name the line and
//! `config show` can name the source.

use std::{collections::BTreeMap, fmt, path::Path, sync::Arc};

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Nowhere: the role's own default.
    Default,
    /// In a file; line and column count from 1.
    File { path: Arc<Path>, line: u64, column: u64 },
    /// In an environment variable of this name.
    Env(Arc<str>),
    /// On the command line by this flag.
    Flag(Arc<str>),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line, .. } => write!(f, "{}:{line}", path.display()),
            Self::Env(name) => write!(f, "env {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// A value and where it was written.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) origin: Origin,
}

/// What was written. Scalars stay text: only the type that reads them knows whether `12` is a number.
#[derive(Clone)]
pub(crate) enum Value {
    Null,
    /// `plain` is false for quoted text, which is never a number or a truth value.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// Leaves scalars out: some are secrets, and which is only known once they have types.
impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("Null"),
            Self::Scalar { .. } => f.write_str("Scalar(..)"),
            Self::List(items) => f.debug_list().entries(items).finish(),
            Self::Map(entries) => f.debug_map().entries(entries.iter().map(|(key, node)| (&key.name, node))).finish(),
        }
    }
}

/// A key of a map and where it was written.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    pub(crate) name: String,
    pub(crate) origin: Origin,
}

impl Node {
    /// An empty map: the tree of a layer that says nothing.
    pub(crate) fn empty() -> Self {
        Self { value: Value::Map(Vec::new()), origin: Origin::Default }
    }

    /// A scalar that is written plainly.
    pub(crate) fn scalar(text: impl Into<String>, origin: Origin) -> Self {
        Self { value: Value::Scalar { text: text.into(), plain: true }, origin }
    }

    /// The value of a key, where this is a map that has it.
    pub(crate) fn get(&self, name: &str) -> Option<&Self> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|(key, _)| key.name == name).map(|(_, node)| node),
            _ => None,
        }
    }

    /// The scalars below this node, by their dotted paths that begin with `path`.
    pub(crate) fn leaves(&self, path: &str, leaves: &mut BTreeMap<String, String>) {
        match &self.value {
            // A list that is empty differs from one that is not written.
            Value::List(items) if items.is_empty() => drop(leaves.insert(path.to_owned(), String::new())),
            Value::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    item.leaves(&format!("{path}.{index}"), leaves);
                }
            }
            Value::Map(entries) => {
                for (key, node) in entries {
                    node.leaves(&format!("{path}.{}", key.name), leaves);
                }
            }
            Value::Scalar { text, .. } => drop(leaves.insert(path.to_owned(), text.clone())),
            // As if it were not written.
            Value::Null => {}
        }
    }

    /// Takes a key out of a map.
    pub(crate) fn take(&mut self, name: &str) -> Option<(Key, Self)> {
        match &mut self.value {
            Value::Map(entries) => {
                let at = entries.iter().position(|(key, _)| key.name == name)?;
                Some(entries.remove(at))
            }
            _ => None,
        }
    }

    /// Lays `over` on this tree: maps key by key, anything else as a whole. A map that is present
    /// without a value (`proxy:` with every line below it commented out) takes nothing away.
    pub(crate) fn merge(&mut self, over: Self) {
        match (&mut self.value, over.value) {
            (Value::Map(entries), Value::Map(others)) => {
                for (key, node) in others {
                    match entries.iter_mut().find(|(own, _)| own.name == key.name) {
                        Some((own, value)) => {
                            *own = key;
                            value.merge(node);
                        }
                        None => entries.push((key, node)),
                    }
                }
            }
            (Value::Map(_), Value::Null) => {}
            (value, other) => {
                *value = other;
                self.origin = over.origin;
            }
        }
    }

    /// Writes `node` at `path`, making the maps on the way. A number in the path is an index where a
    /// list is already there, and the index that follows its last element appends.
    pub(crate) fn set(&mut self, path: &[String], node: Self) {
        let Some((name, rest)) = path.split_first() else {
            self.merge(node);
            return;
        };
        if let Value::List(items) = &mut self.value
            && let Ok(index) = name.parse::<usize>()
            && index <= items.len()
        {
            if index == items.len() {
                items.push(Self { value: Value::Map(Vec::new()), origin: node.origin.clone() });
            }
            items[index].set(rest, node);
            return;
        }
        if !matches!(self.value, Value::Map(_)) {
            *self = Self { value: Value::Map(Vec::new()), origin: node.origin.clone() };
        }
        let Value::Map(entries) = &mut self.value else { return };
        let at = entries.iter().position(|(key, _)| key.name == *name).unwrap_or_else(|| {
            let key = Key { name: name.clone(), origin: node.origin.clone() };
            entries.push((key, Self { value: Value::Map(Vec::new()), origin: node.origin.clone() }));
            entries.len() - 1
        });
        entries[at].1.set(rest, node);
    }

    /// Where the value at `path` comes from.
    pub(crate) fn origin_of(&self, path: &[String]) -> &Origin {
        let Some((name, rest)) = path.split_first() else { return &self.origin };
        match &self.value {
            Value::Map(_) => self.get(name).map_or(&Origin::Default, |node| node.origin_of(rest)),
            Value::List(items) => match name.parse::<usize>().ok().and_then(|index| items.get(index)) {
                Some(node) => node.origin_of(rest),
                None => &self.origin,
            },
            // A list written as `a,b` in one variable.
            Value::Scalar { .. } => &self.origin,
            Value::Null => &Origin::Default,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(name: &str, text: &str) -> Node {
        Node::scalar(text, Origin::Env(name.into()))
    }

    fn path(text: &str) -> Vec<String> {
        text.split('.').map(str::to_owned).collect()
    }

    #[test]
    fn later_layers_win_key_by_key() {
        let mut tree = Node::empty();
        tree.set(&path("proxy.listen"), env("A", "1"));
        tree.set(&path("proxy.cache"), env("B", "2"));
        let mut over = Node::empty();
        over.set(&path("proxy.listen"), env("C", "3"));
        tree.merge(over);
        assert_eq!(tree.origin_of(&path("proxy.listen")), &Origin::Env("C".into()));
        assert_eq!(tree.origin_of(&path("proxy.cache")), &Origin::Env("B".into()));
        assert_eq!(tree.origin_of(&path("proxy.other")), &Origin::Default);
        assert_eq!(tree.origin_of(&path("seeder.listen")), &Origin::Default);
    }

    #[test]
    fn numbers_reach_into_lists() {
        let mut tree = Node::empty();
        let list = Node { value: Value::List(vec![Node::empty()]), origin: Origin::Flag("--x".into()) };
        tree.set(&path("registries"), list);
        tree.set(&path("registries.0.password"), env("P", "secret"));
        tree.set(&path("registries.1.name"), env("N", "other"));
        assert_eq!(tree.origin_of(&path("registries.0.password")), &Origin::Env("P".into()));
        assert_eq!(tree.origin_of(&path("registries.1.name")), &Origin::Env("N".into()));
    }
}
