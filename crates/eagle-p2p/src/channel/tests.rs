//! Real channels between two real networks on the loopback interface.

mod slow;
mod strangers;
mod unasked;

use std::{
    collections::{HashMap, VecDeque},
    fs::File,
    io::Write,
    net::SocketAddr,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::Instant,
};

use eagle_cluster::{ClusterKey, ClusterKeys};
use eagle_core::{Geometry, units::Rate, wire::control::Encryption};
use eagle_store::StorageError;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::timeout,
};

use super::*;
use crate::{
    identity,
    limits::Limiter,
    network::{
        Membership,
        tests::{Node, pair_of, private::cluster},
    },
};

/// Longest that anything here may take; a busy machine needs some of it.
const PATIENCE: Duration = Duration::from_secs(20);
const PIECE: u32 = 64 << 10;

#[derive(Debug)]
struct TestBlob {
    data: Bytes,
    file: Option<Arc<File>>,
}

#[async_trait]
impl BlobReader for TestBlob {
    fn size(&self) -> u64 {
        self.data.len() as u64
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, StorageError> {
        let start = usize::try_from(offset).unwrap();
        Ok(self.data.slice(start..start + length))
    }

    fn file(&self) -> Option<Arc<File>> {
        self.file.clone()
    }
}

/// Serves blobs, as many requests at once as `slots` has permits.
struct TestHandler {
    blobs: HashMap<Digest, (Geometry, Arc<TestBlob>)>,
    slots: Arc<Semaphore>,
    /// Claims pieces to be this much shorter than they are.
    cheat: u32,
    asked: AtomicUsize,
    finished: AtomicUsize,
    finished_well: AtomicU64,
    next: AtomicUsize,
}

const LOAD: Load = Load { requests: 3, spreading: true };

/// A slot of the handler.
struct Held(Option<OwnedSemaphorePermit>);

impl Permit for Held {
    fn step_aside(&mut self) -> CancellationToken {
        self.0 = None;
        CancellationToken::new()
    }
}

#[async_trait]
impl UploadHandler for TestHandler {
    async fn request(&self, _: PeerId, digest: Digest, piece: Option<PieceIndex>) -> Upload {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let Some((geometry, blob)) = self.blobs.get(&digest) else {
            return Upload::Reject { reason: RejectReason::NotHere, load: LOAD };
        };
        let permit = Arc::clone(&self.slots).acquire_owned().await.unwrap();
        let next = || PieceIndex(u32::try_from(self.next.fetch_add(1, Ordering::SeqCst)).unwrap());
        let piece = piece.unwrap_or_else(next);
        Upload::Serve {
            piece,
            reader: Arc::clone(blob) as Arc<dyn BlobReader>,
            offset: geometry.offset(piece),
            length: geometry.length(piece) - self.cheat,
            load: LOAD,
            permit: Box::new(Held(Some(permit))),
        }
    }

    fn finished(&self, _: PeerId, _: Digest, _: PieceIndex, bytes_sent: u64, ok: bool) {
        self.finished.fetch_add(1, Ordering::SeqCst);
        if ok {
            self.finished_well.fetch_add(bytes_sent, Ordering::SeqCst);
        }
    }

    fn load(&self) -> Load {
        LOAD
    }
}

/// An uploader `a` and a downloader `b`, connected.
struct Fixture {
    _keys: Option<watch::Sender<ClusterKeys>>,
    a: Node,
    b: Node,
    server: UploadServer,
    handler: Arc<TestHandler>,
    channels: DataChannels,
    events: mpsc::Receiver<ChannelEvent>,
    to: Uploader,
    digest: Digest,
    geometry: Geometry,
    data: Bytes,
}

#[derive(Clone, Copy)]
struct Setup {
    encryption: Encryption,
    keyed: bool,
    size: usize,
    piece_length: u32,
    in_file: bool,
    upload: Rate,
    download: Rate,
    cheat: u32,
}

const SETUP: Setup = Setup {
    encryption: Encryption::Tls,
    keyed: false,
    size: 5 * PIECE as usize + 1234,
    piece_length: PIECE,
    in_file: true,
    upload: Rate::Unlimited,
    download: Rate::Unlimited,
    cheat: 0,
};

impl Fixture {
    async fn start(setup: Setup) -> Self {
        let data: Vec<u8> = (0..setup.size).map(|i| (i * i / 251).to_le_bytes()[0]).collect();
        let digest = Digest::of(&data);
        let geometry = Geometry::new(setup.size as u64, setup.piece_length).unwrap();
        let file = setup.in_file.then(|| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&data).unwrap();
            Arc::new(file)
        });
        let data = Bytes::from(data);
        let blob = Arc::new(TestBlob { data: data.clone(), file });
        let handler = Arc::new(TestHandler {
            blobs: HashMap::from([(digest, (geometry, blob))]),
            slots: Arc::new(Semaphore::new(64)),
            cheat: setup.cheat,
            asked: AtomicUsize::new(0),
            finished: AtomicUsize::new(0),
            finished_well: AtomicU64::new(0),
            next: AtomicUsize::new(0),
        });
        let listener = DataListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let data_address = listener.local_addr();
        let (keys, membership) = match setup.keyed {
            true => Some(cluster(&ClusterKey::generate().unwrap())).unzip(),
            false => (None, None),
        };
        let membership = membership.unwrap_or(Membership::Open);
        let (a, b) = pair_of(&membership, [data_address.port(), 1], setup.encryption).await;
        let config = UploadServerConfig {
            keypair: a.keypair.clone(),
            encryption: setup.encryption,
            limiter: Limiter::new(setup.upload),
            max_channels: 16,
        };
        let shared: Arc<dyn UploadHandler> = Arc::<TestHandler>::clone(&handler);
        let server = UploadServer::start(listener, config, a.network.clone(), shared, a.shutdown.clone()).unwrap();
        let config = DataChannelsConfig {
            keypair: b.keypair.clone(),
            limiter: Limiter::new(setup.download),
            memory: 0,
            max_channels: 4,
        };
        let (channels, events) = DataChannels::new(config, b.network.clone(), b.shutdown.clone());
        let to = Uploader { peer: a.peer(), data_address, encryption: setup.encryption };
        Self { _keys: keys, a, b, server, handler, channels, events, to, digest, geometry, data }
    }

    fn ask(&self, id: u32, piece: Option<PieceIndex>) -> Result<(), RequestError> {
        self.channels.request(self.to, PieceRequest { id, digest: self.digest, piece, geometry: self.geometry })
    }

    async fn event(&mut self) -> ChannelEvent {
        loop {
            match timeout(PATIENCE, self.events.recv()).await.expect("an event in time").unwrap() {
                ChannelEvent::Progress { .. } => {}
                event => return event,
            }
        }
    }

    /// Expects the start and the end of a piece, and the right bytes.
    async fn piece(&mut self, expected: u32) -> PieceIndex {
        let started = match self.event().await {
            ChannelEvent::Started { id, piece, length, load: LOAD, .. } if id == expected => (piece, length),
            other => panic!("instead of the start of {expected}: {other:?}"),
        };
        match self.event().await {
            ChannelEvent::Piece { id, piece, bytes, load: LOAD, .. } if id == expected => {
                assert_eq!(started, (piece, u32::try_from(bytes.len()).unwrap()));
                let range = self.geometry.range(piece);
                let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
                assert_eq!(bytes, self.data.slice(range), "piece {piece}");
                piece
            }
            other => panic!("instead of {expected}: {other:?}"),
        }
    }

    async fn rejected(&mut self, expected: u32) -> RejectReason {
        match self.event().await {
            ChannelEvent::Rejected { id, reason, load: LOAD, .. } if id == expected => reason,
            other => panic!("instead of a refusal of {expected}: {other:?}"),
        }
    }

    async fn failed(&mut self) -> (Vec<u32>, String, bool) {
        match self.event().await {
            ChannelEvent::Failed { ids, reason, misbehaved, .. } => (ids, reason, misbehaved),
            other => panic!("instead of a failure: {other:?}"),
        }
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// Every way that bytes can leave.
const WAYS: [(Encryption, bool); 4] =
    [(Encryption::Tls, true), (Encryption::Tls, false), (Encryption::None, true), (Encryption::None, false)];

#[tokio::test]
async fn every_piece_arrives_in_every_mode() {
    for (encryption, in_file) in WAYS {
        let mut fixture = Fixture::start(Setup { encryption, in_file, ..SETUP }).await;
        for piece in fixture.geometry.all() {
            fixture.ask(piece.0, Some(piece)).unwrap();
        }
        for piece in fixture.geometry.all() {
            assert_eq!(fixture.piece(piece.0).await, piece);
        }
        // The uploader chooses.
        fixture.ask(100, None).unwrap();
        assert_eq!(fixture.piece(100).await, PieceIndex(0));
        let total = fixture.data.len() as u64 + u64::from(PIECE);
        assert_eq!(fixture.channels.downloaded(), total);
        let handler = Arc::clone(&fixture.handler);
        until("everything is finished", || handler.finished_well.load(Ordering::SeqCst) == total).await;
        assert_eq!(fixture.server.uploaded(), total);
        assert_eq!(fixture.handler.finished.load(Ordering::SeqCst), 7);
        assert_eq!(fixture.handler.slots.available_permits(), 64);
    }
}

#[tokio::test]
async fn a_blob_that_is_not_here_is_refused() {
    let mut fixture = Fixture::start(SETUP).await;
    let request = PieceRequest { id: 9, digest: Digest::of(b"?"), piece: None, geometry: fixture.geometry };
    fixture.channels.request(fixture.to, request).unwrap();
    assert_eq!(fixture.rejected(9).await, RejectReason::NotHere);
    fixture.ask(10, Some(PieceIndex(5))).unwrap();
    fixture.piece(10).await;
}

#[tokio::test]
async fn a_cancelled_request_is_not_served() {
    for (encryption, in_file) in WAYS {
        let mut fixture = Fixture::start(Setup { encryption, in_file, ..SETUP }).await;
        let handler = Arc::clone(&fixture.handler);
        let all = Arc::clone(&handler.slots).acquire_many_owned(64).await.unwrap();
        for id in 0..3 {
            fixture.ask(id, Some(PieceIndex(id))).unwrap();
        }
        // The handler hears of all three though none is served.
        until("three requests", || handler.asked.load(Ordering::SeqCst) == 3).await;
        fixture.channels.cancel(fixture.to.peer, 1);
        fixture.channels.cancel(fixture.to.peer, 77);
        // A fourth one goes the same way as the cancel, so the cancel is there when it is.
        fixture.ask(3, Some(PieceIndex(3))).unwrap();
        until("the fourth request", || handler.asked.load(Ordering::SeqCst) == 4).await;
        drop(all);
        fixture.piece(0).await;
        assert_eq!(fixture.rejected(1).await, RejectReason::Cancelled);
        fixture.piece(2).await;
        fixture.piece(3).await;
    }
}

#[tokio::test]
async fn too_many_requests_are_refused_here() {
    let mut fixture = Fixture::start(SETUP).await;
    let all = Arc::clone(&fixture.handler.slots).acquire_many_owned(64).await.unwrap();
    let most = u32::try_from(MAX_OUTSTANDING).unwrap();
    for id in 0..most {
        fixture.ask(id, Some(PieceIndex(0))).unwrap();
    }
    assert_eq!(fixture.ask(most, Some(PieceIndex(0))), Err(RequestError::TooManyRequests));
    drop(all);
    for id in 0..most {
        fixture.piece(id).await;
    }
    fixture.ask(most, Some(PieceIndex(0))).unwrap();
    fixture.piece(most).await;
}

#[tokio::test]
async fn a_wrong_length_is_misbehaviour() {
    for encryption in [Encryption::Tls, Encryption::None] {
        let mut fixture = Fixture::start(Setup { encryption, cheat: 1, ..SETUP }).await;
        fixture.ask(1, Some(PieceIndex(0))).unwrap();
        fixture.ask(2, Some(PieceIndex(1))).unwrap();
        let (ids, reason, misbehaved) = fixture.failed().await;
        assert!(misbehaved && reason.contains("65535 bytes"), "{reason}");
        assert_eq!(ids, [1, 2]);
        let handler = Arc::clone(&fixture.handler);
        until("the uploader noticed", || handler.slots.available_permits() == 64).await;
    }
}

#[tokio::test]
async fn a_channel_ends_with_its_session() {
    let mut fixture = Fixture::start(SETUP).await;
    let handler = Arc::clone(&fixture.handler);
    let all = Arc::clone(&handler.slots).acquire_many_owned(64).await.unwrap();
    fixture.ask(1, Some(PieceIndex(0))).unwrap();
    until("the request", || handler.asked.load(Ordering::SeqCst) == 1).await;
    fixture.a.network.disconnect(fixture.b.peer());
    let (ids, _, misbehaved) = fixture.failed().await;
    assert_eq!((ids, misbehaved), (vec![1], false));
    fixture.ask(2, Some(PieceIndex(0))).unwrap();
    let (ids, reason, _) = fixture.failed().await;
    assert_eq!((ids, reason.as_str()), (vec![2], "the peer is not connected"));
    drop(all);
}

#[tokio::test]
async fn limits_hold_on_a_transfer() {
    let slow = Rate::Limited(1_000_000);
    for (upload, download) in [(slow, Rate::Unlimited), (Rate::Unlimited, slow)] {
        for encryption in [Encryption::Tls, Encryption::None] {
            let setup = Setup { encryption, upload, download, size: 700_000, ..SETUP };
            let mut fixture = Fixture::start(setup).await;
            let start = Instant::now();
            for piece in fixture.geometry.all() {
                fixture.ask(piece.0, Some(piece)).unwrap();
            }
            for piece in fixture.geometry.all() {
                fixture.piece(piece.0).await;
            }
            let seconds = start.elapsed().as_secs_f64();
            assert!(seconds >= 0.7 * 0.95 - 0.02, "{upload} up, {download} down: {seconds} s");
        }
    }
}

#[tokio::test]
async fn pieces_in_memory_are_bounded() {
    // The least limit is one piece of the largest size, and these are two.
    let mut fixture = Fixture::start(Setup { size: 32 << 20, piece_length: 16 << 20, ..SETUP }).await;
    fixture.ask(0, Some(PieceIndex(0))).unwrap();
    fixture.ask(1, Some(PieceIndex(1))).unwrap();
    let mut held = VecDeque::new();
    while held.is_empty() {
        if let ChannelEvent::Piece { bytes, .. } = fixture.event().await {
            held.push_back(bytes);
        }
    }
    assert!(matches!(fixture.event().await, ChannelEvent::Started { id: 1, .. }));
    let early = timeout(Duration::from_millis(300), fixture.events.recv()).await;
    assert!(early.is_err(), "{early:?}");
    assert_eq!(fixture.channels.downloaded(), 16 << 20);
    held.clear();
    assert!(matches!(fixture.event().await, ChannelEvent::Piece { id: 1, .. }));
}

#[tokio::test]
async fn shutdown_ends_every_task() {
    let fixture = Fixture::start(SETUP).await;
    let all = Arc::clone(&fixture.handler.slots).acquire_many_owned(64).await.unwrap();
    fixture.ask(1, Some(PieceIndex(0))).unwrap();
    let handler = Arc::clone(&fixture.handler);
    until("the request", || handler.asked.load(Ordering::SeqCst) == 1).await;
    fixture.a.shutdown.cancel();
    fixture.b.shutdown.cancel();
    timeout(PATIENCE, fixture.server.stopped()).await.expect("the end of uploads");
    timeout(PATIENCE, fixture.channels.stopped()).await.expect("the end of downloads");
    assert_eq!(fixture.ask(2, None), Err(RequestError::Stopping));
    drop(all);
}
