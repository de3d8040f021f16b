//! What is the registry's own business: pushes, and whatever a client of the forward proxy asks its host besides images.
//!
//! Passed on with the caller's credentials and its content, and answered as the registry answers. Where a client pushes
//! through the mirror, the registry's `Location` is made one of this proxy, so that the next step of the upload comes
//! here too; and who was asked for its name and password by this proxy is shown to the registry by what that wants, a
//! token of its own token service for instance.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    num::NonZeroUsize,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use eagle_registry::{Caller, RegistryName, RelayRequest, errors::ErrorCode};
use http::{HeaderValue, Method, Response, StatusCode, header, request::Parts};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use lru::LruCache;

use super::Service;
use crate::{
    answer::{self, ResponseBody},
    login::Guest,
    path::PushPath,
    upstream::Upstream,
};

/// Uploads under way that are remembered. Each has one place at a time, and the registry's name for it, at most 16 KiB.
const MAX_UPLOADS: NonZeroUsize = NonZeroUsize::new(512).expect("not zero");

/// Where the registries want the next part of each upload.
#[derive(Debug)]
pub(crate) struct Uploads {
    /// By the session that the client was told.
    targets: Mutex<LruCache<String, (RegistryName, String)>>,
    number: AtomicU64,
    /// Makes sessions hard to guess; the registry decides all the same who may do what.
    random: RandomState,
}

impl Uploads {
    pub(crate) fn new() -> Self {
        Self { targets: Mutex::new(LruCache::new(MAX_UPLOADS)), number: AtomicU64::new(0), random: RandomState::new() }
    }

    fn put(&self, registry: &RegistryName, target: String) -> String {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let mut hasher = self.random.build_hasher();
        hasher.write_u64(number);
        let session = format!("{number:x}-{:016x}", hasher.finish());
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        targets.put(session.clone(), (registry.clone(), target));
        session
    }

    fn get(&self, registry: &RegistryName, session: &str) -> Option<String> {
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        targets.get(session).filter(|(of, _)| of == registry).map(|(_, target)| target.clone())
    }
}

impl Service {
    /// A step of a push through the mirror. `name` is the repository as it stands in the request.
    pub(super) async fn push(
        &self,
        parts: Parts,
        body: Incoming,
        name: &str,
        path: PushPath,
        upstream: Upstream,
        guest: &Guest,
    ) -> Response<ResponseBody> {
        let mut parts = parts;
        let caller = Caller::of(&parts.headers);
        let method = parts.method.clone();
        let Upstream { registry, repository, query } = upstream;
        let query = query.unwrap_or_default();
        let target = match &path {
            PushPath::Upload(Some(session)) => match self.uploads.get(&registry, session) {
                // The registry's own query, a state for instance, comes first.
                Some(target) => join_query(&target, &query),
                None => {
                    let message = "this proxy does not know the upload; begin it again";
                    return answer::error(StatusCode::NOT_FOUND, ErrorCode::BlobUploadUnknown, message);
                }
            },
            path => join_query(&format!("/v2/{repository}/{}", path.suffix()), &query),
        };
        let changed = match &path {
            PushPath::Manifest(reference) if matches!(parts.method, Method::PUT | Method::DELETE) => Some(reference),
            _ => None,
        };
        let namespace = parts.uri.query().unwrap_or_default().split('&').find(|pair| pair.starts_with("ns="));
        let namespace = namespace.map(str::to_owned);
        // Who has come by this proxy's own token service cannot go to the registry's.
        let authorizes = matches!(guest, Guest::Known(_)) && caller.has_password();
        let origin = self.registries.get(&registry);
        let mut shown = None;
        if authorizes {
            shown = match origin.authorize_push(&caller, &repository, &method, None).await {
                Ok(authorization) => authorization,
                Err(error) => {
                    return answer::error(StatusCode::BAD_GATEWAY, ErrorCode::Unavailable, error.to_string());
                }
            };
            parts.headers.remove(header::AUTHORIZATION);
            parts.headers.extend(shown.clone().map(|value| (header::AUTHORIZATION, value)));
        }
        let mut response = self.relay(&registry, parts, target, body).await;
        if authorizes && response.status() == StatusCode::UNAUTHORIZED {
            // The registry's challenge is not for this client; what it shows next time is new.
            response.headers_mut().remove(header::WWW_AUTHENTICATE);
            if let Err(error) = origin.authorize_push(&caller, &repository, &method, shown.as_ref()).await {
                tracing::debug!(%registry, %error, "no new token for a push that was refused");
            }
        }
        if let Some(reference) = changed.filter(|_| response.status().is_success()) {
            // Before the client knows that it has pushed: whoever pulls after that gets what was pushed.
            self.manifests.forget_for_all(&registry, &repository, reference);
            self.seeders.changed(&registry, &repository, reference).await;
        }
        let location = response.headers_mut().remove(header::LOCATION);
        let location = location.and_then(|location| location.to_str().map(str::to_owned).ok());
        if let Some(location) = location {
            let own = self.registries.get(&registry).own_target(&location);
            let back = match own {
                // An object store, say, which takes the content itself.
                None if location.starts_with("https://") => Some(location),
                None => None,
                Some(target) if response.status() == StatusCode::CREATED => {
                    let (path, _) = target.split_once('?').unwrap_or((&target, ""));
                    let made = path.rsplit_once(&format!("/{repository}/")).map(|(_, made)| made.to_owned());
                    made.map(|made| join_query(&format!("/v2/{name}/{made}"), namespace.as_deref().unwrap_or_default()))
                }
                Some(target) => {
                    let session = self.uploads.put(&registry, target);
                    let path = format!("/v2/{name}/blobs/uploads/{session}");
                    Some(join_query(&path, namespace.as_deref().unwrap_or_default()))
                }
            };
            if let Some(back) = back.and_then(|back| HeaderValue::from_str(&back).ok()) {
                response.headers_mut().insert(header::LOCATION, back);
            }
        }
        response
    }

    /// Passes a request on to the registry's own host.
    pub(super) async fn relay(
        &self,
        registry: &RegistryName,
        parts: Parts,
        target: String,
        body: Incoming,
    ) -> Response<ResponseBody> {
        let body = body.map_err(Into::into).boxed_unsync();
        let is_base = parts.method == Method::GET && target == "/v2/";
        let request = RelayRequest { method: parts.method, target, headers: parts.headers, body };
        match self.registries.get(registry).relay(request).await {
            Ok(response) => response.map(|body| body.map_err(Into::into).boxed_unsync()),
            // Without the registry, what peers have should be had all the same.
            Err(error) if is_base => {
                tracing::warn!(%registry, %error, "a registry does not say whether it is one; Eagle does");
                answer::base()
            }
            Err(error) => answer::error(StatusCode::BAD_GATEWAY, ErrorCode::Unavailable, error.to_string()),
        }
    }
}

fn join_query(target: &str, query: &str) -> String {
    match (query.is_empty(), target.contains('?')) {
        (true, _) => target.to_owned(),
        (false, true) => format!("{target}&{query}"),
        (false, false) => format!("{target}?{query}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_belong_to_a_registry_and_are_bounded() {
        let uploads = Uploads::new();
        let (a, b): (RegistryName, RegistryName) = ("a.example".parse().unwrap(), "b.example".parse().unwrap());
        let session = uploads.put(&a, "/upload/1".to_owned());
        assert_eq!(uploads.get(&a, &session).as_deref(), Some("/upload/1"));
        assert_eq!(uploads.get(&b, &session), None);
        for number in 0..MAX_UPLOADS.get() {
            uploads.put(&a, number.to_string());
        }
        assert_eq!(uploads.get(&a, &session), None);
        assert_eq!(uploads.targets.lock().unwrap().len(), MAX_UPLOADS.get());
    }

    #[test]
    fn queries_are_joined() {
        assert_eq!(join_query("/a", ""), "/a");
        assert_eq!(join_query("/a", "x=1"), "/a?x=1");
        assert_eq!(join_query("/a?s=1", "x=1"), "/a?s=1&x=1");
    }
}
