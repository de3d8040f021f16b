//! From YAML text to a tree that knows its lines.

use std::{fmt, net::SocketAddr, path::Path, sync::Arc};

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Location, Spanned};

use super::{
    read::ConfigError,
    tree::{Key, Node, Origin, Value},
};

/// A node as the YAML reader gives it.
struct Raw(Spanned<RawValue>);

enum RawValue {
    Null,
    Text(String),
    /// A number or truth value; its text is taken from the source, so that `1.10` stays `1.10`.
    Typed(String),
    List(Vec<Raw>),
    Map(Vec<(Spanned<String>, Raw)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Spanned::deserialize(deserializer).map(Self)
    }
}

impl<'de> Deserialize<'de> for RawValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = RawValue;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }
            fn visit_unit<E>(self) -> Result<RawValue, E> {
                Ok(RawValue::Null)
            }
            fn visit_none<E>(self) -> Result<RawValue, E> {
                Ok(RawValue::Null)
            }
            fn visit_str<E>(self, text: &str) -> Result<RawValue, E> {
                Ok(RawValue::Text(text.to_owned()))
            }
            fn visit_bool<E>(self, value: bool) -> Result<RawValue, E> {
                Ok(RawValue::Typed(value.to_string()))
            }
            fn visit_i64<E>(self, value: i64) -> Result<RawValue, E> {
                Ok(RawValue::Typed(value.to_string()))
            }
            fn visit_u64<E>(self, value: u64) -> Result<RawValue, E> {
                Ok(RawValue::Typed(value.to_string()))
            }
            fn visit_f64<E>(self, value: f64) -> Result<RawValue, E> {
                Ok(RawValue::Typed(value.to_string()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<RawValue, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element()? {
                    list.push(item);
                }
                Ok(RawValue::List(list))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<RawValue, A::Error> {
                let mut map = Vec::new();
                while let Some(entry) = entries.next_entry()? {
                    map.push(entry);
                }
                Ok(RawValue::Map(map))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

struct Source<'a> {
    text: &'a str,
    origin: &'a dyn Fn(&Location) -> Origin,
}

impl Source<'_> {
    fn node(&self, Raw(spanned): Raw) -> Node {
        let origin = (self.origin)(&spanned.referenced);
        let value = match spanned.value {
            RawValue::Null => Value::Null,
            RawValue::Text(text) => {
                // Text that was quoted is never anything else; what the reader calls text though it is
                // plain is text to everyone.
                Value::Scalar { text, plain: false }
            }
            RawValue::Typed(shown) => {
                let written = spanned.defined.span();
                let text = written.byte_offset().zip(written.byte_len()).and_then(|(start, length)| {
                    let start = usize::try_from(start).ok()?;
                    self.text.get(start..start.checked_add(usize::try_from(length).ok()?)?)
                });
                Value::Scalar { text: text.map_or(shown, |text| text.trim().to_owned()), plain: true }
            }
            RawValue::List(items) => Value::List(items.into_iter().map(|item| self.node(item)).collect()),
            RawValue::Map(entries) => Value::Map(
                entries
                    .into_iter()
                    .map(|(key, value)| {
                        let origin = (self.origin)(&key.referenced);
                        (Key { name: key.value, origin }, self.node(value))
                    })
                    .collect(),
            ),
        };
        Node { value, origin }
    }
}

fn parse(text: &str, origin: &dyn Fn(&Location) -> Origin) -> Result<Node, ConfigError> {
    if text.lines().all(|line| line.trim_start().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(Node::empty());
    }
    match serde_saphyr::from_str::<Raw>(text) {
        Ok(raw) => Ok(Source { text, origin }.node(raw)),
        Err(error) => {
            let at = error.location().map_or(Origin::Default, |location| origin(&location));
            let message = error.without_snippet().to_string();
            // Where it is, is said in front; hints for programmers help nobody here.
            let message = [" at line ", ", set ", "; use "]
                .iter()
                .fold(message.as_str(), |message, end| message.split(end).next().unwrap_or(message));
            Err(ConfigError::new(at, &[], format_args!("not valid YAML: {message}")))
        }
    }
}

/// Reads the text of a configuration file.
pub(crate) fn parse_file(text: &str, path: &Path) -> Result<Node, ConfigError> {
    let path: Arc<Path> = path.into();
    parse(text, &|location| Origin::File { path: Arc::clone(&path), line: location.line(), column: location.column() })
}

/// Reads the text of a variable: lists and maps in YAML's flow form (`[a, b]`, `{a: b}`), anything else as it is.
pub(crate) fn parse_variable(text: &str, name: &str) -> Result<Node, ConfigError> {
    let origin = Origin::Env(name.into());
    // An IPv6 address with a port starts like a list and is none.
    if text.trim_start().starts_with(['[', '{']) && text.parse::<SocketAddr>().is_err() {
        return parse(text, &|_| origin.clone());
    }
    Ok(Node::scalar(text, origin))
}

/// Reads JSON that this program wrote.
pub(super) fn parse_json(text: &str) -> Result<Node, ConfigError> {
    parse(text, &|_| Origin::Default)
}
