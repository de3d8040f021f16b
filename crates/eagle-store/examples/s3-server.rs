//! An S3 server over a directory for the end-to-end scenarios: `s3-server DIRECTORY BUCKET`. Prints its address and its keys, one a
//! line, and serves until it is killed.
#![allow(unreachable_pub, reason = "the module is shared with the tests of the crate")]

#[path = "../testing/s3.rs"]
mod s3;

use std::{env, io, path::PathBuf};

#[tokio::main]
async fn main() -> io::Result<()> {
    let mut arguments = env::args_os().skip(1);
    let (Some(root), Some(bucket)) = (arguments.next().map(PathBuf::from), arguments.next()) else {
        return Err(io::Error::other("usage: s3-server DIRECTORY BUCKET"));
    };
    tokio::fs::create_dir_all(root.join(bucket)).await?;
    let (listener, address) = s3::listen().await?;
    println!("{address}\n{}\n{}", s3::ACCESS_KEY_ID, s3::SECRET_ACCESS_KEY);
    s3::serve(listener, &root).await
}
