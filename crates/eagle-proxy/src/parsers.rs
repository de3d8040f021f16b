//! What runtimes and registries write in headers and targets, and what files of certificates hold, as functions of it alone: for the fuzz
//! targets (`eagle-fuzz`), which have no connection to receive it on.

use eagle_registry::{RegistryName, RepositoryName};
use http::{HeaderMap, HeaderValue, uri::Authority};

use crate::{forward, path::Resource, service::links::List};

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
    headers.insert(http::header::LINK, link.clone());
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
