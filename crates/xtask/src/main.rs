//! Development tasks of Eagle: tests with real registries and runtimes.

fn main() {}
