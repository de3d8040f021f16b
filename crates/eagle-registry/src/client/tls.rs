//! Which servers are believed over TLS, and who the client is to them.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use crate::config::{ConfigError, RegistryConfig};

/// A certificate with its chain, and its key.
#[derive(Debug)]
pub(crate) struct ClientIdentity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// The certificate authorities that the system trusts.
pub(crate) fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let problem = found.errors.first().map_or_else(|| "none found".to_owned(), ToString::to_string);
        tracing::warn!(problem, "no certificate authorities on this system: registries over https will fail");
    }
    roots
}

/// The system's authorities with those of the registry's `ca_file`.
///
/// # Errors
/// When the file cannot be read or holds no certificate.
pub(crate) fn roots(system: &RootCertStore, config: &RegistryConfig) -> Result<RootCertStore, ConfigError> {
    let mut roots = system.clone();
    if let Some(file) = &config.ca_file {
        let error = |reason| ConfigError::CaFile { name: config.name.clone(), file: file.clone(), reason };
        for certificate in certificates(file).map_err(error)? {
            roots.add(certificate).map_err(|problem| error(problem.to_string()))?;
        }
    }
    Ok(roots)
}

/// The registry's client certificate, when one is configured.
///
/// # Errors
/// When a file cannot be read, or certificate and key do not belong together.
pub(crate) fn identity(config: &RegistryConfig) -> Result<Option<ClientIdentity>, ConfigError> {
    let (Some(certificate), Some(key)) = (&config.client_cert_file, &config.client_key_file) else { return Ok(None) };
    let error = |reason: String| ConfigError::ClientCertificate {
        name: config.name.clone(),
        file: PathBuf::clone(certificate),
        reason,
    };
    let chain = certificates(certificate).map_err(error)?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(|problem| error(format!("{}: {problem}", key.display())))?;
    let identity = ClientIdentity { chain, key };
    // Whether the two belong together shows when they are put to use.
    client_config(RootCertStore::empty(), Some(&identity)).map_err(|problem| error(problem.to_string()))?;
    Ok(Some(identity))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = CertificateDer::pem_file_iter(file).map_err(|error| error.to_string())?;
    let found = found.collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
    if found.is_empty() { Err("it holds no certificate".to_owned()) } else { Ok(found) }
}

/// TLS 1.2 and 1.3, verified against `roots`.
pub(crate) fn client_config(
    roots: RootCertStore,
    identity: Option<&ClientIdentity>,
) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    match identity {
        Some(identity) => builder.with_client_auth_cert(identity.chain.clone(), identity.key.clone_key()),
        None => Ok(builder.with_no_client_auth()),
    }
}
