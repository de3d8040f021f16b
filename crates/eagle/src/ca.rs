//! `eagle ca init`: the certificate authority under which the forward proxy intercepts connections to registries.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use anyhow::{Context, Result, bail};
use eagle_proxy::forward::authority::{CERTIFICATE_FILE, KEY_FILE, create};

use crate::cli::{CaCommand, CaInitArgs};

/// Nobody but the owner may read the key: whoever has it can pass for any registry.
const KEY_MODE: u32 = 0o600;
const CERTIFICATE_MODE: u32 = 0o644;

pub(crate) fn run(command: &CaCommand) -> Result<()> {
    match command {
        CaCommand::Init(args) => init(args),
    }
}

fn init(args: &CaInitArgs) -> Result<()> {
    let directory = &args.dir;
    let (certificate, key) = (directory.join(CERTIFICATE_FILE), directory.join(KEY_FILE));
    for file in [&certificate, &key] {
        if file.exists() {
            bail!("{} is there already; delete it first to make another authority", file.display());
        }
    }
    let authority = create(&args.name, &args.registries)?;
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    write(&key, KEY_MODE, &authority.key)?;
    write(&certificate, CERTIFICATE_MODE, &authority.certificate)?;
    println!("{}: the key, for the proxy alone", key.display());
    println!("{}: the certificate, for the runtimes to trust", certificate.display());
    println!("\nIn the configuration of the proxy:\n  proxy:\n    forward:\n      ca_dir: {}", directory.display());
    println!("\nLet this machine trust it, then restart the runtime:");
    println!(
        "  Debian   cp {} /usr/local/share/ca-certificates/eagle.crt && update-ca-certificates",
        certificate.display()
    );
    println!("  Fedora   cp {} /etc/pki/ca-trust/source/anchors/eagle.pem && update-ca-trust", certificate.display());
    Ok(())
}

/// Writes a file that is not there yet, with its mode from the first moment.
fn write(file: &Path, mode: u32, content: &str) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let mut new: File = OpenOptions::new().write(true).create_new(true).mode(mode).open(file)?;
        new.write_all(content.as_bytes())?;
        new.sync_all()
    };
    write().with_context(|| format!("cannot write {}", file.display()))
}
