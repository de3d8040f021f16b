//! Blobs: one fetch for all, piece by piece, and whatever an origin does wrong.
#![allow(clippy::unwrap_used)]

mod common;

use std::{sync::Arc, time::Duration};

use common::{LAYER, Origin, PIECE, Running, basic, config, memory, piece_hashes, story, until, within};
use eagle_core::{
    metainfo::Frame,
    units::{Rate, Size},
};
use eagle_registry::{
    Caller, Registries, RegistryConfig,
    embedded::{Fault, FaultRule, FaultTarget},
};
use eagle_seeder::{SeederConfig, SeederError};
use futures::future::join_all;
use http::{Method, StatusCode};

#[tokio::test]
async fn many_callers_share_one_fetch() {
    let origin = Origin::start(&[LAYER]).await;
    let content = origin.content(0, &Caller::anonymous()).await;
    origin.registry().reset_stats();
    let running = Running::start(memory(), origin.registries()).await;
    let stories =
        (0..16).map(|_| async { story(running.metainfo(&origin, 0, &Caller::anonymous()).await.unwrap()).await });
    for story in join_all(stories).await {
        assert_eq!(story.end, Ok(()));
        assert_eq!(story.hashes, piece_hashes(&content));
        assert_eq!(story.geometry.size(), content.len() as u64);
        assert_eq!(story.seeder, running.seeder.info());
    }
    let blob = origin.registry().stats().blob(origin.digests[0]);
    assert_eq!((blob.gets, blob.heads, blob.bytes), (1, 0, origin.sizes[0]));
    assert_eq!(running.metric("eagle_seeder_origin_bytes_total "), origin.sizes[0] as f64);
    assert_eq!(running.metric("eagle_seeder_blobs_complete_total "), 1.0);
    assert_eq!(running.metric("eagle_seeder_fetches_running "), 0.0);
    assert_eq!(running.metric("eagle_seeder_cache_bytes "), origin.sizes[0] as f64);
    assert_eq!(running.metric("eagle_seeder_origin_requests_total{kind=\"blob\",outcome=\"ok\"}"), 1.0);
    // Everybody after that is served from the storage.
    let late = story(running.metainfo(&origin, 0, &Caller::anonymous()).await.unwrap()).await;
    assert_eq!((late.end, late.hashes), (Ok(()), piece_hashes(&content)));
    assert_eq!(origin.registry().stats().blob(origin.digests[0]).gets, 1);
    let status = running.seeder.status();
    assert_eq!(status["cache"]["blobs"], 1);
    running.stop().await;
}

#[tokio::test]
async fn hashes_and_content_come_before_the_fetch_is_done() {
    let origin = Origin::start(&[LAYER]).await;
    let content = origin.content(0, &Caller::anonymous()).await;
    origin.registry().set_rate(Rate::Limited(1 << 20));
    let running = Running::start(memory(), origin.registries()).await;
    let mut stream = running.metainfo(&origin, 0, &Caller::anonymous()).await.unwrap();
    assert!(matches!(stream.next().await, Some(Ok(Frame::Header { .. }))));
    let Some(Ok(Frame::Hashes(first))) = within(stream.next()).await else { panic!() };
    assert_eq!(first[0], piece_hashes(&content)[0]);
    assert_eq!(running.seeder.counters().blobs_completed, 0);
    // A part of the content that is there already comes at once, and so does a late stream's beginning.
    let range = format!("bytes=100-{}", PIECE - 1);
    let (response, body) = running.get(&running.blob_path(&origin, 0), &[("range", &range)]).await;
    assert_eq!(response.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(body, content[100..PIECE as usize]);
    let mut late = running.metainfo(&origin, 0, &Caller::anonymous()).await.unwrap();
    assert!(matches!(within(late.next()).await, Some(Ok(Frame::Header { .. }))));
    assert!(matches!(within(late.next()).await, Some(Ok(Frame::Hashes(_)))));
    assert_eq!(running.seeder.counters().blobs_completed, 0, "the fetch was to last for seconds");
    origin.registry().set_rate(Rate::Unlimited);
    // The whole content, begun while the fetch runs, is complete and right.
    let (response, body) = running.get(&running.blob_path(&origin, 0), &[]).await;
    assert_eq!((response.status(), body), (StatusCode::OK, content));
    running.stop().await;
}

#[tokio::test]
async fn a_broken_transfer_goes_on_where_it_broke() {
    for fault in [Fault::TruncateAfter(LAYER / 2 + 1000), Fault::StallAfter(LAYER / 2 + 1000)] {
        let origin = Origin::start(&[LAYER]).await;
        origin.registry().set_faults(vec![FaultRule::once(FaultTarget::Blobs, fault)]);
        let running = Running::start(memory(), origin.registries()).await;
        let told = story(running.metainfo(&origin, 0, &Caller::anonymous()).await.unwrap()).await;
        assert_eq!(told.end, Ok(()));
        let blob = origin.registry().stats().blob(origin.digests[0]);
        assert_eq!((blob.gets, blob.ranges), (2, 1));
        // The kernel may have taken more than the client read, but no second copy was sent.
        assert!(blob.bytes <= origin.sizes[0] + LAYER / 4, "{} bytes", blob.bytes);
        running.stop().await;
    }
}

#[tokio::test]
async fn an_origin_without_ranges_is_read_from_the_start_again() {
    let origin = Origin::start(&[LAYER]).await;
    let content = origin.content(0, &Caller::anonymous()).await;
    origin.registry().set_faults(vec![
        FaultRule::once(FaultTarget::Blobs, Fault::TruncateAfter(LAYER / 2 + 1)),
        FaultRule::always(FaultTarget::Blobs, Fault::IgnoreRange),
    ]);
    let running = Running::start(memory(), origin.registries()).await;
    let told = story(running.metainfo(&origin, 0, &Caller::anonymous()).await.unwrap()).await;
    assert_eq!((told.end, told.hashes), (Ok(()), piece_hashes(&content)));
    running.stop().await;
}

#[tokio::test]
async fn an_origin_that_makes_no_progress_is_given_up_and_its_bytes_are_kept() {
    let origin = Origin::start(&[LAYER]).await;
    origin.registry().set_faults(vec![
        FaultRule::once(FaultTarget::Blobs, Fault::TruncateAfter(LAYER / 2)),
        FaultRule::always(FaultTarget::Blobs, Fault::Refuse),
    ]);
    let running = Running::start(memory(), origin.registries()).await;
    let told = story(running.metainfo(&origin, 0, &Caller::anonymous()).await.unwrap()).await;
    assert!(told.end.unwrap_err().contains("cannot be reached"));
    assert_eq!(running.seeder.status()["cache"]["blobs"], 0);
    origin.registry().set_faults(Vec::new());
    origin.registry().reset_stats();
    until("the next try works", async || match running.metainfo(&origin, 0, &Caller::anonymous()).await {
        Ok(stream) => story(stream).await.end.is_ok(),
        Err(_) => false,
    })
    .await;
    let blob = origin.registry().stats().blob(origin.digests[0]);
    assert_eq!((blob.gets, blob.ranges), (1, 1), "the first half was not asked for again");
    running.stop().await;
}

#[tokio::test]
async fn wrong_bytes_are_fetched_once_more_and_then_reported() {
    let origin = Origin::start(&[LAYER]).await;
    origin.registry().set_faults(vec![FaultRule::always(FaultTarget::Blobs, Fault::CorruptAt(LAYER / 2))]);
    let running = Running::start(memory(), origin.registries()).await;
    // A reader of the content never gets all of it.
    let (path, anonymous) = (running.blob_path(&origin, 0), Caller::anonymous());
    let (told, (_, body)) = futures::join!(
        async { story(running.metainfo(&origin, 0, &anonymous).await.unwrap()).await },
        running.try_send(Method::GET, &path, &[]),
    );
    assert!(told.end.unwrap_err().contains("other content"));
    assert!(body.is_err(), "the connection breaks off");
    until("both attempts have failed", async || {
        let counters = running.seeder.counters();
        counters.verification_failures == 2 && counters.fetches_running == 0
    })
    .await;
    assert_eq!(origin.registry().stats().blob(origin.digests[0]).gets, 2);
    let cache = &running.seeder.status()["cache"];
    assert_eq!((&cache["blobs"], &cache["partial_blobs"]), (&0.into(), &0.into()));
    running.stop().await;
}

#[tokio::test]
async fn wrong_bytes_of_a_mirror_come_from_the_registry() {
    let origin = Origin::start(&[LAYER]).await;
    let content = origin.content(0, &Caller::anonymous()).await;
    let mirror = Origin::start(&[LAYER]).await;
    mirror.registry().set_faults(vec![FaultRule::always(FaultTarget::Blobs, Fault::CorruptAt(LAYER / 2))]);
    origin.registry().reset_stats();
    let registries =
        Registries::new(vec![RegistryConfig { mirrors: vec![mirror.registry().url()], ..origin.config.clone() }]);
    let running = Running::start(memory(), Arc::new(registries.unwrap())).await;
    let anonymous = Caller::anonymous();
    let told = story(running.metainfo(&origin, 0, &anonymous).await.unwrap()).await;
    assert!(told.end.unwrap_err().contains("other content"));
    // The second attempt needs nobody to ask for it.
    until("the right bytes are stored", async || running.seeder.counters().blobs_completed == 1).await;
    let (response, body) = running.get(&running.blob_path(&origin, 0), &[]).await;
    assert_eq!((response.status(), body), (StatusCode::OK, content));
    assert_eq!(mirror.registry().stats().blob(origin.digests[0]).gets, 1);
    assert_eq!(origin.registry().stats().blob(origin.digests[0]).gets, 1);
    running.stop().await;
}

#[tokio::test]
async fn refusals_of_the_origin_are_passed_on() {
    let origin = Origin::private(&[LAYER]).await;
    let running = Running::start(memory(), origin.registries()).await;
    let refused = |error: SeederError| match error {
        SeederError::Origin { status, headers, body } => (status.as_u16(), headers, body),
        other => panic!("{other:?}"),
    };
    let alice = basic("alice", "a");
    let (status, headers, body) = refused(running.metainfo(&origin, 0, &Caller::anonymous()).await.unwrap_err());
    assert_eq!(status, 401);
    assert!(headers["www-authenticate"].to_str().unwrap().starts_with("Basic"));
    assert!(String::from_utf8_lossy(&body).contains("UNAUTHORIZED"));
    // The failure of one caller is not that of another who asks right after.
    let limited = FaultRule::always(FaultTarget::Blobs, Fault::Status(StatusCode::TOO_MANY_REQUESTS));
    let tries = eagle_registry::config::RETRIES + 1;
    origin.registry().set_faults(vec![FaultRule { times: Some(tries), ..limited }]);
    assert_eq!(refused(running.metainfo(&origin, 0, &alice).await.unwrap_err()).0, 429);
    let unknown = eagle_core::Digest::of(b"no such blob");
    let client = running.client();
    let error = client.metainfo(&running.url, unknown, &origin.name, &origin.repository, &alice).await.unwrap_err();
    assert_eq!(refused(error).0, 404);
    let error = client.blob(&running.url, unknown, &origin.name, &origin.repository, 0, &alice).await.unwrap_err();
    assert_eq!(refused(error).0, 404);
    // Nobody is kept out for longer than the memory of a failure.
    until("the next try works", async || running.metainfo(&origin, 0, &basic("alice", "a")).await.is_ok()).await;
    origin.registry().set_faults(vec![FaultRule::always(FaultTarget::All, Fault::Status(StatusCode::BAD_GATEWAY))]);
    let error = client.metainfo(&running.url, unknown, &origin.name, &origin.repository, &alice).await.unwrap_err();
    assert!(matches!(&error, SeederError::Refused { status, .. } if status.as_u16() == 502), "{error:?}");
    running.stop().await;
}

#[tokio::test]
async fn a_private_blob_is_for_those_whom_the_origin_authorised() {
    let mut origin = Origin::private(&[LAYER]).await;
    let running = Running::start(memory(), origin.registries()).await;
    let (alice, bob, mallory) = (basic("alice", "a"), basic("bob", "b"), basic("bob", "guess"));
    assert_eq!(story(running.metainfo(&origin, 0, &alice).await.unwrap()).await.end, Ok(()));
    let heads = || origin.registry().stats().blob(origin.digests[0]).heads;
    for _ in 0..3 {
        running.metainfo(&origin, 0, &alice).await.unwrap();
        assert_eq!(heads(), 0, "the fetch was the authorisation");
    }
    for caller in [&mallory, &Caller::anonymous()] {
        let error = running.metainfo(&origin, 0, caller).await.unwrap_err();
        assert!(matches!(&error, SeederError::Origin { status, .. } if status.as_u16() == 401), "{error:?}");
        let path = running.blob_path(&origin, 0);
        let authorization = caller.authorization.as_ref().map(|value| ("authorization", value.to_str().unwrap()));
        let headers: Vec<_> = authorization.into_iter().collect();
        for method in [Method::GET, Method::HEAD] {
            assert_eq!(running.send(method, &path, &headers).await.0.status(), 401);
        }
    }
    let before = heads();
    for _ in 0..3 {
        running.metainfo(&origin, 0, &bob).await.unwrap();
        assert_eq!(heads(), before + 1, "one question for each caller");
    }
    assert_eq!(origin.registry().stats().blob(origin.digests[0]).gets, 1);
    // While the origin is away, those it knows are served and the others are not.
    origin.stop().await;
    assert!(running.metainfo(&origin, 0, &bob).await.is_ok());
    let error = running.metainfo(&origin, 0, &mallory).await.unwrap_err();
    assert!(matches!(&error, SeederError::Refused { status, .. } if status.as_u16() == 502), "{error:?}");
    running.stop().await;
}

#[tokio::test]
async fn callers_who_join_a_running_fetch_are_checked_too() {
    let origin = Origin::private(&[LAYER]).await;
    origin.registry().set_rate(Rate::Limited(1 << 20));
    let running = Running::start(memory(), origin.registries()).await;
    let _alice = running.metainfo(&origin, 0, &basic("alice", "a")).await.unwrap();
    let error = running.metainfo(&origin, 0, &basic("alice", "wrong")).await.unwrap_err();
    assert!(matches!(&error, SeederError::Origin { status, .. } if status.as_u16() == 401), "{error:?}");
    assert!(running.metainfo(&origin, 0, &basic("bob", "b")).await.is_ok());
    assert_eq!(origin.registry().stats().blob(origin.digests[0]).gets, 1);
    running.stop().await;
}

#[tokio::test]
async fn content_is_served_in_ranges() {
    let origin = Origin::start(&[LAYER]).await;
    let content = origin.content(0, &Caller::anonymous()).await;
    let size = content.len();
    let running = Running::start(memory(), origin.registries()).await;
    let path = running.blob_path(&origin, 0);
    let (response, body) = running.send(Method::HEAD, &path, &[]).await;
    assert_eq!((response.status(), body.len()), (StatusCode::OK, 0));
    assert_eq!(response.headers()["content-length"], size.to_string());
    assert_eq!(response.headers()["docker-content-digest"], origin.digests[0].to_string());
    assert_eq!(running.seeder.counters().origin_bytes, 0, "HEAD fetches nothing");
    assert_eq!(running.get(&path, &[]).await.1, content);
    for (range, part) in [("bytes=0-", 0..size), ("bytes=5-5", 5..6), ("bytes=-7", size - 7..size)] {
        let (response, body) = running.get(&path, &[("range", range)]).await;
        assert_eq!(response.status(), StatusCode::PARTIAL_CONTENT, "{range}");
        let expected = format!("bytes {}-{}/{size}", part.start, part.end - 1);
        assert_eq!(response.headers()["content-range"], expected);
        assert_eq!(body, content[part], "{range}");
    }
    let (response, body) = running.get(&path, &[("range", &format!("bytes={size}-"))]).await;
    assert_eq!(response.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(response.headers()["content-range"], format!("bytes */{size}"));
    assert!(String::from_utf8_lossy(&body).contains("errors"));
    let client = running.client();
    let (digest, anonymous) = (origin.digests[0], Caller::anonymous());
    let blob = client.blob(&running.url, digest, &origin.name, &origin.repository, 1000, &anonymous).await.unwrap();
    assert_eq!((blob.size, blob.start), (size as u64, 1000));
    assert_eq!(http_body_util::BodyExt::collect(blob.body).await.unwrap().to_bytes(), content[1000..]);
    assert_eq!(origin.registry().stats().blob(origin.digests[0]).gets, 2, "one of them by this test");
    running.stop().await;
}

#[tokio::test]
async fn a_blob_that_does_not_fit_is_relayed() {
    let origin = Origin::start(&[LAYER]).await;
    let content = origin.content(0, &Caller::anonymous()).await;
    let small = SeederConfig { cache_limit: Size(LAYER / 2), ..memory() };
    let running = Running::start(small, origin.registries()).await;
    let error = running.metainfo(&origin, 0, &Caller::anonymous()).await.unwrap_err();
    assert!(matches!(&error, SeederError::Refused { status, .. } if status.as_u16() == 507), "{error:?}");
    let path = running.blob_path(&origin, 0);
    assert_eq!(running.get(&path, &[]).await.1, content);
    for (range, part) in [("bytes=100-", 100..content.len()), ("bytes=-50", content.len() - 50..content.len())] {
        let (response, body) = running.get(&path, &[("range", range)]).await;
        assert_eq!((response.status(), body), (StatusCode::PARTIAL_CONTENT, content.slice(part)), "{range}");
    }
    let outside = format!("bytes={}-", content.len());
    assert_eq!(running.get(&path, &[("range", &outside)]).await.0.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(running.seeder.status()["cache"]["bytes"], 0);
    running.stop().await;
}

#[tokio::test]
async fn a_restart_keeps_what_was_complete() {
    let directory = tempfile::tempdir().unwrap();
    let origin = Origin::start(&[LAYER, LAYER / 2]).await;
    let content = origin.content(0, &Caller::anonymous()).await;
    let running = Running::start(config(directory.path()), origin.registries()).await;
    let before = story(running.metainfo(&origin, 0, &Caller::anonymous()).await.unwrap()).await;
    running.stop().await;
    origin.registry().reset_stats();
    let running = Running::start(config(directory.path()), origin.registries()).await;
    let after = story(running.metainfo(&origin, 0, &Caller::anonymous()).await.unwrap()).await;
    assert_eq!((&after.hashes, &after.end), (&before.hashes, &Ok(())));
    assert_eq!(after.seeder.id, before.seeder.id);
    assert_eq!(running.get(&running.blob_path(&origin, 0), &[]).await.1, content);
    let blob = origin.registry().stats().blob(origin.digests[0]);
    assert_eq!((blob.gets, blob.heads), (0, 1), "authorised again, not fetched again");
    running.stop().await;
}

#[tokio::test]
async fn a_restart_takes_up_what_was_partial() {
    let directory = tempfile::tempdir().unwrap();
    let origin = Origin::start(&[LAYER]).await;
    let content = origin.content(0, &Caller::anonymous()).await;
    origin.registry().set_rate(Rate::Limited(2 << 20));
    let running = Running::start(config(directory.path()), origin.registries()).await;
    let mut stream = running.metainfo(&origin, 0, &Caller::anonymous()).await.unwrap();
    let mut known = 0;
    while known < 4 {
        if let Frame::Hashes(hashes) = within(stream.next()).await.unwrap().unwrap() {
            known += hashes.len();
        }
    }
    running.shutdown.cancel();
    let end = async { while let Some(Ok(_)) = stream.next().await {} };
    within(end).await;
    running.stop().await;
    origin.registry().set_rate(Rate::Unlimited);
    origin.registry().reset_stats();
    let running = Running::start(config(directory.path()), origin.registries()).await;
    assert_eq!(running.seeder.status()["cache"]["partial_blobs"], 1);
    let told = story(running.metainfo(&origin, 0, &Caller::anonymous()).await.unwrap()).await;
    assert_eq!((told.end, told.hashes), (Ok(()), piece_hashes(&content)));
    let blob = origin.registry().stats().blob(origin.digests[0]);
    assert_eq!((blob.gets, blob.ranges), (1, 1));
    assert!(blob.bytes <= LAYER - 3 * u64::from(PIECE), "{} bytes", blob.bytes);
    running.stop().await;
}

#[tokio::test]
async fn running_responses_are_finished_at_the_end() {
    let origin = Origin::start(&[LAYER]).await;
    let content = origin.content(0, &Caller::anonymous()).await;
    let slow = SeederConfig { upload_rate: Rate::Limited(3 << 20), ..memory() };
    let running = Running::start(slow, origin.registries()).await;
    story(running.metainfo(&origin, 0, &Caller::anonymous()).await.unwrap()).await;
    let path = running.blob_path(&origin, 0);
    let read = running.get(&path, &[]);
    let stop = async {
        until("the response has begun", async || running.seeder.counters().http_bytes > 0).await;
        running.shutdown.cancel();
    };
    let ((_, body), ()) = futures::join!(read, stop);
    assert_eq!(body, content);
    running.stop().await;
}

#[tokio::test]
async fn the_host_limit_holds_for_the_origin() {
    let origin = Origin::start(&[LAYER]).await;
    let slow = SeederConfig { download_rate: Rate::Limited(2 << 20), ..memory() };
    let running = Running::start(slow, origin.registries()).await;
    let began = tokio::time::Instant::now();
    let told = story(running.metainfo(&origin, 0, &Caller::anonymous()).await.unwrap()).await;
    assert_eq!(told.end, Ok(()));
    assert!(began.elapsed() >= Duration::from_millis(1800), "{:?}", began.elapsed());
    running.stop().await;
}

/// Nodes that fall back to HTTP all at once must not take the seeder from the swarm: pieces that go to one node
/// each, and on from there, are what ends their need.
#[tokio::test]
async fn answers_over_http_leave_peers_their_share_of_the_upload_limit() {
    let origin = Origin::start(&[LAYER]).await;
    let config = SeederConfig { upload_rate: Rate::Limited(LAYER), ..memory() };
    let running = Running::start(config, origin.registries()).await;
    let late = story(running.metainfo(&origin, 0, &Caller::anonymous()).await.unwrap()).await;
    assert_eq!(late.end, Ok(()));
    let path = running.blob_path(&origin, 0);
    let (_, limiter) = running.seeder.limiters();
    let before = limiter.passed();
    // One transfer to a peer, as a data channel would make it, beside eight nodes that read over HTTP.
    let mut to_peer = 0;
    let upload = async {
        for _ in 0..50 {
            let chunk = limiter.chunk() as u64;
            limiter.acquire(chunk).await;
            to_peer += chunk;
        }
    };
    tokio::select! {
        () = upload => {}
        _ = join_all((0..8).map(|_| running.get(&path, &[]))) => panic!("the limit does not hold"),
    }
    let share = to_peer as f64 / (limiter.passed() - before) as f64;
    assert!(share > 0.3, "the peer got {share:.2} of what went out");
    running.stop().await;
}
