//! The places where the content of a registry is: its mirrors in order, and the registry itself.
//!
//! A caller with credentials of its own is dealt with by the registry alone, which is the one to know
//! them and to say what this caller may read. All others are Eagle's own requests, and go to the
//! mirrors first. A mirror counts only when it has what is asked for; the last word is the registry's.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use eagle_core::Digest;
use lru::LruCache;
use tokio::time::Instant;
use url::{Origin, Url};

use super::auth::{Authenticator, CredentialSource};
use crate::{
    caller::Caller,
    config::RegistryConfig,
    credentials::{Credentials, DockerConfigs, authority},
    name::RegistryName,
};

/// How long a mirror that could not be reached is tried last: long enough that a dead one costs few
/// pulls a deadline, short enough that one that is back is used.
const DOWN_FOR: Duration = Duration::from_secs(30);
/// Blobs of which it is known which host served them: several times as many as are fetched at once.
const MAX_SERVED: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

/// One place.
pub(super) struct Host {
    /// What comes before the path of the API: a URL that ends in `/v2`, or has more after it.
    api: String,
    pub(super) auth: Authenticator,
    /// When it could not be reached last.
    down: Mutex<Option<Instant>>,
    /// Until when it wants no more of Eagle's own requests: for anything but blobs, and for blobs. Docker
    /// Hub, for one, limits manifests alone.
    pauses: Mutex<[Option<Instant>; 2]>,
}

impl Host {
    fn new(base: &str, auth: Authenticator) -> Self {
        let path = base.split_once("://").map_or(base, |(_, rest)| rest);
        // As in the host configuration of containerd: `https://HOST/v2/PREFIX` names the API itself.
        let api = if path.split('/').any(|segment| segment == "v2") { base.to_owned() } else { format!("{base}/v2") };
        Self { api, auth, down: Mutex::default(), pauses: Mutex::default() }
    }

    /// The URL of a path below `/v2/`.
    pub(super) fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.api)
    }

    pub(super) fn mark_down(&self) {
        *lock(&self.down) = Some(Instant::now());
    }

    pub(super) fn mark_up(&self) {
        *lock(&self.down) = None;
    }

    fn is_down(&self) -> bool {
        lock(&self.down).is_some_and(|at| at.elapsed() < DOWN_FOR)
    }

    /// Notes that it asked to be left alone for this long.
    pub(super) fn pause(&self, blobs: bool, delay: Duration) {
        lock(&self.pauses)[usize::from(blobs)] = Some(Instant::now() + delay);
    }

    /// How much longer it wants to be left alone.
    pub(super) fn paused(&self, blobs: bool) -> Option<Duration> {
        let until = lock(&self.pauses)[usize::from(blobs)];
        let left = until?.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }
}

/// All places of one registry.
pub(super) struct Hosts {
    mirrors: Vec<Host>,
    registry: Host,
    served: Mutex<LruCache<Digest, Served>>,
}

/// Who gave a blob last, and who is not to be asked for it if that can be helped.
#[derive(Debug, Clone, Copy, Default)]
struct Served {
    by: usize,
    not: Option<usize>,
}

impl Hosts {
    pub(super) fn new(config: &RegistryConfig, files: &Arc<DockerConfigs>) -> Self {
        let name = config.name.as_str();
        let mirror = |url: &Url| {
            let source = CredentialSource::Files(Arc::clone(files), authority(url).into_iter().collect());
            // Errors name the registry, whose mirror it is.
            Host::new(trimmed(url), Authenticator::new(name.to_owned(), url.scheme() == "http", source))
        };
        let base = config.base();
        let source = match config.username.as_deref().zip(config.password.as_ref()) {
            Some((username, password)) => CredentialSource::Configured(Credentials::login(username, password)),
            None => CredentialSource::Files(Arc::clone(files), names(config, &base)),
        };
        let auth = Authenticator::new(name.to_owned(), base.starts_with("http://"), source);
        Self {
            mirrors: config.mirrors.iter().map(mirror).collect(),
            registry: Host::new(&base, auth),
            served: Mutex::new(LruCache::new(MAX_SERVED)),
        }
    }

    /// Hosts to which a client certificate is shown.
    pub(super) fn origins(config: &RegistryConfig) -> Arc<[Origin]> {
        let base = config.base().parse::<Url>().ok();
        config.mirrors.iter().chain(&base).map(Url::origin).collect()
    }

    /// Those to ask, in order, each with its number.
    pub(super) fn order(&self, caller: &Caller, blob: Option<Digest>) -> Vec<(usize, &Host)> {
        let own = (self.mirrors.len(), &self.registry);
        if !caller.is_anonymous() || self.mirrors.is_empty() {
            return vec![own];
        }
        let avoided = blob.and_then(|blob| lock(&self.served).peek(&blob).and_then(|served| served.not));
        let numbered = self.mirrors.iter().enumerate();
        let (last, mut order): (Vec<_>, Vec<_>) =
            numbered.partition(|(number, host)| host.is_down() || Some(*number) == avoided);
        order.push(own);
        order.extend(last);
        if avoided == Some(own.0) {
            order.retain(|(number, _)| *number != own.0);
            order.push(own);
        }
        order
    }

    /// The registry itself.
    pub(super) const fn registry(&self) -> &Host {
        &self.registry
    }

    /// Whether this is the registry itself.
    pub(super) fn is_registry(&self, number: usize) -> bool {
        number == self.mirrors.len()
    }

    /// Notes who gives a blob.
    pub(super) fn serves(&self, blob: Digest, number: usize) {
        if !self.mirrors.is_empty() {
            lock(&self.served).get_or_insert_mut(blob, Served::default).by = number;
        }
    }

    /// Notes that what came last for a blob was something else: others are asked first from now on.
    pub(super) fn distrust(&self, blob: &Digest) {
        if let Some(served) = lock(&self.served).get_mut(blob) {
            served.not = Some(served.by);
        }
    }
}

/// Under which names files may hold credentials for a registry: that of the host which gets them, and
/// its own. But what is for Docker Hub goes nowhere else.
fn names(config: &RegistryConfig, base: &str) -> Vec<RegistryName> {
    let host = base.parse().ok().as_ref().and_then(authority);
    let own = Some(config.name.clone()).filter(|name| !name.is_docker_hub() || Some(name) == host.as_ref());
    host.into_iter().chain(own).collect()
}

fn trimmed(url: &Url) -> &str {
    url.as_str().trim_end_matches('/')
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change under these locks is a single assignment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn hosts() -> Hosts {
        let mirrors = ["http://m0/", "https://m1/v2/hub/"].map(|url| url.parse().unwrap()).to_vec();
        let config = RegistryConfig { mirrors, ..RegistryConfig::new("docker.io".parse().unwrap()) };
        Hosts::new(&config, &Arc::default())
    }

    fn order(hosts: &Hosts, blob: Option<Digest>) -> Vec<usize> {
        hosts.order(&Caller::anonymous(), blob).iter().map(|(number, _)| *number).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn mirrors_come_first_unless_they_are_down_or_gave_other_content() {
        let hosts = hosts();
        let blob = Digest::of(b"x");
        assert_eq!(order(&hosts, None), [0, 1, 2]);
        hosts.mirrors[0].mark_down();
        assert_eq!(order(&hosts, None), [1, 2, 0]);
        tokio::time::advance(DOWN_FOR).await;
        assert_eq!(order(&hosts, None), [0, 1, 2]);
        hosts.serves(blob, 0);
        assert_eq!(order(&hosts, Some(blob)), [0, 1, 2]);
        hosts.distrust(&blob);
        assert_eq!(order(&hosts, Some(blob)), [1, 2, 0]);
        assert_eq!(order(&hosts, Some(Digest::of(b"y"))), [0, 1, 2]);
        hosts.serves(blob, 2);
        hosts.distrust(&blob);
        assert_eq!(order(&hosts, Some(blob)), [0, 1, 2]);
        let caller = Caller { authorization: Some(HeaderValue::from_static("Basic eA==")), ..Caller::anonymous() };
        assert_eq!(hosts.order(&caller, None).len(), 1, "a mirror never sees a caller's credentials");
        assert!(hosts.is_registry(hosts.order(&caller, None)[0].0));
    }

    #[test]
    fn the_api_is_below_v2_once() {
        let hosts = hosts();
        assert_eq!(hosts.registry.url("a/tags/list"), "https://registry-1.docker.io/v2/a/tags/list");
        assert_eq!(hosts.mirrors[0].url("a/tags/list"), "http://m0/v2/a/tags/list");
        assert_eq!(hosts.mirrors[1].url("a/tags/list"), "https://m1/v2/hub/a/tags/list");
    }

    #[test]
    fn credentials_for_docker_hub_stay_there() {
        let of = |name: &str, url: Option<&str>| {
            let url = url.map(|url| url.parse().unwrap());
            let config = RegistryConfig { url, ..RegistryConfig::new(name.parse().unwrap()) };
            names(&config, &config.base()).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(of("docker.io", None), ["docker.io", "docker.io"]);
        assert_eq!(of("docker.io", Some("https://harbor.example")), ["harbor.example"]);
        assert_eq!(of("r.example", Some("http://10.0.0.1:5000")), ["10.0.0.1:5000", "r.example"]);
    }
}
