//! What every report has: what was run, when, on which machine; and the forms in which it is written.

mod html;
#[cfg(test)]
pub(crate) mod markup;
pub(crate) mod model;
pub(crate) mod plot;
pub(crate) mod read;

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

use anyhow::{Context as _, Result};
use clap::Args;
use serde::Serialize;

pub(crate) use self::html::{Section, document, write as write_html};
use crate::host::Host;

/// How this program was built.
pub(crate) const BUILD: &str = if cfg!(debug_assertions) { "debug" } else { "release" };

/// Where a benchmark writes its result besides the terminal.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct Output {
    /// Write the result to this file as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Write the result to this file as a page with plots, which needs no other file
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
}

impl Output {
    /// Writes a result in the forms that were asked for.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub(crate) fn write(&self, result: &impl Serialize) -> Result<()> {
        if let Some(path) = &self.json {
            write_json(path, result)?;
        }
        if let Some(path) = &self.html {
            let report = read::report(&serde_json::to_value(result)?)?;
            let name = format!("eagle-bench {}", report.command);
            write_html(path, &name, &[Section { name: name.clone(), report: Ok(&report) }])?;
        }
        Ok(())
    }
}

/// The circumstances of a result.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Circumstances {
    /// The subcommand that measured.
    pub(crate) command: &'static str,
    /// Of this program.
    pub(crate) version: &'static str,
    /// What the measured program says of its version; absent where none was started.
    pub(crate) eagle_version: Option<String>,
    /// How this program was built: `release` or `debug`.
    pub(crate) build: &'static str,
    /// RFC 3339, UTC.
    pub(crate) started_at: String,
    pub(crate) command_line: String,
    pub(crate) host: Host,
}

impl Circumstances {
    /// Of a run of this subcommand that starts now, of this eagle program if any.
    pub(crate) fn now(command: &'static str, eagle: Option<&Path>) -> Self {
        let eagle_version = eagle.and_then(|eagle| {
            let output = Command::new(eagle).arg("--version").output().ok()?;
            Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        });
        Self {
            command,
            version: env!("CARGO_PKG_VERSION"),
            eagle_version,
            build: BUILD,
            started_at: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            command_line: std::env::args().map(|word| quoted(&word)).collect::<Vec<_>>().join(" "),
            host: Host::this(),
        }
    }
}

/// A word as a shell would need it.
pub(crate) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Writes a report.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn write_json(path: &Path, report: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(report)?;
    text.push('\n');
    std::fs::write(path, text).with_context(|| format!("{} cannot be written", path.display()))
}

/// Bytes for people; exact ones are in the JSON.
pub(crate) fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// Memory for people.
pub(crate) fn mebibytes(bytes: u64) -> String {
    format!("{:.0} MiB", bytes as f64 / 1_048_576.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_what_a_shell_would_read() {
        assert_eq!(quoted("--rate=20MB/s"), "--rate=20MB/s");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
