//! The tests that `docs/reliability.md` names for each invariant are there.

use std::{collections::BTreeSet, fs, path::Path};

use crate::workspace;

/// What is to be proved, from DESIGN section 4.
const INVARIANTS: usize = 10;

/// `a/{b,c}.rs::{d, e}` written out.
fn written_out(text: &str) -> Vec<String> {
    let Some((head, (inner, tail))) = text.split_once('{').and_then(|(head, rest)| Some((head, rest.split_once('}')?)))
    else {
        return vec![text.to_owned()];
    };
    inner.split(',').flat_map(|part| written_out(&format!("{head}{}{tail}", part.trim()))).collect()
}

/// Why this is no proof that there is.
fn problem(root: &Path, proof: &str) -> Option<String> {
    if let Some(scenario) = proof.strip_prefix("e2e/") {
        let all = fs::read_to_string(root.join("crates/xtask/src/scenarios/mod.rs")).unwrap();
        return (!all.contains(&format!("name: \"{scenario}\""))).then(|| format!("no scenario {scenario}"));
    }
    let (file, test) = proof.split_once("::").map_or((proof, None), |(file, test)| (file, Some(test)));
    let Ok(text) = fs::read_to_string(root.join("crates").join(file)) else { return Some(format!("no file {file}")) };
    // Those of `proptest!` and with `async` too.
    let is_there = |name: &str| text.contains(&format!("fn {name}("));
    match test {
        Some(test) => (!is_there(test)).then(|| format!("no test {test} in {file}")),
        None => (!text.contains("#[test]") && !text.contains("#[tokio::test")).then(|| format!("no test in {file}")),
    }
}

#[test]
fn every_invariant_has_a_test_that_is_there() {
    let root = workspace::root();
    let page = fs::read_to_string(root.join("docs/reliability.md")).unwrap();
    let (_, section) = page.split_once("\n## Invariants\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let mut proved = BTreeSet::new();
    for row in section.lines().filter(|line| line.starts_with("| ")) {
        let Some(number) = row[2..].split('.').next().and_then(|number| number.parse::<usize>().ok()) else { continue };
        let spans = row.split('`').skip(1).step_by(2);
        let proofs: Vec<String> =
            spans.filter(|span| span.contains(".rs") || span.starts_with("e2e/")).flat_map(written_out).collect();
        assert!(!proofs.is_empty(), "nothing proves {number}");
        for proof in proofs {
            assert_eq!(problem(&root, &proof), None, "invariant {number} names {proof}");
        }
        proved.insert(number);
    }
    assert_eq!(proved, (1..=INVARIANTS).collect());
}

#[test]
fn what_is_not_there_is_noticed() {
    let root = workspace::root();
    assert_eq!(written_out("a/{b,c}.rs::{d, e}"), ["a/b.rs::d", "a/b.rs::e", "a/c.rs::d", "a/c.rs::e"]);
    for wrong in ["e2e/none", "xtask/src/none.rs", "xtask/src/proofs.rs::no_such_test", "xtask/src/lab.rs"] {
        assert!(problem(&root, wrong).is_some(), "{wrong}");
    }
    assert_eq!(problem(&root, "xtask/src/proofs.rs::what_is_not_there_is_noticed"), None);
}
