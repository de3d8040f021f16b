//! Logs: text for a person at a terminal, JSON lines for a collector.

use std::{io::IsTerminal, sync::OnceLock};

use serde::{Deserialize, Serialize};
use tracing_subscriber::{EnvFilter, Layer as _, Registry, fmt, layer::SubscriberExt, reload, util::SubscriberInitExt};

use crate::traces::Traces;

/// Unless the filter speaks of it: the multiplexer of libp2p warns of every connection that a peer resets, which is how
/// peers leave.
const QUIET: &str = "yamux=error";
/// Spans for traces say what log lines say themselves.
const NO_TRACES: &str = "eagle_trace=off";

/// What changes the level of the running process.
static LEVEL: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    #[default]
    Auto,
    Text,
    Json,
}

/// The `log` section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct LogConfig {
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter per module as in `info,eagle_p2p=debug`.
    #[serde(deserialize_with = "filter")]
    pub(crate) level: String,
    pub(crate) format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Auto }
    }
}

fn filter<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_filter(&text).map_err(serde::de::Error::custom)?;
    Ok(text)
}

/// Checks a level or filter. The filter language takes any word for a module's name, so a misspelt level alone would
/// silently log nothing.
pub(crate) fn parse_filter(text: &str) -> Result<EnvFilter, String> {
    let problem = || {
        format!(
            "{text:?} is not a log level; write error, warn, info, debug, trace or a filter such as info,eagle_p2p=debug"
        )
    };
    let bare_ok = text
        .split(',')
        .filter(|part| !part.contains(['=', '[']))
        .all(|part| matches!(part.trim(), "error" | "warn" | "info" | "debug" | "trace" | "off"));
    if !bare_ok || text.trim().is_empty() {
        return Err(problem());
    }
    EnvFilter::try_new(text).map_err(|_| problem())
}

/// The filter of a level, with what is left out unless the level speaks of it.
fn whole_filter(level: &str) -> Result<EnvFilter, String> {
    let quiet = if level.contains("yamux") { level.to_owned() } else { format!("{level},{QUIET}") };
    parse_filter(&format!("{quiet},{NO_TRACES}"))
}

/// Logs at another level from now on.
///
/// # Errors
/// When it is no filter, or nothing is logged.
pub(crate) fn set_level(level: &str) -> Result<(), String> {
    let filter = whole_filter(level)?;
    let handle = LEVEL.get().ok_or("nothing is logged")?;
    handle.reload(filter).map_err(|error| error.to_string())
}

/// Starts logging to standard error, and making spans for traces. Once per process.
///
/// # Errors
/// When the level is no filter, or logging was started before.
pub(crate) fn init(config: &LogConfig, traces: Option<&Traces>) -> Result<(), String> {
    let (filter, level) = reload::Layer::new(whole_filter(&config.level)?);
    let terminal = std::io::stderr().is_terminal();
    let json = match config.format {
        LogFormat::Auto => !terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let lines = if json {
        let layer = fmt::layer().json().flatten_event(true).with_current_span(true).with_span_list(false);
        layer.with_writer(std::io::stderr).boxed()
    } else {
        fmt::layer().with_ansi(terminal).with_writer(std::io::stderr).boxed()
    };
    // The level is one of the log alone: traces have their spans at any.
    let registry = tracing_subscriber::registry().with(lines.with_filter(filter)).with(traces.map(Traces::layer));
    registry.try_init().map_err(|error| error.to_string())?;
    // Set once, as logging is started once.
    let _ = LEVEL.set(level);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spans_of_traces_are_in_no_log() {
        for level in ["trace", "info,yamux=debug", "off"] {
            assert!(whole_filter(level).unwrap().to_string().contains(NO_TRACES), "{level}");
        }
        assert_eq!(NO_TRACES.split('=').next(), Some(eagle_registry::trace::TARGET));
    }

    #[test]
    fn a_misspelt_level_is_refused() {
        for good in ["info", "warn,eagle_p2p=debug", "off", "eagle_proxy=trace,info"] {
            assert!(parse_filter(good).is_ok(), "{good}");
        }
        for bad in ["", "inof", "info,debgu", "eagle_p2p=loud"] {
            assert!(parse_filter(bad).is_err(), "{bad}");
        }
    }
}
