//! Credentials from docker's `config.json`, and the OAuth 2.0 form of token services.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::{path::Path, sync::Arc, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use common::{Canned, embedded, read};
use eagle_registry::{
    Caller, CredentialsConfig, ForwardRequest, OriginError, Registries, Registry, RegistryConfig,
    embedded::{Access, User},
};
use http::{HeaderMap, HeaderValue, Method, StatusCode};

const ANYONE: Caller = Caller::anonymous();

fn registry(config: RegistryConfig, file: &Path) -> Arc<Registry> {
    let credentials = CredentialsConfig { docker_configs: vec![file.to_owned()] };
    let config = RegistryConfig { retries: 0, response_timeout: Duration::from_secs(2), ..config };
    let name = config.name.clone();
    Registries::with_credentials(vec![config], &credentials).unwrap().get(&name)
}

async fn status(registry: &Registry) -> Result<StatusCode, OriginError> {
    status_for(registry, &ANYONE).await
}

async fn status_for(registry: &Registry, caller: &Caller) -> Result<StatusCode, OriginError> {
    let request = ForwardRequest::new(Method::GET, "demo/app/manifests/v1", HeaderMap::new()).unwrap();
    let response = registry.forward(request, caller).await?;
    let status = response.status();
    read(response.into_body()).await?;
    Ok(status)
}

#[tokio::test]
async fn a_login_from_a_file_works_everywhere_and_a_new_one_takes_over() {
    let users = || vec![User::new("ann", "pw"), User::new("bob", "pw")];
    let bearer = Access::Bearer { users: users(), anonymous: false, lifetime: Duration::from_secs(300) };
    for access in [Access::Basic(users()), bearer] {
        let origin = embedded(&[1], access).await;
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.json");
        let write = |user: &str, password: &str| {
            let text =
                format!(r#"{{"auths":{{"{}":{{"username":"{user}","password":"{password}"}}}}}}"#, origin.name());
            std::fs::write(&file, text).unwrap();
        };
        write("ann", "pw");
        let registry = registry(origin.client_config(), &file);
        assert_eq!(status(&registry).await.unwrap(), StatusCode::OK);
        // A token that was got with the former password does not live on.
        write("ann", "changed");
        tokio::time::sleep(Duration::from_millis(1100)).await;
        assert_eq!(status(&registry).await.unwrap(), StatusCode::UNAUTHORIZED);
        write("bob", "pw");
        tokio::time::sleep(Duration::from_millis(1100)).await;
        assert_eq!(status(&registry).await.unwrap(), StatusCode::OK);
    }
}

/// A caller with a name and password.
fn caller(pair: &str) -> Caller {
    let value = format!("Basic {}", BASE64_STANDARD.encode(pair));
    Caller { authorization: Some(value.parse().unwrap()), ..Caller::anonymous() }
}

#[tokio::test]
async fn a_password_of_a_caller_is_exchanged_for_a_token_of_its_own() {
    let access = Access::Bearer {
        users: vec![User::new("ann", "pw"), User::new("eagle", "pw")],
        anonymous: false,
        lifetime: Duration::from_secs(300),
    };
    let origin = embedded(&[1], access).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, format!(r#"{{"auths":{{"{}":{{"username":"eagle","password":"pw"}}}}}}"#, origin.name()))
        .unwrap();
    let registry = registry(origin.client_config(), file.path());
    for _ in 0..2 {
        assert_eq!(status_for(&registry, &caller("ann:pw")).await.unwrap(), StatusCode::OK);
        assert_eq!(status(&registry).await.unwrap(), StatusCode::OK);
        // Neither Eagle's own token nor that of another caller is lent to anybody.
        for refused in ["ann:wrong", "bob:pw", "ann:"] {
            let status = status_for(&registry, &caller(refused)).await.unwrap();
            assert_eq!(status, StatusCode::UNAUTHORIZED, "{refused}");
        }
        let bearer = Caller { authorization: Some(HeaderValue::from_static("Bearer made-up")), ..Caller::anonymous() };
        assert_eq!(status_for(&registry, &bearer).await.unwrap(), StatusCode::UNAUTHORIZED);
    }
}

#[tokio::test]
async fn an_identity_token_of_a_caller_is_exchanged_by_post() {
    let service = Canned::start(vec![json(r#"{"access_token":"fresh","expires_in":300}"#)]).await;
    let origin = wants_token(&format!("http://{}/oauth2/token", service.address)).await;
    let file = file(&origin, r#"{"username":"me","password":"p&w"}"#);
    let registry = registry(origin.config(), file.path());
    assert_eq!(status_for(&registry, &caller("<token>:Refresh+1")).await.unwrap(), StatusCode::OK);
    let request = &service.requests()[0];
    assert!(request.contains("grant_type=refresh_token&refresh_token=Refresh%2B1&"), "{request}");
    assert!(origin.heads()[1].contains("authorization: bearer fresh\r\n"));
}

/// A registry that wants a token of the service at `realm`, and then gives an empty answer.
async fn wants_token(realm: &str) -> Canned {
    let ask = format!(
        "HTTP/1.1 401 No\r\nwww-authenticate: Bearer realm=\"{realm}\",service=\"s &1\",scope=\"repository:demo/app:pull\"\r\n\
         connection: close\r\ncontent-length: 0\r\n\r\n"
    );
    Canned::start(vec![ask, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".to_owned()]).await
}

fn json(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

fn file(origin: &Canned, entry: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, format!(r#"{{"auths":{{"http://{}/v2/":{entry}}}}}"#, origin.address)).unwrap();
    file
}

#[tokio::test]
async fn an_identity_token_is_exchanged_by_post() {
    let service = Canned::start(vec![json(r#"{"access_token":"fresh","expires_in":300}"#)]).await;
    let origin = wants_token(&format!("http://{}/oauth2/token", service.address)).await;
    let file = file(&origin, r#"{"auth":"MDA6","identitytoken":"Refresh+1"}"#);
    assert_eq!(status(&registry(origin.config(), file.path())).await.unwrap(), StatusCode::OK);
    let request = &service.requests()[0];
    assert!(request.starts_with("POST /oauth2/token HTTP/1.1\r\n"), "{request}");
    assert!(!request.to_lowercase().contains("\r\nauthorization"), "{request}");
    let form = request.split("\r\n\r\n").nth(1).unwrap();
    assert_eq!(
        form,
        "grant_type=refresh_token&refresh_token=Refresh%2B1&client_id=eagle&service=s+%261&scope=repository%3Ademo%2Fapp%3Apull"
    );
    assert!(origin.heads()[1].contains("authorization: bearer fresh\r\n"));
}

#[tokio::test]
async fn a_login_is_posted_where_get_is_not_known() {
    let no = "HTTP/1.1 405 No\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".to_owned();
    let service = Canned::start(vec![no, json(r#"{"access_token":"fresh"}"#)]).await;
    let origin = wants_token(&format!("http://{}/token", service.address)).await;
    let file = file(&origin, r#"{"username":"me","password":"p&w"}"#);
    assert_eq!(status(&registry(origin.config(), file.path())).await.unwrap(), StatusCode::OK);
    let requests = service.requests();
    assert!(requests[0].starts_with("GET /token?service=s+%261&scope="), "{}", requests[0]);
    assert!(requests[1].contains("\r\n\r\ngrant_type=password&username=me&password=p%26w&client_id=eagle&"));
}

#[tokio::test]
async fn answers_of_token_services_that_make_no_sense_are_errors() {
    let huge = format!(r#"{{"token":"{}"}}"#, "t".repeat(70 << 10));
    for body in [huge.as_str(), "", "<html>", "{}", r#"{"token":5}"#, r#"{"token":"a\r\nx-injected: 1"}"#, "[1,2"] {
        let service = Canned::start(vec![json(body)]).await;
        let origin = wants_token(&format!("http://{}/token", service.address)).await;
        let file = file(&origin, r#"{"username":"me","password":"secret"}"#);
        let error = status(&registry(origin.config(), file.path())).await.unwrap_err();
        assert!(matches!(error, OriginError::Protocol { .. }), "{body}: {error}");
        assert!(!error.to_string().contains("secret") && error.to_string().len() < 300, "{error}");
        assert_eq!(origin.heads().len(), 1);
    }
    // Odd lifetimes are no reason to do without a token.
    for lifetime in ["-1", "0", "1e999", "\"soon\"", "null"] {
        let body = format!(r#"{{"token":"t","expires_in":{lifetime}}}"#);
        let service = Canned::start(vec![json(&body)]).await;
        let origin = wants_token(&format!("http://{}/token", service.address)).await;
        let file = file(&origin, r#"{"username":"me","password":"secret"}"#);
        let result = status(&registry(origin.config(), file.path())).await;
        // JSON has no number as large as 1e999.
        assert_eq!(result.is_ok(), lifetime != "1e999", "{lifetime}: {result:?}");
    }
}

#[tokio::test]
async fn hostile_challenges_get_no_password() {
    let thief = Canned::start(vec![json(r#"{"token":"t"}"#)]).await;
    for challenge in [
        "Bearer".to_owned(),
        "Bearer realm=\"\"".to_owned(),
        "Bearer realm=\"file:///etc/passwd\"".to_owned(),
        format!("Bearer realm=\"http://u:p@{}/\"", thief.address),
        format!("Bearer realm=\"ftp://{}/\"", thief.address),
        "Bearer realm=\"http://\"".to_owned(),
        format!("Digest realm=\"http://{}/\"", thief.address),
        format!("Bearer {}", "x=\"y\",".repeat(2000)),
        format!("Bearer realm=\"http://{}/{}\"", thief.address, "r".repeat(9000)),
        ",=\",Bearer,\"\\".to_owned(),
    ] {
        let ask = format!(
            "HTTP/1.1 401 No\r\nwww-authenticate: {challenge}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        );
        let origin = Canned::start(vec![ask]).await;
        let file = file(&origin, r#"{"username":"me","password":"secret"}"#);
        let shown: String = challenge.chars().take(60).collect();
        match status(&registry(origin.config(), file.path())).await {
            Ok(status) => assert_eq!(status, StatusCode::UNAUTHORIZED, "{shown}"),
            Err(error) => assert!(matches!(error, OriginError::Protocol { .. }), "{shown}: {error}"),
        }
        assert_eq!(origin.heads().len(), 1, "{shown}");
    }
    assert!(thief.heads().is_empty(), "{:?}", thief.heads());
}
