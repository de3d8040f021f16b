//! Registries over TLS: verified by default, with authorities of their own where configured.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::{path::PathBuf, sync::Arc};

use common::{Canned, client, image, loopback, read_blob};
use eagle_registry::{
    Caller, EmbeddedRegistry, OriginError, Registries, RegistryConfig, Secret,
    embedded::{Access, EmbeddedConfig, Fault, FaultRule, FaultTarget, User},
};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

const ANYONE: Caller = Caller::anonymous();

/// A registry with a certificate that signs itself, and the file that makes a client trust it.
async fn secure(access: Access) -> (EmbeddedRegistry, PathBuf, tempfile::TempDir) {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ca.pem");
    std::fs::write(&file, made.cert.pem()).unwrap();
    let config =
        EmbeddedConfig { tls: Some(Arc::new(tls)), access, ..EmbeddedConfig::new(loopback(), vec![image(&[50_000])]) };
    (EmbeddedRegistry::start(config).await.unwrap(), file, directory)
}

#[tokio::test]
async fn an_unknown_authority_is_refused_and_a_configured_one_is_not() {
    let (origin, ca_file, _directory) = secure(Access::Open).await;
    let image = &origin.images()[0];
    let digest = image.layers[0].digest;
    assert_eq!(origin.url().scheme(), "https");
    let error = client(origin.client_config()).blob(&image.repository, digest, 0, &ANYONE).await.unwrap_err();
    assert!(matches!(&error, OriginError::Unreachable { reason, .. } if reason.contains("certificate")), "{error}");
    assert_eq!(origin.stats().requests, 0);
    let registry = client(RegistryConfig { ca_file: Some(ca_file), ..origin.client_config() });
    read_blob(registry.blob(&image.repository, digest, 0, &ANYONE).await.unwrap(), digest).await;
}

#[tokio::test]
async fn a_secure_registry_leads_nowhere_insecure() {
    let server = Canned::start(vec!["HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_owned()]).await;
    let (origin, ca_file, _directory) = secure(Access::Basic(vec![User::new("ann", "pw")])).await;
    let registry = client(RegistryConfig {
        ca_file: Some(ca_file),
        username: Some("ann".to_owned()),
        password: Some(Secret::new("pw")),
        ..origin.client_config()
    });
    let away = Fault::Redirect(format!("http://{}/", server.address));
    origin.set_faults(vec![FaultRule::always(FaultTarget::Blobs, away)]);
    let image = &origin.images()[0];
    let error = registry.blob(&image.repository, image.layers[0].digest, 0, &ANYONE).await.unwrap_err();
    assert!(error.to_string().contains("unencrypted"), "{error}");
    assert!(server.heads().is_empty());
}

#[tokio::test]
async fn authorities_that_cannot_be_read_are_errors_at_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let empty = directory.path().join("empty.pem");
    std::fs::write(&empty, "no certificate").unwrap();
    for file in [empty, directory.path().join("missing.pem")] {
        let config = RegistryConfig { ca_file: Some(file), ..RegistryConfig::new("a.test".parse().unwrap()) };
        assert!(Registries::new(vec![config]).is_err());
    }
    let twice = RegistryConfig::new("a.test".parse().unwrap());
    assert!(Registries::new(vec![twice.clone(), twice]).is_err());
}
