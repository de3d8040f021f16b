//! An S3 server for seeders that share a bucket. It checks the signature of every request.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};

use crate::process::{Process, wait_until};

const START_DEADLINE: Duration = Duration::from_secs(20);

const BUCKET: &str = "images";
const PREFIX: &str = "cluster/one";

/// A running S3 server with an empty bucket.
#[derive(Debug)]
pub(crate) struct S3 {
    _process: Process,
    address: SocketAddr,
    access_key_id: String,
    secret_access_key: String,
    root: PathBuf,
}

impl S3 {
    pub(crate) fn start(program: &Path, directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let (root, log) = (directory.join("data"), directory.join("s3.log"));
        fs::create_dir_all(&root)?;
        let mut process = Process::start("the S3 server", Command::new(program).arg(&root).arg(BUCKET), &log)?;
        let said = wait_until("the S3 server to listen", START_DEADLINE, || {
            process.check_running()?;
            let said = fs::read_to_string(&log)?;
            Ok((said.lines().count() >= 3 && said.ends_with('\n')).then_some(said))
        })?;
        let mut lines = said.lines().map(str::to_owned);
        let mut next = || lines.next().context("the S3 server said too little");
        let address = next()?.parse().context("the address of the S3 server")?;
        Ok(Self { _process: process, address, access_key_id: next()?, secret_access_key: next()?, root })
    }

    /// Keys for the section of a seeder.
    pub(crate) fn seeder_config(&self) -> String {
        format!(
            "  storage: s3://{BUCKET}/{PREFIX}\n  object_store:\n    endpoint: http://{}\n    access_key_id: {}\n    secret_access_key: {}\n    wait: 10m\n",
            self.address, self.access_key_id, self.secret_access_key
        )
    }

    /// Whether a blob is in the bucket as a whole.
    pub(crate) fn has(&self, digest: &str) -> bool {
        let Some((algorithm, hex)) = digest.split_once(':') else { return false };
        let Some(first) = hex.get(..2) else { return false };
        let blob = self.root.join(BUCKET).join(PREFIX).join("blobs").join(algorithm).join(first).join(hex);
        blob.join("complete").exists()
    }
}
