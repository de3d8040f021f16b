//! Blob storage of Eagle: the seeder storage interface, its backends, and the node cache with LRU reclaim.
//!
//! [`BlobStorage`] is what a place to keep blobs has to offer; [`FsStorage`], [`MemoryStorage`] and
//! [`ObjectStorage`] offer it, and [`wrappers`] make any of them slower, limited or faulty. [`Cache`] keeps the blobs of one storage below a number of bytes and is what the roles
//! use: it knows which blobs are in use and which was used least recently.
#![warn(missing_docs)]

#[cfg(test)]
extern crate self as eagle_store;

pub mod answers;
pub mod cache;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod envelope;
mod error;
#[cfg(test)]
mod example;
mod fs;
mod lease;
mod memory;
mod object;
#[doc(hidden)]
pub mod parsers;
mod policy;
mod read_ahead;
pub mod ssi;
pub mod wrappers;

pub use cache::{Cache, CacheEntry, CacheSettings, CacheStats, CachedBlob, CreateError, PartialEntry, ScrubPlace};
pub use error::StorageError;
pub use fs::FsStorage;
pub use lease::{Claim, Claimant, Holder, Lease};
pub use memory::MemoryStorage;
pub use object::{BucketKind, BucketSettings, BucketUrl, ObjectStorage, ParseBucketError};
pub use read_ahead::read_ahead;
pub use ssi::{BlobReader, BlobStorage, PartialBlob, SpaceOnDisk, StoredBlob};
