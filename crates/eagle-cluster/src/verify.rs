//! Which certificates prove membership, and which one to show.

use std::sync::Arc;

use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::{
        ResolvesClientCert,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use crate::authority::Authority;

/// Takes every member for a server, whatever its address: the name in members' certificates is always the same.
#[derive(Debug)]
pub(crate) struct AnyMember {
    /// What checks the chain and the signatures, for the name that members have.
    pub(crate) members: Arc<dyn ServerCertVerifier>,
    pub(crate) name: ServerName<'static>,
    /// The authorities of the accepted keys, told to the server so that it shows a certificate under one of them.
    pub(crate) authorities: Vec<DistinguishedName>,
}

impl ServerCertVerifier for AnyMember {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.members.verify_server_cert(end_entity, intermediates, &self.name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.members.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.members.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.members.supported_verify_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        Some(&self.authorities)
    }
}

/// This process's certificates, one under each accepted key, the own key's first.
///
/// Both ends name the authorities that they know, so with any key in common they meet under one of them: the client's
/// first that the server has too.
#[derive(Debug)]
pub(crate) struct Leaves(pub(crate) Vec<Authority>);

impl Leaves {
    fn under(&self, name: &[u8]) -> Option<&Arc<CertifiedKey>> {
        self.0.iter().find(|authority| authority.name == name).map(|authority| &authority.leaf)
    }

    fn own(&self) -> Option<&Arc<CertifiedKey>> {
        self.0.first().map(|authority| &authority.leaf)
    }
}

impl ResolvesServerCert for Leaves {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let known = hello.certificate_authorities().unwrap_or_default();
        known.iter().find_map(|name| self.under(name.as_ref())).or_else(|| self.own()).cloned()
    }
}

impl ResolvesClientCert for Leaves {
    fn resolve(&self, known: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let common = self.0.iter().find(|authority| known.contains(&authority.name.as_slice()));
        common.map(|authority| &authority.leaf).or_else(|| self.own()).cloned()
    }

    fn has_certs(&self) -> bool {
        true
    }
}
