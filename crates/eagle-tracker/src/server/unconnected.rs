//! A tracker without sockets, for tests on virtual time: all of it but what reads and writes HTTP.

use std::{net::IpAddr, sync::Arc};

use bytes::Bytes;
use http::StatusCode;
use http_body_util::BodyExt as _;
use prometheus_client::registry::Registry;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Shared,
    announce::Answer,
    reply::{Reply, RequestError, encoded},
    seeders, sweep,
};
use crate::{
    api::{
        ANNOUNCE_PATH,
        seeders::{LEASES_PATH, RELEASE_PATH, SEEDERS_PATH},
    },
    config::TrackerConfig,
    encoding::Encoding,
    store::{MemorySeeders, MemoryStore, SeederStats, StoreLimits},
};

/// A tracker that lives until it is dropped.
#[derive(Debug)]
pub(crate) struct Unconnected {
    shared: Arc<Shared>,
    _sweeping: DropGuard,
}

impl Unconnected {
    /// One that knows nobody, whose tokens begin with `first_token`.
    pub(crate) fn start(first_token: u64) -> Self {
        let config = TrackerConfig::default();
        let store = Arc::new(MemoryStore::new(StoreLimits::from(&config)));
        let seeders = Arc::new(MemorySeeders::with_tokens_from(first_token));
        let shared = Arc::new(Shared::new(config, store, seeders, None, &mut Registry::default()).unwrap());
        let shutdown = CancellationToken::new();
        tokio::spawn(sweep(Arc::clone(&shared), shutdown.clone()));
        Self { shared, _sweeping: shutdown.drop_guard() }
    }

    /// Answers a request of a seeder.
    pub(crate) async fn answer(&self, path: &str, body: &[u8], source: IpAddr) -> (StatusCode, Bytes) {
        let reply = self.reply(path, body, source).await.unwrap_or_else(|error| error.reply());
        let status = reply.status();
        (status, reply.into_body().collect().await.unwrap().to_bytes())
    }

    async fn reply(&self, path: &str, body: &[u8], source: IpAddr) -> Result<Reply, RequestError> {
        let shared = &self.shared;
        match path {
            ANNOUNCE_PATH => {
                let request = Encoding::Protobuf.decode_request(body).unwrap();
                let Answer { response, peers } = shared.announce(request, source).await?;
                Ok(encoded(response, &peers, Encoding::Protobuf))
            }
            SEEDERS_PATH if body.is_empty() => Ok(seeders::list(shared).await),
            SEEDERS_PATH => seeders::answer_heartbeat(shared, serde_json::from_slice(body).unwrap(), source).await,
            LEASES_PATH => seeders::answer_claim(shared, serde_json::from_slice(body).unwrap(), source).await,
            RELEASE_PATH => Ok(seeders::answer_release(shared, serde_json::from_slice(body).unwrap()).await),
            path => panic!("{path}"),
        }
    }

    /// How much it knows.
    pub(crate) fn stats(&self) -> SeederStats {
        self.shared.seeders.stats()
    }
}
