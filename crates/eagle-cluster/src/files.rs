//! Certificates from files: the usual mutual TLS.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::Duration,
};

use rustls::{
    RootCertStore,
    client::WebPkiServerVerifier,
    crypto::aws_lc_rs::{Ticketer, default_provider},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio::io::AsyncReadExt as _;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::tls::{self, Generation, Inner, TlsError, Trust};

/// How often the files are looked at: they change every few weeks, long before what they replace expires, and changes of
/// files behind the links that Kubernetes mounts are seen by reading and by little else.
const LOOK: Duration = Duration::from_secs(5);
/// Largest file, bytes: hundreds of certificates.
const MAX_FILE: u64 = 1 << 20;
/// Room that reading to the end wants beyond a file's length: 32 bytes are what it looks for the end with.
const READ_AHEAD: usize = 32;

/// Where the certificates are, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// This node's certificate, and those between it and the authority. It has the name that other nodes reach the node by,
    /// and is good for servers and for clients.
    pub certificate: PathBuf,
    /// The certificate's private key.
    pub key: PathBuf,
    /// The authorities whose certificates make a member. Whoever has a certificate of theirs is one.
    pub ca: PathBuf,
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct FilesError {
    path: PathBuf,
    problem: String,
}

/// The three files as they were read. The private key among them is wiped from memory with it.
#[derive(PartialEq, Eq)]
pub(crate) struct Contents {
    pub(crate) files: TlsFiles,
    pub(crate) certificate: Vec<u8>,
    pub(crate) key: Zeroizing<Vec<u8>>,
    pub(crate) ca: Vec<u8>,
}

impl TlsFiles {
    pub(crate) async fn read(&self) -> Result<Contents, FilesError> {
        Ok(Contents {
            files: self.clone(),
            certificate: read(&self.certificate).await?.to_vec(),
            key: read(&self.key).await?,
            ca: read(&self.ca).await?.to_vec(),
        })
    }
}

async fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, FilesError> {
    let reading = async {
        let file = tokio::fs::File::open(path).await?;
        // With room for the end of the file from the first: what grows moves, and leaves what it was behind.
        let length = usize::try_from(file.metadata().await?.len().min(MAX_FILE)).unwrap_or_default();
        let mut content = Zeroizing::new(Vec::with_capacity(length + READ_AHEAD));
        file.take(MAX_FILE + 1).read_to_end(&mut content).await?;
        if content.len() as u64 > MAX_FILE {
            return Err(io::Error::other(format!("it has more than {MAX_FILE} bytes")));
        }
        Ok(content)
    };
    let failed = |error: io::Error| FilesError { path: path.to_owned(), problem: error.to_string() };
    reading.await.map_err(failed)
}

impl Contents {
    /// What follows from the files. Connections under the authorities of `before` go on when these are the same.
    pub(crate) fn generation(&self, number: u64, before: Option<&Trust>) -> Result<Generation, TlsError> {
        let problem = |path: &Path, problem: String| FilesError { path: path.to_owned(), problem };
        let certificates = |path: &Path, pem: &[u8]| {
            let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
            match found {
                Err(error) => Err(problem(path, format!("it is not PEM: {error}"))),
                Ok(found) if found.is_empty() => Err(problem(path, "there is no certificate in it".to_owned())),
                Ok(found) => Ok(found),
            }
        };
        let provider = Arc::new(default_provider());
        let chain = certificates(&self.files.certificate, &self.certificate)?;
        let authorities = certificates(&self.files.ca, &self.ca)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|error| problem(&self.files.key, format!("there is no private key in it: {error}")))?;
        let mut roots = RootCertStore::empty();
        for authority in &authorities {
            roots.add(authority.clone()).map_err(|error| problem(&self.files.ca, error.to_string()))?;
        }
        let roots = Arc::new(roots);
        let unusable = |error: rustls::Error| {
            problem(&self.files.certificate, format!("with the key in {}: {error}", self.files.key.display()))
        };
        let servers = WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider)).build()?;
        let client = tls::client_config(&provider, servers)?
            .with_client_auth_cert(chain.clone(), key.clone_key())
            .map_err(unusable)?;
        let mut server = tls::server_builder(&provider, roots)?.with_single_cert(chain, key).map_err(unusable)?;
        server.ticketer = Ticketer::new()?;
        let gone = match before {
            Some(Trust::Files { authorities: before, gone }) if *before == authorities => gone.clone(),
            _ => CancellationToken::new(),
        };
        let trust = Trust::Files { authorities, gone };
        Ok(Generation { number, server: Arc::new(server), client: Arc::new(client), trust })
    }
}

/// Looks at the files as long as anybody uses what came of them.
pub(crate) async fn watch(inner: Weak<Inner>, files: TlsFiles, mut contents: Contents) {
    let mut failing = false;
    loop {
        tokio::time::sleep(LOOK).await;
        let read = match files.read().await {
            Ok(read) if read == contents => continue,
            read => read.map_err(TlsError::from),
        };
        let Some(inner) = inner.upgrade() else { return };
        let current = inner.current();
        let next = read.and_then(|read| Ok((read.generation(current.number + 1, Some(&current.trust))?, read)));
        match next {
            Ok((generation, read)) => {
                let trusts_others = !generation.trust.has_authorities_of(&current.trust);
                inner.replace(generation);
                if trusts_others && let Trust::Files { gone, .. } = &current.trust {
                    // Whom the earlier authorities made members may be none any more: all prove it again.
                    gone.cancel();
                }
                tracing::info!(certificate = %files.certificate.display(), "certificates read again");
                (contents, failing) = (read, false);
            }
            // Files that are written one after the other do not fit together for a moment.
            Err(error) if !failing => {
                tracing::warn!(%error, "the changed certificates cannot be used; the earlier ones stay in use");
                failing = true;
            }
            Err(_) => {}
        }
    }
}
