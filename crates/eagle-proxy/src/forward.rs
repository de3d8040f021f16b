//! The forward proxy: for daemons whose `HTTP_PROXY` and `HTTPS_PROXY` name this address.
//!
//! - A request in **absolute form** (`GET http://registry/v2/...`, RFC 9112 section 3.2.2) is answered as one to the
//!   mirror, with the registry from its target.
//! - **`CONNECT`** (RFC 9110 section 9.3.6) becomes a tunnel to the host. With a certificate authority that the
//!   daemon trusts, connections to registries whose images should come from peers are answered here instead
//!   (`intercept`), under certificates made on the fly ([`authority`]).
//!
//! Only hosts that `policy` allows are reached: this is no open proxy.

pub mod authority;
mod intercept;
mod policy;
mod readers;
mod tunnel;

use std::{net::SocketAddr, sync::Arc};

use eagle_cluster::places::Place;
use eagle_registry::{RegistryName, errors::ErrorCode};
use http::{Method, Request, Response, StatusCode, Uri, header, uri::Authority};
use hyper::body::Incoming;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(crate) use self::policy::Policy;
use self::{authority::Certificates, policy::Verdict};
use crate::{
    answer::{self, ResponseBody},
    config::ForwardMode,
    service::{Service, Via},
    web,
};

/// What all connections of runtimes share.
#[derive(Debug)]
pub(crate) struct Front {
    pub(crate) service: Arc<Service>,
    pub(crate) mode: ForwardMode,
    pub(crate) policy: Policy,
    /// Without any, nothing is intercepted.
    pub(crate) certificates: Option<Certificates>,
}

/// What is known of the connection of a request.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    /// The end of it that is here.
    pub(crate) local: SocketAddr,
    /// Where tasks that outlive the connection's own are owned.
    pub(crate) tasks: TaskTracker,
    /// No new requests.
    pub(crate) shutdown: CancellationToken,
    /// The end.
    pub(crate) stop: CancellationToken,
    /// Its place among the connections.
    pub(crate) place: Place,
}

impl Front {
    /// Answers a request in whatever form it came.
    pub(crate) async fn answer(
        self: &Arc<Self>,
        request: Request<Incoming>,
        connection: &Connection,
    ) -> Response<ResponseBody> {
        if request.method() == Method::CONNECT {
            let response = self.connect(request, connection).await;
            self.service.metrics.request("connect", response.status());
            return response;
        }
        // A server must understand the absolute form for itself too.
        let absolute = request.uri().authority().filter(|authority| authority.as_str() != connection.local.to_string());
        let Some(authority) = absolute else {
            if web::is_of_a_page(request.headers(), connection.local) {
                self.service.metrics.request("other", StatusCode::FORBIDDEN);
                let problem = "a mirror answers container runtimes, and no web page";
                return answer::error(StatusCode::FORBIDDEN, ErrorCode::Denied, problem);
            }
            return self.service.answer(request, &Via::Mirror(connection.local)).await;
        };
        match self.absolute(request.uri(), authority, connection) {
            Ok(via) => self.service.answer(request, &via).await,
            Err(refusal) => {
                self.service.metrics.request("forward", refusal.status());
                *refusal
            }
        }
    }

    fn serves(&self, connection: &Connection) -> bool {
        match self.mode {
            ForwardMode::Off => false,
            // Whoever reaches a loopback address is on this machine.
            ForwardMode::Loopback => connection.local.ip().is_loopback(),
            ForwardMode::Any => true,
        }
    }

    /// Which registry a request in absolute form means.
    fn absolute(
        &self,
        uri: &Uri,
        authority: &Authority,
        connection: &Connection,
    ) -> Result<Via, Box<Response<ResponseBody>>> {
        if !self.serves(connection) {
            return Err(Box::new(not_a_proxy()));
        }
        if uri.scheme_str() != Some("http") {
            return Err(Box::new(bad("only http URLs are forwarded; for https use CONNECT")));
        }
        let target = policy::target(authority, None).map_err(|problem| Box::new(bad(&problem)))?;
        match self.policy.verdict(&target, true) {
            Verdict::Refuse => Err(Box::new(refused(&target.registry.to_string()))),
            // Rules send each request its way.
            Verdict::Tunnel | Verdict::Intercept => Ok(Via::Registry(target.registry)),
        }
    }

    async fn connect(self: &Arc<Self>, request: Request<Incoming>, connection: &Connection) -> Response<ResponseBody> {
        if !self.serves(connection) {
            return not_a_proxy();
        }
        if request.headers().contains_key(header::TRANSFER_ENCODING)
            || request.headers().contains_key(header::CONTENT_LENGTH)
        {
            return bad("CONNECT has no content");
        }
        let only_authority = request.uri().scheme().is_none() && request.uri().path_and_query().is_none();
        let authority = request.uri().authority().filter(|authority| only_authority && authority.port_u16().is_some());
        let Some(authority) = authority else {
            return bad("CONNECT needs HOST:PORT");
        };
        let target = match policy::target(authority, Some(policy::HTTPS_PORT)) {
            Ok(target) => target,
            Err(problem) => return bad(&problem),
        };
        let intercepts = self.certificates.as_ref();
        match self.policy.verdict(&target, intercepts.is_some()) {
            Verdict::Refuse => refused(&target.registry.to_string()),
            Verdict::Intercept if let Some(certificates) = intercepts => match certificates.server(&target.host) {
                Ok(tls) => intercept::start(Arc::clone(self), request, connection.clone(), target, tls),
                Err(error) => {
                    tracing::warn!(host = target.host, %error, "no certificate can be made");
                    answer::error(StatusCode::BAD_GATEWAY, ErrorCode::Unavailable, error.to_string())
                }
            },
            Verdict::Intercept | Verdict::Tunnel if !self.service.origin_fallback => {
                let problem = "a tunnel would reach the registry, which proxy.origin_fallback: false forbids";
                answer::error(StatusCode::FORBIDDEN, ErrorCode::Denied, problem)
            }
            Verdict::Intercept | Verdict::Tunnel => match tunnel::open(&target).await {
                Ok(there) => tunnel::start(request, connection.clone(), there),
                Err(problem) => answer::error(StatusCode::BAD_GATEWAY, ErrorCode::Unavailable, problem),
            },
        }
    }
}

/// Host, port and registry of the target of a `CONNECT`.
pub(crate) fn connect_target(authority: &Authority) -> Result<(String, u16, RegistryName), String> {
    let policy::Target { host, port, registry } = policy::target(authority, Some(policy::HTTPS_PORT))?;
    Ok((host, port, registry))
}

fn bad(problem: &str) -> Response<ResponseBody> {
    answer::error(StatusCode::BAD_REQUEST, ErrorCode::Unsupported, problem)
}

fn not_a_proxy() -> Response<ResponseBody> {
    let problem = "this address is no forward proxy for you (proxy.forward.mode)";
    answer::error(StatusCode::FORBIDDEN, ErrorCode::Denied, problem)
}

fn refused(host: &str) -> Response<ResponseBody> {
    let problem = format!(
        "{host} is no registry that this proxy forwards to; only those in `registries` and those that a rule in \
         `proxy.rules` names are"
    );
    answer::error(StatusCode::FORBIDDEN, ErrorCode::Denied, problem)
}
