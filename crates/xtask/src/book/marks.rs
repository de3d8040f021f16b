//! Every block of commands in the pages says which test runs it, or what it needs that the tests have not.

use std::{collections::BTreeSet, fs, path::Path};

use clap::CommandFactory as _;

use crate::{
    Cli,
    pages::{
        Block, blocks,
        command_line::{self, simple_commands},
        pages, prose,
    },
    scenarios::OF_PAGES,
    workspace,
};

const CI: &str = ".ci/run";
/// What the tests have not. `docs/development.md` says of each what it means.
const NEEDS: [&str; 4] = ["cluster", "registry", "time", "distribution"];
/// Directories of the repository. Words that begin with one name something in it.
const DIRECTORIES: [&str; 4] = ["benches/", "charts/", "crates/", "docs/"];

/// What is wrong with the marks of a block.
fn problem(root: &Path, block: &Block) -> Option<String> {
    match (block.mark("run"), block.mark("needs")) {
        _ if block.language.is_empty() => Some("has no language".to_owned()),
        (None, None) => block.is_of_shell().then(|| "has no mark; docs/development.md lists them".to_owned()),
        (Some(_), Some(_)) => Some("is run and needs what is not there".to_owned()),
        (Some(CI), None) => {
            let script = fs::read_to_string(root.join(CI)).unwrap();
            let is_there = |typed: &str| script.lines().any(|line| line.trim_start_matches("step ") == typed);
            block.typed().iter().find(|typed| !is_there(typed.text)).map(|typed| format!("{CI} has no {}", typed.text))
        }
        (Some(file), None) if file.ends_with(".rs") => {
            let test = fs::read_to_string(root.join("crates").join(file)).unwrap_or_default();
            let reads = test.contains("run_by(") && test.contains(&format!("\"{file}\""));
            (!reads).then(|| format!("crates/{file} does not run commands of pages"))
        }
        (Some(name), None) => (!OF_PAGES.contains(&name)).then(|| format!("no scenario {name} runs commands of pages")),
        (None, Some(needed)) => (!NEEDS.contains(&needed)).then(|| format!("needs {needed}, which is not known")),
    }
}

/// Which files and packages of the repository a command names that are not there.
fn missing(root: &Path, words: &[String]) -> Vec<String> {
    let mut missing = Vec::new();
    let mut need = |path: String| {
        if !root.join(&path).exists() && !root.join(format!("{path}.rs")).exists() {
            missing.push(path);
        }
    };
    let paths = words.iter().filter(|word| DIRECTORIES.iter().any(|directory| word.starts_with(directory)));
    paths.for_each(|path| need(path.clone()));
    if words.first().is_some_and(|word| word == "cargo") {
        let own = words.split(|word| word == "--").next().unwrap_or(words);
        let after =
            |names: &[&str]| own.iter().position(|word| names.contains(&word.as_str())).and_then(|at| own.get(at + 1));
        let package = after(&["-p", "--package"]).filter(|name| name.chars().any(|c| c.is_ascii_lowercase()));
        if let Some(package) = package {
            need(format!("crates/{package}"));
            for (kind, directory) in [("--bench", "benches"), ("--example", "examples"), ("--test", "tests")] {
                if let Some(target) = after(&[kind]) {
                    need(format!("crates/{package}/{directory}/{target}"));
                }
            }
        }
    }
    missing
}

#[test]
fn every_block_of_commands_is_run_or_says_what_it_needs() {
    let root = workspace::root();
    let (mut problems, mut run, mut needed) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    for (page, text) in pages(&root).unwrap() {
        for block in blocks(&page, &text) {
            problems.extend(problem(&root, &block).map(|problem| format!("{}: {problem}", block.place())));
            run.extend(block.mark("run").map(str::to_owned));
            needed.extend(block.mark("needs").map(str::to_owned));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    // What nothing uses is no mark any more.
    let unused: Vec<&str> = OF_PAGES.iter().copied().filter(|name| !run.contains(*name)).collect();
    assert!(unused.is_empty(), "no page names {unused:?}");
    assert_eq!(needed, NEEDS.map(str::to_owned).into());
    let listed = fs::read_to_string(root.join("docs/development.md")).unwrap();
    for need in NEEDS {
        assert!(listed.contains(&format!("\n| `{need}` | ")), "docs/development.md does not say what {need} is");
    }
}

#[test]
fn what_commands_name_of_the_repository_is_there() {
    let root = workspace::root();
    let (mut problems, mut found) = (Vec::new(), 0);
    for (page, text) in pages(&root).unwrap() {
        let of_shell = blocks(&page, &text).into_iter().filter(Block::is_of_shell);
        let mut scripts: Vec<String> = of_shell.map(|block| block.script()).collect();
        let prose = prose(&text).collect::<Vec<_>>().join("\n");
        let spans = prose.split('`').skip(1).step_by(2);
        scripts
            .extend(spans.filter(|span| span.starts_with("cargo ") || span.contains(" benches/")).map(str::to_owned));
        for script in scripts {
            for words in simple_commands(&script).unwrap_or_default() {
                found += 1;
                problems.extend(missing(&root, &words).into_iter().map(|path| format!("{page}: {script}: no {path}")));
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert!(found > 100, "only {found} commands were found");
}

#[test]
fn tasks_are_called_as_their_command_line_is() {
    let checked = command_line::check(&workspace::root(), "cargo xtask", &Cli::command());
    assert!(checked.problems.is_empty(), "{}", checked.problems.join("\n"));
    assert!(checked.typed >= 5 && checked.mentioned > 30, "{checked:?}");
}

#[test]
fn what_has_no_mark_or_a_wrong_one_is_noticed() {
    let root = workspace::root();
    let is_wrong = |fence: &str| {
        let found = blocks("p.md", &format!("```{fence}\n$ cargo xtask test\n```\n"));
        problem(&root, &found[0]).is_some()
    };
    for wrong in [
        "",
        "sh",
        "console run=none",
        "console needs=none",
        "sh run=.ci/run needs=time",
        "sh run=xtask/src/main.rs",
        "shell run",
        "bash mark=a",
    ] {
        assert!(is_wrong(wrong), "{wrong}");
    }
    assert!(is_wrong("sh run=.ci/run"), "the line there has no prompt");
    for right in ["json", "console run=.ci/run", "sh needs=cluster"] {
        assert!(!is_wrong(right), "{right}");
    }
    let named = |command: &str| missing(&root, &command.split(' ').map(str::to_owned).collect::<Vec<_>>());
    for there in
        ["cargo bench -p eagle-p2p --bench channel", "x --plan benches/plans/racks.toml", "cargo test -p CRATE"]
    {
        assert_eq!(named(there), Vec::<String>::new());
    }
    assert_eq!(named("cargo bench -p eagle-p2p --bench no"), ["crates/eagle-p2p/benches/no"]);
    assert_eq!(named("x --plan benches/no.toml"), ["benches/no.toml"]);
}
