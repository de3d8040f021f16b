//! What a tracker says of its cluster, as far as a screen can hold it.

use std::time::Duration;

use anyhow::Result;
use eagle_core::Digest;
use eagle_tracker::api::{
    OVERVIEW_PATH, Overview, PEERS_PATH, PeerSummary, PeersPage, SWARMS_PATH, SwarmPage, TOPOLOGY_PATH, TopologyPage,
};
use http::Method;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    api_client::ApiClient,
    cli::TopArgs,
    cluster::{Cluster as Membership, ClusterConfig},
    exit::Exit,
};

/// How long the tracker may take for a page. Longer than it needs and short enough for somebody who watches.
const DEADLINE: Duration = Duration::from_secs(5);
/// Entries of a page: as many as a tracker gives.
const PAGE: usize = 1_000;
/// Pages of nodes that are asked for: who looks at more has [`PeersPage`] for it, and the tracker has other work.
const NODE_PAGES: usize = 5;

/// A tracker that is asked.
#[derive(Debug, Clone)]
pub(super) struct Source {
    client: ApiClient,
    /// Its address, for the head of the screen.
    pub(super) address: String,
}

/// What is shown of a cluster.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Cluster {
    /// The whole, and the swarms that changed last.
    pub(super) overview: Overview,
    /// The first nodes by their identities.
    pub(super) nodes: Vec<PeerSummary>,
    /// Zones, and what goes between them.
    pub(super) topology: TopologyPage,
}

impl Source {
    /// The tracker that the arguments name, asked as a member if there is a key.
    ///
    /// # Errors
    /// When the address or key makes no sense.
    pub(super) async fn new(args: &TopArgs) -> Result<Self> {
        let membership = ClusterConfig::of_command(args.cluster_key_file.clone());
        let cluster =
            Membership::start(&membership).await.map_err(|error| Exit::usage(format!("cluster key: {error}")))?;
        let client = ApiClient::new("--tracker", &args.tracker, None, DEADLINE)?.member(cluster.members());
        Ok(Self { client, address: args.tracker.clone() })
    }

    /// The cluster now.
    ///
    /// # Errors
    /// When the tracker does not answer as one.
    pub(super) async fn cluster(&self) -> Result<Cluster> {
        let (overview, nodes, topology) = tokio::try_join!(
            self.get(OVERVIEW_PATH.to_owned()),
            self.nodes(),
            self.get(format!("{TOPOLOGY_PATH}?limit={PAGE}"))
        )?;
        Ok(Cluster { overview, nodes, topology })
    }

    /// A swarm with the first of its members.
    ///
    /// # Errors
    /// As [`Source::cluster`]; when nobody announces the blob any more.
    pub(super) async fn swarm(&self, digest: Digest) -> Result<SwarmPage> {
        self.get(format!("{SWARMS_PATH}/{digest}?limit={PAGE}")).await
    }

    async fn nodes(&self) -> Result<Vec<PeerSummary>> {
        let mut nodes: Vec<PeerSummary> = Vec::new();
        for _ in 0..NODE_PAGES {
            // Of letters and digits, as the tracker takes no others.
            let after = nodes.last().map(|node| format!("&after={}", node.peer.id)).unwrap_or_default();
            let page: PeersPage = self.get(format!("{PEERS_PATH}?limit={PAGE}{after}")).await?;
            nodes.extend(page.peers.into_iter().take(PAGE));
            if page.next.is_none() {
                break;
            }
        }
        Ok(nodes)
    }

    async fn get<T: DeserializeOwned>(&self, path: String) -> Result<T> {
        self.client.send(Method::GET, &path, None::<&()>).await
    }
}
