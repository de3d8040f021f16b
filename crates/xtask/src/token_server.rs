//! The token service of a registry (Docker's "Token Authentication Specification"): signs what the registry is
//! configured to believe.
//!
//! One thread, one connection at a time: the scenarios ask for a handful of tokens.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

const SERVICE: &str = "registry";
const ISSUER: &str = "the scenarios";
/// Docker Distribution 2.8 takes a token for so long after its end (`Leeway` in its registry/auth/token).
const LEEWAY: u64 = 60;
/// Longest request that is read, bytes.
const MAX_REQUEST: u64 = 64 << 10;
/// How long a client may take to say something.
const PATIENCE: Duration = Duration::from_secs(10);

/// Who may get a token, and for which repository.
#[derive(Debug, Clone)]
pub(crate) struct Account {
    pub(crate) password: String,
    /// An OAuth 2.0 refresh token that stands for the account.
    pub(crate) identity_token: String,
    /// What the account may pull.
    pub(crate) repository: Option<String>,
    /// Whether it may push there too.
    pub(crate) pushes: bool,
}

type Accounts = Arc<Mutex<BTreeMap<String, Account>>>;

/// A running token service.
#[derive(Debug)]
pub(crate) struct TokenServer {
    address: SocketAddr,
    certificate: String,
    accounts: Accounts,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

struct Signer {
    key: EncodingKey,
    certificate: String,
    lifetime: u64,
    accounts: Accounts,
}

impl TokenServer {
    /// Starts it; the registry takes its tokens for `lifetime` seconds.
    pub(crate) fn start(lifetime: u64, accounts: BTreeMap<String, Account>) -> Result<Self> {
        let made = rcgen::generate_simple_self_signed(vec!["token.test".to_owned()])?;
        let accounts = Arc::new(Mutex::new(accounts));
        let signer = Signer {
            key: EncodingKey::from_ec_pem(made.signing_key.serialize_pem().as_bytes())?,
            certificate: BASE64_STANDARD.encode(made.cert.der()),
            lifetime,
            accounts: Arc::clone(&accounts),
        };
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let (address, stopping) = (listener.local_addr()?, Arc::new(AtomicBool::new(false)));
        let stop = Arc::clone(&stopping);
        let thread = std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                // A client that breaks off is its own loss.
                let _ = signer.serve(&stream);
            }
        });
        Ok(Self { address, certificate: made.cert.pem(), accounts, stopping, thread: Some(thread) })
    }

    /// The `auth` section of a registry that believes it.
    pub(crate) fn auth_section(&self, directory: &Path) -> Result<Value> {
        let bundle = directory.join("token-certificates.pem");
        std::fs::write(&bundle, &self.certificate)?;
        let realm = format!("http://{}/token", self.address);
        Ok(json!({ "token": { "realm": realm, "service": SERVICE, "issuer": ISSUER, "rootcertbundle": bundle } }))
    }

    /// Where it answers.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Gives no more tokens to an account.
    pub(crate) fn remove(&self, user: &str) {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner).remove(user);
    }
}

impl Drop for TokenServer {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        // Wakes the thread, which then sees that it is to end.
        let _ = TcpStream::connect_timeout(&self.address, PATIENCE);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Signer {
    fn serve(&self, stream: &TcpStream) -> Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut reader = BufReader::new(stream.take(MAX_REQUEST));
        let mut first = String::new();
        reader.read_line(&mut first)?;
        let (mut length, mut basic) = (0, None);
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.trim().parse()?,
                "authorization" => basic = value.trim().strip_prefix("Basic ").map(str::to_owned),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let target = first.split(' ').nth(1).unwrap_or_default().to_owned();
        let query = target.split_once('?').map_or("", |(_, query)| query).as_bytes();
        let parameters = form(if first.starts_with("POST") { &body } else { query });
        let answer = match self.account(&parameters, basic.as_deref()) {
            Some((user, account)) => {
                let token = self.sign(&user, &account, parameters.get("scope").map_or("", String::as_str))?;
                // Under both names; a client takes either.
                let body = json!({ "token": token, "access_token": token, "expires_in": self.lifetime }).to_string();
                format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
            }
            None => "HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_owned(),
        };
        let mut stream = stream;
        stream.write_all(answer.as_bytes())?;
        Ok(())
    }

    /// Who asks; nobody, if what is brought is wrong. Without anything an account that may do nothing.
    fn account(&self, parameters: &BTreeMap<String, String>, basic: Option<&str>) -> Option<(String, Account)> {
        let accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(brought) = parameters.get("refresh_token") {
            let found = accounts.iter().find(|(_, account)| account.identity_token == *brought);
            return found.map(|(user, account)| (user.clone(), account.clone()));
        }
        // The form of containerd.
        if let (Some(user), Some(password)) = (parameters.get("username"), parameters.get("password")) {
            let account = accounts.get(user).filter(|account| account.password == *password)?;
            return Some((user.clone(), account.clone()));
        }
        let Some(basic) = basic else {
            let nobody =
                Account { password: String::new(), identity_token: String::new(), repository: None, pushes: false };
            return Some((String::new(), nobody));
        };
        let pair = String::from_utf8(BASE64_STANDARD.decode(basic).ok()?).ok()?;
        let (user, password) = pair.split_once(':')?;
        let account = accounts.get(user).filter(|account| account.password == password)?;
        Some((user.to_owned(), account.clone()))
    }

    fn sign(&self, user: &str, account: &Account, scope: &str) -> Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        // `repository:NAME:ACTION,...`
        let wanted = scope.strip_prefix("repository:").and_then(|scope| scope.rsplit_once(':'));
        let granted = wanted.filter(|(name, _)| account.repository.as_deref() == Some(name));
        let access: Vec<Value> = granted
            .iter()
            .map(|(name, actions)| {
                let may = |action: &&str| *action == "pull" || *action == "push" && account.pushes;
                let actions: Vec<&str> = actions.split(',').filter(may).collect();
                json!({ "type": "repository", "name": name, "actions": actions })
            })
            .collect();
        let claims = json!({
            "iss": ISSUER, "aud": SERVICE, "sub": user, "jti": format!("{user}-{now}"), "access": access,
            "iat": now, "nbf": now - LEEWAY, "exp": now + self.lifetime - LEEWAY,
        });
        let header = Header { x5c: Some(vec![self.certificate.clone()]), ..Header::new(Algorithm::ES256) };
        jsonwebtoken::encode(&header, &claims, &self.key).context("cannot sign a token")
    }
}

fn form(text: &[u8]) -> BTreeMap<String, String> {
    url::form_urlencoded::parse(text).into_owned().collect()
}
