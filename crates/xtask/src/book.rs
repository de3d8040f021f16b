//! The pages of `docs/` are a book: every link leads somewhere, and every page is in its table of contents.

mod marks;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Component, Path, PathBuf},
};

use crate::{
    pages::{pages, prose},
    workspace,
};

const CONTENTS: &str = "docs/README.md";

/// The anchors of a page's headings, as code hosts make them: in small letters, without punctuation, spaces as hyphens.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut anchors = BTreeSet::new();
    for heading in prose(text).filter(|line| line.starts_with('#')) {
        let words = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = words.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        let anchor: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
        let number = seen.entry(anchor.clone()).or_default();
        anchors.insert(if *number == 0 { anchor } else { format!("{anchor}-{number}") });
        *number += 1;
    }
    anchors
}

/// Where the links of a page lead, pictures too; code is no link.
fn links(text: &str) -> Vec<String> {
    let mut links = Vec::new();
    for line in prose(text) {
        let without_code: String = line.split('`').step_by(2).collect::<Vec<_>>().join("code");
        for (at, _) in without_code.match_indices("](") {
            if let Some((link, _)) = without_code[at + 2..].split_once(')') {
                links.push(link.to_owned());
            }
        }
    }
    links
}

/// A path from the root for a link in a page.
fn resolve(page: &str, link: &str) -> String {
    let mut path = PathBuf::new();
    for component in Path::new(page).parent().unwrap().join(link).components() {
        match component {
            Component::ParentDir => assert!(path.pop(), "{page}: {link} leads out of the repository"),
            component => path.push(component),
        }
    }
    path.to_string_lossy().into_owned()
}

/// What is wrong with the links of these pages, and all files that they lead to, by page.
fn follow(root: &Path, pages: &BTreeMap<String, String>) -> (Vec<String>, BTreeMap<String, BTreeSet<String>>) {
    let (mut problems, mut leads) = (Vec::new(), BTreeMap::<String, BTreeSet<String>>::new());
    for (page, text) in pages {
        for link in links(text) {
            if link.starts_with("https://") || link.starts_with("http://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = if file.is_empty() { page.clone() } else { resolve(page, file) };
            if !root.join(&target).exists() {
                problems.push(format!("{page}: {link} leads nowhere"));
            } else if !anchor.is_empty() && !pages.get(&target).is_some_and(|text| anchors(text).contains(anchor)) {
                problems.push(format!("{page}: {target} has no heading #{anchor}"));
            }
            leads.entry(page.clone()).or_default().insert(target);
        }
    }
    (problems, leads)
}

#[test]
fn every_link_leads_somewhere_and_every_page_is_in_the_contents() {
    let root = workspace::root();
    let pages = pages(&root).unwrap();
    let (mut problems, leads) = follow(&root, &pages);
    let contents = &leads[CONTENTS];
    problems.extend(
        pages
            .keys()
            .filter(|page| *page != CONTENTS && !contents.contains(*page))
            .map(|page| format!("{page} is not in {CONTENTS}")),
    );
    for entry in fs::read_dir(root.join("docs/pictures")).unwrap() {
        let picture = format!("docs/pictures/{}", entry.unwrap().file_name().to_string_lossy());
        if !leads.values().any(|leads| leads.contains(&picture)) {
            problems.push(format!("{picture} is in no page"));
        }
    }
    assert!(leads["README.md"].contains(CONTENTS), "README.md does not lead to {CONTENTS}");
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn what_leads_nowhere_is_noticed() {
    let text = "# A `b`: c\n## A b: c\n[x](#a-b-c) [x](#a-b-c-1) [x](#none) [x](nowhere.md) `[x](code.md)`\n```\n[x](code.md)\n```\n";
    assert_eq!(anchors(text), BTreeSet::from(["a-b-c".to_owned(), "a-b-c-1".to_owned()]));
    // In the place of a page that is there.
    let pages = BTreeMap::from([("docs/faq.md".to_owned(), text.to_owned())]);
    let (problems, _) = follow(&workspace::root(), &pages);
    assert_eq!(problems, ["docs/faq.md: docs/faq.md has no heading #none", "docs/faq.md: nowhere.md leads nowhere"]);
}
