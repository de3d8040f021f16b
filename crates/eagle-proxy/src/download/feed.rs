//! Follows the metainfo stream of a seeder, and changes to another seeder when it breaks.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use eagle_core::{
    PieceIndex,
    metainfo::{Frame, is_inline},
};
use tokio::time::sleep;
use url::Url;

use super::{
    run::{Contradiction, Run},
    sources::{self, Failure, Feed},
};
use crate::metrics::Source;

/// Between rounds through seeders that all failed: a seeder that restarts is found again soon, and
/// one that cannot get the blob is not asked all the time.
const RETRY: Duration = Duration::from_secs(5);

/// The piece of a blob that has one.
const ONLY: PieceIndex = PieceIndex(0);

/// Two seeders give different hashes of a piece, or one another than was kept from before.
#[derive(Debug)]
pub(crate) struct Disagreement {
    pub(crate) piece: PieceIndex,
    /// The seeders that were believed so far.
    pub(crate) suspects: Vec<Url>,
}

/// Why a seeder's hashes end before all are known.
enum Broken {
    Off(String),
    /// What it says is not what was said before.
    Contradicts(PieceIndex),
}

impl<T: Into<String>> From<T> for Broken {
    fn from(reason: T) -> Self {
        Self::Off(reason.into())
    }
}

/// Takes piece hashes from seeders until all are known. Ends early when one contradicts those before it: what has been fetched
/// by their hashes may be another blob, and only the digest of the whole can tell, which a seeder that is wrong never completes.
pub(crate) async fn follow(run: &Arc<Run>, first: Option<Feed>) -> Result<(), Disagreement> {
    let mut next = first;
    let mut failed: Vec<Url> = Vec::new();
    let mut believed: Vec<Url> = Vec::new();
    loop {
        if let Some(feed) = next.take() {
            let server = feed.server.clone();
            let followed = follow_one(run, feed).await;
            run.note_feed(false);
            match followed {
                Ok(()) => return Ok(()),
                Err(Broken::Contradicts(piece)) => {
                    tracing::warn!(digest = %run.download.digest, seeder = %server, %piece, "a seeder contradicts the hashes that were given before");
                    return Err(Disagreement { piece, suspects: believed });
                }
                Err(Broken::Off(reason)) => {
                    tracing::warn!(digest = %run.download.digest, seeder = %server, reason, "a seeder's metainfo ended early");
                    if !believed.contains(&server) {
                        believed.push(server.clone());
                    }
                    failed.push(server);
                }
            }
        }
        next = another(run, &mut failed).await;
        if next.is_none() {
            sleep(RETRY).await;
            failed.clear();
        }
    }
}

/// The feed of a seeder that has not failed in this round.
async fn another(run: &Run, failed: &mut Vec<Url>) -> Option<Feed> {
    let request = run.requests().into_iter().next()?;
    for seeder in sources::seeders(&run.context, &request, &run.download) {
        if failed.contains(&seeder) {
            continue;
        }
        match sources::feed(&run.context, &request, &seeder).await {
            Ok(feed) if feed.geometry == run.geometry => return Some(feed),
            Ok(_) => {
                tracing::warn!(digest = %request.digest, seeder = %seeder, "a seeder cuts the blob differently and is left out");
            }
            Err(Failure::Refused(refusal)) => {
                tracing::debug!(digest = %request.digest, seeder = %seeder, status = %refusal.status, "refused");
            }
            Err(Failure::Failed(_)) => {}
        }
        failed.push(seeder);
    }
    None
}

async fn follow_one(run: &Arc<Run>, feed: Feed) -> Result<(), Broken> {
    let Feed { seeder, mut stream, .. } = feed;
    run.note_feed(true);
    // A small blob may come along with its hash, and then nobody else need be asked.
    let mut seeder = Some(seeder);
    if !is_inline(&run.geometry) {
        run.swarm.add_peers(seeder.take().into_iter().collect()).await;
    }
    let mut content = None;
    // Each stream begins with the first piece again.
    let mut position = 0;
    while let Some(frame) = stream.next().await {
        match frame.map_err(|error| error.to_string())? {
            Frame::Content(bytes) => {
                run.context.node.download_limiter().acquire(bytes.len() as u64).await;
                content = Some(bytes);
            }
            Frame::Hashes(hashes) => {
                let count = u32::try_from(hashes.len()).unwrap_or(u32::MAX);
                // Claimed before the swarm knows the hash and asks peers for the piece.
                let whole = match content.take() {
                    Some(bytes) if run.swarm.claim(ONLY).await => Some(bytes),
                    _ => None,
                };
                let added = run.add_hashes(position, hashes).await.map_err(|error| match error {
                    Contradiction::Known(piece) => Broken::Contradicts(piece),
                    Contradiction::Digest(error) => Broken::Off(error.to_string()),
                });
                let taken = match (whole, &added) {
                    (Some(bytes), Ok(())) => {
                        let taken = take(run, bytes).await;
                        if !matches!(taken, Ok(true)) {
                            run.swarm.release(ONLY).await;
                        }
                        taken?
                    }
                    (Some(_), Err(_)) => {
                        run.swarm.release(ONLY).await;
                        false
                    }
                    (None, _) => false,
                };
                added?;
                if !taken && let Some(seeder) = seeder.take() {
                    run.swarm.add_peers(vec![seeder]).await;
                }
                position += count;
            }
            Frame::Complete if run.has_all_hashes() => return Ok(()),
            Frame::Complete => return Err("it was completed before every hash was sent".into()),
            Frame::Failed(reason) => return Err(reason.into()),
            Frame::Header { .. } => return Err("it has a second header".into()),
            Frame::KeepAlive => {}
        }
    }
    if run.has_all_hashes() { Ok(()) } else { Err("the connection ended".into()) }
}

/// Checks and stores the content of a blob of one piece; false when the disk does not take it.
async fn take(run: &Run, content: Bytes) -> Result<bool, String> {
    // What an earlier process left behind may have turned out to be right.
    if run.owned().contains(ONLY) {
        return Ok(true);
    }
    let length = content.len() as u64;
    let checked = content.clone();
    let Some(check) = run.check(ONLY) else { return Ok(false) };
    if !tokio::task::spawn_blocking(move || check.matches(&checked)).await.unwrap_or(false) {
        run.context.metrics.verification_failure();
        return Err("its content does not match its hash".to_owned());
    }
    if let Err(error) = run.entry.write_piece(ONLY, content).await {
        tracing::warn!(digest = %run.download.digest, %error, "a small blob could not be stored");
        return Ok(false);
    }
    run.swarm.add_piece(ONLY).await;
    run.download.received.add(Source::Seeder, length);
    run.context.metrics.bytes(Source::Seeder, length);
    Ok(true)
}
