//! What Eagle itself keeps of secrets is gone from the memory of the process when nobody needs it any more.
//!
//! The tests read the whole memory of their own process, so they keep what they look for in another form.
#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::{
    fs::{self, File},
    io::BufRead as _,
    os::unix::fs::FileExt,
    sync::{Mutex, PoisonError},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use eagle_proxy::{
    forward::authority::{self, Certificates},
    parsers::Logins,
};
use eagle_registry::{Caller, CredentialsConfig, EgressProxy, Registries};
use http::HeaderValue;
use rand::RngExt as _;
use zeroize::Zeroizing;

/// Bytes read at a time.
const BLOCK: usize = 1 << 20;
/// Letters of a secret, and how many of them, at its end, are looked for: an allocator writes over the first of what it gets back.
const LETTERS: usize = 64;
const TAIL: usize = 32;

/// Held by who reads memory.
static READING: Mutex<()> = Mutex::new(());

/// A text of letters with every bit turned over.
struct Hidden(Vec<u8>);

impl Hidden {
    fn random() -> Self {
        Self((0..LETTERS).map(|_| !rand::rng().random_range(b'a'..=b'z')).collect())
    }

    fn of(text: &str) -> Self {
        Self(text.bytes().map(|byte| !byte).collect())
    }

    /// The text as the password of `me`, as Basic authentication writes it.
    fn as_pair(&self) -> Self {
        let pair = self.between("me:", "");
        Self::of(&Zeroizing::new(BASE64_STANDARD.encode(pair.as_bytes())))
    }

    /// The text between two others, in memory that is wiped.
    fn between(&self, before: &str, after: &str) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(before.len() + self.0.len() + after.len()));
        text.push_str(before);
        text.extend(self.0.iter().map(|byte| char::from(!byte)));
        text.push_str(after);
        text
    }

    fn tail(&self) -> &[u8] {
        &self.0[self.0.len() - TAIL..]
    }

    fn is_at(&self, place: &[u8]) -> bool {
        place.len() >= TAIL && place.iter().zip(self.tail()).all(|(byte, hidden)| *byte == !hidden)
    }

    /// How often the text, or its end, is in the memory of this process.
    fn copies(&self) -> usize {
        // What one test reads another one would find.
        let _reading = READING.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = File::open("/proc/self/mem").unwrap();
        let mut block = Zeroizing::new(vec![0; BLOCK]);
        let own = block.as_ptr().addr()..block.as_ptr().addr() + BLOCK;
        let mut copies = 0;
        for line in fs::read_to_string("/proc/self/maps").unwrap().lines() {
            let mut words = line.split_ascii_whitespace();
            let (Some(range), Some(mode)) = (words.next(), words.next()) else { panic!("{line}") };
            if !mode.starts_with("rw") {
                continue;
            }
            let (start, end) = range.split_once('-').unwrap();
            let number = |text: &str| usize::from_str_radix(text, 16).unwrap();
            let (mut at, end) = (number(start), number(end));
            while at < end {
                // What is read is left out of what is looked at.
                if own.contains(&at) {
                    at = own.end;
                    continue;
                }
                let until = if at < own.start { end.min(own.start) } else { end };
                let length = (until - at).min(BLOCK);
                // A thread's stack may have gone meanwhile.
                if memory.read_exact_at(&mut block[..length], u64::try_from(at).unwrap()).is_err() {
                    break;
                }
                let mut rest = &block[..length];
                // The standard library's search is compiled for speed, which this file is not.
                while rest.skip_until(!self.tail()[0]).unwrap() > 0 {
                    copies += usize::from(self.is_at(&block[length - rest.len() - 1..length]));
                }
                // The next block begins where a text would that did not end in this one.
                at += if at + length < until { length + 1 - TAIL } else { length };
            }
        }
        copies
    }
}

#[test]
fn passwords_of_egress_proxies_are_wiped() {
    let password = Hidden::random();
    let proxy: EgressProxy = password.between("http://me:", "@proxy.example:3128").parse().unwrap();
    let again: EgressProxy = serde_json::from_str(&password.between("\"http://me:", "@proxy.example:3128\"")).unwrap();
    assert!(proxy == again && format!("{proxy:?}") == "http://me:***@proxy.example:3128");
    assert!(password.between("https://me:", "@proxy.example").parse::<EgressProxy>().is_err());
    assert_eq!(password.copies(), 2, "one of each");
    drop((proxy, again));
    assert_eq!(password.copies(), 0);
}

#[test]
fn what_files_of_credentials_hold_is_wiped() {
    let (plain, encoded, token) = (Hidden::random(), Hidden::random(), Hidden::random());
    let pair = encoded.as_pair();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.json");
    let before = plain.between(r#"{"auths": {"a.b": {"username": "u", "password": ""#, r#""}, "c.d": {"auth": ""#);
    let middle = pair.between(&before, r#"", "identitytoken": ""#);
    fs::write(&file, token.between(&middle, r#""}}}"#).as_bytes()).unwrap();
    drop((before, middle));
    let config = CredentialsConfig { docker_configs: vec![file] };
    let registries = Registries::with_credentials(Vec::new(), &config).unwrap();
    let copies = || [&plain, &encoded, &token, &pair].map(Hidden::copies);
    assert_eq!(copies(), [1, 1, 1, 0], "what is used is kept once, the file not at all");
    drop(registries);
    assert_eq!(copies(), [0; 4]);
}

#[test]
fn what_runtimes_log_in_with_is_wiped_but_for_headers() {
    let logins = Logins::new().unwrap();
    let password = Hidden::random();
    let form = password.between("grant_type=password&username=me&password=", "");
    let header = logins.posted(form.as_bytes()).unwrap();
    drop(form);
    assert_eq!(password.copies(), 0, "of the form");
    let caller = Caller { authorization: Some(header.clone()), ..Caller::anonymous() };
    assert!(caller.has_password());
    assert_eq!(password.copies(), 0, "of a look at what it is");

    let pair = password.as_pair();
    assert_eq!(pair.copies(), 1, "the header");
    let token = logins.token(b"scope=repository:ghcr.io/a:pull", Some(header.clone())).unwrap();
    assert_eq!(pair.copies(), 1, "of a token that was made");
    let (_, known): (_, Option<HeaderValue>) = logins.known(&token).unwrap();
    assert!(known.is_some());
    assert_eq!(pair.copies(), 2, "and the header that goes to the registry");
}

#[test]
fn the_files_of_an_authority_are_wiped() {
    let made = authority::create("Eagle test", &[]).unwrap();
    let line = Hidden::of(made.key.lines().nth(1).unwrap());
    let directory = tempfile::tempdir().unwrap();
    for (name, content) in [(authority::CERTIFICATE_FILE, &made.certificate), (authority::KEY_FILE, &*made.key)] {
        let path = directory.path().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    }
    assert_eq!(line.copies(), 1, "what is given out");
    drop(made);
    assert_eq!(line.copies(), 0, "of making it");
    let certificates = Certificates::load(directory.path()).unwrap();
    assert_eq!(line.copies(), 0, "of reading it: {certificates:?}");
}
