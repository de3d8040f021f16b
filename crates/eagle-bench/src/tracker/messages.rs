//! What the nodes of a cluster say to a tracker, made before it is measured.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, ensure};
use eagle_core::{Digest, Geometry, NodeRole, PeerInfo, PieceSet, Topology};
use eagle_tracker::{
    AnnounceRequest, BlobAnnounce, Event,
    api::ANNOUNCE_PATH,
    encoding::{Encoding, JSON, PROTOBUF},
};

use crate::cli::TrackerArgs;

/// Size of every blob: the mean of images' layers is a few tens of MiB.
const BLOB_SIZE: u64 = 32 << 20;
/// Zones of the nodes.
const ZONES: usize = 4;
/// Multiplier of a congruential generator (Steele and Vigna); only its upper bits are good.
const MULTIPLIER: u64 = 0xd134_2543_de82_ef95;

/// Requests as they go over a connection.
#[derive(Debug)]
pub(super) struct Messages {
    pub(super) requests: Vec<Vec<u8>>,
    /// Blobs in each request.
    pub(super) updates: u64,
}

/// A cluster: its nodes and what each has.
///
/// The blobs that a node has are drawn with a preference for few, as base layers are on every node and applications on
/// some: a number u from 0 to 1 chooses blob u² x B. Draws that hit a blob twice go to the next one.
#[derive(Debug, Clone)]
pub(super) struct Model {
    peers: usize,
    blobs: usize,
    blobs_per_peer: usize,
    updates: usize,
    asking: f64,
    encoding: Encoding,
}

impl Model {
    pub(super) fn new(args: &TrackerArgs) -> Result<Self> {
        ensure!(
            args.blobs_per_peer <= args.blobs,
            "a node cannot have {} of {} blobs",
            args.blobs_per_peer,
            args.blobs
        );
        ensure!(
            args.updates <= args.blobs_per_peer,
            "a node with {} blobs cannot announce {}",
            args.blobs_per_peer,
            args.updates
        );
        Ok(Self {
            peers: args.peers,
            blobs: args.blobs,
            blobs_per_peer: args.blobs_per_peer,
            updates: args.updates,
            asking: args.asking,
            encoding: if args.encode_json { Encoding::Json } else { Encoding::Protobuf },
        })
    }

    pub(super) const fn peers(&self) -> usize {
        self.peers
    }

    pub(super) const fn blobs_per_peer(&self) -> usize {
        self.blobs_per_peer
    }

    /// The first announce of a node: everything that it has.
    pub(super) fn full(&self, peer: usize) -> Result<Vec<u8>> {
        let blobs = self.blobs_of(peer).into_iter().map(|blob| announce(blob, PieceSet::Complete, false)).collect();
        self.request(peer, true, blobs)
    }

    /// Announces of nodes among the first `peers`, each of some of the blobs of its node. A share of them asks for peers
    /// of one blob, as a node does that downloads it.
    pub(super) fn announces(&self, count: usize, peers: usize) -> Result<Messages> {
        let mut random = Random(7);
        let requests = (0..count).map(|_| {
            let peer = random.below(peers);
            let own = self.blobs_of(peer);
            let first = random.below(own.len());
            let asks = self.updates > 0 && random.unit() < self.asking;
            let blobs = (0..self.updates).map(|at| {
                let blob = own.get((first + at) % own.len()).copied().unwrap_or_default();
                if asks && at == 0 {
                    announce(blob, PieceSet::Prefix(3), true)
                } else {
                    announce(blob, PieceSet::Complete, false)
                }
            });
            self.request(peer, false, blobs.collect())
        });
        Ok(Messages { requests: requests.collect::<Result<_>>()?, updates: u64::try_from(self.updates)? })
    }

    /// The same for the same peer.
    fn blobs_of(&self, peer: usize) -> Vec<usize> {
        let mut random = Random(u64::try_from(peer).unwrap_or_default().wrapping_mul(MULTIPLIER));
        let mut own = std::collections::BTreeSet::new();
        while own.len() < self.blobs_per_peer {
            let drawn = random.unit();
            // Below the number of blobs, since a unit is below 1.
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "from 0 to the number of blobs"
            )]
            let mut blob = (drawn * drawn * self.blobs as f64) as usize;
            while !own.insert(blob) {
                blob = (blob + 1) % self.blobs;
            }
        }
        own.into_iter().collect()
    }

    fn request(&self, peer: usize, full: bool, blobs: Vec<BlobAnnounce>) -> Result<Vec<u8>> {
        let request = AnnounceRequest { full, blobs, ..AnnounceRequest::of(node(peer)?) };
        let body = self.encoding.encode_request(&request)?;
        let media_type = if self.encoding == Encoding::Json { JSON } else { PROTOBUF };
        let mut head = String::new();
        write!(
            head,
            "POST {ANNOUNCE_PATH} HTTP/1.1\r\nhost: tracker\r\ncontent-type: {media_type}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        )?;
        Ok([head.as_bytes(), &body].concat())
    }
}

fn announce(blob: usize, pieces: PieceSet, want_peers: bool) -> BlobAnnounce {
    BlobAnnounce {
        digest: Digest::of(&blob.to_le_bytes()),
        geometry: geometry(),
        pieces,
        event: Event::Progress,
        want_peers,
    }
}

fn geometry() -> Geometry {
    // One size for all, which has a geometry.
    Geometry::auto(BLOB_SIZE).unwrap_or_else(|error| unreachable!("{error}"))
}

/// A node with an identity of the length that they have.
fn node(peer: usize) -> Result<PeerInfo> {
    let number = u32::try_from(peer)?;
    let [_, a, b, c] = number.to_be_bytes();
    Ok(PeerInfo {
        id: format!("12D3KooW{peer:044}").parse().context("not an identity")?,
        address: ([10, a, b, c], 61007).into(),
        role: NodeRole::Proxy,
        topology: Topology::new(None, Some(format!("zone-{}", peer % ZONES)), Some(format!("rack-{}", peer % 97)))?,
    })
}

/// A congruential generator: the same announces in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(MULTIPLIER).wrapping_add(1);
        u32::try_from(self.0 >> 32).unwrap_or_default()
    }

    /// From 0 to below 1.
    fn unit(&mut self) -> f64 {
        f64::from(self.next()) / (f64::from(u32::MAX) + 1.0)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next()).unwrap_or_default() % end.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> Model {
        Model { peers: 50, blobs: 200, blobs_per_peer: 20, updates: 5, asking: 0.5, encoding: Encoding::Protobuf }
    }

    fn read(request: &[u8]) -> AnnounceRequest {
        let end = request.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
        let head = String::from_utf8_lossy(&request[..end]);
        assert!(head.contains(&format!("content-length: {}\r\n", request.len() - end)), "{head}");
        Encoding::Protobuf.decode_request(&request[end..]).unwrap()
    }

    #[test]
    fn nodes_announce_what_they_have() {
        let model = model();
        let full = read(&model.full(3).unwrap());
        assert!(full.full && full.blobs.len() == 20);
        let messages = model.announces(200, 50).unwrap();
        let asking = messages.requests.iter().map(|request| read(request)).filter(|request| {
            assert!(!request.full && request.blobs.len() == 5);
            request.blobs.iter().any(|blob| blob.want_peers)
        });
        let asking = asking.count();
        assert!((60..140).contains(&asking), "{asking}");
        let again = model.announces(200, 50).unwrap();
        assert_eq!(again.requests, messages.requests);
    }

    #[test]
    fn few_blobs_are_on_most_nodes() {
        let model = model();
        let mut owners = vec![0; 200];
        for peer in 0..50 {
            for blob in model.blobs_of(peer) {
                owners[blob] += 1;
            }
        }
        assert_eq!(owners.iter().sum::<usize>(), 50 * 20);
        assert!(owners[0] > 5 * owners[199].max(1), "{owners:?}");
    }
}
