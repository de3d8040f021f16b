//! `/v1/preheat` and `/v1/nodes`.

use std::{collections::HashSet, net::IpAddr};

use eagle_registry::{ImageReference, Secret, errors::ErrorCode};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};

use super::{
    node_target::NodeTarget,
    nodes::{MAX_RESULTS, NodeNews},
    platform::Platforms,
    queue::{Cancelled, Order, Preheat},
    report::{JobId, JobSummary, Trigger},
};
use crate::{
    answer::{self, ResponseBody},
    request_body::{self, BodyProblem},
    shared_secret,
};

/// Path of the jobs.
pub(crate) const PREHEAT_PATH: &str = "/v1/preheat";
/// Path where proxies ask for work.
pub(crate) const NODES_PATH: &str = "/v1/nodes";
/// Images of one job.
pub(crate) const MAX_IMAGES: usize = 1000;
/// Largest body of a request for a job, bytes: so many images with long names.
const MAX_REQUEST: usize = 256 << 10;
/// Largest body of a node's news, bytes: [`MAX_RESULTS`] with errors.
const MAX_NEWS: usize = 512 << 10;
/// Seconds after which who found the queue full may ask again.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("30");

/// Body of `POST /v1/preheat`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreheatRequest {
    /// The images, as for `docker pull`; at most 1,000.
    pub images: Vec<String>,
    /// For which platforms.
    #[serde(default)]
    pub platforms: Platforms,
    /// Which nodes are to be warmed too.
    #[serde(default)]
    pub nodes: NodeTarget,
}

/// Answer to `GET /v1/preheat`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobList {
    /// All jobs that are known, the latest first.
    pub jobs: Vec<JobSummary>,
}

impl PreheatRequest {
    /// The images, each once, in their order.
    pub(crate) fn parse(&self) -> Result<Vec<(ImageReference, Option<String>)>, BodyProblem> {
        if self.images.is_empty() {
            return Err(BodyProblem::Bad("no image is named".to_owned()));
        }
        if self.images.len() > MAX_IMAGES {
            return Err(BodyProblem::Bad(format!("more than {MAX_IMAGES} images; ask in several requests")));
        }
        let mut seen = HashSet::new();
        let mut images = Vec::with_capacity(self.images.len());
        for text in &self.images {
            let image: ImageReference =
                text.parse().map_err(|error| BodyProblem::Bad(format!("not an image: {error}")))?;
            if seen.insert(image.clone()) {
                images.push((image, None));
            }
        }
        Ok(images)
    }
}

impl Preheat {
    /// Answers a request at or below [`PREHEAT_PATH`].
    pub(crate) async fn answer(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        body: Incoming,
        token: Option<&Secret>,
    ) -> Response<ResponseBody> {
        if token.is_some_and(|token| !shared_secret::is_brought(headers, token)) {
            return unauthorized("the token of preheat.token is missing or wrong");
        }
        let id = match path.strip_prefix(PREHEAT_PATH).and_then(|rest| rest.strip_prefix('/')) {
            None => None,
            Some(id) => match id.parse::<JobId>() {
                Ok(id) => Some(id),
                Err(error) => return not_found(error.to_string()),
            },
        };
        match (method, id) {
            (&Method::POST, None) => match request_body::json(headers, body, MAX_REQUEST).await {
                Ok(request) => self.submit_request(&request),
                Err(problem) => problem.response(),
            },
            (&Method::GET, None) => json(StatusCode::OK, &JobList { jobs: self.list() }),
            (&Method::GET, Some(id)) => match self.get(&id) {
                Some(job) => json(StatusCode::OK, &job),
                None => not_found(format!("no job {id} is known; the oldest are forgotten")),
            },
            (&Method::DELETE, Some(id)) => match self.cancel(&id) {
                Some(Cancelled::Yes(job)) => json(StatusCode::OK, &job),
                Some(Cancelled::TooLate(job)) => json(StatusCode::CONFLICT, &job),
                None => not_found(format!("no job {id} is known; the oldest are forgotten")),
            },
            (_, None) => wrong_method(method, "GET, POST"),
            (_, Some(_)) => wrong_method(method, "GET, DELETE"),
        }
    }

    fn submit_request(&self, request: &PreheatRequest) -> Response<ResponseBody> {
        let images = match request.parse() {
            Ok(images) => images,
            Err(problem) => return problem.response(),
        };
        let order = Order {
            trigger: Trigger::Request,
            images,
            platforms: request.platforms.clone(),
            nodes: request.nodes,
            list: None,
            problem: None,
        };
        match self.submit(order) {
            Ok(job) => {
                let mut response = json(StatusCode::ACCEPTED, &job);
                if let Ok(location) = HeaderValue::try_from(format!("{PREHEAT_PATH}/{}", job.id)) {
                    response.headers_mut().insert(header::LOCATION, location);
                }
                response
            }
            Err(full) => queue_full(&full.to_string()),
        }
    }

    /// Answers a request at [`NODES_PATH`].
    pub(crate) async fn answer_node(
        &self,
        method: &Method,
        headers: &HeaderMap,
        body: Incoming,
        address: IpAddr,
    ) -> Response<ResponseBody> {
        if method != Method::POST {
            return wrong_method(method, "POST");
        }
        let news: NodeNews = match request_body::json(headers, body, MAX_NEWS).await {
            Ok(news) => news,
            Err(problem) => return problem.response(),
        };
        if news.results.len() > MAX_RESULTS {
            return BodyProblem::Bad(format!("more than {MAX_RESULTS} results at a time")).response();
        }
        json(StatusCode::OK, &self.nodes().report(&news, address))
    }
}

/// Whether a path is that of the jobs or of one of them.
pub(crate) fn is_preheat(path: &str) -> bool {
    path.strip_prefix(PREHEAT_PATH).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Response<ResponseBody> {
    // Texts, numbers and lists of them always serialise.
    let mut response = Response::new(answer::full(serde_json::to_vec(value).unwrap_or_default()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

pub(crate) fn unauthorized(message: &str) -> Response<ResponseBody> {
    let mut response = answer::error(StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized, message);
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

pub(crate) fn queue_full(message: &str) -> Response<ResponseBody> {
    let mut response = answer::error(StatusCode::TOO_MANY_REQUESTS, ErrorCode::TooManyRequests, message);
    response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
    response
}

pub(crate) fn wrong_method(method: &Method, allowed: &'static str) -> Response<ResponseBody> {
    let message = format!("{method} is not supported here; this path answers {allowed}");
    let mut response = answer::error(StatusCode::METHOD_NOT_ALLOWED, ErrorCode::Unsupported, message);
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
    response
}

fn not_found(message: String) -> Response<ResponseBody> {
    answer::error(StatusCode::NOT_FOUND, ErrorCode::Unknown, message)
}
