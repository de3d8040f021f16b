//! Commands that the program starts itself with.

use std::{ffi::OsString, net::IpAddr, path::PathBuf};

use clap::Args;
use eagle_core::units::Size;

#[derive(Debug, Args)]
pub(crate) struct NothingArgs {
    /// Written once it listens
    #[arg(long, value_name = "FILE")]
    pub(crate) ready_file: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct OriginArgs {
    /// Size of a layer of the image; repeatable
    #[arg(long = "layer", value_name = "SIZE", required = true)]
    pub(crate) layers: Vec<Size>,
    /// Images to generate, alike but for their content
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) images: u32,
    /// The address to listen at, at any port
    #[arg(long, default_value = "127.0.0.1", value_name = "IP")]
    pub(crate) address: IpAddr,
    /// Least size of the image's configuration
    #[arg(long, default_value = "0", value_name = "SIZE")]
    pub(crate) config_size: Size,
    /// Written once it listens
    #[arg(long, value_name = "FILE")]
    pub(crate) ready_file: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct OwnedArgs {
    /// Run it on this core only
    #[arg(long, value_name = "NUMBER")]
    pub(crate) core: Option<usize>,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<OsString>,
}
