//! What registries say: events of Docker Distribution, webhooks of Harbor in either of its formats.
//!
//! All are read into pushes of tagged images. Everything in them comes from outside: names are checked as names,
//! and whatever else is said is not looked at.

use eagle_registry::{ImageReference, Reference, RegistryName, RepositoryName, Tag, manifest::MEDIA_TYPES};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::value::RawValue;

use crate::preheat::{Push, one_line};

/// Media types of Docker Distribution's envelopes, of all its versions.
pub(super) const ENVELOPES: [&str; 2] =
    ["application/vnd.docker.distribution.events.v1+json", "application/vnd.docker.distribution.events.v2+json"];
/// Media type of CloudEvents in their structured form (CloudEvents 1.0, JSON event format), which Harbor sends from 2.8 on where
/// its webhook is set to that format.
pub(super) const CLOUD_EVENT: &str = "application/cloudevents+json";
/// Events in one envelope, and resources in one webhook. Registries send one at a time, or a few after an outage.
const MAX_EVENTS: usize = 1000;

/// Why a body is none of a registry's.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EventError {
    #[error("the body is no notification of a registry: {0}")]
    Json(String),
    #[error(
        "the body has neither `events`, as Docker Distribution sends them, nor `type` or `specversion`, as Harbor does"
    )]
    Unknown,
    #[error("the body has more than {MAX_EVENTS} events")]
    TooMany,
}

/// What one event comes to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// An image was pushed under a tag.
    Push(Push),
    /// Nothing that concerns anybody here, or nothing that could be understood; why.
    Other(String),
}

#[derive(Deserialize)]
struct Body {
    events: Option<Vec<DistributionEvent>>,
    #[serde(rename = "type")]
    kind: Option<String>,
    event_data: Option<HarborData>,
    /// Of CloudEvents.
    specversion: Option<String>,
    /// Of CloudEvents. What it holds depends on the type.
    data: Option<Box<RawValue>>,
}

/// An event of Docker Distribution ("Notifications" in its documentation). All of it may be absent.
#[derive(Deserialize)]
struct DistributionEvent {
    action: Option<String>,
    target: Option<Target>,
    request: Option<Asked>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Target {
    media_type: Option<String>,
    digest: Option<String>,
    repository: Option<String>,
    tag: Option<String>,
}

#[derive(Deserialize)]
struct Asked {
    host: Option<String>,
}

/// `event_data` of Harbor's webhooks ("Configure Webhook Notifications" in its documentation).
#[derive(Deserialize)]
struct HarborData {
    #[serde(default)]
    resources: Vec<Resource>,
    repository: Option<HarborRepository>,
}

#[derive(Deserialize)]
struct Resource {
    digest: Option<String>,
    tag: Option<String>,
    resource_url: Option<String>,
}

#[derive(Deserialize)]
struct HarborRepository {
    repo_full_name: Option<String>,
}

/// Reads a body; `registry` is the name by which the registry is known here, if it was said, and otherwise the
/// events say it.
pub(crate) fn read(body: &[u8], registry: Option<&RegistryName>) -> Result<Vec<Heard>, EventError> {
    let body: Body = match serde_json::from_slice(body) {
        Ok(body) => body,
        // Which of the two it is: JSON of another kind, or none at all.
        Err(error) => {
            serde_json::from_slice::<IgnoredAny>(body).map_err(|error| EventError::Json(error.to_string()))?;
            return Err(EventError::Json(error.to_string()));
        }
    };
    match body {
        Body { events: Some(events), .. } if events.len() > MAX_EVENTS => Err(EventError::TooMany),
        Body { events: Some(events), .. } => {
            Ok(events.into_iter().map(|event| heard(distribution(event, registry))).collect())
        }
        Body { specversion: Some(_), kind: Some(kind), data, .. } => match (kind.as_str(), data) {
            ("harbor.artifact.pushed", Some(data)) => {
                let data: HarborData =
                    serde_json::from_str(data.get()).map_err(|error| EventError::Json(error.to_string()))?;
                if data.resources.len() > MAX_EVENTS { Err(EventError::TooMany) } else { Ok(harbor(data, registry)) }
            }
            ("harbor.artifact.pushed", None) => Err(EventError::Json("harbor.artifact.pushed without data".to_owned())),
            (other, _) => Ok(vec![Heard::Other(one_line(&format!("{other} is no push")))]),
        },
        Body { specversion: Some(_), .. } => Err(EventError::Json("a CloudEvent without type".to_owned())),
        Body { kind: Some(kind), event_data, .. } => match (kind.as_str(), event_data) {
            ("PUSH_ARTIFACT", Some(data)) if data.resources.len() > MAX_EVENTS => Err(EventError::TooMany),
            ("PUSH_ARTIFACT", Some(data)) => Ok(harbor(data, registry)),
            ("PUSH_ARTIFACT", None) => Err(EventError::Json("PUSH_ARTIFACT without event_data".to_owned())),
            (other, _) => Ok(vec![Heard::Other(one_line(&format!("{other} is no push")))]),
        },
        Body { .. } => Err(EventError::Unknown),
    }
}

fn heard(push: Result<Push, String>) -> Heard {
    push.map_or_else(|reason| Heard::Other(one_line(&reason)), Heard::Push)
}

fn distribution(event: DistributionEvent, registry: Option<&RegistryName>) -> Result<Push, String> {
    let action = event.action.unwrap_or_default();
    if action != "push" {
        return Err(format!("{action:?} is no push"));
    }
    let Target { media_type, digest, repository, tag } = event.target.ok_or("the event has no target")?;
    let media_type = media_type.unwrap_or_default();
    if !MEDIA_TYPES.contains(&media_type.as_str()) {
        return Err(format!("{media_type:?} is no image"));
    }
    let host = event.request.and_then(|request| request.host);
    let registry = match registry {
        Some(registry) => registry.clone(),
        None => parse(host, "the event names no registry")?,
    };
    push(registry, parse(repository, "the event names no repository")?, tag, digest)
}

fn harbor(data: HarborData, registry: Option<&RegistryName>) -> Vec<Heard> {
    let HarborData { resources, repository } = data;
    let repository = repository.and_then(|repository| repository.repo_full_name);
    let one = |Resource { digest, tag, resource_url }| {
        let repository: RepositoryName = parse(repository.clone(), "the event names no repository")?;
        let registry = match registry {
            Some(registry) => registry.clone(),
            None => {
                let image: ImageReference = parse(resource_url, "the event names no registry")?;
                image.registry
            }
        };
        push(registry, repository, tag, digest)
    };
    resources.into_iter().map(|resource| heard(one(resource))).collect()
}

fn push(
    registry: RegistryName,
    repository: RepositoryName,
    tag: Option<String>,
    digest: Option<String>,
) -> Result<Push, String> {
    let tag = tag.filter(|tag| !tag.is_empty());
    // The manifests of an index are pushed before it, by digest; the index names them.
    let tag: Tag = parse(tag, "it has no tag")?;
    let reference = match digest.filter(|digest| !digest.is_empty()) {
        Some(digest) => Reference::Digest(digest.parse().map_err(|error| format!("the digest is none: {error}"))?),
        None => Reference::Tag(tag.clone()),
    };
    let image = ImageReference { registry, repository, reference };
    // `registry/a` without a dot or a port would be taken for a repository of Docker Hub by whoever is told to pull it.
    let can_be_named = image.to_string().parse().as_ref() == Ok(&image);
    let ImageReference { registry, repository, reference } = image;
    if !can_be_named {
        return Err(format!(
            "no image can be named `{registry}/{repository}`: say how the registry is known here, by `?registry=NAME` in the address that it notifies"
        ));
    }
    Ok(Push { registry, repository, tag, reference })
}

fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(text: Option<String>, absent: &str) -> Result<T, String> {
    text.ok_or(absent)?.parse().map_err(|error: T::Err| error.to_string())
}

#[cfg(test)]
mod tests {
    use eagle_core::Digest;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn event(change: impl FnOnce(&mut Value)) -> Value {
        let mut event = json!({
            "id": "320678d8-ca14-430f-8bb6-4ca139cd83f7",
            "timestamp": "2016-03-09T14:44:26.402973972-08:00",
            "action": "push",
            "target": {
                "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
                "size": 708,
                "digest": Digest::of(b"m").to_string(),
                "length": 708,
                "repository": "hello-world",
                "url": "http://192.168.100.227:5000/v2/hello-world/manifests/sha256:fea8",
                "tag": "latest"
            },
            "request": { "id": "6df24a34", "addr": "192.168.64.11:42961", "host": "192.168.100.227:5000", "method": "PUT" },
            "actor": {},
            "source": { "addr": "xtal.local:5000" }
        });
        change(&mut event);
        json!({ "events": [event] })
    }

    fn one(body: &Value, registry: Option<&str>) -> Heard {
        let registry = registry.map(|registry| registry.parse().unwrap());
        let mut heard = read(body.to_string().as_bytes(), registry.as_ref()).unwrap();
        assert_eq!(heard.len(), 1);
        heard.remove(0)
    }

    fn named(heard: Heard) -> String {
        let Heard::Push(push) = heard else { panic!("{heard:?}") };
        let (image, named) = push.image();
        assert!(image.reference.digest().is_some() || named == Some(image.to_string()));
        named.unwrap()
    }

    #[test]
    fn reads_what_distribution_sends() {
        let pushed = event(|_| ());
        assert_eq!(named(one(&pushed, None)), "192.168.100.227:5000/hello-world:latest");
        assert_eq!(named(one(&pushed, Some("a.example"))), "a.example/hello-world:latest");
        for change in [
            |event: &mut Value| event["action"] = json!("pull"),
            |event: &mut Value| event["action"] = json!("delete"),
            |event: &mut Value| event["action"] = Value::Null,
            |event: &mut Value| event["target"] = Value::Null,
            |event: &mut Value| event["target"]["mediaType"] = json!("application/octet-stream"),
            |event: &mut Value| event["target"]["tag"] = Value::Null,
            |event: &mut Value| event["target"]["tag"] = json!(""),
            |event: &mut Value| event["target"]["tag"] = json!("a/../b"),
            |event: &mut Value| event["target"]["repository"] = json!("../../etc"),
            |event: &mut Value| event["target"]["repository"] = json!("x".repeat(300)),
            |event: &mut Value| event["target"]["digest"] = json!("sha256:../.."),
            |event: &mut Value| event["request"]["host"] = json!("evil/../"),
            |event: &mut Value| event["request"]["host"] = json!("a\r\nHost: b"),
            // `registry/hello-world` and `docker.io/hello-world` mean other images to whoever pulls them.
            |event: &mut Value| event["request"]["host"] = json!("registry"),
            |event: &mut Value| event["request"]["host"] = json!("docker.io"),
            |event: &mut Value| event["request"] = Value::Null,
        ] {
            let heard = one(&event(change), None);
            assert!(matches!(heard, Heard::Other(_)), "{heard:?}");
        }
    }

    #[test]
    fn reads_what_harbor_sends() {
        let webhook = |kind: &str| {
            json!({
                "type": kind,
                "occur_at": 1_586_922_308,
                "operator": "admin",
                "event_data": {
                    "resources": [{
                        "digest": Digest::of(b"m").to_string(),
                        "tag": "latest",
                        "resource_url": "hub.harbor.com/test-webhook/debian:latest"
                    }],
                    "repository": {
                        "date_created": 1_586_922_308, "name": "debian", "namespace": "test-webhook",
                        "repo_full_name": "test-webhook/debian", "repo_type": "private"
                    }
                }
            })
        };
        assert_eq!(named(one(&webhook("PUSH_ARTIFACT"), None)), "hub.harbor.com/test-webhook/debian:latest");
        assert_eq!(named(one(&webhook("PUSH_ARTIFACT"), Some("a.example"))), "a.example/test-webhook/debian:latest");
        assert!(matches!(one(&webhook("DELETE_ARTIFACT"), None), Heard::Other(_)));
        let mut odd = webhook("PUSH_ARTIFACT");
        odd["event_data"]["resources"][0]["tag"] = json!(Digest::of(b"m").to_string());
        assert!(matches!(one(&odd, None), Heard::Other(_)), "pushed by digest");
    }

    /// As Harbor's documentation has it ("Webhook Notifications", payload format CloudEvents).
    fn cloud_event(kind: &str) -> Value {
        json!({
            "specversion": "1.0",
            "id": "66a1ffb5-13ad-4ed4-8b2e-d9a9a1c6c1e2",
            "requestid": "8f6d5a4e-7f4f-4fb2-9a2e-1f0f5d1fbd5c",
            "source": "/projects/1/webhook/policies/15",
            "type": kind,
            "datacontenttype": "application/json",
            "time": "2023-04-03T06:20:46Z",
            "operator": "robot$library+scanner",
            "data": {
                "resources": [{
                    "digest": Digest::of(b"m").to_string(),
                    "tag": "latest",
                    "resource_url": "harbor.dev/library/busybox:latest"
                }],
                "repository": {
                    "date_created": 1_680_502_375, "name": "busybox", "namespace": "library",
                    "repo_full_name": "library/busybox", "repo_type": "public"
                }
            }
        })
    }

    #[test]
    fn reads_what_harbor_sends_as_cloud_events() {
        let pushed = cloud_event("harbor.artifact.pushed");
        assert_eq!(named(one(&pushed, None)), "harbor.dev/library/busybox:latest");
        assert_eq!(named(one(&pushed, Some("a.example"))), "a.example/library/busybox:latest");
        let mut scanned = cloud_event("harbor.scan.completed");
        scanned["data"] = json!(["anything"]);
        for other in [scanned, cloud_event("harbor.artifact.deleted"), cloud_event("com.example.other")] {
            assert!(matches!(one(&other, None), Heard::Other(_)), "{other}");
        }
        for change in [
            |event: &mut Value| event["data"]["repository"]["repo_full_name"] = json!("../../etc"),
            |event: &mut Value| event["data"]["repository"] = Value::Null,
            |event: &mut Value| event["data"]["resources"][0]["tag"] = json!("a b"),
            |event: &mut Value| event["data"]["resources"][0]["digest"] = json!("sha256:../.."),
        ] {
            let mut event = cloud_event("harbor.artifact.pushed");
            change(&mut event);
            assert!(matches!(one(&event, None), Heard::Other(_)), "{event}");
        }
        for change in [
            |event: &mut Value| event["data"] = Value::Null,
            |event: &mut Value| event["data"] = json!("text"),
            |event: &mut Value| event["type"] = Value::Null,
            |event: &mut Value| event["specversion"] = json!(1),
            |event: &mut Value| event["data"]["resources"] = json!(vec![json!({}); 1001]),
        ] {
            let mut event = cloud_event("harbor.artifact.pushed");
            change(&mut event);
            assert!(read(event.to_string().as_bytes(), None).is_err(), "{event}");
        }
    }

    #[test]
    fn anything_else_is_an_error() {
        let deep = "[".repeat(100_000);
        let nested = format!("{{\"events\":{}", "[".repeat(10_000));
        let many = json!({ "events": vec![json!({}); 1001] }).to_string();
        for bad in [
            "",
            "{",
            "null",
            "[]",
            "1",
            "{}",
            "{\"events\":1}",
            "{\"events\":[1]}",
            "{\"events\":[{\"action\":7}]}",
            "{\"type\":\"PUSH_ARTIFACT\"}",
            &deep,
            &nested,
            &many,
        ] {
            assert!(read(bad.as_bytes(), None).is_err(), "{}", &bad[..bad.len().min(60)]);
        }
        assert_eq!(read(b"{\"events\":[]}", None), Ok(Vec::new()));
    }

    proptest! {
        #[test]
        fn never_panics(body: Vec<u8>) {
            let _ = read(&body, None);
        }
    }
}
