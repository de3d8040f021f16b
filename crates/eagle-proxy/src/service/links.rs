//! The way to the next part of a list (distribution-spec 1.1, "Listing Tags", "Listing Referrers").
//!
//! A registry names the next part in a `Link` header, as a path or URL of its own. To a client of the
//! mirror that path may mean another repository, or nothing: it has to lead back to this proxy, in the
//! form in which the client asked.

use eagle_registry::RepositoryName;
use http::{HeaderMap, HeaderValue, header};

use crate::path::Resource;

/// Longest link that is looked at, bytes: a path and a query of the longest tag.
const MAX_LINK: usize = 4096;

/// A list, as the client asked for it.
#[derive(Debug)]
pub(crate) struct List {
    /// The repository as it stands in the path, maybe with the registry in front.
    name: String,
    /// `ns=...` as it stands in the query.
    namespace: Option<String>,
    /// What follows the repository in the path.
    suffix: String,
}

impl List {
    /// `None` for what comes in one part.
    pub(crate) fn of(name: &str, resource: &Resource, query: Option<&str>) -> Option<Self> {
        if !matches!(resource, Resource::Tags | Resource::Referrers(_)) {
            return None;
        }
        let namespace = query.unwrap_or_default().split('&').find(|pair| pair.starts_with("ns=")).map(str::to_owned);
        // The brackets of an IPv6 address have no place in a path.
        let name = name.replace('[', "%5B").replace(']', "%5D");
        Some(Self { name, namespace, suffix: resource.suffix() })
    }

    /// Makes the registry's links lead back here; those that lead elsewhere are left out.
    pub(crate) fn lead_back(&self, headers: &mut HeaderMap, repository: &RepositoryName) {
        let theirs = format!("/v2/{repository}/{}", self.suffix);
        let links: Vec<HeaderValue> = headers
            .get_all(header::LINK)
            .iter()
            .filter_map(|link| HeaderValue::from_str(&self.rewrite(link.to_str().ok()?, &theirs)?).ok())
            .collect();
        headers.remove(header::LINK);
        for link in links {
            headers.append(header::LINK, link);
        }
    }

    /// `<URL>; rel="next"`, with the URL made one of this proxy.
    fn rewrite(&self, link: &str, theirs: &str) -> Option<String> {
        if link.len() > MAX_LINK {
            return None;
        }
        let (target, parameters) = link.trim_start().strip_prefix('<')?.split_once('>')?;
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        // A registry below a path of its own host, or one that writes URLs in full, has more in front.
        if !path.ends_with(theirs) || !query.bytes().all(|byte| byte.is_ascii_graphic() && !b"<>\"".contains(&byte)) {
            return None;
        }
        let query: Vec<&str> = query.split('&').filter(|pair| !pair.is_empty() && !pair.starts_with("ns=")).collect();
        let query: Vec<&str> = query.into_iter().chain(self.namespace.as_deref()).collect();
        let separator = if query.is_empty() { "" } else { "?" };
        Some(format!("</v2/{}/{}{separator}{}>{parameters}", self.name, self.suffix, query.join("&")))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn led_back(name: &str, query: Option<&str>, link: &str) -> Option<String> {
        let list = List::of(name, &Resource::Tags, query).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(header::LINK, link.parse().unwrap());
        list.lead_back(&mut headers, &"a/b".parse().unwrap());
        headers.get(header::LINK).map(|link| link.to_str().unwrap().to_owned())
    }

    #[test]
    fn links_keep_the_form_of_the_request() {
        for (name, query, link, expected) in [
            (
                "a/b",
                None,
                "</v2/a/b/tags/list?n=2&last=v2>; rel=\"next\"",
                "</v2/a/b/tags/list?n=2&last=v2>; rel=\"next\"",
            ),
            (
                "ghcr.io/a/b",
                Some("n=2"),
                "</v2/a/b/tags/list?n=2&last=x%2Fy>; rel=\"next\"",
                "</v2/ghcr.io/a/b/tags/list?n=2&last=x%2Fy>; rel=\"next\"",
            ),
            (
                "a/b",
                Some("n=2&ns=ghcr.io"),
                "<https://ghcr.io/v2/a/b/tags/list?last=v2>;rel=next",
                "</v2/a/b/tags/list?last=v2&ns=ghcr.io>;rel=next",
            ),
            ("a/b", Some("ns=ghcr.io"), "</below/v2/a/b/tags/list>", "</v2/a/b/tags/list?ns=ghcr.io>"),
            ("a/b", Some("ns=ghcr.io"), "</v2/a/b/tags/list?ns=evil.example>", "</v2/a/b/tags/list?ns=ghcr.io>"),
            ("[::1]:5000/a/b", None, "</v2/a/b/tags/list?n=1>", "</v2/%5B::1%5D:5000/a/b/tags/list?n=1>"),
        ] {
            assert_eq!(led_back(name, query, link).as_deref(), Some(expected), "{link}");
        }
    }

    #[test]
    fn links_to_elsewhere_are_left_out() {
        for link in [
            "",
            "/v2/a/b/tags/list",
            "</v2/a/c/tags/list?n=1>",
            "<https://evil.example/>",
            "<",
            "</v2/a/b/tags/list?\"x\">",
        ] {
            assert_eq!(led_back("a/b", None, link), None, "{link}");
        }
        assert_eq!(led_back("a/b", None, &format!("</v2/a/b/tags/list?last={}>", "x".repeat(MAX_LINK))), None);
    }

    #[test]
    fn only_lists_have_parts() {
        assert!(List::of("a", &Resource::Manifest("1".parse().unwrap()), None).is_none());
    }

    proptest! {
        #[test]
        fn what_comes_out_stays_here(link in "[ -~]{0,100}", query in "[a-z=&.]{0,20}") {
            if let Some(link) = led_back("ghcr.io/a/b", Some(&query), &link) {
                prop_assert!(link.starts_with("</v2/ghcr.io/a/b/tags/list"));
            }
        }
    }
}
