//! `proxy.rules` and `proxy.origin_fallback`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{KillableSeeder, ProxyOptions, blob_path, layer, origin, registries, request};
use eagle_core::{Digest, units::Rate};
use eagle_proxy::{ProxyConfig, Rule};
use http::Method;

const MIB: u64 = 1 << 20;

fn rules(json: &str) -> impl FnOnce(&mut ProxyConfig) {
    let rules: Vec<Rule> = serde_json::from_str(json).unwrap();
    move |config| config.rules = rules
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_reaches_nobody() {
    let origin = origin(&[MIB]).await;
    let digest = layer(&origin.images()[0], 0);
    let proxy =
        ProxyOptions::new(&origin).start_with(rules(r#"[{"repository": "library/**", "action": "refuse"}]"#)).await;
    for path in [
        "/v2/library/app/manifests/1".to_owned(),
        "/v2/library/app/tags/list".to_owned(),
        blob_path(&digest),
        format!("/v2/library/app/referrers/{digest}"),
        format!("/v2/{}/library/app/manifests/1", origin.name()),
        format!("/v2/library/app/manifests/1?ns={}", origin.name()),
    ] {
        for method in [Method::GET, Method::HEAD] {
            let answer = request(proxy.address, method.clone(), &path, &[]).await;
            assert_eq!(answer.status, 403, "{method} {path}");
            if method == Method::GET {
                assert_eq!(answer.error_code(), "DENIED", "{path}");
            }
        }
    }
    assert_eq!(origin.stats().requests, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_to_the_origin_is_not_kept() {
    let origin = origin(&[3 * MIB]).await;
    let digest = layer(&origin.images()[0], 0);
    let registries = registries(vec![common::client_config(&origin)]);
    let seeder = KillableSeeder::start(&registries, Vec::new(), Rate::Unlimited);
    let options = ProxyOptions { seeders: vec![seeder.url.clone()], ..ProxyOptions::new(&origin) };
    let proxy =
        options.start_with(rules(&format!(r#"[{{"registry": "{}", "action": "origin"}}]"#, origin.name()))).await;
    for round in 1..=2 {
        proxy.pull(digest).await;
        assert_eq!(origin.stats().blob(digest).gets, round, "each pull is the registry's");
    }
    assert!(!proxy.proxy.cache().contains(digest));
    assert_eq!(proxy.proxy.traffic().origin, 6 * MIB);
    let whole = proxy.get(&blob_path(&digest)).await.whole();
    let answer = proxy.get_with(&blob_path(&digest), &[("range", "bytes=1000-1999")]).await;
    assert_eq!((answer.status.as_u16(), answer.whole()), (206, whole.slice(1000..2000)));
    let head = request(proxy.address, Method::HEAD, &blob_path(&digest), &[]).await;
    assert_eq!((head.status.as_u16(), head.header("content-length")), (200, (3 * MIB).to_string().as_str()));
    let missing = proxy.get(&blob_path(&Digest::of(b"nothing"))).await;
    assert_eq!((missing.status.as_u16(), missing.error_code().as_str()), (404, "BLOB_UNKNOWN"));
    origin.shutdown().await;
    let answer = proxy.get(&blob_path(&digest)).await;
    assert_eq!((answer.status.as_u16(), answer.error_code().as_str()), (502, "UNAVAILABLE"));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_origin_fallback_only_seeders_are_asked() {
    let origin = origin(&[3 * MIB, MIB]).await;
    let digest = layer(&origin.images()[0], 0);
    let seen_by_seeder = registries(vec![common::client_config(&origin)]);
    let mut seeder = KillableSeeder::start(&seen_by_seeder, Vec::new(), Rate::Unlimited);
    let options = ProxyOptions { seeders: vec![seeder.url.clone()], ..ProxyOptions::new(&origin) };
    let proxy = options.start_with(|config| config.origin_fallback = false).await;
    proxy.pull(digest).await;
    seeder.kill();
    let before = origin.stats().requests;
    // The cache still serves those who may read; everything else fails, and nothing asks the registry.
    assert_eq!(Digest::of(&proxy.get(&blob_path(&digest)).await.whole()), digest);
    for path in [
        blob_path(&layer(&origin.images()[0], 1)),
        blob_path(&Digest::of(b"nothing")),
        "/v2/library/other/manifests/1".to_owned(),
        "/v2/library/app/tags/list".to_owned(),
    ] {
        let answer = proxy.get(&path).await;
        assert_eq!((answer.status.as_u16(), answer.error_code().as_str()), (502, "UNAVAILABLE"), "{path}");
    }
    assert_eq!(origin.stats().requests, before);
}
