//! The metrics of a role as text, in the two formats that Prometheus and others read.

use std::fmt;

use http::{HeaderMap, header};
use prometheus_client::{encoding::text::encode, registry::Registry};

/// A format of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// OpenMetrics 1.0, which Prometheus asks for.
    OpenMetrics,
    /// The text format of Prometheus, version 0.0.4, for `curl`, `promtool check metrics` and older programs.
    Prometheus,
}

impl Format {
    /// The format that a request asks for; the one that everybody reads where it does not say.
    pub(crate) fn wanted(headers: &HeaderMap) -> Self {
        let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let mut kinds = accepted.flat_map(|value| value.split(',')).filter_map(|kind| kind.split(';').next());
        match kinds.any(|kind| kind.trim().eq_ignore_ascii_case("application/openmetrics-text")) {
            true => Self::OpenMetrics,
            false => Self::Prometheus,
        }
    }

    /// Value of `Content-Type`.
    pub(crate) const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// The present values; without a registry, none.
    ///
    /// # Errors
    /// When a collector fails.
    pub(crate) fn write(self, registry: Option<&Registry>) -> Result<String, fmt::Error> {
        let mut text = String::new();
        match registry {
            Some(registry) => encode(&mut text, registry)?,
            None => text.push_str("# EOF\n"),
        }
        Ok(match self {
            Self::OpenMetrics => text,
            Self::Prometheus => older(&text),
        })
    }
}

/// OpenMetrics as the older format: there a counter is named as its samples are, and units and the end are not told.
fn older(text: &str) -> String {
    let mut lines = text.lines().filter(|line| *line != "# EOF" && !line.starts_with("# UNIT ")).peekable();
    let mut older = String::with_capacity(text.len());
    while let Some(line) = lines.next() {
        let is_counter = |line: &str| line.starts_with("# TYPE ") && line.ends_with(" counter");
        // The help stands before the type that says whether it is a counter.
        let counts =
            is_counter(line) || (line.starts_with("# HELP ") && lines.peek().is_some_and(|next| is_counter(next)));
        match line.splitn(4, ' ').collect::<Vec<_>>()[..] {
            [hash, what, name, rest] if counts => {
                older.extend([hash, " ", what, " ", name, "_total ", rest]);
            }
            _ => older.push_str(line),
        }
        older.push('\n');
    }
    older
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

    use super::*;

    #[test]
    fn each_gets_the_format_that_it_asks_for() {
        let wanted = |accept: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            Format::wanted(&headers)
        };
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
        assert_eq!(wanted(prometheus), Format::OpenMetrics);
        for older in ["text/plain;version=0.0.4;q=1,*/*;q=0.1", "*/*", ""] {
            assert_eq!(wanted(older), Format::Prometheus, "{older}");
        }
        assert_eq!(Format::wanted(&HeaderMap::new()), Format::Prometheus);
    }

    #[test]
    fn a_counter_has_the_same_name_in_all_its_lines() {
        let mut registry = Registry::default();
        let counter: Counter = Counter::default();
        counter.inc();
        registry.register("pulls", "How many", counter);
        registry.register("bytes", "How full", Gauge::<i64>::default());
        let expected = "# HELP pulls_total How many.\n# TYPE pulls_total counter\npulls_total 1\n\
                        # HELP bytes How full.\n# TYPE bytes gauge\nbytes 0\n";
        assert_eq!(Format::Prometheus.write(Some(&registry)).unwrap(), expected);
        let open = Format::OpenMetrics.write(Some(&registry)).unwrap();
        assert!(open.contains("# TYPE pulls counter\npulls_total 1\n") && open.ends_with("# EOF\n"), "{open}");
        assert_eq!(Format::Prometheus.write(None).unwrap(), "");
    }
}
