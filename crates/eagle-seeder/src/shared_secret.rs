//! Secrets that requests bring along, compared in constant time.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use eagle_registry::Secret;
use http::{HeaderMap, header};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;

/// Whether `Authorization` brings the secret: as `Bearer SECRET`, as the password of `Basic` (whatever the user),
/// or alone, which is how Harbor sends the "auth header" of a webhook.
pub(crate) fn is_brought(headers: &HeaderMap, secret: &Secret) -> bool {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return false };
    let Ok(value) = value.to_str() else { return false };
    let (scheme, rest) = value.split_once(' ').unwrap_or(("", value));
    match scheme.to_ascii_lowercase().as_str() {
        "bearer" => same(rest.trim().as_bytes(), secret),
        "basic" => {
            let Ok(decoded) = STANDARD.decode(rest.trim()) else { return false };
            let password = decoded.iter().position(|&byte| byte == b':').map(|colon| &decoded[colon + 1..]);
            password.is_some_and(|password| same(password, secret))
        }
        _ => same(value.trim().as_bytes(), secret),
    }
}

/// Compares hashes: what the comparison of the texts would tell by its time, their length among it, is not told.
fn same(text: &[u8], secret: &Secret) -> bool {
    let hash = |bytes: &[u8]| -> [u8; 32] { Sha256::digest(bytes).into() };
    hash(text).ct_eq(&hash(secret.expose().as_bytes())).into()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn brings(values: &[&str]) -> bool {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        }
        is_brought(&headers, &Secret::new("open sesame"))
    }

    #[test]
    fn takes_the_secret_in_the_forms_that_registries_send() {
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
        for good in [
            "Bearer open sesame",
            "bearer open sesame",
            "open sesame",
            &basic("eagle:open sesame"),
            &basic(":open sesame"),
        ] {
            assert!(brings(&[good]), "{good}");
        }
        for bad in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer open sesam",
            "Bearer open sesame!",
            "open",
            "Basic !!!",
            "Basic",
            &basic("open sesame"),
            &basic("open sesame:"),
            &basic("a:b:open sesame"),
            "Digest open sesame",
        ] {
            assert!(!brings(&[bad]), "{bad}");
        }
        assert!(!brings(&[]));
        assert!(!brings(&["Bearer open sesame", "Bearer open sesame"]), "two answers to one question");
    }
}
