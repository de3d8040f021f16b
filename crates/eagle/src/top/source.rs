//! What trackers say of their cluster, as far as a screen can hold it.

use std::time::Duration;

use anyhow::{Context as _, Result};
use eagle_core::{Digest, NodeRole};
use eagle_tracker::api::{
    OVERVIEW_PATH, Overview, PEERS_PATH, PeerSummary, PeersPage, SWARMS_PATH, SwarmPage, TOPOLOGY_PATH, TopologyPage,
};
use http::{Method, StatusCode};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    api_client::{ApiClient, Refused},
    cli::TopArgs,
    trackers::{Asked, Trackers, merge},
};

/// The tracker on this machine, by its admin address.
const DEFAULT: &str = "http://127.0.0.1:6970";
/// How long a tracker may take for a page: longer than it needs, and short enough for somebody who watches, who is shown what the other
/// trackers say no sooner.
const DEADLINE: Duration = Duration::from_secs(3);
/// Entries of a page: as many as a tracker gives.
const PAGE: usize = 1_000;
/// Pages of nodes that are asked for: who looks at more has [`PeersPage`] for it, and the tracker has other work.
const NODE_PAGES: usize = 5;

/// The trackers that are asked.
#[derive(Debug, Clone)]
pub(super) struct Source(Trackers);

/// What is shown of a cluster.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Cluster {
    /// Whom this is from, and who did not answer.
    pub(super) trackers: Vec<Asked>,
    /// The whole, and the swarms that changed last.
    pub(super) overview: Overview,
    /// The first nodes by their identities.
    pub(super) nodes: Vec<PeerSummary>,
    /// Zones, and what goes between them.
    pub(super) topology: TopologyPage,
}

impl Source {
    /// The trackers that the arguments name, asked as a member if there is a key.
    ///
    /// # Errors
    /// When addresses, configuration or key make no sense.
    pub(super) async fn new(args: &TopArgs) -> Result<Self> {
        Ok(Self(Trackers::new(&args.trackers, Some(DEFAULT), DEADLINE).await?))
    }

    /// The cluster now.
    ///
    /// # Errors
    /// When no tracker answers as one.
    pub(super) async fn cluster(&self) -> Result<Cluster> {
        let (said, trackers) = self.0.ask(known_to).await?;
        let (mut overviews, mut nodes, mut topologies) = (Vec::new(), Vec::new(), Vec::new());
        for (overview, some_nodes, topology) in said {
            overviews.push(overview);
            nodes.push(some_nodes);
            topologies.push(topology);
        }
        let mut nodes = merge::nodes(nodes, merge::are_apart(&overviews));
        nodes.truncate(NODE_PAGES * PAGE);
        let mut overview = merge::overview(overviews);
        overview.peers = overview.peers.max(nodes.len());
        let seeders = nodes.iter().filter(|node| node.peer.role == NodeRole::Seeder).count();
        overview.seeders = overview.seeders.max(seeders);
        overview.entries = overview.entries.max(nodes.iter().map(|node| node.blobs).sum());
        Ok(Cluster { trackers, overview, nodes, topology: merge::topology(topologies) })
    }

    /// A swarm with the first of its members.
    ///
    /// # Errors
    /// As [`Source::cluster`]; when nobody announces the blob any more.
    pub(super) async fn swarm(&self, digest: Digest) -> Result<SwarmPage> {
        let path = format!("{SWARMS_PATH}/{digest}?limit={PAGE}");
        let known = |tracker: ApiClient| {
            let path = path.as_str();
            async move {
                match get(&tracker, path).await {
                    Ok(page) => Ok(Some(page)),
                    Err(error) if is_unknown(&error) => Ok(None),
                    Err(error) => Err(error),
                }
            }
        };
        let (said, _) = self.0.ask(known).await?;
        merge::swarm(said).with_context(|| format!("nobody announces {digest} any more"))
    }
}

async fn known_to(tracker: ApiClient) -> Result<(Overview, Vec<PeerSummary>, TopologyPage)> {
    let flows = format!("{TOPOLOGY_PATH}?limit={PAGE}");
    tokio::try_join!(get(&tracker, OVERVIEW_PATH), nodes(&tracker), get(&tracker, &flows))
}

async fn nodes(tracker: &ApiClient) -> Result<Vec<PeerSummary>> {
    let mut nodes: Vec<PeerSummary> = Vec::new();
    for _ in 0..NODE_PAGES {
        // Of letters and digits, as the tracker takes no others.
        let after = nodes.last().map(|node| format!("&after={}", node.peer.id)).unwrap_or_default();
        let page: PeersPage = get(tracker, &format!("{PEERS_PATH}?limit={PAGE}{after}")).await?;
        nodes.extend(page.peers.into_iter().take(PAGE));
        if page.next.is_none() {
            break;
        }
    }
    Ok(nodes)
}

async fn get<T: DeserializeOwned>(tracker: &ApiClient, path: &str) -> Result<T> {
    tracker.send(Method::GET, path, None::<&()>).await
}

/// Whether a tracker says that it does not know what it was asked for.
fn is_unknown(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Refused>().is_some_and(|refused| refused.status == StatusCode::NOT_FOUND)
}
