//! TLS of data channels: version 1.3 with the certificates of libp2p (libp2p specification, "TLS
//! handshake"), and a cipher that suits the processor.
//!
//! `libp2p-tls` makes and checks the certificates. Its own configurations prefer ChaCha20-Poly1305
//! everywhere, also where processors have instructions for AES-GCM. The uploading end chooses the
//! cipher, so only its configuration is made here.

use std::sync::Arc;

use libp2p::{PeerId, identity::Keypair};
use libp2p_tls::certificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::aws_lc_rs::{
        cipher_suite::{TLS13_AES_128_GCM_SHA256, TLS13_CHACHA20_POLY1305_SHA256},
        default_provider,
    },
    pki_types::{CertificateDer, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
};

use crate::network::StartError;

/// Name of the protocol in the TLS handshake: a control connection that strays here, or the other
/// way round, fails at once.
const ALPN: &[u8] = b"eagle-data/1";

/// Whether the processor has instructions for AES.
fn has_aes() -> bool {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    {
        std::arch::is_x86_feature_detected!("aes")
    }
    #[cfg(target_arch = "aarch64")]
    {
        std::arch::is_aarch64_feature_detected!("aes")
    }
    #[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
    {
        false
    }
}

/// What the uploading end proves its identity with.
///
/// # Errors
/// When no certificate can be made for the identity.
pub(super) fn server_config(keypair: &Keypair) -> Result<ServerConfig, StartError> {
    let (certificate, key) = certificate::generate(keypair)?;
    let mut provider = default_provider();
    let (aes, chacha) = (TLS13_AES_128_GCM_SHA256, TLS13_CHACHA20_POLY1305_SHA256);
    provider.cipher_suites = if has_aes() { vec![aes, chacha] } else { vec![chacha, aes] };
    let key = provider.key_provider.load_private_key(key)?;
    let resolver = SingleCertAndKey::from(CertifiedKey::new(vec![certificate], key));
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(AnyPeer))
        .with_cert_resolver(Arc::new(resolver));
    config.ignore_client_order = true;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Channels live long; what sessions could be resumed with would only take memory.
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// What the downloading end proves its identity with, to `peer` and nobody else.
///
/// # Errors
/// When no certificate can be made for the identity.
pub(super) fn client_config(keypair: &Keypair, peer: PeerId) -> Result<ClientConfig, certificate::GenError> {
    let mut config = libp2p_tls::make_client_config(keypair, Some(peer))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// The peer that a certificate proves the identity of.
pub(super) fn peer_of(certificate: &CertificateDer<'_>) -> Result<PeerId, certificate::ParseError> {
    certificate::parse(certificate).map(|certificate| certificate.peer_id())
}

/// Takes anyone who proves to be some peer; which one is looked at after the handshake.
#[derive(Debug)]
struct AnyPeer;

impl ClientCertVerifier for AnyPeer {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if !intermediates.is_empty() {
            return Err(CertificateError::UnknownIssuer.into());
        }
        // It is signed by itself and by the identity, and valid today.
        peer_of(certificate).map_err(|_| Error::from(CertificateError::ApplicationVerificationFailure))?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("data channels run over TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        certificate::parse(certificate)
            .map_err(|_| Error::from(CertificateError::BadEncoding))?
            .verify_signature(signed.scheme, message, signed.signature())
            .map_err(|_| Error::from(CertificateError::BadSignature))?;
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        // What certificates of libp2p are signed with, of which `libp2p-tls` makes the first.
        vec![
            SignatureScheme::ECDSA_NISTP256_SHA256,
            SignatureScheme::ECDSA_NISTP384_SHA384,
            SignatureScheme::ED25519,
            SignatureScheme::RSA_PSS_SHA512,
            SignatureScheme::RSA_PSS_SHA384,
            SignatureScheme::RSA_PSS_SHA256,
        ]
    }
}
