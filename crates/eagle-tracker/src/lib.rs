//! The tracker of Eagle: announce service, peer store and peer selection, and its client.
//!
//! A node tells the tracker which pieces of which blobs it owns and gets back, for each blob that it
//! still wants, an ordered list of peers. Everything that a tracker knows is soft state: it can be
//! rebuilt from announces, so a tracker may restart empty, and no pull may fail because of one.
//!
//! - [`api`] holds the messages; `docs/tracker-api.md` describes them for other clients.
//! - [`encoding`] writes them as protobuf (`docs/tracker.proto`) or JSON.
//! - [`server`] (feature `server`) is the role: HTTP service and [`store`]; whom it names is the core's [`policy`].
//! - [`client`] (feature `client`) is what the other roles use: the [`Announcer`].
#![warn(missing_docs)]

pub mod api;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "server")]
pub mod config;
#[cfg(any(feature = "server", feature = "client"))]
pub mod encoding;
#[cfg(feature = "server")]
mod metrics;
#[cfg(feature = "server")]
pub mod networks;
#[cfg(feature = "server")]
pub mod parsers;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "server")]
pub mod store;

#[cfg(feature = "server")]
pub use eagle_core::tracker::{ownership, policy};

pub use api::{AnnounceRequest, AnnounceResponse, BlobAnnounce, BlobPeers, Event, SwarmPeer};
#[cfg(feature = "client")]
pub use client::{Announcer, BlobStatus, Found, HeldLease, LiveSeeders, Registration, SeederClaim, check_tracker_url};
#[cfg(feature = "server")]
pub use config::TrackerConfig;
#[cfg(feature = "server")]
pub use server::{StartError, Tracker, TrackerPages};
