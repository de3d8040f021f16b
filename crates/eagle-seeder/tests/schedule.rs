//! Lists that are warmed at certain times.
#![allow(clippy::unwrap_used)]

mod common;

use common::{LAYER, Origin, Running, memory, send, until};
use eagle_seeder::{
    SeederConfig,
    preheat::{JobList, JobState, JobSummary, PreheatConfig, Trigger},
};
use http::Method;
use serde_json::json;

/// The jobs that are over, the latest first.
async fn over(running: &Running) -> Vec<JobSummary> {
    let (_, list) = send(running, Method::GET, "/v1/preheat", &[], "").await;
    let list: JobList = serde_json::from_slice(&list).unwrap();
    list.jobs.into_iter().filter(|job| job.state.is_over()).collect()
}

#[tokio::test]
async fn lists_are_warmed_when_their_time_comes_and_what_was_done_is_told() {
    let origin = Origin::start(&[LAYER]).await;
    let directory = tempfile::tempdir().unwrap();
    let list = directory.path().join("images.txt");
    let schedule = json!([{ "cron": "* * * * * *", "list": list, "platforms": ["linux/amd64"] }]);
    let preheat = PreheatConfig { schedule: serde_json::from_value(schedule).unwrap(), ..PreheatConfig::default() };
    let running = Running::start(SeederConfig { preheat, ..memory() }, origin.registries()).await;

    // There is no list yet, which is told too.
    until("a first run", async || !over(&running).await.is_empty()).await;
    let missed = over(&running).await.pop().unwrap();
    assert_eq!((missed.state, missed.trigger), (JobState::Failed, Trigger::Schedule));
    assert_eq!(missed.list.as_deref(), list.to_str());
    assert!(missed.error.unwrap().contains("cannot be read"));

    std::fs::write(&list, format!("{}/{}:1 # the image\n", origin.name, origin.repository)).unwrap();
    until("the list is warm", async || over(&running).await[0].state == JobState::Succeeded).await;
    let done = over(&running).await.remove(0);
    assert_eq!((done.trigger, done.totals.stored, done.error), (Trigger::Schedule, 3, None));
    assert_eq!(origin.registry().stats().blob(origin.digests[0]).gets, 1);

    // What is new in the list is warmed the next time, and what is no image is told.
    std::fs::write(&list, format!("{}/{}:1\n../x\n", origin.name, origin.repository)).unwrap();
    until("the list is used partly", async || over(&running).await[0].state == JobState::Failed).await;
    let partly = over(&running).await.remove(0);
    assert_eq!(partly.totals.stored, 3);
    assert!(partly.error.unwrap().contains("1 entries are no images"));
    assert_eq!(origin.registry().stats().blob(origin.digests[0]).gets, 1);
    running.stop().await;
}
