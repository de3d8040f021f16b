//! `eagle-bench floor`.

use clap::Args;
use eagle_core::units::Size;

use crate::report::Output;

#[derive(Debug, Args)]
pub(crate) struct FloorArgs {
    /// Bytes to move
    #[arg(long, default_value = "1GiB", value_name = "SIZE")]
    pub(crate) size: Size,
    #[command(flatten)]
    pub(crate) output: Output,
}
