//! Who takes part in a cluster, as trackers and peers tell each other.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

use serde::{Deserialize, Deserializer, Serialize, de};

use crate::{FarGroup, Place};

/// Longest node identity in characters; a libp2p PeerId with an Ed25519 key has 52.
const MAX_NODE_ID: usize = 64;
/// Longest topology label in characters; a Kubernetes label value has at most 63.
const MAX_LABEL: usize = 63;

/// Identity of a node: its libp2p PeerId in base58.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct NodeId(Arc<str>);

/// A text that cannot be a node identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a node identity is 1 to {MAX_NODE_ID} letters and digits")]
pub struct ParseNodeIdError;

impl NodeId {
    /// The identity as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeId {
    type Err = ParseNodeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = (1..=MAX_NODE_ID).contains(&text.len());
        if fits && text.bytes().all(|b| b.is_ascii_alphanumeric()) {
            Ok(Self(text.into()))
        } else {
            Err(ParseNodeIdError)
        }
    }
}

impl<'de> Deserialize<'de> for NodeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a node is in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeRole {
    /// Fetches blobs from the origin.
    Seeder,
    /// Serves the container runtime of its machine.
    Proxy,
}

/// Where a node is; labels that are not known are absent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topology {
    /// Region, the widest.
    #[serde(default, deserialize_with = "label")]
    pub region: Option<String>,
    /// Availability zone within the region.
    #[serde(default, deserialize_with = "label")]
    pub zone: Option<String>,
    /// Rack within the zone.
    #[serde(default, deserialize_with = "label")]
    pub rack: Option<String>,
}

/// What lies between two places, the narrowest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Boundary {
    /// They are in different racks of a zone.
    Rack,
    /// They are in different zones of a region.
    Zone,
    /// They are in different regions.
    Region,
}

impl Boundary {
    /// All of them, the narrowest first.
    pub const ALL: [Self; 3] = [Self::Rack, Self::Zone, Self::Region];
}

/// A text that cannot be a topology label.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a topology label has 1 to {MAX_LABEL} printable characters")]
pub struct LabelError;

impl Topology {
    /// A place from its labels.
    ///
    /// # Errors
    /// When a label is empty, longer than 63 bytes, or has control characters.
    pub fn new(region: Option<String>, zone: Option<String>, rack: Option<String>) -> Result<Self, LabelError> {
        Ok(Self { region: check_label(region)?, zone: check_label(zone)?, rack: check_label(rack)? })
    }

    /// The widest boundary between two nodes; `None` in the same rack.
    ///
    /// Labels that are absent on either side count as equal: without them all nodes are near.
    pub fn boundary(&self, other: &Self) -> Option<Boundary> {
        let same = |a: &Option<String>, b: &Option<String>| match (a, b) {
            (Some(a), Some(b)) => a == b,
            _ => true,
        };
        if !same(&self.region, &other.region) {
            Some(Boundary::Region)
        } else if !same(&self.zone, &other.zone) {
            Some(Boundary::Zone)
        } else if !same(&self.rack, &other.rack) {
            Some(Boundary::Rack)
        } else {
            None
        }
    }

    /// The group that this node is in for one that is at `other`, the same for all nodes that are together;
    /// `None` when it is in the same rack.
    pub fn group_seen_from(&self, other: &Self) -> Option<FarGroup> {
        Place::from(self).group_seen_from(&Place::from(other))
    }
}

fn label<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    check_label(Option::<String>::deserialize(deserializer)?).map_err(de::Error::custom)
}

fn check_label(label: Option<String>) -> Result<Option<String>, LabelError> {
    match &label {
        Some(text) if text.is_empty() || text.len() > MAX_LABEL || text.chars().any(char::is_control) => {
            Err(LabelError)
        }
        _ => Ok(label),
    }
}

/// Whether an address can be one that a single host listens on.
pub fn is_of_a_host(address: SocketAddr) -> bool {
    let ip = address.ip().to_canonical();
    let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    !(ip.is_unspecified() || ip.is_multicast() || broadcast) && address.port() != 0
}

/// A node as others need to know it to connect to it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerInfo {
    /// Identity, proven by the connection.
    pub id: NodeId,
    /// Address of its libp2p listener.
    pub address: SocketAddr,
    /// What it is.
    pub role: NodeRole,
    /// Where it is.
    #[serde(default)]
    pub topology: Topology,
}

impl PeerInfo {
    /// A well-formed value for tests and documentation.
    #[doc(hidden)]
    pub fn example() -> Self {
        Self {
            id: NodeId("12D3KooWexample".into()),
            address: SocketAddr::from(([127, 0, 0, 1], 61007)),
            role: NodeRole::Proxy,
            topology: Topology::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(region: &str, zone: &str, rack: &str) -> Topology {
        let some = |s: &str| (!s.is_empty()).then(|| s.to_owned());
        Topology { region: some(region), zone: some(zone), rack: some(rack) }
    }

    #[test]
    fn distance_grows_with_separation() {
        let here = at("r1", "z1", "k1");
        assert_eq!(here.boundary(&here), None);
        assert_eq!(here.boundary(&at("r1", "z1", "k2")), Some(Boundary::Rack));
        assert_eq!(here.boundary(&at("r1", "z2", "k1")), Some(Boundary::Zone));
        assert_eq!(here.boundary(&at("r2", "z1", "k1")), Some(Boundary::Region));
        assert_eq!(here.boundary(&Topology::default()), None);
    }

    #[test]
    fn refuses_hostile_identities_and_labels() {
        for id in ["", "a b", "../x", &"a".repeat(65)] {
            assert!(id.parse::<NodeId>().is_err());
        }
        for label in ["\"\"", "\"a\\nb\"", &format!("\"{}\"", "x".repeat(64))] {
            assert!(serde_json::from_str::<Topology>(&format!("{{\"zone\":{label}}}")).is_err());
        }
    }
}
