//! What clients, seeders and a shared store send to trackers, as functions of it alone: for the fuzz targets (`eagle-fuzz`), which have no
//! connection to receive it on.

use std::net::IpAddr;

use eagle_core::{Digest, Geometry, NodeId};

use crate::{
    api::seeders::{ClaimRequest, HeartbeatRequest},
    server, store,
};

/// After which entry a page begins and how many it has at most, by the query of a request.
///
/// # Errors
/// Where it asks for no page.
pub fn page(query: &str) -> Result<(Option<String>, usize), String> {
    server::page(query)
}

/// The same of a list that may show pieces, and whether it is to.
///
/// # Errors
/// Where it asks for no page.
pub fn pieces_page(query: &str) -> Result<(bool, Option<String>, usize), String> {
    server::pieces_page(query)
}

/// The blob and the node that the last part of a path names, where it names one.
pub fn named(part: &str) -> (Option<Digest>, Option<NodeId>) {
    (server::named(part).ok(), server::named(part).ok())
}

/// A heartbeat of a seeder at this address.
///
/// # Errors
/// Where it is none.
pub fn heartbeat(body: &[u8], source: IpAddr) -> Result<HeartbeatRequest, String> {
    server::heartbeat_in(body, source)
}

/// A claim of a seeder at this address.
///
/// # Errors
/// Where it is none.
pub fn claim(body: &[u8], source: IpAddr) -> Result<ClaimRequest, String> {
    server::claim_in(body, source)
}

/// A member of a swarm as Redis keeps it, in a swarm of this size and piece length: the swarm's geometry, how many pieces the member has, and
/// its record written anew.
pub fn redis_member(size: &[u8], length: &[u8], value: &[u8]) -> Option<(Geometry, u32, Vec<u8>)> {
    store::read_member(size, length, value)
}
