//! The pictures of a small and of a large cluster in spaces of several sizes, and what keys make of them.

use std::{fs, path::Path};

use eagle_core::{Digest, Geometry, NodeRole, Topology, tracker::NodeLoad};
use eagle_tracker::api::{
    NodeActivity, Overview, PeerAt, PeerSummary, RackSummary, Sender, StoreStatus, SwarmMember, SwarmPage,
    SwarmSummary, TopologyPage, ZoneFlow, ZoneName, ZoneSummary,
};
use ratatui::{
    Terminal,
    backend::TestBackend,
    crossterm::event::{KeyCode, KeyEvent, KeyModifiers},
};

use super::*;
use crate::top::screen::Then;

fn digest(number: usize) -> Digest {
    Digest::of(&number.to_le_bytes())
}

fn at(number: usize) -> PeerAt {
    let role = if number == 0 { NodeRole::Seeder } else { NodeRole::Proxy };
    let label = |text: String| Some(text);
    let topology = Topology {
        region: label("eu".to_owned()),
        zone: label(format!("eu-{}", ["a", "b", "c"][number % 3])),
        rack: label(format!("r{}", number % 10)),
    };
    let address = std::net::SocketAddr::from(([10, 0, 0, u8::try_from(number % 250).unwrap()], 61007));
    let id = format!("12D3Koo{number:04}WQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBD{number:04}");
    PeerAt { id, address, role, topology }
}

fn swarm(number: usize) -> SwarmSummary {
    let geometry = Geometry::auto((number as u64 + 1) * 123_456_789).unwrap();
    SwarmSummary {
        digest: digest(number),
        geometry,
        pieces: geometry.pieces(),
        peers: 10 * number,
        seeders: 1,
        complete: 2 * number,
        progress: number as f64 / 30.0,
        age_seconds: 60.0,
        changed_seconds: number as f64,
        bytes_per_second: if number.is_multiple_of(3) { 0 } else { 10_000_000 * number as u64 },
    }
}

fn asked(address: &str, problem: Option<&str>) -> Asked {
    Asked { address: address.to_owned(), problem: problem.map(str::to_owned) }
}

fn cluster(nodes: usize, swarms: usize) -> Cluster {
    let zone = |name: &str| ZoneName { region: Some("eu".to_owned()), zone: Some(name.to_owned()) };
    let flow = |from: &str, to: &str, rate: u64| ZoneFlow {
        from: zone(from),
        to: zone(to),
        bytes_per_second: rate,
        transfer_bytes_per_second: rate / 4,
        bytes: rate * 60,
    };
    Cluster {
        trackers: vec![asked("http://tracker:6969", None)],
        overview: Overview {
            version: "0.1.0".to_owned(),
            uptime_seconds: 86_400.0 * 3.0,
            peers: nodes,
            seeders: 1,
            blobs: 30,
            entries: 1_234,
            announces_per_second: 35.24,
            bytes_per_second: 1_234_000_000,
            store: StoreStatus { kind: "memory".to_owned(), away: false },
            active: (0..swarms).map(swarm).collect(),
        },
        nodes: (0..nodes)
            .map(|number| PeerSummary {
                peer: at(number),
                blobs: number % 7,
                age_seconds: 100.0,
                last_announce_seconds: 0.5,
                activity: NodeActivity {
                    load: (number % 4 > 0).then_some(NodeLoad { requests: 3, free_slots: 1 }),
                    received_bytes_per_second: 1_000_000 * (number as u64 % 50),
                    sent_bytes_per_second: 900_000 * (number as u64 % 60),
                },
            })
            .collect(),
        topology: TopologyPage {
            zones: vec![ZoneSummary {
                region: Some("eu".to_owned()),
                zone: Some("eu-a".to_owned()),
                peers: nodes,
                seeders: 1,
                racks: vec![RackSummary { rack: None, peers: nodes }],
            }],
            flows: vec![
                flow("eu-a", "eu-a", 900_000_000),
                flow("eu-a", "eu-b", 300_000_000),
                flow("eu-b", "eu-c", 34_000_000),
                flow("eu-c", "eu-a", 0),
            ],
            next: None,
        },
    }
}

fn members(of: Digest) -> SwarmPage {
    let member = |number: usize| SwarmMember {
        peer: at(number),
        pieces: u32::try_from(number).unwrap() * 20,
        complete: false,
        owned: None,
        age_seconds: 3.0,
        last_announce_seconds: 0.5,
        senders: (1..number.min(4))
            .map(|sender| Sender { id: at(sender).id, bytes_per_second: 10_000_000 / sender as u64 })
            .collect(),
    };
    SwarmPage { summary: SwarmSummary { digest: of, ..swarm(3) }, members: (0..8).map(member).collect(), next: None }
}

fn picture(screen: &mut Screen, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    drawn(&mut terminal, screen)
}

/// What a terminal shows after one more drawing.
fn drawn(terminal: &mut Terminal<TestBackend>, screen: &mut Screen) -> String {
    terminal.draw(|frame| draw(frame, screen)).unwrap();
    let buffer = terminal.backend().buffer();
    let (width, height) = (buffer.area.width, buffer.area.height);
    let line = |row| (0..width).map(|column| buffer[(column, row)].symbol()).collect::<String>().trim_end().to_owned();
    (0..height).map(|row| line(row) + "\n").collect()
}

/// Compares with what is kept; `EAGLE_TEST_BLESS=1` keeps what is there now.
fn same(name: &str, picture: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("src/top/render/{name}.txt"));
    if std::env::var_os("EAGLE_TEST_BLESS").is_some() {
        fs::write(&path, picture).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == picture, "{name} has changed; if it should, run with EAGLE_TEST_BLESS=1:\n{picture}");
}

fn press(screen: &mut Screen, code: KeyCode) -> Then {
    screen.key(KeyEvent::new(code, KeyModifiers::NONE))
}

#[test]
fn every_view_fits_small_and_large_terminals() {
    for (name, width, height) in [("80x24", 80, 24), ("40x10", 40, 10), ("200x60", 200, 60)] {
        let mut screen = Screen::new(cluster(1_000, 12));
        let mut pictures = String::new();
        for _ in Tab::ALL {
            pictures.push_str(&picture(&mut screen, width, height));
            pictures.push_str("================\n");
            press(&mut screen, KeyCode::Tab);
        }
        assert_eq!(press(&mut screen, KeyCode::Enter), Then::Ask);
        let digest = screen.open.as_ref().map(|(digest, _)| *digest).unwrap();
        screen.update(Ok((cluster(1_000, 12), Some(members(digest)))));
        pictures.push_str(&picture(&mut screen, width, height));
        same(name, &pictures);
    }
    same("plain", &plain(&cluster(60, 3)));
}

/// One of several that is silent is named in whatever is shown, and the lists are those of the others.
#[test]
fn a_tracker_that_does_not_answer_is_named() {
    let mut known = cluster(60, 3);
    known.trackers = vec![asked("http://a.example:6969", None), asked("http://b.example:6969", None)];
    let first = |known: &Cluster| {
        let picture = picture(&mut Screen::new(known.clone()), 80, 24);
        picture.lines().next().unwrap_or_default().to_owned()
    };
    assert_eq!(first(&known), "eagle top  2 trackers  up 3 d  http://a.example:6969 http://b.example:6969");
    known.trackers[1].problem = Some("it cannot be reached".to_owned());
    assert_eq!(first(&known), "eagle top  1 of 2 trackers  up 3 d  no answer from http://b.example:6969");
    let text = plain(&known);
    assert!(text.contains("announces/s\nno answer from http://b.example:6969: it cannot be reached\n"), "{text}");
    assert!(text.contains("60 nodes\n") && text.contains("3 of 30 swarms"), "{text}");
}

#[test]
fn no_size_is_too_small_and_nothing_to_show_is_shown() {
    for (width, height) in [(1, 1), (3, 2), (7, 5), (10, 30), (500, 3)] {
        for (nodes, swarms) in [(0, 0), (1_000, 50)] {
            let mut screen = Screen::new(cluster(nodes, swarms));
            for key in [KeyCode::Down, KeyCode::End, KeyCode::Tab, KeyCode::PageDown, KeyCode::Tab, KeyCode::PageUp] {
                picture(&mut screen, width, height);
                press(&mut screen, key);
            }
        }
    }
    let mut screen = Screen::new(cluster(0, 0));
    assert!(picture(&mut screen, 80, 24).contains("No blob is announced."));
}

/// Nothing of the picture before is left, nothing is cut that would fit, and the chosen row stays in sight.
#[test]
fn a_terminal_that_changes_its_size_shows_what_a_new_one_does() {
    let mut screen = Screen::new(cluster(1_000, 50));
    let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
    for _ in Tab::ALL {
        press(&mut screen, KeyCode::Tab);
        press(&mut screen, KeyCode::End);
        for (width, height) in [(80, 24), (60, 15), (200, 50), (60, 15), (7, 3), (80, 24)] {
            terminal.backend_mut().resize(width, height);
            let shown = drawn(&mut terminal, &mut screen);
            assert_eq!(shown, picture(&mut screen, width, height), "{width} x {height}");
            let lines: Vec<&str> = shown.lines().collect();
            assert_eq!(lines.len(), usize::from(height));
            assert!(lines.iter().all(|line| line.chars().count() <= usize::from(width)), "{shown}");
            let reversed = |cell: &ratatui::buffer::Cell| cell.modifier.contains(Modifier::REVERSED);
            let (tabs, rows) = terminal.backend().buffer().content().split_at(usize::from(width * height.min(5)));
            assert!(height < 10 || (tabs.iter().any(reversed) && rows.iter().any(reversed)), "{shown}");
        }
    }
}

#[test]
fn keys_move_sort_open_and_leave() {
    let mut screen = Screen::new(cluster(1_000, 12));
    let shown = |screen: &mut Screen| picture(screen, 80, 24);
    assert!(shown(&mut screen).contains("by rate"));
    assert_eq!(press(&mut screen, KeyCode::Char('s')), Then::Draw);
    assert!(shown(&mut screen).contains("by change"));
    press(&mut screen, KeyCode::Down);
    assert_eq!(screen.chosen(), 1);
    press(&mut screen, KeyCode::End);
    assert_eq!(screen.chosen(), 11);
    press(&mut screen, KeyCode::Down);
    assert_eq!(screen.chosen(), 11);
    // The second of those that changed last.
    press(&mut screen, KeyCode::Home);
    press(&mut screen, KeyCode::Down);
    press(&mut screen, KeyCode::Enter);
    assert_eq!(screen.open.as_ref().map(|(digest, _)| *digest), Some(digest(1)));
    assert!(shown(&mut screen).contains("Asking the trackers."));
    // An answer about another swarm is none.
    screen.update(Ok((cluster(5, 2), Some(members(digest(9))))));
    assert!(shown(&mut screen).contains("Asking the trackers."));
    screen.update(Ok((cluster(5, 2), Some(members(digest(1))))));
    assert!(shown(&mut screen).contains("12D3Ko…BWD0001") || shown(&mut screen).contains("GETS MOST FROM"));
    assert_eq!(press(&mut screen, KeyCode::Esc), Then::Draw);
    assert!(screen.open.is_none());
    press(&mut screen, KeyCode::Char('2'));
    // Fewer nodes than before: the choice stays on one that is there.
    screen.update(Ok((cluster(1_000, 2), None)));
    press(&mut screen, KeyCode::End);
    screen.update(Ok((cluster(3, 2), None)));
    assert_eq!(screen.chosen(), 2);
    assert!(shown(&mut screen).contains("3 nodes"));
    screen.update(Err(anyhow::anyhow!("gone\u{1b}[2J")));
    assert!(shown(&mut screen).contains("not up to date: gone·[2J"));
    assert_eq!(press(&mut screen, KeyCode::Char('q')), Then::Quit);
    assert_eq!(press(&mut screen, KeyCode::Esc), Then::Quit);
    assert_eq!(screen.key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), Then::Quit);
}

/// Whatever peers call themselves, the terminal gets letters and nothing that it would obey.
#[test]
fn names_from_peers_are_text() {
    let mut hostile = cluster(3, 2);
    let name = "\u{1b}]0;owned\u{7}\u{1b}[2J\r\n\u{202e}\u{9b}31m".to_owned();
    for node in &mut hostile.nodes {
        node.peer.id.clone_from(&name);
        node.peer.topology =
            Topology { region: Some(name.clone()), zone: Some(name.clone()), rack: Some(name.clone()) };
    }
    hostile.topology.flows[0].from = ZoneName { region: Some(name.clone()), zone: Some(name.clone()) };
    hostile.overview.store = StoreStatus { kind: name.clone(), away: true };
    hostile.trackers = vec![asked(&name, None), asked(&name, Some(&name))];
    let mut screen = Screen::new(hostile.clone());
    let mut page = members(digest(1));
    page.members[3].peer.id.clone_from(&name);
    page.members[3].senders[0].id.clone_from(&name);
    let mut all = plain(&hostile);
    for _ in Tab::ALL {
        all.push_str(&picture(&mut screen, 120, 30));
        press(&mut screen, KeyCode::Tab);
    }
    screen.open = Some((digest(1), Some(page)));
    all.push_str(&picture(&mut screen, 120, 30));
    let obeyed = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
    assert!(!all.contains(obeyed), "{all:?}");
}
