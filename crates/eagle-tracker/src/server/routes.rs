//! Paths, methods, parameters.

use std::{convert::Infallible, net::IpAddr, str::FromStr, sync::Arc};

use eagle_cluster::Who;
use eagle_core::{Digest, NodeId};
use http::{Method, Request};
use hyper::body::Incoming;
use tokio::time::Instant;
use url::form_urlencoded;

use super::{
    Shared,
    announce::Answer,
    dashboard,
    reply::{Reply, RequestError, encoded, json},
    seeders,
};
use crate::{
    api::{
        ANNOUNCE_PATH, OVERVIEW_PATH, PEERS_PATH, PeerPage, PeersPage, SWARMS_PATH, SwarmPage, SwarmsPage,
        TOPOLOGY_PATH, TopologyPage,
        seeders::{LEASES_PATH, RELEASE_PATH, SEEDERS_PATH},
    },
    encoding::Encoding,
};

/// Entries of a page when the request does not say, and the most it may ask for.
const PAGE: (usize, usize) = (100, 1_000);
/// Bodies from this size on, bytes, are parsed off the async threads: below, it takes under a millisecond.
const PARSE_ASIDE: usize = 128 << 10;

/// Answers any request.
pub(super) async fn handle(
    shared: &Arc<Shared>,
    request: Request<Incoming>,
    source: IpAddr,
    who: Who,
) -> Result<Reply, Infallible> {
    if who == Who::Stranger {
        return Ok(RequestError::Stranger.reply());
    }
    Ok(route(shared, request, source).await.unwrap_or_else(|error| error.reply()))
}

async fn route(shared: &Arc<Shared>, request: Request<Incoming>, source: IpAddr) -> Result<Reply, RequestError> {
    match request.uri().path() {
        ANNOUNCE_PATH => {
            allow(&request, Method::POST)?;
            shared.metrics.announces.inc();
            let reply = announce(shared, request, source).await;
            if reply.is_err() {
                shared.metrics.announce_errors.inc();
            }
            reply
        }
        SEEDERS_PATH => match *request.method() {
            Method::POST => seeders::heartbeat(shared, request, source).await,
            Method::GET | Method::HEAD => Ok(seeders::list(shared).await),
            _ => Err(RequestError::GetOrPost),
        },
        LEASES_PATH => {
            allow(&request, Method::POST)?;
            seeders::claim(shared, request, source).await
        }
        RELEASE_PATH => {
            allow(&request, Method::POST)?;
            seeders::release(shared, request, source).await
        }
        path => read(shared, request.method(), path, request.uri().query().unwrap_or_default()).await,
    }
}

/// Answers a request that changes nothing and has no body: the lists, and the pages for people.
pub(super) async fn read(shared: &Shared, method: &Method, path: &str, query: &str) -> Result<Reply, RequestError> {
    let below = |parent: &str| path.strip_prefix(parent)?.strip_prefix('/').filter(|rest| !rest.contains('/'));
    let answer = async {
        match path {
            SWARMS_PATH => swarms(shared, query).await,
            PEERS_PATH => peers(shared, &Paging::parse(query)?).await,
            OVERVIEW_PATH => Ok(json(&*shared.overview().await)),
            TOPOLOGY_PATH => topology(shared, query).await,
            _ => {
                if let Some(asset) = dashboard::asset(path) {
                    return Ok(asset);
                }
                if let Some(digest) = below(SWARMS_PATH) {
                    return swarm(shared, parse("digest", &decoded(digest))?, query).await;
                }
                let node = below(PEERS_PATH).ok_or(RequestError::NoSuchPath)?;
                peer(shared, &parse("node", &decoded(node))?, &Paging::parse(query)?).await
            }
        }
    };
    if *method != Method::GET && *method != Method::HEAD {
        let known = [SWARMS_PATH, PEERS_PATH, OVERVIEW_PATH, TOPOLOGY_PATH].contains(&path)
            || dashboard::asset(path).is_some()
            || below(SWARMS_PATH).or_else(|| below(PEERS_PATH)).is_some();
        return Err(if known { RequestError::Method(Method::GET) } else { RequestError::NoSuchPath });
    }
    answer.await
}

async fn announce(shared: &Arc<Shared>, request: Request<Incoming>, source: IpAddr) -> Result<Reply, RequestError> {
    let encoding = Encoding::of_body(request.headers()).ok_or(RequestError::MediaType)?;
    let accepted = Encoding::accepted(request.headers(), encoding);
    let body = shared.bodies.read(source, request.into_body()).await?;
    let started = Instant::now();
    let parse = move |bytes: &[u8]| {
        encoding
            .decode_request(bytes)
            .map_err(|error| RequestError::Bad(format!("the body is not an announce: {error}")))
    };
    let announce = if body.bytes.len() < PARSE_ASIDE {
        parse(&body.bytes)?
    } else {
        // The share stays with this announce until it is answered, which may be later.
        let bytes = body.bytes.clone();
        let parsed = tokio::task::spawn_blocking(move || parse(&bytes)).await;
        parsed.map_err(|error| RequestError::Internal(error.to_string()))??
    };
    let held = shared.pace.turn(&announce.node.id).await?;
    shared.metrics.held(held);
    let Answer { response, peers } = shared.announce(announce, source).await?;
    let reply = encoded(response, &peers, accepted);
    // What a node is made to wait is no work.
    shared.metrics.announce_duration.observe((started.elapsed() - held).as_secs_f64());
    shared.metrics.set_sizes(shared.store.stats());
    Ok(reply)
}

async fn swarms(shared: &Shared, query: &str) -> Result<Reply, RequestError> {
    let paging = Paging::parse(query)?;
    let after = paging.after.as_deref().map(|after| parse("after", after)).transpose()?;
    let mut swarms = shared.store.swarms(after, paging.limit + 1, shared.now()).await;
    let next = paging.cut(&mut swarms, |swarm| swarm.digest);
    let rates = shared.rates().await;
    swarms.iter_mut().for_each(|swarm| swarm.bytes_per_second = rates.of_blob(&swarm.digest));
    Ok(json(&SwarmsPage { swarms, next }))
}

async fn swarm(shared: &Shared, digest: Digest, query: &str) -> Result<Reply, RequestError> {
    let (with_pieces, paging) = Paging::with_pieces(query)?;
    let after = paging.node()?;
    let found = shared.store.swarm(digest, after.as_ref().map(NodeId::as_str), paging.limit + 1, shared.now()).await;
    let (mut summary, mut members) = found.ok_or(RequestError::NoSuchSwarm(digest))?;
    if !with_pieces {
        members.iter_mut().for_each(|member| member.owned = None);
    }
    let next = paging.cut(&mut members, |member| member.peer.id.clone());
    summary.bytes_per_second = shared.rates().await.of_blob(&digest);
    for member in &mut members {
        member.senders = shared.reports.senders(shared.now(), &member.peer.id, &digest);
    }
    Ok(json(&SwarmPage { summary, members, next }))
}

async fn peer(shared: &Shared, node: &NodeId, paging: &Paging) -> Result<Reply, RequestError> {
    let after = paging.after.as_deref().map(|after| parse("after", after)).transpose()?;
    let found = shared.store.node(node, after, paging.limit + 1, shared.now()).await;
    let (mut summary, mut owns) = found.ok_or_else(|| RequestError::NoSuchPeer(node.clone()))?;
    let next = paging.cut(&mut owns, |blob| blob.digest);
    let rates = shared.rates().await;
    summary.activity = shared.reports.activity(shared.now(), node.as_str(), &rates);
    Ok(json(&PeerPage { summary, owns, next }))
}

async fn peers(shared: &Shared, paging: &Paging) -> Result<Reply, RequestError> {
    let after = paging.node()?;
    let mut peers = shared.store.nodes(after.as_ref().map(NodeId::as_str), paging.limit + 1, shared.now()).await;
    let next = paging.cut(&mut peers, |summary| summary.peer.id.clone());
    let rates = shared.rates().await;
    for peer in &mut peers {
        peer.activity = shared.reports.activity(shared.now(), &peer.peer.id, &rates);
    }
    Ok(json(&PeersPage { peers, next }))
}

/// Zones and a page of what goes between them, which is in the order of how fast it is.
async fn topology(shared: &Shared, query: &str) -> Result<Reply, RequestError> {
    let paging = Paging::parse(query)?;
    let after: usize = paging.after.as_deref().map(|after| parse("after", after)).transpose()?.unwrap_or(0);
    let (zones, rates) = (shared.zones().await, shared.rates().await);
    let flows: Vec<_> = rates.flows.iter().skip(after).take(paging.limit).cloned().collect();
    let shown = after.saturating_add(flows.len());
    let zones = if after == 0 { zones.to_vec() } else { Vec::new() };
    Ok(json(&TopologyPage { zones, flows, next: (shown < rates.flows.len()).then_some(shown) }))
}

/// Which page of a list is asked for.
struct Paging {
    after: Option<String>,
    limit: usize,
}

impl Paging {
    fn parse(query: &str) -> Result<Self, RequestError> {
        match Self::with_pieces(query)? {
            (false, paging) => Ok(paging),
            (true, _) => Err(RequestError::Bad("this path takes the parameters limit and after only".to_owned())),
        }
    }

    /// The same of a path that has `pieces=true` too.
    fn with_pieces(query: &str) -> Result<(bool, Self), RequestError> {
        let (usual, most) = PAGE;
        let mut paging = Self { after: None, limit: usual };
        let mut with_pieces = false;
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*key {
                "after" => paging.after = Some(value.into_owned()),
                "limit" => match value.parse() {
                    Ok(limit) if (1..=most).contains(&limit) => paging.limit = limit,
                    _ => return Err(RequestError::Bad(format!("limit must be a number from 1 to {most}"))),
                },
                "pieces" => match &*value {
                    "true" => with_pieces = true,
                    "false" => with_pieces = false,
                    _ => return Err(RequestError::Bad("pieces must be true or false".to_owned())),
                },
                _ => return Err(RequestError::Bad("this path takes the parameters limit and after only".to_owned())),
            }
        }
        Ok((with_pieces, paging))
    }

    fn node(&self) -> Result<Option<NodeId>, RequestError> {
        self.after.as_deref().map(|after| parse("after", after)).transpose()
    }

    /// Takes away the entry that only tells that there is another page; gives where that begins.
    fn cut<T, K>(&self, entries: &mut Vec<T>, key: impl Fn(&T) -> K) -> Option<K> {
        if entries.len() <= self.limit {
            return None;
        }
        entries.truncate(self.limit);
        entries.last().map(key)
    }
}

/// Where a page begins and how many entries it has at most, by the query of a request.
pub(crate) fn page(query: &str) -> Result<(Option<String>, usize), String> {
    Paging::parse(query).map(|paging| (paging.after, paging.limit)).map_err(|error| error.to_string())
}

/// The same of a list that shows pieces where it is asked to.
pub(crate) fn pieces_page(query: &str) -> Result<(bool, Option<String>, usize), String> {
    let page = Paging::with_pieces(query).map_err(|error| error.to_string())?;
    Ok((page.0, page.1.after, page.1.limit))
}

/// What the last part of a path names.
pub(crate) fn named<T: FromStr<Err: std::fmt::Display>>(part: &str) -> Result<T, String> {
    parse("name", &decoded(part)).map_err(|error| error.to_string())
}

/// The last part of a path: clients may write the colon of a digest as `%3A`.
fn decoded(part: &str) -> String {
    percent_encoding::percent_decode_str(part).decode_utf8_lossy().into_owned()
}

fn parse<T: FromStr<Err: std::fmt::Display>>(what: &str, text: &str) -> Result<T, RequestError> {
    text.parse().map_err(|error| RequestError::Bad(format!("{what}: {error}")))
}

fn allow(request: &Request<Incoming>, method: Method) -> Result<(), RequestError> {
    let head = method == Method::GET && request.method() == Method::HEAD;
    if *request.method() == method || head { Ok(()) } else { Err(RequestError::Method(method)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_bounded() {
        assert_eq!(Paging::parse("").map(|p| (p.after, p.limit)).ok(), Some((None, 100)));
        let page = Paging::parse("limit=2&after=sha256%3Aab").unwrap();
        assert_eq!((page.after.as_deref(), page.limit), (Some("sha256:ab"), 2));
        for bad in ["limit=0", "limit=1001", "limit=-1", "limit=x", "page=3", "pieces=true"] {
            assert!(Paging::parse(bad).is_err(), "{bad}");
        }
        assert!(Paging::with_pieces("pieces=true&limit=2").is_ok_and(|(with_pieces, _)| with_pieces));
        assert!(Paging::with_pieces("pieces=yes").is_err());
        let mut entries = vec![1, 2, 3];
        assert_eq!(page.cut(&mut entries, |e| *e), Some(2));
        assert_eq!((page.cut(&mut entries, |e| *e), entries.len()), (None, 2));
    }
}
