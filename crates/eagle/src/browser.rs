//! Requests that web pages make people's browsers send.
//!
//! The admin address is for programs and people of the machine it is on, and asks for no password. A page from anywhere can have
//! the browser of somebody at that machine send requests to it as well: to `127.0.0.1` ("cross-site request forgery"), or to a
//! name of the page's own that was made to mean `127.0.0.1` meanwhile ("DNS rebinding"), whose answers the page can even read. Browsers give
//! both away: by `Origin` or `Sec-Fetch-Site` (Fetch standard, 3.2 and Fetch Metadata, 2), or by a `Host` that no one on the
//! machine would use.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, Uri, header, uri::Authority};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Why a request to this address of the machine is none that a program sent, or a person who typed the URL. `own_page` says that
/// it is for a page that is served here to be seen in a browser, or for what that page shows; nothing is changed by such a request.
pub(crate) fn is_foreign(local: IpAddr, uri: &Uri, headers: &HeaderMap, own_page: bool) -> Option<&'static str> {
    if headers.contains_key(header::ORIGIN) {
        return Some("requests of web pages are refused (Origin)");
    }
    // `none` is what the address bar says, `same-origin` what a page says that came from here, or from a name that was made to mean
    // this address: which of both, the host tells.
    let mut from_own_page = false;
    for site in headers.get_all(SEC_FETCH_SITE) {
        match site.as_bytes() {
            b"none" => {}
            b"same-origin" if own_page => from_own_page = true,
            _ => return Some("requests of web pages are refused (Sec-Fetch-Site)"),
        }
    }
    // Other addresses are reached by names too, such as that of a Kubernetes service.
    if !local.to_canonical().is_loopback() && !from_own_page {
        return None;
    }
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next(), uri.authority()) {
        (_, Some(_), _) => return Some("a request has one Host"),
        (_, None, Some(authority)) => Some(authority.clone()),
        (Some(host), None, None) => host.to_str().ok().and_then(|host| host.parse().ok()),
        // HTTP/1.0 has none, and no browser speaks it.
        (None, None, None) => return None,
    };
    let is_here = |host: Authority| {
        let host = host.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        host == "localhost" || host.ends_with(".localhost") || host.parse::<IpAddr>().is_ok()
    };
    (!host.is_some_and(is_here))
        .then_some("at a loopback address, and of browsers, only localhost and IP addresses are a Host")
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn foreign(local: &str, uri: &str, pairs: &[(&'static str, &'static str)]) -> bool {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        is_foreign(local.parse().unwrap(), &uri.parse().unwrap(), &headers, uri.starts_with("/v1/")).is_some()
    }

    #[test]
    fn a_page_from_here_may_read_what_it_shows() {
        let same = ("sec-fetch-site", "same-origin");
        for (host, local) in
            [("127.0.0.1:6970", "127.0.0.1"), ("localhost:8080", "127.0.0.1"), ("10.0.0.1:6970", "10.0.0.1")]
        {
            assert!(!foreign(local, "/v1/overview", &[("host", host), same]), "{host}");
            assert!(foreign(local, "/limits", &[("host", host), same]), "{host}");
            assert!(foreign(local, "/v1/overview", &[("host", host), ("sec-fetch-site", "cross-site")]), "{host}");
            assert!(foreign(local, "/v1/overview", &[("host", host), same, ("origin", "http://x.example")]), "{host}");
        }
        // By a name of the page's own the answers could be read elsewhere.
        for local in ["127.0.0.1", "10.0.0.1"] {
            assert!(foreign(local, "/v1/overview", &[("host", "evil.example"), same]), "{local}");
        }
    }

    #[test]
    fn programs_and_address_bars_are_let_in_and_pages_are_not() {
        for (host, local) in [
            ("127.0.0.1:43003", "127.0.0.1"),
            ("localhost:43003", "127.0.0.1"),
            ("[::1]:43003", "::1"),
            ("10.0.0.1:43003", "127.0.0.1"),
            ("eagle-tracker.eagle.svc:6970", "10.0.0.1"),
        ] {
            assert!(!foreign(local, "/limits", &[("host", host)]), "{host}");
            assert!(!foreign(local, "/limits", &[("host", host), ("sec-fetch-site", "none")]), "{host}");
            for (name, value) in [
                ("origin", "https://evil.example"),
                ("origin", "null"),
                ("sec-fetch-site", "cross-site"),
                ("sec-fetch-site", "same-site"),
                ("sec-fetch-site", "same-origin"),
            ] {
                assert!(foreign(local, "/limits", &[("host", host), (name, value)]), "{name}: {value}");
            }
        }
        assert!(!foreign("127.0.0.1", "/status", &[]));
    }

    #[test]
    fn names_that_were_made_to_mean_this_machine_are_refused() {
        for host in ["evil.example", "evil.example:43003", "localhost.evil.example", "", "a b"] {
            assert!(foreign("127.0.0.1", "/cache", &[("host", host)]), "{host:?}");
            assert!(foreign("::ffff:127.0.0.1", "/cache", &[("host", host)]), "{host:?}");
        }
        assert!(foreign("127.0.0.1", "http://evil.example/cache", &[("host", "127.0.0.1")]));
        assert!(foreign("127.0.0.1", "/cache", &[("host", "127.0.0.1"), ("host", "evil.example")]));
    }
}
