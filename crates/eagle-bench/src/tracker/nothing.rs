//! A server that reads each request and answers with nothing, on the stack that the tracker runs on.

use std::{convert::Infallible, net::Ipv4Addr};

use anyhow::Result;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, task::JoinSet};

use crate::{cli::NothingArgs, report::write_json};

/// Serves until the process is ended.
///
/// # Errors
/// When it cannot listen, or its ready file not be written.
pub(crate) async fn run(args: NothingArgs) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    write_json(&args.ready_file, &serde_json::json!({ "listen": listener.local_addr()? }))?;
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        connections.spawn(
            http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service_fn(answer)),
        );
        while connections.try_join_next().is_some() {}
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    // A body that breaks off ends the connection, which whoever sent it notices.
    let _ = request.into_body().collect().await;
    Ok(Response::new(Full::default()))
}
