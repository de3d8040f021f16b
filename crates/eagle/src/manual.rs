//! `eagle completions` and `eagle man`, both made from the command line's own description.

use std::{fs, io};

use anyhow::{Context, Result};
use clap::CommandFactory as _;

use crate::cli::{Cli, CompletionsArgs, ManArgs};

/// Prints what completes commands and flags in a shell.
///
/// # Errors
/// When nothing can be printed.
pub(crate) fn completions(args: &CompletionsArgs) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "eagle", &mut script);
    print(&script)
}

/// Prints the manual page of the program, or writes one for every command.
///
/// # Errors
/// When it cannot be printed or written.
pub(crate) fn pages(args: &ManArgs) -> Result<()> {
    let Some(directory) = &args.dir else {
        let mut page = Vec::new();
        clap_mangen::Man::new(Cli::command()).render(&mut page)?;
        return print(&page);
    };
    let shown = directory.display();
    fs::create_dir_all(directory).with_context(|| format!("cannot make {shown}"))?;
    clap_mangen::generate_to(Cli::command(), directory).with_context(|| format!("cannot write to {shown}"))
}

/// A reader that has seen enough, as `head` has, is no failure.
fn print(text: &[u8]) -> Result<()> {
    match io::Write::write_all(&mut io::stdout(), text) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed.context("cannot print"),
    }
}
