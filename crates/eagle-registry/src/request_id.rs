//! The name of a request, by which its lines in the logs of runtime, proxy, seeder and registry are found: `X-Request-Id`.

use std::{fmt, sync::Arc};

use http::{HeaderMap, HeaderName, HeaderValue};

/// `X-Request-Id`, which registries and load balancers write into their logs.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest name that is taken from outside, bytes: a UUID has 36, those of cloud load balancers up to some 70.
const LONGEST: usize = 128;

/// The name of a request. It is short and of characters that break no log line.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// A new name: 16 hexadecimal digits.
    pub fn random() -> Self {
        Self(format!("{:016x}", rand::random::<u64>()).into())
    }

    /// The name that a request came with; `None` without one, with more than one, or with one that is no name.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(X_REQUEST_ID).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return None };
        let text = value.to_str().ok()?;
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:+/=@".contains(&byte);
        let is_name = !text.is_empty() && text.len() <= LONGEST && text.bytes().all(fits);
        is_name.then(|| Self(text.into()))
    }

    /// The text of it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Puts the name on a request, in the place of what was there.
    pub fn put(&self, headers: &mut HeaderMap) {
        // Its characters are those of headers.
        if let Ok(value) = HeaderValue::from_str(&self.0) {
            headers.insert(X_REQUEST_ID, value);
        }
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(X_REQUEST_ID, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        RequestId::of(&headers).map(|id| id.to_string())
    }

    #[test]
    fn takes_names_and_nothing_else() {
        for good in ["7f4df4d4-1111-4c9f-9a44-0d6f0c1d2e3f", "a", "Root=1-67891233-abcdef012345678912345678"] {
            assert_eq!(of(&[good]).as_deref(), Some(good));
        }
        let long = "x".repeat(LONGEST + 1);
        for bad in [&[][..], &[""], &["a b"], &["a\"b"], &["{\"level\":\"error\"}"], &["é"], &[&long], &["a", "b"]] {
            assert_eq!(of(bad), None, "{bad:?}");
        }
        assert!(of(&[&long[1..]]).is_some());
    }

    #[test]
    fn new_names_differ_and_are_taken_again() {
        let (one, other) = (RequestId::random(), RequestId::random());
        assert_ne!(one, other);
        let mut headers = HeaderMap::new();
        headers.insert(X_REQUEST_ID, HeaderValue::from_static("before"));
        one.put(&mut headers);
        assert_eq!(RequestId::of(&headers), Some(one));
    }
}
