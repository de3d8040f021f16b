//! Headers that every hop needs to know.

use http::{HeaderMap, HeaderName, HeaderValue, header};

/// `Docker-Content-Digest`: digest of the content that an answer is about.
pub const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// `Docker-Distribution-API-Version`: older clients look for it.
pub const DOCKER_API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
/// `OCI-Filters-Applied`: by what a list of referrers is filtered.
pub const OCI_FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

/// Headers of one connection, not of the message (RFC 9110, 7.6.1), with those of proxies before that RFC.
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Removes the headers of one connection, with those that `Connection` names.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
    headers.remove(header::TRAILER);
}

/// Whether a request with these `Accept` headers takes an answer of this media type (RFC 9110, section 12.5.1, without weights: a
/// kind that is refused by `q=0` is not in use for manifests).
pub fn accepts<'a>(accepted: impl IntoIterator<Item = &'a HeaderValue>, media_type: &str) -> bool {
    let kind = |value: &str| value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let given = kind(media_type);
    let mut accepted = accepted.into_iter().filter_map(|value| value.to_str().ok()).peekable();
    accepted.peek().is_none()
        || accepted
            .flat_map(|value| value.split(','))
            .map(kind)
            .any(|kind| kind == given || kind == "*/*" || kind == "application/*")
}

/// The single value of a header as a number; `None` when it is absent, repeated or not a number.
pub fn number(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => digits(value.to_str().ok()?),
        _ => None,
    }
}

/// A number of decimal digits alone: no sign, no space.
pub(crate) fn digits(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// A header value from text that is known to be printable ASCII.
pub(crate) fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removes_headers_of_the_connection_only() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Mine"),
            ("connection", "keep-alive"),
            ("x-mine", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("te", "trailers"),
            ("accept", "a"),
            ("accept", "b"),
            ("content-length", "5"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        remove_hop_by_hop(&mut headers);
        assert_eq!(headers.len(), 3);
        assert_eq!(headers.get_all("accept").iter().count(), 2);
        assert_eq!(number(&headers, &header::CONTENT_LENGTH), Some(5));
        assert_eq!(number(&headers, &header::ACCEPT), None);
    }
}
