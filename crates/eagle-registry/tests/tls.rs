//! Registries over TLS: verified by default, with authorities of their own where configured.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use common::{Canned, client, read_blob, secure, secure_for};
use eagle_registry::{
    Caller, OriginError, Registries, RegistryConfig, Secret,
    embedded::{Access, Fault, FaultRule, FaultTarget, User},
};

const ANYONE: Caller = Caller::anonymous();

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

#[tokio::test]
async fn a_client_certificate_that_is_replaced_is_shown_from_then_on() {
    let made = || rcgen::generate_simple_self_signed(vec!["eagle.test".to_owned()]).unwrap();
    let (former, next) = (made(), made());
    let directory = tempfile::tempdir().unwrap();
    let (certificate, key) = (directory.path().join("client.pem"), directory.path().join("client-key.pem"));
    let write = |made: &rcgen::CertifiedKey<rcgen::KeyPair>| {
        std::fs::write(&certificate, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    };
    write(&former);
    // Whom the registry lets in is the next one alone.
    let (origin, ca_file, _origin) = secure_for(Access::Open, Some(next.cert.der().clone())).await;
    let image = &origin.images()[0];
    let digest = image.layers[0].digest;
    let registry = client(RegistryConfig {
        ca_file: Some(ca_file),
        client_cert_file: Some(certificate.clone()),
        client_key_file: Some(key.clone()),
        ..origin.client_config()
    });
    let error = registry.blob(&image.repository, digest, 0, &ANYONE).await.unwrap_err();
    assert!(matches!(error, OriginError::Unreachable { .. }), "{error}");
    // One file before the other: what does not belong together is not used.
    std::fs::write(&certificate, next.cert.pem()).unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    assert!(registry.blob(&image.repository, digest, 0, &ANYONE).await.is_err());
    write(&next);
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    read_blob(registry.blob(&image.repository, digest, 0, &ANYONE).await.unwrap(), digest).await;
    // And a file that has gone leaves what was read.
    std::fs::remove_file(&key).unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    read_blob(registry.blob(&image.repository, digest, 0, &ANYONE).await.unwrap(), digest).await;
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_the_registry_alone() {
    let made = rcgen::generate_simple_self_signed(vec!["eagle.test".to_owned()]).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (certificate, key) = (directory.path().join("client.pem"), directory.path().join("client-key.pem"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let authority = made.cert.der().clone();
    let (origin, ca_file, _origin) = secure_for(Access::Open, Some(authority.clone())).await;
    let image = &origin.images()[0];
    let digest = image.layers[0].digest;
    let without = RegistryConfig { ca_file: Some(ca_file.clone()), ..origin.client_config() };
    let error = client(without.clone()).blob(&image.repository, digest, 0, &ANYONE).await.unwrap_err();
    assert!(matches!(error, OriginError::Unreachable { .. }), "{error}");
    let with = RegistryConfig { client_cert_file: Some(certificate.clone()), client_key_file: Some(key), ..without };
    let registry = client(with.clone());
    read_blob(registry.blob(&image.repository, digest, 0, &ANYONE).await.unwrap(), digest).await;
    // Another host that wants one gets none, though its authority is trusted.
    let (other, other_ca, _other) = secure_for(Access::Open, Some(authority)).await;
    let both = directory.path().join("both.pem");
    let text = std::fs::read_to_string(ca_file).unwrap() + &std::fs::read_to_string(other_ca).unwrap();
    std::fs::write(&both, text).unwrap();
    let away = Fault::Redirect(format!("{}v2/demo/app/blobs/{digest}", other.url()));
    origin.set_faults(vec![FaultRule::always(FaultTarget::Blobs, away)]);
    let registry = client(RegistryConfig { ca_file: Some(both), ..with.clone() });
    let error = registry.blob(&image.repository, digest, 0, &ANYONE).await.unwrap_err();
    assert!(matches!(error, OriginError::Unreachable { .. }), "{error}");
    assert_eq!(other.stats().requests, 0);
    // A key that belongs to another certificate is an error at the start.
    let foreign = rcgen::generate_simple_self_signed(vec!["x".to_owned()]).unwrap();
    let wrong = directory.path().join("wrong.pem");
    std::fs::write(&wrong, foreign.signing_key.serialize_pem()).unwrap();
    let config = RegistryConfig { client_key_file: Some(wrong), ..with };
    let error = Registries::new(vec![config]).unwrap_err().to_string();
    assert!(error.contains("client_cert_file") && !error.contains("PRIVATE"), "{error}");
}
