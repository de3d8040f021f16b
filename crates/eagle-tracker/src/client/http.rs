//! One exchange with one tracker.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use eagle_cluster::{MemberClient, MemberTls, with_sources};
use futures::future::BoxFuture;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use serde::{Serialize, de::DeserializeOwned};
use url::Url;

use crate::{
    api::{
        ANNOUNCE_PATH, AnnounceRequest, AnnounceResponse, ErrorResponse, MAX_RESPONSE_BYTES,
        seeders::{SEEDERS_PATH, SeedersResponse},
    },
    encoding::{DecodeError, Encoding},
};

/// Longest wait for a connection. A tracker is in the same cluster: one that takes longer is down.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest wait for a whole exchange, with a full state of megabytes in mind.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an unused connection is kept; the name is resolved anew for each one.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// What announces are written in.
const ENCODING: Encoding = Encoding::Protobuf;
/// Most characters of a tracker's error text that are logged.
const MAX_ERROR_TEXT: usize = 300;

/// Why an exchange with a tracker failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExchangeError {
    #[error("no connection: {0}")]
    Connect(String),
    #[error("the connection broke: {0}")]
    Broken(String),
    #[error("no answer within {EXCHANGE_TIMEOUT:?}")]
    Timeout,
    #[error("it answered {status}: {text}")]
    Status { status: StatusCode, text: String },
    #[error("it does not answer as a tracker: {0}")]
    Decode(DecodeError),
}

/// A tracker's address.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    announce: Uri,
    seeders: Uri,
}

impl Endpoint {
    /// The addresses below a URL that `check_tracker_url` has passed.
    pub(super) fn new(url: &Url) -> Result<Self, http::uri::InvalidUri> {
        let base = url.as_str().trim_end_matches('/');
        Ok(Self {
            announce: format!("{base}{ANNOUNCE_PATH}").parse()?,
            seeders: format!("{base}{SEEDERS_PATH}").parse()?,
        })
    }
}

/// Where announces go to.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.announce.fmt(f)
    }
}

/// What takes a request to a tracker and brings back the status and the body of its answer. There is one but in tests, which have
/// networks of their own.
pub(super) trait Transport: fmt::Debug + Send + Sync {
    fn carry(&self, request: Request<Full<Bytes>>) -> BoxFuture<'_, Result<(StatusCode, Bytes), ExchangeError>>;
}

impl Transport for MemberClient<Full<Bytes>> {
    fn carry(&self, request: Request<Full<Bytes>>) -> BoxFuture<'_, Result<(StatusCode, Bytes), ExchangeError>> {
        Box::pin(async move {
            let response = self.request(request).await.map_err(|error| {
                let text = with_sources(&error);
                if error.is_connect() { ExchangeError::Connect(text) } else { ExchangeError::Broken(text) }
            })?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_RESPONSE_BYTES).collect().await;
            let body = body.map_err(|error| ExchangeError::Broken(with_sources(&*error)))?.to_bytes();
            Ok((status, body))
        })
    }
}

/// HTTP client with a small pool of connections.
#[derive(Debug, Clone)]
pub(super) struct HttpClient(Arc<dyn Transport>);

impl HttpClient {
    pub(super) fn new(members: &MemberTls) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        let mut builder = Client::builder(TokioExecutor::new());
        builder.pool_timer(TokioTimer::new()).pool_idle_timeout(POOL_IDLE_TIMEOUT).pool_max_idle_per_host(1);
        Self::over(Arc::new(MemberClient::new(members, connector, builder)))
    }

    /// A client whose requests are carried by this.
    pub(super) fn over(transport: Arc<dyn Transport>) -> Self {
        Self(transport)
    }

    /// Sends one announce.
    pub(super) async fn announce(
        &self,
        endpoint: &Endpoint,
        request: &AnnounceRequest,
    ) -> Result<AnnounceResponse, ExchangeError> {
        let body = ENCODING.encode_request(request).map_err(|error| ExchangeError::Decode(error.into()))?;
        let mut message = Request::new(Full::new(body));
        *message.method_mut() = http::Method::POST;
        *message.uri_mut() = endpoint.announce.clone();
        message.headers_mut().insert(header::CONTENT_TYPE, ENCODING.media_type());
        let answer = self.exchange(message).await?;
        ENCODING.decode_response(&answer).map_err(ExchangeError::Decode)
    }

    /// The seeders that a tracker knows to be alive.
    pub(super) async fn seeders(&self, endpoint: &Endpoint) -> Result<SeedersResponse, ExchangeError> {
        let mut message = Request::new(Full::default());
        *message.uri_mut() = endpoint.seeders.clone();
        let answer = self.exchange(message).await?;
        serde_json::from_slice(&answer).map_err(|error| ExchangeError::Decode(error.into()))
    }

    /// Sends a value as JSON, and reads the answer as such.
    pub(super) async fn post<T: Serialize, R: DeserializeOwned>(
        &self,
        uri: &Uri,
        value: &T,
    ) -> Result<R, ExchangeError> {
        let body = serde_json::to_vec(value).map_err(|error| ExchangeError::Decode(error.into()))?;
        let mut message = Request::new(Full::new(Bytes::from(body)));
        *message.method_mut() = http::Method::POST;
        *message.uri_mut() = uri.clone();
        message.headers_mut().insert(header::CONTENT_TYPE, Encoding::Json.media_type());
        let answer = self.exchange(message).await?;
        serde_json::from_slice(&answer).map_err(|error| ExchangeError::Decode(error.into()))
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Bytes, ExchangeError> {
        let exchange = async {
            let (status, body) = self.0.carry(request).await?;
            if status.is_success() {
                return Ok(body);
            }
            Err(ExchangeError::Status { status, text: error_text(&body) })
        };
        tokio::time::timeout(EXCHANGE_TIMEOUT, exchange).await.unwrap_or(Err(ExchangeError::Timeout))
    }
}

/// The text of an error answer, fit for a log.
fn error_text(body: &[u8]) -> String {
    let text = match serde_json::from_slice::<ErrorResponse>(body) {
        Ok(answer) => answer.error,
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    text.chars().filter(|c| !c.is_control()).take(MAX_ERROR_TEXT).collect()
}
