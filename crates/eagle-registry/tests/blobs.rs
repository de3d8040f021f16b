//! Blobs: whole, resumed, broken off, stalled, and answered by servers that get it wrong.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::time::Duration;

use common::{Canned, client, embedded, read, read_blob};
use eagle_core::{Digest, units::Rate};
use eagle_registry::{
    Caller, Manifest, OriginError,
    embedded::{Access, Fault, FaultRule, FaultTarget, layer_size},
};
use http::StatusCode;

const ANYONE: Caller = Caller::anonymous();

#[tokio::test]
async fn an_image_is_pulled_blob_by_blob() {
    let origin = embedded(&[10, 300_000, 5_000], Access::Open).await;
    let image = &origin.images()[0];
    let manifest = Manifest::parse(&image.manifest, Some(image.media_type)).unwrap();
    assert_eq!(manifest.blobs.len(), 4);
    let sizes: Vec<u64> = image.layers.iter().map(|layer| layer.size).collect();
    assert_eq!(sizes, [2048, layer_size(300_000), layer_size(5_000)]);
    let registry = client(origin.client_config());
    for blob in &manifest.blobs {
        let size = registry.blob_head(&image.repository, blob.digest, &ANYONE).await.unwrap();
        assert_eq!(size, blob.size);
        read_blob(registry.blob(&image.repository, blob.digest, 0, &ANYONE).await.unwrap(), blob.digest).await;
    }
    let stats = origin.stats();
    assert_eq!(stats.blob_bytes, manifest.total_size());
    assert!(manifest.blobs.iter().all(|blob| {
        let counters = stats.blob(blob.digest);
        (counters.gets, counters.heads, counters.ranges, counters.bytes) == (1, 1, 0, blob.size)
    }));
    origin.shutdown().await;
}

#[tokio::test]
async fn a_blob_is_resumed_where_it_stopped() {
    let origin = embedded(&[100_000], Access::Open).await;
    let (repository, layer) = (origin.images()[0].repository.clone(), origin.images()[0].layers[0].clone());
    let registry = client(origin.client_config());
    let whole = read(registry.blob(&repository, layer.digest, 0, &ANYONE).await.unwrap().body).await.unwrap();
    for start in [1, 511, 70_000, layer.size - 1] {
        let blob = registry.blob(&repository, layer.digest, start, &ANYONE).await.unwrap();
        assert_eq!((blob.start, blob.size), (start, layer.size));
        assert_eq!(read(blob.body).await.unwrap(), whole.slice(usize::try_from(start).unwrap()..));
    }
    // A server without ranges begins anew, and says so.
    origin.set_faults(vec![FaultRule::once(FaultTarget::Blobs, Fault::IgnoreRange)]);
    read_blob(registry.blob(&repository, layer.digest, 70_000, &ANYONE).await.unwrap(), layer.digest).await;
    let error = registry.blob(&repository, layer.digest, layer.size, &ANYONE).await.unwrap_err();
    assert_eq!(error.status(), Some(StatusCode::RANGE_NOT_SATISFIABLE));
}

#[tokio::test]
async fn what_breaks_off_or_stalls_is_an_error() {
    let origin = embedded(&[100_000], Access::Open).await;
    let (repository, layer) = (origin.images()[0].repository.clone(), origin.images()[0].layers[0].clone());
    let registry = client(origin.client_config());
    let get = async |fault| {
        origin.set_faults(vec![FaultRule::once(FaultTarget::Blob(layer.digest), fault)]);
        registry.blob(&repository, layer.digest, 0, &ANYONE).await
    };

    let error = read(get(Fault::TruncateAfter(5_000)).await.unwrap().body).await.unwrap_err();
    assert!(
        matches!(error, OriginError::Truncated { received: 5_000, expected: Some(size), .. } if size == layer.size),
        "{error}"
    );

    let error = read(get(Fault::StallAfter(5_000)).await.unwrap().body).await.unwrap_err();
    assert!(matches!(error, OriginError::Timeout { .. }), "{error}");

    // A connection that breaks before the answer is tried once more.
    read_blob(get(Fault::Refuse).await.unwrap(), layer.digest).await;
    origin.set_faults(vec![FaultRule::always(FaultTarget::Blobs, Fault::Refuse)]);
    let error = registry.blob(&repository, layer.digest, 0, &ANYONE).await.unwrap_err();
    assert!(matches!(error, OriginError::Unreachable { .. }), "{error}");

    let error = get(Fault::NoLength).await.unwrap_err();
    assert!(matches!(error, OriginError::Protocol { .. }), "{error}");

    let error = get(Fault::Status(StatusCode::TOO_MANY_REQUESTS)).await.unwrap_err();
    assert_eq!(error.status(), Some(StatusCode::TOO_MANY_REQUESTS));
    assert!(error.is_transient() && error.to_string().contains("told to fail"), "{error}");

    // Wrong bytes are found by whoever hashes them; the client passes them on.
    let bytes = read(get(Fault::CorruptAt(4_000)).await.unwrap().body).await.unwrap();
    assert_ne!(Digest::of(&bytes), layer.digest);

    origin.set_faults(vec![FaultRule::always(FaultTarget::Blobs, Fault::WrongContentRange)]);
    let error = registry.blob(&repository, layer.digest, 10, &ANYONE).await.unwrap_err();
    assert!(matches!(error, OriginError::Protocol { .. }), "{error}");

    origin.set_faults(Vec::new());
    let unknown = registry.blob(&repository, Digest::of(b"no such blob"), 0, &ANYONE).await.unwrap_err();
    assert_eq!(unknown.status(), Some(StatusCode::NOT_FOUND));
    let config = origin.client_config();
    origin.shutdown().await;
    let error = client(config).blob(&repository, layer.digest, 0, &ANYONE).await.unwrap_err();
    assert!(matches!(error, OriginError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn a_slow_reader_is_not_a_stalled_origin() {
    let origin = embedded(&[4 << 20], Access::Open).await;
    let (repository, layer) = (origin.images()[0].repository.clone(), origin.images()[0].layers[0].clone());
    let blob = client(origin.client_config()).blob(&repository, layer.digest, 0, &ANYONE).await.unwrap();
    // Longer than the stall timeout of these tests; the point is that time passes between reads.
    tokio::time::sleep(Duration::from_millis(600)).await;
    read_blob(blob, layer.digest).await;
}

#[tokio::test]
async fn the_embedded_registry_keeps_its_rate() {
    let origin = embedded(&[400_000], Access::Open).await;
    let (repository, layer) = (origin.images()[0].repository.clone(), origin.images()[0].layers[0].clone());
    origin.set_rate(Rate::Limited(1_000_000));
    let begin = tokio::time::Instant::now();
    read_blob(client(origin.client_config()).blob(&repository, layer.digest, 0, &ANYONE).await.unwrap(), layer.digest)
        .await;
    assert!(begin.elapsed() >= Duration::from_millis(380), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn answers_that_break_the_protocol_are_refused() {
    let repository = "a".parse().unwrap();
    let digest = Digest::of(b"x");
    for (start, answer) in [
        (0, "HTTP/1.1 200 OK\r\n\r\nhello"),
        (0, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        (0, "HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999\r\n\r\n"),
        (0, "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 5\r\n\r\nhello"),
        (0, "HTTP/1.1 206 Partial Content\r\ncontent-length: 5\r\n\r\nhello"),
        (0, "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes 0-4/10\r\ncontent-length: 5\r\n\r\nhello"),
        (5, "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes 4-9/10\r\ncontent-length: 6\r\n\r\nworld!"),
        (5, "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes 5-9/*\r\ncontent-length: 5\r\n\r\nworld"),
        (5, "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes 5-9/10\r\ncontent-length: 4\r\n\r\nworl"),
        (5, "HTTP/1.1 206 Partial Content\r\ncontent-range: chars 5-9/10\r\ncontent-length: 5\r\n\r\nworld"),
    ] {
        let server = Canned::start(vec![answer.to_owned()]).await;
        let error = client(server.config()).blob(&repository, digest, start, &ANYONE).await.unwrap_err();
        assert!(matches!(error, OriginError::Protocol { .. }), "{answer}: {error}");
        let head = &server.heads()[0];
        assert!(head.contains("accept-encoding: identity\r\n"), "{head}");
        assert_eq!(head.contains("range: bytes=5-\r\n"), start == 5, "{head}");
    }
}

#[tokio::test]
async fn a_range_needs_no_content_length_and_must_be_whole() {
    let repository = "a".parse().unwrap();
    let digest = Digest::of(b"helloworld");
    let head = "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes 5-9/10\r\ntransfer-encoding: chunked\r\n\r\n";
    for (chunks, is_whole) in [
        ("5\r\nworld\r\n0\r\n\r\n", true),
        ("4\r\nworl\r\n0\r\n\r\n", false),
        ("6\r\nworld!\r\n0\r\n\r\n", false),
        ("5\r\nworld\r\n", false),
    ] {
        let server = Canned::start(vec![format!("{head}{chunks}")]).await;
        let blob = client(server.config()).blob(&repository, digest, 5, &ANYONE).await.unwrap();
        assert_eq!((blob.start, blob.size), (5, 10));
        match read(blob.body).await {
            Ok(bytes) => assert!(is_whole && bytes == "world", "{chunks:?}"),
            Err(error) => assert!(!is_whole, "{chunks:?}: {error}"),
        }
    }
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up() {
    let listener = tokio::net::TcpListener::bind(common::loopback()).await.unwrap();
    let config = eagle_registry::RegistryConfig {
        url: Some(format!("http://{}", listener.local_addr().unwrap()).parse().unwrap()),
        response_timeout: Duration::from_millis(200),
        ..eagle_registry::RegistryConfig::new("silent.test".parse().unwrap())
    };
    let registries = eagle_registry::Registries::new(vec![config.clone()]).unwrap();
    let error =
        registries.get(&config.name).blob_head(&"a".parse().unwrap(), Digest::of(b"x"), &ANYONE).await.unwrap_err();
    assert!(matches!(error, OriginError::Timeout { .. }), "{error}");
}

#[tokio::test]
async fn error_bodies_are_read_up_to_a_limit() {
    let body = "e".repeat(200 << 10);
    let answer =
        format!("HTTP/1.1 500 Oh\r\nretry-after: 7\r\nx-other: 1\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let server = Canned::start(vec![answer]).await;
    let error = client(server.config()).blob(&"a".parse().unwrap(), Digest::of(b"x"), 0, &ANYONE).await.unwrap_err();
    let OriginError::Status { status, headers, body, .. } = error else { panic!("{error}") };
    assert_eq!((status.as_u16(), body.len(), headers.len()), (500, 64 << 10, 1));
    assert_eq!(headers["retry-after"], "7");
}
