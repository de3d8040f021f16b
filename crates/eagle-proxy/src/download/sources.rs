//! Where a blob can come from besides peers: metainfo and content of the seeders, in the order in
//! which they are responsible for it, and the origin last.

use std::time::Duration;

use eagle_core::{Geometry, PeerInfo, metainfo::Frame};
use eagle_registry::{Body, OriginError};
use eagle_seeder::client::{MetainfoStream, SeederError};
use http::StatusCode;
use tokio::time::timeout;
use url::Url;

use super::{
    BlobError, Context, Refusal,
    state::{BlobRequest, Download},
};
use crate::metrics::Source;

/// Seeders that are asked for one blob before the origin is. More do not help: with three of them
/// failing, the fault is not theirs, and each one costs a wait.
const MAX_SEEDERS: usize = 3;
/// A server gets this many stall timeouts to begin an answer. An origin under pressure takes long for
/// the first byte of a blob; giving its seeder up too early would send every node there as well. A
/// seeder that is down is noticed sooner, by its connection.
const FIRST_ANSWER: u32 = 4;

/// A seeder that answers and has nothing yet, since it waits for another seeder, gets that many times as long: with the
/// time until the other one counts as dead, and that for the registry's answer after it.
const LONGEST_WAIT: u32 = 3;

/// Why one source did not give what was asked.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It did answer: the caller may not have the blob, or there is none.
    Refused(Box<Refusal>),
    /// Anything else, for people.
    Failed(String),
}

impl From<SeederError> for Failure {
    fn from(error: SeederError) -> Self {
        match error {
            SeederError::Origin { status, headers, body } if is_refusal(status) => {
                Self::Refused(Box::new(Refusal { status, headers: *headers, body }))
            }
            other => Self::Failed(other.to_string()),
        }
    }
}

impl From<OriginError> for Failure {
    fn from(error: OriginError) -> Self {
        match error {
            OriginError::Status { status, headers, body, .. } if is_refusal(status) => {
                Self::Refused(Box::new(Refusal { status, headers: *headers, body }))
            }
            other => Self::Failed(other.to_string()),
        }
    }
}

/// Whether a status is about the caller or the blob; any other is about the server, and another one
/// may do better.
fn is_refusal(status: StatusCode) -> bool {
    status.is_client_error()
        && !matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::RANGE_NOT_SATISFIABLE)
}

/// A server that gives the content of blobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Server {
    /// A seeder's HTTP API.
    Seeder(Url),
    /// The registry.
    Origin,
}

impl Server {
    pub(crate) const fn source(&self) -> Source {
        match self {
            Self::Seeder(_) => Source::Seeder,
            Self::Origin => Source::Origin,
        }
    }
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Seeder(url) => write!(f, "seeder {url}"),
            Self::Origin => f.write_str("the registry"),
        }
    }
}

/// The content of a blob from some byte on.
pub(crate) struct Content {
    pub(crate) server: Server,
    /// Size of the whole blob, bytes.
    pub(crate) size: u64,
    /// Where the body begins.
    pub(crate) start: u64,
    pub(crate) body: Body,
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Content").field("server", &self.server).field("start", &self.start).finish_non_exhaustive()
    }
}

/// A metainfo stream whose header has been read.
#[derive(Debug)]
pub(crate) struct Feed {
    pub(crate) server: Url,
    pub(crate) geometry: Geometry,
    pub(crate) seeder: PeerInfo,
    pub(crate) stream: MetainfoStream,
}

/// How a download begins.
#[derive(Debug)]
pub(crate) struct Beginning {
    pub(crate) geometry: Geometry,
    /// Piece hashes, from a seeder.
    pub(crate) feed: Option<Feed>,
    /// The content itself, when no seeder gives hashes.
    pub(crate) content: Option<Content>,
}

/// Finds the size of a blob and a first source of it.
///
/// Seeders that the download leaves out are not asked: what they gave before was wrong.
pub(crate) async fn begin(
    context: &Context,
    request: &BlobRequest,
    download: &Download,
) -> Result<Beginning, BlobError> {
    let mut tried = Vec::new();
    let mut limited = None;
    if !download.origin_only {
        for seeder in seeders(context, request, download) {
            match feed(context, request, &seeder).await {
                Ok(feed) => return Ok(Beginning { geometry: feed.geometry, feed: Some(feed), content: None }),
                // The registry answers that seeder nothing for now. Another one may have the blob, and need not ask.
                Err(Failure::Refused(refusal)) if refusal.status == StatusCode::TOO_MANY_REQUESTS => {
                    limited = Some(refusal);
                }
                Err(Failure::Refused(refusal)) => return Err(BlobError::Refused(refusal)),
                Err(Failure::Failed(reason)) => tried.push(reason),
            }
        }
    }
    if let Some(refusal) = limited {
        // Whoever asks it once more makes it last longer.
        return Err(BlobError::Refused(refusal));
    }
    for server in servers(context, request, download) {
        match content(context, request, &server, 0).await {
            Ok(content) => match Geometry::auto(content.size) {
                Ok(geometry) => return Ok(Beginning { geometry, feed: None, content: Some(content) }),
                Err(error) => tried.push(format!("{server}: {error}")),
            },
            Err(Failure::Refused(refusal)) => return Err(BlobError::Refused(refusal)),
            Err(Failure::Failed(reason)) if !tried.contains(&reason) => tried.push(reason),
            Err(Failure::Failed(_)) => {}
        }
    }
    Err(BlobError::Unavailable { tried })
}

/// The seeders to ask for a blob, the one responsible for it first.
pub(crate) fn seeders(context: &Context, request: &BlobRequest, download: &Download) -> Vec<Url> {
    let mut seeders = context.seeders.order(&request.digest);
    seeders.retain(|seeder| !download.without.contains(seeder));
    seeders.truncate(MAX_SEEDERS);
    seeders
}

/// The servers of content, the cheapest for the cluster first.
pub(crate) fn servers(context: &Context, request: &BlobRequest, download: &Download) -> Vec<Server> {
    let seeders = if download.origin_only { Vec::new() } else { seeders(context, request, download) };
    let origin = context.settings.origin_fallback.then_some(Server::Origin);
    seeders.into_iter().map(Server::Seeder).chain(origin).collect()
}

/// Asks a seeder for piece hashes; returns when it knows the size of the blob.
pub(crate) async fn feed(context: &Context, request: &BlobRequest, seeder: &Url) -> Result<Feed, Failure> {
    let BlobRequest { digest, registry, repository, caller } = request;
    let deadline = first_answer(context);
    let open = async {
        let stream = context.seeders.metainfo(seeder, *digest, registry, repository, caller);
        let Ok(stream) = timeout(deadline, stream).await else {
            context.seeders.mark_down(seeder);
            return Err(Failure::Failed(format!("seeder {seeder}: no answer within {deadline:?}")));
        };
        let mut stream = stream?;
        // One that waits for another seeder says all the time that it is alive.
        match stream.next().await {
            Some(Ok(Frame::Header { digest: named, geometry, seeder: peer })) if named == *digest => {
                Ok(Feed { server: seeder.clone(), geometry, seeder: peer, stream })
            }
            Some(Ok(Frame::Failed(reason))) => Err(Failure::Failed(format!("seeder {seeder}: {reason}"))),
            Some(Ok(_)) => Err(Failure::Failed(format!("seeder {seeder}: the metainfo does not begin with this blob"))),
            Some(Err(error)) => Err(error.into()),
            None => Err(Failure::Failed(format!("seeder {seeder}: the metainfo ended at once"))),
        }
    };
    let longest = deadline * LONGEST_WAIT;
    let result = timeout(longest, open).await;
    let result =
        result.unwrap_or_else(|_| Err(Failure::Failed(format!("seeder {seeder}: it has had nothing for {longest:?}"))));
    if let Err(Failure::Failed(reason)) = &result {
        tracing::debug!(digest = %digest, reason, "no metainfo from a seeder");
    }
    result
}

/// Asks a server for the content from byte `start` on.
pub(crate) async fn content(
    context: &Context,
    request: &BlobRequest,
    server: &Server,
    start: u64,
) -> Result<Content, Failure> {
    let BlobRequest { digest, registry, repository, caller } = request;
    let deadline = first_answer(context);
    let open = async {
        let body = match server {
            Server::Seeder(url) => {
                context.seeders.blob(url, *digest, registry, repository, start, caller).await.map_err(Failure::from)?
            }
            Server::Origin => {
                let registry = context.registries.get(registry);
                registry.blob(repository, *digest, start, caller).await.map_err(Failure::from)?
            }
        };
        Ok(Content { server: server.clone(), size: body.size, start: body.start, body: body.body })
    };
    timeout(deadline, open)
        .await
        .unwrap_or_else(|_| Err(Failure::Failed(format!("{server}: no answer within {deadline:?}"))))
}

fn first_answer(context: &Context) -> Duration {
    context.settings.stall_timeout * FIRST_ANSWER
}
