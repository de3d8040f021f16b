//! Requests that web pages make a browser on this machine send.
//!
//! A page can send requests to any address, loopback ones too, and read the answers once its own name leads there (DNS
//! rebinding). Behind the mirror are images that Eagle's credentials can read, and with `proxy.push: passthrough`
//! pushes. Browsers say of most such requests that they are a page's (`Origin`, Fetch standard, section 3.2;
//! `Sec-Fetch-Site`, Fetch Metadata, section 2). Where they do not, a `GET` from a page under a name that was made to lead
//! here, the `Host` is that name. Runtimes may be configured with a name of the administrator's too, so a name counts
//! only together with what every browser sends and no runtime does.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, header, uri::Authority};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// What the `User-Agent` of every browser begins with.
const BROWSER: &str = "Mozilla/";

/// Whether a request that came to this address of the mirror is a web page's.
pub(crate) fn is_of_a_page(headers: &HeaderMap, local: SocketAddr) -> bool {
    if headers.contains_key(header::ORIGIN) {
        return true;
    }
    // A person who types the address is nobody's page.
    if headers.get_all(SEC_FETCH_SITE).iter().any(|site| site != "none") {
        return true;
    }
    // Whoever can reach another address than loopback needs no page for it.
    local.ip().is_loopback() && is_foreign(headers) && is_of_a_browser(headers)
}

/// Whether the `Host` is a name that somebody else may have made lead here.
fn is_foreign(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST) else { return false };
    let Some(host) = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok()) else { return true };
    let host = host.host().trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase();
    // `localhost` and what is below it lead here by definition (RFC 6761, 6.3).
    host.parse::<IpAddr>().is_err() && host != "localhost" && !host.ends_with(".localhost")
}

fn is_of_a_browser(headers: &HeaderMap) -> bool {
    let agent = headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    agent.starts_with(BROWSER) || headers.contains_key(header::ACCEPT_LANGUAGE)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn of_a_page(local: &str, headers: &[(&'static str, &'static str)]) -> bool {
        let headers =
            headers.iter().map(|&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        is_of_a_page(&headers.collect(), local.parse().unwrap())
    }

    #[test]
    fn runtimes_are_never_taken_for_pages() {
        for host in
            ["127.0.0.1:43002", "[::1]:43002", "localhost:43002", "node-7:43002", "mirror.example:43002", "odd host"]
        {
            for agent in
                ["docker/28.5.2 go/go1.27", "containerd/2.1.9", "containers/5.39.2 (x)", "skopeo/1.22", "curl/8"]
            {
                for local in ["127.0.0.1:43002", "[::1]:43002", "192.0.2.1:43002"] {
                    assert!(!of_a_page(local, &[("host", host), ("user-agent", agent), ("accept", "*/*")]), "{host}");
                }
            }
        }
        assert!(!of_a_page("127.0.0.1:43002", &[]));
    }

    #[test]
    fn pages_are_known_by_what_browsers_say() {
        let local = "127.0.0.1:43002";
        for header in [("origin", "http://evil.example"), ("origin", "null"), ("sec-fetch-site", "cross-site")] {
            assert!(of_a_page(local, &[("host", local), header]), "{header:?}");
            assert!(of_a_page("192.0.2.1:43002", &[("host", "192.0.2.1:43002"), header]), "{header:?}");
        }
        for sign in [("user-agent", "Mozilla/5.0 (X11)"), ("accept-language", "en")] {
            assert!(of_a_page(local, &[("host", "evil.example:43002"), sign]), "{sign:?}");
            assert!(of_a_page(local, &[("host", "localhost.evil.example"), sign]), "{sign:?}");
            assert!(of_a_page(local, &[("host", "a b"), sign]), "{sign:?}");
            // A person at this machine looks.
            for own in ["127.0.0.1:43002", "localhost:43002", "LOCALHOST.", "[::1]:43002"] {
                assert!(!of_a_page(local, &[("host", own), sign, ("sec-fetch-site", "none")]), "{own}");
            }
            assert!(!of_a_page("192.0.2.1:43002", &[("host", "node.example:43002"), sign]));
        }
    }
}
