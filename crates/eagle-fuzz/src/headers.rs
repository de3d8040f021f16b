//! What registries and runtimes say in headers, and the documents that registries answer with.

use std::time::Duration;

use eagle_core::geometry::MAX_BLOB_SIZE;
use eagle_registry::{
    ImageReference, Manifest, OciError, parsers,
    range::{self, ContentRange},
};
use eagle_tracker::encoding::Encoding;
use http::{HeaderMap, HeaderName, HeaderValue, header};

/// The same text as every header that means something here, whole and line by line.
pub(crate) fn run(bytes: &[u8]) {
    let values: Vec<HeaderValue> =
        bytes.split(|byte| *byte == b'\n').take(20).filter_map(|line| HeaderValue::from_bytes(line).ok()).collect();
    if let Some(asked) = parsers::challenge(&values) {
        let sent: usize = values.iter().map(HeaderValue::len).sum();
        assert!(asked.len() <= 3 && asked.iter().map(String::len).sum::<usize>() <= sent);
    }
    for value in &values {
        let mut headers = HeaderMap::new();
        for name in [header::RETRY_AFTER, header::CONTENT_LENGTH, header::CONNECTION, header::AGE] {
            headers.insert(name, value.clone());
        }
        if let Some(pause) = eagle_registry::retry_after(&headers) {
            assert!(pause <= Duration::from_secs(300), "{value:?} is a pause of {pause:?}");
        }
        let _ = eagle_registry::headers::number(&headers, &header::CONTENT_LENGTH);
        headers.insert(HeaderName::from_static("x-kept"), HeaderValue::from_static("1"));
        eagle_registry::headers::remove_hop_by_hop(&mut headers);
        assert!(!headers.contains_key(header::CONNECTION));
        if let Ok(text) = value.to_str() {
            ranges(text);
        }
        links(value);
        encodings(value);
    }
}

fn ranges(text: &str) {
    for size in [0, 1, 1000, u64::MAX] {
        if let Ok(Some(range)) = range::requested(text, size) {
            assert!(range.start < range.end && range.end <= size, "{text:?} of {size} is {range:?}");
        }
    }
    if let Ok(range) = text.parse::<ContentRange>() {
        assert!(range.start < range.end && range.total.is_none_or(|total| range.end <= total));
        assert_eq!(range.to_string().parse(), Ok(range));
    }
}

/// What an announce is written in, and its answer.
fn encodings(value: &HeaderValue) {
    let headers = |name: HeaderName| HeaderMap::from_iter([(name, value.clone())]);
    if let Some(body) = Encoding::of_body(&headers(header::CONTENT_TYPE)) {
        assert!(value.to_str().is_ok_and(|text| text.to_ascii_lowercase().contains("application/")), "{body:?}");
    }
    for usual in [Encoding::Json, Encoding::Protobuf] {
        let _ = Encoding::accepted(&headers(header::ACCEPT), usual);
    }
}

/// A link leads back to the list that was asked for, whatever the registry wrote.
fn links(value: &HeaderValue) {
    let Ok(repository) = "a/b".parse() else { return };
    for (name, query) in [("a/b", None), ("ghcr.io/a/b", Some("n=2&ns=ghcr.io"))] {
        for link in eagle_proxy::parsers::link(name, query, &repository, value).values() {
            let text = link.to_str().unwrap_or_default();
            assert!(text.starts_with(&format!("</v2/{name}/tags/list")), "{value:?} became {link:?}");
            // The registry that was asked for, and no other.
            let target = text.split('>').next().unwrap_or_default();
            let query_of = target.split_once('?').map_or("", |(_, query)| query);
            let named: Vec<&str> = query_of.split('&').filter(|pair| pair.starts_with("ns=")).collect();
            assert_eq!(named, query.map_or(&[][..], |_| &["ns=ghcr.io"]), "{value:?} became {link:?}");
        }
    }
}

/// Manifests, errors and tokens.
pub(crate) fn manifests(bytes: &[u8]) {
    for kind in [None, Some("application/vnd.oci.image.index.v1+json; charset=utf-8")] {
        let Ok(manifest) = Manifest::parse(bytes, kind) else { continue };
        let named = manifest.blobs.iter().chain(&manifest.manifests);
        assert!(named.clone().all(|descriptor| descriptor.size <= MAX_BLOB_SIZE));
        // The shortest descriptor has a digest of 71 characters.
        assert!(named.count() <= bytes.len() / 71);
        let _ = (manifest.is_index(), manifest.total_size());
    }
    if let Ok(error) = serde_json::from_slice::<OciError>(bytes) {
        assert!(serde_json::from_slice::<serde_json::Value>(&error.to_body()).is_ok());
    }
    if let Some(token) = parsers::token(bytes) {
        assert!(token.is_sensitive() && token.len() <= bytes.len() + "Bearer ".len());
    }
}

/// docker's `config.json`.
pub(crate) fn credentials(bytes: &[u8]) {
    match parsers::docker_config(bytes) {
        Ok(registries) => {
            for registry in registries {
                // What is looked up later is a name as this.
                let image = format!("{registry}/a:1").parse::<ImageReference>();
                assert!(image.is_ok_and(|image| image.registry == registry) || !registry.as_str().contains(['.', ':']));
            }
        }
        // Where the file breaks is said, and nothing of what it holds.
        Err(error) => assert!(error.len() < 100 && error.starts_with("is not a docker configuration"), "{error}"),
    }
}
