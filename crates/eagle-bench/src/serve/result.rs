//! What came of it: JSON for programs, tables for people.

use std::{collections::BTreeMap, fmt};

use anyhow::{Context as _, Result};
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use eagle_core::units::Size;
use serde::Serialize;

use super::load::Target;
use crate::{
    cli::ServeArgs,
    report::Circumstances,
    stats::{percentile, sorted},
};

/// Least share of nginx's throughput on the large blob that is aimed at.
const THROUGHPUT_AIM: f64 = 0.7;
/// Most times nginx's 99th percentile on the small blob that is aimed at.
const LATENCY_AIM: f64 = 2.0;

/// A blob, a number of clients, and what the rounds gave.
pub(super) struct Case {
    pub(super) clients: u32,
    pub(super) size: u64,
    pub(super) eagle: Target,
    pub(super) nginx: Option<Target>,
    pub(super) eagle_rounds: Vec<Round>,
    pub(super) nginx_rounds: Vec<Round>,
}

/// Percentiles by their names.
type Percentiles = BTreeMap<&'static str, f64>;

/// One measurement, or the medians of several.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Round {
    pub(super) bytes_per_second: f64,
    pub(super) requests_per_second: f64,
    /// Absent where no request ended within the time.
    pub(super) latency_seconds: Option<Percentiles>,
    pub(super) first_byte_seconds: Option<Percentiles>,
    pub(super) cpu_seconds_per_gb: f64,
    pub(super) client_cpu_seconds_per_gb: f64,
}

/// The report. Fields are described in `docs/benchmarks.md`.
#[derive(Debug, Clone, Serialize)]
pub(super) struct ServeReport {
    #[serde(flatten)]
    circumstances: Circumstances,
    nginx_version: Option<String>,
    rounds: u32,
    seconds: f64,
    cases: Vec<CaseReport>,
}

#[derive(Debug, Clone, Serialize)]
struct CaseReport {
    blob_bytes: u64,
    clients: u32,
    eagle: Figures,
    nginx: Option<Figures>,
    /// Eagle over nginx.
    ratio: Option<Ratio>,
}

#[derive(Debug, Clone, Serialize)]
struct Figures {
    #[serde(flatten)]
    median: Round,
    rounds: Vec<Round>,
}

#[derive(Debug, Clone, Serialize)]
struct Ratio {
    throughput: f64,
    latency_p50: Option<f64>,
    latency_p99: Option<f64>,
    cpu: f64,
}

impl ServeReport {
    pub(super) fn new(
        circumstances: Circumstances,
        args: &ServeArgs,
        nginx_version: Option<String>,
        cases: &[Case],
    ) -> Result<Self> {
        let cases = cases.iter().map(CaseReport::new).collect::<Result<_>>()?;
        Ok(Self { circumstances, nginx_version, rounds: args.rounds, seconds: args.seconds, cases })
    }
}

impl CaseReport {
    fn new(case: &Case) -> Result<Self> {
        let eagle = Figures::new(&case.eagle_rounds)?;
        let nginx = if case.nginx_rounds.is_empty() { None } else { Some(Figures::new(&case.nginx_rounds)?) };
        let ratio = nginx.as_ref().map(|nginx| {
            let (eagle, nginx) = (&eagle.median, &nginx.median);
            let latency =
                |name| Some(eagle.latency_seconds.as_ref()?.get(name)? / nginx.latency_seconds.as_ref()?.get(name)?);
            Ratio {
                throughput: eagle.bytes_per_second / nginx.bytes_per_second,
                latency_p50: latency("p50"),
                latency_p99: latency("p99"),
                cpu: eagle.cpu_seconds_per_gb / nginx.cpu_seconds_per_gb,
            }
        });
        Ok(Self { blob_bytes: case.size, clients: case.clients, eagle, nginx, ratio })
    }

    /// Processor's time for people: by the byte or, where that means nothing, by the request.
    fn cpu(&self, seconds_per_gb: f64) -> String {
        if self.is_large() {
            format!("{seconds_per_gb:.3} s/GB")
        } else {
            format!("{:.1} us each", seconds_per_gb * self.blob_bytes as f64 / 1e3)
        }
    }

    /// The blob that is served at the speed of memory, not of requests.
    fn is_large(&self) -> bool {
        self.blob_bytes > 1 << 20
    }
}

impl Figures {
    /// Medians, each figure for itself.
    fn new(rounds: &[Round]) -> Result<Self> {
        let median = |figure: &dyn Fn(&Round) -> f64| {
            percentile(&sorted(rounds.iter().map(figure)), 50).context("there was no round")
        };
        let percentiles = |of: &dyn Fn(&Round) -> Option<&Percentiles>| {
            let at = |name| percentile(&sorted(rounds.iter().filter_map(|round| of(round)?.get(name).copied())), 50);
            Some(Percentiles::from([("p50", at("p50")?), ("p99", at("p99")?)]))
        };
        let median = Round {
            bytes_per_second: median(&|round| round.bytes_per_second)?,
            requests_per_second: median(&|round| round.requests_per_second)?,
            latency_seconds: percentiles(&|round| round.latency_seconds.as_ref()),
            first_byte_seconds: percentiles(&|round| round.first_byte_seconds.as_ref()),
            cpu_seconds_per_gb: median(&|round| round.cpu_seconds_per_gb)?,
            client_cpu_seconds_per_gb: median(&|round| round.client_cpu_seconds_per_gb)?,
        };
        Ok(Self { median, rounds: rounds.to_vec() })
    }
}

impl fmt::Display for ServeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.nginx_version {
            Some(version) => writeln!(f, "A proxy with the blob in its cache, beside {version} with sendfile\n")?,
            None => writeln!(f, "A proxy with the blob in its cache; there is no nginx here to compare it with\n")?,
        }
        let mut table = Table::new();
        table.load_preset(NOTHING);
        table.set_header(["blob", "clients", "server", "GB/s", "requests/s", "p50", "p99", "CPU", "clients' CPU"]);
        for case in &self.cases {
            for (name, figures) in [("eagle", Some(&case.eagle)), ("nginx", case.nginx.as_ref())] {
                let Some(Figures { median, .. }) = figures else { continue };
                let latency = |name| median.latency_seconds.as_ref().and_then(|latency| latency.get(name));
                let time = |value: Option<&f64>| value.map_or_else(|| "-".to_owned(), |value| duration(*value));
                table.add_row([
                    Size(case.blob_bytes).to_string(),
                    case.clients.to_string(),
                    name.to_owned(),
                    format!("{:.3}", median.bytes_per_second / 1e9),
                    format!("{:.0}", median.requests_per_second),
                    time(latency("p50")),
                    time(latency("p99")),
                    case.cpu(median.cpu_seconds_per_gb),
                    case.cpu(median.client_cpu_seconds_per_gb),
                ]);
            }
        }
        for index in 3..9 {
            if let Some(column) = table.column_mut(index) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        writeln!(f, "{table}")?;
        for case in &self.cases {
            let Some(ratio) = &case.ratio else { continue };
            let what = format!("{}, {} clients", Size(case.blob_bytes), case.clients);
            let (throughput, cpu) = (ratio.throughput, ratio.cpu);
            if case.is_large() {
                let aim = format!("aim: {THROUGHPUT_AIM} and more");
                write!(f, "\n  {what:<18} {throughput:.2} of nginx's throughput ({aim}), {cpu:.2} x its CPU per byte")?;
            } else if let Some(p99) = ratio.latency_p99 {
                let aim = format!("aim: {LATENCY_AIM} and less");
                write!(f, "\n  {what:<18} {p99:.2} x nginx's p99 ({aim}), {throughput:.2} of its requests per second")?;
            }
        }
        Ok(())
    }
}

/// A time with a unit that fits.
fn duration(seconds: f64) -> String {
    match seconds {
        ..0.001 => format!("{:.0} us", seconds * 1e6),
        ..1.0 => format!("{:.1} ms", seconds * 1e3),
        _ => format!("{seconds:.2} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(bytes_per_second: f64, p99: Option<f64>) -> Round {
        Round {
            bytes_per_second,
            requests_per_second: 1.0,
            latency_seconds: p99.map(|p99| Percentiles::from([("p50", p99 / 2.0), ("p99", p99)])),
            first_byte_seconds: None,
            cpu_seconds_per_gb: 1.0,
            client_cpu_seconds_per_gb: 1.0,
        }
    }

    #[test]
    fn ratios_are_of_medians() {
        let target = Target { addresses: Vec::new(), path: String::new(), size: 1 };
        let case = Case {
            clients: 1,
            size: 1,
            eagle: target.clone(),
            nginx: Some(target),
            eagle_rounds: vec![round(10.0, Some(3.0)), round(90.0, None), round(20.0, Some(4.0))],
            nginx_rounds: vec![round(40.0, Some(1.0)), round(50.0, Some(2.0)), round(1.0, Some(9.0))],
        };
        let report = CaseReport::new(&case).unwrap();
        assert_eq!(report.eagle.median.bytes_per_second, 20.0);
        let ratio = report.ratio.unwrap();
        assert_eq!((ratio.throughput, ratio.latency_p99), (0.5, Some(1.5)));
        assert!(report.eagle.median.first_byte_seconds.is_none());
        let alone = Case { nginx: None, nginx_rounds: Vec::new(), ..case };
        assert!(CaseReport::new(&alone).unwrap().ratio.is_none());
    }

    #[test]
    fn times_have_a_unit_that_fits() {
        assert_eq!([0.000_05, 0.0021, 2.5].map(duration), ["50 us", "2.1 ms", "2.50 s"]);
    }
}
