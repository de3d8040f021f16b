//! What runtimes say to the token service of a proxy, and the tokens that they come back with.

use std::sync::OnceLock;

use eagle_proxy::parsers::Logins;
use http::HeaderValue;

/// Its key is made once; an input costs no randomness but a nonce's.
static LOGINS: OnceLock<Option<Logins>> = OnceLock::new();

/// `Authorization` on the first line; the query or form of a request for a token after it.
pub(crate) fn run(bytes: &[u8]) {
    let Some(logins) = LOGINS.get_or_init(Logins::new) else { return };
    let place = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let (line, form) = (&bytes[..place], bytes.get(place + 1..).unwrap_or_default());
    let said = HeaderValue::from_bytes(line).ok();
    if let Some(said) = &said {
        assert_eq!(logins.known(said), None, "nobody but the service makes its tokens");
    }
    let posted = logins.posted(form);
    if let Some(posted) = &posted {
        assert!(posted.is_sensitive() && posted.as_bytes().starts_with(b"Basic "));
    }
    for authorization in [said, posted, None] {
        granted(logins, form, authorization);
    }
}

/// A token stands for what it was made of, and for nothing else when it is changed.
fn granted(logins: &Logins, form: &[u8], authorization: Option<HeaderValue>) {
    let Some(token) = logins.token(form, authorization.clone()) else {
        panic!("no token is made");
    };
    let Some((_, sent)) = logins.known(&token) else { panic!("its own token is not known") };
    if let Some(sent) = sent {
        assert!(sent.is_sensitive(), "it would be shown");
        assert_eq!(Some(&sent), authorization.as_ref());
        assert!(sent.as_bytes().to_ascii_lowercase().starts_with(b"basic "), "only logins are kept");
    }
    let mut changed = token.as_bytes().to_vec();
    let place = changed.len() - 1 - form.first().map_or(0, |byte| usize::from(*byte)) % 40;
    changed[place] = if changed[place] == b'A' { b'B' } else { b'A' };
    if let Ok(changed) = HeaderValue::from_bytes(&changed) {
        assert_eq!(logins.known(&changed), None, "a token was changed at {place}");
    }
}
