//! The way out of the network: `egress_proxy` of a registry.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use url::Url;
use zeroize::Zeroizing;

use super::Secret;

/// How a registry is reached from a network that cannot reach it directly. Written `direct`, or as the
/// URL of an HTTP proxy, `http://[USER:PASSWORD@]HOST[:PORT]`.
#[derive(Clone, PartialEq, Eq)]
pub enum EgressProxy {
    /// No proxy, whatever the environment says.
    Direct,
    /// This proxy, by its URL, which may hold a password: `CONNECT` for https, requests in absolute form for http.
    Http(Secret),
}

/// A text that is no way out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an egress proxy: write direct, or http://HOST:PORT of an HTTP proxy, without path or query")]
pub struct ParseEgressProxyError;

impl EgressProxy {
    /// As text, with the password of the URL left out.
    fn masked(&self) -> String {
        let Self::Http(url) = self else { return "direct".to_owned() };
        // `from_str` made it of a URL.
        let Ok(mut url) = url.expose().parse::<Url>() else { return "***".to_owned() };
        if url.password().is_some() {
            // Fails only for URLs without a host, which `from_str` refuses.
            let _ = url.set_password(Some("***"));
        }
        // The place where the password was is wiped with it.
        let text = Zeroizing::new(String::from(url));
        text.trim_end_matches('/').to_owned()
    }
}

impl FromStr for EgressProxy {
    type Err = ParseEgressProxyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "direct" {
            return Ok(Self::Direct);
        }
        // The text is not repeated in the error: it may hold a password.
        // A URL takes as much room as its text has, and moves when escapes and a slash make it longer; what it was stays behind then. So
        // it gets room by spaces, which it leaves out.
        let most = 3 * text.len() + 1;
        let mut roomy = Zeroizing::new(String::with_capacity(most));
        roomy.push_str(text);
        roomy.extend(std::iter::repeat_n(' ', most - text.len()));
        let url: Url = roomy.parse().map_err(|_| ParseEgressProxyError)?;
        let plain = url.scheme() == "http"
            && url.host_str().is_some_and(|host| !host.is_empty())
            && matches!(url.path(), "" | "/")
            && url.query().is_none()
            && url.fragment().is_none();
        // Also when it is refused, it is wiped.
        let url = Secret::new(url);
        if plain { Ok(Self::Http(url)) } else { Err(ParseEgressProxyError) }
    }
}

impl fmt::Debug for EgressProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.masked())
    }
}

impl Serialize for EgressProxy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.masked())
    }
}

impl<'de> Deserialize<'de> for EgressProxy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Secret::deserialize(deserializer)?.expose().parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_shows_but_for_the_password() {
        for text in ["direct", "http://proxy.example:3128", "http://[::1]:3128", "http://me@proxy.example"] {
            let proxy: EgressProxy = text.parse().unwrap();
            assert_eq!(format!("{proxy:?}"), text);
        }
        let proxy: EgressProxy = "http://me:secret@proxy.example:3128".parse().unwrap();
        assert_eq!(serde_json::to_string(&proxy).unwrap(), "\"http://me:***@proxy.example:3128\"");
        assert_eq!(format!("{proxy:?}"), "http://me:***@proxy.example:3128");
        for bad in ["", "none", "proxy:3128", "https://proxy", "socks5://u:secret@p", "http://p/x", "http://p?x"] {
            let error = bad.parse::<EgressProxy>().unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
