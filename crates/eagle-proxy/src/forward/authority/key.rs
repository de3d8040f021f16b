//! Private keys that leave nothing behind in memory.

use std::sync::Arc;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use rcgen::{Error, KeyPair, PublicKeyData, SignatureAlgorithm, SigningKey};
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::PrivateKeyDer;
use zeroize::{Zeroize as _, Zeroizing};

const BEGIN: &str = "-----BEGIN PRIVATE KEY-----\n";
const END: &str = "-----END PRIVATE KEY-----\n";
/// Letters of a line (RFC 7468, section 2).
const LINE: usize = 64;

/// A key that is wiped from memory when it is dropped, which rcgen leaves to others. It is read and written as PEM here, since what
/// the libraries for that put aside is not wiped.
pub(super) struct WipedKey(KeyPair);

impl WipedKey {
    pub(super) fn generate() -> Result<Self, Error> {
        KeyPair::generate().map(Self)
    }

    /// The key that a PEM file begins with; `None` when it begins with anything else.
    pub(super) fn from_pem(text: &str) -> Option<Self> {
        let (_, after) = text.split_once("-----BEGIN ")?;
        let (label, after) = after.split_once("-----")?;
        let (content, after) = after.split_once("-----END ")?;
        after.strip_prefix(label)?.strip_prefix("-----")?;
        let mut letters = Zeroizing::new(Vec::with_capacity(content.len()));
        letters.extend(content.bytes().filter(|byte| !byte.is_ascii_whitespace()));
        let mut der = Zeroizing::new(vec![0; base64::decoded_len_estimate(letters.len())]);
        let length = BASE64_STANDARD.decode_slice(letters.as_slice(), &mut der).ok()?;
        KeyPair::try_from(der.get(..length)?).ok().map(Self)
    }

    pub(super) fn to_pem(&self) -> Zeroizing<String> {
        let der = Zeroizing::new(self.0.serialize_der());
        let letters = Zeroizing::new(BASE64_STANDARD.encode(der.as_slice()));
        let room = BEGIN.len() + letters.len() + letters.len().div_ceil(LINE) + END.len();
        // With room for all from the first: a text that grows moves, and leaves what it was behind.
        let mut text = Zeroizing::new(String::with_capacity(room));
        text.push_str(BEGIN);
        let mut rest = letters.as_str();
        while !rest.is_empty() {
            let (line, after) = rest.split_at(rest.len().min(LINE));
            text.extend([line, "\n"]);
            rest = after;
        }
        text.push_str(END);
        text
    }

    /// The same key for handshakes.
    pub(super) fn for_tls(&self) -> Result<Arc<dyn rustls::sign::SigningKey>, String> {
        let mut der = PrivateKeyDer::try_from(self.0.serialize_der())?;
        let key = aws_lc_rs::sign::any_supported_type(&der);
        der.zeroize();
        key.map_err(|error| error.to_string())
    }
}

impl Drop for WipedKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl PublicKeyData for WipedKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        PublicKeyData::algorithm(&self.0)
    }
}

impl SigningKey for WipedKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        self.0.sign(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pem_is_what_rcgen_takes_for_it() {
        let key = WipedKey::generate().unwrap();
        let text = key.to_pem();
        assert_eq!(text.trim_end().replace("\r\n", "\n"), key.0.serialize_pem().trim_end().replace("\r\n", "\n"));
        for text in [text.to_string(), text.replace('\n', "\r\n"), format!("about it\n\n{}more", *text)] {
            assert_eq!(WipedKey::from_pem(&text).unwrap().der_bytes(), key.der_bytes(), "{text}");
        }
        let short = &text[..text.len() - END.len()];
        for bad in ["", "-----BEGIN ", BEGIN, &format!("{BEGIN}{END}"), short, &format!("{short}-----END X-----")] {
            assert!(WipedKey::from_pem(bad).is_none(), "{bad}");
        }
        assert!(WipedKey::from_pem(&text.replacen('M', "*", 1)).is_none());
    }
}
