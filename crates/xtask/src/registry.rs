//! Docker Distribution as the origin, and what its access log says about who fetched what.

use std::{
    collections::BTreeMap,
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{
    image::{Blob, Image, REPOSITORY, TAG},
    process::{Process, succeed, wait_until},
    setup,
};

const START_DEADLINE: Duration = Duration::from_secs(20);

/// Copying a few hundred MB into the registry on a busy machine.
const PUSH_DEADLINE: Duration = Duration::from_secs(180);

/// The registry logs a request once it is over, which may be a moment after the client has its last byte.
const LOG_DEADLINE: Duration = Duration::from_secs(10);

/// A registry with its storage on disk.
#[derive(Debug)]
pub(crate) struct Registry {
    process: Process,
    address: SocketAddr,
    log: PathBuf,
}

impl Registry {
    /// Starts a registry over `storage`, which several may share as long as one writes at a time.
    pub(crate) fn start(directory: &Path, storage: &Path) -> Result<Self> {
        Self::start_at(directory, storage, free_address()?, json!({}))
    }

    /// Starts a registry with further sections in its configuration.
    pub(crate) fn start_at(directory: &Path, storage: &Path, address: SocketAddr, sections: Value) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let log = directory.join("registry.log");
        let config = directory.join("registry.yml");
        // YAML is a superset of JSON. `accesslog` prints one line in Apache's combined format for each request, on
        // standard output; everything else goes to standard error. No auth section: anybody may pull and push.
        let mut document = json!({
            "version": "0.1",
            "log": { "level": "warn", "accesslog": { "disabled": false } },
            "storage": { "filesystem": { "rootdirectory": storage } },
            "http": { "addr": address.to_string(), "secret": "only for the scenarios" },
        });
        if let (Value::Object(document), Value::Object(sections)) = (&mut document, sections) {
            document.extend(sections);
        }
        fs::write(&config, document.to_string())?;
        let program = setup::find("docker-registry").context("docker-registry is not installed")?;
        let mut process = Process::start("docker-registry", Command::new(program).arg("serve").arg(&config), &log)?;
        wait_until("docker-registry to listen", START_DEADLINE, || {
            process.check_running()?;
            Ok(TcpStream::connect(address).ok())
        })?;
        Ok(Self { process, address, log })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops it, for good: its port answers no more.
    pub(crate) fn stop(&mut self) {
        self.process.kill();
    }

    /// Pushes the image as it is, so that every digest stays.
    pub(crate) fn push(&self, image: &Image) -> Result<()> {
        succeed(
            Command::new("skopeo")
                .args([
                    "--insecure-policy",
                    "copy",
                    "--quiet",
                    "--all",
                    "--preserve-digests",
                    "--dest-tls-verify=false",
                ])
                .arg(format!("oci:{}:{TAG}", image.layout().display()))
                .arg(format!("docker://{}/{REPOSITORY}:{TAG}", self.address)),
            PUSH_DEADLINE,
        )?;
        Ok(())
    }

    /// What was asked of the registry since it started.
    pub(crate) fn accesses(&self) -> Result<Accesses> {
        Ok(Accesses::parse(&fs::read_to_string(&self.log)?))
    }

    /// Checks that every one of the blobs was fetched once and whole, and nothing else.
    pub(crate) fn expect_each_once<'a>(&self, blobs: impl Iterator<Item = &'a Blob>) -> Result<()> {
        let blobs: Vec<&Blob> = blobs.collect();
        let fetched = wait_until("every blob in the registry's access log", LOG_DEADLINE, || {
            let fetched = self.accesses()?.blobs;
            Ok(blobs.iter().all(|blob| fetched.contains_key(&blob.digest)).then_some(fetched))
        })?;
        for blob in &blobs {
            let fetch = fetched.get(&blob.digest).copied().unwrap_or_default();
            ensure!(
                fetch == Fetched { requests: 1, bytes: blob.size },
                "{} ({} bytes) should be fetched once, whole; the registry's access log has {fetch:?}\n{}",
                blob.digest,
                blob.size,
                self.accesses()?.lines.join("\n"),
            );
        }
        ensure!(fetched.len() == blobs.len(), "blobs that nobody asked for were fetched: {fetched:?}");
        Ok(())
    }
}

/// GET requests for one blob.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fetched {
    pub(crate) requests: u64,
    pub(crate) bytes: u64,
}

/// What an access log says.
#[derive(Debug, Default)]
pub(crate) struct Accesses {
    /// By digest. Only GET: a HEAD moves no bytes.
    pub(crate) blobs: BTreeMap<String, Fetched>,
    /// The lines it was read from.
    lines: Vec<String>,
}

impl Accesses {
    /// Reads lines like
    /// `127.0.0.1 - - [21/Nov/2026:02:50:20 +0000] "GET /v2/a/b/blobs/sha256:... HTTP/1.1" 200 407 "" "agent"`.
    fn parse(log: &str) -> Self {
        let mut accesses = Self::default();
        for line in log.lines() {
            let mut quoted = line.split('"');
            let (Some(_), Some(request), Some(outcome)) = (quoted.next(), quoted.next(), quoted.next()) else {
                continue;
            };
            let mut words = request.split(' ');
            let (Some(method), Some(target)) = (words.next(), words.next()) else { continue };
            if !target.starts_with("/v2/") {
                continue;
            }
            accesses.lines.push(line.to_owned());
            let path = target.split('?').next().unwrap_or_default();
            if let Some((_, digest)) = path.rsplit_once("/blobs/")
                && method == "GET"
                && digest.contains(':')
            {
                let bytes = outcome.split_whitespace().nth(1).and_then(|bytes| bytes.parse().ok()).unwrap_or(0);
                let fetched = accesses.blobs.entry(digest.to_owned()).or_default();
                fetched.requests += 1;
                fetched.bytes += bytes;
            }
        }
        accesses
    }

    pub(crate) fn blob_bytes(&self) -> u64 {
        self.blobs.values().map(|fetched| fetched.bytes).sum()
    }

    pub(crate) fn blob_requests(&self) -> u64 {
        self.blobs.values().map(|fetched| fetched.requests).sum()
    }
}

/// An address that nothing listens at. The scenarios have the loopback interface of their network
/// namespace to themselves, so nobody else takes it before it is used.
pub(crate) fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_blob_fetches() {
        let log = concat!(
            "time=\"2026-01-01\" level=warning msg=\"GET /v2/x/blobs/sha256:aa\"\n",
            "127.0.0.1 - - [21/Nov/2026:02:50:20 +0000] \"HEAD /v2/library/debian/manifests/12?ns=docker.io HTTP/1.1\" 200 407 \"\" \"c\"\n",
            "127.0.0.1 - - [21/Nov/2026:02:50:20 +0000] \"GET /v2/library/debian/blobs/sha256:aa?ns=docker.io HTTP/1.1\" 200 163 \"\" \"c\"\n",
            "127.0.0.1 - - [21/Nov/2026:02:50:20 +0000] \"GET /v2/library/debian/blobs/sha256:aa HTTP/1.1\" 206 7 \"\" \"c\"\n",
            "127.0.0.1 - - [21/Nov/2026:02:50:20 +0000] \"HEAD /v2/library/debian/blobs/sha256:bb HTTP/1.1\" 200 9 \"\" \"c\"\n",
            "127.0.0.1 - - [21/Nov/2026:02:50:20 +0000] \"POST /v2/library/debian/blobs/uploads/ HTTP/1.1\" 202 0 \"\" \"c\"\n",
        );
        let accesses = Accesses::parse(log);
        assert_eq!(accesses.blobs.len(), 1);
        assert_eq!(accesses.blobs["sha256:aa"], Fetched { requests: 2, bytes: 170 });
        assert_eq!((accesses.blob_requests(), accesses.blob_bytes(), accesses.lines.len()), (2, 170, 5));
    }
}
