//! An HTTP client of members.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use http::Request;
use http_body::Body;
use hyper_util::client::legacy::{Builder, Client, ResponseFuture, connect::HttpConnector};

use crate::{
    connector::{MemberConnector, ReceiveBuffer},
    tls::MemberTls,
};

/// An HTTP client whose connections prove membership; clones share it.
///
/// When the accepted keys or the certificates change, new requests get new connections. Those under way end on the
/// connection they have, as long as the other end is still a member: so a key that is exchanged step by step costs nothing
/// that is under way.
pub struct MemberClient<B>(Arc<Inner<B>>);

struct Inner<B> {
    tls: MemberTls,
    connector: MemberConnector,
    builder: Builder,
    /// The client of a generation; its number, 0 without TLS.
    current: Mutex<(u64, Client<MemberConnector, B>)>,
}

impl<B> MemberClient<B>
where
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// A client with the settings of `builder`, and those of `http` for the connections below.
    pub fn new(tls: &MemberTls, http: HttpConnector, builder: Builder) -> Self {
        Self::with(tls, tls.connector(http), builder)
    }

    /// The same, with the kernel's receive buffers as large as this says.
    pub fn receiving(tls: &MemberTls, http: HttpConnector, builder: Builder, receive_buffer: ReceiveBuffer) -> Self {
        Self::with(tls, tls.connector(http).receiving(receive_buffer), builder)
    }

    fn with(tls: &MemberTls, connector: MemberConnector, builder: Builder) -> Self {
        let current = Mutex::new((number(tls), builder.build(connector.clone())));
        Self(Arc::new(Inner { tls: tls.clone(), connector, builder, current }))
    }

    /// Sends a request on a connection that proves membership by what counts now.
    pub fn request(&self, request: Request<B>) -> ResponseFuture {
        let number = number(&self.0.tls);
        // The client is replaced as a whole, so a panic elsewhere leaves it usable.
        let mut current = self.0.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.0 != number {
            *current = (number, self.0.builder.build(self.0.connector.clone()));
        }
        current.1.request(request)
    }
}

/// Which generation counts now.
fn number(tls: &MemberTls) -> u64 {
    tls.current().map_or(0, |generation| generation.number)
}

impl<B> Clone for MemberClient<B> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<B> fmt::Debug for MemberClient<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemberClient").field("tls", &self.0.tls).finish_non_exhaustive()
    }
}
