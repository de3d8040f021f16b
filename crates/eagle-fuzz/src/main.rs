//! A fuzz target under libFuzzer: `EAGLE_FUZZ_TARGET` says which one, arguments are libFuzzer's. `cargo xtask fuzz` builds and starts it.
#![no_main]

use std::sync::LazyLock;

use eagle_fuzz::{TARGETS, Target};

/// The target of this process.
static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("EAGLE_FUZZ_TARGET").unwrap_or_default();
    TARGETS.into_iter().find(|target| target.name == name).unwrap_or_else(|| {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        eprintln!("EAGLE_FUZZ_TARGET is {name:?}; it has to be one of {}", names.join(", "));
        std::process::exit(2)
    })
});

libfuzzer_sys::fuzz_target!(init: { LazyLock::force(&TARGET); }, |bytes: &[u8]| (TARGET.run)(bytes));
