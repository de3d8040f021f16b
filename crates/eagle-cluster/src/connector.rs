//! Connecting as a member.

use std::{
    fmt,
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::Uri;
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use rustls::pki_types::ServerName;
use tokio_rustls::{TlsConnector, TlsStream};
use tower_service::Service;

use crate::{sources::with_sources, stream::MemberStream, tls::MemberTls};

/// Deadline of a handshake: a few messages and about a millisecond of arithmetic, at an end that may be very busy.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no connection to a member.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Not even TCP.
    #[error("{0}")]
    Tcp(String),
    /// Members only, and this node is none.
    #[error(
        "https:// is for members of a cluster with a key, and this node has none; set cluster.key_file, or write http://"
    )]
    NoKey,
    /// The other end has none of this node's keys.
    #[error("it does not know this node's cluster key (id {id}); give all nodes of a cluster the same key")]
    OtherKey {
        /// The id of the key for connections that this node begins.
        id: String,
    },
    /// The other end has a certificate that does not make it a member here.
    #[error("its certificate is not accepted: {0}; see cluster.tls")]
    Certificate(rustls::Error),
    /// The other end speaks something else.
    #[error(
        "it does not speak TLS, so it has no cluster key, and this node has one; give all nodes of a cluster the same key"
    )]
    NotTls,
    /// The URL's host can be in no certificate.
    #[error("{0} is no host name that a certificate can have")]
    Host(String),
    /// The handshake took too long.
    #[error("no TLS handshake within {HANDSHAKE_TIMEOUT:?}")]
    Slow,
    /// The handshake failed otherwise.
    #[error("the TLS handshake failed: {0}")]
    Handshake(io::Error),
}

/// Opens connections to members, for [`hyper_util`]'s client: in clear without a cluster key, else by TLS.
///
/// `http://` and `https://` mean the same to a node with a key, but for the port of a URL without one; a node without a key
/// does not connect to `https://`.
#[derive(Clone)]
pub struct MemberConnector {
    tls: MemberTls,
    http: HttpConnector,
    receive_buffer: Option<ReceiveBuffer>,
}

/// Says how large the kernel's receive buffer of a connection is that is opened now, bytes; none when it is the kernel's affair.
pub type ReceiveBuffer = Arc<dyn Fn() -> Option<usize> + Send + Sync>;

impl fmt::Debug for MemberConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemberConnector").field("tls", &self.tls).field("http", &self.http).finish_non_exhaustive()
    }
}

impl MemberConnector {
    pub(crate) fn new(tls: MemberTls, mut http: HttpConnector) -> Self {
        http.enforce_http(false);
        Self { tls, http, receive_buffer: None }
    }

    pub(crate) fn receiving(self, receive_buffer: ReceiveBuffer) -> Self {
        Self { receive_buffer: Some(receive_buffer), ..self }
    }

    async fn connect(self, to: Uri) -> Result<TokioIo<MemberStream>, ConnectError> {
        let Self { tls, mut http, receive_buffer } = self;
        if tls.is_open() && to.scheme_str() == Some("https") {
            return Err(ConnectError::NoKey);
        }
        if let Some(receive_buffer) = receive_buffer {
            // Before it connects: the scale of the window is agreed on with the first packets.
            http.set_recv_buffer_size(receive_buffer());
        }
        let host = to.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let stream = http.call(to).await.map_err(|error| ConnectError::Tcp(with_sources(&error)))?.into_inner();
        let Some(generation) = tls.current() else { return Ok(TokioIo::new(MemberStream::plain(stream))) };
        let name = ServerName::try_from(host.clone()).map_err(|_| ConnectError::Host(host))?;
        let handshake = TlsConnector::from(Arc::clone(&generation.client)).connect(name, stream);
        let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(explained(error, generation.trust.key_id())),
            Err(_) => return Err(ConnectError::Slow),
        };
        let gone = generation.trust.gone(stream.get_ref().1.peer_certificates());
        let gone = gone.ok_or_else(|| ConnectError::Handshake(io::Error::other("no certificate to know it by")))?;
        Ok(TokioIo::new(MemberStream::member(TlsStream::from(stream), gone)))
    }
}

impl Service<Uri> for MemberConnector {
    type Response = TokioIo<MemberStream>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        self.http.poll_ready(context).map_err(|error| ConnectError::Tcp(with_sources(&error)))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        Box::pin(self.clone().connect(to))
    }
}

fn explained(error: io::Error, key_id: Option<String>) -> ConnectError {
    use rustls::Error as Tls;
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Tls>()).cloned();
    match (tls, key_id) {
        (Some(Tls::InvalidMessage(_)), _) => ConnectError::NotTls,
        (Some(Tls::InvalidCertificate(_) | Tls::AlertReceived(_)), Some(id)) => ConnectError::OtherKey { id },
        (Some(problem @ (Tls::InvalidCertificate(_) | Tls::AlertReceived(_))), None) => {
            ConnectError::Certificate(problem)
        }
        _ => ConnectError::Handshake(error),
    }
}
