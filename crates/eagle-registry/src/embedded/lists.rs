//! Lists: the tags of a repository, in pages, and what refers to a manifest (distribution-spec 1.1, "Content Discovery").

use std::collections::BTreeMap;

use bytes::Bytes;
use eagle_core::Digest;
use http::{Response, header};
use serde_json::json;
use url::form_urlencoded;

use super::{
    artifact::PublishedArtifact,
    serve::ServerBody,
    server::{content, error, json_response},
};
use crate::{
    errors::ErrorCode,
    headers::{OCI_FILTERS_APPLIED, value},
    name::RepositoryName,
};

const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

fn parameter(query: &str, name: &str) -> Option<String> {
    form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

/// Tags in their order: those after `last`, at most `n` of them, with a link to the next ones if there are more.
pub(super) fn tags(name: &RepositoryName, tags: &BTreeMap<String, Digest>, query: &str) -> Response<ServerBody> {
    let limit = match parameter(query, "n").map(|n| n.parse::<usize>()) {
        None => usize::MAX,
        Some(Ok(limit)) => limit,
        Some(Err(_)) => {
            let message = "n is the number of tags that are wanted";
            return error(http::StatusCode::BAD_REQUEST, ErrorCode::Unsupported, message);
        }
    };
    let last = parameter(query, "last").unwrap_or_default();
    let mut after = tags.keys().filter(|tag| **tag > last);
    let page: Vec<&String> = after.by_ref().take(limit).collect();
    let mut response = json_response(json!({ "name": name, "tags": page }).to_string());
    if let (Some(end), Some(_)) = (page.last(), after.next()) {
        // A tag has no character that a query would have to encode.
        let link = format!("</v2/{name}/tags/list?n={limit}&last={end}>; rel=\"next\"");
        response.headers_mut().insert(header::LINK, value(&link));
    }
    response
}

/// What refers to a manifest: an index, empty if nothing does, of one type of artefact if the query names one.
pub(super) fn referrers(artifacts: Option<&Vec<PublishedArtifact>>, query: &str) -> Response<ServerBody> {
    let wanted = parameter(query, "artifactType");
    let listed: Vec<_> = artifacts
        .into_iter()
        .flatten()
        .filter(|artifact| wanted.as_ref().is_none_or(|wanted| *wanted == artifact.artifact_type))
        .map(PublishedArtifact::listed)
        .collect();
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": listed });
    let mut response = content(INDEX_TYPE, Bytes::from(index.to_string()));
    if wanted.is_some() {
        response.headers_mut().insert(OCI_FILTERS_APPLIED, value("artifactType"));
    }
    response
}
