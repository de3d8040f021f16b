//! Signatures of bodies: HMAC-SHA256, in the header that GitHub made common.

use eagle_registry::Secret;
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderName};
use sha2::Sha256;

/// Has `sha256=` and the signature in hexadecimal digits.
pub(super) const SIGNATURE: HeaderName = HeaderName::from_static("x-hub-signature-256");

/// Whether the body is signed with the secret. Compares in constant time.
pub(super) fn is_signed(headers: &HeaderMap, body: &[u8], secret: &Secret) -> bool {
    let mut values = headers.get_all(SIGNATURE).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return false };
    let digits = value.to_str().ok().and_then(|value| value.strip_prefix("sha256="));
    let Some(signature) = digits.and_then(|digits| hex::decode(digits).ok()) else { return false };
    // Any length of key is taken.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes()) else { return false };
    mac.update(body);
    mac.verify_slice(&signature).is_ok()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn only_the_right_signature_of_this_body_counts() {
        // The example of GitHub's documentation, "Validating webhook deliveries".
        let secret = Secret::new("It's a Secret to Everybody");
        let good = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        let signed = |values: &[&str], body: &str| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(SIGNATURE, HeaderValue::from_str(value).unwrap());
            }
            is_signed(&headers, body.as_bytes(), &secret)
        };
        assert!(signed(&[good], "Hello, World!"));
        assert!(!signed(&[good], "Hello, World"));
        assert!(!signed(&[good, good], "Hello, World!"));
        for bad in ["", "sha256=", "sha1=757107ea", "sha256=zz", &good[..40], &good.replace('7', "8")] {
            assert!(!signed(&[bad], "Hello, World!"), "{bad}");
        }
        assert!(!signed(&[], "Hello, World!"));
    }
}
