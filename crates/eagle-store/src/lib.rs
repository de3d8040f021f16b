//! Blob storage of Eagle: the seeder storage interface, its backends, and the node cache with LRU reclaim.
#![warn(missing_docs)]
