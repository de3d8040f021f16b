//! `eagle cache`: what a proxy or seeder has cached, and what to do about it.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Result, bail};
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use eagle_core::Digest;
use eagle_seeder::images::{
    CachedBlobReport, CachedImage, Inspection, Listing, Name, Removed, Verified, VerifiedState,
};
use http::Method;
use serde::Serialize;
use url::form_urlencoded;

use crate::{
    api_client::ApiClient,
    cli::{CacheArgs, CacheCommand},
    exit::Exit,
};

/// How long the role may take: a blob of 100 GiB is verified in that time at 30 MB/s.
const DEADLINE: Duration = Duration::from_secs(3600);

/// Does what the command says.
///
/// # Errors
/// When a name makes no sense or is not known there, the role cannot be reached, or a blob is not as it should be.
pub(crate) async fn run(args: &CacheArgs) -> Result<()> {
    let client = Client { api: ApiClient::new("--admin", &args.admin, None, DEADLINE)?, json: args.json };
    match &args.command {
        CacheCommand::Ls { blobs } => client.ls(*blobs).await,
        CacheCommand::Inspect { name } => client.inspect(name).await,
        CacheCommand::Rm { names } => client.rm(names).await,
        CacheCommand::Pin { images } => client.pin(images, Method::PUT).await,
        CacheCommand::Unpin { images } => client.pin(images, Method::DELETE).await,
        CacheCommand::Verify { names } => client.verify(names).await,
    }
}

struct Client {
    api: ApiClient,
    json: bool,
}

impl Client {
    async fn ls(&self, blobs: bool) -> Result<()> {
        let listing: Listing = self.api.send(Method::GET, "/cache", None::<&()>).await?;
        if self.json {
            return print(&listing);
        }
        if blobs {
            println!("{}", blob_table(&listing.blobs));
            return Ok(());
        }
        println!("{}", image_table(&listing.images));
        let others = listing.blobs.iter().filter(|blob| blob.images.is_empty());
        let (count, bytes) = others.fold((0, 0), |(count, bytes), blob| (count + 1, bytes + blob.size));
        if count > 0 {
            println!("and {count} blobs of {bytes} bytes whose image is not known here; --blobs shows them");
        }
        Ok(())
    }

    async fn inspect(&self, text: &str) -> Result<()> {
        let found = self.entry(text).await?;
        if self.json {
            return print(&found);
        }
        if let Some(image) = &found.image {
            println!("{}\n", image_table(std::slice::from_ref(image)));
        }
        println!("{}", blob_table(&found.blobs));
        Ok(())
    }

    async fn entry(&self, text: &str) -> Result<Inspection> {
        self.api.send(Method::GET, &path("entry", text)?, None::<&()>).await
    }

    async fn rm(&self, names: &[String]) -> Result<()> {
        let mut done: Vec<Removed> = Vec::new();
        for name in names {
            let removed: Removed = self.api.send(Method::DELETE, &path("entry", name)?, None::<&()>).await?;
            if !self.json {
                let shared = match removed.shared.len() {
                    0 => String::new(),
                    count => format!("; {count} more are needed by other images"),
                };
                println!("{name}: {} blobs of {} bytes removed{shared}", removed.removed.len(), removed.bytes);
            }
            done.push(removed);
        }
        if self.json { print(&done) } else { Ok(()) }
    }

    async fn pin(&self, images: &[String], method: Method) -> Result<()> {
        let mut done: Vec<Inspection> = Vec::new();
        for name in images {
            let found: Inspection = self.api.send(method.clone(), &path("pin", name)?, None::<&()>).await?;
            if let (Some(image), false) = (&found.image, self.json) {
                let CachedImage { present, blobs, pinned, .. } = image;
                let state = if *pinned { "pinned" } else { "not pinned" };
                println!("{name}: {state}; {present} of {blobs} blobs are here");
            }
            done.push(found);
        }
        if self.json { print(&done) } else { Ok(()) }
    }

    async fn verify(&self, names: &[String]) -> Result<()> {
        let blobs = if names.is_empty() {
            let listing: Listing = self.api.send(Method::GET, "/cache", None::<&()>).await?;
            listing.blobs
        } else {
            let mut blobs = Vec::new();
            for name in names {
                blobs.extend(self.entry(name).await?.blobs);
            }
            blobs
        };
        // What is only partly here was not promised to anybody.
        let digests: BTreeSet<Digest> = blobs.iter().filter(|blob| blob.complete).map(|blob| blob.digest).collect();
        let mut done: Vec<Verified> = Vec::new();
        for digest in digests {
            let verified: Verified =
                self.api.send(Method::POST, &path("verify", &digest.to_string())?, None::<&()>).await?;
            if !self.json {
                let state = match verified.state {
                    VerifiedState::Good => "good",
                    VerifiedState::Corrupt => "corrupt, removed",
                    VerifiedState::Missing => "gone meanwhile",
                    VerifiedState::Unreadable => "cannot be read",
                };
                let error = verified.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
                println!("{digest} {state}{error}");
            }
            done.push(verified);
        }
        if self.json {
            print(&done)?;
        }
        let is_bad =
            |verified: &&Verified| matches!(verified.state, VerifiedState::Corrupt | VerifiedState::Unreadable);
        match done.iter().filter(is_bad).count() {
            0 => Ok(()),
            bad => bail!("{bad} of {} blobs are not what they should be", done.len()),
        }
    }
}

fn path(what: &str, name: &str) -> Result<String> {
    // Said here already, with the exit code of a wrong command line.
    name.parse::<Name>().map_err(|error| Exit::usage(format!("{name}: {error}")))?;
    let query = form_urlencoded::Serializer::new(String::new()).append_pair("name", name).finish();
    Ok(format!("/cache/{what}?{query}"))
}

fn print(value: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

fn image_table(images: &[CachedImage]) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(["IMAGE", "DIGEST", "BLOBS", "BYTES", "PINNED", "USED"]);
    for image in images {
        let blobs = format!("{}/{}", image.present, image.blobs);
        let pinned = if image.pinned { "yes" } else { "no" };
        let used = image.used.strftime("%Y-%m-%d %H:%M:%SZ").to_string();
        let (digest, bytes) = (image.digest.to_string(), image.present_bytes.to_string());
        table.add_row([image.image.to_string(), digest, blobs, bytes, pinned.to_owned(), used]);
    }
    for column in [2, 3] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

fn blob_table(blobs: &[CachedBlobReport]) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(["DIGEST", "BYTES", "STATE", "PINNED", "IMAGES"]);
    for blob in blobs {
        let state = match (blob.present, blob.complete) {
            (_, true) => "whole",
            (true, false) => "partial",
            (false, false) => "missing",
        };
        let pinned = if blob.pinned { "yes" } else { "no" };
        let (digest, bytes, images) = (blob.digest.to_string(), blob.size.to_string(), blob.images.join(" "));
        table.add_row([digest, bytes, state.to_owned(), pinned.to_owned(), images]);
    }
    if let Some(column) = table.column_mut(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_and_encoded() {
        assert_eq!(path("entry", "a.b:5000/c d").unwrap_err().to_string().split(':').next(), Some("a.b"));
        assert_eq!(path("pin", "a.b:5000/c:1").unwrap(), "/cache/pin?name=a.b%3A5000%2Fc%3A1");
        assert!(path("entry", "../x?name=y").is_err());
    }

    #[test]
    fn tables_say_what_is_there() {
        let digest = Digest::of(b"x");
        let blob = CachedBlobReport {
            digest,
            size: 1,
            present: true,
            complete: false,
            pinned: false,
            images: vec!["a".to_owned(), "b".to_owned()],
        };
        let text = blob_table(&[blob]);
        assert!(text.contains("partial") && text.contains("a b") && text.contains(&digest.to_string()), "{text}");
    }
}
