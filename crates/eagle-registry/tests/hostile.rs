//! Headers of answers that are wrong on purpose.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use common::{Canned, client, read};
use eagle_core::Digest;
use eagle_registry::{Caller, ForwardRequest, OriginError, RegistryConfig, Secret};
use http::{HeaderMap, Method, StatusCode};

const ANYONE: Caller = Caller::anonymous();
const SECRET: &str = "the-password";

fn with_login(server: &Canned) -> RegistryConfig {
    RegistryConfig { username: Some("me".to_owned()), password: Some(Secret::new(SECRET)), ..server.config() }
}

async fn ask(server: &Canned) -> Result<StatusCode, OriginError> {
    let request = ForwardRequest::new(Method::GET, "a/manifests/1", HeaderMap::new()).unwrap();
    let response = client(with_login(server)).forward(request, &ANYONE).await?;
    let status = response.status();
    read(response.into_body()).await?;
    Ok(status)
}

fn answer(head: &str) -> String {
    format!("HTTP/1.1 {head}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
}

#[tokio::test]
async fn locations_that_lead_astray_are_not_followed() {
    let long = format!("http://a.test/{}", "x".repeat(70_000));
    for location in [
        "",
        "//",
        "http://",
        "http:///etc/passwd",
        "file:///etc/passwd",
        "ftp://a.test/",
        "gopher://127.0.0.1:6379/_FLUSHALL",
        "javascript:alert(1)",
        "data:text/plain,x",
        "http://user:word@a.test/",
        "http://[::1",
        "http://a.test:99999/",
        "http://a b/",
        long.as_str(),
    ] {
        let redirect =
            format!("HTTP/1.1 307 Go\r\nlocation: {location}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
        // Whoever followed it to the same server would be given an answer.
        let server = Canned::start(vec![redirect, answer("404 No")]).await;
        let shown: String = location.chars().take(60).collect();
        match ask(&server).await {
            // An empty reference leads to the same place again (RFC 3986, 4.4).
            Ok(status) => assert_eq!((location, status), ("", StatusCode::NOT_FOUND)),
            Err(error) => {
                assert!(!matches!(error, OriginError::Status { .. }), "{shown}: {error}");
                let text = error.to_string();
                assert!(text.len() < 500 && !text.contains(SECRET) && !text.contains("word@"), "{shown}: {text}");
                assert_eq!(server.heads().len(), 1, "{shown}");
            }
        }
    }
}

#[tokio::test]
async fn ranges_that_were_not_asked_for_are_no_content() {
    let digest = Digest::of(b"x");
    for range in [
        "",
        "bytes",
        "bytes 0-9/10",
        "bytes 4-9/10",
        "bytes 5-9/5",
        "bytes 5-4/10",
        "bytes 5-9/18446744073709551616",
        "bytes 5-18446744073709551615/18446744073709551615",
        "bytes 5-9/*",
        "bytes */10",
        "lines 5-9/10",
        "bytes -5-9/10",
        "bytes 5-9/99999999999999",
        "bytes 5-9/10, bytes 5-9/10",
    ] {
        let head = format!(
            "HTTP/1.1 206 Part\r\ncontent-range: {range}\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello"
        );
        let server = Canned::start(vec![head]).await;
        let result = client(server.config()).blob(&"a".parse().unwrap(), digest, 5, &ANYONE).await;
        // What cannot be known to be wrong has to show in the length of the body.
        let error = match result {
            Err(error) => error,
            Ok(blob) => read(blob.body).await.expect_err(range),
        };
        assert!(matches!(error, OriginError::Protocol { .. } | OriginError::Truncated { .. }), "{range}: {error}");
    }
}

#[tokio::test]
async fn lengths_and_encodings_that_lie_are_errors() {
    let digest = Digest::of(b"hello");
    for head in [
        "200 OK\r\ncontent-length: 99999999999999999999",
        "200 OK\r\ncontent-length: -1",
        "200 OK\r\ncontent-length: 5\r\ncontent-length: 6",
        "200 OK\r\ncontent-length: 18446744073709551615",
        "200 OK\r\ncontent-length: 5\r\ncontent-encoding: gzip",
        "200 OK\r\ntransfer-encoding: chunked",
        "200 OK",
        "206 Part\r\ncontent-length: 5",
        "304 Same\r\ncontent-length: 5",
        "999 What\r\ncontent-length: 5",
    ] {
        let server = Canned::start(vec![format!("HTTP/1.1 {head}\r\nconnection: close\r\n\r\nhello")]).await;
        let result = client(server.config()).blob(&"a".parse().unwrap(), digest, 0, &ANYONE).await;
        assert!(result.is_err(), "{head}");
    }
    // The size of a blob as HEAD tells it.
    for length in ["-1", "1e9", "18446744073709551615", ""] {
        let server =
            Canned::start(vec![format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n")])
                .await;
        let result = client(server.config()).blob_head(&"a".parse().unwrap(), digest, &ANYONE).await;
        assert!(result.is_err(), "{length}: {result:?}");
    }
}

#[tokio::test]
async fn heads_without_end_are_given_up() {
    let many: String = (0..5000).map(|number| format!("x-{number}: y\r\n")).collect();
    let long = format!("x: {}\r\n", "y".repeat(2 << 20));
    for headers in [many, long] {
        let server = Canned::start(vec![format!("HTTP/1.1 200 OK\r\n{headers}content-length: 0\r\n\r\n")]).await;
        let error = ask(&server).await.unwrap_err();
        assert!(matches!(error, OriginError::Unreachable { .. }), "{error}");
        assert!(error.to_string().len() < 500);
    }
}
