//! Helpers of the integration tests.
#![allow(dead_code, reason = "every test binary uses some of them")]

use std::{
    net::SocketAddr,
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

/// A client with short deadlines.
pub(crate) fn client(config: RegistryConfig) -> Arc<Registry> {
    let config = RegistryConfig {
        stall_timeout: Duration::from_millis(300),
        connect_timeout: Duration::from_secs(2),
        response_timeout: Duration::from_secs(2),
        ..config
    };
    let name = config.name.clone();
    Registries::new(vec![config]).unwrap().get(&name)
}

pub(crate) fn caller(authorization: &str) -> Caller {
    Caller { authorization: Some(HeaderValue::from_str(authorization).unwrap()) }
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

/// A server that gives each connection one answer, byte for byte, and keeps the heads of the requests.
pub(crate) struct Canned {
    pub(crate) address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Canned {
    /// Answers the n-th connection with the n-th answer, and all later ones with the last.
    pub(crate) async fn start(answers: Vec<String>) -> Self {
        let listener = TcpListener::bind(loopback()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&heads);
        let task = tokio::spawn(async move {
            for turn in 0.. {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => break,
                    }
                }
                seen.lock().unwrap().push(String::from_utf8(head).unwrap());
                let answer = answers.get(turn).or_else(|| answers.last()).unwrap();
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        Self { address, heads, task }
    }

    pub(crate) fn config(&self) -> RegistryConfig {
        RegistryConfig {
            url: Some(format!("http://{}", self.address).parse().unwrap()),
            ..RegistryConfig::new("canned.test".parse().unwrap())
        }
    }

    /// The heads of the requests so far, in lower case.
    pub(crate) fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().iter().map(|head| head.to_lowercase()).collect()
    }
}

impl Drop for Canned {
    fn drop(&mut self) {
        self.task.abort();
    }
}
