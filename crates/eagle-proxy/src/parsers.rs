//! What runtimes and registries write in headers and targets, and what files of certificates hold, as functions of it alone: for the fuzz
//! targets (`eagle-fuzz`), which have no connection to receive it on.

use eagle_registry::{Caller, RegistryName, RepositoryName};
use http::{HeaderMap, HeaderValue, header, uri::Authority};

use crate::{
    config::Login,
    forward,
    login::{self, Gate, Guest},
    path::Resource,
    service::links::List,
};

/// Host, port and registry of a target of `CONNECT`.
///
/// # Errors
/// Where it is none.
pub fn connect_target(authority: &Authority) -> Result<(String, u16, RegistryName), String> {
    forward::connect_target(authority)
}

/// A `Link` of a registry as a client gets it, who asked for the tags of `name` with this query.
pub fn link(name: &str, query: Option<&str>, repository: &RepositoryName, link: &HeaderValue) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::LINK, link.clone());
    if let Some(list) = List::of(name, &Resource::Tags, query) {
        list.lead_back(&mut headers, repository);
    }
    headers
}

/// Makes of the files of the forward proxy's authority what a proxy does with them when it starts.
///
/// # Errors
/// Where they are no authority.
pub fn authority(certificate: &str, key: &str) -> Result<(), String> {
    forward::authority::Certificates::new(certificate, key).map(drop).map_err(|error| error.to_string())
}

/// The token service of a proxy whose default registry is Docker Hub.
#[derive(Debug)]
pub struct Logins(Gate);

impl Logins {
    /// One with a key of its own; `None` when there is no randomness.
    pub fn new() -> Option<Self> {
        Gate::new(Login::Loopback, "docker.io".parse().ok()?).ok().map(Self)
    }

    /// Whom a form of a `POST` names, as `Authorization` of Basic authentication.
    pub fn posted(&self, form: &[u8]) -> Option<HeaderValue> {
        login::posted(form)?.authorization
    }

    /// The `Authorization` that comes of a form or query and of what its sender says of itself.
    pub fn token(&self, form: &[u8], authorization: Option<HeaderValue>) -> Option<HeaderValue> {
        HeaderValue::from_str(&self.0.grant(form, &Caller { authorization, ..Caller::anonymous() })?).ok()
    }

    /// What an `Authorization` stands for: the registry that it counts for and what is sent there; `None` when this service has not
    /// made it.
    pub fn known(&self, authorization: &HeaderValue) -> Option<(Option<RegistryName>, Option<HeaderValue>)> {
        let mut headers = HeaderMap::from_iter([(header::AUTHORIZATION, authorization.clone())]);
        match self.0.recognise(&mut headers) {
            Guest::Known(registry) => Some((registry, headers.remove(header::AUTHORIZATION))),
            Guest::Stranger | Guest::Expired => None,
        }
    }
}
