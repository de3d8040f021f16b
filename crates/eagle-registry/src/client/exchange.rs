//! One question to a registry: asked of its hosts in order, with credentials where they are wanted, and
//! again after failures that may pass.

use bytes::Bytes;
use eagle_core::Digest;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use tokio::time::Instant;
use tracing::{Instrument as _, Span, field::Empty};
use url::Url;

use super::{
    Registry,
    hosts::Host,
    limits::Permit,
    retry::{self, WINDOW, backoff, retry_after},
    transport::Answer,
};
use crate::{
    caller::Caller,
    errors::{ErrorCode, OciError},
    name::RepositoryName,
    origin::OriginError,
    trace::{self, TraceContext},
};

/// How long a request waits for one of `max_connections`: blobs take minutes, and who asks has other
/// sources to turn to.
pub(super) const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// What is asked, and for whom.
#[derive(Debug)]
pub(super) struct Question<'a> {
    pub(super) method: &'a Method,
    /// Below `/v2/`, with the query.
    pub(super) path: &'a str,
    pub(super) headers: HeaderMap,
    pub(super) repository: Option<&'a RepositoryName>,
    pub(super) caller: &'a Caller,
    /// The blob, when it is about one.
    pub(super) blob: Option<Digest>,
}

impl Registry {
    /// Asks until there is an answer that counts; with it comes the connection that it uses.
    pub(super) async fn ask(&self, question: &Question<'_>) -> Result<(Answer, Permit), OriginError> {
        let span = trace::child(question.caller.trace.as_ref(), || {
            tracing::info_span!(
                target: trace::TARGET, parent: None, "ask the registry", otel.kind = "client", otel.status_code = Empty,
                eagle.registry = %self.name, http.request.method = %question.method,
                url.path = %question.path.split('?').next().unwrap_or_default(),
                http.response.status_code = Empty, error.message = Empty
            )
        });
        let result = self.ask_hosts(question).instrument(span.clone()).await;
        match &result {
            Ok((answer, _)) => {
                span.record("http.response.status_code", trace::number(answer.response.status().as_u16()))
            }
            Err(error) => {
                span.record("otel.status_code", "ERROR").record("error.message", tracing::field::display(error))
            }
        };
        result
    }

    async fn ask_hosts(&self, question: &Question<'_>) -> Result<(Answer, Permit), OriginError> {
        let for_blob = question.blob.is_some() && question.method == Method::GET;
        let permit = self.limits.connection(self.name.as_str(), for_blob, PATIENCE).await?;
        let mut last_word = None;
        for (number, host) in self.hosts.order(question.caller, question.blob) {
            let is_registry = self.hosts.is_registry(number);
            // Who is not the last to be asked needs no patience.
            let result = self.ask_host(host, question, if is_registry { self.retries } else { 0 }).await;
            let counts = match &result {
                Ok(answer) if is_registry => !retry::is_transient(answer.response.status()),
                Ok(answer) => has_it(answer.response.status()),
                Err(_) => false,
            };
            if counts {
                if let Some(blob) = question.blob {
                    self.hosts.serves(blob, number);
                }
                return Ok((result?, permit));
            }
            if is_registry {
                last_word = Some(result);
            } else {
                let outcome = result.map(|answer| answer.response.status());
                tracing::debug!(registry = %self.name, mirror = number, ?outcome, "a mirror is of no help");
            }
        }
        let last_word = last_word.unwrap_or_else(|| Err(self.protocol("it has no host")));
        last_word.map(|answer| (answer, permit))
    }

    /// Asks one host, and again up to `retries` times while it may be about to recover.
    async fn ask_host(&self, host: &Host, question: &Question<'_>, retries: u32) -> Result<Answer, OriginError> {
        let (is_own, is_blob) = (question.caller.is_anonymous(), question.blob.is_some());
        let begun = Instant::now();
        if is_own && let Some(pause) = host.paused(is_blob) {
            if pause > WINDOW {
                return Err(self.paused(pause));
            }
            tokio::time::sleep(pause).await;
        }
        let mut next = 1;
        loop {
            let result = self.exchange(host, question).await;
            let pause = match &result {
                Ok(answer) if retry::is_transient(answer.response.status()) => {
                    let pause = retry_after(answer.response.headers());
                    if is_own && let Some(pause) = pause.filter(|_| answer.from_registry) {
                        host.pause(is_blob, pause);
                    }
                    pause
                }
                Err(OriginError::Status { status, headers, .. }) if retry::is_transient(*status) => {
                    retry_after(headers)
                }
                Err(error) if error.is_transient() => {
                    host.mark_down();
                    None
                }
                _ => {
                    host.mark_up();
                    return result;
                }
            };
            let delay = pause.unwrap_or_default() + backoff(next);
            if next > retries || begun.elapsed() + delay > WINDOW {
                return result;
            }
            let outcome = result.map(|answer| answer.response.status());
            tracing::debug!(registry = %self.name, ?outcome, ?delay, "asked again after a failure that may pass");
            tokio::time::sleep(delay).await;
            next += 1;
        }
    }

    /// Sends a request, with one more try after a 401 whose challenge can be answered.
    pub(super) async fn exchange(&self, host: &Host, question: &Question<'_>) -> Result<Answer, OriginError> {
        let url = host.url(question.path);
        let url: Url = url.parse().map_err(|error| self.protocol(&format!("{url}: {error}")))?;
        let trace = TraceContext::of_span(&Span::current());
        let send = |authorization: Option<&HeaderValue>| {
            let mut headers = question.headers.clone();
            if let Some(trace) = &trace {
                trace.put(&mut headers);
            }
            if let Some(id) = &question.caller.request_id {
                id.put(&mut headers);
            }
            if let Some(value) = authorization {
                headers.insert(header::AUTHORIZATION, value.clone());
            }
            self.transport.send(self.name.as_str(), question.method, url.clone(), headers)
        };
        let (caller, repository) = (question.caller, question.repository);
        let used = host.auth.remembered(caller, repository).await;
        let answer = send(used.as_ref()).await?;
        if answer.response.status() != StatusCode::UNAUTHORIZED || !answer.from_registry {
            return Ok(answer);
        }
        let challenges = answer.response.headers();
        match host.auth.answer(&self.transport, challenges, caller, repository, used.as_ref()).await? {
            Some(authorization) => send(Some(&authorization)).await,
            None => Ok(answer),
        }
    }

    /// What a host that asked to be left alone would answer.
    fn paused(&self, pause: std::time::Duration) -> OriginError {
        let seconds = pause.as_secs().max(1);
        let mut headers = HeaderMap::new();
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let message = format!("registry {} asked for a pause of {seconds} s more", self.name);
        let body: Bytes = OciError::new(ErrorCode::TooManyRequests, message).to_body();
        OriginError::Status {
            registry: self.name.to_string(),
            status: StatusCode::TOO_MANY_REQUESTS,
            headers: Box::new(headers),
            body,
        }
    }
}

/// Whether a mirror has what was asked for; its refusals are not the registry's.
fn has_it(status: StatusCode) -> bool {
    status.is_success() || matches!(status, StatusCode::NOT_MODIFIED | StatusCode::RANGE_NOT_SATISFIABLE)
}
