//! Reading what runtimes and registries say: manifests, names, ranges, challenges.
//!
//! `cargo bench -p eagle-registry --bench parsing`
#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on fails")]

use std::{fmt::Write as _, hint::black_box};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use eagle_core::Digest;
use eagle_registry::{
    ImageReference, Manifest,
    parsers::challenge,
    range::{ContentRange, requested},
};
use http::HeaderValue;

/// Layers of the image.
const LAYERS: u32 = 12;
/// Platforms of the index.
const PLATFORMS: u32 = 8;

fn descriptor(name: &str, number: u32, more: &str) -> String {
    let digest = Digest::of(format!("{name} {number}").as_bytes());
    format!(r#"{{"mediaType":"application/vnd.oci.image.{name}.v1","digest":"{digest}","size":{number}{more}}}"#)
}

fn manifests(criterion: &mut Criterion) {
    let layers: Vec<String> = (0..LAYERS).map(|number| descriptor("layer", number, "")).collect();
    let image =
        format!(r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#, descriptor("config", 0, ""), layers.join(","));
    let mut index = String::from(r#"{"schemaVersion":2,"manifests":["#);
    for number in 0..PLATFORMS {
        let platform = r#","platform":{"os":"linux","architecture":"arm64","variant":"v8"}"#;
        let comma = if number == 0 { "" } else { "," };
        write!(index, "{comma}{}", descriptor("manifest", number, platform)).unwrap();
    }
    index.push_str("]}");
    let mut group = criterion.benchmark_group("manifest");
    for (name, text, named) in [("image of 12 layers", image, LAYERS + 1), ("index of 8 platforms", index, PLATFORMS)] {
        let manifest = Manifest::parse(text.as_bytes(), None).unwrap();
        assert_eq!(manifest.blobs.len() + manifest.manifests.len(), named as usize);
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(name, |bencher| bencher.iter(|| Manifest::parse(black_box(text.as_bytes()), None)));
    }
}

fn names(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("image reference");
    let by_digest = format!("registry.example.com:5000/team/app/server:1.2@{}", Digest::of(b"image"));
    for (name, text) in [("short", "debian:12"), ("with registry and digest", by_digest.as_str())] {
        text.parse::<ImageReference>().unwrap();
        group.bench_function(name, |bencher| bencher.iter(|| black_box(text).parse::<ImageReference>()));
    }
}

fn headers(criterion: &mut Criterion) {
    assert_eq!(requested("bytes=1048576-2097151", 1 << 30), Ok(Some(1 << 20..2 << 20)));
    criterion.bench_function("Range", |bencher| {
        bencher.iter(|| requested(black_box("bytes=1048576-2097151"), 1 << 30));
    });
    let answered = "bytes 1048576-2097151/1073741824";
    answered.parse::<ContentRange>().unwrap();
    criterion.bench_function("Content-Range", |bencher| bencher.iter(|| black_box(answered).parse::<ContentRange>()));
    let wanted = [HeaderValue::from_static(
        r#"Bearer realm="https://auth.example.com/token",service="registry.example.com",scope="repository:team/app:pull""#,
    )];
    assert_eq!(challenge(&wanted).map(|parts| parts.len()), Some(3));
    criterion.bench_function("WWW-Authenticate", |bencher| bencher.iter(|| challenge(black_box(&wanted))));
}

criterion_group!(benches, manifests, names, headers);
criterion_main!(benches);
