//! The messages between seeders and trackers: who is alive, and who fetches which blob. In JSON; there are few seeders.

use std::time::Duration;

use eagle_core::{Digest, NodeId, tracker::seeders::SeederInfo};
use serde::{Deserialize, Serialize};

/// Path where seeders say that they are alive, and where their list is.
pub const SEEDERS_PATH: &str = "/v1/seeders";
/// Path where they ask for leases.
pub const LEASES_PATH: &str = "/v1/leases";
/// Path where they give leases back.
pub const RELEASE_PATH: &str = "/v1/leases/release";

/// How often a seeder says that it is alive.
pub const HEARTBEAT: Duration = Duration::from_secs(2);
/// How long a seeder, and a lease, lives without being heard of: several heartbeats, so that a few that
/// come late on a busy machine do no harm. Nodes wait that long for the blobs of a seeder that was killed.
pub const LIFETIME: Duration = Duration::from_secs(10);
/// How long a lease lives without a byte of progress. Seeders give up an origin that stalls long before.
pub const LEASE_PATIENCE: Duration = Duration::from_secs(120);
/// Most seeders of a cluster; it has some tens at most.
pub const MAX_SEEDERS: usize = 1_000;
/// Most leases of one seeder: it fetches 256 blobs at a time, and keeps a lease for some seconds after.
pub const MAX_LEASES_PER_SEEDER: usize = 1_024;
/// Most leases at a time: 200 bytes each, so 20 MB.
pub const MAX_LEASES: usize = 100_000;
/// Longest URL and storage location of a seeder, bytes.
pub const MAX_TEXT: usize = 2_048;
/// Most seeders that a claim may leave out.
pub const MAX_WITHOUT: usize = 16;

/// A seeder says that it is alive, and which leases it still uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatRequest {
    /// The seeder. An unspecified IP address in its URL (`0.0.0.0`, `[::]`) stands for the address that the tracker sees the
    /// request come from.
    pub seeder: SeederInfo,
    /// Whether it ends now, and gives everything back.
    #[serde(default)]
    pub stopped: bool,
    /// Its leases, at most [`MAX_LEASES_PER_SEEDER`].
    #[serde(default)]
    pub leases: Vec<LeaseRenewal>,
}

/// A lease that is still used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRenewal {
    /// Of which blob.
    pub digest: Digest,
    /// From the answer to its claim.
    pub token: u64,
    /// How far the fetch is, bytes.
    pub progress: u64,
}

/// The answer to a heartbeat.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeartbeatResponse {
    /// Seconds until the next one.
    pub interval_seconds: f64,
    /// Where the tracker tells others that this seeder is.
    pub url: String,
    /// The version of the list of seeders.
    pub version: u64,
    /// Leases that are not the sender's, or not any more.
    #[serde(default)]
    pub lost: Vec<Digest>,
}

/// The seeders that are alive.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SeedersResponse {
    /// A number that changes with the list.
    pub version: u64,
    /// The seeders, at most [`MAX_SEEDERS`].
    pub seeders: Vec<SeederSummary>,
}

/// A seeder at a glance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SeederSummary {
    /// What it says of itself.
    #[serde(flatten)]
    pub info: SeederInfo,
    /// Number of its leases.
    #[serde(default)]
    pub leases: usize,
    /// Seconds since it was heard of first.
    #[serde(default)]
    pub age_seconds: f64,
    /// Seconds since it was heard of last.
    #[serde(default)]
    pub last_heartbeat_seconds: f64,
}

/// A seeder wants to fetch a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimRequest {
    /// The blob.
    pub digest: Digest,
    /// Who wants to. This is a heartbeat too.
    pub seeder: SeederInfo,
    /// Seeders that do not have the blob, whatever they announced; at most [`MAX_WITHOUT`].
    #[serde(default)]
    pub without: Vec<NodeId>,
}

/// What becomes of a claim.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClaimResponse {
    /// It is the claimant's turn.
    Granted {
        /// To renew the lease and to give it back.
        token: u64,
        /// How long it lives without a heartbeat, seconds.
        lifetime_seconds: f64,
    },
    /// This one fetches the blob, or has it.
    Held {
        /// The seeder.
        holder: SeederInfo,
    },
}

/// A seeder gives a lease back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseRequest {
    /// Of which blob.
    pub digest: Digest,
    /// From the answer to its claim.
    pub token: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_others_may_send() {
        let digest = Digest::of(b"blob");
        let text = format!(
            r#"{{"seeder": {{"id": "a", "url": "http://a:55008", "new": 1}}, "leases": [
            {{"digest": "{digest}", "token": 7, "progress": 1}}]}}"#
        );
        let request: HeartbeatRequest = serde_json::from_str(&text).unwrap();
        assert_eq!((request.stopped, request.leases[0].token), (false, 7));
        assert_eq!(
            serde_json::from_str::<HeartbeatRequest>(&serde_json::to_string(&request).unwrap()).unwrap(),
            request
        );
        let granted = ClaimResponse::Granted { token: 7, lifetime_seconds: 10.0 };
        assert_eq!(serde_json::to_string(&granted).unwrap(), r#"{"granted":{"token":7,"lifetime_seconds":10.0}}"#);
        let summary = SeederSummary { info: request.seeder, leases: 1, age_seconds: 2.5, last_heartbeat_seconds: 0.5 };
        let list = SeedersResponse { version: 1 << 52, seeders: vec![summary] };
        assert_eq!(serde_json::from_str::<SeedersResponse>(&serde_json::to_string(&list).unwrap()).unwrap(), list);
        for bad in ["{}", r#"{"seeder": {"id": "a b", "url": ""}}"#, r#"{"seeder": {"id": "a"}}"#, "[]", "null"] {
            assert!(serde_json::from_str::<HeartbeatRequest>(bad).is_err(), "{bad}");
        }
    }
}
