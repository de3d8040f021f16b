//! The pages of the book call the program as it can be called.

use std::path::Path;

use clap::CommandFactory as _;

use super::Cli;

#[path = "../../../xtask/src/pages/mod.rs"]
#[allow(dead_code, reason = "what runs the commands is in xtask")]
mod book;

#[test]
fn pages_and_help_call_the_program_as_it_is() {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let checked = book::command_line::check(root, "eagle-bench", &Cli::command());
    assert!(checked.problems.is_empty(), "{}", checked.problems.join("\n"));
    let found = (checked.typed, checked.examples, checked.mentioned);
    assert!(found.0 >= 7 && found.1 > 20 && found.2 > 20, "{found:?}");
}
