//! Holds `docs/ssi.md` to what it says: its example is the one that is built here, and conforms.

use std::sync::Arc;

use async_trait::async_trait;

use crate::{
    conformance::{self, Fixture},
    ssi::BlobStorage,
};

#[allow(dead_code, unreachable_pub, missing_docs, clippy::missing_errors_doc, reason = "a program of its own")]
#[path = "../examples/key_value.rs"]
mod key_value;

const PAGE: &str = include_str!("../../../docs/ssi.md");
const EXAMPLE: &str = include_str!("../examples/key_value.rs");

#[derive(Default)]
struct Shared(key_value::Client);

#[async_trait]
impl Fixture for Shared {
    async fn open(&self) -> Arc<dyn BlobStorage> {
        Arc::new(key_value::KeyValueStorage::new(self.0.clone()))
    }
}

#[tokio::test]
async fn the_example_of_the_page_conforms() {
    conformance::run(|| Box::new(Shared::default())).await;
}

#[test]
fn the_page_has_the_example_as_it_is() {
    let (_, rest) = PAGE.split_once("```rust\n//! A storage over a key-value store").unwrap();
    let (body, _) = rest.split_once("\n```\n").unwrap();
    let shown = format!("//! A storage over a key-value store{body}\n");
    if shown != EXAMPLE {
        let differs = shown.lines().zip(EXAMPLE.lines()).position(|(page, file)| page != file);
        panic!("docs/ssi.md and examples/key_value.rs differ, from line {differs:?} of the example on");
    }
}
