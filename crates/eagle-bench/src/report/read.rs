//! Results that were written before: which benchmark's they are, and what they say.

use std::{fs::File, io::Read as _, path::Path};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::model::{Report, Setting, Unit};
use crate::views;

/// The largest result that is read, bytes. The largest that a benchmark writes by itself, 10,000 clients with a few
/// pulls each, has some 10 MB.
const MAX_RESULT: u64 = 256 << 20;

/// Fields of a result; where one is missing or of another kind, it is as if it were null.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields<'a>(pub(crate) &'a Value);

impl<'a> Fields<'a> {
    /// What is at a path such as `/seconds/p50` (RFC 6901).
    pub(crate) fn at(self, path: &str) -> Fields<'a> {
        Fields(self.0.pointer(path).unwrap_or(&Value::Null))
    }

    /// A number.
    pub(crate) fn number(self, path: &str) -> Option<f64> {
        self.at(path).0.as_f64().filter(|number| number.is_finite())
    }

    /// A text.
    pub(crate) fn text(self, path: &str) -> Option<&'a str> {
        self.at(path).0.as_str()
    }

    /// The elements of a list.
    pub(crate) fn list(self, path: &str) -> impl Iterator<Item = Fields<'a>> + use<'a> {
        self.at(path).0.as_array().map(Vec::as_slice).unwrap_or_default().iter().map(Fields)
    }

    /// A number for people; a dash where there is none.
    pub(crate) fn shown(self, path: &str, unit: Unit) -> String {
        self.number(path).map_or_else(|| "-".to_owned(), |value| unit.show(value))
    }

    /// Whether there is something.
    pub(crate) fn has(self, path: &str) -> bool {
        !self.at(path).0.is_null()
    }
}

/// Reads a file that `--json` wrote.
///
/// # Errors
/// When it cannot be read or is none.
pub(crate) fn load(path: &Path) -> Result<Report> {
    let what = || path.display().to_string();
    let file = File::open(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let mut text = Vec::new();
    file.take(MAX_RESULT + 1).read_to_end(&mut text).with_context(what)?;
    ensure!(text.len() as u64 <= MAX_RESULT, "{}: a result has at most {MAX_RESULT} bytes", path.display());
    let value: Value = serde_json::from_slice(&text).with_context(|| format!("{} is no JSON", path.display()))?;
    report(&value).with_context(what)
}

/// The report of a result.
///
/// # Errors
/// When it is not one of a known benchmark.
pub(crate) fn report(result: &Value) -> Result<Report> {
    let fields = Fields(result);
    ensure!(result.is_object() && fields.has("/host"), "this is no result of eagle-bench (--json FILE writes one)");
    let command = command(fields).context("it does not say which benchmark it is of")?;
    let mut report = match command.as_str() {
        "cache" => views::cache::view(fields),
        "floor" => views::floor::view(fields),
        "limits" => views::limits::view(fields),
        "pull" => views::pull::view(fields),
        "serve" => views::serve::view(fields),
        "sim" => views::sim::view(fields),
        "swarm" => views::swarm::view(fields),
        "tracker" => views::tracker::view(fields),
        other => bail!("it is of a benchmark that this program does not know: {other}"),
    };
    report.command = command;
    report.environment = environment(fields);
    if fields.text("/build") == Some("debug") {
        report.warnings.insert(0, "Measured with a debug build: the figures say nothing about a release.".to_owned());
    }
    Ok(report)
}

/// The subcommand: as the result says or, before it did, the first word after the program in its command line.
fn command(fields: Fields<'_>) -> Option<String> {
    let said = fields.text("/command").map(str::to_owned);
    said.or_else(|| {
        let mut words = fields.text("/command_line")?.split(' ');
        words.find(|word| word.ends_with("eagle-bench"))?;
        words.next().map(str::to_owned)
    })
}

fn environment(fields: Fields<'_>) -> Vec<Setting> {
    let text = |path: &str| fields.text(path).map(str::to_owned);
    let shown = |path: &str, unit| fields.number(path).map(|value| unit_text(unit, value));
    let all = [
        ("command", text("/command_line"), false),
        ("started", text("/started_at"), false),
        ("eagle-bench", text("/version"), false),
        ("eagle", text("/eagle_version"), false),
        ("build", text("/build"), true),
        ("processor", text("/host/cpu"), true),
        ("cores", shown("/host/cores", Unit::Count), true),
        ("memory", shown("/host/memory_bytes", Unit::Bytes), true),
        ("system", text("/host/system"), false),
        ("kernel", text("/host/kernel"), true),
        ("load of the minute before", shown("/host/load_before", Unit::Count), false),
        ("open files, at most", shown("/host/limits/open_files", Unit::Count), false),
        ("cores by cgroup, at most", shown("/host/limits/cpus", Unit::Count), true),
        ("memory by cgroup, at most", shown("/host/limits/memory_bytes", Unit::Bytes), true),
    ];
    let settings = all.into_iter().filter_map(|(name, value, matters)| Some(Setting { name, value: value?, matters }));
    settings.collect()
}

fn unit_text(unit: Unit, value: f64) -> String {
    unit.show(value)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use serde_json::json;

    use super::*;

    fn kept() -> Vec<PathBuf> {
        let results = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../benches/results");
        let directories = fs::read_dir(results).unwrap().map(|entry| entry.unwrap().path());
        let files = directories.filter(|path| path.is_dir()).flat_map(|path| fs::read_dir(path).unwrap());
        files.map(|entry| entry.unwrap().path()).filter(|path| path.extension() == Some("json".as_ref())).collect()
    }

    #[test]
    fn every_kept_result_can_be_shown() {
        let mut seen = std::collections::BTreeSet::new();
        for path in kept() {
            let report = load(&path).unwrap();
            assert!(report.figures.len() > 2 && !report.title.is_empty(), "{}: {report:#?}", path.display());
            assert!(report.environment.len() > 5, "{}", path.display());
            assert!(report.figures.iter().all(|figure| figure.value.is_finite()), "{}", path.display());
            let names: std::collections::BTreeSet<_> = report.figures.iter().map(|figure| &figure.name).collect();
            assert_eq!(names.len(), report.figures.len(), "{}: names repeat", path.display());
            for table in &report.tables {
                assert!(table.rows.iter().all(|row| row.len() == table.columns.len()), "{}: {table:?}", path.display());
            }
            seen.insert(report.command);
        }
        let all = ["cache", "floor", "limits", "pull", "serve", "sim", "swarm", "tracker"];
        assert_eq!(seen.iter().map(String::as_str).collect::<Vec<_>>(), all);
    }

    #[test]
    fn what_is_no_result_is_named() {
        let error = |value: Value| format!("{:#}", report(&value).unwrap_err());
        assert!(error(json!([1, 2])).contains("no result of eagle-bench"));
        assert!(error(json!({"host": {}})).contains("which benchmark"));
        assert!(error(json!({"host": {}, "command": "dance"})).contains("dance"));
        assert!(format!("{:#}", load(Path::new("/nowhere/x.json")).unwrap_err()).contains("/nowhere/x.json"));
    }

    #[test]
    fn strange_values_are_as_if_they_were_missing() {
        let all = ["cache", "floor", "limits", "pull", "serve", "sim", "swarm", "tracker"];
        for command in all {
            for strange in [json!(null), json!(-1), json!("x"), json!([[]]), json!({"a": 1e308})] {
                let mut value = json!({"host": strange, "command": command, "per_node": strange, "steps": [strange],
                    "pulls": [strange], "cases": [{"eagle": strange}], "samples": [strange, {"seconds": 1e308}],
                    "reads": [strange], "rates": [strange], "seconds": strange, "size_bytes": 0, "complete_seconds": strange});
                if strange.is_null() {
                    value["host"] = json!({});
                }
                let report = report(&value).unwrap();
                assert!(report.figures.iter().all(|figure| figure.value.is_finite()), "{report:?}");
            }
        }
    }
}
