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
    run::Run,
    sources::{self, Failure, Feed},
};
use crate::metrics::Source;

/// Between rounds through seeders that all failed: a seeder that restarts is found again soon, and
/// one that cannot get the blob is not asked all the time.
const RETRY: Duration = Duration::from_secs(5);

/// The piece of a blob that has one.
const ONLY: PieceIndex = PieceIndex(0);

/// Takes piece hashes from seeders until all are known.
pub(crate) async fn follow(run: &Arc<Run>, first: Option<Feed>) {
    let mut next = first;
    let mut failed: Vec<Url> = Vec::new();
    loop {
        if let Some(feed) = next.take() {
            let server = feed.server.clone();
            let followed = follow_one(run, feed).await;
            run.note_feed(false);
            match followed {
                Ok(()) => return,
                Err(reason) => {
                    tracing::warn!(digest = %run.download.digest, seeder = %server, reason, "a seeder's metainfo ended early");
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
    for seeder in sources::seeders(&run.context, &request) {
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

async fn follow_one(run: &Arc<Run>, feed: Feed) -> Result<(), String> {
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
                let added = run.add_hashes(position, hashes).await.map_err(|error| error.to_string());
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
            Frame::Complete => return Err("it was completed before every hash was sent".to_owned()),
            Frame::Failed(reason) => return Err(reason),
            Frame::Header { .. } => return Err("it has a second header".to_owned()),
            Frame::KeepAlive => {}
        }
    }
    if run.has_all_hashes() { Ok(()) } else { Err("the connection ended".to_owned()) }
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
