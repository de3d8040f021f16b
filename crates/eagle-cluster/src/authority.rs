//! The certificate authority of a cluster key, and a certificate under it for this process.

use std::{fmt, sync::Arc};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PKCS_ED25519, date_time_ymd,
};
use rustls::{
    RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    sign::CertifiedKey,
};
use tokio_util::sync::CancellationToken;
use zeroize::{Zeroize as _, Zeroizing};

use crate::{
    key::{ClusterKey, KEY_BYTES, Purpose},
    tls::TlsError,
};

/// What stands before the 32 bytes of an Ed25519 key in PKCS #8 (RFC 8410, section 7).
const ED25519_PKCS8: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
/// The name in every member's certificate. Members are told apart from strangers and not from each other, so addresses
/// need not be in it; `.internal` is for private use.
pub(crate) const MEMBER_NAME: &str = "member.eagle.internal";

/// One accepted key, as certificates know it. Clones share what ends connections.
#[derive(Clone)]
pub(crate) struct Authority {
    pub(crate) key: ClusterKey,
    /// The authority's own certificate, the same in every process: made from the key alone.
    pub(crate) certificate: CertificateDer<'static>,
    /// Its name as a whole DER structure: what both ends of a handshake say which authorities they know by.
    pub(crate) name: Vec<u8>,
    /// Its name as it stands in certificates, without the header of the structure.
    pub(crate) issuer: Vec<u8>,
    /// This process's certificate under it, with its private key.
    pub(crate) leaf: Arc<CertifiedKey>,
    /// Cancelled when the key is no longer accepted.
    pub(crate) gone: CancellationToken,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("key", &self.key).finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes the authority of a key, and a certificate with a new private key under it.
    pub(crate) fn new(key: &ClusterKey, provider: &CryptoProvider) -> Result<Self, TlsError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, format!("Eagle cluster {}", key.id()));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        (params.not_before, params.not_after) = (date_time_ymd(1970, 1, 1), date_time_ymd(4096, 1, 1));
        let mut signing_key = signing_key(key)?;
        let issuer = CertifiedIssuer::self_signed(params, &signing_key)?;
        let mut leaf_key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![MEMBER_NAME.to_owned()])?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "Eagle member");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        (params.not_before, params.not_after) = (date_time_ymd(1970, 1, 1), date_time_ymd(4096, 1, 1));
        let leaf = params.signed_by(&leaf_key, &issuer)?;
        let certificate = issuer.der().clone();
        drop(issuer);
        signing_key.zeroize();
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf_key.serialize_der()));
        leaf_key.zeroize();
        let leaf = CertifiedKey::from_der(vec![leaf.der().clone()], private, provider)?;

        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone())?;
        let name = roots.subjects().iter().flat_map(|name| name.as_ref().to_vec()).collect();
        let issuer = roots.roots.iter().flat_map(|anchor| anchor.subject.as_ref().to_vec()).collect();
        let (key, leaf) = (key.clone(), Arc::new(leaf));
        Ok(Self { key, certificate, name, issuer, leaf, gone: CancellationToken::new() })
    }
}

/// The authority's key: Ed25519, whose private keys are any 32 bytes and whose signatures are the same every time.
fn signing_key(key: &ClusterKey) -> Result<KeyPair, rcgen::Error> {
    let seed = key.derive(Purpose::CertificateAuthority);
    let mut der = Zeroizing::new([0; ED25519_PKCS8.len() + KEY_BYTES]);
    der[..ED25519_PKCS8.len()].copy_from_slice(&ED25519_PKCS8);
    der[ED25519_PKCS8.len()..].copy_from_slice(seed.as_ref());
    KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(der.as_slice()), &PKCS_ED25519)
}

#[cfg(test)]
mod tests {
    use rustls::crypto::aws_lc_rs::default_provider;

    use super::*;

    #[test]
    fn an_authority_is_the_key_s_and_a_leaf_the_process_s() {
        let (key, other) = (ClusterKey::generate().unwrap(), ClusterKey::generate().unwrap());
        let make = |key| Authority::new(key, &default_provider()).unwrap();
        let (first, again, other) = (make(&key), make(&key), make(&other));
        let public = |authority: &Authority| {
            let mut roots = RootCertStore::empty();
            roots.add(authority.certificate.clone()).unwrap();
            roots.roots[0].subject_public_key_info.as_ref().to_vec()
        };
        assert_eq!((public(&first), &first.name), (public(&again), &again.name));
        assert_ne!(public(&first), public(&other));
        assert_ne!(first.name, other.name);
        assert_ne!(first.leaf.cert, again.leaf.cert, "each process proves itself by a private key of its own");
        assert!(!format!("{first:?}").contains(&*key.expose()));
    }
}
