//! The HTTP client below the registry: connections, deadlines, redirects.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use eagle_core::units::Rate;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use rustls::{ClientConfig, RootCertStore};
use url::{Origin, Url};

use super::{
    buffers::{HTTP_READ_AHEAD, ReceiveBuffers},
    egress::{Egress, EgressConnector},
    relay::RelayBody,
    tls::{self, ClientIdentity},
};
use crate::origin::OriginError;

/// Most redirects that are followed; registries use one or two (to an object store or a CDN).
const MAX_REDIRECTS: usize = 5;
/// Idle connections are kept for less than the 60 s after which common servers close them.
const IDLE_TIMEOUT: Duration = Duration::from_secs(45);
/// Idle connections per host: about as many as one pull opens.
const MAX_IDLE: usize = 16;

type Connector = HttpsConnector<EgressConnector>;
type HttpsClient = Client<Connector, Full<Bytes>>;

/// A client with one set of trusted authorities and deadlines. Clones share its connections.
///
/// HTTP/1.1 only: a blob has a connection, and so a congestion window and a flow control, of its own.
/// Nothing is ever decompressed: digests are of the bytes as they are stored.
#[derive(Debug, Clone)]
pub(crate) struct Transport {
    client: HttpsClient,
    /// Shows the client certificate, to these hosts alone: a redirect may lead to a stranger.
    known: Option<(HttpsClient, Arc<[Origin]>)>,
    /// That certificate.
    identity: Option<Arc<ClientIdentity>>,
    /// For content that is there only once.
    relays: Client<Connector, RelayBody>,
    egress: Egress,
    response_timeout: Duration,
}

/// What a [`Transport`] is made from.
#[derive(Debug)]
pub(crate) struct TransportConfig<'a> {
    pub(crate) roots: RootCertStore,
    /// A client certificate, and the hosts to which it is shown.
    pub(crate) identity: Option<(&'a Arc<ClientIdentity>, Arc<[Origin]>)>,
    pub(crate) egress: Egress,
    pub(crate) buffers: ReceiveBuffers,
    pub(crate) download_rate: Rate,
    pub(crate) connect_timeout: Duration,
    pub(crate) response_timeout: Duration,
}

/// An answer, and whether it is the registry's own.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) response: Response<Incoming>,
    /// False once a redirect has led to another host: its challenges must not be answered.
    pub(crate) from_registry: bool,
}

impl Transport {
    pub(crate) fn new(config: TransportConfig<'_>) -> Result<Self, rustls::Error> {
        let TransportConfig { roots, identity, egress, buffers, download_rate, connect_timeout, response_timeout } =
            config;
        let connector = |tls: ClientConfig| {
            let mut direct = HttpConnector::new();
            direct.enforce_http(false);
            direct.set_nodelay(true);
            direct.set_connect_timeout(Some(connect_timeout));
            direct.set_keepalive(Some(IDLE_TIMEOUT));
            HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(
                EgressConnector { direct, egress: egress.clone(), buffers: buffers.clone(), download_rate },
            )
        };
        // Relays go to the registry's own host alone, which may see the certificate.
        let own = tls::client_config(roots.clone(), identity.as_ref().map(|(identity, _)| *identity))?;
        let relays = client(connector(own.clone()));
        let shown = identity.as_ref().map(|(identity, _)| Arc::clone(identity));
        let known = identity.map(|(_, hosts)| (client(connector(own)), hosts));
        let client = client(connector(tls::client_config(roots, None)?));
        Ok(Self { client, known, identity: shown, relays, egress, response_timeout })
    }

    /// One request with content that is there only once, one answer, of any status and at any time.
    pub(crate) async fn relay(
        &self,
        mut request: Request<RelayBody>,
    ) -> Result<Response<Incoming>, hyper_util::client::legacy::Error> {
        if let Some(authorization) = self.egress.authorization(request.uri()) {
            request.headers_mut().insert(header::PROXY_AUTHORIZATION, authorization);
        }
        self.refresh().await;
        self.relays.request(request).await
    }

    /// Connections that are made from now on show the certificate of this moment.
    async fn refresh(&self) {
        if let Some(identity) = &self.identity {
            identity.refresh().await;
        }
    }

    /// Time from a request to the headers of its answer.
    pub(crate) const fn response_timeout(&self) -> Duration {
        self.response_timeout
    }

    /// One request, one answer, of any status.
    ///
    /// The request must be one that may be repeated: a server may close an idle connection at the moment
    /// in which it is used again, so a connection that breaks before the answer is not yet a failure.
    pub(crate) async fn send_once(
        &self,
        registry: &str,
        method: &Method,
        url: &Url,
        mut headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response<Incoming>, OriginError> {
        let uri: Uri = url.as_str().parse().map_err(|_| OriginError::protocol(registry, "a URL that is not one"))?;
        if let Some(authorization) = self.egress.authorization(&uri) {
            headers.insert(header::PROXY_AUTHORIZATION, authorization);
        }
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        let client = match &self.known {
            Some((client, hosts)) if hosts.contains(&url.origin()) => {
                self.refresh().await;
                client
            }
            _ => &self.client,
        };
        let tries = async {
            match client.request(request.clone()).await {
                Err(error) if !error.is_connect() => client.request(request).await,
                result => result,
            }
        };
        match tokio::time::timeout(self.response_timeout, tries).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => {
                // The host may differ from the registry after a redirect, and is what an operator needs.
                let host = url.host_str().unwrap_or_default();
                let reason = format!("{host}: {}", super::chain(&error));
                Err(OriginError::Unreachable { registry: registry.to_owned(), reason })
            }
            Err(_) => Err(OriginError::Timeout {
                registry: registry.to_owned(),
                what: "an answer",
                after: self.response_timeout,
            }),
        }
    }

    /// A request with its redirects followed. Credentials stay with the host of `url`.
    pub(crate) async fn send(
        &self,
        registry: &str,
        method: &Method,
        url: Url,
        mut headers: HeaderMap,
    ) -> Result<Answer, OriginError> {
        let home = url.origin();
        let mut url = url;
        let mut from_registry = true;
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send_once(registry, method, &url, headers.clone(), Bytes::new()).await?;
            if !is_redirect(response.status()) {
                return Ok(Answer { response, from_registry });
            }
            let next = target(&url, response.headers()).map_err(|problem| OriginError::protocol(registry, problem))?;
            if next.origin() != home {
                from_registry = false;
                for name in [header::AUTHORIZATION, header::COOKIE, header::PROXY_AUTHORIZATION] {
                    headers.remove(name);
                }
            }
            tracing::debug!(registry, from = url.host_str(), to = next.host_str(), "redirected");
            url = next;
        }
        Err(OriginError::protocol(registry, format!("more than {MAX_REDIRECTS} redirects")))
    }
}

/// A client with connections of its own.
fn client<B>(connector: Connector) -> Client<Connector, B>
where
    B: http_body::Body + Send,
    B::Data: Send,
{
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(MAX_IDLE)
        .http1_max_buf_size(HTTP_READ_AHEAD)
        .build(connector)
}

const fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Where a redirect leads. Texts of errors leave out its query, which may hold a signature.
fn target(from: &Url, headers: &HeaderMap) -> Result<Url, String> {
    let location = headers.get(header::LOCATION).ok_or("a redirect without Location")?;
    let location = location.to_str().map_err(|_| "a redirect whose Location is not text")?;
    let mut next = from.join(location).map_err(|error| format!("a redirect whose Location is not a URL: {error}"))?;
    next.set_fragment(None);
    let host = next.host_str().unwrap_or_default();
    if !matches!(next.scheme(), "http" | "https") || host.is_empty() {
        return Err(format!("a redirect to a {} URL", next.scheme()));
    }
    if !next.username().is_empty() || next.password().is_some() {
        return Err(format!("a redirect to {host} with credentials in the URL"));
    }
    if from.scheme() == "https" && next.scheme() == "http" {
        return Err(format!("a redirect from https to unencrypted http on {host}, which Eagle refuses"));
    }
    Ok(next)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn redirects_lead_where_they_may() {
        let go = |from: &str, to: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::LOCATION, HeaderValue::from_str(to).unwrap());
            target(&from.parse().unwrap(), &headers).map(String::from)
        };
        assert_eq!(go("https://a/v2/x", "/y?z=1#f").as_deref(), Ok("https://a/y?z=1"));
        assert_eq!(go("http://a/", "https://b/").as_deref(), Ok("https://b/"));
        assert_eq!(go("https://a/", "//b:8/c").as_deref(), Ok("https://b:8/c"));
        for (from, to) in [
            ("https://a/", "http://a/"),
            ("https://a/", "ftp://b/"),
            ("http://a/", "http://u:p@b/"),
            ("http://a/", "http://"),
        ] {
            assert!(go(from, to).is_err(), "{from} -> {to}");
        }
        assert!(target(&"http://a/".parse().unwrap(), &HeaderMap::new()).is_err());
    }
}
