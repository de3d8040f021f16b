// An S3 server over a directory, which refuses requests that are not signed with its key. For the tests of this crate
// and, as the program `examples/s3-server.rs`, for the end-to-end scenarios.

use std::{io, net::SocketAddr, path::Path};

use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use s3s::{auth::SimpleAuth, service::S3ServiceBuilder};
use s3s_fs::FileSystem;
use tokio::{net::TcpListener, task::JoinSet};

pub const ACCESS_KEY_ID: &str = "eagle-test";
pub const SECRET_ACCESS_KEY: &str = "eagle-test-secret";

/// Serves the directories in `root` as buckets, until the future is dropped.
pub async fn serve(listener: TcpListener, root: &Path) -> io::Result<()> {
    let files = FileSystem::new(root).map_err(|error| io::Error::other(format!("{error:?}")))?;
    let mut service = S3ServiceBuilder::new(files);
    service.set_auth(SimpleAuth::from_single(ACCESS_KEY_ID, SECRET_ACCESS_KEY));
    let service = service.build();
    let mut connections = JoinSet::new();
    loop {
        let (socket, _) = listener.accept().await?;
        let service = service.clone();
        connections.spawn(async move {
            let builder = Builder::new(TokioExecutor::new());
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
