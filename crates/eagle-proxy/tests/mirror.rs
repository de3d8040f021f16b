//! What a runtime sees of one proxy: ranges, refusals, bad requests, restarts, a cache that is too small.

mod common;

use std::time::Duration;

use common::{ProxyOptions, blob_path, eventually, layer, open, origin, origin_for, request};
use eagle_core::Digest;
use eagle_registry::embedded::{Access, Fault, FaultRule, FaultTarget, User};
use http::{Method, StatusCode};
use http_body_util::BodyExt;

const MIB: u64 = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn ranges_of_a_cold_and_a_warm_blob() {
    let origin = origin(&[3 * MIB]).await;
    let digest = layer(&origin.images()[0], 0);
    let reference = {
        let proxy = ProxyOptions::new(&origin).start().await;
        proxy.manifest().await;
        proxy.get(&blob_path(&digest)).await.whole()
    };
    let size = reference.len();
    let proxy = ProxyOptions::new(&origin).start().await;
    proxy.manifest().await;
    for round in ["cold", "warm"] {
        for (range, expected) in [
            ("bytes=5-99", 5..100),
            ("bytes=262000-530000", 262_000..530_001),
            ("bytes=-10", size - 10..size),
            ("bytes=1000000-", 1_000_000..size),
        ] {
            let answer = proxy.get_with(&blob_path(&digest), &[("range", range)]).await;
            assert_eq!(answer.status, 206, "{round} {range}");
            let content_range = format!("bytes {}-{}/{size}", expected.start, expected.end - 1);
            assert_eq!(answer.header("content-range"), content_range);
            assert_eq!(answer.header("docker-content-digest"), digest.to_string());
            assert_eq!(answer.whole(), reference.slice(expected), "{round} {range}");
        }
        let answer = proxy.get_with(&blob_path(&digest), &[("range", &format!("bytes={size}-"))]).await;
        assert_eq!((answer.status.as_u16(), answer.error_code().as_str()), (416, "RANGE_INVALID"));
        assert_eq!(answer.header("content-range"), format!("bytes */{size}"));
        let answer = proxy.get_with(&blob_path(&digest), &[("range", "bytes=0-1,5-6")]).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.whole(), reference);
    }
    let head = request(proxy.address, Method::HEAD, &blob_path(&digest), &[]).await;
    assert_eq!((head.status.as_u16(), head.header("content-length")), (200, size.to_string().as_str()));
    assert_eq!(head.header("accept-ranges"), "bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_early_is_no_failure() {
    let origin = origin(&[4 * MIB]).await;
    let digest = layer(&origin.images()[0], 0);
    let proxy = ProxyOptions::new(&origin).start().await;
    proxy.manifest().await;
    for range in ["bytes=0-", "bytes=1048576-", "bytes=2097152-"] {
        let (status, _, mut body) = open(proxy.address, Method::GET, &blob_path(&digest), &[("range", range)]).await;
        assert_eq!(status, 206);
        assert!(body.frame().await.unwrap().is_ok());
    }
    // The download went on meanwhile, and is still the only one.
    proxy.pull(digest).await;
    assert_eq!(origin.stats().blob(digest).bytes, 4 * MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_does_not_fit_passes_through() {
    let origin = origin(&[3 * MIB]).await;
    let digest = layer(&origin.images()[0], 0);
    let options = ProxyOptions { cache_limit: MIB, ..ProxyOptions::new(&origin) };
    let proxy = options.start().await;
    proxy.pull(digest).await;
    assert!(!proxy.proxy.cache().contains(digest));
    assert_eq!(origin.stats().blob(digest).bytes, 3 * MIB, "the first answer of the origin is the one that is used");
    let answer = proxy.get_with(&blob_path(&digest), &[("range", "bytes=1000000-")]).await;
    assert_eq!((answer.status.as_u16(), answer.whole().len() as u64), (206, 3 * MIB - 1_000_000));
    // Broken off half way: the rest comes from a second request.
    origin.set_faults(vec![FaultRule::once(FaultTarget::Blob(digest), Fault::TruncateAfter(MIB))]);
    proxy.pull(digest).await;
    // Wrong: the end is withheld.
    origin.set_faults(vec![FaultRule::always(FaultTarget::Blob(digest), Fault::CorruptAt(10))]);
    let answer = proxy.get(&blob_path(&digest)).await;
    assert!(answer.broken.is_some() && (answer.body.len() as u64) < 3 * MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_breaks_off_or_stalls_is_asked_for_the_rest() {
    for fault in [Fault::TruncateAfter(MIB), Fault::StallAfter(MIB), Fault::IgnoreRange] {
        let origin = origin(&[3 * MIB]).await;
        let digest = layer(&origin.images()[0], 0);
        let proxy = ProxyOptions::new(&origin).start().await;
        proxy.manifest().await;
        let mut rules = vec![FaultRule::once(FaultTarget::Blob(digest), Fault::TruncateAfter(MIB))];
        rules.push(FaultRule::once(FaultTarget::Blob(digest), fault.clone()));
        origin.set_faults(rules);
        proxy.pull(digest).await;
        assert!(proxy.proxy.cache().contains(digest), "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_finds_the_cache_warm() {
    let origin = origin(&[2 * MIB]).await;
    let digest = layer(&origin.images()[0], 0);
    let options = ProxyOptions::new(&origin);
    let proxy = options.start().await;
    let identity = proxy.proxy.peer_info().id;
    proxy.pull(digest).await;
    let data = proxy.stop().await;
    let proxy = options.start_in(data).await;
    assert_eq!(proxy.proxy.peer_info().id, identity);
    proxy.pull(digest).await;
    assert_eq!(origin.stats().blob(digest).bytes, 2 * MIB, "nothing is fetched again");
    assert_eq!(proxy.proxy.traffic().cache, 2 * MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_blob_is_served_while_the_cache_has_it_and_checked_when_it_comes_from_the_disk() {
    let origin = origin(&[MIB]).await;
    let config = origin.images()[0].config.clone();
    let (digest, size) = (config.digest, config.size);
    let fetched = || origin.stats().blob(digest).bytes / size;
    let options = ProxyOptions::new(&origin);
    let proxy = options.start().await;
    for _ in 0..3 {
        proxy.pull(digest).await;
    }
    assert_eq!((fetched(), proxy.proxy.traffic().cache), (1, 2 * size));
    let (first, hits) = (proxy.get(&blob_path(&digest)).await.whole(), proxy.proxy.cache().stats().hits);
    for (range, expected) in [("bytes=0-0", 0..1), ("bytes=5-99", 5..100), ("bytes=-7", first.len() - 7..first.len())] {
        let answer = proxy.get_with(&blob_path(&digest), &[("range", range)]).await;
        assert_eq!((answer.status.as_u16(), answer.whole()), (206, first.slice(expected)), "{range}");
    }
    assert_eq!(proxy.proxy.cache().stats().hits, hits + 3, "what is in memory is used all the same");
    assert!(proxy.proxy.cache().remove(digest).await);
    proxy.pull(digest).await;
    assert_eq!(fetched(), 2, "what the cache does not have is not in memory either");

    // One byte changes on the disk while nobody looks.
    let data = proxy.stop().await;
    let hex = digest.hex();
    let file = data.path().join("blobs/blobs/sha256").join(&hex[..2]).join(&hex).join("data");
    let mut content = std::fs::read(&file).unwrap();
    content[10] ^= 1;
    std::fs::write(&file, content).unwrap();
    let proxy = options.start_in(data).await;
    proxy.pull(digest).await;
    assert_eq!(fetched(), 3);
    proxy.pull(digest).await;
    assert_eq!(fetched(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_origin_refuses_is_refused_as_it_did() {
    let users = vec![User::new("alice", "secret"), User { repositories: Some(Vec::new()), ..User::new("bob", "pw") }];
    let origin = origin_for(&[MIB], Access::Basic(users)).await;
    let digest = layer(&origin.images()[0], 0);
    let proxy = ProxyOptions::new(&origin).start().await;
    // "alice:secret" and "bob:pw" in base64.
    let (alice, bob) = ([("authorization", "Basic YWxpY2U6c2VjcmV0")], [("authorization", "Basic Ym9iOnB3")]);
    let manifest = "/v2/library/app/manifests/1";
    let answer = proxy.get(manifest).await;
    assert_eq!(answer.status, 401);
    assert!(answer.header("www-authenticate").starts_with("Basic"), "{:?}", answer.headers);
    let answer = proxy.get(&blob_path(&digest)).await;
    assert_eq!((answer.status.as_u16(), answer.error_code().as_str()), (401, "UNAUTHORIZED"));
    assert!(answer.header("www-authenticate").starts_with("Basic"));
    // One who may, without having asked for the manifest: the origin says so.
    let answer = proxy.get_with(&blob_path(&digest), &alice).await;
    assert_eq!(Digest::of(&answer.whole()), digest);
    assert!(proxy.proxy.cache().contains(digest));
    // It is in the cache now, and still not for everyone.
    let answer = proxy.get_with(&blob_path(&digest), &bob).await;
    assert!(answer.status == 401 || answer.status == 403, "{}", answer.status);
    assert_eq!(proxy.get(&blob_path(&digest)).await.status, 401);
    assert_eq!(proxy.get_with(manifest, &alice).await.status, 200);
    let missing = blob_path(&Digest::of(b"nothing"));
    let answer = proxy.get_with(&missing, &alice).await;
    assert_eq!((answer.status.as_u16(), answer.error_code().as_str()), (404, "BLOB_UNKNOWN"));
    let answer = proxy.get_with("/v2/library/app/manifests/none", &alice).await;
    assert_eq!((answer.status.as_u16(), answer.error_code().as_str()), (404, "MANIFEST_UNKNOWN"));
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_keep_their_headers_and_outlive_the_origin() {
    let origin = origin(&[MIB]).await;
    let image = origin.images()[0].clone();
    let proxy = ProxyOptions::new(&origin).start().await;
    let answer = proxy.get_with("/v2/library/app/manifests/1?ns=", &[]).await;
    assert_eq!((answer.status.as_u16(), answer.error_code().as_str()), (400, "NAME_INVALID"));
    for path in [
        "/v2/library/app/manifests/1".to_owned(),
        format!("/v2/library/app/manifests/1?ns={}", origin.name()),
        format!("/v2/{}/library/app/manifests/1", origin.name()),
    ] {
        let answer = proxy.get(&path).await;
        assert_eq!(answer.header("docker-content-digest"), image.manifest_digest.to_string(), "{path}");
        assert_eq!(answer.header("content-type"), image.media_type);
        assert_eq!(answer.header("docker-distribution-api-version"), "registry/2.0");
        assert_eq!(answer.whole(), image.manifest);
    }
    let head = request(proxy.address, Method::HEAD, "/v2/library/app/manifests/1", &[]).await;
    assert_eq!(head.header("content-length"), image.manifest.len().to_string());
    proxy.pull(layer(&image, 0)).await;
    origin.shutdown().await;
    let answer = proxy.manifest().await;
    assert!(answer.header("warning").starts_with("110"));
    assert_eq!(answer.whole(), image.manifest);
    let answer = proxy.get(&format!("/v2/library/app/manifests/{}", image.manifest_digest)).await;
    assert_eq!(answer.whole(), image.manifest);
    proxy.pull(layer(&image, 0)).await;
    let answer = proxy.get("/v2/library/other/manifests/1").await;
    assert_eq!((answer.status.as_u16(), answer.error_code().as_str()), (502, "UNAVAILABLE"));
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_outlive_a_registry_that_answers_too_many_requests() {
    let origin = origin(&[MIB]).await;
    let image = origin.images()[0].clone();
    let proxy = ProxyOptions::new(&origin).start().await;
    proxy.pull(layer(&image, 0)).await;
    let limit = Fault::Status(StatusCode::TOO_MANY_REQUESTS);
    origin.set_faults(vec![FaultRule::always(FaultTarget::All, limit)]);
    let answer = proxy.manifest().await;
    assert!(answer.header("warning").starts_with("110"));
    assert_eq!(answer.whole(), image.manifest);
    proxy.pull(layer(&image, 0)).await;
    // What is not known is refused as the registry refuses it.
    assert_eq!(proxy.get("/v2/library/app/manifests/2").await.status, 429);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_told_what_is_wrong() {
    let origin = origin(&[MIB]).await;
    let proxy = ProxyOptions::new(&origin).start().await;
    let answer = proxy.get_with("/v2/", &[("authorization", "Basic eDp5")]).await;
    assert_eq!((answer.status.as_u16(), answer.header("docker-distribution-api-version")), (200, "registry/2.0"));
    assert_eq!(answer.whole(), "{}");
    let digest = Digest::of(b"x");
    for (method, path, status, code) in [
        (Method::GET, "/".to_owned(), 404, "UNSUPPORTED"),
        (Method::GET, "/v1/_ping".to_owned(), 404, "UNSUPPORTED"),
        (Method::GET, "/v2/_catalog".to_owned(), 404, "UNSUPPORTED"),
        (Method::GET, "/v2/a/blobs/sha256:00".to_owned(), 400, "DIGEST_INVALID"),
        (Method::GET, "/v2/a/blobs/md5:00".to_owned(), 400, "DIGEST_INVALID"),
        (Method::GET, "/v2/a/blobs/latest".to_owned(), 400, "DIGEST_INVALID"),
        (Method::GET, "/v2/a/manifests/..".to_owned(), 400, "MANIFEST_INVALID"),
        (Method::GET, "/v2/a/manifests/%2e%2e".to_owned(), 400, "MANIFEST_INVALID"),
        (Method::GET, "/v2/a/manifests/%ff".to_owned(), 400, "NAME_INVALID"),
        (Method::GET, format!("/v2/../../etc/blobs/{digest}"), 400, "NAME_INVALID"),
        (Method::GET, format!("/v2/A/blobs/{digest}"), 400, "NAME_INVALID"),
        (Method::GET, format!("/v2/a/blobs/{digest}?ns=a/b"), 400, "NAME_INVALID"),
        (Method::GET, format!("/v2/{}/tags/list", "a".repeat(5000)), 414, "NAME_INVALID"),
        (Method::POST, "/v2/a/blobs/uploads/".to_owned(), 405, "UNSUPPORTED"),
        (Method::PUT, "/v2/a/manifests/1".to_owned(), 405, "UNSUPPORTED"),
        (Method::PATCH, "/v2/a/blobs/uploads/1".to_owned(), 405, "UNSUPPORTED"),
        (Method::DELETE, format!("/v2/a/blobs/{digest}"), 405, "UNSUPPORTED"),
        (Method::OPTIONS, "/v2/".to_owned(), 405, "UNSUPPORTED"),
    ] {
        let answer = request(proxy.address, method.clone(), &path, &[]).await;
        assert_eq!((answer.status.as_u16(), answer.error_code().as_str()), (status, code), "{method} {path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_least_recently_used_blob_goes_first() {
    let origin = origin(&[MIB, MIB + 512, MIB + 1024]).await;
    let image = origin.images()[0].clone();
    let options = ProxyOptions { cache_limit: 2 * MIB + MIB / 2, ..ProxyOptions::new(&origin) };
    let proxy = options.start().await;
    for index in 0..3 {
        proxy.pull(layer(&image, index)).await;
    }
    let cache = proxy.proxy.cache();
    assert!(!cache.contains(layer(&image, 0)) && cache.contains(layer(&image, 2)));
    assert!(cache.stats().bytes <= options.cache_limit);
    proxy.pull(layer(&image, 0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_drains_before_it_ends() {
    let origin = origin(&[8 * MIB]).await;
    let digest = layer(&origin.images()[0], 0);
    let proxy = ProxyOptions::new(&origin).start().await;
    proxy.manifest().await;
    let (status, _, mut body) = open(proxy.address, Method::GET, &blob_path(&digest), &[]).await;
    assert_eq!(status, 200);
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    proxy.shutdown.cancel();
    let address = proxy.address;
    eventually("the end of new connections", || {
        std::net::TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_err()
    })
    .await;
    let rest = body.collect().await.unwrap().to_bytes();
    let whole: Vec<u8> = first.iter().chain(&rest).copied().collect();
    assert_eq!(Digest::of(&whole), digest);
    proxy.stop().await;
}
