//! Follows the metainfo stream of a seeder, and changes to another seeder when it breaks.

use std::{sync::Arc, time::Duration};

use eagle_core::metainfo::Frame;
use tokio::time::sleep;
use url::Url;

use super::{
    run::Run,
    sources::{self, Failure, Feed},
};

/// Between rounds through seeders that all failed: a seeder that restarts is found again soon, and
/// one that cannot get the blob is not asked all the time.
const RETRY: Duration = Duration::from_secs(5);

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
    run.swarm.add_peers(vec![seeder]).await;
    // Each stream begins with the first piece again.
    let mut position = 0;
    while let Some(frame) = stream.next().await {
        match frame.map_err(|error| error.to_string())? {
            Frame::Hashes(hashes) => {
                let count = u32::try_from(hashes.len()).unwrap_or(u32::MAX);
                run.add_hashes(position, hashes).await.map_err(|error| error.to_string())?;
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
