//! What a runtime does: it pulls an image through the mirror of its machine, and tries again what failed.
//!
//! Every byte is compared with the image as it arrives, not only at the end.

use std::{
    io::Read as _,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{
    content::{Document, INDEX, Image, MANIFEST, TAG, digest},
    origin::Origin,
};
use crate::http;

/// Tries of one request, as dockerd has it for a layer.
const TRIES: u32 = 5;
/// Between two tries. Runtimes wait longer; a run has no time for that.
const PAUSE: Duration = Duration::from_millis(700);
/// Most of a wrong answer that goes into a report, bytes.
const SHOWN: usize = 300;

/// One request and how it went.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) node: usize,
    pub(crate) image: usize,
    pub(crate) what: String,
    /// Of what was to come.
    pub(crate) digest: String,
    pub(crate) from: Instant,
    pub(crate) to: Instant,
    pub(crate) problem: Option<Problem>,
}

impl Request {
    /// Whether it is for a manifest or an index, and not for a blob.
    pub(crate) fn is_manifest(&self) -> bool {
        self.what.contains("/manifests/")
    }
}

/// Why a request failed.
#[derive(Debug, Clone)]
pub(crate) enum Problem {
    /// There was no answer, another status, or half a body: the runtime sees that and tries again.
    Failed(String),
    /// Something came that is not the image's.
    Wrong(String),
}

/// A pull and how it went.
#[derive(Debug, Clone)]
pub(crate) struct Pull {
    pub(crate) node: usize,
    pub(crate) image: usize,
    pub(crate) from: Instant,
    /// Whether all of it arrived.
    pub(crate) complete: bool,
}

/// What the pulls of a run have to tell.
#[derive(Debug, Default)]
pub(crate) struct Record {
    requests: Mutex<Vec<Request>>,
    pulls: Mutex<Vec<Pull>>,
}

impl Record {
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn pulls(&self) -> Vec<Pull> {
        self.pulls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A runtime on the machine of a proxy. Whoever calls it is on that machine.
#[derive(Debug)]
pub(crate) struct Runtime<'a> {
    pub(crate) node: usize,
    pub(crate) mirror: SocketAddr,
    pub(crate) origin: &'a Origin,
    pub(crate) record: &'a Record,
}

impl Runtime<'_> {
    /// Pulls an image: tag, index, manifest, configuration, layers. Whether all of it arrived.
    pub(crate) fn pull(&self, number: usize, image: &Image) -> bool {
        let from = Instant::now();
        let complete = self.documents(number, image);
        let pull = Pull { node: self.node, image: number, from, complete };
        self.record.pulls.lock().unwrap_or_else(PoisonError::into_inner).push(pull);
        complete
    }

    fn documents(&self, number: usize, image: &Image) -> bool {
        let repository = &image.repository;
        let manifests =
            [(TAG, &image.index), (&image.index.digest, &image.index), (&image.manifest.digest, &image.manifest)];
        manifests.iter().all(|(reference, document)| {
            self.fetch(number, &format!("/v2/{repository}/manifests/{reference}?ns=docker.io"), document)
        }) && image
            .blobs
            .iter()
            .all(|blob| self.fetch(number, &format!("/v2/{repository}/blobs/{}?ns=docker.io", blob.digest), blob))
    }

    fn fetch(&self, image: usize, target: &str, wanted: &Document) -> bool {
        for attempt in 0..TRIES {
            if attempt > 0 {
                std::thread::sleep(PAUSE);
            }
            let from = Instant::now();
            let problem = self.request(target, wanted).err();
            let failed = problem.is_some();
            let request = Request {
                node: self.node,
                image,
                what: target.to_owned(),
                digest: wanted.digest.clone(),
                from,
                to: Instant::now(),
                problem,
            };
            self.record.requests.lock().unwrap_or_else(PoisonError::into_inner).push(request);
            if !failed {
                return true;
            }
        }
        false
    }

    fn request(&self, target: &str, wanted: &Document) -> Result<(), Problem> {
        let accept = format!("{INDEX}, {MANIFEST}");
        let failed = |error: anyhow::Error| Problem::Failed(format!("{error:#}"));
        let mut answer = http::request(self.mirror, "GET", target, &[("Accept", &accept)]).map_err(failed)?;
        if answer.status != 200 {
            let status = answer.status;
            let mut body = answer.bytes().unwrap_or_default();
            body.truncate(SHOWN);
            return Err(Problem::Failed(format!("{status}: {}", String::from_utf8_lossy(&body).trim())));
        }
        let named = answer.header("docker-content-digest").map(str::to_owned);
        let (mut at, mut buffer, mut wrong) = (0, vec![0; 128 << 10], None);
        loop {
            let count = answer.read(&mut buffer).map_err(|error| {
                Problem::Failed(format!("broken after {at} of {} bytes: {error}", wanted.bytes.len()))
            })?;
            if count == 0 {
                break;
            }
            let right = wanted.bytes.get(at..at + count);
            if right != Some(&buffer[..count]) && wrong.is_none() {
                wrong = Some(at);
                // What the origin itself sent is passed on piece by piece before the end shows that it was wrong.
                if !self.origin.lied_about(&wanted.digest) {
                    return Err(Problem::Wrong(format!("wrong bytes within {count} from byte {at}")));
                }
            }
            at += count;
        }
        match (wrong, named) {
            _ if at != wanted.bytes.len() => {
                Err(Problem::Wrong(format!("the answer ended well after {at} of {} bytes", wanted.bytes.len())))
            }
            (Some(place), _) => Err(Problem::Wrong(format!("wrong bytes from {place} on, and the answer ended well"))),
            (None, Some(named)) if named != wanted.digest => Err(Problem::Wrong(format!(
                "Docker-Content-Digest is {named}, the bytes have {}",
                digest(&wanted.bytes)
            ))),
            (None, _) => Ok(()),
        }
    }
}
