//! This program in the place of the compiler: what of a build is watched by the fuzzer.
//!
//! cargo calls it for the crates of the workspace alone (`RUSTC_WORKSPACE_WRAPPER`) and keeps what comes of that apart from what the tests are
//! made of. It compiles them with coverage, as cargo-fuzz does it (LLVM's `SanitizerCoverage`, which the stable compiler has too). Libraries are
//! compiled as always, or are there already: no target is about one, their branches would only cost time, and what of them is generic is
//! compiled with the crate that uses it anyway.

use std::{
    env,
    ffi::{OsStr, OsString},
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
};

/// Set for a build in which this program stands for the compiler.
pub(super) const MARK: &str = "EAGLE_FUZZ_COMPILER";

/// Counters in line and a table of places, which libFuzzer reads; and what is compared with what, so that it finds magic numbers and words.
const COVERAGE: [&str; 5] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// Becomes the compiler when cargo calls this program in its place; otherwise `None`.
pub(crate) fn stand_in() -> Option<ExitCode> {
    env::var_os(MARK)?;
    let mut arguments = env::args_os().skip(1);
    let compiler = arguments.next()?;
    let arguments: Vec<OsString> = arguments.collect();
    let coverage: &[&str] = if is_watched(&arguments) { &COVERAGE } else { &[] };
    let error = Command::new(&compiler).args(arguments).args(coverage).exec();
    eprintln!("cannot start the compiler {}: {error}", compiler.display());
    Some(ExitCode::FAILURE)
}

/// Whether a call of the compiler makes something that runs in a target: not build scripts and macros, which run in the build, where nothing
/// counts; nor what cargo asks the compiler about itself.
fn is_watched(arguments: &[OsString]) -> bool {
    let follows = |option: &str, wanted: &dyn Fn(&str) -> bool| {
        let mut pairs = arguments.windows(2);
        pairs.any(|pair| pair[0] == OsStr::new(option) && pair[1].to_str().is_some_and(wanted))
    };
    // Named by cargo `___` when it asks.
    follows("--crate-name", &|name| !name.starts_with("build_script_") && name != "___")
        && !follows("--crate-type", &|kind| kind == "proc-macro")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_in_a_target_is_watched() {
        let is = |arguments: &str| is_watched(&arguments.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert!(is("--crate-name eagle_core src/lib.rs --crate-type lib"));
        assert!(is("--crate-name eagle_fuzz src/main.rs --crate-type bin"));
        assert!(!is("--crate-name build_script_build build.rs --crate-type bin"));
        assert!(!is("--crate-name macros src/lib.rs --crate-type proc-macro"));
        assert!(!is("-vV"));
        assert!(!is("- --crate-name ___ --print=file-names --crate-type bin --crate-type rlib"));
    }
}
