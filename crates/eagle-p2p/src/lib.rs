//! The peer network of Eagle: libp2p control connections, data channels, bandwidth limits and the driver of the swarm state machine.
#![warn(missing_docs)]
