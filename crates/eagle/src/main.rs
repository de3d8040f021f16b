//! Peer-to-peer distribution of container images: tracker, seeder and proxy in one binary.

fn main() {}
