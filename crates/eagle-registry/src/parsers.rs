//! What registries and files of credentials say, as functions of their bytes alone: for the fuzz targets (`eagle-fuzz`), which
//! have no connection to receive them on.

use std::path::Path;

use http::{HeaderMap, HeaderValue, header};
use tokio::time::Instant;

use crate::{
    client::{Wanted, read_token, wanted},
    credentials,
    name::RegistryName,
};

/// What `WWW-Authenticate` headers ask for: realm, service and scope of a token, nothing for a password; `None` for neither.
pub fn challenge(values: &[HeaderValue]) -> Option<Vec<String>> {
    let mut headers = HeaderMap::new();
    for value in values {
        headers.append(header::WWW_AUTHENTICATE, value.clone());
    }
    Some(match wanted(&headers)? {
        Wanted::Basic => Vec::new(),
        Wanted::Bearer { realm, service, scope } => [Some(realm), service, scope].into_iter().flatten().collect(),
    })
}

/// The `Authorization` that the answer of a token service comes to.
pub fn token(answer: &[u8]) -> Option<HeaderValue> {
    read_token(answer, Instant::now()).map(|token| token.value)
}

/// The registries for which docker's `config.json` has credentials.
///
/// # Errors
/// Where it is no such file.
pub fn docker_config(text: &[u8]) -> Result<Vec<RegistryName>, String> {
    credentials::parse(text, Path::new("config.json")).map(|auths| auths.into_keys().collect())
}
