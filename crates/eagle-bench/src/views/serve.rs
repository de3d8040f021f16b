//! `eagle-bench serve`.

use crate::report::{
    model::{Bars, Better, Plot, Report, Sample, Statistic, Table, Unit, size},
    read::Fields,
};

const SERVERS: [&str; 2] = ["eagle", "nginx"];
/// Blobs of more bytes are served at the speed of memory, smaller ones at that of requests.
const LARGE: f64 = 1_048_576.0;

pub(crate) fn view(fields: Fields<'_>) -> Report {
    let beside = fields.text("/nginx_version").map_or_else(String::new, |nginx| format!(", beside {nginx}"));
    let mut report = Report::new(format!("A proxy that serves blobs from its cache{beside}"));
    report.setting("rounds", fields.number("/rounds").map(|value| Unit::Count.show(value)));
    report.setting("length of a measurement", fields.number("/seconds").map(|value| Unit::Seconds.show(value)));
    report.setting("nginx", fields.text("/nginx_version").map(str::to_owned));
    let mut table = Table::new(
        "Medians of the rounds",
        &["case", "server", "throughput", "requests", "p50", "p99", "server's CPU", "clients' CPU"],
    );
    let (mut large, mut small) = (Vec::new(), Vec::new());
    for case in fields.list("/cases") {
        let bytes = case.number("/blob_bytes").unwrap_or_default();
        let clients = case.shown("/clients", Unit::Count);
        let name = format!("{}, {clients} {}", size(bytes), if clients == "1" { "client" } else { "clients" });
        let mut bars = Vec::new();
        for server in SERVERS {
            let figures = case.at(&format!("/{server}"));
            let rounds =
                |path: &str| -> Vec<f64> { figures.list("/rounds").filter_map(|round| round.number(path)).collect() };
            let sample = |path| Sample { values: rounds(path), statistic: Statistic::Percentile(50) };
            let mut add = |what: &str, path, unit, better| {
                report.sampled(format!("{name}, {server}: {what}"), sample(path), unit, better);
            };
            if bytes > LARGE {
                add("throughput", "/bytes_per_second", Unit::BytesPerSecond, Better::Higher);
                add("processor's time", "/cpu_seconds_per_gb", Unit::SecondsPerGigabyte, Better::Lower);
            } else {
                add("requests", "/requests_per_second", Unit::PerSecond, Better::Higher);
                add("p99 of a request", "/latency_seconds/p99", Unit::Seconds, Better::Lower);
            }
            let main = if bytes > LARGE { "/bytes_per_second" } else { "/requests_per_second" };
            bars.push(figures.number(main));
            if figures.has("/bytes_per_second") {
                table.rows.push(vec![
                    name.clone(),
                    server.to_owned(),
                    figures.shown("/bytes_per_second", Unit::BytesPerSecond),
                    figures.shown("/requests_per_second", Unit::PerSecond),
                    figures.shown("/latency_seconds/p50", Unit::Seconds),
                    figures.shown("/latency_seconds/p99", Unit::Seconds),
                    figures.shown("/cpu_seconds_per_gb", Unit::SecondsPerGigabyte),
                    figures.shown("/client_cpu_seconds_per_gb", Unit::SecondsPerGigabyte),
                ]);
            }
        }
        if bytes > LARGE { &mut large } else { &mut small }.push((name, bars));
    }
    report.tables.push(table);
    for (title, unit, groups) in [
        ("Throughput of large blobs", Unit::BytesPerSecond, large),
        ("Requests for small blobs", Unit::PerSecond, small),
    ] {
        let series = SERVERS.map(str::to_owned).to_vec();
        report.plots.push(Plot::Bars(Bars { title: title.to_owned(), unit, series, groups }));
    }
    report
}
