//! The way to a host: directly, or through an HTTP proxy at the edge of the network.
//!
//! Without a configured proxy the environment of the process counts, as for other programs:
//! `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`, in capitals or not; and as with docker and
//! containerd, the machine itself is always reached directly then.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use eagle_core::units::Rate;
use http::{HeaderValue, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::{
    client::{
        legacy::connect::{Connected, Connection, HttpConnector, proxy::Tunnel},
        proxy::matcher::{Intercept, Matcher},
    },
    rt::TokioIo,
};
use tokio::net::TcpStream;
use tower_service::Service;
use url::Url;

use super::buffers::ReceiveBuffers;
use crate::config::EgressProxy;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Which proxy leads to which host; clones share it.
#[derive(Clone)]
pub(crate) struct Egress(Arc<Kind>);

enum Kind {
    Direct,
    Always(Matcher),
    Environment(Matcher),
}

impl fmt::Debug for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self.0 {
            Kind::Direct => "Direct",
            Kind::Always(_) => "Always",
            Kind::Environment(_) => "Environment",
        })
    }
}

impl Egress {
    /// As configured, else as the environment of the process says.
    pub(crate) fn new(configured: Option<&EgressProxy>) -> Self {
        Self(Arc::new(match configured {
            None => Kind::Environment(Matcher::from_env()),
            Some(EgressProxy::Direct) => Kind::Direct,
            Some(EgressProxy::Http(url)) => Kind::Always(Matcher::builder().all(url.expose()).build()),
        }))
    }

    #[cfg(test)]
    fn from_variables(http: &str, https: &str, no: &str) -> Self {
        Self(Arc::new(Kind::Environment(Matcher::builder().http(http).https(https).no(no).build())))
    }

    fn proxy(&self, to: &Uri) -> Option<Intercept> {
        match &*self.0 {
            Kind::Direct => None,
            Kind::Always(matcher) => matcher.intercept(to),
            Kind::Environment(_) if is_this_machine(to) => None,
            Kind::Environment(matcher) => matcher.intercept(to),
        }
    }

    /// What a request in absolute form has to show to the proxy; a tunnel shows it itself.
    pub(crate) fn authorization(&self, to: &Uri) -> Option<HeaderValue> {
        let plain = to.scheme_str() == Some("http");
        self.proxy(to).filter(|_| plain)?.basic_auth().cloned()
    }
}

fn is_this_machine(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

/// Opens connections the way that [`Egress`] says. TLS is laid on top of it.
#[derive(Debug, Clone)]
pub(crate) struct EgressConnector {
    pub(crate) direct: HttpConnector,
    pub(crate) egress: Egress,
    pub(crate) buffers: ReceiveBuffers,
    /// What is read at most of all connections to one registry.
    pub(crate) download_rate: Rate,
}

impl Service<Uri> for EgressConnector {
    type Response = EgressStream;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<EgressStream, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.direct.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let (mut direct, proxy) = (self.direct.clone(), self.egress.proxy(&to));
        // Before it connects: the scale of the window is agreed on with the first packets.
        direct.set_recv_buffer_size(self.buffers.size(self.download_rate));
        Box::pin(async move {
            let Some(proxy) = proxy else {
                return Ok(EgressStream { io: direct.call(to).await?, absolute_form: false });
            };
            let scheme = proxy.uri().scheme_str().unwrap_or_default().to_owned();
            let named = |error: BoxError| format!("egress proxy {}: {error}", shown(proxy.uri()));
            if scheme != "http" {
                return Err(named("only proxies over http:// can be used".into()).into());
            }
            if to.scheme_str() == Some("http") {
                let io = direct.call(proxy.uri().clone()).await.map_err(|error| named(error.into()))?;
                return Ok(EgressStream { io, absolute_form: true });
            }
            let mut tunnel = Tunnel::new(proxy.uri().clone(), direct);
            if let Some(authorization) = proxy.basic_auth() {
                tunnel = tunnel.with_auth(authorization.clone());
            }
            let io = tunnel.call(to).await.map_err(|error| named(super::chain(&error).into()))?;
            Ok(EgressStream { io, absolute_form: false })
        })
    }
}

/// A proxy without what may be secret in its URL.
fn shown(proxy: &Uri) -> String {
    let url: Option<Url> = proxy.to_string().parse().ok();
    let host = url.as_ref().and_then(Url::host_str).unwrap_or_default().to_owned();
    match url.and_then(|url| url.port_or_known_default()) {
        Some(port) => format!("{host}:{port}"),
        None => host,
    }
}

/// A connection to a host, or to the proxy that leads there.
pub(crate) struct EgressStream {
    io: TokioIo<TcpStream>,
    /// Whether requests name the whole URL (RFC 9112, 3.2.2).
    absolute_form: bool,
}

impl Connection for EgressStream {
    fn connected(&self) -> Connected {
        self.io.connected().proxy(self.absolute_form)
    }
}

impl Read for EgressStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<Result<(), std::io::Error>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl Write for EgressStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize, std::io::Error>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), std::io::Error>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), std::io::Error>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<Result<usize, std::io::Error>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through(egress: &Egress, to: &str) -> Option<String> {
        egress.proxy(&to.parse().unwrap()).map(|proxy| proxy.uri().to_string())
    }

    #[test]
    fn the_environment_says_which_hosts_need_a_proxy() {
        let egress = Egress::from_variables("http://plain:1", "http://u:p@secure:2", "example.com,10.0.0.0/8");
        assert_eq!(through(&egress, "https://ghcr.io/v2/").as_deref(), Some("http://secure:2/"));
        assert_eq!(through(&egress, "http://ghcr.io/v2/").as_deref(), Some("http://plain:1/"));
        for direct in ["https://example.com/", "https://a.example.com/", "http://10.1.2.3/", "http://127.0.0.1:5000/"] {
            assert_eq!(through(&egress, direct), None, "{direct}");
        }
        for this in ["http://localhost/", "https://[::1]:5000/", "http://127.8.9.1/"] {
            assert_eq!(through(&egress, this), None, "{this}");
        }
        // A tunnel carries the password itself; for a plain request there is none here.
        assert_eq!(egress.authorization(&"https://ghcr.io/".parse().unwrap()), None);
        assert_eq!(egress.authorization(&"http://ghcr.io/".parse().unwrap()), None);
    }

    #[test]
    fn a_configured_proxy_leads_everywhere_and_direct_nowhere() {
        let proxy = "http://me:pw@proxy.example:3128".parse().unwrap();
        let egress = Egress::new(Some(&proxy));
        assert_eq!(through(&egress, "http://127.0.0.1:5000/").as_deref(), Some("http://proxy.example:3128/"));
        assert_eq!(egress.authorization(&"http://a/".parse().unwrap()).unwrap(), "Basic bWU6cHc=");
        assert_eq!(through(&Egress::new(Some(&EgressProxy::Direct)), "https://ghcr.io/"), None);
    }
}
