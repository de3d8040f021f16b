//! The seeder of Eagle: origin fetch with cut-through, metainfo, manifests, and the seeder client.
//!
//! A seeder stands between a cluster and its origin registries. It fetches each blob once, whoever asks
//! and however many, and offers every piece the moment it has it: over the peer network, and its hash on
//! the *metainfo stream* that tells proxies what each piece must look like. Manifests go through it too,
//! so that a thousand nodes that ask for the same tag are one question to the origin.
//!
//! - [`Seeder`] is the role; [`SeederConfig`] its settings.
//! - [`images`] is which images the blobs of a node belong to, and which of them are kept.
//! - [`preheat`] is what fetches images before anybody pulls them.
//! - [`client`] is what proxies use to talk to seeders.
//!
//! ```text
//!            origin registry
//!                  │ blob, once                 manifests, collapsed
//!                  ▼                                    ▼
//!   fetch: read ─► hash ─► storage                  manifests
//!                  │ piece by piece                     │
//!        ┌─────────┴──────────┐                         │
//!   peer network        metainfo stream             HTTP API ◄── proxies
//! ```
#![warn(missing_docs)]

mod access;
mod answer;
mod blobs;
pub mod client;
mod collapse;
pub mod config;
mod durable_file;
mod error;
mod fetch;
pub mod images;
mod lease;
mod manifests;
mod metrics;
mod notifications;
#[doc(hidden)]
pub mod parsers;
pub mod preheat;
mod request_body;
mod route;
mod schedule;
mod seeder;
mod server;
mod shared;
mod shared_secret;
mod storage;
pub mod stored;

pub use client::{MetainfoStream, SeederClient, SeederError};
pub use config::{PieceLength, SeederConfig};
pub use metrics::Counters;
pub use seeder::{Seeder, SeederDeps, StartError};
pub use storage::{ObjectStoreConfig, ParseStorageError, StorageLocation};
