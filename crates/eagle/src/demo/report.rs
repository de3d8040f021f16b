//! What the demonstration found: a table for people, JSON for scripts.

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use eagle_core::units::Rate;
use serde::Serialize;

/// One node's pull.
#[derive(Debug, Clone, Serialize)]
pub(super) struct NodeReport {
    pub(super) node: usize,
    pub(super) seconds: f64,
    pub(super) first_byte_seconds: f64,
    pub(super) peer_bytes: u64,
    pub(super) seeder_bytes: u64,
    pub(super) origin_bytes: u64,
    /// Of the ideal; absent without a rate.
    pub(super) efficiency: Option<f64>,
}

/// One blob at the origin.
#[derive(Debug, Clone, Serialize)]
pub(super) struct BlobReport {
    pub(super) digest: String,
    pub(super) size_bytes: u64,
    pub(super) origin_requests: u64,
    pub(super) origin_bytes: u64,
}

/// The whole demonstration.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Report {
    pub(super) image: String,
    pub(super) nodes: usize,
    pub(super) size_bytes: u64,
    pub(super) rate_bytes_per_second: Option<u64>,
    pub(super) encryption: &'static str,
    pub(super) piece_length: u32,
    pub(super) seconds: f64,
    pub(super) ideal_seconds: Option<f64>,
    /// Of the slowest node.
    pub(super) efficiency: Option<f64>,
    pub(super) delivered_bytes: u64,
    pub(super) peer_bytes: u64,
    /// What the origin sent of the image's blobs; with a registry of one's own, what Eagle counted.
    pub(super) origin_bytes: u64,
    /// The same as a multiple of the image.
    pub(super) origin_multiple: f64,
    /// URLs of the proxies.
    pub(super) proxies: Vec<String>,
    /// Known where the origin is the embedded one.
    pub(super) blobs: Vec<BlobReport>,
    pub(super) per_node: Vec<NodeReport>,
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1e6)
}

/// With the nearest unit; exact bytes are in the JSON.
fn human(bytes: u64) -> String {
    if bytes < 1 << 20 {
        format!("{:.1} KiB", bytes as f64 / 1024.0)
    } else {
        format!("{:.1} MiB", bytes as f64 / 1_048_576.0)
    }
}

fn percent(efficiency: Option<f64>) -> String {
    efficiency.map_or_else(|| "n/a".to_owned(), |value| format!("{:.0} %", value * 100.0))
}

impl Report {
    /// The table and the summary below it.
    pub(super) fn text(&self) -> String {
        let mut table = Table::new();
        table.load_preset(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header([
            "node",
            "seconds",
            "first byte",
            "MB from peers",
            "from seeder",
            "from origin",
            "efficiency",
        ]);
        for node in &self.per_node {
            table.add_row(
                [
                    node.node.to_string(),
                    format!("{:.2}", node.seconds),
                    format!("{:.3}", node.first_byte_seconds),
                    megabytes(node.peer_bytes),
                    megabytes(node.seeder_bytes),
                    megabytes(node.origin_bytes),
                    percent(node.efficiency),
                ]
                .map(|text| Cell::new(text).set_alignment(CellAlignment::Right)),
            );
        }
        let rate = self.rate_bytes_per_second.map_or(Rate::Unlimited, Rate::Limited);
        let without = self.nodes as f64 * self.size_bytes as f64;
        let ideal = match self.ideal_seconds {
            Some(ideal) => format!("{ideal:.2} s"),
            None => "n/a (without a rate there is none)".to_owned(),
        };
        let mut lines = vec![
            format!(
                "{}, {}, to {} nodes at {rate} each, {} encryption",
                self.image,
                human(self.size_bytes),
                self.nodes,
                self.encryption
            ),
            format!(
                "slowest node  {:.2} s; no scheme can beat {ideal}; efficiency {}",
                self.seconds,
                percent(self.efficiency)
            ),
            format!(
                "origin        sent {} MB, {:.2} times the image; without Eagle {:.1} MB",
                megabytes(self.origin_bytes),
                self.origin_multiple,
                without / 1e6
            ),
        ];
        if !self.blobs.is_empty() {
            let requests: Vec<String> = self.blobs.iter().map(|blob| blob.origin_requests.to_string()).collect();
            lines.push(format!("requests      {} of the origin, by blob", requests.join(" ")));
        }
        lines.push(format!(
            "peers         gave {} of {} MB ({:.0} %)",
            megabytes(self.peer_bytes),
            megabytes(self.delivered_bytes),
            self.peer_bytes as f64 * 100.0 / self.delivered_bytes.max(1) as f64
        ));
        format!("{table}\n\n{}", lines.iter().map(|line| format!("  {line}\n")).collect::<String>())
    }
}
