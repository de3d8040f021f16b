//! `eagle-bench tracker`.

use crate::report::{
    model::{Bars, Better, Plot, Report, Table, Unit},
    read::Fields,
};

/// Names of the phases in the result, and for people.
const PHASES: [(&str, &str); 5] = [
    ("nothing", "a server that does nothing"),
    ("full_load", "as fast as it answers"),
    ("half_load", "half of that"),
    ("nothing_half_load", "nothing, as often as that"),
    ("expiry", "the same while nodes expire"),
];

pub(crate) fn view(fields: Fields<'_>) -> Report {
    let count = |path| fields.number(path).map(|value| Unit::Count.show(value));
    let (peers, blobs) = (fields.shown("/peers", Unit::Count), fields.shown("/blobs_per_peer", Unit::Count));
    let mut report = Report::new(format!("A tracker of {peers} nodes with {blobs} blobs each"));
    for (name, path) in [
        ("nodes", "/peers"),
        ("blobs", "/blobs"),
        ("blobs of a node", "/blobs_per_peer"),
        ("blobs in an announce", "/updates_per_announce"),
        ("connections", "/connections"),
    ] {
        report.setting(name, count(path));
    }
    report.setting("announces that ask for peers", fields.number("/asking").map(|share| Unit::Share.show(share)));
    report.setting("encoding", fields.text("/encoding").map(str::to_owned));
    let mut table = Table::new(
        "Announces",
        &["", "announces", "updates", "p50", "p99", "p99.9", "longest", "processor's time of one"],
    );
    let (mut rates, mut latencies) = (Vec::new(), Vec::new());
    for (key, name) in PHASES {
        let phase = fields.at(&format!("/{key}"));
        if !phase.has("/announces_per_second") {
            continue;
        }
        // What was asked for at half load and less follows from full load, and is no merit.
        let better = if key == "nothing" || key == "full_load" { Better::Higher } else { Better::Neither };
        let rate = phase.number("/announces_per_second");
        let p99 = phase.number("/latency_seconds/p99");
        report.figure(format!("{name}: announces"), rate, Unit::PerSecond, better);
        report.figure(format!("{name}: p99"), p99, Unit::Seconds, Better::Lower);
        report.figure(format!("{name}: longest"), phase.number("/latency_seconds/max"), Unit::Seconds, Better::Lower);
        let cpu = phase.number("/server_cpu_micros_per_announce");
        report.figure(format!("{name}: processor's time of one"), cpu, Unit::Microseconds, Better::Lower);
        table.rows.push(vec![
            name.to_owned(),
            phase.shown("/announces_per_second", Unit::PerSecond),
            phase.shown("/updates_per_second", Unit::PerSecond),
            phase.shown("/latency_seconds/p50", Unit::Seconds),
            phase.shown("/latency_seconds/p99", Unit::Seconds),
            phase.shown("/latency_seconds/p999", Unit::Seconds),
            phase.shown("/latency_seconds/max", Unit::Seconds),
            phase.shown("/server_cpu_micros_per_announce", Unit::Microseconds),
        ]);
        rates.push((name.to_owned(), vec![rate]));
        latencies.push((name.to_owned(), vec![phase.number("/latency_seconds/p50"), p99]));
    }
    report.tables.push(table);
    report.figure("pairs of blob and node", fields.number("/fill/entries"), Unit::Count, Better::Neither);
    let filled = fields.number("/fill/blobs_per_second");
    report.figure("pairs, when every node says everything", filled, Unit::PerSecond, Better::Higher);
    report.figure("memory with all pairs", fields.number("/fill/rss_bytes"), Unit::Bytes, Better::Lower);
    report.figure("memory of a pair", fields.number("/fill/bytes_per_entry"), Unit::Bytes, Better::Lower);
    report.figure("memory after nodes expired", fields.number("/expiry/rss_bytes"), Unit::Bytes, Better::Lower);
    report.plots.push(Plot::Bars(Bars {
        title: "Announces a second".to_owned(),
        unit: Unit::PerSecond,
        series: vec!["announces".to_owned()],
        groups: rates,
    }));
    report.plots.push(Plot::Bars(Bars {
        title: "Time of an answer".to_owned(),
        unit: Unit::Seconds,
        series: vec!["p50".to_owned(), "p99".to_owned()],
        groups: latencies,
    }));
    report
}
