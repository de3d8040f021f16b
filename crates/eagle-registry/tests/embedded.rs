//! The embedded registry, as clients other than Eagle's see it.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::process::Command;

use common::{client, embedded, image, loopback, read};
use eagle_registry::{
    Caller, EmbeddedRegistry, ForwardRequest,
    embedded::{Access, EmbeddedConfig, GeneratedImage, RegistryStats},
};
use http::{HeaderMap, Method};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Sends a request as it is and reads the answer to its end.
async fn raw(origin: &EmbeddedRegistry, request: &str) -> String {
    let mut stream = TcpStream::connect(origin.local_addr()).await.unwrap();
    stream.write_all(format!("{request}\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn the_same_seed_makes_the_same_image() {
    let digest = async |seed| {
        let images = vec![GeneratedImage { seed, ..image(&[5_000, 6_000]) }];
        let origin = EmbeddedRegistry::start(EmbeddedConfig::new(loopback(), images)).await.unwrap();
        origin.images()[0].manifest_digest
    };
    assert_eq!(digest(1).await, digest(1).await);
    assert_ne!(digest(1).await, digest(2).await);
}

#[tokio::test]
async fn images_share_layers_of_the_same_seed() {
    let other = GeneratedImage { tag: "v2".parse().unwrap(), layers: vec![5_000, 7_000], ..image(&[]) };
    let config = EmbeddedConfig::new(loopback(), vec![image(&[5_000, 6_000]), other]);
    let origin = EmbeddedRegistry::start(config).await.unwrap();
    let [first, second] = origin.images() else { panic!("two images") };
    assert_eq!(first.layers[0], second.layers[0]);
    assert_ne!(first.layers[1], second.layers[1]);
    assert_ne!(first.config.digest, second.config.digest);
    let request = ForwardRequest::new(Method::GET, "demo/app/tags/list", HeaderMap::new()).unwrap();
    let tags = client(origin.client_config()).forward(request, &Caller::anonymous()).await.unwrap();
    assert_eq!(read(tags.into_body()).await.unwrap(), r#"{"name":"demo/app","tags":["v1","v2"]}"#);
}

#[tokio::test]
async fn lists_come_in_pages_and_filtered() {
    let tagged = |tag: &str| GeneratedImage { tag: tag.parse().unwrap(), ..image(&[5_000]) };
    let images = ["v3", "v1", "v2"].map(tagged).to_vec();
    let origin = EmbeddedRegistry::start(EmbeddedConfig::new(loopback(), images)).await.unwrap();
    for (query, tags, link) in [
        ("", r#"["v1","v2","v3"]"#, None),
        ("?n=2", r#"["v1","v2"]"#, Some("</v2/demo/app/tags/list?n=2&last=v2>; rel=\"next\"")),
        ("?n=2&last=v2", r#"["v3"]"#, None),
        ("?n=3", r#"["v1","v2","v3"]"#, None),
        ("?n=0", "[]", None),
        ("?last=v9", "[]", None),
    ] {
        let answer = raw(&origin, &format!("GET /v2/demo/app/tags/list{query} HTTP/1.1")).await;
        assert!(answer.ends_with(&format!(r#"{{"name":"demo/app","tags":{tags}}}"#)), "{query}: {answer}");
        let found = answer.lines().find_map(|line| line.strip_prefix("link: "));
        assert_eq!(found, link, "{query}");
    }
    assert!(raw(&origin, "GET /v2/demo/app/tags/list?n=x HTTP/1.1").await.starts_with("HTTP/1.1 400"));

    let image = &origin.images()[0];
    let list = async |query: &str| {
        let path = format!("/v2/demo/app/referrers/{}{query}", image.manifest_digest);
        let answer = raw(&origin, &format!("GET {path} HTTP/1.1")).await;
        let filtered = answer.contains("oci-filters-applied: artifactType\r\n");
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        (filtered, serde_json::from_str::<serde_json::Value>(body).unwrap()["manifests"].clone())
    };
    let (filtered, all) = list("").await;
    assert_eq!((filtered, all.as_array().unwrap().len()), (false, 2));
    let (filtered, one) = list("?artifactType=application%2Fvnd.eagle.layers.v1%2Bjson").await;
    assert!(filtered);
    assert_eq!(one.as_array().unwrap()[..], all.as_array().unwrap()[..1]);
    assert_eq!(list("?artifactType=application%2Fx").await, (true, serde_json::json!([])));
    // What is listed is there, and refers to the image.
    let digest = one[0]["digest"].as_str().unwrap();
    let answer = raw(&origin, &format!("GET /v2/demo/app/manifests/{digest} HTTP/1.1")).await;
    let (_, manifest) = answer.split_once("\r\n\r\n").unwrap();
    let manifest: serde_json::Value = serde_json::from_str(manifest).unwrap();
    assert_eq!(manifest["subject"]["digest"], image.manifest_digest.to_string());
    assert_eq!(manifest["artifactType"], one[0]["artifactType"]);
}

#[tokio::test]
async fn ranges_errors_and_counters_over_plain_http() {
    let origin = embedded(&[5_000], Access::Open).await;
    let digest = origin.images()[0].layers[0].digest;
    let blob = format!("/v2/demo/app/blobs/{digest} HTTP/1.1");
    let answer = raw(&origin, &format!("GET {blob}\r\nrange: bytes=-512")).await;
    assert!(answer.starts_with("HTTP/1.1 206"), "{answer}");
    assert!(
        answer.contains("content-range: bytes 4608-5119/5120\r\n") && answer.contains("content-length: 512\r\n"),
        "{answer}"
    );
    let answer = raw(&origin, &format!("GET {blob}\r\nrange: bytes=5120-")).await;
    assert!(answer.starts_with("HTTP/1.1 416") && answer.contains("content-range: bytes */5120\r\n"), "{answer}");
    let answer = raw(&origin, &format!("HEAD {blob}")).await;
    assert!(answer.contains("content-length: 5120\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
    assert!(answer.contains(&format!("docker-content-digest: {digest}\r\n")), "{answer}");
    assert!(raw(&origin, "GET /v2/ HTTP/1.1").await.starts_with("HTTP/1.1 200"));
    for (request, status, code) in [
        ("GET /v2/none/tags/list", 404, "NAME_UNKNOWN"),
        ("GET /v2/demo/app/manifests/none", 404, "MANIFEST_UNKNOWN"),
        ("GET /v2/demo/app/blobs/sha256:00", 404, "NAME_INVALID"),
        ("DELETE /v2/demo/app/manifests/v1", 405, "UNSUPPORTED"),
        ("GET /other", 404, "UNSUPPORTED"),
    ] {
        let answer = raw(&origin, &format!("{request} HTTP/1.1")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(code), "{answer}");
    }
    let answer = raw(&origin, "GET /_stats HTTP/1.1").await;
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let stats: RegistryStats = serde_json::from_str(body).unwrap();
    assert_eq!(stats, origin.stats());
    let counters = stats.blob(digest);
    assert_eq!((counters.gets, counters.ranges, counters.heads, counters.bytes), (2, 2, 1, 512));
    assert_eq!((stats.requests, stats.blob_bytes), (9, 512));
    origin.reset_stats();
    assert_eq!(origin.stats(), RegistryStats::default());
}

/// Needs `skopeo`; says so and passes without, unless `EAGLE_TEST_REQUIRE_ALL=1`.
#[tokio::test(flavor = "multi_thread")]
async fn skopeo_copies_an_image() {
    if Command::new("skopeo").arg("--version").output().is_err() {
        assert!(std::env::var_os("EAGLE_TEST_REQUIRE_ALL").is_none_or(|all| all != "1"), "skopeo is not installed");
        eprintln!("SKIPPED: skopeo is not installed");
        return;
    }
    let origin = embedded(&[100_000, 2_000_000], Access::Open).await;
    let directory = tempfile::tempdir().unwrap();
    let from = format!("docker://{}/demo/app:v1", origin.name());
    let to = format!("oci:{}:v1", directory.path().join("image").display());
    let copy = move || {
        Command::new("skopeo")
            .args(["--insecure-policy", "--command-timeout", "60s", "copy", "--src-tls-verify=false", &from, &to])
            .output()
            .unwrap()
    };
    let output = tokio::task::spawn_blocking(copy).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for layer in &origin.images()[0].layers {
        assert_eq!(origin.stats().blob(layer.digest).bytes, layer.size);
    }
}
