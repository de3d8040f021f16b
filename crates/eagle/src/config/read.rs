//! From the tree to typed settings, with errors that name the key and the place.

use std::fmt;

use serde::de::{
    self, DeserializeSeed, Deserializer, IntoDeserializer, Unexpected, Visitor, value::MapAccessDeserializer,
};

use super::tree::{Key, Node, Origin, Value};

/// What is wrong with the configuration, at which key, written where. One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConfigError {
    origin: Option<Origin>,
    /// Keys from the root, the innermost last.
    path: Vec<String>,
    problem: Problem,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Problem {
    Other(String),
    UnknownKey { name: String, known: Vec<String> },
}

impl ConfigError {
    /// A problem at a known place.
    pub(crate) fn new(origin: Origin, path: &[&str], problem: impl fmt::Display) -> Self {
        let path = path.iter().map(|key| (*key).to_owned()).collect();
        Self { origin: Some(origin), path, problem: Problem::Other(problem.to_string()) }
    }

    /// A key that nothing reads, and those that would have been read there.
    pub(crate) fn unknown_key(key: &Key, path: &[String], known: &[&str]) -> Self {
        let known = known.iter().map(|name| (*name).to_owned()).collect();
        let problem = Problem::UnknownKey { name: key.name.clone(), known };
        Self { origin: Some(key.origin.clone()), path: path.to_vec(), problem }
    }

    /// The keys around this one, outermost first.
    pub(crate) fn within(mut self, name: &str) -> Self {
        self.path.insert(0, name.to_owned());
        self
    }

    /// Keys that are read apart from the type that complained.
    pub(crate) fn also_known(mut self, names: &[&str]) -> Self {
        if let Problem::UnknownKey { known, .. } = &mut self.problem
            && self.path.len() == 1
        {
            known.extend(names.iter().map(|name| (*name).to_owned()));
        }
        self
    }

    /// The place, unless a narrower one is known.
    pub(crate) fn at(mut self, origin: &Origin) -> Self {
        self.origin.get_or_insert_with(|| origin.clone());
        self
    }
}

/// How alike two keys must be for one to be offered for the other: of 0 to 1 (Jaro-Winkler), at 0.8 a slip of
/// one or two letters passes and another word does not.
const ALIKE: f64 = 0.8;

fn nearest<'a>(name: &str, known: &'a [String]) -> Option<&'a String> {
    known
        .iter()
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Some(Origin::File { path, line, column }) => write!(f, "{}:{line}:{column}: ", path.display())?,
            Some(Origin::Env(name)) => write!(f, "environment variable {name}: ")?,
            Some(Origin::Flag(name)) => write!(f, "{name}: ")?,
            Some(Origin::Default) | None => {}
        }
        let path = self.path.join(".");
        match &self.problem {
            Problem::Other(problem) if path.is_empty() => f.write_str(problem),
            Problem::Other(problem) => write!(f, "{path}: {problem}"),
            Problem::UnknownKey { name, known } => {
                let whole =
                    |name: &str| self.path.iter().map(String::as_str).chain([name]).collect::<Vec<_>>().join(".");
                write!(f, "unknown key `{}`", whole(name))?;
                match nearest(name, known) {
                    Some(near) => match &self.origin {
                        Some(Origin::Env(_)) => {
                            write!(f, "; did you mean EAGLE_{}?", whole(near).replace('.', "__").to_uppercase())
                        }
                        _ => write!(f, "; did you mean `{near}`?"),
                    },
                    None if known.is_empty() => Ok(()),
                    None => write!(f, "; known here: {}", known.join(", ")),
                }
            }
        }
    }
}

impl std::error::Error for ConfigError {}

impl de::Error for ConfigError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { origin: None, path: Vec::new(), problem: Problem::Other(message.to_string()) }
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        // The types of the program mean nothing to who wrote the file.
        let expected = expected.to_string();
        let expected = match expected.as_str() {
            "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number",
            "a sequence" => "a list",
            other if other.starts_with("struct ") => "keys with values",
            "a boolean" => "true or false",
            other => other,
        };
        let found = match found {
            Unexpected::Str(text) => format!("{text:?}"),
            Unexpected::Unit => "nothing".to_owned(),
            Unexpected::Seq => "a list".to_owned(),
            Unexpected::Map => "keys with values".to_owned(),
            other => other.to_string(),
        };
        Self::custom(format_args!("expected {expected}, found {found}"))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        let known = expected.iter().map(|name| (*name).to_owned()).collect();
        Self { origin: None, path: Vec::new(), problem: Problem::UnknownKey { name: field.to_owned(), known } }
    }

    fn missing_field(field: &'static str) -> Self {
        Self::custom(format_args!("`{field}` is missing"))
    }
}

macro_rules! parsed {
    ($($method:ident $visit:ident $type:ty),* $(,)?) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
            let result = match &self.value {
                Value::Scalar { text, plain: true } => match text.parse::<$type>() {
                    Ok(value) => visitor.$visit(value),
                    Err(_) => Err(de::Error::invalid_type(Unexpected::Str(text), &visitor)),
                },
                _ => Err(de::Error::invalid_type(self.unexpected(), &visitor)),
            };
            result.map_err(|error: ConfigError| error.at(&self.origin))
        }
    )*};
}

impl Node {
    fn unexpected(&self) -> Unexpected<'_> {
        match &self.value {
            Value::Null => Unexpected::Unit,
            Value::Scalar { text, .. } => Unexpected::Str(text),
            Value::List(_) => Unexpected::Seq,
            Value::Map(_) => Unexpected::Map,
        }
    }
}

impl<'de> Deserializer<'de> for &Node {
    type Error = ConfigError;

    parsed! {
        deserialize_bool visit_bool bool,
        deserialize_i8 visit_i8 i8, deserialize_i16 visit_i16 i16, deserialize_i32 visit_i32 i32, deserialize_i64 visit_i64 i64,
        deserialize_u8 visit_u8 u8, deserialize_u16 visit_u16 u16, deserialize_u32 visit_u32 u32, deserialize_u64 visit_u64 u64,
        deserialize_f32 visit_f32 f32, deserialize_f64 visit_f64 f64, deserialize_char visit_char char,
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        match &self.value {
            Value::Null => visitor.visit_unit().map_err(|error: ConfigError| error.at(&self.origin)),
            Value::List(_) => self.deserialize_seq(visitor),
            Value::Map(_) => self.deserialize_map(visitor),
            Value::Scalar { plain: false, .. } => self.deserialize_str(visitor),
            Value::Scalar { text, plain: true } => {
                if text.parse::<bool>().is_ok() {
                    self.deserialize_bool(visitor)
                } else if text.parse::<u64>().is_ok() {
                    self.deserialize_u64(visitor)
                } else if text.parse::<i64>().is_ok() {
                    self.deserialize_i64(visitor)
                } else if text.starts_with(|c: char| c.is_ascii_digit() || c == '-') && text.parse::<f64>().is_ok() {
                    self.deserialize_f64(visitor)
                } else {
                    self.deserialize_str(visitor)
                }
            }
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        let result = match &self.value {
            Value::Scalar { text, .. } => visitor.visit_str(text),
            _ => Err(de::Error::invalid_type(self.unexpected(), &visitor)),
        };
        result.map_err(|error: ConfigError| error.at(&self.origin))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        let result = match &self.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        };
        result.map_err(|error: ConfigError| error.at(&self.origin))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, ConfigError> {
        visitor.visit_newtype_struct(self).map_err(|error: ConfigError| error.at(&self.origin))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        let items = match &self.value {
            Value::List(items) => items.clone(),
            // `a,b` where a shell or a pod template has no lists.
            Value::Scalar { text, .. } if matches!(self.origin, Origin::Env(_) | Origin::Flag(_)) => text
                .split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty())
                .map(|item| Node::scalar(item, self.origin.clone()))
                .collect(),
            // A list whose every line is commented out.
            Value::Null => Vec::new(),
            _ => {
                let error: ConfigError = de::Error::invalid_type(self.unexpected(), &visitor);
                return Err(error.at(&self.origin));
            }
        };
        let result = visitor.visit_seq(Items { items: items.into_iter(), index: 0 });
        result.map_err(|error: ConfigError| error.at(&self.origin))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        let entries: &[(Key, Node)] = match &self.value {
            Value::Map(entries) => entries,
            // A section whose every line is commented out.
            Value::Null => &[],
            _ => {
                let error: ConfigError = de::Error::invalid_type(self.unexpected(), &visitor);
                return Err(error.at(&self.origin));
            }
        };
        let result = visitor.visit_map(Entries { entries: entries.iter(), value: None });
        result.map_err(|error: ConfigError| error.at(&self.origin))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ConfigError> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ConfigError> {
        let result = match &self.value {
            Value::Scalar { text, .. } => visitor.visit_enum(text.as_str().into_deserializer()),
            Value::Map(entries) => {
                let entries = Entries { entries: entries.iter(), value: None };
                visitor.visit_enum(MapAccessDeserializer::new(entries))
            }
            _ => Err(de::Error::invalid_type(self.unexpected(), &visitor)),
        };
        result.map_err(|error: ConfigError| error.at(&self.origin))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        i128 u128 bytes byte_buf unit unit_struct tuple tuple_struct
    }
}

struct Items {
    items: std::vec::IntoIter<Node>,
    index: usize,
}

impl<'de> de::SeqAccess<'de> for Items {
    type Error = ConfigError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, ConfigError> {
        let Some(node) = self.items.next() else { return Ok(None) };
        let index = self.index;
        self.index += 1;
        seed.deserialize(&node).map(Some).map_err(|error| error.at(&node.origin).within(&index.to_string()))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len())
    }
}

struct Entries<'a> {
    entries: std::slice::Iter<'a, (Key, Node)>,
    value: Option<&'a (Key, Node)>,
}

impl<'de> de::MapAccess<'de> for Entries<'_> {
    type Error = ConfigError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, ConfigError> {
        let Some(entry) = self.entries.next() else { return Ok(None) };
        self.value = Some(entry);
        let key = &entry.0;
        let result = seed.deserialize(key.name.as_str().into_deserializer());
        result.map(Some).map_err(|error: ConfigError| error.at(&key.origin))
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, ConfigError> {
        let Some((key, node)) = self.value.take() else {
            return Err(de::Error::custom("a value was asked for before its key"));
        };
        seed.deserialize(node).map_err(|error| error.at(&node.origin).within(&key.name))
    }
}
