//! What a tracker knows: the nodes of the cluster, and the swarms of blobs.

use std::time::Duration;

use anyhow::{Result, ensure};
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use eagle_core::{NodeRole, Topology};
use eagle_tracker::api::{PEERS_PATH, PeerSummary, PeersPage, SWARMS_PATH, SwarmSummary, SwarmsPage};
use http::Method;
use serde::Serialize;
use url::form_urlencoded;

use crate::{
    api_client::ApiClient,
    cli::StatusArgs,
    cluster::{Cluster, ClusterConfig},
    exit::Exit,
};

/// How long the tracker may take for a page; it only looks into its memory.
const DEADLINE: Duration = Duration::from_secs(15);
/// Entries of a page: as many as a tracker gives.
const PAGE: usize = 1000;
/// Most pages of a list: ten times what a tracker keeps by default.
const MAX_PAGES: usize = 1000;

/// All that the tracker says.
#[derive(Debug, Serialize)]
struct Known {
    peers: Vec<PeerSummary>,
    swarms: Vec<SwarmSummary>,
}

/// Asks a tracker, as a member if there is a key, and prints what it knows.
///
/// # Errors
/// When the address or key makes no sense, or the tracker does not answer this node.
pub(super) async fn run(address: &str, args: &StatusArgs) -> Result<()> {
    let membership = ClusterConfig::of_command(args.cluster_key_file.clone());
    let cluster = Cluster::start(&membership).await.map_err(|error| Exit::usage(format!("cluster key: {error}")))?;
    let client = ApiClient::new("--tracker", address, None, DEADLINE)?.member(cluster.members());
    let known = Known { peers: peers(&client).await?, swarms: swarms(&client).await? };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&known)?);
    } else {
        println!("{}\n\n{}", peer_table(&known.peers), swarm_table(&known.swarms));
    }
    Ok(())
}

async fn peers(client: &ApiClient) -> Result<Vec<PeerSummary>> {
    let (mut all, mut after) = (Vec::new(), None);
    for _ in 0..MAX_PAGES {
        let page: PeersPage = client.send(Method::GET, &path(PEERS_PATH, after.as_deref()), None::<&()>).await?;
        all.extend(page.peers);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    ensure!(after.is_none(), "the tracker's list of peers does not end");
    Ok(all)
}

async fn swarms(client: &ApiClient) -> Result<Vec<SwarmSummary>> {
    let (mut all, mut after) = (Vec::new(), None);
    for _ in 0..MAX_PAGES {
        let page: SwarmsPage = client.send(Method::GET, &path(SWARMS_PATH, after.as_deref()), None::<&()>).await?;
        all.extend(page.swarms);
        after = page.next.map(|digest| digest.to_string());
        if after.is_none() {
            break;
        }
    }
    ensure!(after.is_none(), "the tracker's list of swarms does not end");
    Ok(all)
}

/// Path of the page that comes after an entry.
fn path(list: &str, after: Option<&str>) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("limit", &PAGE.to_string());
    if let Some(after) = after {
        query.append_pair("after", after);
    }
    format!("{list}?{}", query.finish())
}

fn peer_table(peers: &[PeerSummary]) -> String {
    let rows = peers.iter().map(|summary| {
        let role = match summary.peer.role {
            NodeRole::Seeder => "seeder",
            NodeRole::Proxy => "proxy",
        };
        [
            summary.peer.id.clone(),
            role.to_owned(),
            summary.peer.address.to_string(),
            place(&summary.peer.topology),
            summary.blobs.to_string(),
            format!("{:.0} s ago", summary.last_announce_seconds),
        ]
    });
    table(["PEER", "ROLE", "ADDRESS", "PLACE", "BLOBS", "ANNOUNCED"], rows, &[4, 5])
}

fn swarm_table(swarms: &[SwarmSummary]) -> String {
    let rows = swarms.iter().map(|swarm| {
        let numbers = [u64::from(swarm.pieces), swarm.peers as u64, swarm.seeders as u64, swarm.complete as u64];
        let [pieces, peers, seeders, complete] = numbers.map(|number| number.to_string());
        [swarm.digest.to_string(), swarm.geometry.size().to_string(), pieces, peers, seeders, complete]
    });
    table(["BLOB", "BYTES", "PIECES", "PEERS", "SEEDERS", "COMPLETE"], rows, &[1, 2, 3, 4, 5])
}

fn table<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>, numbers: &[usize]) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(head);
    table.add_rows(rows);
    for column in numbers {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

/// Region, zone and rack, as far as they are known.
fn place(topology: &Topology) -> String {
    let labels = [&topology.region, &topology.zone, &topology.rack].into_iter().flatten();
    let labels: Vec<&str> = labels.map(String::as_str).collect();
    if labels.is_empty() { "-".to_owned() } else { labels.join("/") }
}

#[cfg(test)]
mod tests {
    use eagle_core::{Digest, Geometry, PeerInfo};
    use eagle_tracker::api::{NodeActivity, PeerAt};

    use super::*;

    #[test]
    fn lists_read_like_a_page() {
        let peer = PeerSummary {
            peer: PeerAt::from(&PeerInfo::example()),
            blobs: 3,
            age_seconds: 9.0,
            last_announce_seconds: 2.4,
            activity: NodeActivity::default(),
        };
        let text = peer_table(std::slice::from_ref(&peer));
        assert!(
            text.trim_start().starts_with("PEER") && text.contains(&peer.peer.id) && text.contains("2 s ago"),
            "{text}"
        );
        let swarm = SwarmSummary {
            digest: Digest::of(b"a"),
            geometry: Geometry::new(200_000, 1 << 16).unwrap(),
            pieces: 4,
            peers: 3,
            seeders: 1,
            complete: 2,
            progress: 0.75,
            age_seconds: 1.0,
            changed_seconds: 1.0,
            bytes_per_second: 0,
        };
        let text = swarm_table(&[swarm]);
        assert!(text.lines().nth(1).unwrap().ends_with("200000       4      3        1         2"), "{text}");
    }

    #[test]
    fn the_next_page_is_asked_for() {
        assert_eq!(path("/v1/swarms", None), "/v1/swarms?limit=1000");
        assert_eq!(path("/v1/swarms", Some("sha256:ab")), "/v1/swarms?limit=1000&after=sha256%3Aab");
    }
}
