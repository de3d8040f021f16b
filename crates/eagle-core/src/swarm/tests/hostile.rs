//! One node against peers that lie, stall, vanish or babble, on virtual time: it gets the blob from
//! the one honest peer, in bounded time, with bounded memory, and the others are banned or shed.

use std::collections::BTreeMap;

use super::*;

const PIECES: u32 = 40;
const HONEST: PeerKey = PeerKey(0);
/// Time in which an honest peer answers.
const SERVICE: Duration = Duration::from_millis(100);
/// Actions that are plenty for one blob of [`PIECES`] with a few peers: requests, cancels, haves,
/// interest. An endless exchange goes far beyond it.
const MOST_ACTIONS: usize = 40 * PIECES as usize;

/// How a peer behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Conduct {
    Honest,
    /// Says that it owns everything and refuses every request.
    Lies,
    /// The same, and after each refusal says again what it owns.
    LiesAgain,
    /// Sends wrong bytes.
    Corrupt,
    /// Sends another piece than the one asked for.
    Other,
    /// Ends each piece early, which ends the channel.
    Short,
    /// Answers this much later than an honest peer.
    Late(Duration),
    /// Begins each piece and sends nothing more of it.
    Begins,
    /// Accepts requests and answers none.
    Silent,
    /// Is gone after so many requests.
    Vanishes(u32),
    /// Refuses as if its queue were full, and says that requests are welcome.
    Full,
    /// Names a piece past the end.
    OutOfRange,
    /// Sends pieces that nobody asked for, of requests that nobody made.
    Unrequested,
}

#[derive(Debug)]
enum Event {
    Begin(RequestId, PieceIndex),
    Piece(PeerKey, RequestId, PieceIndex, Verdict),
    Reject(RequestId, RejectReason),
    Failed(RequestId),
    Says(PeerKey, BlobMessage),
    Left(PeerKey),
}

struct Scene {
    swarm: Swarm,
    now: Timestamp,
    /// Whether time passes at all.
    clock: bool,
    peers: BTreeMap<PeerKey, Conduct>,
    asked: BTreeMap<PeerKey, u32>,
    banned: Vec<PeerKey>,
    events: BTreeMap<(Timestamp, u64), Event>,
    serial: u64,
    actions: usize,
}

impl Scene {
    fn new(conducts: &[Conduct]) -> Self {
        let mut scene = Self {
            swarm: swarm(PIECES, true),
            now: Timestamp(0),
            clock: true,
            peers: BTreeMap::new(),
            asked: BTreeMap::new(),
            banned: Vec::new(),
            events: BTreeMap::new(),
            serial: 0,
            actions: 0,
        };
        for (key, conduct) in (0..).map(PeerKey).zip(std::iter::once(&Conduct::Honest).chain(conducts)) {
            scene.peers.insert(key, *conduct);
            scene.swarm.handle_peer(key, None);
            let bitfield = Bitfield::full(PIECES).to_bytes();
            let geometry = scene.swarm.geometry();
            scene.says(
                key,
                BlobMessage::Handshake { geometry, bitfield, load: Load::default(), rate: HostRate::UNKNOWN },
            );
            scene.says(key, BlobMessage::Unchoke);
            match conduct {
                Conduct::OutOfRange => {
                    scene.says(key, BlobMessage::Have { pieces: vec![PIECES], load: Load::default() });
                }
                Conduct::Unrequested => {
                    for index in 0..PIECES + 2 {
                        scene.after(
                            SERVICE,
                            Event::Piece(key, RequestId(1000 + index), PieceIndex(index), Verdict::Corrupt),
                        );
                    }
                }
                _ => {}
            }
        }
        scene
    }

    fn after(&mut self, delay: Duration, event: Event) {
        self.serial += 1;
        let at = if self.clock { self.now + delay } else { self.now };
        self.events.insert((at, self.serial), event);
    }

    fn says(&mut self, peer: PeerKey, message: BlobMessage) {
        self.after(Duration::ZERO, Event::Says(peer, message));
    }

    /// What a request is answered with.
    fn requested(&mut self, peer: PeerKey, id: RequestId, piece: PieceIndex) {
        let asked = self.asked.entry(peer).or_default();
        *asked += 1;
        let asked = *asked;
        let Some(conduct) = self.peers.get(&peer).copied() else { return };
        let half = SERVICE / 2;
        match conduct {
            Conduct::Honest => {
                self.after(half, Event::Begin(id, piece));
                self.after(SERVICE, Event::Piece(peer, id, piece, Verdict::Stored));
            }
            Conduct::Corrupt => {
                self.after(half, Event::Begin(id, piece));
                self.after(SERVICE, Event::Piece(peer, id, piece, Verdict::Corrupt));
            }
            Conduct::Lies => self.after(MS, Event::Reject(id, RejectReason::NotHere)),
            Conduct::LiesAgain => {
                self.after(MS, Event::Reject(id, RejectReason::NotHere));
                let pieces = (0..PIECES).collect();
                self.after(MS, Event::Says(peer, BlobMessage::Have { pieces, load: Load::default() }));
            }
            Conduct::Other => self.after(half, Event::Begin(id, PieceIndex((piece.0 + 1) % PIECES))),
            Conduct::Short => {
                self.after(half, Event::Begin(id, piece));
                self.after(SERVICE, Event::Failed(id));
            }
            Conduct::Late(delay) => self.after(SERVICE + delay, Event::Piece(peer, id, piece, Verdict::Stored)),
            Conduct::Begins => self.after(half, Event::Begin(id, piece)),
            Conduct::Vanishes(after) if asked == after => self.after(MS, Event::Left(peer)),
            Conduct::Full => {
                self.after(MS, Event::Reject(id, RejectReason::Choked));
                self.after(MS, Event::Says(peer, BlobMessage::Unchoke));
            }
            Conduct::Silent | Conduct::Vanishes(_) | Conduct::OutOfRange | Conduct::Unrequested => {}
        }
    }

    fn settle(&mut self) {
        while let Some(action) = self.swarm.poll_action() {
            self.actions += 1;
            assert!(self.actions <= MOST_ACTIONS, "endless: {action:?} at {:?}", self.now);
            match action {
                Action::Request { peer, id, piece: Some(piece) } => {
                    assert!(!self.swarm.have().contains(piece));
                    self.requested(peer, id, piece);
                }
                Action::Request { id, piece: None, .. } => {
                    self.after(MS, Event::Reject(id, RejectReason::NothingToSpread))
                }
                Action::Ban { peer, .. } => {
                    self.banned.push(peer);
                    self.peers.remove(&peer);
                    self.swarm.handle_peer_left(self.now, peer);
                }
                Action::Connect { .. } => panic!("nobody has told of peers"),
                Action::Send { .. } | Action::Cancel { .. } | Action::TellPeers { .. } => {}
            }
        }
        assert!(self.swarm.requests.chosen() <= self.swarm.config.requests_in_flight + 1);
        assert!(self.swarm.requests.given_up() <= 64);
    }

    fn handle(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::Begin(id, piece) => {
                self.swarm.handle_started(now, id, piece, Load::default());
            }
            // Its channel ended with it.
            Event::Piece(peer, ..) if !self.peers.contains_key(&peer) => {}
            Event::Piece(peer, id, piece, verdict) => {
                if self.swarm.handle_received(now, id, piece) {
                    self.swarm.handle_verified(now, peer, piece, verdict);
                }
            }
            Event::Reject(id, reason) => self.swarm.handle_rejected(now, id, reason, Load::default()),
            Event::Failed(id) => self.swarm.handle_failed(now, id),
            Event::Says(peer, message) => self.swarm.handle_message(now, peer, message),
            Event::Left(peer) => {
                self.peers.remove(&peer);
                self.swarm.handle_peer_left(now, peer);
            }
        }
        self.settle();
    }

    /// Runs until the blob is complete; returns how long that took.
    fn run(&mut self) -> Duration {
        self.settle();
        while !self.swarm.is_complete() {
            let event = self.events.first_key_value().map(|((at, _), _)| *at);
            let alarm = self.swarm.next_timeout().filter(|_| self.clock);
            let next = event.into_iter().chain(alarm).min().expect("something happens until the blob is complete");
            assert!(next < Timestamp(0) + Duration::from_secs(600), "not complete after ten minutes");
            self.now = self.now.max(next);
            if event == Some(next) {
                let (_, event) = self.events.pop_first().unwrap();
                self.handle(event);
            } else {
                self.swarm.handle_timeout(self.now);
                self.settle();
                assert!(self.swarm.next_timeout().is_none_or(|at| at > self.now), "woken again for nothing");
            }
        }
        self.now - Timestamp(0)
    }

    fn asked(&self, peer: u64) -> u32 {
        self.asked.get(&PeerKey(peer)).copied().unwrap_or(0)
    }
}

/// What the honest peer alone takes.
fn alone() -> Duration {
    Scene::new(&[]).run()
}

/// Three bad peers of one kind beside the honest one: the blob is complete in less than twice the
/// time that it takes without them and this much more, and each was asked at most so often.
fn against(conduct: Conduct, longest: Duration, most_asked: u32) -> Scene {
    let mut scene = Scene::new(&[conduct; 3]);
    let took = scene.run();
    assert!(took <= alone() * 2 + longest, "{conduct:?}: {took:?} against {:?}", alone());
    for peer in 1..=3 {
        assert!(scene.asked(peer) <= most_asked, "{conduct:?}: peer {peer} was asked {} times", scene.asked(peer));
    }
    assert!(scene.swarm.peers.contains_key(&HONEST));
    assert!(!scene.banned.contains(&HONEST));
    scene
}

/// The longest time until a request of which nothing is heard is made elsewhere, before anything was
/// measured: four times the guess of the service time.
const UNMEASURED: Duration = Duration::from_secs(2);

#[test]
fn peers_that_lie_about_what_they_own_are_banned() {
    let scene = against(Conduct::Lies, Duration::ZERO, 20);
    assert!(scene.swarm.peers.values().all(|state| state.refusals < scene.swarm.config.most_refusals));
    against(Conduct::LiesAgain, Duration::ZERO, 20);
}

#[test]
fn whoever_claims_again_and_again_what_it_refuses_is_banned() {
    // Nobody honest is there, so the liar is asked all the time.
    let mut scene = Scene::new(&[Conduct::LiesAgain]);
    scene.swarm.handle_peer_left(Timestamp(0), HONEST);
    scene.peers.remove(&HONEST);
    scene.settle();
    while scene.banned.is_empty() {
        let event = scene.events.first_key_value().map(|((at, _), _)| *at);
        let next = event.into_iter().chain(scene.swarm.next_timeout()).min().unwrap();
        scene.now = next;
        if event == Some(next) {
            let (_, event) = scene.events.pop_first().unwrap();
            scene.handle(event);
        } else {
            scene.swarm.handle_timeout(next);
            scene.settle();
        }
    }
    let config = &scene.swarm.config;
    let in_flight = u32::try_from(config.least_in_flight).unwrap();
    assert!((config.most_refusals..=config.most_refusals + in_flight).contains(&scene.asked(1)), "{}", scene.asked(1));
}

#[test]
fn senders_of_wrong_bytes_are_banned_at_the_first() {
    let scene = against(Conduct::Corrupt, Duration::ZERO, 4);
    assert_eq!(scene.banned.len(), 3);
}

#[test]
fn senders_of_another_piece_are_banned_at_the_first() {
    let scene = against(Conduct::Other, Duration::ZERO, 4);
    assert_eq!(scene.banned.len(), 3);
}

#[test]
fn pieces_that_end_early_are_fetched_elsewhere() {
    against(Conduct::Short, Duration::ZERO, 5);
}

#[test]
fn late_answers_hold_nothing_up_and_count_as_signs_of_life() {
    against(Conduct::Late(Duration::from_secs(3)), UNMEASURED, 8);
    let scene = against(Conduct::Late(Duration::from_secs(3600)), UNMEASURED, 6);
    assert_eq!(scene.swarm.totals().duplicate_pieces, 0);
    // The answer comes when all is there: it is not taken a second time, and changes nothing.
    let mut scene = Scene::new(&[Conduct::Late(Duration::from_secs(5))]);
    scene.run();
    let owned = scene.swarm.have().count();
    for ((at, _), event) in std::mem::take(&mut scene.events) {
        scene.now = at;
        scene.handle(event);
    }
    assert_eq!(scene.swarm.have().count(), owned);
    assert!(scene.swarm.totals().duplicate_pieces <= 4);
}

#[test]
fn silent_peers_are_shed() {
    against(Conduct::Silent, UNMEASURED, 6);
    against(Conduct::Begins, UNMEASURED, 6);
}

#[test]
fn peers_that_vanish_lose_nothing() {
    for after in 1..4 {
        against(Conduct::Vanishes(after), UNMEASURED, 6);
    }
}

#[test]
fn peers_that_are_always_full_are_left_alone_for_a_while() {
    let scene = against(Conduct::Full, Duration::ZERO, 20);
    // Each time it is let alone for the time of a retry.
    let rounds = (scene.now - Timestamp(0)).as_millis() / scene.swarm.config.retry.as_millis() + 1;
    assert!(u128::from(scene.asked(1)) <= rounds * 2, "{} in {rounds}", scene.asked(1));
}

#[test]
fn pieces_past_the_end_ban_their_owner() {
    let scene = against(Conduct::OutOfRange, Duration::ZERO, 3);
    assert_eq!(scene.banned.len(), 3);
}

#[test]
fn unrequested_pieces_are_verified_before_they_count() {
    let scene = against(Conduct::Unrequested, UNMEASURED, 6);
    // Wrong bytes are wrong whether anybody asked for them or not.
    assert_eq!(scene.banned.len(), 3);
}

#[test]
fn all_kinds_at_once() {
    let mut scene = Scene::new(&[
        Conduct::Lies,
        Conduct::Corrupt,
        Conduct::Other,
        Conduct::Short,
        Conduct::Late(Duration::from_secs(3)),
        Conduct::Silent,
        Conduct::Begins,
        Conduct::Vanishes(2),
        Conduct::Full,
        Conduct::Unrequested,
    ]);
    let took = scene.run();
    assert!(took <= alone() * 2 + UNMEASURED, "{took:?}");
}

#[test]
fn a_clock_that_stands_still_stops_nothing_but_timeouts() {
    let mut scene = Scene::new(&[Conduct::Silent, Conduct::Lies, Conduct::Corrupt]);
    scene.clock = false;
    // Without time nobody is late, so what only the silent peer was asked for waits.
    scene.settle();
    while let Some((_, event)) = scene.events.pop_first() {
        scene.handle(event);
    }
    assert!(scene.swarm.have().count() >= PIECES - scene.asked(1));
    for _ in 0..1000 {
        scene.swarm.handle_timeout(scene.now);
    }
    assert!(actions(&mut scene.swarm).is_empty());
    // Once it goes on, so does the rest.
    scene.clock = true;
    assert!(scene.run() <= UNMEASURED * 2);
}

#[test]
fn a_flood_of_messages_makes_no_flood_of_answers() {
    let mut scene = Scene::new(&[]);
    scene.settle();
    let flood = PeerKey(9);
    scene.swarm.handle_greeting(flood, None);
    let geometry = scene.swarm.geometry();
    let messages = [
        BlobMessage::Handshake {
            geometry,
            bitfield: Bitfield::full(PIECES).to_bytes(),
            load: Load::default(),
            rate: HostRate::UNKNOWN,
        },
        BlobMessage::Have { pieces: (0..PIECES).collect(), load: Load { requests: u16::MAX, spreading: true } },
        BlobMessage::Load(Load { requests: 7, spreading: true }),
        BlobMessage::Interested,
        BlobMessage::NotInterested,
        BlobMessage::Choke,
        BlobMessage::Unchoke,
    ];
    let (rounds, mut answers) = (1000, 0);
    for round in 0..rounds {
        let message = messages[round % messages.len()].clone();
        scene.swarm.handle_message(scene.now, flood, message);
        answers += actions(&mut scene.swarm).len();
    }
    assert!(answers <= rounds, "{answers} answers to {rounds} messages");
}
