//! The certificate authority of an intercepting proxy, and the certificates that it signs on the fly.

mod key;

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    num::NonZeroUsize,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use eagle_registry::RegistryName;
use lru::LruCache;
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyUsagePurpose, NameConstraints,
};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    sign::{CertifiedKey, SingleCertAndKey},
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use time::OffsetDateTime;
use tokio::time::Instant;
use zeroize::Zeroizing;

use self::key::WipedKey;

/// Name of the authority's certificate in its directory.
pub const CERTIFICATE_FILE: &str = "ca.pem";
/// Name of the authority's key in its directory.
pub const KEY_FILE: &str = "ca.key";
/// How long an authority is valid: replacing it means a new trust setting on every machine.
const AUTHORITY_DAYS: i64 = 5 * 365;
/// How long a certificate for a registry is valid. Runtimes meet it for the length of a connection.
const VALID: Duration = Duration::from_secs(7 * 24 * 3600);
/// Clocks of a machine and its containers, or of two machines, may differ by this much.
const SKEW: Duration = Duration::from_secs(3600);
/// Certificates kept: a machine pulls from a handful of registries.
const MAX_CERTIFICATES: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");
/// Largest file of an authority, bytes: the key has 240, one of RSA with 8192 bits 6,400.
const MAX_FILE: u64 = 64 << 10;
/// Room that reading to the end wants beyond a file's length: the standard library looks for the end with 32 bytes.
const READ_AHEAD: usize = 32;

/// Why there is no authority, or no certificate.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file cannot be read.
    #[error("{file}: {source}; `eagle ca init` makes an authority")]
    Read {
        /// The file.
        file: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// Others could read the key, and with it pass for any registry.
    #[error("{0} can be read by others than its owner; run: chmod 600 {0}")]
    Exposed(String),
    /// A file holds something else, or something cannot be signed.
    #[error("the certificate authority cannot be used: {0}")]
    Unusable(String),
}

fn unusable(error: impl fmt::Display) -> AuthorityError {
    AuthorityError::Unusable(error.to_string())
}

/// Refuses a subject at which rcgen, which writes it into every certificate that is signed, would panic: one with an empty part, or with a type that is no
/// object identifier (X.660: the first number is 0, 1 or 2, and below 0 and 1 the second is at most 39).
fn check_name(authority: &CertificateDer<'_>) -> Result<(), AuthorityError> {
    let bad = |_| unusable(format!("{CERTIFICATE_FILE} is no certificate that can be read"));
    let (_, certificate) = x509_parser::parse_x509_certificate(authority).map_err(bad)?;
    for part in certificate.subject().iter() {
        let is_type = |arcs: Vec<u64>| matches!(arcs[..], [0 | 1, 0..=39, ..] | [2, _, ..]);
        let types_are =
            part.iter().all(|attribute| attribute.attr_type().iter().is_some_and(|arcs| is_type(arcs.collect())));
        if part.iter().next().is_none() || !types_are {
            return Err(unusable(format!("the subject of {CERTIFICATE_FILE} is ill-formed")));
        }
    }
    Ok(())
}

/// A new authority, as PEM.
pub struct NewAuthority {
    /// What runtimes are told to trust.
    pub certificate: String,
    /// What only the proxy may read. It is wiped from memory with this.
    pub key: Zeroizing<String>,
}

impl fmt::Debug for NewAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewAuthority").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// Makes an authority. With `registries` it can sign for their hosts and for nobody else, which everyone who
/// trusts it can rely on (RFC 5280 section 4.2.1.10).
///
/// # Errors
/// When the name or a registry cannot stand in a certificate.
pub fn create(name: &str, registries: &[RegistryName]) -> Result<NewAuthority, AuthorityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = OffsetDateTime::now_utc();
    params.not_before = now - SKEW;
    params.not_after = now + time::Duration::days(AUTHORITY_DAYS);
    if !registries.is_empty() {
        let permitted_subtrees = registries.iter().map(subtree).collect();
        params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() });
    }
    let key = WipedKey::generate().map_err(unusable)?;
    let certificate = params.self_signed(&key).map_err(unusable)?;
    Ok(NewAuthority { certificate: certificate.pem(), key: key.to_pem() })
}

/// Reads a file of an authority into one place, which is wiped.
fn read(path: &Path) -> Result<Zeroizing<String>, AuthorityError> {
    let read = || {
        let file = File::open(path)?;
        // With room for the end of the file from the first, or the text would move and leave what it was behind.
        let length = file.metadata()?.len().min(MAX_FILE);
        let mut text = Zeroizing::new(String::with_capacity(usize::try_from(length).unwrap_or_default() + READ_AHEAD));
        file.take(MAX_FILE + 1).read_to_string(&mut text)?;
        if text.len() as u64 > MAX_FILE {
            return Err(io::Error::other(format!("it has more than {MAX_FILE} bytes")));
        }
        Ok(text)
    };
    read().map_err(|source| AuthorityError::Read { file: path.display().to_string(), source })
}

/// The host of a registry, as clients of it name it in TLS.
fn subtree(registry: &RegistryName) -> GeneralSubtree {
    let name = if registry.is_docker_hub() { "registry-1.docker.io" } else { registry.as_str() };
    let host = match name.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => name,
    };
    match host.trim_start_matches('[').trim_end_matches(']').parse() {
        Ok(address) => {
            GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(address, if address.is_ipv4() { 32 } else { 128 }))
        }
        Err(_) => GeneralSubtree::DnsName(host.to_owned()),
    }
}

/// Signs certificates for the hosts of registries, and keeps them.
pub struct Certificates {
    issuer: Issuer<'static, WipedKey>,
    authority: CertificateDer<'static>,
    /// One for all hosts: it never leaves the process.
    key: WipedKey,
    /// The same for TLS.
    tls_key: Arc<dyn rustls::sign::SigningKey>,
    made: Mutex<LruCache<String, (Arc<ServerConfig>, Instant)>>,
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").finish_non_exhaustive()
    }
}

impl Certificates {
    /// Reads the authority in a directory. Reads files, so it belongs to the start of a process.
    ///
    /// # Errors
    /// When a file is not there, is of another kind, or the key is not kept from others.
    pub fn load(directory: &Path) -> Result<Self, AuthorityError> {
        let certificate = read(&directory.join(CERTIFICATE_FILE))?;
        let key_file = directory.join(KEY_FILE);
        let key = read(&key_file)?;
        let mode = std::fs::metadata(&key_file).map(|metadata| metadata.permissions().mode());
        if mode.is_ok_and(|mode| mode & 0o077 != 0) {
            return Err(AuthorityError::Exposed(key_file.display().to_string()));
        }
        Self::new(&certificate, &key)
    }

    /// The authority of these two files' contents.
    ///
    /// # Errors
    /// As [`Certificates::load`].
    pub(crate) fn new(certificate: &str, key: &str) -> Result<Self, AuthorityError> {
        // Errors about a key must not quote it.
        let key = WipedKey::from_pem(key).ok_or_else(|| unusable(format!("{KEY_FILE} is no private key in PEM")))?;
        let authority = CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(unusable)?;
        check_name(&authority)?;
        let issuer = Issuer::from_ca_cert_der(&authority, key).map_err(unusable)?;
        let key = WipedKey::generate().map_err(unusable)?;
        let tls_key = key.for_tls().map_err(unusable)?;
        let this = Self { issuer, authority, key, tls_key, made: Mutex::new(LruCache::new(MAX_CERTIFICATES)) };
        // What cannot be used should be known at the start and not at the first pull.
        this.sign("localhost").map(|_| this)
    }

    /// The TLS settings of a server that clients take for this host.
    ///
    /// # Errors
    /// When the host cannot stand in a certificate.
    pub(super) fn server(&self, host: &str) -> Result<Arc<ServerConfig>, AuthorityError> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((config, at)) = made.get(host)
            && at.elapsed() < VALID / 2
        {
            return Ok(Arc::clone(config));
        }
        let config = Arc::new(self.sign(host)?);
        made.put(host.to_owned(), (Arc::clone(&config), Instant::now()));
        Ok(config)
    }

    fn sign(&self, host: &str) -> Result<ServerConfig, AuthorityError> {
        let mut params = CertificateParams::new([host.to_owned()]).map_err(unusable)?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Eagle");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let now = OffsetDateTime::now_utc();
        params.not_before = now - SKEW;
        params.not_after = now + VALID;
        let certificate = params.signed_by(&self.key, &self.issuer).map_err(unusable)?;
        let chain = vec![certificate.der().clone(), self.authority.clone()];
        let certified = CertifiedKey::new(chain, Arc::clone(&self.tls_key));
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.map_err(unusable)?.with_no_client_auth();
        let mut config = config.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use rustls::{
        RootCertStore,
        client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    };
    use rustls_pki_types::{ServerName, UnixTime};

    use super::*;

    fn verified(authority: &NewAuthority, host: &str) -> Result<(), String> {
        let certificates = Certificates::new(&authority.certificate, &authority.key).unwrap();
        let mut params = CertificateParams::new([host.to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = params.signed_by(&certificates.key, &certificates.issuer).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificates.authority.clone()).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        let name = ServerName::try_from(host.to_owned()).unwrap();
        let result = verifier.verify_server_cert(leaf.der(), &[], &name, &[], UnixTime::now());
        result.map(drop).map_err(|error| error.to_string())
    }

    /// The fuzzer found it: rcgen reads this and panics when it writes it.
    #[test]
    fn a_subject_that_cannot_be_written_is_refused() {
        let NewAuthority { certificate, key, .. } = create("Eagle", &[]).unwrap();
        let mut der = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap().to_vec();
        // Object identifiers of X.520 attributes, 2.5.4.n, become 5.13.4.n.
        let places: Vec<_> = (0..der.len() - 4).filter(|at| der[*at..].starts_with(&[6, 3, 0x55, 4])).collect();
        assert!(!places.is_empty());
        places.iter().for_each(|at| der[at + 2] = 0xd5);
        let text = base64::prelude::BASE64_STANDARD.encode(der);
        let certificate = format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n");
        let error = Certificates::new(&certificate, &key).err().unwrap().to_string();
        assert!(error.contains("subject"), "{error}");
    }

    #[test]
    fn an_authority_signs_for_the_hosts_that_it_is_for() {
        let any = create("Eagle", &[]).unwrap();
        assert_eq!(verified(&any, "ghcr.io"), Ok(()));
        let names = ["docker.io", "ghcr.io", "mine.example:5000", "10.1.2.3:5000", "[fd00::1]:5000"];
        let some = create("Eagle", &names.map(|name| name.parse().unwrap())).unwrap();
        for host in ["registry-1.docker.io", "ghcr.io", "mine.example", "10.1.2.3", "fd00::1"] {
            assert_eq!(verified(&some, host), Ok(()), "{host}");
        }
        for host in ["quay.io", "10.1.2.4", "fd00::2"] {
            assert!(verified(&some, host).is_err(), "{host}");
        }
    }

    #[test]
    fn certificates_are_kept_and_bounded() {
        let authority = create("Eagle", &[]).unwrap();
        let certificates = Certificates::new(&authority.certificate, &authority.key).unwrap();
        let first = certificates.server("ghcr.io").unwrap();
        assert!(Arc::ptr_eq(&first, &certificates.server("ghcr.io").unwrap()));
        for number in 0..MAX_CERTIFICATES.get() + 3 {
            certificates.server(&format!("r{number}.example")).unwrap();
        }
        assert_eq!(certificates.made.lock().unwrap().len(), MAX_CERTIFICATES.get());
    }

    #[test]
    fn keys_that_others_could_read_are_refused_and_none_is_shown() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let missing = Certificates::load(directory.path()).unwrap_err().to_string();
        assert!(missing.contains("eagle ca init"), "{missing}");
        let authority = create("Eagle", &[]).unwrap();
        std::fs::write(path(CERTIFICATE_FILE), &authority.certificate).unwrap();
        std::fs::write(path(KEY_FILE), authority.key.as_bytes()).unwrap();
        std::fs::set_permissions(path(KEY_FILE), std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(Certificates::load(directory.path()).unwrap_err().to_string().contains("chmod 600"));
        std::fs::set_permissions(path(KEY_FILE), std::fs::Permissions::from_mode(0o600)).unwrap();
        let loaded = Certificates::load(directory.path()).unwrap();
        assert!(!format!("{loaded:?} {authority:?}").contains("PRIVATE"));
        std::fs::write(path(KEY_FILE), "secret nonsense").unwrap();
        let error = Certificates::load(directory.path()).unwrap_err().to_string();
        assert!(!error.contains("nonsense"), "{error}");
    }
}
