//! What there is to announce: coalesced updates, deltas and full states. No I/O and no clock.

use std::collections::{HashMap, hash_map};

use eagle_core::{Digest, Geometry, PeerInfo, PieceSet};

use super::BlobStatus;
use crate::api::{AnnounceRequest, BlobAnnounce, Event};

/// Most blobs in one request: half of what a tracker takes, so that limits can be lowered later.
const BLOBS_PER_REQUEST: usize = 5_000;
/// Most bytes of one request, estimated: half of what a tracker takes.
const BYTES_PER_REQUEST: usize = 2 << 20;
/// JSON of a blob without its pieces, bytes: member names 90, digest 138 at most, numbers.
const BYTES_PER_BLOB: usize = 280;

/// How soon an announce is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Urgency {
    /// At the interval that the tracker asked for.
    Regular,
    /// Within about a second: others should know that a blob was completed or dropped.
    Soon,
    /// At once: a pull waits for peers.
    Now,
}

/// The blobs of this node.
pub(super) type Blobs = HashMap<Digest, BlobStatus>;

/// The blobs that one tracker is to know of, and what it has not been told yet.
#[derive(Debug)]
pub(super) struct State {
    entries: HashMap<Digest, Entry>,
    /// Announced earlier, then dropped. Never more than were announced, and emptied by each announce.
    evicted: HashMap<Digest, Geometry>,
    /// Whether the next announce carries everything.
    full: bool,
    urgency: Urgency,
}

#[derive(Debug, Default)]
struct Entry {
    /// Whether the tracker has heard of the blob as it is.
    told: bool,
    /// Whether the tracker has been told of the blob at all.
    announced: bool,
    /// Whether it has refused it, so that this is logged once.
    refused: bool,
}

impl State {
    pub(super) fn new() -> Self {
        Self { entries: HashMap::new(), evicted: HashMap::new(), full: true, urgency: Urgency::Regular }
    }

    /// Number of blobs that the tracker is still to hear were dropped.
    #[cfg(all(test, feature = "server"))]
    pub(super) fn evicted(&self) -> usize {
        self.evicted.len()
    }

    /// How soon the next announce is due on account of updates.
    pub(super) fn urgency(&self) -> Urgency {
        self.urgency
    }

    /// The blobs that the tracker is to know of.
    pub(super) fn digests(&self) -> impl Iterator<Item = &Digest> {
        self.entries.keys()
    }

    /// The tracker is to know of a blob from now on.
    pub(super) fn place(&mut self, digest: Digest, urgency: Urgency) {
        if let hash_map::Entry::Vacant(place) = self.entries.entry(digest) {
            // One that it was to hear was dropped, it knows.
            let announced = self.evicted.remove(&digest).is_some();
            place.insert(Entry { announced, ..Entry::default() });
            self.urgency = self.urgency.max(urgency);
        }
    }

    /// Something became of a blob, which this tracker may be to know.
    pub(super) fn changed(&mut self, digest: &Digest, urgency: Urgency) {
        if let Some(entry) = self.entries.get_mut(digest) {
            entry.told = false;
            self.urgency = self.urgency.max(urgency);
        }
    }

    /// The tracker is not to know of a blob any more.
    pub(super) fn remove(&mut self, digest: &Digest, geometry: Geometry) {
        if let Some(entry) = self.entries.remove(digest)
            && entry.announced
        {
            self.evicted.insert(*digest, geometry);
            self.urgency = self.urgency.max(Urgency::Soon);
        }
    }

    /// The tracker may not know what it was told: the next announce carries everything.
    pub(super) fn forget_tracker(&mut self) {
        self.full = true;
    }

    /// Whether a refusal of this blob is the first one, to be logged.
    pub(super) fn refused_first(&mut self, digest: Digest) -> bool {
        self.entries.get_mut(&digest).is_some_and(|entry| !std::mem::replace(&mut entry.refused, true))
    }

    /// The requests that bring a tracker up to date: at least one, since it also says that the node
    /// lives. Wanted blobs come first. When they do not arrive, [`State::forget_tracker`] must be called.
    pub(super) fn take(&mut self, node: &PeerInfo, blobs: &Blobs) -> Vec<AnnounceRequest> {
        let full = std::mem::replace(&mut self.full, false);
        self.urgency = Urgency::Regular;
        let evicted = std::mem::take(&mut self.evicted).into_iter().filter(|_| !full).map(|(digest, geometry)| {
            BlobAnnounce { digest, geometry, pieces: PieceSet::Empty, event: Event::Evicted, want_peers: false }
        });
        let mut announced: Vec<BlobAnnounce> = self
            .entries
            .iter_mut()
            .filter_map(|(digest, entry)| Some((*digest, entry, blobs.get(digest)?)))
            .filter(|(_, entry, status)| full || !entry.told || status.want_peers)
            .map(|(digest, entry, status)| entry.take(digest, status, full))
            .collect();
        announced.sort_by_key(|blob| !blob.want_peers);
        announced.extend(evicted);
        split(node, full, announced)
    }

    /// What tells a tracker that the node stops.
    pub(super) fn stopped(node: &PeerInfo) -> AnnounceRequest {
        AnnounceRequest { stopped: true, ..AnnounceRequest::of(node.clone()) }
    }
}

/// How soon others should know of an update.
pub(super) fn urgency_of(before: Option<&BlobStatus>, after: &BlobStatus) -> Urgency {
    let wants = after.want_peers && before.is_none_or(|before| !before.want_peers);
    let completes =
        before.is_none_or(|before| after.pieces == PieceSet::Complete && before.pieces != PieceSet::Complete);
    match (wants, completes) {
        (true, _) => Urgency::Now,
        (false, true) => Urgency::Soon,
        (false, false) => Urgency::Regular,
    }
}

impl Entry {
    fn take(&mut self, digest: Digest, status: &BlobStatus, full: bool) -> BlobAnnounce {
        let event = match (&status.pieces, self.announced && !full) {
            (PieceSet::Complete, _) if !self.told || full => Event::Completed,
            (_, false) => Event::Started,
            (_, true) => Event::Progress,
        };
        self.told = true;
        self.announced = true;
        BlobAnnounce {
            digest,
            geometry: status.geometry,
            pieces: status.pieces.clone(),
            event,
            want_peers: status.want_peers,
        }
    }
}

/// Cuts a list of blobs into requests within the bounds. Only the first one can be full: the others
/// add to it.
fn split(node: &PeerInfo, full: bool, blobs: Vec<BlobAnnounce>) -> Vec<AnnounceRequest> {
    let new = |full| AnnounceRequest { full, ..AnnounceRequest::of(node.clone()) };
    let mut requests = Vec::new();
    let (mut request, mut bytes) = (new(full), 0);
    for blob in blobs {
        let size = BYTES_PER_BLOB + pieces_bytes(&blob.pieces);
        let fits = request.blobs.len() < BLOBS_PER_REQUEST && bytes + size <= BYTES_PER_REQUEST;
        if !fits && !request.blobs.is_empty() {
            requests.push(std::mem::replace(&mut request, new(false)));
            bytes = 0;
        }
        bytes += size;
        request.blobs.push(blob);
    }
    requests.push(request);
    requests
}

/// JSON of a set of pieces, bytes.
fn pieces_bytes(pieces: &PieceSet) -> usize {
    match pieces {
        PieceSet::Bitmap(bitmap) => 20 + bitmap.0.len().div_ceil(3) * 4,
        // Six digits at most, and a comma.
        PieceSet::Runs(runs) => 20 + runs.len() * 7,
        _ => 20,
    }
}

#[cfg(test)]
mod tests {
    use eagle_core::piece_set::Bitmap;

    use super::*;
    use crate::api::{MAX_ANNOUNCED_BLOBS, MAX_REQUEST_BYTES};

    fn digest(number: u32) -> Digest {
        Digest::of(&number.to_le_bytes())
    }

    fn status(pieces: PieceSet, want_peers: bool) -> BlobStatus {
        BlobStatus { geometry: Geometry::auto(1 << 30).unwrap(), pieces, want_peers }
    }

    /// A state and the blobs that it is about, as they are used together.
    struct Told {
        state: State,
        blobs: Blobs,
    }

    impl Told {
        fn new() -> Self {
            Self { state: State::new(), blobs: Blobs::new() }
        }

        fn update(&mut self, digest: Digest, status: BlobStatus) {
            let urgency = urgency_of(self.blobs.get(&digest), &status);
            if self.blobs.insert(digest, status).is_some() {
                self.state.changed(&digest, urgency);
            } else {
                self.state.place(digest, urgency);
            }
        }

        fn remove(&mut self, digest: Digest) {
            let status = self.blobs.remove(&digest).unwrap();
            self.state.remove(&digest, status.geometry);
        }

        /// One request, which must be all there is.
        fn take(&mut self) -> AnnounceRequest {
            let mut requests = self.state.take(&PeerInfo::example(), &self.blobs);
            assert_eq!(requests.len(), 1);
            requests.remove(0)
        }
    }

    fn events(request: &AnnounceRequest) -> Vec<(Digest, Event)> {
        request.blobs.iter().map(|blob| (blob.digest, blob.event)).collect()
    }

    #[test]
    fn the_life_of_a_blob() {
        let mut told = Told::new();
        assert!(told.take().full, "the first announce is full");
        let (blob, other) = (digest(1), digest(2));

        told.update(blob, status(PieceSet::Empty, true));
        assert_eq!(told.state.urgency(), Urgency::Now);
        let request = told.take();
        assert!(!request.full);
        assert_eq!(events(&request), [(blob, Event::Started)]);
        assert_eq!(told.state.urgency(), Urgency::Regular);

        // A wanted blob is in every announce; progress is not urgent and only its last state counts.
        told.update(blob, status(PieceSet::Prefix(1), true));
        told.update(blob, status(PieceSet::Prefix(2), true));
        assert_eq!(told.state.urgency(), Urgency::Regular);
        let request = told.take();
        assert_eq!(events(&request), [(blob, Event::Progress)]);
        assert_eq!(request.blobs[0].pieces, PieceSet::Prefix(2));
        assert_eq!(events(&told.take()), [(blob, Event::Progress)]);

        told.update(blob, status(PieceSet::Complete, false));
        assert_eq!(told.state.urgency(), Urgency::Soon);
        assert_eq!(events(&told.take()), [(blob, Event::Completed)]);
        assert_eq!(events(&told.take()), [], "nothing changed");

        told.update(other, status(PieceSet::Complete, false));
        told.remove(other);
        assert_eq!(events(&told.take()), [], "the tracker never knew it");
        told.remove(blob);
        assert_eq!(events(&told.take()), [(blob, Event::Evicted)]);
        assert_eq!(events(&told.take()), []);
    }

    #[test]
    fn after_a_failure_everything_is_said_again() {
        let mut told = Told::new();
        told.update(digest(1), status(PieceSet::Complete, false));
        told.update(digest(2), status(PieceSet::Prefix(3), true));
        told.take();
        told.remove(digest(1));
        told.take();
        told.state.forget_tracker();
        let request = told.take();
        assert!(request.full);
        assert_eq!(events(&request), [(digest(2), Event::Started)]);
        assert!(!told.take().full);
    }

    #[test]
    fn a_blob_that_comes_back_is_not_evicted() {
        let mut told = Told::new();
        told.update(digest(1), status(PieceSet::Complete, false));
        told.take();
        told.remove(digest(1));
        told.update(digest(1), status(PieceSet::Empty, true));
        assert_eq!(events(&told.take()), [(digest(1), Event::Progress)], "the tracker still lists it");
        told.remove(digest(1));
        assert_eq!(events(&told.take()), [(digest(1), Event::Evicted)]);
    }

    #[test]
    fn requests_stay_within_the_bounds() {
        let mut told = Told::new();
        for number in 0..12_000 {
            // The longest digests and, here and there, the largest bitmaps.
            let half = *digest(number).as_bytes().first_chunk::<32>().unwrap();
            let digest = Digest::Sha512([half, half].concat().try_into().unwrap());
            let large = PieceSet::Bitmap(Bitmap(vec![0x55; 32 << 10]));
            let pieces = if number % 100 == 0 { large } else { PieceSet::Complete };
            told.update(digest, status(pieces, number % 1000 == 7));
        }
        let requests = told.state.take(&PeerInfo::example(), &told.blobs);
        assert!(requests[0].full && requests[1..].iter().all(|request| !request.full));
        assert_eq!(requests.iter().map(|request| request.blobs.len()).sum::<usize>(), 12_000);
        assert!(requests[0].blobs[..12].iter().all(|blob| blob.want_peers));
        for request in &requests {
            assert!(request.blobs.len() <= MAX_ANNOUNCED_BLOBS);
            assert!(serde_json::to_vec(request).unwrap().len() <= MAX_REQUEST_BYTES);
        }
    }
}
