//! Constants of a swarm, with their reasons.

use std::time::Duration;

/// How a swarm behaves; the defaults suit clusters of 1 to 10,000 nodes.
#[derive(Debug, Clone)]
pub struct SwarmConfig {
    /// Requests in flight at once. In the simulator, 16 nodes: efficiency 0.87 with 4, 0.97 with 6
    /// to 8, 0.96 with 12 and 16 (`eagle-sim`, example `sweep`); 400 nodes: 0.86 with 6, 0.87 with 9, 0.86
    /// with 12 and 16.
    pub requests_in_flight: usize,
    /// Requests in flight at one peer, as long as there are other uploaders: what waits behind
    /// another piece at a busy uploader would often have come sooner from elsewhere.
    pub requests_per_peer: usize,
    /// Requests for any piece in flight at a seeder that spreads. With more, the first to ask can
    /// get several new pieces in a row and becomes the only source of all of them.
    pub spread_requests: usize,
    /// Requests that are in flight even if that takes two at one peer: the next piece is asked for
    /// while one arrives, so that a node with one or two sources does not pause between pieces.
    pub least_in_flight: usize,
    /// Pieces from the reader's position on that are preferred, so that a runtime streams; within
    /// it the rarest goes first. Where all start together it costs nothing that shows. Where nodes arrive
    /// one after another, a newcomer that first fetches what all others own has nothing to give them:
    /// 64 cost the first of 400 nodes 40 % of their time, 8 cost them 2 % (`docs/benchmarks.md`).
    pub window: u32,
    /// Peers of one swarm: above about 40 the picking no longer improves.
    pub max_peers: usize,
    /// Peers that a node greets itself, of those that a tracker names; the other places are for those
    /// who greet it. With no places kept, nodes that join last find everybody full: 1 of 3,000 had
    /// no neighbour at all (`tracker::connectivity`).
    pub greeted_peers: usize,
    /// Peers below which a node asks those that it knows for others while no tracker names any: as many as it greets. With 0 it
    /// never asks.
    pub exchange_below: usize,
    /// Interested peers that are served at a time. Upload slots bound what goes out at once, so this
    /// only keeps a crowd off a seeder: with 40, the nodes after the first 40 waited for a place there.
    pub unchoked_peers: usize,
    /// Requests of one peer that are held at once; more are refused.
    pub requests_held_per_peer: u16,
    /// Time between two batches of `Have`: short against a piece's time on most links, long
    /// against the cost of a message.
    pub have_interval: Duration,
    /// Time between two `Load` messages without a `Have`.
    pub load_interval: Duration,
    /// Least time without a byte before a request counts as stalled: a busy machine or disk pauses
    /// for some hundred milliseconds without being dead.
    pub shortest_stall: Duration,
    /// The stall time in multiples of the measured service time, where that is longer. Queueing at
    /// a busy uploader is no stall, and queues differ by about this much.
    pub stall_factor: u32,
    /// Longest time that a peer that let requests down is asked last; it begins with the stall time
    /// and doubles with each request in a row.
    pub longest_snub: Duration,
    /// Refusals of pieces in a row after which a peer counts as one that lies about what it owns.
    /// An honest peer that has just closed a blob refuses what was in flight, and then says so.
    pub most_refusals: u32,
    /// How long a peer whose channel failed, or whose queue was full, is not asked at all, and a
    /// seeder that had nothing to spread is not asked for that: a dial's time in a data centre with
    /// room, so that a peer that cannot be reached costs a few attempts and no busy loop.
    pub retry: Duration,
    /// A piece is asked for a second time, when nothing else is needed, once its request is older
    /// than this many times the measured service time.
    pub hedge_factor: f64,
    /// Guess of the service time before the first measurement.
    pub initial_service_time: Duration,
    /// Time between two rounds of choking.
    pub choke_interval: Duration,
}

impl Default for SwarmConfig {
    fn default() -> Self {
        Self {
            requests_in_flight: 9,
            requests_per_peer: 1,
            spread_requests: 1,
            least_in_flight: 4,
            window: 8,
            max_peers: 64,
            greeted_peers: 16,
            exchange_below: 16,
            unchoked_peers: 400,
            requests_held_per_peer: 8,
            have_interval: Duration::from_millis(10),
            load_interval: Duration::from_millis(50),
            shortest_stall: Duration::from_millis(500),
            stall_factor: 4,
            longest_snub: Duration::from_secs(10),
            most_refusals: 16,
            retry: Duration::from_millis(500),
            hedge_factor: 2.0,
            initial_service_time: Duration::from_millis(500),
            choke_interval: Duration::from_secs(5),
        }
    }
}
