//! The way out through an HTTP proxy.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::sync::{Arc, Mutex};

use common::{Canned, client, loopback, read, read_blob, secure};
use eagle_registry::{Caller, EgressProxy, ForwardRequest, OriginError, RegistryConfig, embedded::Access};
use http::{HeaderMap, Method};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

const ANYONE: Caller = Caller::anonymous();

/// A proxy that tunnels to wherever it is told, and keeps the heads of requests.
async fn tunnel() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind(loopback()).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let heads = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&heads);
    tokio::spawn(async move {
        while let Ok((mut inner, _)) = listener.accept().await {
            let seen = Arc::clone(&seen);
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(inner.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                let target = head.split(' ').nth(1).unwrap().to_owned();
                seen.lock().unwrap().push(head);
                let mut outer = TcpStream::connect(target).await.unwrap();
                inner.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut inner, &mut outer).await;
            });
        }
    });
    (address, heads)
}

fn through(address: &str) -> Option<EgressProxy> {
    Some(format!("http://me:pw@{address}").parse().unwrap())
}

#[tokio::test]
async fn https_goes_through_a_tunnel_and_is_verified_end_to_end() {
    let (origin, ca_file, _directory) = secure(Access::Open).await;
    let (address, heads) = tunnel().await;
    let config = RegistryConfig { ca_file: Some(ca_file), egress_proxy: through(&address), ..origin.client_config() };
    let image = &origin.images()[0];
    let digest = image.layers[0].digest;
    read_blob(client(config).blob(&image.repository, digest, 0, &ANYONE).await.unwrap(), digest).await;
    let heads = heads.lock().unwrap();
    assert_eq!(heads.len(), 1);
    assert!(heads[0].starts_with(&format!("CONNECT {} HTTP/1.1\r\n", origin.local_addr())), "{}", heads[0]);
    assert!(heads[0].contains("Proxy-Authorization: Basic bWU6cHc=\r\n"), "{}", heads[0]);
}

#[tokio::test]
async fn http_is_asked_for_in_absolute_form() {
    let proxy =
        Canned::start(vec!["HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok".to_owned()]).await;
    let config = RegistryConfig {
        url: Some("http://registry.invalid:5000".parse().unwrap()),
        egress_proxy: through(&proxy.address.to_string()),
        ..RegistryConfig::new("registry.invalid:5000".parse().unwrap())
    };
    let request = ForwardRequest::new(Method::GET, "a/tags/list", HeaderMap::new()).unwrap();
    let response = client(config).forward(request, &ANYONE).await.unwrap();
    assert_eq!(read(response.into_body()).await.unwrap(), "ok");
    let head = &proxy.heads()[0];
    assert!(head.starts_with("get http://registry.invalid:5000/v2/a/tags/list http/1.1\r\n"), "{head}");
    assert!(head.contains("host: registry.invalid:5000\r\n"), "{head}");
    assert!(head.contains("proxy-authorization: basic bwu6chc=\r\n"), "{head}");
}

#[tokio::test]
async fn a_proxy_that_refuses_is_named_without_its_password() {
    let refuse = "HTTP/1.1 407 No\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    let proxy = Canned::start(vec![refuse.to_owned()]).await;
    let config = RegistryConfig {
        egress_proxy: through(&proxy.address.to_string()),
        ..RegistryConfig::new("registry.invalid".parse().unwrap())
    };
    let request = ForwardRequest::new(Method::GET, "a/tags/list", HeaderMap::new()).unwrap();
    let error = client(config).forward(request, &ANYONE).await.unwrap_err();
    let OriginError::Unreachable { reason, .. } = &error else { panic!("{error}") };
    assert!(reason.contains(&format!("egress proxy {}", proxy.address)), "{reason}");
    assert!(reason.contains("proxy authorization required") && !reason.contains("pw"), "{reason}");
}
