// An S3 server over a directory, which refuses requests that are not signed with its key. For the tests of this crate
// and, as the program `examples/s3-server.rs`, for the end-to-end scenarios.

use std::{io, net::SocketAddr, path::Path, sync::Arc};

use hyper::{
    Request,
    body::Incoming,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use s3s::{auth::SimpleAuth, service::S3ServiceBuilder};
use s3s_fs::FileSystem;
use tokio::{net::TcpListener, sync::Mutex, task::JoinSet};

pub const ACCESS_KEY_ID: &str = "eagle-test";
pub const SECRET_ACCESS_KEY: &str = "eagle-test-secret";

/// Serves the directories in `root` as buckets, until the future is dropped.
pub async fn serve(listener: TcpListener, root: &Path) -> io::Result<()> {
    let files = FileSystem::new(root).map_err(|error| io::Error::other(format!("{error:?}")))?;
    let mut service = S3ServiceBuilder::new(files);
    service.set_auth(SimpleAuth::from_single(ACCESS_KEY_ID, SECRET_ACCESS_KEY));
    let service = service.build();
    // S3 decides conditional writes one after the other; this server looks first and writes then.
    let conditional = Arc::new(Mutex::new(()));
    let mut connections = JoinSet::new();
    loop {
        let (socket, _) = listener.accept().await?;
        let (service, conditional) = (service.clone(), Arc::clone(&conditional));
        connections.spawn(async move {
            let builder = Builder::new(TokioExecutor::new());
            let service = service_fn(move |request: Request<Incoming>| {
                let (service, conditional) = (service.clone(), Arc::clone(&conditional));
                async move {
                    let is_conditional = request.headers().contains_key("if-none-match");
                    let _one = if is_conditional { Some(conditional.lock().await) } else { None };
                    Service::call(&service, request).await
                }
            });
            // A client may break off as it likes.
            let _ = builder.serve_connection(TokioIo::new(socket), service).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Listens at a free port of the loopback interface.
pub async fn listen() -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}
