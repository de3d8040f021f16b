//! Docker Hub, as far as runtimes can tell: Docker Distribution under the name `registry-1.docker.io`, over TLS, with an
//! authority of its own. The same under the name `ghcr.io`.
//!
//! It shows what runtimes do on their own, when no mirror answers. The namespaces of the scenarios have only a loopback
//! interface, so nothing reaches the real one.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use serde_json::json;

use crate::{
    process::succeed,
    registry::{Accesses, Registry},
};

/// The host that runtimes ask for images of `docker.io`, and another registry that everybody knows.
const HOSTS: [&str; 2] = ["registry-1.docker.io", "ghcr.io"];
const HOSTS_FILE: &str = "/etc/hosts";
const COMMAND_DEADLINE: Duration = Duration::from_secs(10);

/// A registry that answers to Docker Hub's name, for as long as it lives.
#[derive(Debug)]
pub(crate) struct Hub {
    registry: Registry,
    authority: PathBuf,
    _name: Name,
}

impl Hub {
    pub(crate) fn start(directory: &Path, storage: &Path) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let (authority, certificate, key) = certificates()?;
        let file = |name: &str, text: &str| -> Result<PathBuf> {
            let path = directory.join(name);
            fs::write(&path, text)?;
            Ok(path)
        };
        let authority = file("authority.pem", &authority)?;
        let tls = json!({ "certificate": file("hub.pem", &certificate)?, "key": file("hub.key", &key)? });
        // The namespace has this port to itself.
        let address = SocketAddr::from(([127, 0, 0, 1], 443));
        let http = json!({ "addr": address.to_string(), "secret": "only for the scenarios", "tls": tls });
        let registry = Registry::start_at(directory, storage, address, json!({ "http": http }))?;
        Ok(Self { registry, authority, _name: Name::take(directory)? })
    }

    /// The file with its authority.
    pub(crate) fn authority(&self) -> &Path {
        &self.authority
    }

    /// What a program has to have in its environment to believe this Hub: Go reads authorities from there.
    pub(crate) fn trust(&self) -> Environment {
        vec![("SSL_CERT_FILE", self.authority.display().to_string())]
    }

    pub(crate) fn accesses(&self) -> Result<Accesses> {
        self.registry.accesses()
    }
}

/// Variables for a program.
pub(crate) type Environment = Vec<(&'static str, String)>;

/// `/etc/hosts` of this mount namespace, in which Docker Hub is this machine.
#[derive(Debug)]
struct Name;

impl Name {
    fn take(directory: &Path) -> Result<Self> {
        let file = directory.join("hosts");
        fs::write(&file, format!("127.0.0.1 localhost\n127.0.0.1 {}\n", HOSTS.join(" ")))?;
        succeed(Command::new("mount").arg("--bind").arg(&file).arg(HOSTS_FILE), COMMAND_DEADLINE)
            .context("cannot give Docker Hub's name to this machine")?;
        Ok(Self)
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        // Fails only where the namespace ends anyhow.
        let _ = succeed(Command::new("umount").arg(HOSTS_FILE), COMMAND_DEADLINE);
    }
}

/// An authority, a certificate for [`HOSTS`] under it, and its key, as PEM.
fn certificates() -> Result<(String, String, String)> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority_key = KeyPair::generate()?;
    let authority = params.self_signed(&authority_key)?.pem();
    let issuer = Issuer::new(params, authority_key);
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(HOSTS.map(str::to_owned))?.signed_by(&key, &issuer)?;
    Ok((authority, certificate.pem(), key.serialize_pem()))
}
