//! The proxy of Eagle: the registry mirror that container runtimes pull through.
//!
//! A runtime talks to the proxy as to a registry. Manifests are passed on to the origin through the
//! seeders; they say which blobs the caller may read ([`grants`]). Blobs come from the swarm of all
//! nodes that want them ([`download`]), each piece as soon as it is there; whatever fails, the next
//! source takes over from the byte reached, the origin last.
#![warn(missing_docs)]

mod answer;
pub mod config;
pub mod download;
pub mod forward;
pub mod grants;
mod login;
pub mod metrics;
#[doc(hidden)]
pub mod parsers;
pub mod path;
pub mod proxy;
mod pull;
mod remembered;
pub mod rules;
mod server;
mod service;
pub mod upstream;
mod warm;
mod web;

pub use config::{ConfigError, ProxyConfig};
pub use metrics::Traffic;
pub use proxy::{Proxy, ProxyDeps, StartError};
pub use rules::{Action, Rule, Rules};
