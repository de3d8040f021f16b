//! `eagle-bench agent`: pulls as a controller says, `eagle-bench pull --agent` on another machine.

mod session;
pub(crate) mod token;

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use eagle_registry::Secret;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    cli::AgentArgs,
    pull::protocol::{Hears, MAX_COMMAND, PATH, SILENCE, Says, VERSION},
};

/// Connections at a time. One is enough for a controller; the others are those of whoever is refused.
const CONNECTIONS: usize = 64;
/// Longest for the head of a request, which a controller sends at once.
const HEAD: Duration = Duration::from_secs(10);
/// After a failed accept: it may be for want of descriptors, of which connections that end give some back.
const AFTER_FAILURE: Duration = Duration::from_millis(100);
const VERSION_HERE: &str = env!("CARGO_PKG_VERSION");

type Answered = Response<BoxBody<Bytes, Infallible>>;

/// What all connections share.
struct Agent {
    token: Option<Secret>,
    /// Who it works for.
    controller: Mutex<Option<SocketAddr>>,
}

/// Serves controllers, one after the other, until the process is ended.
///
/// # Errors
/// When it cannot listen, or without a token is to listen for other machines.
pub(crate) async fn run(args: AgentArgs) -> Result<()> {
    let token = token::read(args.token_file.as_deref())?;
    ensure!(
        token.is_some() || args.listen.ip().to_canonical().is_loopback(),
        "{} is for other machines too, and whoever reaches an agent can have it pull anything: give it a token with \
         --token-file or {}, the same as the controller's",
        args.listen,
        token::VARIABLE
    );
    let listener = TcpListener::bind(args.listen).await.with_context(|| format!("cannot listen on {}", args.listen))?;
    println!("Waiting for a controller: eagle-bench pull --agent http://{}", listener.local_addr()?);
    let agent = Arc::new(Agent { token, controller: Mutex::default() });
    // Dropped with all that is done for a controller when the process is to end.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) if connections.len() < CONNECTIONS => {
                    connections.spawn(Arc::clone(&agent).serve(stream, peer));
                }
                // Closed: there are too many.
                Ok(_) => {}
                Err(_) => tokio::time::sleep(AFTER_FAILURE).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

impl Agent {
    async fn serve(self: Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        // Records are small, and a pong is to be there at once. Neither fails on a socket that was just accepted.
        let _ = stream.set_nodelay(true);
        // A controller that takes nothing any more is gone.
        let _ =
            rustix::net::sockopt::set_tcp_user_timeout(&stream, u32::try_from(SILENCE.as_millis()).unwrap_or(u32::MAX));
        let answer = service_fn(move |request| {
            let agent = Arc::clone(&self);
            async move { Ok::<_, Infallible>(agent.answer(peer, request)) }
        });
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEAD).keep_alive(false);
        // Whatever ends a connection ends what is done for it, and the session says so.
        let _ = http.serve_connection(TokioIo::new(stream), answer).await;
    }

    fn answer(self: Arc<Self>, peer: SocketAddr, request: Request<Incoming>) -> Answered {
        if let Err((status, why)) = self.admit(&request) {
            return refuse(status, &why);
        }
        let seat = match Seat::take(&self, peer) {
            Ok(seat) => seat,
            Err(other) => {
                return refuse(StatusCode::CONFLICT, &format!("this agent works for another controller, {other}"));
            }
        };
        let (says, body) = Says::new();
        let hears = Hears::new(request.into_body(), MAX_COMMAND);
        let session = AbortOnDropHandle::new(tokio::spawn(session::run(seat, peer, says, hears)));
        // The session is the body's: when the connection goes, so does the work.
        let body = body.map_frame(move |frame| {
            let _ = &session;
            frame
        });
        Response::new(body.boxed())
    }

    /// Whether a request is that of a controller of this version who knows the token.
    fn admit(&self, request: &Request<Incoming>) -> Result<(), (StatusCode, String)> {
        let headers = request.headers();
        if headers.contains_key(header::ORIGIN) || headers.contains_key("sec-fetch-site") {
            return Err((StatusCode::FORBIDDEN, "requests of web pages are refused".to_owned()));
        }
        if self.token.as_ref().is_some_and(|token| !token::is_brought(headers, token)) {
            let why = format!("the token is missing or another (--token-file or {})", token::VARIABLE);
            return Err((StatusCode::UNAUTHORIZED, why));
        }
        if request.uri().path() != PATH {
            return Err((StatusCode::NOT_FOUND, format!("an agent has nothing but {PATH}")));
        }
        if request.method() != Method::POST {
            return Err((StatusCode::METHOD_NOT_ALLOWED, format!("{PATH} takes POST")));
        }
        let version = headers.get(VERSION).and_then(|version| version.to_str().ok()).unwrap_or("none");
        if version != VERSION_HERE {
            let why =
                format!("the agent is eagle-bench {VERSION_HERE}, the controller {version}: they have to be the same");
            return Err((StatusCode::BAD_REQUEST, why));
        }
        Ok(())
    }
}

/// The place of the one controller; given back when dropped.
struct Seat(Arc<Agent>);

impl Seat {
    /// # Errors
    /// Who has it.
    fn take(agent: &Arc<Agent>, peer: SocketAddr) -> Result<Self, SocketAddr> {
        let mut controller = agent.controller.lock().unwrap_or_else(PoisonError::into_inner);
        match *controller {
            Some(other) => Err(other),
            None => {
                *controller = Some(peer);
                Ok(Self(Arc::clone(agent)))
            }
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        *self.0.controller.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

fn refuse(status: StatusCode, why: &str) -> Answered {
    let mut response = Response::new(Full::from(format!("{why}\n")).boxed());
    *response.status_mut() = status;
    response
}
