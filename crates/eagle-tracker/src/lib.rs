//! The tracker of Eagle: announce service, peer store and peer selection, and its client.
#![warn(missing_docs)]
