//! `/cache` at the admin address of seeders and proxies: what is cached, and what to do about it.

use bytes::Bytes;
use eagle_seeder::images::{Images, ImagesError, Name, ParseCacheNameError};
use http::{HeaderValue, Method, Response, StatusCode, header};
use http_body_util::Full;
use serde::Serialize;
use serde_json::json;

/// Longest query, bytes: the longest name of an image, every byte of it encoded.
const MAX_QUERY: usize = 2048;

/// Whether a path is answered by [`answer`].
pub(crate) fn is_cache(path: &str) -> bool {
    path.strip_prefix("/cache").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Answers a request at or below `/cache`.
pub(crate) async fn answer(images: &Images, method: &Method, path: &str, query: Option<&str>) -> Response<Full<Bytes>> {
    let result = match (method, path) {
        (&Method::GET, "/cache") => return reply(StatusCode::OK, &images.list()),
        (&Method::GET, "/cache/entry") => match name(query) {
            Ok(name) => images.inspect(&name).map(|found| reply(StatusCode::OK, &found)),
            Err((status, message)) => return problem(status, &message),
        },
        (&Method::DELETE, "/cache/entry") => match name(query) {
            Ok(name) => images.remove(&name).await.map(|removed| reply(StatusCode::OK, &removed)),
            Err((status, message)) => return problem(status, &message),
        },
        (&Method::PUT | &Method::DELETE, "/cache/pin") => match name(query) {
            Ok(name) => images.pin(&name, method == Method::PUT).await.map(|found| reply(StatusCode::OK, &found)),
            Err((status, message)) => return problem(status, &message),
        },
        (&Method::POST, "/cache/verify") => match name(query) {
            Ok(Name::Blob(digest)) => Ok(reply(StatusCode::OK, &images.verify(digest).await)),
            Ok(Name::Image(_)) => return problem(StatusCode::BAD_REQUEST, "name one blob by its digest"),
            Err((status, message)) => return problem(status, &message),
        },
        (_, "/cache") => return wrong_method("GET"),
        (_, "/cache/entry") => return wrong_method("GET, DELETE"),
        (_, "/cache/pin") => return wrong_method("PUT, DELETE"),
        (_, "/cache/verify") => return wrong_method("POST"),
        _ => return problem(StatusCode::NOT_FOUND, "here are /cache /cache/entry /cache/pin /cache/verify"),
    };
    result.unwrap_or_else(|error| {
        let status = match &error {
            ImagesError::Unknown(_) => StatusCode::NOT_FOUND,
            ImagesError::Pinned(_) | ImagesError::Used { .. } | ImagesError::TooMany => StatusCode::CONFLICT,
            ImagesError::NotAnImage => StatusCode::BAD_REQUEST,
            ImagesError::Write(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        problem(status, &error.to_string())
    })
}

/// `name` of the query: an image or a digest.
fn name(query: Option<&str>) -> Result<Name, (StatusCode, String)> {
    let query = query.unwrap_or_default();
    if query.len() > MAX_QUERY {
        return Err((StatusCode::URI_TOO_LONG, "the query is longer than any name of an image".to_owned()));
    }
    let mut names = url::form_urlencoded::parse(query.as_bytes()).filter(|(key, _)| key == "name");
    match (names.next(), names.next()) {
        (Some((_, name)), None) => {
            name.parse().map_err(|error: ParseCacheNameError| (StatusCode::BAD_REQUEST, error.to_string()))
        }
        _ => Err((StatusCode::BAD_REQUEST, "the query must have name=IMAGE or name=DIGEST exactly once".to_owned())),
    }
}

fn reply(status: StatusCode, value: &impl Serialize) -> Response<Full<Bytes>> {
    // Names, numbers and lists of them always serialise.
    let mut response = Response::new(Full::new(serde_json::to_vec(value).unwrap_or_default().into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// An error in the form of the OCI specification, which the commands read.
fn problem(status: StatusCode, message: &str) -> Response<Full<Bytes>> {
    reply(status, &json!({ "errors": [{ "code": "CACHE", "message": message }] }))
}

fn wrong_method(allowed: &'static str) -> Response<Full<Bytes>> {
    let mut response = problem(StatusCode::METHOD_NOT_ALLOWED, &format!("this path answers {allowed}"));
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
    response
}
