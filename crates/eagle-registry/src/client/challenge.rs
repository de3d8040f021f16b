//! `WWW-Authenticate`: what a registry wants to see before it answers (RFC 9110, 11.6.1; the Bearer
//! form is that of Docker's token authentication specification).

use http::{HeaderMap, header};

/// Longest header value that is read, bytes; real ones have a few hundred.
const MAX_LENGTH: usize = 8 << 10;
/// Most challenges and most parameters of one that are read.
const MAX_ITEMS: usize = 16;

/// One way to authenticate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Challenge {
    /// Name of the scheme, in lower case.
    scheme: String,
    /// Names in lower case, with their values.
    parameters: Vec<(String, String)>,
}

/// A challenge of a scheme that the client speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// A token of this realm.
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
    /// User and password.
    Basic,
}

impl Challenge {
    fn parameter(&self, name: &str) -> Option<String> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
    }
}

/// What the headers of an answer 401 ask for: a token if they offer that, else a password.
pub(crate) fn wanted(headers: &HeaderMap) -> Option<Wanted> {
    let challenges: Vec<Challenge> = headers
        .get_all(header::WWW_AUTHENTICATE)
        .iter()
        .take(MAX_ITEMS)
        .filter_map(|value| value.to_str().ok())
        .flat_map(parse)
        .collect();
    let bearer = challenges.iter().filter(|challenge| challenge.scheme == "bearer").find_map(|challenge| {
        let realm = challenge.parameter("realm")?;
        Some(Wanted::Bearer { realm, service: challenge.parameter("service"), scope: challenge.parameter("scope") })
    });
    bearer.or_else(|| challenges.iter().any(|challenge| challenge.scheme == "basic").then_some(Wanted::Basic))
}

/// Reads the challenges of one header value. Lenient: what cannot be read is skipped.
fn parse(value: &str) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = Vec::new();
    if value.len() > MAX_LENGTH {
        return challenges;
    }
    let mut rest = Cursor(value);
    loop {
        rest.skip(|c| c == ',' || c.is_ascii_whitespace());
        let name = rest.take(is_token);
        if name.is_empty() {
            // Not a token: step over the character, so that this ends.
            if rest.next().is_none() {
                return challenges;
            }
            continue;
        }
        rest.skip(|c| c.is_ascii_whitespace());
        let full = challenges.len() == MAX_ITEMS;
        match challenges.last_mut() {
            Some(challenge) if rest.0.starts_with('=') => {
                rest.next();
                rest.skip(|c| c.is_ascii_whitespace());
                let value = rest.value();
                if challenge.parameters.len() < MAX_ITEMS {
                    challenge.parameters.push((name.to_ascii_lowercase(), value));
                }
            }
            _ if full => return challenges,
            _ => challenges.push(Challenge { scheme: name.to_ascii_lowercase(), parameters: Vec::new() }),
        }
    }
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

struct Cursor<'a>(&'a str);

impl<'a> Cursor<'a> {
    fn next(&mut self) -> Option<char> {
        let mut chars = self.0.chars();
        let next = chars.next();
        self.0 = chars.as_str();
        next
    }

    fn skip(&mut self, is_part: impl Fn(char) -> bool) {
        self.0 = self.0.trim_start_matches(is_part);
    }

    fn take(&mut self, is_part: impl Fn(char) -> bool) -> &'a str {
        let end = self.0.find(|c| !is_part(c)).unwrap_or(self.0.len());
        let (taken, rest) = self.0.split_at(end);
        self.0 = rest;
        taken
    }

    /// A quoted string with its escapes resolved, or everything up to a comma or space: some registries
    /// leave the quotes out even around URLs.
    fn value(&mut self) -> String {
        if !self.0.starts_with('"') {
            return self.take(|c| c != ',' && !c.is_ascii_whitespace()).to_owned();
        }
        self.next();
        let mut value = String::new();
        while let Some(c) = self.next() {
            match c {
                '"' => break,
                '\\' => value.extend(self.next()),
                c => value.push(c),
            }
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn of(values: &[&str]) -> Option<Wanted> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_str(value).unwrap());
        }
        wanted(&headers)
    }

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Option<Wanted> {
        Some(Wanted::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        })
    }

    #[test]
    fn reads_what_registries_send() {
        assert_eq!(
            of(&[
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/debian:pull""#
            ]),
            bearer("https://auth.docker.io/token", Some("registry.docker.io"), Some("repository:library/debian:pull"))
        );
        assert_eq!(of(&[r#"Basic realm="Registry Realm""#]), Some(Wanted::Basic));
        assert_eq!(of(&["basic"]), Some(Wanted::Basic));
        // Both, in one header and in two; the token is preferred.
        assert_eq!(of(&[r#"Basic realm="a", Bearer realm="b""#]), bearer("b", None, None));
        assert_eq!(of(&[r#"Basic realm="a""#, r#"bearer Realm = "b" , SCOPE="x y""#]), bearer("b", None, Some("x y")));
        assert_eq!(of(&["Bearer realm=https://a/t?x=y,service=s"]), bearer("https://a/t?x=y", Some("s"), None));
        assert_eq!(of(&[r#"Bearer realm="a\"b,c=d",service="#]), bearer("a\"b,c=d", Some(""), None));
        assert_eq!(of(&["Negotiate dG9rZW4=, Basic realm=x"]), Some(Wanted::Basic));
        for none in ["", "Bearer", "Bearer service=\"x\"", "Digest realm=\"x\"", ",,,", "=", "\"Bearer\""] {
            assert_eq!(of(&[none]), None, "{none}");
        }
    }

    proptest! {
        #[test]
        fn reads_any_quoted_value(realm in "[ -~]{1,60}", scope in "[ -~]{0,60}") {
            let quote = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
            let header = format!("Basic realm=\"x\", Bearer realm=\"{}\",  scope=\"{}\"", quote(&realm), quote(&scope));
            prop_assert_eq!(of(&[&header]), bearer(&realm, None, Some(&scope)));
        }

        #[test]
        fn never_panics_and_ends(text in "[ -~\u{e4}]{0,300}") {
            let _ = parse(&text);
        }
    }
}
