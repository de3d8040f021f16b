//! Who belongs to a cluster.
//!
//! All nodes of a cluster hold the same **cluster key**, 32 random bytes. Whoever holds it is a member; everybody else
//! is a stranger and learns nothing. What each part of Eagle needs is derived from the key for that purpose alone
//! ([`ClusterKey::derive`]), so that no part can be turned against another.

mod key;
mod keys;

pub use self::{
    key::{ClusterKey, ParseKeyError, Purpose},
    keys::{ClusterKeys, Membership, ParseKeysError},
};
