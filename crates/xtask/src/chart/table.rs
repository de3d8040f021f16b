//! The table of values in the chart's README.md, from the comments of values.yaml.
//!
//! A comment that begins with `# -- ` describes the key below it, with all that is below that key. Every value has one.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

const BEGIN: &str = "<!-- values: written by cargo xtask chart --docs -->";
const END: &str = "<!-- end of values -->";
const MARK: &str = "-- ";

/// A described value.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    /// As `--set` takes it.
    path: String,
    description: String,
}

/// Fails when README.md does not have the table that values.yaml makes.
pub(super) fn check(chart: &Path) -> Result<()> {
    let (before, after) = both(chart)?;
    ensure!(
        before == after,
        "the table of values in README.md is not that of values.yaml; run `cargo xtask chart --docs`"
    );
    Ok(())
}

/// Writes the table anew.
pub(super) fn write(chart: &Path) -> Result<()> {
    Ok(fs::write(chart.join("README.md"), both(chart)?.1)?)
}

/// README.md as it is and as it should be.
fn both(chart: &Path) -> Result<(String, String)> {
    let before = fs::read_to_string(chart.join("README.md"))?;
    let table = table(&fs::read_to_string(chart.join("values.yaml"))?)?;
    let (head, rest) = before.split_once(BEGIN).context("README.md has no place for the table")?;
    let (_, tail) = rest.split_once(END).context("README.md has no end of the table")?;
    let after = format!("{head}{BEGIN}\n\n{table}\n{END}{tail}");
    Ok((before, after))
}

fn table(text: &str) -> Result<String> {
    let values: Value = serde_saphyr::from_str(text)?;
    let entries = entries(text)?;
    let mut table = String::from("| value | default | what it is |\n| --- | --- | --- |\n");
    for Entry { path, description } in &entries {
        let value = path.split('.').try_fold(&values, |value, key| value.get(key));
        let default = match value.with_context(|| format!("no value {path}"))? {
            Value::String(text) if text.is_empty() => String::new(),
            Value::String(text) => format!("`{text}`"),
            value => format!("`{value}`"),
        };
        let cell = |text: &str| text.replace('|', "\\|");
        let _ = writeln!(table, "| `{path}` | {} | {} |", cell(&default), cell(description));
    }
    undescribed(&values, "", &entries)?;
    Ok(table)
}

/// The keys with their comments, line by line: a YAML reader would lose them.
fn entries(text: &str) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    // Keys that lead here, each with its indentation.
    let mut path: Vec<(usize, &str)> = Vec::new();
    let mut comment: Option<String> = None;
    for (number, line) in text.lines().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let trimmed = line.trim();
        if let Some(text) = trimmed.strip_prefix('#') {
            let text = text.trim_start();
            match (&mut comment, text.strip_prefix(MARK)) {
                (_, Some(text)) => comment = Some(text.to_owned()),
                (Some(comment), None) => *comment = format!("{comment} {text}"),
                (None, None) => {}
            }
            continue;
        }
        let key = trimmed.split_once(':').map(|(key, _)| key).filter(|key| !key.contains([' ', '"', '-', '{', '[']));
        let Some(key) = key else {
            ensure!(comment.is_none() || !trimmed.is_empty(), "line {}: a description of nothing", number + 1);
            continue;
        };
        while path.last().is_some_and(|(deeper, _)| *deeper >= indent) {
            path.pop();
        }
        path.push((indent, key));
        if let Some(description) = comment.take() {
            let path = path.iter().map(|(_, key)| *key).collect::<Vec<_>>().join(".");
            entries.push(Entry { path, description });
        }
    }
    Ok(entries)
}

/// Fails at a value that has no description and is in none that has one.
fn undescribed(value: &Value, path: &str, entries: &[Entry]) -> Result<()> {
    if entries.iter().any(|entry| entry.path == path) {
        return Ok(());
    }
    let Some(keys) = value.as_object().filter(|keys| !keys.is_empty()) else {
        bail!("values.yaml does not say what {path} is: a comment with `# -- ` above it does");
    };
    for (key, value) in keys {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        undescribed(value, &path, entries)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_go_with_their_keys() {
        let text = "# about the file\na:\n  # -- First,\n  # and more.\n  b: 1\n  # -- A map.\n  c:\n    d: x|y\n# -- Last.\ne: \"\"\n";
        let made = table(text).unwrap();
        assert!(made.contains("| `a.b` | `1` | First, and more. |\n"), "{made}");
        assert!(made.contains("| `a.c` | `{\"d\":\"x\\|y\"}` | A map. |\n"), "{made}");
        assert!(made.ends_with("| `e` |  | Last. |\n"), "{made}");
        assert_eq!(made.lines().count(), 5);
    }

    #[test]
    fn nothing_goes_without_a_description() {
        let problem = table("a:\n  # -- Known.\n  b: 1\n  c: 2\n").unwrap_err().to_string();
        assert!(problem.contains("what a.c is"), "{problem}");
    }
}
