//! What is shown of the cluster, and what keys do to that. No terminal and no network.

use std::cmp::Reverse;

use eagle_core::{Digest, NodeRole};
use eagle_tracker::api::{PeerSummary, SwarmMember, SwarmPage, SwarmSummary, ZoneFlow};
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::{
    list::{Column, List},
    source::Cluster,
};
use crate::text::{bar, bytes, clean, percent, place, rate, short, time, zone};

/// The views that Tab goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tab {
    Swarms,
    Nodes,
    Flows,
}

impl Tab {
    pub(super) const ALL: [Self; 3] = [Self::Swarms, Self::Nodes, Self::Flows];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Swarms => "Swarms",
            Self::Nodes => "Nodes",
            Self::Flows => "Flows",
        }
    }

    /// What its rows can be sorted by; the first at the start.
    const fn orders(self) -> &'static [&'static str] {
        match self {
            Self::Swarms => &["rate", "change", "progress", "size", "nodes"],
            Self::Nodes => &["in", "out", "queue", "blobs", "name"],
            Self::Flows => &["rate", "bytes", "name"],
        }
    }
}

/// What is to be done after a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// Draw.
    Draw,
    /// Ask the trackers at once, for there is something else to show.
    Ask,
    /// Leave.
    Quit,
}

/// What is on the screen.
#[derive(Debug)]
pub(super) struct Screen {
    pub(super) cluster: Cluster,
    pub(super) tab: Tab,
    /// The swarm that is looked into, and what is known of it.
    pub(super) open: Option<(Digest, Option<SwarmPage>)>,
    /// Why what is shown is not up to date.
    pub(super) problem: Option<String>,
    /// Which order each view has.
    orders: [usize; 3],
    /// The row that is chosen in each view, and in the swarm.
    chosen: [usize; 4],
    /// Rows that fit at the last drawing.
    pub(super) page: usize,
}

const BLOB: Column = Column::text("BLOB", 12, 0);
const BAR: usize = 10;
const SWARMS: &[Column] = &[
    BLOB.growing(),
    Column::number("SIZE", 9, 3),
    Column::number("NODES", 6, 2),
    Column::number("SEEDERS", 7, 5),
    Column::number("WHOLE", 6, 4),
    Column::text("PROGRESS", BAR + 6, 1),
    Column::number("RATE", 11, 0),
    Column::number("CHANGED", 7, 6),
];
const NODES: &[Column] = &[
    Column::text("NODE", 14, 0).growing(),
    Column::text("ROLE", 6, 5),
    Column::text("PLACE", 12, 2).growing(),
    Column::text("ADDRESS", 21, 8),
    Column::number("BLOBS", 6, 6),
    Column::number("IN", 11, 0),
    Column::number("OUT", 11, 1),
    Column::number("QUEUE", 5, 3),
    Column::number("SLOTS", 5, 7),
    Column::number("SEEN", 6, 4),
];
const FLOWS: &[Column] = &[
    Column::text("FROM", 10, 0).growing(),
    Column::text("TO", 10, 0).growing(),
    Column::number("RATE", 11, 0),
    Column::text("SHARE", BAR + 6, 1),
    Column::number("A TRANSFER", 11, 2),
    Column::number("IN ALL", 9, 3),
];
const MEMBERS: &[Column] = &[
    Column::text("NODE", 14, 0),
    Column::text("ROLE", 6, 4),
    Column::text("PLACE", 10, 3),
    Column::text("PROGRESS", BAR + 6, 1),
    Column::number("RATE", 11, 0),
    Column::text("GETS MOST FROM", 28, 2).growing(),
];

impl Screen {
    pub(super) fn new(cluster: Cluster) -> Self {
        Self { cluster, tab: Tab::Swarms, open: None, problem: None, orders: [0; 3], chosen: [0; 4], page: 1 }
    }

    /// What the trackers said, or why none of them did.
    pub(super) fn update(&mut self, said: anyhow::Result<(Cluster, Option<SwarmPage>)>) {
        match said {
            Ok((cluster, swarm)) => {
                self.cluster = cluster;
                self.problem = None;
                // Another one may have been opened meanwhile.
                if let (Some((digest, shown)), Some(swarm)) = (&mut self.open, swarm)
                    && *digest == swarm.summary.digest
                {
                    *shown = Some(swarm);
                }
            }
            Err(error) => self.problem = Some(clean(&format!("{error:#}"))),
        }
    }

    /// What a key does.
    pub(super) fn key(&mut self, key: KeyEvent) -> Then {
        if key.kind == KeyEventKind::Release {
            return Then::Draw;
        }
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        let rows = self.rows();
        let place = self.place();
        let chosen = &mut self.chosen[place];
        match key.code {
            KeyCode::Char('c' | 'd') if control => return Then::Quit,
            KeyCode::Char('q') => return Then::Quit,
            KeyCode::Esc | KeyCode::Backspace if self.open.is_some() => self.open = None,
            KeyCode::Esc => return Then::Quit,
            KeyCode::Tab | KeyCode::Right | KeyCode::Char('l') => self.turn(1),
            KeyCode::BackTab | KeyCode::Left | KeyCode::Char('h') => self.turn(Tab::ALL.len() - 1),
            KeyCode::Char(digit @ '1'..='3') => {
                self.tab = Tab::ALL[digit as usize - '1' as usize];
                self.open = None;
            }
            KeyCode::Up | KeyCode::Char('k') => *chosen = chosen.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => *chosen = (*chosen + 1).min(rows.saturating_sub(1)),
            KeyCode::PageUp => *chosen = chosen.saturating_sub(self.page),
            KeyCode::PageDown => *chosen = (*chosen + self.page).min(rows.saturating_sub(1)),
            KeyCode::Home | KeyCode::Char('g') => *chosen = 0,
            KeyCode::End | KeyCode::Char('G') => *chosen = rows.saturating_sub(1),
            KeyCode::Char('s') if self.open.is_none() => {
                let order = &mut self.orders[self.tab as usize];
                *order = (*order + 1) % self.tab.orders().len();
            }
            KeyCode::Char('r') => return Then::Ask,
            KeyCode::Enter if self.open.is_none() && self.tab == Tab::Swarms => {
                let swarm = self.swarms().get(self.chosen[place]).map(|swarm| swarm.digest);
                if let Some(digest) = swarm {
                    self.open = Some((digest, None));
                    self.chosen[Tab::ALL.len()] = 0;
                    return Then::Ask;
                }
            }
            _ => {}
        }
        Then::Draw
    }

    fn turn(&mut self, by: usize) {
        self.tab = Tab::ALL[(self.tab as usize + by) % Tab::ALL.len()];
        self.open = None;
    }

    /// Which of the places in `chosen` counts.
    fn place(&self) -> usize {
        if self.open.is_some() { Tab::ALL.len() } else { self.tab as usize }
    }

    /// The row that is chosen, as long as there is one.
    pub(super) fn chosen(&self) -> usize {
        self.chosen[self.place()].min(self.rows().saturating_sub(1))
    }

    /// What the rows are sorted by.
    pub(super) fn order(&self) -> &'static str {
        let orders = self.tab.orders();
        orders[self.orders[self.tab as usize] % orders.len()]
    }

    fn rows(&self) -> usize {
        match (&self.open, self.tab) {
            (Some((_, page)), _) => page.as_ref().map_or(0, |page| page.members.len()),
            (None, Tab::Swarms) => self.cluster.overview.active.len(),
            (None, Tab::Nodes) => self.cluster.nodes.len(),
            (None, Tab::Flows) => self.cluster.topology.flows.len(),
        }
    }

    /// What is listed now.
    pub(super) fn list(&self) -> List {
        match (&self.open, self.tab) {
            (Some((digest, page)), _) => members(*digest, page.as_ref()),
            (None, Tab::Swarms) => self.list_swarms(),
            (None, Tab::Nodes) => self.list_nodes(),
            (None, Tab::Flows) => self.list_flows(),
        }
    }

    fn swarms(&self) -> Vec<&SwarmSummary> {
        let mut swarms: Vec<&SwarmSummary> = self.cluster.overview.active.iter().collect();
        // The trackers give them by their last change, which the others keep among equals.
        match self.order() {
            "rate" => swarms.sort_by_key(|swarm| Reverse(swarm.bytes_per_second)),
            "progress" => swarms.sort_by(|a, b| a.progress.total_cmp(&b.progress)),
            "size" => swarms.sort_by_key(|swarm| Reverse(swarm.geometry.size())),
            "nodes" => swarms.sort_by_key(|swarm| Reverse(swarm.peers)),
            _ => {}
        }
        swarms
    }

    fn list_swarms(&self) -> List {
        let overview = &self.cluster.overview;
        let rows = self.swarms().into_iter().map(|swarm| {
            vec![
                short(&swarm.digest.to_string()),
                bytes(swarm.geometry.size()),
                swarm.peers.to_string(),
                swarm.seeders.to_string(),
                swarm.complete.to_string(),
                progress(swarm.progress),
                rate(swarm.bytes_per_second),
                time(swarm.changed_seconds),
            ]
        });
        let title = match overview.active.len() {
            shown if shown < overview.blobs => format!("the {shown} of {} swarms that changed last", overview.blobs),
            shown => format!("{shown} swarms"),
        };
        List { title, columns: SWARMS, rows: rows.collect(), empty: "No blob is announced." }
    }

    fn list_nodes(&self) -> List {
        let mut nodes: Vec<&PeerSummary> = self.cluster.nodes.iter().collect();
        match self.order() {
            "in" => nodes.sort_by_key(|node| Reverse(node.activity.received_bytes_per_second)),
            "out" => nodes.sort_by_key(|node| Reverse(node.activity.sent_bytes_per_second)),
            "queue" => nodes.sort_by_key(|node| Reverse(node.activity.load.map(|load| load.requests))),
            "blobs" => nodes.sort_by_key(|node| Reverse(node.blobs)),
            _ => {}
        }
        let rows = nodes.into_iter().map(|node| {
            let load = node.activity.load;
            let of_load = |number: Option<u16>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
            vec![
                short(&node.peer.id),
                role(node.peer.role).to_owned(),
                place(
                    [&node.peer.topology.region, &node.peer.topology.zone, &node.peer.topology.rack]
                        .map(Option::as_ref),
                ),
                node.peer.address.to_string(),
                node.blobs.to_string(),
                rate(node.activity.received_bytes_per_second),
                rate(node.activity.sent_bytes_per_second),
                of_load(load.map(|load| load.requests)),
                of_load(load.map(|load| load.free_slots)),
                time(node.last_announce_seconds),
            ]
        });
        let title = match self.cluster.nodes.len() {
            shown if shown < self.cluster.overview.peers => {
                format!("the first {shown} of {} nodes", self.cluster.overview.peers)
            }
            shown => format!("{shown} nodes"),
        };
        List { title, columns: NODES, rows: rows.collect(), empty: "No node is alive." }
    }

    fn list_flows(&self) -> List {
        let topology = &self.cluster.topology;
        let mut flows: Vec<&ZoneFlow> = topology.flows.iter().collect();
        match self.order() {
            "bytes" => flows.sort_by_key(|flow| Reverse(flow.bytes)),
            "name" => flows.sort_by(|a, b| (&a.from, &a.to).cmp(&(&b.from, &b.to))),
            _ => {}
        }
        let all: u64 = topology.flows.iter().fold(0, |sum, flow| sum.saturating_add(flow.bytes_per_second));
        let rows = flows.into_iter().map(|flow| {
            vec![
                zone(flow.from.region.as_ref(), flow.from.zone.as_ref()),
                zone(flow.to.region.as_ref(), flow.to.zone.as_ref()),
                rate(flow.bytes_per_second),
                progress(flow.bytes_per_second as f64 / all.max(1) as f64),
                rate(flow.transfer_bytes_per_second),
                bytes(flow.bytes),
            ]
        });
        let more = if topology.next.is_some() { ", the fastest" } else { "" };
        let title = format!("{} flows between and within {} zones{more}", topology.flows.len(), topology.zones.len());
        List { title, columns: FLOWS, rows: rows.collect(), empty: "No node has reported what it received." }
    }
}

/// Who is in a swarm, those that get most first, and from whom.
fn members(digest: Digest, page: Option<&SwarmPage>) -> List {
    let digest = clean(&digest.to_string());
    let Some(page) = page else {
        return List { title: digest, columns: MEMBERS, rows: Vec::new(), empty: "Asking the trackers." };
    };
    let received = |member: &SwarmMember| {
        member.senders.iter().fold(0, |sum: u64, sender| sum.saturating_add(sender.bytes_per_second))
    };
    let mut members: Vec<&SwarmMember> = page.members.iter().collect();
    members.sort_by_key(|member| (Reverse(received(member)), member.complete));
    let rows = members.into_iter().map(|member| {
        let senders =
            member.senders.iter().map(|sender| format!("{} {}", short(&sender.id), rate(sender.bytes_per_second)));
        let topology = &member.peer.topology;
        vec![
            short(&member.peer.id),
            role(member.peer.role).to_owned(),
            place([&topology.region, &topology.zone, &topology.rack].map(Option::as_ref)),
            progress(f64::from(member.pieces) / f64::from(page.summary.pieces.max(1))),
            rate(received(member)),
            senders.collect::<Vec<_>>().join(", "),
        ]
    });
    let (size, moves) = (bytes(page.summary.geometry.size()), rate(page.summary.bytes_per_second));
    let nodes = match page.members.len() {
        shown if page.next.is_some() => format!("the first {shown} of {} nodes", page.summary.peers),
        shown => format!("{shown} nodes"),
    };
    let title = format!("{nodes}, {size}, {moves}: {digest}");
    List { title, columns: MEMBERS, rows: rows.collect(), empty: "Nobody announces this blob any more." }
}

const fn role(role: NodeRole) -> &'static str {
    match role {
        NodeRole::Seeder => "seeder",
        NodeRole::Proxy => "proxy",
    }
}

fn progress(share: f64) -> String {
    format!("{} {:>5}", bar(share, BAR), percent(share))
}
