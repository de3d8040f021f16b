//! Members by certificates from files.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which the lint does not recognise as such")]

mod common;

use std::{fs, path::Path, time::Duration};

use common::{DEADLINE, Server, ask, client, key, member};
use eagle_cluster::{MemberTls, TlsFiles};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::time::{Instant, sleep};

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Writes a certificate for a host under one authority, and those who trust another.
fn write(directory: &Path, host: &str, issuer: &Authority, trusted: &Authority) -> TlsFiles {
    let files = TlsFiles {
        certificate: directory.join("tls.crt"),
        key: directory.join("tls.key"),
        ca: directory.join("ca.crt"),
    };
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec![host.to_owned()]).unwrap().signed_by(&key, issuer).unwrap();
    fs::write(&files.key, key.serialize_pem()).unwrap();
    fs::write(&files.certificate, certificate.pem()).unwrap();
    fs::write(&files.ca, trusted.pem()).unwrap();
    files
}

async fn member_of(host: &str, issuer: &Authority, trusted: &Authority) -> (MemberTls, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let files = write(directory.path(), host, issuer, trusted);
    (MemberTls::from_files(files).await.unwrap(), directory)
}

#[tokio::test]
async fn members_have_certificates_with_their_names() {
    let (ours, other) = (authority(), authority());
    let (tls, _files) = member_of("127.0.0.1", &ours, &ours).await;
    let server = Server::start(&tls).await;
    assert_eq!(ask(&client(&tls), &server.url("https")).await.as_deref(), Ok("Member"));
    assert_eq!(ask(&client(&tls), &server.url("http")).await.as_deref(), Ok("Member"));
    // In clear, by a cluster key, and by another authority.
    assert_eq!(ask(&client(&MemberTls::open()), &server.url("http")).await.as_deref(), Ok("Stranger"));
    let (by_key, _keys) = member(&[&key()]);
    assert!(ask(&client(&by_key), &server.url("http")).await.is_err());
    let (foreign, _files) = member_of("127.0.0.1", &other, &ours).await;
    let error = ask(&client(&foreign), &server.url("http")).await.unwrap_err();
    assert!(error.contains("does not take this node for a member"), "{error}");
    // A server under another name than it is reached by.
    let (elsewhere, _files) = member_of("elsewhere.test", &ours, &ours).await;
    let server = Server::start(&elsewhere).await;
    let error = ask(&client(&tls), &server.url("http")).await.unwrap_err();
    assert!(error.contains("its certificate is not accepted") && error.contains("cluster.tls"), "{error}");
}

#[tokio::test]
async fn what_is_wrong_with_files_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let (ours, other) = (authority(), authority());
    let files = write(directory.path(), "127.0.0.1", &ours, &ours);
    let error = async |files: &TlsFiles| MemberTls::from_files(files.clone()).await.unwrap_err().to_string();
    let missing = TlsFiles { ca: directory.path().join("missing"), ..files.clone() };
    assert!(error(&missing).await.contains("missing: No such file"), "{}", error(&missing).await);
    let swapped = TlsFiles { certificate: files.key.clone(), ..files.clone() };
    assert!(error(&swapped).await.contains("tls.key: there is no certificate in it"), "{}", error(&swapped).await);
    let swapped = TlsFiles { key: files.ca.clone(), ..files.clone() };
    assert!(error(&swapped).await.contains("ca.crt: there is no private key in it"), "{}", error(&swapped).await);
    let elsewhere = tempfile::tempdir().unwrap();
    let foreign = TlsFiles { key: write(elsewhere.path(), "x", &other, &other).key, ..files };
    assert!(error(&foreign).await.contains("tls.crt: with the key in"), "{}", error(&foreign).await);
}

#[tokio::test]
async fn files_are_read_again_when_they_change() {
    let (before, after) = (authority(), authority());
    let (tls, directory) = member_of("127.0.0.1", &before, &before).await;
    let server = Server::start(&tls).await;
    let old = client(&tls);
    assert_eq!(ask(&old, &server.url("http")).await.as_deref(), Ok("Member"));
    // Nothing useful: what was read stays in use.
    fs::write(directory.path().join("tls.crt"), "half a certific").unwrap();
    sleep(Duration::from_secs(6)).await;
    assert_eq!(ask(&client(&tls), &server.url("http")).await.as_deref(), Ok("Member"));
    write(directory.path(), "127.0.0.1", &after, &after);
    let (new, _files) = member_of("127.0.0.1", &after, &after).await;
    let begun = Instant::now();
    while let Err(error) = ask(&client(&new), &server.url("http")).await {
        assert!(begun.elapsed() < DEADLINE, "{error}");
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(ask(&old, &server.url("http")).await.as_deref(), Ok("Member"), "with the new certificates");
    let (gone, _files) = member_of("127.0.0.1", &before, &before).await;
    assert!(ask(&client(&gone), &server.url("http")).await.is_err());
}
