//! The pages of the book call the program as it can be called, and show configuration that it accepts.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use clap::CommandFactory as _;

use super::{CaCommand, CaInitArgs, Cli, RoleArg};
use crate::{
    ca,
    config::{Loaded, Sources, check::check},
};

#[path = "../../../xtask/src/pages/mod.rs"]
#[allow(dead_code, reason = "what runs the commands is in xtask")]
mod book;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

#[test]
fn pages_and_help_call_the_program_as_it_is() {
    let checked = book::command_line::check(Path::new(ROOT), "eagle", &Cli::command());
    assert!(checked.problems.is_empty(), "{}", checked.problems.join("\n"));
    let found = (checked.typed, checked.examples, checked.mentioned);
    assert!(found.0 > 30 && found.1 > 40 && found.2 > 40, "{found:?}");
}

/// As a role would read it on a machine that has the files.
fn accepted(text: &str, machine: &Path) -> Result<(), String> {
    let file = machine.join("eagle.yaml");
    let place = machine.display().to_string();
    fs::write(&file, text.replace("/etc/eagle", &place)).unwrap();
    let loaded = Loaded::from(Sources { file: Some(file), ..Sources::default() });
    loaded.and_then(|loaded| check(&loaded, RoleArg::All)).map_err(|errors| errors.to_string())
}

#[test]
fn configuration_in_pages_is_accepted() {
    let machine = tempfile::tempdir().unwrap();
    let authority = CaInitArgs { dir: machine.path().join("ca"), registries: Vec::new(), name: "Redis".to_owned() };
    ca::run(&CaCommand::Init(authority)).unwrap();
    fs::copy(machine.path().join("ca/ca.pem"), machine.path().join("redis-ca.pem")).unwrap();
    let key = "00112233445566778899aabbccddeeff".repeat(2);
    for (name, text) in [("cluster.key", key.as_str()), ("redis.password", "secret")] {
        let path = machine.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    let (mut found, mut problems) = (0, Vec::new());
    for (page, text) in book::pages(Path::new(ROOT)).unwrap() {
        let blocks = book::blocks(&page, &text).into_iter();
        for block in blocks.filter(|block| block.language == "yaml" && block.mark("for").is_none()) {
            found += 1;
            problems.extend(accepted(&block.text, machine.path()).err().map(|why| format!("{}: {why}", block.place())));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert!(found >= 6, "only {found} were found");
    assert!(accepted("proxy:\n  listn: 127.0.0.1:1\n", machine.path()).is_err());
}
