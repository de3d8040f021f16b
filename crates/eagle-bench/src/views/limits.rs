//! `eagle-bench limits`.

use crate::report::{
    model::{Bars, Better, Plot, Report, Table, Unit, digits, size},
    read::Fields,
};

pub(crate) fn view(fields: Fields<'_>) -> Report {
    let mut report = Report::new("How well bandwidth limits hold, are shared, and change".to_owned());
    report.setting("encryption", fields.text("/encryption").map(str::to_owned));
    report.setting("length of a measurement", fields.number("/seconds").map(|value| Unit::Seconds.show(value)));
    for unlimited in fields.list("/unlimited") {
        let name = format!("{} without a limit", direction(unlimited));
        report.figure(name, unlimited.number("/bytes_per_second"), Unit::BytesPerSecond, Better::Higher);
    }
    windows(&mut report, fields);
    let mut beyond = Table::new(
        "Limits that this machine does not reach: what they cost",
        &["limit", "throughput with", "without", "ratio"],
    );
    for result in fields.list("/beyond") {
        let name = name(result);
        report.figure(format!("{name}: of no limit"), result.number("/ratio"), Unit::Ratio, Better::Higher);
        beyond.rows.push(vec![
            name,
            result.shown("/bytes_per_second", Unit::BytesPerSecond),
            result.shown("/unlimited_bytes_per_second", Unit::BytesPerSecond),
            result.shown("/ratio", Unit::Ratio),
        ]);
    }
    let mut shares = Table::new(
        "Four blobs at once, as clients of a proxy see them",
        &["limit", "all together", "shares of the mean", "worst"],
    );
    for share in fields.list("/shares") {
        let name = name(share);
        report.figure(format!("{name}: worst share of four"), share.number("/worst"), Unit::Share, Better::Lower);
        let each: Vec<String> = share.list("/shares").map(|share| share.shown("", Unit::Ratio)).collect();
        shares.rows.push(vec![
            name,
            share.shown("/bytes_per_second", Unit::BytesPerSecond),
            each.join(" "),
            share.shown("/worst", Unit::Share),
        ]);
    }
    let mut changes =
        Table::new("Changes while bytes move, until the new rate holds", &["what", "by", "from", "to", "took"]);
    for change in fields.list("/changes") {
        let rate = |path| change.number(path).map_or_else(|| "-".to_owned(), |rate| format!("{}/s", size(rate)));
        let by = change.text("/by").unwrap_or("-");
        let (from, to) = (rate("/from_bytes_per_second"), rate("/to_bytes_per_second"));
        let name = format!("{} limit from {from} to {to} by {by}: time", direction(change));
        report.figure(name, change.number("/seconds"), Unit::Seconds, Better::Lower);
        changes.rows.push(vec![
            direction(change).to_owned(),
            by.to_owned(),
            from,
            to,
            change.shown("/seconds", Unit::Seconds),
        ]);
    }
    report.tables.extend([beyond, shares, changes]);
    report
}

/// Every window of a second.
fn windows(report: &mut Report, fields: Fields<'_>) {
    let mut table = Table::new(
        "Every window of one second, against the limit",
        &["limit", "most bytes", "fewest bytes", "mean error", "windows"],
    );
    let mut groups = Vec::new();
    for rate in fields.list("/rates") {
        let name = name(rate);
        let (over, under) = (rate.number("/errors/over"), rate.number("/errors/under"));
        let worst = over.zip(under).map(|(over, under)| over.abs().max(under.abs()));
        report.figure(format!("{name}: worst window"), worst, Unit::Share, Better::Lower);
        let signed = |value: Option<f64>| {
            let sign = |value: f64| format!("{}{} %", if value < 0.0 { "-" } else { "+" }, digits(value.abs() * 100.0));
            value.map_or_else(|| "-".to_owned(), sign)
        };
        table.rows.push(vec![
            name.clone(),
            signed(over),
            signed(under),
            rate.shown("/errors/mean", Unit::Share),
            rate.shown("/errors/windows", Unit::Count),
        ]);
        groups.push((name, vec![over.map(|over| over.max(0.0)), under.map(|under| (-under).max(0.0))]));
    }
    report.tables.push(table);
    report.plots.push(Plot::Bars(Bars {
        title: "Windows of a second: furthest above and below the limit".to_owned(),
        unit: Unit::Share,
        series: vec!["too much".to_owned(), "too little".to_owned()],
        groups,
    }));
}

fn direction(fields: Fields<'_>) -> &str {
    fields.text("/direction").unwrap_or("unknown")
}

fn name(fields: Fields<'_>) -> String {
    let rate = fields.number("/rate_bytes_per_second").map_or_else(|| "-".to_owned(), size);
    format!("{} {rate}/s", direction(fields))
}
