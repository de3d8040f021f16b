//! Which registry and repository a request means.
//!
//! Three forms are in use, one per family of runtimes:
//! - containerd adds `?ns=<registry>` and keeps the repository as it is;
//! - podman and CRI-O, told to mirror `docker.io` at `127.0.0.1:43002/docker.io`, put the registry
//!   first in the path: `/v2/docker.io/library/debian/...`;
//! - docker says nothing, since it mirrors Docker Hub alone: the default registry is meant.

use eagle_registry::{RegistryName, RepositoryName};
use percent_encoding::percent_decode_str;

/// Longest query that is looked at, bytes.
const MAX_QUERY: usize = 4096;

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// The registry.
    pub registry: RegistryName,
    /// The repository in it.
    pub repository: RepositoryName,
    /// What is left of the query, still encoded, without the leading `?`.
    pub query: Option<String>,
}

/// Why a request names no registry or repository.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// `ns` is not the name of a registry.
    #[error("ns={0:?} is not the name of a registry")]
    Registry(String),
    /// The repository's name breaks the specification's grammar.
    #[error("{0:?} is not the name of a repository")]
    Repository(String),
    /// The query is longer than any valid one.
    #[error("the query is longer than {MAX_QUERY} bytes")]
    TooLong,
}

/// Resolves the name in the path and the query of a request.
///
/// # Errors
/// When registry or repository are malformed.
pub fn resolve(name: &str, query: Option<&str>, default: &RegistryName) -> Result<Upstream, UpstreamError> {
    let (namespace, query) = take_namespace(query)?;
    if let Some(namespace) = namespace {
        let registry = namespace.parse().map_err(|_| UpstreamError::Registry(shorten(&namespace)))?;
        return Ok(Upstream { registry, repository: repository(name)?, query });
    }
    if let Some((first, rest)) = name.split_once('/')
        && looks_like_host(first)
    {
        let registry = first.parse().map_err(|_| UpstreamError::Registry(shorten(first)))?;
        return Ok(Upstream { registry, repository: repository(rest)?, query });
    }
    Ok(Upstream { registry: default.clone(), repository: repository(name)?, query })
}

/// The same for a request to the registry itself, whose path and query are all its own.
///
/// # Errors
/// When the repository is malformed.
pub fn of_registry(registry: &RegistryName, name: &str, query: Option<&str>) -> Result<Upstream, UpstreamError> {
    if query.is_some_and(|query| query.len() > MAX_QUERY) {
        return Err(UpstreamError::TooLong);
    }
    let query = query.filter(|query| !query.is_empty()).map(str::to_owned);
    Ok(Upstream { registry: registry.clone(), repository: repository(name)?, query })
}

/// The rule of image references everywhere: a first component with a dot or a port, or `localhost`,
/// is a host.
fn looks_like_host(component: &str) -> bool {
    component == "localhost" || component.contains(['.', ':'])
}

fn repository(name: &str) -> Result<RepositoryName, UpstreamError> {
    name.parse().map_err(|_| UpstreamError::Repository(shorten(name)))
}

/// Error texts repeat no more of the input than helps.
fn shorten(text: &str) -> String {
    text.chars().take(80).collect()
}

/// Takes `ns` out of a query; everything else stays as it was written.
fn take_namespace(query: Option<&str>) -> Result<(Option<String>, Option<String>), UpstreamError> {
    let Some(query) = query else { return Ok((None, None)) };
    if query.len() > MAX_QUERY {
        return Err(UpstreamError::TooLong);
    }
    let mut namespace = None;
    let mut rest = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.strip_prefix("ns=") {
            Some(value) => {
                let decoded = percent_decode_str(value).decode_utf8();
                let value = decoded.map_err(|_| UpstreamError::Registry(shorten(value)))?;
                // Two different answers to "which registry" must not be resolved by guessing.
                if namespace.as_ref().is_some_and(|seen: &String| *seen != value) {
                    return Err(UpstreamError::Registry(shorten(&value)));
                }
                namespace = Some(value.into_owned());
            }
            None => rest.push(pair),
        }
    }
    Ok((namespace, (!rest.is_empty()).then(|| rest.join("&"))))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn docker_hub() -> RegistryName {
        "docker.io".parse().unwrap()
    }

    fn resolved(name: &str, query: Option<&str>) -> (String, String, Option<String>) {
        let upstream = resolve(name, query, &docker_hub()).unwrap();
        (upstream.registry.to_string(), upstream.repository.to_string(), upstream.query)
    }

    #[test]
    fn each_runtime_is_understood() {
        let case = |name: &str, query: Option<&str>, registry: &str, repository: &str, rest: Option<&str>| {
            assert_eq!(
                resolved(name, query),
                (registry.to_owned(), repository.to_owned(), rest.map(str::to_owned)),
                "{name}?{query:?}"
            );
        };
        case("library/debian", None, "docker.io", "library/debian", None);
        case("library/debian", Some("ns=docker.io"), "docker.io", "library/debian", None);
        case("a/b", Some("ns=ghcr.io&n=5&last=x%20y"), "ghcr.io", "a/b", Some("n=5&last=x%20y"));
        case("a/b", Some("n=5&ns=host%3A5000"), "host:5000", "a/b", Some("n=5"));
        case("docker.io/library/debian", None, "docker.io", "library/debian", None);
        case("localhost:5000/a", Some("n=1"), "localhost:5000", "a", Some("n=1"));
        case("localhost/a", None, "localhost", "a", None);
        case("quay.io/a/b/c", None, "quay.io", "a/b/c", None);
        // With a namespace the name is complete: dots in it are the repository's own.
        case("my.team/app", Some("ns=quay.io"), "quay.io", "my.team/app", None);
    }

    #[test]
    fn refuses_what_is_malformed() {
        for (name, query) in [
            ("a", Some("ns=")),
            ("a", Some("ns=../etc")),
            ("a", Some("ns=a/b")),
            ("a", Some("ns=user@host")),
            ("a", Some("ns=%ff")),
            ("a", Some("ns=docker.io&ns=evil.example")),
            ("../a", None),
            ("a//b", None),
            ("A", None),
            ("", None),
            ("docker.io/", None),
            ("a/../b", None),
        ] {
            assert!(resolve(name, query, &docker_hub()).is_err(), "{name}?{query:?}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(name in ".{0,100}", query in proptest::option::of(".{0,100}")) {
            let _ = resolve(&name, query.as_deref(), &docker_hub());
        }

        #[test]
        fn the_rest_of_a_query_is_kept(before in "[a-z]=[a-z0-9%]{0,5}", after in "[a-z]=[a-z0-9%]{0,5}") {
            let query = format!("{before}&ns=ghcr.io&{after}");
            let upstream = resolve("a", Some(&query), &docker_hub()).unwrap();
            prop_assert_eq!(upstream.query, Some(format!("{before}&{after}")));
        }
    }
}
