//! Who a runtime is at the registry, for runtimes that say so only to who asks.
//!
//! docker, podman, CRI-O and skopeo send credentials only where the answer to `GET /v2/` asks for them. So the mirror asks,
//! by a challenge that names this very proxy as the token service (distribution's "Token Authentication Specification").
//! Who has no credentials is given a token for nobody, so that public images need nothing, neither of the user nor of
//! a registry that may be down. Who has some gets them back, sealed under a key that ends with this process, as
//! the token that comes with each request, and is nobody else to the registry than it would be without Eagle.
//!
//! A token counts for the registry that its scope names, and for no other: what was given for one is never shown to
//! another one.

use std::time::Duration;

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    rand,
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use eagle_registry::{Caller, IDENTITY_TOKEN_USER, RegistryName, Secret, errors::ErrorCode};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header, request::Parts, uri::Authority};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::{Instant, timeout};
use url::form_urlencoded;
use zeroize::{Zeroize as _, Zeroizing};

use crate::{
    answer::{self, ResponseBody},
    config::Login,
    upstream,
};

/// Path of the token service.
pub(crate) const TOKEN_PATH: &str = "/eagle/token";
/// What the tokens of this service begin with; those of registries are base64 or JSON Web Tokens.
const PREFIX: &str = "Bearer eagle-sealed.";
/// Name of this service in challenges.
const SERVICE: &str = "eagle";
/// Lifetime that clients are told: that of Docker Hub's tokens. They ask for a new one after that.
const LIFETIME: Duration = Duration::from_secs(300);
/// For how much longer a token is taken: it may have been sent just before its end, or wait in a queue.
const GRACE: Duration = Duration::from_secs(60);
/// Longest form of a `POST`, bytes: an identity token has up to some KiB.
const MAX_FORM: usize = 32 << 10;
/// Time for such a form to come.
const FORM_DEADLINE: Duration = Duration::from_secs(10);

/// Asks runtimes who they are, and knows them again.
#[derive(Debug)]
pub(crate) struct Gate {
    mode: Login,
    default_registry: RegistryName,
    key: RandomizedNonceKey,
    started: Instant,
}

/// Bytes of a token beside the credentials: names of fields, a registry (at most 255), a number, and the seal's end.
const TICKET_ROOM: usize = 512;

/// What a token holds. The credentials are wiped from memory with it.
#[derive(Serialize, Deserialize)]
struct Ticket {
    /// Of the scope that it was asked for; none when it was asked for none, as `podman login` does.
    registry: Option<RegistryName>,
    /// `Authorization` at the registry, of Basic authentication.
    authorization: Option<String>,
    /// Seconds of this process.
    until: u64,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.authorization.zeroize();
    }
}

/// Who a request is from.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Guest {
    /// It says so itself, or not at all, in the registry's own terms.
    Stranger,
    /// It has a token of this proxy for this registry, and by now its own credentials in the header.
    Known(Option<RegistryName>),
    /// Its token is no more worth anything.
    Expired,
}

impl Guest {
    /// Whether it may turn to this registry as what it says it is.
    pub(crate) fn is_for(&self, registry: &RegistryName) -> bool {
        match self {
            Self::Stranger => true,
            Self::Known(named) => named.as_ref() == Some(registry),
            Self::Expired => false,
        }
    }
}

impl Gate {
    /// Asks whom `mode` says. Requests that name no registry mean `default_registry`.
    pub(crate) fn new(mode: Login, default_registry: RegistryName) -> Result<Self, aws_lc_rs::error::Unspecified> {
        let mut key = [0; 32];
        rand::fill(&mut key)?;
        let key = RandomizedNonceKey::new(&AES_256_GCM, &key)?;
        Ok(Self { mode, default_registry, key, started: Instant::now() })
    }

    /// Whether this service is there for who has connected to this address.
    pub(crate) fn serves(&self, local: std::net::SocketAddr) -> bool {
        match self.mode {
            Login::Off => false,
            Login::Loopback => local.ip().is_loopback(),
            Login::Any => true,
        }
    }

    /// The question who is there. `host` is what the client calls this proxy.
    pub(crate) fn challenge(&self, host: &str, guest: &Guest) -> Response<ResponseBody> {
        let message = "say who you are, or that you are nobody: the token service in WWW-Authenticate takes both";
        let mut response = answer::error(StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized, message);
        let problem = if *guest == Guest::Stranger { "" } else { ",error=\"invalid_token\"" };
        let challenge = format!("Bearer realm=\"http://{host}{TOKEN_PATH}\",service=\"{SERVICE}\"{problem}");
        if let Ok(challenge) = HeaderValue::from_str(&challenge) {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }

    /// Looks for a token of this service, and puts what it stands for in its place.
    pub(crate) fn recognise(&self, headers: &mut HeaderMap) -> Guest {
        let token = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix(PREFIX));
        let Some(token) = token else { return Guest::Stranger };
        let ticket = self.open(token);
        headers.remove(header::AUTHORIZATION);
        let Some(mut ticket) = ticket.filter(|ticket| self.now() <= ticket.until) else { return Guest::Expired };
        if let Some(mut value) = ticket.authorization.as_ref().and_then(|value| HeaderValue::from_str(value).ok()) {
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        Guest::Known(ticket.registry.take())
    }

    /// Answers a request for a token: `GET` with Basic authentication or nothing, or the `POST` of OAuth 2.0 (RFC 6749,
    /// 4.3.2 and 6).
    pub(crate) async fn token(&self, parts: Parts, body: Incoming) -> Response<ResponseBody> {
        let query = parts.uri.query().unwrap_or_default();
        let (form, caller) = match parts.method {
            Method::GET => (Bytes::copy_from_slice(query.as_bytes()), Caller::of(&parts.headers)),
            Method::POST => {
                let read = timeout(FORM_DEADLINE, Limited::new(body, MAX_FORM).collect());
                let Ok(Ok(form)) = read.await else {
                    let message = format!("the form did not come, or has more than {MAX_FORM} bytes");
                    return answer::error(StatusCode::BAD_REQUEST, ErrorCode::Unsupported, message);
                };
                let form = form.to_bytes();
                let Some(caller) = posted(&form) else {
                    let message = "grant_type is password or refresh_token, with what belongs to it";
                    return answer::error(StatusCode::BAD_REQUEST, ErrorCode::Unsupported, message);
                };
                (form, caller)
            }
            _ => {
                let message = "tokens are asked for by GET or POST";
                return answer::error(StatusCode::METHOD_NOT_ALLOWED, ErrorCode::Unsupported, message);
            }
        };
        let Some(token) = self.grant(&form, &caller) else {
            return answer::error(StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Unknown, "no token can be made");
        };
        let token = token.strip_prefix("Bearer ").unwrap_or_default();
        // Under both names; clients take one or the other.
        let body = json!({ "token": token, "access_token": token, "expires_in": LIFETIME.as_secs() }).to_string();
        let mut response = Response::new(answer::full(body));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }

    /// The token that a form gets, as `Authorization`; `None` when there is no randomness.
    pub(crate) fn grant(&self, form: &[u8], caller: &Caller) -> Option<String> {
        let registry = self.registry_of(form);
        // Whatever else a client might send is nothing that a token service knows.
        let authorization = caller.authorization.as_ref().filter(|_| caller.has_password());
        let authorization = match &registry {
            Some((_, is_named)) if !is_named && !self.default_registry.is_docker_hub() => {
                // docker names no registry because it means Docker Hub, and these are its credentials for Docker Hub.
                None
            }
            _ => authorization.and_then(|value| value.to_str().ok()).map(str::to_owned),
        };
        let until = self.now() + (LIFETIME + GRACE).as_secs();
        self.seal(&Ticket { registry: registry.map(|(registry, _)| registry), authorization, until })
    }

    /// The registry of the first scope that names an image, and whether it does so itself.
    fn registry_of(&self, form: &[u8]) -> Option<(RegistryName, bool)> {
        let scopes = form_urlencoded::parse(form).filter(|(key, _)| key == "scope").map(|(_, value)| value);
        scopes.into_iter().find_map(|scopes| {
            scopes.split_ascii_whitespace().find_map(|scope| {
                // The name may begin with a registry that has a port.
                let (name, _) = scope.strip_prefix("repository:")?.rsplit_once(':')?;
                let upstream = upstream::resolve(name, None, &self.default_registry).ok()?;
                Some((upstream.registry, upstream.repository.as_str() != name))
            })
        })
    }

    fn now(&self) -> u64 {
        self.started.elapsed().as_secs()
    }

    fn seal(&self, ticket: &Ticket) -> Option<String> {
        // With room for all from the first: what grows moves, and leaves what it was behind.
        let length = ticket.authorization.as_ref().map_or(0, String::len);
        let mut sealed = Zeroizing::new(Vec::with_capacity(length + TICKET_ROOM));
        serde_json::to_writer(&mut *sealed, ticket).ok()?;
        let nonce = self.key.seal_in_place_append_tag(Aad::empty(), &mut *sealed).ok()?;
        sealed.extend_from_slice(nonce.as_ref());
        Some(format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(sealed.as_slice())))
    }

    fn open(&self, token: &str) -> Option<Ticket> {
        let mut sealed = Zeroizing::new(BASE64_URL_SAFE_NO_PAD.decode(token).ok()?);
        let end = sealed.len().checked_sub(NONCE_LEN)?;
        let nonce: [u8; NONCE_LEN] = sealed.split_off(end).try_into().ok()?;
        let nonce = Nonce::assume_unique_for_key(nonce);
        let ticket = self.key.open_in_place(nonce, Aad::empty(), &mut sealed).ok()?;
        serde_json::from_slice(ticket).ok()
    }
}

/// Who the form of a `POST` names.
pub(crate) fn posted(form: &[u8]) -> Option<Caller> {
    let value = |name: &str| {
        let found = form_urlencoded::parse(form).find(|(key, _)| key == name);
        found.map(|(_, value)| value.into_owned()).filter(|value| !value.is_empty())
    };
    match value("grant_type")?.as_str() {
        "password" => Some(Caller::with_password(&value("username")?, &Secret::new(value("password")?))),
        "refresh_token" => Some(Caller::with_password(IDENTITY_TOKEN_USER, &Secret::new(value("refresh_token")?))),
        _ => None,
    }
}

/// What a client calls this proxy: the only name of it that is known to lead here from there.
pub(crate) fn host(headers: &HeaderMap, local: std::net::SocketAddr) -> String {
    let named = headers.get(header::HOST).and_then(|value| value.to_str().ok()?.parse::<Authority>().ok());
    named
        .filter(|host| host.as_str().bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte)))
        .map_or_else(|| local.to_string(), |host| host.to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn gate() -> Gate {
        Gate::new(Login::Loopback, "docker.io".parse().unwrap()).unwrap()
    }

    fn with(token: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, token.parse().unwrap());
        headers
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_for_one_registry_one_process_and_some_minutes() {
        let (gate, other) = (gate(), gate());
        let registry: RegistryName = "ghcr.io".parse().unwrap();
        let until = gate.now() + 10;
        let ticket = Ticket { registry: Some(registry.clone()), authorization: Some("Basic YTpi".to_owned()), until };
        let token = gate.seal(&ticket).unwrap();
        assert!(!token.contains("YTpi"));
        let mut headers = with(&token);
        let guest = gate.recognise(&mut headers);
        assert!(guest.is_for(&registry) && !guest.is_for(&"quay.io".parse().unwrap()));
        assert_eq!(headers.get(header::AUTHORIZATION).unwrap(), "Basic YTpi");
        assert!(!format!("{headers:?}").contains("YTpi"));
        let mut headers = with(&token);
        assert_eq!(other.recognise(&mut headers), Guest::Expired);
        assert!(headers.is_empty(), "what is sealed goes no further");
        tokio::time::advance(Duration::from_secs(11)).await;
        assert_eq!(gate.recognise(&mut with(&token)), Guest::Expired);
        for own in ["Basic YTpi", "Bearer eyJhbGciOiJFUzI1NiJ9.e30.x", "Bearer eagle"] {
            let mut headers = with(own);
            assert_eq!(gate.recognise(&mut headers), Guest::Stranger);
            assert_eq!(headers, with(own));
        }
    }

    #[tokio::test]
    async fn scopes_name_registries() {
        let gate = gate();
        let of =
            |form: &str| gate.registry_of(form.as_bytes()).map(|(registry, is_named)| (registry.to_string(), is_named));
        let some = |registry: &str, is_named| Some((registry.to_owned(), is_named));
        assert_eq!(of("scope=repository%3Aapp%2Fx%3Apull&service=eagle"), some("docker.io", false));
        assert_eq!(of("scope=repository:docker.io/app/x:pull"), some("docker.io", true));
        assert_eq!(of("scope=repository:localhost:5000/x:pull,push"), some("localhost:5000", true));
        assert_eq!(of("scope=registry:catalog:*+repository:quay.io/a:pull"), some("quay.io", true));
        for none in ["", "service=eagle", "scope=", "scope=repository:", "scope=repository:..:pull", "scope=%ff"] {
            assert_eq!(of(none), None, "{none}");
        }
    }

    #[test]
    fn the_forms_of_oauth_name_callers() {
        let basic = |form: &str| {
            posted(form.as_bytes()).map(|caller| caller.authorization.unwrap().to_str().unwrap().to_owned())
        };
        assert_eq!(basic("grant_type=password&username=a&password=b%26").as_deref(), Some("Basic YTpiJg=="));
        assert_eq!(basic("grant_type=refresh_token&refresh_token=x").as_deref(), Some("Basic PHRva2VuPjp4"));
        for bad in ["", "grant_type=password", "grant_type=password&username=a", "grant_type=implicit", "\u{0}"] {
            assert_eq!(basic(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_realm_is_what_the_client_calls_the_proxy() {
        let local = "127.0.0.1:43002".parse().unwrap();
        let of = |name: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_bytes(name).unwrap());
            host(&headers, local)
        };
        assert_eq!(of(b"localhost:43002"), "localhost:43002");
        assert_eq!(of(b"[::1]:43002"), "[::1]:43002");
        for odd in [&b"u:p@evil"[..], b"a\"b", b"a/b", b"\xff", b"a b", b"a,b", b"a%22b"] {
            assert_eq!(of(odd), "127.0.0.1:43002", "{odd:?}");
        }
    }

    proptest! {
        #[test]
        fn what_was_not_sealed_here_is_nobody(token in "[A-Za-z0-9_-]{0,200}") {
            let headers = &mut with(&format!("{PREFIX}{token}"));
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let guest = runtime.block_on(async { gate().recognise(headers) });
            prop_assert_eq!(guest, Guest::Expired);
            prop_assert!(headers.is_empty());
        }
    }
}
