//! Blob storage of Eagle: the seeder storage interface, its backends, and the node cache with LRU reclaim.
//!
//! [`BlobStorage`] is what a place to keep blobs has to offer; [`FsStorage`] and [`MemoryStorage`]
//! offer it. [`Cache`] keeps the blobs of one storage below a number of bytes and is what the roles
//! use: it knows which blobs are in use and which was used least recently.
#![warn(missing_docs)]

pub mod cache;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod envelope;
mod error;
mod fs;
mod memory;
mod policy;
pub mod ssi;

pub use cache::{Cache, CacheEntry, CacheStats, CachedBlob, CreateError, PartialEntry};
pub use error::StorageError;
pub use fs::FsStorage;
pub use memory::MemoryStorage;
pub use ssi::{BlobReader, BlobStorage, PartialBlob, StoredBlob};
