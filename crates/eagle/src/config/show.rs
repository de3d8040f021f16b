//! `config show`: the values in effect as YAML, with the source of each beside it.

use std::fmt::Write as _;

use serde_json::{Map, json};

use super::tree::{Node, Value};

/// Widest column at which the sources still line up; behind longer lines they follow directly.
const WIDEST: usize = 64;

/// One line of YAML and, for a value, the path of its key.
struct Line {
    text: String,
    path: Option<Vec<String>>,
}

/// The values of `effective` as YAML, each with where `written` has it from.
pub(crate) fn yaml(effective: &Node, written: &Node) -> String {
    let mut lines = Vec::new();
    emit(effective, &mut Vec::new(), 0, &mut lines);
    let column = lines.iter().map(|line| line.text.chars().count()).filter(|width| *width <= WIDEST).max().unwrap_or(0);
    let mut text = String::new();
    for Line { text: line, path } in &lines {
        let written = path.as_ref().map(|path| written.origin_of(path));
        // Writing to a String cannot fail.
        let _ = match written {
            Some(origin) => writeln!(text, "{line:column$}  # from {origin}"),
            None => writeln!(text, "{line}"),
        };
    }
    text
}

/// The same as JSON: `config` with the values, `sources` by the path of each.
pub(crate) fn json(effective: &Node, written: &Node) -> serde_json::Value {
    let mut sources = Map::new();
    leaves(effective, &mut Vec::new(), &mut |path, _| {
        sources.insert(path.join("."), json!(written.origin_of(path).to_string()));
    });
    json!({ "config": plain(effective), "sources": sources })
}

/// Calls `visit` with the path of every value that is no map.
pub(crate) fn leaves(node: &Node, path: &mut Vec<String>, visit: &mut dyn FnMut(&[String], &Node)) {
    match &node.value {
        Value::Map(entries) => {
            for (key, value) in entries {
                path.push(key.name.clone());
                leaves(value, path, visit);
                path.pop();
            }
        }
        Value::List(items) if !items.is_empty() => {
            for (index, item) in items.iter().enumerate() {
                path.push(index.to_string());
                leaves(item, path, visit);
                path.pop();
            }
        }
        _ => visit(path, node),
    }
}

/// A tree as JSON.
pub(crate) fn plain(node: &Node) -> serde_json::Value {
    match &node.value {
        Value::Null => serde_json::Value::Null,
        Value::Scalar { text, plain: true } => serde_json::from_str(text).unwrap_or_else(|_| json!(text)),
        Value::Scalar { text, plain: false } => json!(text),
        Value::List(items) => items.iter().map(plain).collect(),
        Value::Map(entries) => entries.iter().map(|(key, value)| (key.name.clone(), plain(value))).collect(),
    }
}

fn emit(node: &Node, path: &mut Vec<String>, indent: usize, lines: &mut Vec<Line>) {
    let pad = " ".repeat(indent);
    match &node.value {
        Value::Map(entries) => {
            for (key, value) in entries {
                path.push(key.name.clone());
                field(&format!("{pad}{}:", key.name), value, path, indent, lines);
                path.pop();
            }
        }
        Value::List(items) => {
            for (index, item) in items.iter().enumerate() {
                path.push(index.to_string());
                match &item.value {
                    Value::Map(entries) if !entries.is_empty() => {
                        let first = lines.len();
                        emit(item, path, indent + 2, lines);
                        // The first line of the item carries its dash.
                        lines[first].text.replace_range(indent..indent + 1, "-");
                    }
                    _ => field(&format!("{pad}-"), item, path, indent, lines),
                }
                path.pop();
            }
        }
        _ => {}
    }
}

fn field(head: &str, value: &Node, path: &mut Vec<String>, indent: usize, lines: &mut Vec<Line>) {
    let nested = match &value.value {
        Value::Map(entries) => !entries.is_empty(),
        Value::List(items) => !items.is_empty(),
        _ => false,
    };
    if nested {
        lines.push(Line { text: head.to_owned(), path: None });
        emit(value, path, indent + 2, lines);
    } else {
        lines.push(Line { text: format!("{head} {}", scalar(value)), path: Some(path.clone()) });
    }
}

fn scalar(node: &Node) -> String {
    match &node.value {
        Value::Null => "null".to_owned(),
        Value::List(_) => "[]".to_owned(),
        Value::Map(_) => "{}".to_owned(),
        Value::Scalar { text, plain: true } => text.clone(),
        Value::Scalar { text, plain: false } => {
            let safe = |c: char| c.is_ascii_alphanumeric() || "._/:+@-".contains(c);
            let bare = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/')
                && text.chars().all(safe)
                && !text.ends_with(':')
                && text.parse::<f64>().is_err()
                && !matches!(
                    text.to_ascii_lowercase().as_str(),
                    "true" | "false" | "null" | "yes" | "no" | "on" | "off" | "y" | "n"
                );
            // A JSON string is a YAML string.
            if bare { text.clone() } else { json!(text).to_string() }
        }
    }
}
