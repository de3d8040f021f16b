//! The reading half of the distribution specification 1.1 through a proxy, with an origin that makes use of all of it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{
    KillableSeeder, ProxyOptions, TestProxy, request,
    stub::{StubOrigin, respond},
};
use eagle_core::{Digest, digest::Algorithm, units::Rate};
use http::{Method, Request, Response};

const CONFIG: &[u8] = b"{}";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn sha512(content: &[u8]) -> Digest {
    let mut hasher = Algorithm::Sha512.empty().hasher();
    hasher.update(content);
    hasher.finish()
}

/// Names its configuration by sha512, as any client may.
fn manifest() -> String {
    let digest = sha512(CONFIG);
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"mediaType":"application/vnd.oci.empty.v1+json","digest":"{digest}","size":2}},"layers":[]}}"#
    )
}

/// Pages of two tags, a filter for referrers, content by either digest.
fn origin(request: &Request<bytes::Bytes>) -> Response<bytes::Bytes> {
    let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
    let manifest = manifest();
    let (by_256, by_512) = (Digest::of(manifest.as_bytes()), sha512(manifest.as_bytes()));
    let parameter = |key: &str| query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
    if path == "/v2/library/app/tags/list" {
        let tags = ["v1", "v2", "v3", "v4", "v5"];
        let from = parameter("last").and_then(|last| tags.iter().position(|tag| *tag == last)).map_or(0, |at| at + 1);
        let page: Vec<&str> = tags[from..].iter().copied().take(2).collect();
        let body = serde_json::json!({ "name": "library/app", "tags": page }).to_string();
        let link = format!("</v2/library/app/tags/list?n=2&last={}>; rel=\"next\"", page.last().unwrap_or(&""));
        let more = from + page.len() < tags.len();
        let headers = [("content-type", "application/json"), ("link", &link)];
        return respond(200, &headers[..if more { 2 } else { 1 }], body);
    }
    if path == format!("/v2/library/app/referrers/{by_256}") {
        let filtered = query.contains("artifactType=");
        let body = format!(r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[]}}"#);
        let headers = [("content-type", INDEX), ("oci-filters-applied", "artifactType")];
        return respond(200, &headers[..if filtered { 2 } else { 1 }], body);
    }
    let manifests = ["1".to_owned(), by_256.to_string(), by_512.to_string()];
    if manifests.iter().any(|name| path == format!("/v2/library/app/manifests/{name}")) {
        let digest = if path.contains("sha512") { by_512 } else { by_256 };
        return respond(200, &[("content-type", MANIFEST), ("docker-content-digest", &digest.to_string())], manifest);
    }
    if path == format!("/v2/library/app/blobs/{}", sha512(CONFIG)) {
        return respond(200, &[], CONFIG);
    }
    respond(404, &[("content-type", "text/plain")], "404 page not found\n")
}

/// Directly and through a seeder.
async fn proxies(origin: &StubOrigin) -> (KillableSeeder, [TestProxy; 2]) {
    let options = ProxyOptions::of_stub(origin);
    let seeder = KillableSeeder::start(&options.registries, Vec::new(), Rate::Unlimited);
    let with_seeder = ProxyOptions { seeders: vec![seeder.url.clone()], ..ProxyOptions::of_stub(origin) };
    let proxies = [options.start().await, with_seeder.start().await];
    (seeder, proxies)
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_come_in_pages_whose_links_lead_through_the_proxy() {
    let origin = StubOrigin::start(origin).await;
    let (_seeder, proxies) = proxies(&origin).await;
    let registry = origin.address;
    for proxy in &proxies {
        for first in [
            "/v2/library/app/tags/list?n=2".to_owned(),
            format!("/v2/library/app/tags/list?n=2&ns={registry}"),
            format!("/v2/{registry}/library/app/tags/list?n=2"),
        ] {
            let (mut path, mut tags) = (first.clone(), Vec::new());
            for _page in 0..3 {
                let answer = proxy.get(&path).await;
                assert_eq!(answer.status, 200, "{path}");
                let link = answer.header("link").to_owned();
                let page: serde_json::Value = serde_json::from_slice(&answer.whole()).unwrap();
                tags.extend(page["tags"].as_array().unwrap().iter().map(|tag| tag.as_str().unwrap().to_owned()));
                path = link
                    .strip_prefix('<')
                    .and_then(|link| link.split_once(">; rel=\"next\""))
                    .map_or(String::new(), |(path, _)| path.to_owned());
            }
            assert_eq!(tags, ["v1", "v2", "v3", "v4", "v5"], "{first}");
            assert_eq!(path, "", "the last page has no link");
        }
        let head = request(proxy.address, Method::HEAD, "/v2/library/app/tags/list?n=2", &[]).await;
        assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn referrers_are_the_registrys_with_its_filters() {
    let origin = StubOrigin::start(origin).await;
    let (_seeder, proxies) = proxies(&origin).await;
    let digest = Digest::of(manifest().as_bytes());
    for proxy in &proxies {
        let answer = proxy.get(&format!("/v2/library/app/referrers/{digest}")).await;
        assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, INDEX));
        assert_eq!(answer.header("oci-filters-applied"), "");
        let kind = "application%2Fvnd.example%2Bjson";
        let answer = proxy.get(&format!("/v2/library/app/referrers/{digest}?artifactType={kind}")).await;
        assert_eq!(answer.header("oci-filters-applied"), "artifactType");
        let asked = origin.requests().last().unwrap().uri().to_string();
        assert!(asked.ends_with(&format!("?artifactType={kind}")), "{asked}");
        // A registry without the endpoint: clients then look for the tag sha256-... by themselves.
        let answer = proxy.get(&format!("/v2/library/app/referrers/{}", Digest::of(b"other"))).await;
        assert_eq!(answer.status, 404);
        let tag = format!("/v2/library/app/manifests/sha256-{}", digest.hex());
        assert_eq!(proxy.get(&tag).await.status, 404);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sha512_names_manifests_and_blobs() {
    let origin = StubOrigin::start(origin).await;
    let (_seeder, proxies) = proxies(&origin).await;
    let manifest = manifest();
    for proxy in &proxies {
        for digest in [Digest::of(manifest.as_bytes()), sha512(manifest.as_bytes())] {
            let path = format!("/v2/library/app/manifests/{digest}");
            let head = request(proxy.address, Method::HEAD, &path, &[]).await;
            assert_eq!(head.header("docker-content-digest"), digest.to_string());
            assert_eq!(head.header("content-length"), manifest.len().to_string());
            assert_eq!(head.header("content-type"), MANIFEST);
            let answer = proxy.get(&path).await;
            assert_eq!(answer.header("docker-content-digest"), digest.to_string());
            assert_eq!(answer.whole(), manifest);
        }
        let digest = sha512(CONFIG);
        let path = format!("/v2/library/app/blobs/{digest}");
        for _cold_and_warm in 0..2 {
            let answer = proxy.get(&path).await;
            assert_eq!(
                (answer.status.as_u16(), answer.header("docker-content-digest")),
                (200, digest.to_string().as_str())
            );
            assert_eq!(answer.whole(), CONFIG);
        }
        assert!(proxy.proxy.cache().contains(digest));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_content_than_the_digest_says_is_not_passed_on() {
    let origin = StubOrigin::start(|request| {
        let blob = request.uri().path().contains("/blobs/");
        respond(200, &[("content-type", MANIFEST)], if blob { "other" } else { "{}" })
    })
    .await;
    let (_seeder, proxies) = proxies(&origin).await;
    for proxy in &proxies {
        for path in ["manifests", "blobs"] {
            let answer = proxy.get(&format!("/v2/library/app/{path}/{}", sha512(b"wanted"))).await;
            assert!(answer.status.is_server_error() || answer.broken.is_some(), "{path}: {}", answer.status);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_refers_to_an_image_is_listed_and_pulled() {
    let origin = common::origin(&[10_000]).await;
    let image = &origin.images()[0];
    let seeder = KillableSeeder::start(&common::registries(vec![origin.client_config()]), Vec::new(), Rate::Unlimited);
    let with_seeder = ProxyOptions { seeders: vec![seeder.url.clone()], ..ProxyOptions::new(&origin) };
    for proxy in [ProxyOptions::new(&origin).start().await, with_seeder.start().await] {
        let subject = image.manifest_digest;
        for (query, count) in [("", 2), ("?artifactType=application%2Fvnd.eagle.layers.v1%2Bjson", 1)] {
            let answer = proxy.get(&format!("/v2/library/app/referrers/{subject}{query}")).await;
            assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, INDEX));
            let listed: serde_json::Value = serde_json::from_slice(&answer.whole()).unwrap();
            let listed = listed["manifests"].as_array().unwrap();
            assert_eq!(listed.len(), count, "{query}");
            for artifact in listed {
                let digest: Digest = artifact["digest"].as_str().unwrap().parse().unwrap();
                let manifest = proxy.get(&format!("/v2/library/app/manifests/{digest}")).await.whole();
                assert_eq!(Digest::of(&manifest), digest);
                let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
                let layer: Digest = manifest["layers"][0]["digest"].as_str().unwrap().parse().unwrap();
                let content = proxy.get(&format!("/v2/library/app/blobs/{layer}")).await.whole();
                assert_eq!(Digest::of(&content), layer);
            }
        }
    }
}
