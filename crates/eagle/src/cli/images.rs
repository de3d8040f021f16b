//! Arguments of the commands about images.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use eagle_seeder::preheat::{NodeTarget, Platforms};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eagle preheat --wait debian:12 ghcr.io/org/app:1.4
  eagle preheat --platform linux/amd64,linux/arm64 --nodes all --file images.txt
  eagle preheat --cluster-key-file /etc/eagle/cluster.key --seeder http://seeder:55008 debian:12
  eagle preheat --seeder http://seeder:55008 --json --wait debian:12 | jq '.images[].blobs[]'

Without --wait the name of the job is printed; GET /v1/preheat/NAME tells how it goes, DELETE cancels it.")]
pub(crate) struct PreheatArgs {
    /// Images, as for docker pull
    #[arg(value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
    /// A file with an image on each line, # for comments; - is standard input
    #[arg(long, value_name = "LIST")]
    pub(crate) file: Option<PathBuf>,
    /// Platforms, as in linux/amd64,linux/arm64, or all
    #[arg(long, value_name = "PLATFORMS", default_value = "all")]
    pub(crate) platform: Platforms,
    /// How many nodes to warm after the seeders: a number, all or none
    #[arg(long, value_name = "N", default_value = "none")]
    pub(crate) nodes: NodeTarget,
    /// HTTP API of a seeder
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:55008")]
    pub(crate) seeder: String,
    /// What preheat.token of the seeder says
    #[arg(long, env = "EAGLE_PREHEAT__TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub(crate) token: Option<String>,
    /// File with the cluster key, for a seeder that has one and no token
    #[arg(long, env = "EAGLE_CLUSTER__KEY_FILE", value_name = "FILE")]
    pub(crate) cluster_key_file: Option<PathBuf>,
    /// Wait until it is done; fails if anything could not be fetched
    #[arg(long)]
    pub(crate) wait: bool,
    /// Print the job as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eagle cache ls                                     the proxy on this machine
  eagle cache --admin 127.0.0.1:55009 ls --json      a seeder
  eagle cache rm debian:11                           frees what no other image needs
  eagle cache pin registry.example/base:stable       keeps it, whatever is pulled
  eagle cache verify                                 reads every blob; what is corrupt is removed")]
pub(crate) struct CacheArgs {
    /// Admin address of the role
    #[arg(long, global = true, default_value = "http://127.0.0.1:43003", value_name = "URL")]
    pub(crate) admin: String,
    /// Print JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: CacheCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CacheCommand {
    /// List the images, or the blobs.
    Ls {
        /// Every blob with the images that it belongs to
        #[arg(long)]
        blobs: bool,
    },
    /// Show an image and its blobs, or a blob.
    Inspect {
        /// An image, or the digest of a blob
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Remove images with the blobs that no other one needs, or blobs that none needs.
    Rm {
        /// Images, or digests of blobs
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,
    },
    /// Keep images from being evicted.
    Pin {
        /// Images
        #[arg(value_name = "IMAGE", required = true)]
        images: Vec<String>,
    },
    /// Let images be evicted again.
    Unpin {
        /// Images
        #[arg(value_name = "IMAGE", required = true)]
        images: Vec<String>,
    },
    /// Compare blobs with their digests, all unless some are named, and remove those that differ.
    Verify {
        /// Images, or digests of blobs
        #[arg(value_name = "NAME")]
        names: Vec<String>,
    },
}
