//! `eagle-bench compare`: two results of the same benchmark, figure by figure.

mod bootstrap;
mod result;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use self::result::{Compared, Comparison};
use crate::report::{model::Report, read::load, write_json};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eagle-bench compare before.json after.json
  eagle-bench compare before/ after/ --html compared.html

Where a result has iterations, the ratio has a 95 % confidence interval, and the verdict goes by it: better or worse
if 1 is outside, same otherwise. A figure that was measured once has a ratio and no verdict.")]
pub(crate) struct CompareArgs {
    /// The result to compare with, as --json wrote it, or a directory of results
    #[arg(value_name = "A")]
    pub(crate) before: PathBuf,
    /// The result to judge, of the same benchmark, or a directory with files of the same names
    #[arg(value_name = "B")]
    pub(crate) after: PathBuf,
    /// Write the comparison to this file as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Write the comparison to this file as a page, which needs no other file
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
}

/// Compares, prints what came of it and writes it.
///
/// # Errors
/// When a file is no result, or the two are of different benchmarks.
pub(crate) fn run(args: &CompareArgs) -> Result<()> {
    let pairs = pairs(&args.before, &args.after)?;
    let mut compared = Vec::new();
    for (name, before, after) in &pairs.both {
        let (one, other) = (load(before)?, load(after)?);
        let comparison = compare(name, &one, &other);
        compared.push(comparison.with_context(|| format!("{} and {}", before.display(), after.display()))?);
    }
    let compared = Compared {
        a: args.before.display().to_string(),
        b: args.after.display().to_string(),
        only_a: pairs.only_before,
        only_b: pairs.only_after,
        comparisons: compared,
    };
    if let Some(path) = &args.json {
        write_json(path, &compared)?;
    }
    if let Some(path) = &args.html {
        compared.write_html(path)?;
    }
    println!("{compared}");
    Ok(())
}

/// Files that belong together, and the names of those that are alone.
struct Pairs {
    both: Vec<(String, PathBuf, PathBuf)>,
    only_before: Vec<String>,
    only_after: Vec<String>,
}

fn pairs(before: &Path, after: &Path) -> Result<Pairs> {
    if !before.is_dir() && !after.is_dir() {
        let name = stem(after);
        return Ok(Pairs {
            both: vec![(name, before.to_owned(), after.to_owned())],
            only_before: Vec::new(),
            only_after: Vec::new(),
        });
    }
    ensure!(
        before.is_dir() && after.is_dir(),
        "{} and {}: give two results, or two directories of results",
        before.display(),
        after.display()
    );
    let (first, second) = (results_in(before)?, results_in(after)?);
    let names = |files: &[PathBuf]| files.iter().map(|file| stem(file)).collect::<Vec<_>>();
    let (first_names, second_names) = (names(&first), names(&second));
    let mut both = Vec::new();
    for (file, name) in first.iter().zip(&first_names) {
        if second_names.contains(name) {
            both.push((name.clone(), file.clone(), after.join(format!("{name}.json"))));
        }
    }
    ensure!(!both.is_empty(), "{} and {} have no file of the same name", before.display(), after.display());
    let alone =
        |names: Vec<String>, others: &[String]| names.into_iter().filter(|name| !others.contains(name)).collect();
    Ok(Pairs {
        both,
        only_before: alone(first_names.clone(), &second_names),
        only_after: alone(second_names, &first_names),
    })
}

/// The JSON files of a directory, by name.
///
/// # Errors
/// When it cannot be read, or has none.
pub(crate) fn results_in(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(directory).with_context(|| format!("{} cannot be read", directory.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("{} cannot be read", directory.display()))?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            files.push(path);
        }
    }
    ensure!(!files.is_empty(), "{} has no results (files that end in .json)", directory.display());
    files.sort();
    Ok(files)
}

/// What a result is called where there are several.
pub(crate) fn stem(path: &Path) -> String {
    path.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn compare(name: &str, before: &Report, after: &Report) -> Result<Comparison> {
    ensure!(
        before.command == after.command,
        "A is of eagle-bench {}, B of eagle-bench {}: they have nothing in common to compare",
        before.command,
        after.command
    );
    Ok(Comparison::new(name, before, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../benches/results").join(name)
    }

    fn error(before: &str, after: &str) -> String {
        let args = CompareArgs { before: kept(before), after: kept(after), json: None, html: None };
        format!("{:#}", run(&args).unwrap_err())
    }

    #[test]
    fn different_benchmarks_are_refused() {
        let text = error("2026-11-21/floor.json", "2026-11-21/serve.json");
        assert!(
            text.contains("eagle-bench floor") && text.contains("eagle-bench serve") && text.contains(".json"),
            "{text}"
        );
        let text = error("2026-11-21/floor.json", "2026-11-21");
        assert!(text.contains("two directories"), "{text}");
        let text = error("2026-11-21-places", "2026-11-21");
        assert!(text.contains("no file of the same name"), "{text}");
    }

    #[test]
    fn directories_are_compared_by_name() {
        let pairs = pairs(&kept("2026-11-21-rates"), &kept("2026-11-21-slow-pages")).unwrap();
        let both: Vec<_> = pairs.both.iter().map(|(name, ..)| name.as_str()).collect();
        assert!(both.contains(&"floor") && both.contains(&"swarm-16-10MBps"), "{both:?}");
        assert!(pairs.only_before.contains(&"sim-churn".to_owned()) && pairs.only_after.is_empty());
    }

    #[test]
    fn a_comparison_is_written_in_all_forms() {
        let directory = tempfile::tempdir().unwrap();
        let (json, html) = (directory.path().join("c.json"), directory.path().join("c.html"));
        let args = CompareArgs {
            before: kept("2026-11-21"),
            after: kept("2026-11-21-rates"),
            json: Some(json.clone()),
            html: Some(html.clone()),
        };
        run(&args).unwrap();
        crate::report::markup::check(&std::fs::read_to_string(html).unwrap()).unwrap();
        let compared: serde_json::Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
        assert!(compared["comparisons"].as_array().unwrap().len() >= 5, "{compared:#}");
    }
}
