//! `docs/configuration.md` says of every key what its example says; this test holds it to that.
//!
//! After a change of the examples: `EAGLE_TEST_BLESS=1 cargo test -p eagle documentation`.

use std::{fmt::Write as _, path::Path};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
const BEGIN: &str = "<!-- keys: written by the test of crates/eagle/src/config/documentation.rs -->\n";
const END: &str = "<!-- end of keys -->\n";

const PARTS: [(&str, &str); 10] = [
    ("cluster", include_str!("example/cluster.yaml")),
    ("tracker", include_str!("example/tracker.yaml")),
    ("seeder", include_str!("example/seeder.yaml")),
    ("proxy", include_str!("example/proxy.yaml")),
    ("p2p", include_str!("example/p2p.yaml")),
    ("registries", include_str!("example/registries.yaml")),
    ("credentials", include_str!("example/credentials.yaml")),
    ("preheat", include_str!("example/preheat.yaml")),
    ("log", include_str!("example/log.yaml")),
    ("traces", include_str!("example/traces.yaml")),
];

/// A table of the keys of one section: each key with its default and the comment above it.
fn table(name: &str, text: &str) -> String {
    let mut page = String::new();
    let mut comment: Vec<&str> = Vec::new();
    let mut parents: Vec<(usize, String)> = Vec::new();
    let text = text.replace("\n#  ", "\n  ");
    for line in text.lines() {
        let content = line.trim_start();
        let indent = line.len() - content.len();
        if let Some(words) = content.strip_prefix('#') {
            comment.push(words.trim());
            continue;
        }
        let Some((key, value)) = content.split_once(':') else { continue };
        let about = comment.join(" ");
        comment.clear();
        if indent == 0 {
            write!(page, "\n### `{name}`\n\n").unwrap();
            if !about.is_empty() {
                write!(page, "{about}\n\n").unwrap();
            }
            page.push_str("| key | default | meaning |\n| --- | --- | --- |\n");
            continue;
        }
        parents.retain(|(depth, _)| *depth < indent);
        assert!(!about.is_empty(), "{name}: the key {key} has no comment");
        let whole = parents.iter().map(|(_, name)| name.as_str()).chain([key]).collect::<Vec<_>>().join(".");
        let value = value.trim();
        if value.is_empty() {
            parents.push((indent, key.to_owned()));
        }
        // An entry of `registries` has a name and URL of its own; the sample's are no defaults.
        let default = match (name, key) {
            ("registries", "name" | "url") => "",
            _ => value,
        };
        let default = if default.is_empty() { String::new() } else { format!("`{default}`") };
        writeln!(page, "| `{whole}` | {default} | {} |", about.replace('|', "\\|")).unwrap();
    }
    page
}

#[test]
fn the_page_about_configuration_is_up_to_date() {
    let keys: String = PARTS.iter().map(|(name, text)| table(name, text)).collect();
    let page = std::fs::read_to_string(Path::new(PAGE)).unwrap();
    let (head, rest) = page.split_once(BEGIN).expect("the mark where the keys begin");
    let (_, tail) = rest.split_once(END).expect("the mark where the keys end");
    let wanted = format!("{head}{BEGIN}{keys}\n{END}{tail}");
    if std::env::var_os("EAGLE_TEST_BLESS").is_some() {
        std::fs::write(PAGE, &wanted).unwrap();
    } else {
        assert!(page == wanted, "docs/configuration.md is behind the examples; run with EAGLE_TEST_BLESS=1");
    }
}
