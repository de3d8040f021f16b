//! Clients in whose TLS the proxy answers: an authority that they trust, and a registry that has its name from nowhere else.

use std::{os::unix::fs::PermissionsExt, path::Path, sync::Arc};

use bytes::Bytes;
use eagle_proxy::{ProxyConfig, forward::authority};
use eagle_registry::{EmbeddedRegistry, RegistryConfig};
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tempfile::TempDir;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{Answer, DEADLINE, ProxyOptions, TestProxy, raw, registries};

/// The registry under a name that no machine has: what reaches it went through the proxy.
pub(crate) const HOST: &str = "registry.example";

/// An authority on disk, and a client that trusts it.
pub(crate) struct Authority {
    pub(crate) directory: TempDir,
    pub(crate) trusted: CertificateDer<'static>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let made = authority::create("Eagle test", &[HOST.parse().unwrap()]).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
        write(authority::CERTIFICATE_FILE, &made.certificate);
        write(authority::KEY_FILE, &made.key);
        let key = directory.path().join(authority::KEY_FILE);
        std::fs::set_permissions(key, std::fs::Permissions::from_mode(0o600)).unwrap();
        Self { directory, trusted: CertificateDer::from_pem_slice(made.certificate.as_bytes()).unwrap() }
    }

    pub(crate) fn configure(directory: &Path) -> impl FnOnce(&mut ProxyConfig) {
        let directory = directory.to_owned();
        move |config| config.forward.ca_dir = Some(directory)
    }

    pub(crate) async fn connect(&self, proxy: &TestProxy, alpn: &str) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.trusted.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        let stream = raw::connect(proxy.address, &format!("{HOST}:443")).await.unwrap();
        let name = ServerName::try_from(HOST).unwrap();
        timeout(DEADLINE, TlsConnector::from(Arc::new(tls)).connect(name, stream)).await.unwrap()
    }
}

/// How a proxy reaches an embedded registry under [`HOST`].
pub(crate) fn named(origin: &EmbeddedRegistry) -> ProxyOptions {
    let config = RegistryConfig { url: Some(origin.url()), ..RegistryConfig::new(HOST.parse().unwrap()) };
    ProxyOptions { registries: registries(vec![config]), ..ProxyOptions::new(origin) }
}

pub(crate) async fn ask(stream: TlsStream<TcpStream>, request: Request<Full<Bytes>>) -> Answer {
    let io = TokioIo::new(stream);
    let is_h2 = request.version() == http::Version::HTTP_2;
    let response = if is_h2 {
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(request).await.unwrap()
    } else {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(request).await.unwrap()
    };
    let (parts, body) = response.into_parts();
    let body = timeout(DEADLINE, body.collect()).await.unwrap().unwrap().to_bytes();
    Answer { status: parts.status, headers: parts.headers, body, broken: None }
}

pub(crate) fn get(version: http::Version, host: &str, path: &str) -> Request<Full<Bytes>> {
    let request = Request::builder().version(version);
    let request = match version {
        http::Version::HTTP_2 => request.uri(format!("https://{host}{path}")),
        _ => request.uri(path).header("host", host),
    };
    request.body(Full::default()).unwrap()
}
