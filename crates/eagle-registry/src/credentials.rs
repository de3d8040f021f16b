//! Credentials for registries that docker's `config.json` holds, and Kubernetes' pull secrets in the
//! same form.
//!
//! Read are `auths` with `auth`, `username`, `password` and `identitytoken`. Programs (`credHelpers`,
//! `credsStore`) are not run. The files are read again when they change: a pull secret that is rotated
//! takes effect without a restart.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use base64::{Engine as _, alphabet, engine};
use http::HeaderValue;
use serde::Deserialize;
use tokio::time::Instant;
use url::Url;
use zeroize::Zeroizing;

use crate::{
    config::{ConfigError, CredentialsConfig, Secret},
    name::RegistryName,
};

/// Largest file that is read, bytes: Kubernetes' limit for a Secret.
const MAX_FILE: u64 = 1 << 20;
/// Room that reading to the end wants beyond a file's length: the standard library looks for the end with 32 bytes.
const READ_AHEAD: usize = 32;
/// How often a file is looked at, at most: a change is known within about a second, and a burst of
/// requests costs one look.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Registries that a warning names.
const MAX_NAMED: usize = 20;
/// Docker writes padded base64; people and tools leave the padding out.
const BASE64: engine::GeneralPurpose = engine::GeneralPurpose::new(
    &alphabet::STANDARD,
    engine::GeneralPurposeConfig::new().with_decode_padding_mode(engine::DecodePaddingMode::Indifferent),
);

/// The user name that stands for an identity token in place of a password (docker/docker-credential-helpers).
pub const IDENTITY_TOKEN_USER: &str = "<token>";

/// Who Eagle is at a registry when the caller does not say who it is itself; or who a caller is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Credentials {
    /// For Basic authentication and for token services.
    pub(crate) login: Option<(String, Secret)>,
    /// An OAuth 2.0 refresh token for the token service; preferred to the login there.
    pub(crate) identity_token: Option<Secret>,
}

impl Credentials {
    /// User and password.
    pub(crate) fn login(username: &str, password: &Secret) -> Self {
        Self { login: Some((username.to_owned(), password.clone())), identity_token: None }
    }

    /// What a caller says of itself by Basic authentication. The name `<token>` stands for an identity token, as docker's
    /// credential helpers have it.
    pub(crate) fn of_basic(authorization: &HeaderValue) -> Option<Self> {
        let (scheme, pair) = authorization.to_str().ok()?.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let pair = Zeroizing::new(BASE64.decode(pair.trim()).ok()?);
        let pair = str::from_utf8(&pair).ok()?;
        let (username, password) = pair.split_once(':').filter(|(username, _)| !username.is_empty())?;
        let password = Secret::new(password);
        if username == IDENTITY_TOKEN_USER {
            return Some(Self { login: None, identity_token: Some(password) });
        }
        Some(Self { login: Some((username.to_owned(), password)), identity_token: None })
    }

    /// The `Authorization` of Basic authentication (RFC 7617).
    pub(crate) fn basic(&self) -> Option<HeaderValue> {
        let (username, password) = self.login.as_ref()?;
        // Put together with room for all from the first: a text that grows moves, and leaves what it was behind.
        let mut pair = Zeroizing::new(String::with_capacity(username.len() + 1 + password.expose().len()));
        pair.extend([username, ":", password.expose()]);
        let pair = Zeroizing::new(BASE64.encode(pair.as_bytes()));
        let mut text = Zeroizing::new(String::with_capacity("Basic ".len() + pair.len()));
        text.extend(["Basic ", &pair]);
        let mut value = crate::headers::value(&text);
        value.set_sensitive(true);
        Some(value)
    }
}

/// By registry.
pub(crate) type Auths = BTreeMap<RegistryName, Credentials>;

/// The credentials of all configured files.
#[derive(Debug, Default)]
pub(crate) struct DockerConfigs(Vec<Arc<DockerConfig>>);

#[derive(Debug)]
struct DockerConfig {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    auths: Arc<Auths>,
    stamp: Stamp,
    looked: Instant,
}

/// What tells whether a file has changed. A mounted Secret changes by a symbolic link to another file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
}

impl DockerConfigs {
    /// Reads the files.
    ///
    /// # Errors
    /// When one cannot be read or is not a docker configuration.
    pub(crate) fn open(config: &CredentialsConfig) -> Result<Self, ConfigError> {
        let open = |path: &PathBuf| {
            let error = |reason| ConfigError::DockerConfig { file: path.clone(), reason };
            let (auths, stamp) = read(path).map_err(error)?;
            let state = State { auths: Arc::new(auths), stamp, looked: Instant::now() };
            Ok(Arc::new(DockerConfig { path: path.clone(), state: Mutex::new(state) }))
        };
        config.docker_configs.iter().map(open).collect::<Result<_, _>>().map(Self)
    }

    /// The credentials for the first of these names that a file has, files in order.
    pub(crate) async fn find(&self, names: &[RegistryName]) -> Option<Credentials> {
        for file in &self.0 {
            let auths = file.current().await;
            if let Some(found) = names.iter().find_map(|name| auths.get(name)) {
                return Some(found.clone());
            }
        }
        None
    }
}

impl DockerConfig {
    /// What the file holds, read again if it has changed. A file that has gone or makes no sense leaves
    /// what was known in place: it may be half written.
    async fn current(self: &Arc<Self>) -> Arc<Auths> {
        {
            let mut state = self.lock();
            if state.looked.elapsed() < LOOK_EVERY {
                return Arc::clone(&state.auths);
            }
            // Whoever comes in the meantime takes what is known.
            state.looked = Instant::now();
        }
        let this = Arc::clone(self);
        // A panic there would lose one look.
        let _ = tokio::task::spawn_blocking(move || this.look()).await;
        Arc::clone(&self.lock().auths)
    }

    fn look(&self) {
        let before = self.lock().stamp;
        let now = match fs::metadata(&self.path) {
            Ok(metadata) => stamp(&metadata),
            Err(error) => {
                let file = self.path.display();
                tracing::warn!(%file, %error, "a docker configuration cannot be read; what it held still counts");
                return;
            }
        };
        if now == before {
            return;
        }
        let result = read(&self.path);
        let mut state = self.lock();
        match result {
            Ok((auths, stamp)) => {
                tracing::info!(file = %self.path.display(), registries = auths.len(), "credentials were read again");
                *state = State { auths: Arc::new(auths), stamp, looked: state.looked };
            }
            Err(reason) => {
                let file = self.path.display();
                tracing::warn!(%file, reason, "a docker configuration cannot be used; what it held still counts");
                state.stamp = now;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics between two halves of a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn stamp(metadata: &fs::Metadata) -> Stamp {
    Stamp { modified: metadata.modified().ok(), length: metadata.len() }
}

/// Reads a file. Errors repeat nothing of its content.
fn read(path: &Path) -> Result<(Auths, Stamp), String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let metadata = file.metadata().map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("is not a file".to_owned());
    }
    // With room for the end of the file from the first, or the text would move and leave what it was behind.
    let length = usize::try_from(metadata.len().min(MAX_FILE)).unwrap_or_default();
    let mut text = Zeroizing::new(Vec::with_capacity(length + READ_AHEAD));
    file.take(MAX_FILE + 1).read_to_end(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 > MAX_FILE {
        return Err(format!("is larger than {MAX_FILE} bytes"));
    }
    Ok((parse(&text, path)?, stamp(&metadata)))
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    /// Registries whose credentials a program has.
    #[serde(default, rename = "credHelpers")]
    helpers: BTreeMap<String, serde::de::IgnoredAny>,
    /// The program that has all others.
    #[serde(default, rename = "credsStore")]
    store: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: Secret,
    username: String,
    password: Secret,
    identitytoken: Secret,
}

pub(crate) fn parse(text: &[u8], path: &Path) -> Result<Auths, String> {
    let document: Document = serde_json::from_slice(text).map_err(|error| {
        // The error's own text may quote the file.
        format!("is not a docker configuration: see line {}, column {}", error.line(), error.column())
    })?;
    let file = path.display();
    if let Some(registries) = with_helpers(&document) {
        tracing::warn!(
            %file,
            registries,
            "Eagle runs no credential helpers (credHelpers, credsStore), so it has no credentials for these; put a login into auths, or \
             into username and password of the registry in Eagle's configuration"
        );
    }
    let mut auths = Auths::new();
    for (key, entry) in document.auths {
        let Some(name) = registry(&key) else {
            tracing::warn!(%file, key, "credentials for something that is no registry's host are not used");
            continue;
        };
        match credentials(&entry) {
            Some(credentials) => {
                auths.insert(name, credentials);
            }
            None => tracing::warn!(%file, %name, "an entry without usable credentials"),
        }
    }
    Ok(auths)
}

/// The registries whose credentials only a program has; for people.
fn with_helpers(document: &Document) -> Option<String> {
    let has_login = |name: &str| document.auths.get(name).is_some_and(|entry| credentials(entry).is_some());
    let mut names: Vec<&str> = document.helpers.keys().map(String::as_str).filter(|name| !has_login(name)).collect();
    if document.store.is_some() {
        // docker leaves an empty entry for each login that it has put into the store.
        names.extend(document.auths.keys().map(String::as_str).filter(|name| !has_login(name)));
    }
    names.sort_unstable();
    names.dedup();
    let shown: Vec<&str> = names.iter().copied().take(MAX_NAMED).collect();
    (!names.is_empty()).then(|| shown.join(", "))
}

fn credentials(entry: &Entry) -> Option<Credentials> {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let decoded = || {
        let pair = Zeroizing::new(BASE64.decode(entry.auth.expose().trim()).ok()?);
        let (username, password) = str::from_utf8(&pair).ok()?.split_once(':')?;
        // Docker has written NUL at the end.
        Some((text(username)?, Secret::new(text(password.trim_end_matches('\0'))?)))
    };
    let secret = |secret: &Secret| text(secret.expose()).map(Secret::new);
    let login = decoded().or_else(|| Some((text(&entry.username)?, secret(&entry.password)?)));
    let identity_token = secret(&entry.identitytoken);
    (login.is_some() || identity_token.is_some()).then_some(Credentials { login, identity_token })
}

/// The registry that a key of `auths` means: `HOST[:PORT]`, or a URL of its API, version 1 or 2.
fn registry(key: &str) -> Option<RegistryName> {
    if !key.contains("://") && !key.contains('/') {
        return key.parse().ok();
    }
    let url: Url = if key.contains("://") { key.parse().ok()? } else { format!("https://{key}").parse().ok()? };
    if !matches!(url.path().trim_end_matches('/'), "" | "/v1" | "/v2") || !url.username().is_empty() {
        return None;
    }
    authority(&url)
}

/// Host and port of a URL as the name of a registry.
pub(crate) fn authority(url: &Url) -> Option<RegistryName> {
    let host = url.host_str()?;
    match url.port() {
        Some(port) => format!("{host}:{port}").parse().ok(),
        None => host.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(json: &str) -> Auths {
        parse(json.as_bytes(), Path::new("config.json")).unwrap()
    }

    fn names(text: &str) -> Vec<RegistryName> {
        vec![text.parse().unwrap()]
    }

    #[test]
    fn reads_the_forms_that_are_in_use() {
        let auths = parsed(
            r#"{"auths": {
                "https://index.docker.io/v1/": {"auth": "aHVi OnB3"},
                "ghcr.io": {"auth": "bWU6cDp3"},
                "quay.io": {"username": "q", "password": "pw", "email": "x@y", "auth": ""},
                "https://registry.example:5000/v2/": {"auth": "bWU6cHc", "identitytoken": "refresh"},
                "azure.example": {"auth": "MDAwMDo=", "identitytoken": "refresh"},
                "ghcr.io/team": {"auth": "bWU6cHc="},
                "*.example": {"auth": "bWU6cHc="},
                "empty.example": {},
                "bad.example": {"auth": "%%%"}
            }, "HttpHeaders": {"User-Agent": "x"}, "credsStore": "desktop"}"#
                .replace("aHVi OnB3", "aHViOnB3")
                .as_str(),
        );
        let login = |name: &str| {
            let login = auths.get(&name.parse::<RegistryName>().unwrap())?.login.clone()?;
            Some((login.0, login.1.expose().to_owned()))
        };
        let pair = |username: &str, password: &str| Some((username.to_owned(), password.to_owned()));
        assert_eq!(login("docker.io"), pair("hub", "pw"));
        assert_eq!(login("ghcr.io"), pair("me", "p:w"));
        assert_eq!(login("quay.io"), pair("q", "pw"));
        assert_eq!(login("registry.example:5000"), pair("me", "pw"));
        assert_eq!(login("azure.example"), None);
        let token = |name: &str| auths[&name.parse::<RegistryName>().unwrap()].identity_token.clone();
        assert_eq!(token("azure.example"), Some(Secret::new("refresh")));
        assert_eq!(auths.len(), 5, "{auths:?}");
        assert!(!format!("{auths:?}").contains("pw"), "{auths:?}");
        assert_eq!(auths[&"ghcr.io".parse::<RegistryName>().unwrap()].basic().unwrap(), "Basic bWU6cDp3");
    }

    #[test]
    fn says_which_credentials_only_programs_have() {
        let names = |json: &str| with_helpers(&serde_json::from_str(json).unwrap());
        let full = r#"{"auths": {"a.b": {"auth": "YTpi"}, "c.d": {}}, "credsStore": "desktop", "credHelpers": {"e.f": "ecr-login", "a.b": "x"}}"#;
        assert_eq!(names(full).as_deref(), Some("c.d, e.f"));
        assert_eq!(names(r#"{"auths": {"a.b": {"auth": "YTpi"}}, "credsStore": "desktop"}"#), None);
        assert_eq!(names(r#"{"auths": {"c.d": {}}}"#), None);
    }

    #[test]
    fn says_what_is_wrong_and_repeats_nothing() {
        for bad in ["", "5", r#"{"auths": {"a.b": {"auth": "c2VjcmV0"#, r#"{"auths": {"a.b": {"auth": 12345}}}"#] {
            let error = parse(bad.as_bytes(), Path::new("config.json")).unwrap_err();
            assert!(error.contains("line") && !error.contains("c2VjcmV0") && !error.contains("12345"), "{error}");
        }
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.json");
        let open = |file: &Path| DockerConfigs::open(&CredentialsConfig { docker_configs: vec![file.to_owned()] });
        assert!(open(&file).unwrap_err().to_string().contains("config.json"));
        assert!(open(directory.path()).unwrap_err().to_string().contains("not a file"));
        fs::write(&file, vec![b' '; (1 << 20) + 1]).unwrap();
        assert!(open(&file).unwrap_err().to_string().contains("larger"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_counts_and_a_broken_file_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.json");
        let write = |text: &str| {
            let new = directory.path().join("new");
            fs::write(&new, text).unwrap();
            fs::rename(&new, &file).unwrap();
        };
        let user = async |configs: &DockerConfigs| {
            // The clock of the test jumps; the task that reads the file is not waited for by it.
            tokio::time::sleep(LOOK_EVERY).await;
            configs.find(&names("a.b")).await.and_then(|found| found.login).map(|login| login.0)
        };
        write(r#"{"auths": {"a.b": {"username": "first", "password": "x"}}}"#);
        let configs = DockerConfigs::open(&CredentialsConfig { docker_configs: vec![file.clone()] }).unwrap();
        assert_eq!(user(&configs).await.as_deref(), Some("first"));
        write(r#"{"auths": {"a.b": {"username": "another", "password": "x"}}}"#);
        assert_eq!(user(&configs).await.as_deref(), Some("another"));
        write(r#"{"auths": {"a.b": {"#);
        assert_eq!(user(&configs).await.as_deref(), Some("another"));
        fs::remove_file(&file).unwrap();
        assert_eq!(user(&configs).await.as_deref(), Some("another"));
        write(r#"{"auths": {}}"#);
        assert_eq!(user(&configs).await, None);
    }

    proptest! {
        #[test]
        fn never_panics(text in ".{0,200}", key in "[ -~]{0,60}") {
            let _ = parse(text.as_bytes(), Path::new("x"));
            let _ = registry(&key);
            let entry = Entry { auth: Secret::new(text), ..Entry::default() };
            let _ = credentials(&entry);
        }
    }
}
