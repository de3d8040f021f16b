//! The layer of flags: what the command line says, by key.

use std::fmt;

use super::tree::{Key, Node, Origin, Value};

/// What flags say, in the order in which they are laid on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Flags {
    values: Vec<(Vec<String>, Node)>,
    /// Registries by name; each takes the place of the configured one of its name, or joins them.
    registries: Vec<(String, String)>,
}

impl Flags {
    /// The value of a flag, if it was given, for the key at `path`.
    pub(crate) fn value(&mut self, flag: &str, path: &[&str], value: Option<impl fmt::Display>) {
        if let Some(value) = value {
            let node = text(value.to_string(), &Origin::Flag(flag.into()));
            self.values.push((path.iter().map(|key| (*key).to_owned()).collect(), node));
        }
    }

    /// The values of a flag that may be repeated; none means that it was not given.
    pub(crate) fn list(&mut self, flag: &str, path: &[&str], values: &[impl fmt::Display]) {
        if values.is_empty() {
            return;
        }
        let origin = Origin::Flag(flag.into());
        let items = values.iter().map(|value| text(value.to_string(), &origin)).collect();
        let path = path.iter().map(|key| (*key).to_owned()).collect();
        self.values.push((path, Node { value: Value::List(items), origin }));
    }

    /// `--registry NAME=URL`.
    pub(crate) fn registry(&mut self, name: &str, url: impl fmt::Display) {
        self.registries.push((name.to_owned(), url.to_string()));
    }

    pub(super) fn lay_on(self, tree: &mut Node) {
        for (path, node) in self.values {
            tree.set(&path, node);
        }
        for (name, url) in self.registries {
            let origin = Origin::Flag("--registry".into());
            let configured = match tree.get("registries").map(|node| &node.value) {
                Some(Value::List(items)) => items.as_slice(),
                _ => &[],
            };
            let named = |node: &Node| matches!(node.get("name").map(|name| &name.value), Some(Value::Scalar { text, .. }) if *text == name);
            let index = configured.iter().position(named).unwrap_or(configured.len()).to_string();
            if !matches!(tree.get("registries"), Some(Node { value: Value::List(_), .. })) {
                let list = Node { value: Value::List(Vec::new()), origin: origin.clone() };
                tree.take("registries");
                if let Value::Map(entries) = &mut tree.value {
                    entries.push((Key { name: "registries".to_owned(), origin: origin.clone() }, list));
                }
            }
            for (key, value) in [("name", name), ("url", url)] {
                tree.set(&["registries".to_owned(), index.clone(), key.to_owned()], text(value, &origin));
            }
        }
    }
}

fn text(text: String, origin: &Origin) -> Node {
    Node::scalar(text, origin.clone())
}
