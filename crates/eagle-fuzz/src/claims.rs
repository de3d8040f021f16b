//! What seeders and trackers tell each other: who is alive, and who fetches which blob.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use eagle_core::{NodeId, Timestamp, tracker::leases::Claimed};
use eagle_tracker::{
    api::seeders::{
        ClaimRequest, ClaimResponse, HeartbeatRequest, HeartbeatResponse, MAX_LEASES_PER_SEEDER, MAX_TEXT, MAX_WITHOUT,
        ReleaseRequest, SeedersResponse,
    },
    parsers,
    store::{MemorySeeders, SeederStore},
};
use futures::executor::block_on;
use serde::{Serialize, de::DeserializeOwned};
use url::Url;

/// Where everything comes from.
const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 2, 3));

/// One JSON document on a line: each a heartbeat, a claim, a lease given back, or an answer to one of these. All go to one tracker.
pub(crate) fn run(bytes: &[u8]) {
    let seeders = MemorySeeders::default();
    let mut now = Timestamp(1 << 40);
    for line in bytes.split(|byte| *byte == b'\n').take(16) {
        now = now + Duration::from_secs(1);
        block_on(apply(&seeders, line, now));
        answers(line);
    }
}

async fn apply(seeders: &MemorySeeders, line: &[u8], now: Timestamp) {
    match parsers::heartbeat(line, SOURCE) {
        Ok(beat) => {
            is_seeder(&beat.seeder.url, &beat.seeder.storage);
            assert!(beat.leases.len() <= MAX_LEASES_PER_SEEDER);
            same::<HeartbeatRequest>(&beat);
            let (id, renewed) = (beat.seeder.id.clone(), beat.leases.len());
            if beat.stopped {
                seeders.leave(&id, now).await;
                assert!(seeders.seeder(&id, now).await.is_none());
            } else if let Ok(lost) = seeders.heartbeat(beat.seeder, &beat.leases, now).await {
                assert!(lost.len() <= renewed);
                assert!(seeders.seeder(&id, now).await.is_some());
            }
        }
        Err(problem) => assert!(problem.len() < 10_000, "{problem}"),
    }
    if let Ok(claim) = parsers::claim(line, SOURCE) {
        is_seeder(&claim.seeder.url, &claim.seeder.storage);
        assert!(claim.without.len() <= MAX_WITHOUT);
        same::<ClaimRequest>(&claim);
        turn(seeders, &claim, now).await;
    }
    if let Ok(release) = serde_json::from_slice::<ReleaseRequest>(line) {
        same::<ReleaseRequest>(&release);
        seeders.release(release.digest, release.token, now).await;
    }
}

/// A lease is one seeder's alone until it is given back by its token, and no other token takes it away.
async fn turn(seeders: &MemorySeeders, claim: &ClaimRequest, now: Timestamp) {
    let (digest, id) = (claim.digest, &claim.seeder.id);
    if seeders.heartbeat(claim.seeder.clone(), &[], now).await.is_err() {
        return;
    }
    let Ok(other) = "another-seeder".parse::<NodeId>() else { return };
    if *id == other {
        return;
    }
    if let Claimed::Granted { token } = seeders.claim(digest, id, now).await {
        let held = async || matches!(seeders.claim(digest, &other, now).await, Claimed::Held(holder) if holder == *id);
        assert!(held().await);
        seeders.release(digest, token.wrapping_add(1), now).await;
        assert!(held().await, "given back by another token");
        seeders.release(digest, token, now).await;
        let Claimed::Granted { token } = seeders.claim(digest, &other, now).await else {
            panic!("{digest} was given back and is not to be had");
        };
        seeders.release(digest, token, now).await;
    }
}

/// What a seeder or node reads of a tracker.
fn answers(line: &[u8]) {
    if let Ok(answer) = serde_json::from_slice::<HeartbeatResponse>(line) {
        let _ = Duration::try_from_secs_f64(answer.interval_seconds);
        assert!(answer.lost.len() <= line.len());
    }
    if let Ok(list) = serde_json::from_slice::<SeedersResponse>(line) {
        assert!(list.seeders.len() <= line.len());
        for seeder in &list.seeders {
            let _ = eagle_tracker::check_tracker_url(&match seeder.info.url.parse() {
                Ok(url) => url,
                Err(_) => continue,
            });
        }
    }
    if let Ok(ClaimResponse::Granted { lifetime_seconds, .. }) = serde_json::from_slice(line) {
        let _ = Duration::try_from_secs_f64(lifetime_seconds);
    }
}

/// Others are sent to this address: it is one of HTTP, of a host that is one, with nothing in it that is for nobody else.
fn is_seeder(url: &str, storage: &str) {
    let parsed: Url = url.parse().unwrap_or_else(|error| panic!("{url:?}: {error}"));
    assert!(matches!(parsed.scheme(), "http" | "https"), "{url:?}");
    assert!(parsed.host_str().is_some_and(|host| !host.is_empty() && host != "0.0.0.0" && host != "[::]"), "{url:?}");
    assert!(parsed.username().is_empty() && parsed.password().is_none() && parsed.query().is_none(), "{url:?}");
    assert!(storage.len() <= MAX_TEXT && !storage.contains(char::is_control), "{storage:?}");
}

/// Written again it is the same.
fn same<T: Serialize + DeserializeOwned + PartialEq>(value: &T) {
    let written = serde_json::to_vec(value).unwrap_or_default();
    assert!(
        serde_json::from_slice::<T>(&written).is_ok_and(|again| again == *value),
        "it is not read as it is written"
    );
}
