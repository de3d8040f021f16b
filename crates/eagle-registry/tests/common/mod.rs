//! Helpers of the integration tests.
#![allow(dead_code, reason = "every test binary uses some of them")]

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use eagle_core::Digest;
use eagle_registry::{
    BlobBody, Body, Caller, EmbeddedRegistry, OriginError, Registries, Registry, RegistryConfig,
    embedded::{Access, EmbeddedConfig, GeneratedImage},
};
use http::HeaderValue;
use http_body_util::BodyExt as _;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

pub(crate) fn image(layers: &[u64]) -> GeneratedImage {
    GeneratedImage {
        repository: "demo/app".parse().unwrap(),
        tag: "v1".parse().unwrap(),
        layers: layers.to_vec(),
        seed: 42,
        config_size: 0,
    }
}

pub(crate) fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

pub(crate) async fn embedded(layers: &[u64], access: Access) -> EmbeddedRegistry {
    let config = EmbeddedConfig { access, ..EmbeddedConfig::new(loopback(), vec![image(layers)]) };
    EmbeddedRegistry::start(config).await.unwrap()
}

/// A registry with a certificate that signs itself, and the file that makes a client trust it.
pub(crate) async fn secure(access: Access) -> (EmbeddedRegistry, PathBuf, tempfile::TempDir) {
    secure_for(access, None).await
}

/// The same; only clients with a certificate of this authority are let in.
pub(crate) async fn secure_for(
    access: Access,
    clients: Option<CertificateDer<'static>>,
) -> (EmbeddedRegistry, PathBuf, tempfile::TempDir) {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = match clients {
        None => WebPkiClientVerifier::no_client_auth(),
        Some(authority) => {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(authority).unwrap();
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().unwrap()
        }
    };
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ca.pem");
    std::fs::write(&file, made.cert.pem()).unwrap();
    let config =
        EmbeddedConfig { tls: Some(Arc::new(tls)), access, ..EmbeddedConfig::new(loopback(), vec![image(&[50_000])]) };
    (EmbeddedRegistry::start(config).await.unwrap(), file, directory)
}

/// A client with short deadlines that asks once.
pub(crate) fn client(config: RegistryConfig) -> Arc<Registry> {
    let config = RegistryConfig {
        stall_timeout: Duration::from_millis(300),
        connect_timeout: Duration::from_secs(2),
        response_timeout: Duration::from_secs(2),
        retries: 0,
        ..config
    };
    let name = config.name.clone();
    Registries::new(vec![config]).unwrap().get(&name)
}

pub(crate) fn caller(authorization: &str) -> Caller {
    Caller { authorization: Some(HeaderValue::from_str(authorization).unwrap()), ..Caller::anonymous() }
}

pub(crate) async fn read(body: Body) -> Result<Bytes, OriginError> {
    body.collect().await.map(http_body_util::Collected::to_bytes)
}

/// Reads a blob whole and checks it.
pub(crate) async fn read_blob(blob: BlobBody, digest: Digest) {
    assert_eq!(blob.start, 0);
    let size = blob.size;
    let bytes = read(blob.body).await.unwrap();
    assert_eq!(bytes.len() as u64, size);
    assert_eq!(Digest::of(&bytes), digest);
}

/// A server that gives each connection one answer, byte for byte, and keeps the requests.
pub(crate) struct Canned {
    pub(crate) address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Canned {
    /// Answers the n-th connection with the n-th answer, and all later ones with the last.
    pub(crate) async fn start(answers: Vec<String>) -> Self {
        let listener = TcpListener::bind(loopback()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        let task = tokio::spawn(async move {
            for turn in 0.. {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => request.push(byte),
                        Err(_) => break,
                    }
                }
                let head = String::from_utf8(request.clone()).unwrap().to_lowercase();
                let length = head.split_once("content-length: ").and_then(|(_, rest)| rest.split("\r\n").next());
                let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
                let _ = stream.read_exact(&mut body).await;
                request.extend(body);
                seen.lock().unwrap().push(String::from_utf8(request).unwrap());
                let answer = answers.get(turn).or_else(|| answers.last()).unwrap();
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        Self { address, requests, task }
    }

    pub(crate) fn config(&self) -> RegistryConfig {
        RegistryConfig {
            url: Some(format!("http://{}", self.address).parse().unwrap()),
            ..RegistryConfig::new("canned.test".parse().unwrap())
        }
    }

    /// The requests so far.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    /// The same in lower case.
    pub(crate) fn heads(&self) -> Vec<String> {
        self.requests().iter().map(|request| request.to_lowercase()).collect()
    }
}

impl Drop for Canned {
    fn drop(&mut self) {
        self.task.abort();
    }
}
