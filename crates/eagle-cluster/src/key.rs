//! One cluster key.

use std::{fmt, str::FromStr};

use base64::{
    Engine as _,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use hkdf::Hkdf;
use rand::TryRng as _;
use sha2::Sha256;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

/// Length of a key and of what is derived from it, bytes: the security level of everything that uses them.
pub(crate) const KEY_BYTES: usize = 32;
/// People copy keys with and without the padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What makes a node a member of its cluster: 32 random bytes, known to all members and nobody else.
///
/// They are wiped from memory when the last copy goes, and never shown: `Debug` and `Display` of errors name a key by
/// its [`ClusterKey::id`].
#[derive(Clone)]
pub struct ClusterKey(Zeroizing<[u8; KEY_BYTES]>);

/// What a derived key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The private network of peers: nobody else gets as far as a libp2p handshake.
    PrivateNetwork,
    /// The short message that says which of two accepted keys a connection between peers uses.
    NetworkHint,
    /// The certificate authority of the members' TLS.
    CertificateAuthority,
    /// The name of a key in logs and errors.
    Id,
}

impl Purpose {
    /// The `info` of HKDF (RFC 5869): never changes, or else two versions of Eagle cannot talk.
    const fn info(self) -> &'static [u8] {
        match self {
            Self::PrivateNetwork => b"eagle cluster v1: private network",
            Self::NetworkHint => b"eagle cluster v1: network hint",
            Self::CertificateAuthority => b"eagle cluster v1: certificate authority",
            Self::Id => b"eagle cluster v1: id",
        }
    }
}

/// Why a text is no cluster key. It never repeats the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseKeyError {
    /// Neither base64 nor hexadecimal.
    #[error("it is neither base64 nor hexadecimal; make one with `eagle cluster-key`")]
    Encoding,
    /// Another number of bytes.
    #[error("it has {0} bytes and should have 32; make one with `eagle cluster-key`")]
    Length(usize),
    /// All bytes are the same, so nobody made it at random.
    #[error("it is not random; make one with `eagle cluster-key`")]
    NotRandom,
}

impl ClusterKey {
    /// A new key from the random numbers of the system.
    ///
    /// # Errors
    /// When the system has none to give.
    pub fn generate() -> Result<Self, std::io::Error> {
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        rand::rngs::SysRng.try_fill_bytes(bytes.as_mut()).map_err(std::io::Error::other)?;
        Ok(Self(bytes))
    }

    /// The key as people write it down: base64 with padding, 44 characters. It is a secret.
    pub fn expose(&self) -> Zeroizing<String> {
        Zeroizing::new(BASE64.encode(self.0.as_ref()))
    }

    /// 32 bytes for one purpose (HKDF with SHA-256, RFC 5869), from which neither the key nor those for other purposes
    /// can be found.
    pub fn derive(&self, purpose: Purpose) -> Zeroizing<[u8; KEY_BYTES]> {
        let mut derived = Zeroizing::new([0; KEY_BYTES]);
        // Fails only for more than 255 times the length of the hash.
        let expanded = Hkdf::<Sha256>::new(None, self.0.as_ref()).expand(purpose.info(), derived.as_mut());
        debug_assert!(expanded.is_ok(), "32 bytes are within the limit of HKDF");
        derived
    }

    /// The name of the key for logs: 8 hexadecimal digits, which say nothing about it.
    pub fn id(&self) -> String {
        hex::encode(&self.derive(Purpose::Id)[..4])
    }
}

impl PartialEq for ClusterKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(other.0.as_ref()).into()
    }
}

impl Eq for ClusterKey {}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ClusterKey").field(&self.id()).finish()
    }
}

impl FromStr for ClusterKey {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let decoded = Zeroizing::new(if text.len() == 2 * KEY_BYTES {
            hex::decode(text).map_err(|_| ParseKeyError::Encoding)?
        } else {
            BASE64.decode(text).map_err(|_| ParseKeyError::Encoding)?
        });
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        if decoded.len() != KEY_BYTES {
            return Err(ParseKeyError::Length(decoded.len()));
        }
        bytes.copy_from_slice(&decoded);
        if bytes.iter().all(|byte| *byte == bytes[0]) {
            return Err(ParseKeyError::NotRandom);
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_key_survives_being_written_down(bytes in any::<[u8; KEY_BYTES]>()) {
            prop_assume!(bytes.iter().any(|byte| *byte != bytes[0]));
            let key = ClusterKey(Zeroizing::new(bytes));
            prop_assert_eq!(&key.expose().parse::<ClusterKey>().unwrap(), &key);
            prop_assert_eq!(&key.expose().trim_end_matches('=').parse::<ClusterKey>().unwrap(), &key);
            prop_assert_eq!(&hex::encode(bytes).parse::<ClusterKey>().unwrap(), &key);
        }

        #[test]
        fn no_text_makes_it_panic(text in ".{0,100}") {
            let _ = text.parse::<ClusterKey>();
        }
    }

    #[test]
    fn purposes_have_nothing_in_common_and_never_change() {
        let key: ClusterKey = format!("{}01", "00".repeat(31)).parse().unwrap();
        let purposes = [Purpose::PrivateNetwork, Purpose::NetworkHint, Purpose::CertificateAuthority, Purpose::Id];
        for (at, purpose) in purposes.iter().enumerate() {
            for other in &purposes[at + 1..] {
                assert_ne!(key.derive(*purpose), key.derive(*other));
            }
        }
        // The same for every version of Eagle.
        assert_eq!(key.id(), "f1b9224d", "as computed by hand with HMAC-SHA-256");
    }

    #[test]
    fn a_key_is_never_shown() {
        let key = ClusterKey::generate().unwrap();
        let shown = format!("{key:?}");
        assert_eq!(shown, format!("ClusterKey({:?})", key.id()));
        assert!(!shown.contains(&*key.expose()), "{shown}");
        assert_ne!(key, ClusterKey::generate().unwrap());
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert_eq!("".parse::<ClusterKey>(), Err(ParseKeyError::Length(0)));
        assert_eq!("secret!".parse::<ClusterKey>(), Err(ParseKeyError::Encoding));
        assert_eq!("c2VjcmV0".parse::<ClusterKey>(), Err(ParseKeyError::Length(6)));
        assert_eq!("00".repeat(32).parse::<ClusterKey>(), Err(ParseKeyError::NotRandom));
    }
}
