//! Which way a pull takes: through peers, straight to the registry, or nowhere.
//!
//! Rules are tried in the order in which they are written, and the first one that fits decides. What no
//! rule fits goes through peers.

use std::{
    fmt,
    str::FromStr,
    sync::{Arc, PoisonError, RwLock},
};

use eagle_registry::{RegistryName, RepositoryName};
use globset::{GlobBuilder, GlobMatcher};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Longest pattern, bytes: longer than any name that it could fit.
const MAX_PATTERN: usize = 512;

/// What happens to a pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Blobs come from peers, seeders and the cache; manifests from seeders.
    #[default]
    Peers,
    /// Everything comes from the registry itself, and nothing is kept.
    Origin,
    /// Nothing is answered but a refusal.
    Refuse,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The registries that it is for.
    #[serde(default)]
    pub registry: Pattern<RegistryName>,
    /// The repositories of those registries that it is for.
    #[serde(default)]
    pub repository: Pattern<RepositoryName>,
    /// What happens to them.
    pub action: Action,
}

/// The rules of a proxy, in their order; clones share them, and learn when they are replaced.
#[derive(Debug, Clone, Default)]
pub struct Rules(Arc<RwLock<Arc<[Rule]>>>);

impl Rules {
    /// Rules that are tried in this order.
    pub fn new(rules: Vec<Rule>) -> Self {
        Self(Arc::new(RwLock::new(rules.into())))
    }

    /// Takes these rules from now on, in this order.
    pub fn replace(&self, rules: Vec<Rule>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = rules.into();
    }

    fn present(&self) -> Arc<[Rule]> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What happens to a pull from this repository.
    pub fn action(&self, registry: &RegistryName, repository: &RepositoryName) -> Action {
        let rules = self.present();
        let rule = rules
            .iter()
            .find(|rule| rule.registry.fits(registry.as_str()) && rule.repository.fits(repository.as_str()));
        rule.map_or_else(Action::default, |rule| rule.action)
    }

    /// The rules for a registry as a whole, whatever the repository, in their order.
    pub fn of_registry(&self, registry: &RegistryName) -> Vec<Rule> {
        self.present().iter().filter(|rule| rule.registry.fits(registry.as_str())).cloned().collect()
    }

    /// Whether there is no rule.
    pub fn is_empty(&self) -> bool {
        self.present().is_empty()
    }
}

/// Fits names: one name exactly, or those of a glob in which `*` and `?` stop at a slash and `**` does
/// not. `T` is the kind of name.
#[derive(Debug, Clone)]
pub struct Pattern<T> {
    text: String,
    /// `None` for one name exactly.
    glob: Option<GlobMatcher>,
    kind: std::marker::PhantomData<T>,
}

/// Why a text is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a pattern of names: {problem}")]
pub struct ParsePatternError {
    text: String,
    problem: String,
}

impl<T> Pattern<T> {
    /// Whether the name is one of those.
    pub fn fits(&self, name: &str) -> bool {
        match &self.glob {
            Some(glob) => glob.is_match(name),
            None => self.text == name,
        }
    }

    /// Whether it names exactly one.
    pub const fn is_exact(&self) -> bool {
        self.glob.is_none()
    }

    /// The pattern as text.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl<T: FromStr + fmt::Display> FromStr for Pattern<T> {
    type Err = ParsePatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = |problem: String| ParsePatternError { text: text.chars().take(80).collect(), problem };
        // A name is taken as a name: in [::1]:5000 no bracket is a glob's, and Docker Hub has several names.
        if let Ok(name) = text.parse::<T>() {
            return Ok(Self { text: name.to_string(), glob: None, kind: std::marker::PhantomData });
        }
        if text.len() > MAX_PATTERN {
            return Err(error(format!("it has more than {MAX_PATTERN} bytes")));
        }
        if !text.contains(['*', '?', '[', '{']) {
            return Err(error("it is no name and holds none of * ? [ {".to_owned()));
        }
        let lower = text.to_ascii_lowercase();
        let glob = GlobBuilder::new(&lower).literal_separator(true).build();
        let glob = glob.map_err(|problem| error(problem.kind().to_string()))?;
        Ok(Self { text: lower, glob: Some(glob.compile_matcher()), kind: std::marker::PhantomData })
    }
}

impl<T> Default for Pattern<T> {
    /// Fits every name.
    fn default() -> Self {
        let glob = GlobBuilder::new("**").literal_separator(true).build().map(|glob| glob.compile_matcher());
        Self { text: "**".to_owned(), glob: glob.ok(), kind: std::marker::PhantomData }
    }
}

impl<T> PartialEq for Pattern<T> {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl<T> Eq for Pattern<T> {}

impl<T> Serialize for Pattern<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de, T: FromStr + fmt::Display> Deserialize<'de> for Pattern<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rules(json: &str) -> Rules {
        Rules::new(serde_json::from_str(json).unwrap())
    }

    fn action(rules: &Rules, registry: &str, repository: &str) -> Action {
        rules.action(&registry.parse().unwrap(), &repository.parse().unwrap())
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let rules = rules(
            r#"[
                {"registry": "registry-1.docker.io", "repository": "library/*", "action": "peers"},
                {"registry": "docker.io", "action": "refuse"},
                {"registry": "*.example.com", "repository": "team/**", "action": "origin"},
                {"registry": "[::1]:5000", "action": "origin"},
                {"repository": "secret/**", "action": "refuse"}
            ]"#,
        );
        for (registry, repository, expected) in [
            ("docker.io", "library/debian", Action::Peers),
            ("docker.io", "library/a/b", Action::Refuse),
            ("docker.io", "someone/app", Action::Refuse),
            ("a.example.com", "team/x/y", Action::Origin),
            ("a.b.example.com", "team/x", Action::Origin),
            ("example.com", "team/x", Action::Peers),
            ("a.example.com:5000", "team/x", Action::Peers),
            ("a.example.com", "other", Action::Peers),
            ("[::1]:5000", "x", Action::Origin),
            ("ghcr.io", "secret/x", Action::Refuse),
            ("ghcr.io", "x", Action::Peers),
        ] {
            assert_eq!(action(&rules, registry, repository), expected, "{registry}/{repository}");
        }
        assert_eq!(action(&Rules::default(), "ghcr.io", "a"), Action::Peers);
        let shared = rules.clone();
        shared.replace(Vec::new());
        assert!(rules.is_empty(), "all clones learn of new rules");
    }

    #[test]
    fn patterns_are_shown_as_they_are_meant_and_read_back() {
        for (text, shown) in [("Registry-1.Docker.IO", "docker.io"), ("*.Example.com", "*.example.com"), ("**", "**")] {
            let pattern: Pattern<RegistryName> = text.parse().unwrap();
            assert_eq!(pattern.as_str(), shown);
            assert_eq!(
                serde_json::from_str::<Pattern<RegistryName>>(&serde_json::to_string(&pattern).unwrap()).unwrap(),
                pattern
            );
        }
        assert!(Pattern::<RegistryName>::default().fits("anything:5000"));
        assert!(Pattern::<RepositoryName>::default().fits("a/b/c"));
    }

    #[test]
    fn bad_patterns_are_refused() {
        for bad in ["", "a b", "https://a.example", "{a", "[a", "a/b"] {
            assert!(bad.parse::<Pattern<RegistryName>>().is_err(), "{bad}");
        }
        assert!("*".repeat(MAX_PATTERN + 1).parse::<Pattern<RegistryName>>().is_err());
        for bad in [r#"{"registry": "a.example"}"#, r#"{"action": "mirror"}"#, r#"{"action": "peers", "repo": "a"}"#] {
            assert!(serde_json::from_str::<Rule>(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in ".{0,60}", name in "[a-z/.]{0,30}") {
            if let Ok(pattern) = text.parse::<Pattern<RepositoryName>>() {
                pattern.fits(&name);
            }
        }
    }
}
