//! `eagle top`: what goes on in a cluster, as its trackers know it, live on a terminal.
//!
//! [`source`] asks the trackers, [`screen`] holds what is shown and what keys do, [`render`] draws that. Here is what ties them to a
//! terminal, and the output for whoever has none.

mod list;
mod render;
mod screen;
mod source;
mod terminal;

use std::io::IsTerminal as _;

use anyhow::{Context as _, Result};

use self::source::Source;
use crate::cli::TopArgs;

/// Shows the cluster of some trackers until told to stop; once, and as plain text, where the output is no terminal.
///
/// # Errors
/// When addresses, configuration or key make no sense, no tracker answers at first, or the terminal fails.
pub(crate) async fn run(args: &TopArgs) -> Result<()> {
    let source = Source::new(args).await?;
    let cluster = source.cluster().await.context("`eagle top` asks trackers; name them with --tracker or --config")?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&cluster)?);
        return Ok(());
    }
    if args.once || !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        print!("{}", render::plain(&cluster));
        return Ok(());
    }
    terminal::run(source, cluster, args.interval).await
}
