//! Load tests and benchmarks of Eagle.

fn main() {}
