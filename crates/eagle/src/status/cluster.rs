//! What trackers know: the nodes of the cluster, and the swarms of blobs.

use std::time::Duration;

use anyhow::{Result, ensure};
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use eagle_core::NodeRole;
use eagle_tracker::api::{
    OVERVIEW_PATH, Overview, PEERS_PATH, PeerSummary, PeersPage, SWARMS_PATH, SwarmSummary, SwarmsPage,
};
use http::Method;
use serde::Serialize;
use url::form_urlencoded;

use crate::{
    api_client::ApiClient,
    cli::StatusArgs,
    text::{clean, place},
    trackers::{Asked, Trackers, at_a_glance, merge, silent},
};

/// How long a tracker may take for a page; it only looks into its memory.
const DEADLINE: Duration = Duration::from_secs(15);
/// Entries of a page: as many as a tracker gives.
const PAGE: usize = 1000;
/// Most pages of a list: as many blobs as a tracker keeps by default.
const MAX_PAGES: usize = 1000;

/// All that trackers say.
#[derive(Debug, Serialize)]
struct Known {
    trackers: Vec<Asked>,
    overview: Overview,
    peers: Vec<PeerSummary>,
    swarms: Vec<SwarmSummary>,
}

/// What one tracker says.
type Said = (Overview, Vec<PeerSummary>, Vec<SwarmSummary>);

/// Asks trackers, as a member if there is a key, and prints what they know.
///
/// # Errors
/// When addresses, configuration or key make no sense, or no tracker answers this node.
pub(super) async fn run(args: &StatusArgs) -> Result<()> {
    let trackers = Trackers::new(&args.trackers, None, DEADLINE).await?;
    let (said, asked) = trackers.ask(known_to).await?;
    let known = Known::new(said, asked);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&known)?);
    } else {
        print!("{}", known.page());
    }
    Ok(())
}

impl Known {
    fn new(said: Vec<Said>, trackers: Vec<Asked>) -> Self {
        let (mut overviews, mut peers, mut swarms) = (Vec::new(), Vec::new(), Vec::new());
        for (overview, some_peers, some_swarms) in said {
            overviews.push(overview);
            peers.push(some_peers);
            swarms.push(some_swarms);
        }
        let peers = merge::nodes(peers, merge::are_apart(&overviews));
        let swarms = merge::swarms(swarms);
        let mut overview = merge::overview(overviews);
        // All of them are here to be counted.
        (overview.peers, overview.blobs) = (peers.len(), swarms.len());
        overview.seeders = peers.iter().filter(|node| node.peer.role == NodeRole::Seeder).count();
        overview.entries = swarms.iter().map(|swarm| swarm.peers).sum();
        Self { trackers, overview, peers, swarms }
    }

    fn page(&self) -> String {
        let (nobody, glance) = (silent(&self.trackers), at_a_glance(&self.overview));
        format!("{nobody}{glance}\n\n{}\n\n{}\n", peer_table(&self.peers), swarm_table(&self.swarms))
    }
}

async fn known_to(tracker: ApiClient) -> Result<Said> {
    let overview = tracker.send(Method::GET, OVERVIEW_PATH, None::<&()>).await?;
    Ok((overview, peers(&tracker).await?, swarms(&tracker).await?))
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
        let topology = &summary.peer.topology;
        let role = match summary.peer.role {
            NodeRole::Seeder => "seeder",
            NodeRole::Proxy => "proxy",
        };
        [
            clean(&summary.peer.id),
            role.to_owned(),
            summary.peer.address.to_string(),
            place([&topology.region, &topology.zone, &topology.rack].map(Option::as_ref)),
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

#[cfg(test)]
mod tests {
    use eagle_core::{Digest, Geometry, PeerInfo};
    use eagle_tracker::api::{NodeActivity, PeerAt, StoreStatus};

    use super::*;

    fn peer() -> PeerSummary {
        PeerSummary {
            peer: PeerAt::from(&PeerInfo::example()),
            blobs: 3,
            age_seconds: 9.0,
            last_announce_seconds: 2.4,
            activity: NodeActivity::default(),
        }
    }

    fn swarm(name: &str, peers: usize) -> SwarmSummary {
        SwarmSummary {
            digest: Digest::of(name.as_bytes()),
            geometry: Geometry::new(200_000, 1 << 16).unwrap(),
            pieces: 4,
            peers,
            seeders: 1,
            complete: 2,
            progress: 0.75,
            age_seconds: 1.0,
            changed_seconds: 1.0,
            bytes_per_second: 0,
        }
    }

    fn overview(peers: usize, blobs: usize) -> Overview {
        Overview {
            version: "1".to_owned(),
            uptime_seconds: 5.0,
            peers,
            seeders: 0,
            blobs,
            entries: blobs,
            announces_per_second: 1.0,
            bytes_per_second: 0,
            store: StoreStatus { kind: "memory".to_owned(), away: false },
            active: Vec::new(),
        }
    }

    #[test]
    fn lists_read_like_a_page() {
        let said = vec![
            (overview(1, 2), vec![peer()], vec![swarm("a", 3), swarm("b", 1)]),
            (overview(1, 2), vec![peer()], vec![swarm("b", 2), swarm("c", 1)]),
        ];
        let silent = Asked { address: "http://c:6969".to_owned(), problem: Some("gone".to_owned()) };
        let known = Known::new(said, vec![silent]);
        let page = known.page();
        let lines: Vec<&str> = page.lines().map(str::trim_end).collect();
        assert_eq!(lines[0], "no answer from http://c:6969: gone");
        assert_eq!(lines[1], "1 nodes (0 seeders), 3 blobs, - moving, 2.0 announces/s");
        assert!(lines[3].trim_start().starts_with("PEER"), "{page}");
        assert!(lines[4].contains(&peer().peer.id) && lines[4].ends_with("6    2 s ago"), "{page}");
        assert!(lines[6].trim_start().starts_with("BLOB") && lines.len() == 10, "{page}");
        let mut rows = known.swarms.iter().zip(&lines[7..]);
        assert!(rows.all(|(swarm, row)| row.contains(&swarm.digest.to_string())), "{page}");
        let row = known.swarms.iter().position(|swarm| swarm.digest == Digest::of(b"b")).unwrap();
        assert!(lines[7 + row].ends_with("200000       4      2        1         2"), "{page}");
        assert_eq!(known.overview.entries, 6);
    }

    #[test]
    fn the_next_page_is_asked_for() {
        assert_eq!(path("/v1/swarms", None), "/v1/swarms?limit=1000");
        assert_eq!(path("/v1/swarms", Some("sha256:ab")), "/v1/swarms?limit=1000&after=sha256%3Aab");
    }
}
