//! What is common to commands that start nodes.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use eagle_core::{
    Geometry,
    units::{Rate, Size},
};
use serde::Serialize;

/// A cluster on this machine.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct ClusterArgs {
    /// Proxies, each a node of the swarm
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) nodes: u32,
    /// Bytes of content, a multiple of 512 and at least 2048
    #[arg(long, default_value = "128MiB", value_name = "SIZE")]
    pub(crate) size: Size,
    /// Limit of every node, down and up, as in 20MB/s; or unlimited
    #[arg(long, default_value = "unlimited", value_name = "RATE")]
    pub(crate) rate: Rate,
    /// Limit of the seeder, down and up; that of the nodes unless given
    #[arg(long, value_name = "RATE")]
    pub(crate) seeder_rate: Option<Rate>,
    /// How pieces travel between nodes
    #[arg(long, value_enum, default_value_t = Encryption::Tls, value_name = "MODE")]
    pub(crate) encryption: Encryption,
    /// How the seeder cuts blobs: auto, by their size, or a power of two from 64KiB to 16MiB
    #[arg(long, default_value = "auto", value_name = "auto|SIZE", value_parser = piece_length)]
    pub(crate) piece_length: PieceLength,
    /// The eagle program; the one beside this program unless given
    #[arg(long, value_name = "FILE")]
    pub(crate) eagle: Option<PathBuf>,
    /// Keep logs and configurations of all processes in this directory
    #[arg(long, value_name = "DIR")]
    pub(crate) keep_logs: Option<PathBuf>,
    /// What the processes log: error, warn, info, debug, trace or a filter
    #[arg(long, default_value = "info", value_name = "LEVEL")]
    pub(crate) log_level: String,
}

/// Modes of `p2p.encryption`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Encryption {
    /// TLS between peers that prove who they are.
    Tls,
    /// In clear, for trusted networks.
    None,
}

impl Encryption {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::None => "none",
        }
    }
}

/// The seeder's `piece_length`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PieceLength {
    Auto,
    Fixed(u32),
}

impl PieceLength {
    /// How the seeder cuts a blob of `size` bytes: as it is told, or by itself where there would be too many pieces.
    pub(crate) fn geometry(self, size: u64) -> Result<Geometry, eagle_core::geometry::GeometryError> {
        match self {
            Self::Auto => Geometry::auto(size),
            Self::Fixed(length) => Geometry::new(size, length).or_else(|_| Geometry::auto(size)),
        }
    }
}

impl std::fmt::Display for PieceLength {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Fixed(length) => Size(u64::from(*length)).fmt(f),
        }
    }
}

fn piece_length(text: &str) -> Result<PieceLength, String> {
    if text == "auto" {
        return Ok(PieceLength::Auto);
    }
    let size: Size = text.parse().map_err(|error| format!("{error}"))?;
    let length = u32::try_from(size.0).map_err(|error| error.to_string())?;
    Geometry::new(0, length).map_err(|error| error.to_string())?;
    Ok(PieceLength::Fixed(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn piece_lengths() {
        assert_eq!(piece_length("auto"), Ok(PieceLength::Auto));
        assert_eq!(piece_length("1MiB"), Ok(PieceLength::Fixed(1 << 20)));
        assert_eq!(PieceLength::Fixed(1 << 20).to_string(), "1MiB");
        for bad in ["3MiB", "1", "32MiB", "many", "8GiB"] {
            assert!(piece_length(bad).is_err(), "{bad}");
        }
    }
}
