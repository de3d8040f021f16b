//! `POST /v1/notifications`: a registry tells of pushes, and what `preheat.rules` name is warmed.
//!
//! An event changes nothing but the queue of jobs, and only when it brings the secret, names an image, and a rule
//! matches it; and that what is known of a pushed tag is asked for again, whatever the rules are. What is fetched is what the registry gives under the digest that the event names, so a forged
//! event could at most have something fetched that is in the registry anyway.

pub(crate) mod event;
mod signature;

use std::collections::HashSet;

use eagle_registry::{Reference, RegistryName, Secret, errors::ErrorCode};
use http::{HeaderMap, Method, Response, StatusCode};
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;
use serde::Serialize;

use self::{
    event::{CLOUD_EVENT, ENVELOPES, Heard},
    signature::{SIGNATURE, is_signed},
};
use crate::{
    answer::{self, ResponseBody},
    manifests::Manifests,
    preheat::{JobId, MAX_IMAGES, Order, Preheat, Push, Rule, Trigger, json, queue_full, unauthorized, wrong_method},
    request_body::{self, BodyProblem},
    shared_secret,
};

/// Path where registries tell.
pub(crate) const NOTIFICATIONS_PATH: &str = "/v1/notifications";
/// Largest body, bytes: one event has about 1 KiB.
const MAX_BODY: usize = 1 << 20;
/// Events of which the answer says why nothing came of them.
const MAX_EXPLAINED: usize = 100;

/// What is done about notifications.
#[derive(Debug)]
pub(crate) struct Notifications {
    pub(crate) secret: Option<Secret>,
    pub(crate) rules: Vec<Rule>,
    pub(crate) preheat: Preheat,
    pub(crate) manifests: Manifests,
}

/// What came of a notification.
#[derive(Debug, Default, Serialize)]
struct Outcome {
    /// The jobs that warm what was pushed.
    jobs: Vec<JobId>,
    /// Why nothing came of other events.
    ignored: Vec<String>,
}

impl Notifications {
    /// Answers a request at [`NOTIFICATIONS_PATH`].
    pub(crate) async fn answer(
        &self,
        method: &Method,
        query: Option<&str>,
        headers: &HeaderMap,
        body: Incoming,
    ) -> Response<ResponseBody> {
        if method != Method::POST {
            return wrong_method(method, "POST");
        }
        let response = self.listen(query, headers, body).await;
        self.preheat.metrics().notification(response.status());
        response
    }

    async fn listen(&self, query: Option<&str>, headers: &HeaderMap, body: Incoming) -> Response<ResponseBody> {
        let Some(secret) = &self.secret else {
            let message = "notifications are off: preheat.notification_secret is not set";
            return answer::error(StatusCode::FORBIDDEN, ErrorCode::Denied, message);
        };
        let brought = shared_secret::is_brought(headers, secret);
        if !brought && !headers.contains_key(SIGNATURE) {
            return unauthorized("the secret of preheat.notification_secret is missing or wrong");
        }
        let media_type = request_body::media_type(headers);
        if !["application/json", CLOUD_EVENT].contains(&media_type.as_str())
            && !ENVELOPES.contains(&media_type.as_str())
        {
            return BodyProblem::MediaType("application/json, a CloudEvent or an envelope of events").response();
        }
        let registry = match registry(query) {
            Ok(registry) => registry,
            Err(problem) => return problem.response(),
        };
        let body = match request_body::read(body, MAX_BODY).await {
            Ok(body) => body,
            Err(problem) => return problem.response(),
        };
        if !brought && !is_signed(headers, &body, secret) {
            return unauthorized("the signature is not that of preheat.notification_secret");
        }
        let heard = match event::read(&body, registry.as_ref()) {
            Ok(heard) => heard,
            Err(error) => return BodyProblem::Bad(error.to_string()).response(),
        };
        self.act(heard)
    }

    /// Has what was pushed warmed, one job for each rule that matches any of it.
    fn act(&self, heard: Vec<Heard>) -> Response<ResponseBody> {
        let mut outcome = Outcome::default();
        let mut chosen: Vec<Vec<Push>> = vec![Vec::new(); self.rules.len()];
        let mut seen = HashSet::new();
        for heard in heard {
            let reason = match heard {
                Heard::Other(reason) => reason,
                Heard::Push(push) => {
                    // Whatever becomes of it, the tag is not what it was.
                    self.manifests.changed(&push.registry, &push.repository, &Reference::Tag(push.tag.clone()));
                    let matches = |rule: &Rule| rule.images.matches(&push.registry, &push.repository, &push.tag);
                    match self.rules.iter().position(matches) {
                        None => format!("no rule is for {}/{}:{}", push.registry, push.repository, push.tag),
                        Some(rule) => {
                            if seen.insert(push.image()) {
                                chosen[rule].push(push);
                            }
                            continue;
                        }
                    }
                }
            };
            tracing::debug!(reason, "an event of a registry is ignored");
            if outcome.ignored.len() < MAX_EXPLAINED {
                outcome.ignored.push(reason);
            }
        }
        for (rule, pushes) in self.rules.iter().zip(chosen) {
            for pushes in pushes.chunks(MAX_IMAGES) {
                let order = Order {
                    trigger: Trigger::Notification,
                    images: pushes.iter().map(Push::image).collect(),
                    platforms: rule.platforms.clone(),
                    nodes: rule.nodes,
                    list: None,
                    problem: None,
                };
                match self.preheat.submit(order) {
                    Ok(job) => {
                        tracing::info!(job = %job.id, rule = %rule.images, images = pushes.len(), "pushed images are warmed");
                        outcome.jobs.push(job.id);
                    }
                    // The registry tells again; what is in the queue already is found there then.
                    Err(full) => return queue_full(&full.to_string()),
                }
            }
        }
        json(StatusCode::ACCEPTED, &outcome)
    }
}

/// `registry` of the query: the name by which the registry is known here.
fn registry(query: Option<&str>) -> Result<Option<RegistryName>, BodyProblem> {
    let mut values = query.unwrap_or_default().split('&').filter_map(|pair| pair.strip_prefix("registry="));
    let bad = |problem: &dyn std::fmt::Display| BodyProblem::Bad(format!("registry in the query: {problem}"));
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => {
            let text = percent_decode_str(value).decode_utf8().map_err(|error| bad(&error))?;
            text.parse().map(Some).map_err(|error| bad(&error))
        }
        (Some(_), Some(_)) => Err(bad(&"it is given twice")),
    }
}
