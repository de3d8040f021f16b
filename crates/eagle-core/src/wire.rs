//! Messages between peers: [`control`] over libp2p streams, [`data`] over data channels.

pub mod control;
pub mod data;
