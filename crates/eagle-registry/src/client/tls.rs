//! Which servers are believed over TLS, and who the client is to them.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustls::{
    ClientConfig, RootCertStore, SignatureScheme,
    client::{ResolvesClientCert, Resumption},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::time::Instant;

use crate::{
    config::{ConfigError, RegistryConfig},
    credentials::{Stamp, stamp},
};

/// How often the files of a certificate are looked at, at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A certificate with its chain, and its key, from files that are read again when they change.
#[derive(Debug)]
pub(crate) struct ClientIdentity {
    certificate: PathBuf,
    key: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    current: Arc<CertifiedKey>,
    stamps: [Stamp; 2],
    looked: Instant,
}

impl ClientIdentity {
    fn open(certificate: &Path, key: &Path) -> Result<Self, String> {
        let stamps = stamps(certificate, key)?;
        let current = Arc::new(certified_key(certificate, key)?);
        let state = Mutex::new(State { current, stamps, looked: Instant::now() });
        Ok(Self { certificate: certificate.to_owned(), key: key.to_owned(), state })
    }

    /// Reads the files again if they have changed. What makes no sense leaves what was known in place: one of the two may be
    /// replaced a moment before the other.
    pub(crate) async fn refresh(self: &Arc<Self>) {
        {
            let mut state = self.lock();
            if state.looked.elapsed() < LOOK_EVERY {
                return;
            }
            state.looked = Instant::now();
        }
        let this = Arc::clone(self);
        // A panic there would lose one look.
        let _ = tokio::task::spawn_blocking(move || this.look()).await;
    }

    fn look(&self) {
        let file = self.certificate.display();
        let stamps = match stamps(&self.certificate, &self.key) {
            Ok(stamps) if stamps == self.lock().stamps => return,
            Ok(stamps) => stamps,
            Err(reason) => {
                return tracing::warn!(%file, reason, "a client certificate cannot be read; the former one still counts");
            }
        };
        let result = certified_key(&self.certificate, &self.key);
        let mut state = self.lock();
        state.stamps = stamps;
        match result {
            Ok(current) => {
                state.current = Arc::new(current);
                tracing::info!(%file, "a client certificate was read again");
            }
            Err(reason) => {
                tracing::warn!(%file, reason, "a client certificate cannot be used; the former one still counts");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics between two halves of a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ResolvesClientCert for ClientIdentity {
    fn resolve(&self, _authorities: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.lock().current))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn stamps(certificate: &Path, key: &Path) -> Result<[Stamp; 2], String> {
    let of = |file: &Path| {
        std::fs::metadata(file).map(|found| stamp(&found)).map_err(|error| format!("{}: {error}", file.display()))
    };
    Ok([of(certificate)?, of(key)?])
}

/// Certificate and key, which belong together.
fn certified_key(certificate: &Path, key: &Path) -> Result<CertifiedKey, String> {
    let chain = certificates(certificate)?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(|problem| format!("{}: {problem}", key.display()))?;
    CertifiedKey::from_der(chain, key, &rustls::crypto::aws_lc_rs::default_provider())
        .map_err(|error| error.to_string())
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
pub(crate) fn identity(config: &RegistryConfig) -> Result<Option<Arc<ClientIdentity>>, ConfigError> {
    let (Some(certificate), Some(key)) = (&config.client_cert_file, &config.client_key_file) else { return Ok(None) };
    ClientIdentity::open(certificate, key).map(|identity| Some(Arc::new(identity))).map_err(|reason| {
        ConfigError::ClientCertificate { name: config.name.clone(), file: PathBuf::clone(certificate), reason }
    })
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = CertificateDer::pem_file_iter(file).map_err(|error| error.to_string())?;
    let found = found.collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
    if found.is_empty() { Err("it holds no certificate".to_owned()) } else { Ok(found) }
}

/// TLS 1.2 and 1.3, verified against `roots`.
pub(crate) fn client_config(
    roots: RootCertStore,
    identity: Option<&Arc<ClientIdentity>>,
) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    match identity {
        Some(identity) => {
            let identity: Arc<dyn ResolvesClientCert> = Arc::clone(identity) as _;
            let mut config = builder.with_client_cert_resolver(identity);
            // A session that goes on would be the former certificate's.
            config.resumption = Resumption::disabled();
            Ok(config)
        }
        None => Ok(builder.with_no_client_auth()),
    }
}
