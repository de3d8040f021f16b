//! `docs/http-api.md` and `docs/tracker-api.md` against running roles: every path that the pages name is there, every path that the code names is in
//! the pages, and `/status` has exactly the members that are told of.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::{collections::BTreeSet, fs, path::Path};

use common::{Role, anywhere, ask, eagle, get};
use eagle_tracker::api;
use serde_json::Value;

/// What paths and queries of the pages leave open, and what stands for it here: nothing of it exists, and no registry listens there.
const PLACEHOLDERS: [(&str, &str); 10] = [
    ("{digest}", "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
    ("{registry}", "127.0.0.1:9"),
    ("{repository}", "library/debian"),
    ("{reference}", "12"),
    ("{rest}", "library/debian/tags/list"),
    ("{id}", "1"),
    ("NAME", "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
    ("IMAGE", "docker.io/library/debian:12"),
    ("DIGEST", "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
    ("REGISTRY", "127.0.0.1:9"),
];

fn page(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name)).unwrap()
}

/// The part of a page between a heading and the next of its level or a higher one.
fn section<'page>(page: &'page str, heading: &str) -> &'page str {
    let start = page.find(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no heading {heading}")) + 1;
    let level = heading.chars().take_while(|&mark| mark == '#').count();
    let body = &page[start + heading.len()..];
    let end = (1..=level).filter_map(|level| body.find(&format!("\n{} ", "#".repeat(level)))).min();
    &body[..end.unwrap_or(body.len())]
}

/// What stands in backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The first cell of each row of the tables of a text.
fn first_cells(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| line.strip_prefix("| `").map(|_| line.split('|').nth(1).unwrap_or_default()))
}

/// The requests that stand in the first cells of tables: method and path.
fn requests(text: &str) -> Vec<(&str, &str)> {
    let found: Vec<_> = first_cells(text).flat_map(quoted).filter_map(|request| request.split_once(' ')).collect();
    assert!(found.len() > 4, "{found:?}");
    found
}

/// Each request is known at this address; what it is answered with is the affair of other tests.
fn are_there(address: &str, requests: &[(&str, &str)]) {
    // What each listener says of a path that it does not know.
    let refusals = ["no such path", "nothing at this path", "here are "];
    let unknown = |(status, body): &(u16, String)| {
        *status == 405 || *status == 404 && refusals.iter().any(|refusal| body.contains(refusal))
    };
    assert!(unknown(&get(address, "/v1/nothing")), "{:?}", get(address, "/v1/nothing"));
    for (method, path) in requests {
        let mut path = (*path).to_owned();
        for (placeholder, value) in PLACEHOLDERS {
            path = path.replace(placeholder, value);
        }
        let answer = ask(address, method, &path, "");
        assert!(!unknown(&answer), "{method} {path} is in the page, and nothing is there: {answer:?}");
    }
}

fn members(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

/// The members that the table after a sentence of the page has.
fn told(page: &str, before: &str) -> BTreeSet<String> {
    let start = page.find(before).unwrap_or_else(|| panic!("the page does not say {before:?}")) + before.len();
    let table: String =
        page[start..].trim_start().lines().take_while(|line| line.starts_with('|')).collect::<Vec<_>>().join("\n");
    first_cells(&table).flat_map(quoted).map(str::to_owned).collect()
}

#[test]
fn what_the_pages_name_is_there_and_what_is_there_is_named() {
    let http_api = page("http-api.md");
    let tracker_api = page("tracker-api.md");
    let admin = section(&http_api, "## Admin addresses");
    let (of_all, of_two) = admin.split_once("and proxies and seeders").unwrap();
    let of_all = requests(of_all);
    let of_two = first_cells(of_two).flat_map(quoted).filter_map(|request| request.split_once(' ')).collect::<Vec<_>>();
    let tracker_paths = requests(&tracker_api);
    for role in ["tracker", "seeder", "proxy"] {
        let data = tempfile::tempdir().unwrap();
        let mut process = Role::start(eagle().args(anywhere(role, data.path())));
        let ready = process.ready();
        let (listen, address) = (ready["listen"].as_str().unwrap(), ready["admin"].as_str().unwrap());
        are_there(address, &of_all);
        if role == "tracker" {
            are_there(listen, &tracker_paths);
            continue;
        }
        are_there(address, &of_two);
        if role == "seeder" {
            let seeder = section(&http_api, "## The seeder").replace("{registry}/v2/{rest}", "127.0.0.1:9/v2/{rest}");
            let blobs = "?registry=127.0.0.1:9&repository=library/debian";
            let seeder = seeder.replace("/metainfo` |", &format!("/metainfo{blobs}` |"));
            are_there(listen, &requests(&seeder.replace("{digest}` |", &format!("{{digest}}{blobs}` |"))));
        }
        // The paths that an answer names to who took a wrong one.
        for wrong in ["/nothing", "/cache/nothing"] {
            let (_, answer) = get(address, wrong);
            let named: Vec<&str> = answer.split(['"', ' ', '\n']).filter(|word| word.starts_with('/')).collect();
            assert!(named.len() > 3, "{answer}");
            for path in named {
                let there = of_all.iter().chain(&of_two).any(|(_, told)| told.split('?').next() == Some(path));
                assert!(there, "{path} of the answer is not in the page");
            }
        }
    }
    for path in [
        api::ANNOUNCE_PATH,
        api::SWARMS_PATH,
        api::PEERS_PATH,
        api::OVERVIEW_PATH,
        api::TOPOLOGY_PATH,
        api::seeders::SEEDERS_PATH,
        api::seeders::LEASES_PATH,
        api::seeders::RELEASE_PATH,
    ] {
        assert!(tracker_paths.iter().any(|(_, told)| *told == path), "{path} is not in the page");
    }
}

#[test]
fn the_status_of_each_role_has_the_members_that_the_page_tells_of() {
    let page = page("http-api.md");
    for role in ["tracker", "seeder", "proxy"] {
        let data = tempfile::tempdir().unwrap();
        let mut process = Role::start(eagle().args(anywhere(role, data.path())));
        let ready = process.ready();
        let status: Value = serde_json::from_str(&get(ready["admin"].as_str().unwrap(), "/status").1).unwrap();
        let same = |value: &Value, told: &BTreeSet<String>, what: &str| {
            assert_eq!(members(value), told.iter().map(String::as_str).collect(), "{role}: {what}");
        };
        same(&status, &told(&page, "Of every role:\n"), "/status");
        let own = told(&page, &format!("`status` of a **{role}**:\n"));
        same(&status["status"], &own, "status");
    }
}
