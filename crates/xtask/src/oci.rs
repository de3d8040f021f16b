//! A small OCI client that pulls an image as a runtime does and checks every digest.
//!
//! Unlike the runtimes it reports each byte as it arrives, which lets a scenario break something at a known point of a pull.

use std::{
    io::Read,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::{
    http,
    image::{Blob, Image, REPOSITORY, TAG},
};

const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                      application/vnd.docker.distribution.manifest.v2+json";

/// Pulls the image as containerd does (`?ns=docker.io`); `progress` is told the bytes of blobs so far.
/// What it took.
pub(crate) fn pull(proxy: SocketAddr, image: &Image, mut progress: impl FnMut(u64)) -> Result<Duration> {
    let started = Instant::now();
    let index = manifest(proxy, TAG)?;
    ensure!(index == image.index.digest, "tag {TAG} gave {index}, pushed was {}", image.index.digest);
    for document in [&image.index, &image.manifest] {
        let digest = manifest(proxy, &document.digest)?;
        ensure!(digest == document.digest, "manifest {} came as {digest}", document.digest);
    }
    let mut before = 0;
    for wanted in image.blobs() {
        blob(proxy, wanted, |so_far| {
            progress(before + so_far);
        })?;
        before += wanted.size;
    }
    Ok(started.elapsed())
}

/// Fetches a manifest by tag or digest; the digest of what came.
fn manifest(proxy: SocketAddr, reference: &str) -> Result<String> {
    let target = format!("/v2/{REPOSITORY}/manifests/{reference}?ns=docker.io");
    let response = http::request(proxy, "GET", &target, &[("Accept", ACCEPT)])?;
    let status = response.status;
    let named = response.header("docker-content-digest").map(str::to_owned);
    let body = response.bytes()?;
    ensure!(status == 200, "GET {target}: {status}\n{}", String::from_utf8_lossy(&body));
    let digest = format!("sha256:{}", hex::encode(Sha256::digest(&body)));
    ensure!(
        named.as_deref() == Some(&digest),
        "GET {target}: Docker-Content-Digest is {named:?}, the body has {digest}"
    );
    Ok(digest)
}

/// Fetches a blob and checks its size and digest.
pub(crate) fn blob(proxy: SocketAddr, wanted: &Blob, mut progress: impl FnMut(u64)) -> Result<()> {
    let target = format!("/v2/{REPOSITORY}/blobs/{}?ns=docker.io", wanted.digest);
    let mut response = http::request(proxy, "GET", &target, &[])?;
    let status = response.status;
    if status != 200 {
        bail!("GET {target}: {status}\n{}", String::from_utf8_lossy(&response.bytes()?));
    }
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    let mut size = 0;
    loop {
        let count = response.read(&mut buffer).with_context(|| format!("GET {target}: broken after {size} bytes"))?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
        size += u64::try_from(count)?;
        progress(size);
    }
    let digest = format!("sha256:{}", hex::encode(hasher.finalize()));
    ensure!(size == wanted.size, "GET {target}: {size} bytes instead of {}", wanted.size);
    ensure!(digest == wanted.digest, "GET {target}: the bytes that came have {digest}");
    Ok(())
}
