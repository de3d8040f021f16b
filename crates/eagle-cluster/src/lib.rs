//! Who belongs to a cluster.
//!
//! All nodes of a cluster hold the same **cluster key**, 32 random bytes. Whoever holds it is a member; everybody else
//! is a stranger and learns nothing. What each part of Eagle needs is derived from the key for that purpose alone
//! ([`ClusterKey::derive`]), so that no part can be turned against another.
//!
//! HTTP between members goes through [`MemberTls`]: a [`MemberClient`] or [`MemberConnector`] at one end, a
//! [`MemberAcceptor`] at the other, which lets plain HTTP in as that of a [`Who::Stranger`]. How many connections a listener has at a
//! time, and which of them give way, is in [`places`]; how often each may come, in [`Pace`].

mod acceptor;
mod authority;
mod client;
mod connector;
mod files;
mod key;
mod keys;
mod pace;
pub mod parsers;
pub mod places;
mod source;
mod sources;
mod stream;
mod tls;
mod verify;
mod waiting_room;

pub use self::{
    acceptor::{AcceptError, Accepted, MemberAcceptor, Who},
    client::MemberClient,
    connector::{ConnectError, MemberConnector, ReceiveBuffer},
    files::{FilesError, TlsFiles},
    key::{ClusterKey, ParseKeyError, Purpose},
    keys::{ClusterKeys, Membership, ParseKeysError},
    pace::{Pace, TooOften},
    source::source_of,
    sources::with_sources,
    stream::MemberStream,
    tls::{MemberTls, TlsError},
    waiting_room::{Place, WaitingRoom},
};
