//! A registry behind nginx, with TLS under an authority of the site's own.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use super::{
    Scene,
    private::{Parts, pull_as},
};
use crate::{
    http,
    image::{REPOSITORY, TAG},
    process::{Process, wait_until},
    registry::free_address,
    setup,
};

const START_DEADLINE: Duration = Duration::from_secs(20);

/// Files of one authority, of a server, and of a client that it vouches for.
struct Certificates {
    authority: PathBuf,
    server: [PathBuf; 2],
    client: [PathBuf; 2],
}

impl Certificates {
    fn make(directory: &Path) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // With the same name as what it signs, OpenSSL would take that for self-signed.
        params.distinguished_name.push(DnType::CommonName, "authority of the scenarios");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let write = |name: &str, text: String| -> Result<PathBuf> {
            let file = directory.join(name);
            fs::write(&file, text)?;
            Ok(file)
        };
        let leaf = |name: &str, subject: &str| -> Result<[PathBuf; 2]> {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::new(vec![subject.to_owned()])?;
            params.distinguished_name.push(DnType::CommonName, subject);
            let certificate = params.signed_by(&key, &issuer)?;
            Ok([
                write(&format!("{name}.pem"), certificate.pem())?,
                write(&format!("{name}-key.pem"), key.serialize_pem())?,
            ])
        };
        Ok(Self {
            authority: write("authority.pem", issuer.pem())?,
            server: leaf("server", "127.0.0.1")?,
            client: leaf("client", "eagle.test")?,
        })
    }
}

/// nginx with one port for everybody and one for clients with a certificate.
struct Nginx {
    _process: Process,
    open: SocketAddr,
    closed: SocketAddr,
}

impl Nginx {
    fn start(directory: &Path, certificates: &Certificates, registry: SocketAddr) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let (open, closed) = (free_address()?, free_address()?);
        let Certificates { authority, server: [certificate, key], .. } = certificates;
        let site = |listen: SocketAddr, verify: &str| {
            format!(
                "server {{ listen {listen} ssl; ssl_certificate {}; ssl_certificate_key {}; {verify}\n\
                 location / {{ proxy_pass http://{registry}; proxy_set_header Host $http_host; proxy_buffering off; }} }}\n",
                certificate.display(),
                key.display()
            )
        };
        let verify = format!("ssl_client_certificate {}; ssl_verify_client on;", authority.display());
        let place = directory.display();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {place}/{kind};\n"))
            .concat();
        let config = format!(
            "daemon off; user root; worker_processes 1; pid {place}/nginx.pid; error_log stderr;\n\
             events {{}}\nhttp {{ access_log off;\n{temporary}{}{} }}\n",
            site(open, ""),
            site(closed, &verify)
        );
        let file = directory.join("nginx.conf");
        fs::write(&file, config)?;
        let program = setup::find("nginx").context("nginx is not installed")?;
        let mut command = Command::new(program);
        command.arg("-e").arg("stderr").arg("-c").arg(&file);
        let mut process = Process::start("nginx", &mut command, &directory.join("nginx.log"))?;
        wait_until("nginx to listen", START_DEADLINE, || {
            process.check_running()?;
            Ok(TcpStream::connect(open).and_then(|_| TcpStream::connect(closed)).ok())
        })?;
        Ok(Self { _process: process, open, closed })
    }
}

/// The image comes, or it does not and the answer says why.
fn pulls(scene: &Scene<'_>, name: &str, address: SocketAddr, keys: &str, problem: Option<&str>) -> Result<()> {
    let sections = format!("registries:\n  - name: docker.io\n    url: https://{address}\n    retries: 0\n{keys}");
    let parts = Parts::start(scene, name, &sections, 1)?;
    let Some(problem) = problem else { return pull_as(scene, parts.proxy(0), None).context(name.to_owned()) };
    let answer = http::request(parts.proxy(0), "GET", &format!("/v2/{REPOSITORY}/manifests/{TAG}?ns=docker.io"), &[])?;
    let (status, body) = (answer.status, String::from_utf8_lossy(&answer.bytes()?).into_owned());
    ensure!(status >= 400 && body.contains(problem), "{name}: {status} {body}");
    Ok(())
}

pub(super) fn tls_front(scene: &Scene<'_>) -> Result<()> {
    let registry = scene.registry()?;
    let certificates = Certificates::make(scene.directory)?;
    let nginx = Nginx::start(&scene.directory.join("nginx"), &certificates, registry.address())?;
    let authority = format!("    ca_file: {}\n", certificates.authority.display());
    let [certificate, key] = &certificates.client;
    let identity = format!("    client_cert_file: {}\n    client_key_file: {}\n", certificate.display(), key.display());
    pulls(scene, "unknown-authority", nginx.open, "", Some("certificate"))?;
    pulls(scene, "known-authority", nginx.open, &authority, None)?;
    registry.expect_each_once(scene.image.blobs())?;
    pulls(scene, "without-certificate", nginx.closed, &authority, Some("certificate"))?;
    pulls(scene, "with-certificate", nginx.closed, &(authority + &identity), None)
}
