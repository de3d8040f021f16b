//! The seeder of Eagle: origin fetch with cut-through, metainfo, manifests, and the seeder client.
#![warn(missing_docs)]
