//! Traces: the spans of a pull, sent to a collector by OTLP over HTTP (OpenTelemetry protocol 1.x, `http/protobuf`).
//!
//! A thread of its own sends what has gathered in a queue of 2,048 spans; what does not fit is dropped, so no pull ever waits for a
//! collector. That the collector does not answer is said once, and once that it does again.

use std::{
    env, fmt,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use eagle_cluster::with_sources;
use eagle_registry::trace::TARGET;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use opentelemetry::{KeyValue, global, trace::TracerProvider as _};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{Sampler, SdkTracer, SdkTracerProvider},
};
use rustls::{ClientConfig, RootCertStore};
use serde::{Deserialize, Serialize};
use tokio::{runtime::Handle, time::timeout};
use tracing::{Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{Layer, filter::filter_fn, registry::LookupSpan};
use url::Url;

/// Variables that say where traces go, as the OpenTelemetry specification names them; the first one is a whole URL, the second the
/// beginning of one.
const ENDPOINT_VARIABLES: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
/// Where a collector takes traces (OTLP 1.x, "OTLP/HTTP Request").
const PATH: &str = "/v1/traces";
/// A collector has so long to answer, as the specification's default has it.
const ANSWER: Duration = Duration::from_secs(10);
/// Longest answer that is read, bytes: it says which spans were refused, and is mostly empty.
const MAX_ANSWER: usize = 64 << 10;
/// Time at the end of the process for what is still queued: a role may have drained for 28 s of the 30 s that Kubernetes gives.
const FLUSH: Duration = Duration::from_secs(1);

/// The `traces` section.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct TracesConfig {
    /// Base URL of a collector. Null: what the variables of OpenTelemetry say, or nowhere.
    #[serde(deserialize_with = "endpoint")]
    pub(crate) endpoint: Option<Url>,
    /// Share of the pulls that are traced, 0 to 1, of those whose caller has not decided already.
    #[serde(deserialize_with = "ratio")]
    pub(crate) sample_ratio: f64,
}

impl Default for TracesConfig {
    fn default() -> Self {
        Self { endpoint: None, sample_ratio: 1.0 }
    }
}

fn endpoint<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Url>, D::Error> {
    let url = Option::<Url>::deserialize(deserializer)?;
    if let Some(url) = &url {
        let plain = url.username().is_empty() && url.password().is_none() && url.query().is_none();
        if !["http", "https"].contains(&url.scheme()) || url.host_str().is_none_or(str::is_empty) || !plain {
            return Err(serde::de::Error::custom(
                "not the URL of a collector; write http://HOST:4318, and credentials into OTEL_EXPORTER_OTLP_HEADERS",
            ));
        }
    }
    Ok(url)
}

fn ratio<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let ratio = f64::deserialize(deserializer)?;
    if (0.0..=1.0).contains(&ratio) { Ok(ratio) } else { Err(serde::de::Error::custom("give a share from 0 to 1")) }
}

/// What gathers and sends traces, for as long as the process lives.
#[derive(Debug)]
pub(crate) struct Traces {
    provider: SdkTracerProvider,
}

impl Traces {
    /// Begins to send where configuration or environment say; `None` when neither does. Once per process, within its runtime.
    ///
    /// # Errors
    /// When the address is none, or there is no certificate authority to check a collector's certificate against.
    pub(crate) fn start(config: &TracesConfig, role: &str) -> anyhow::Result<Option<Self>> {
        let given = |name: &str| env::var(name).is_ok_and(|value| !value.is_empty());
        if env::var("OTEL_SDK_DISABLED").is_ok_and(|value| value.eq_ignore_ascii_case("true")) {
            return Ok(None);
        }
        let endpoint = match &config.endpoint {
            Some(url) => Some(format!("{}{PATH}", url.as_str().trim_end_matches('/'))),
            None if ENDPOINT_VARIABLES.iter().any(|name| given(name)) => None,
            None => return Ok(None),
        };
        let mut exporter = SpanExporter::builder().with_http().with_http_client(Collector::new()?);
        if let Some(endpoint) = endpoint {
            exporter = exporter.with_endpoint(endpoint);
        }
        let exporter = exporter.build().map_err(|error| anyhow::anyhow!("traces cannot be sent: {error}"))?;
        let mut resource = Resource::builder().with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("host.name", host_name()),
        ]);
        if !given("OTEL_SERVICE_NAME") {
            resource = resource.with_service_name(format!("eagle-{role}"));
        }
        let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.sample_ratio)));
        let provider = SdkTracerProvider::builder()
            .with_resource(resource.build())
            .with_sampler(sampler)
            .with_batch_exporter(exporter)
            .build();
        global::set_text_map_propagator(TraceContextPropagator::new());
        Ok(Some(Self { provider }))
    }

    /// What turns the spans that are meant for traces into those of OpenTelemetry.
    pub(crate) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        let tracer: SdkTracer = self.provider.tracer("eagle");
        let wanted = filter_fn(|metadata| metadata.target() == TARGET).with_max_level_hint(LevelFilter::INFO);
        tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_context_activation(false)
            .with_location(false)
            .with_target(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_filter(wanted)
    }

    /// Sends what is queued, for a second at most, and no more after that.
    pub(crate) async fn end(self) {
        let ending = tokio::task::spawn_blocking(move || self.provider.shutdown_with_timeout(FLUSH));
        // What could not be sent was said when it failed.
        let _ = timeout(FLUSH, ending).await;
    }
}

/// The way to the collector. Its requests run on the process's own runtime, while a thread without one waits for them.
struct Collector {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    runtime: Handle,
    /// Whether the last request failed.
    down: AtomicBool,
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collector").field("down", &self.down).finish_non_exhaustive()
    }
}

impl Collector {
    fn new() -> anyhow::Result<Self> {
        let connector = match HttpsConnectorBuilder::new().with_native_roots() {
            Ok(builder) => builder,
            // Without authorities no https:// collector is trusted; an http:// one needs none.
            Err(_) => HttpsConnectorBuilder::new().with_tls_config(
                ClientConfig::builder().with_root_certificates(RootCertStore::empty()).with_no_client_auth(),
            ),
        };
        let connector = connector.https_or_http().enable_http1().build();
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self { client, runtime: Handle::try_current()?, down: AtomicBool::new(false) })
    }

    /// Says once that the collector fails, and once that it does no more.
    fn tell(&self, collector: &Uri, problem: Option<String>) {
        let was_down = self.down.swap(problem.is_some(), Ordering::Relaxed);
        // Without what could be a secret: user name, password and query.
        let host = collector.host().unwrap_or_default();
        let port = collector.port_u16();
        match problem {
            Some(problem) if !was_down => {
                tracing::warn!(
                    host,
                    port,
                    problem,
                    "traces cannot be sent; spans are dropped until the collector takes them"
                );
            }
            None if was_down => tracing::info!(host, port, "traces are sent again"),
            _ => {}
        }
    }
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let collector = request.uri().clone();
        let client = self.client.clone();
        let sending = self.runtime.spawn(async move {
            timeout(ANSWER, async {
                let response = client.request(request.map(Full::new)).await?;
                let (parts, body) = response.into_parts();
                let body = Limited::new(body, MAX_ANSWER).collect().await?.to_bytes();
                Ok::<_, HttpError>(Response::from_parts(parts, body))
            })
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {} s", ANSWER.as_secs()).into()))
        });
        let result = sending.await.unwrap_or_else(|error| Err(error.into()));
        let problem = match &result {
            Ok(response) if response.status().is_success() => None,
            Ok(response) => Some(format!("it answered {}", response.status())),
            Err(error) => Some(with_sources(&**error)),
        };
        self.tell(&collector, problem);
        result
    }
}

/// The name of this machine, as its kernel knows it (uname(2)): a service does not see `/proc/sys` (`ProcSubset=pid`).
fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
