//! `eagle-bench floor`.

use crate::report::{
    model::{Bars, Better, Plot, Report, Table, Unit, size},
    read::Fields,
};

/// Names of the ways in the result, and for people.
const WAYS: [(&str, &str); 4] = [
    ("hash", "SHA-256 of a file in the page cache"),
    ("verified_overwrite", "sendfile; read, SHA-256, write over a file"),
    ("verified_download", "sendfile; read, SHA-256, write to a new file"),
    ("delivered_download", "the same, then sent on to a local reader"),
];

pub(crate) fn view(fields: Fields<'_>) -> Report {
    let moved = fields.number("/size_bytes").map(size);
    let mut report = Report::new(format!(
        "The least that a verified download costs: {} over loopback, all ends counted",
        moved.as_deref().unwrap_or("bytes")
    ));
    report.setting("size", moved);
    let mut table = Table::new("What moving the bytes cost", &["", "throughput", "processor's time"]);
    let (mut throughput, mut cost) = (Vec::new(), Vec::new());
    for (way, name) in WAYS {
        let way = fields.at(&format!("/{way}"));
        let (rate, cpu) = (way.number("/bytes_per_second"), way.number("/cpu_seconds_per_gb"));
        report.figure(format!("{name}: throughput"), rate, Unit::BytesPerSecond, Better::Higher);
        report.figure(format!("{name}: processor's time"), cpu, Unit::SecondsPerGigabyte, Better::Lower);
        table.rows.push(vec![
            name.to_owned(),
            way.shown("/bytes_per_second", Unit::BytesPerSecond),
            way.shown("/cpu_seconds_per_gb", Unit::SecondsPerGigabyte),
        ]);
        throughput.push((name.to_owned(), vec![rate]));
        cost.push((name.to_owned(), vec![cpu]));
    }
    report.tables.push(table);
    let bars = |title: &str, unit, groups| {
        Plot::Bars(Bars { title: title.to_owned(), unit, series: vec!["measured".to_owned()], groups })
    };
    report.plots.push(bars("Throughput", Unit::BytesPerSecond, throughput));
    report.plots.push(bars("Processor's time per GB", Unit::SecondsPerGigabyte, cost));
    report
}
