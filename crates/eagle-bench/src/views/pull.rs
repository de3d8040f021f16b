//! `eagle-bench pull`.

mod agents;

use std::collections::BTreeMap;

use crate::report::{
    model::{Bars, Better, Lines, Plot, Report, Sample, Series, Statistic, Table, Unit},
    read::Fields,
};

/// Parts of a pull in the result, and for people.
const PHASES: [(&str, &str); 3] =
    [("manifest_seconds", "manifest"), ("first_byte_seconds", "first byte of a blob"), ("seconds", "all blobs")];

pub(crate) fn view(fields: Fields<'_>) -> Report {
    let image = fields.text("/image").unwrap_or("an image");
    let mut report = Report::new(format!("Pulls of {image}"));
    // A local image is at a port of its own in each run, so its name says nothing.
    let local = fields.at("/local").0.as_bool().unwrap_or_else(|| image.starts_with("127.0.0.1:"));
    report.setting("image", Some(if local { "generated".to_owned() } else { image.to_owned() }));
    report.setting("iterations", fields.number("/iterations").map(|value| Unit::Count.show(value)));
    report.setting("warm-up", fields.number("/warm_up").map(|value| Unit::Count.show(value)));
    report.setting(
        "each iteration has",
        fields
            .at("/unique")
            .0
            .as_bool()
            .map(|unique| if unique { "an image of its own" } else { "the same image" }.to_owned()),
    );
    let version = fields.text("/runtime_version").map(|version| format!(" {version}")).unwrap_or_default();
    report.setting("client", fields.text("/runtime").map(|runtime| format!("{runtime}{version}")));
    steps(&mut report, fields);
    agents::show(&mut report, fields);
    for (at_a_time, series) in iterations(fields) {
        report.plots.push(Plot::Lines(Lines {
            title: format!("Time of each pull, {at_a_time} at a time"),
            across: "iteration",
            across_unit: Unit::Count,
            unit: Unit::Seconds,
            dots: true,
            series,
            level: None,
        }));
    }
    if let Some(error) = fields.text("/error") {
        report.warnings.push(format!("It broke off, and the figures are not those of all that was asked for: {error}"));
    }
    for pull in fields.list("/pulls") {
        if let Some(error) = pull.text("/error") {
            // One is enough to know what went wrong; the table says how many.
            report.warnings.push(format!("A pull failed: {error}"));
            break;
        }
    }
    report
}

fn steps(report: &mut Report, fields: Fields<'_>) {
    let mut table = Table::new(
        "Times of the pulls that succeeded",
        &["at a time", "series", "pulls", "good", "min", "mean", "p50", "p90", "p95", "p99", "max", "throughput"],
    );
    let mut phases = Table::new(
        "Medians of the parts of a pull, from its start",
        &["at a time", "series", "manifest", "first byte of a blob", "all blobs"],
    );
    let mut percentiles: BTreeMap<String, Series> = BTreeMap::new();
    let mut throughput: BTreeMap<String, Series> = BTreeMap::new();
    let mut origin = Vec::new();
    let mut parts = Vec::new();
    for step in fields.list("/steps") {
        let series = step.text("/series").unwrap_or("-");
        let at_a_time = step.shown("/concurrency", Unit::Count);
        let name = format!("{series}, {at_a_time} at a time");
        figures(report, fields, step, &name);
        let mut row = vec![at_a_time.clone(), series.to_owned()];
        row.extend([of_asked(step), step.shown("/success_rate", Unit::Share)]);
        for part in ["min", "mean", "p50", "p90", "p95", "p99", "max"] {
            row.push(step.shown(&format!("/seconds/{part}"), Unit::Seconds));
        }
        row.push(step.shown("/bytes_per_second", Unit::BytesPerSecond));
        table.rows.push(row);
        let medians = PHASES.map(|(key, _)| step.number(&format!("/{key}/p50")));
        let mut row = vec![at_a_time, series.to_owned()];
        row.extend(PHASES.map(|(key, _)| step.shown(&format!("/{key}/p50"), Unit::Seconds)));
        phases.rows.push(row);
        parts.push((name.clone(), medians.to_vec()));
        if let Some(x) = step.number("/concurrency") {
            let add = |lines: &mut BTreeMap<String, Series>, line: String, value: Option<f64>| {
                let line = lines.entry(line.clone()).or_insert_with(|| Series { name: line, points: Vec::new() });
                line.points.extend(value.map(|value| (x, value)));
            };
            for part in ["p50", "p90", "p99"] {
                add(&mut percentiles, format!("{series} {part}"), step.number(&format!("/seconds/{part}")));
            }
            add(&mut throughput, series.to_owned(), step.number("/bytes_per_second"));
        }
        if step.has("/origin_bytes") {
            origin.push((name, vec![step.number("/origin_bytes"), step.number("/bytes")]));
        }
    }
    report.tables.extend([table, phases]);
    for (title, unit, lines) in [
        ("Percentiles of the time of a pull", Unit::Seconds, percentiles),
        ("Throughput, all clients together", Unit::BytesPerSecond, throughput),
    ] {
        report.plots.push(Plot::Lines(Lines {
            title: title.to_owned(),
            across: "pulls at a time",
            across_unit: Unit::Count,
            unit,
            dots: false,
            series: lines.into_values().collect(),
            level: None,
        }));
    }
    report.plots.push(Plot::Bars(Bars {
        title: "Bytes that the origin sent, and that clients got".to_owned(),
        unit: Unit::Bytes,
        series: vec!["sent by the origin".to_owned(), "got by clients".to_owned()],
        groups: origin,
    }));
    report.plots.push(Plot::Bars(Bars {
        title: "Medians of the parts of a pull, from its start".to_owned(),
        unit: Unit::Seconds,
        series: PHASES.map(|(_, name)| name.to_owned()).to_vec(),
        groups: parts,
    }));
}

/// How many pulls there were, and of how many if not of as many.
fn of_asked(step: Fields<'_>) -> String {
    let pulls = step.shown("/pulls", Unit::Count);
    match step.number("/asked") {
        Some(asked) if step.number("/pulls") != Some(asked) => format!("{pulls} of {}", Unit::Count.show(asked)),
        _ => pulls,
    }
}

fn figures(report: &mut Report, fields: Fields<'_>, step: Fields<'_>, name: &str) {
    let of_step: Vec<Fields<'_>> = fields
        .list("/pulls")
        .filter(|pull| {
            pull.text("/series") == step.text("/series")
                && pull.number("/concurrency") == step.number("/concurrency")
                && pull.at("/success").0 == true
        })
        .collect();
    let mut add = |what: &str, path: &str, statistic| {
        let values = of_step.iter().filter_map(|pull| pull.number(path)).collect();
        report.sampled(format!("{name}: {what}"), Sample { values, statistic }, Unit::Seconds, Better::Lower);
    };
    add("mean time", "/seconds", Statistic::Mean);
    add("median time", "/seconds", Statistic::Percentile(50));
    add("p90 of the time", "/seconds", Statistic::Percentile(90));
    add("p99 of the time", "/seconds", Statistic::Percentile(99));
    add("median to the manifest", "/manifest_seconds", Statistic::Percentile(50));
    add("median to the first byte", "/first_byte_seconds", Statistic::Percentile(50));
    let figure = |path| step.number(path);
    report.figure(format!("{name}: success"), figure("/success_rate"), Unit::Share, Better::Higher);
    report.figure(format!("{name}: throughput"), figure("/bytes_per_second"), Unit::BytesPerSecond, Better::Higher);
    report.figure(format!("{name}: origin sent"), figure("/origin_bytes"), Unit::Bytes, Better::Lower);
}

/// The times of the pulls by concurrency and series.
fn iterations(fields: Fields<'_>) -> Vec<(String, Vec<Series>)> {
    let mut steps: Vec<(String, Vec<Series>)> = Vec::new();
    for pull in fields.list("/pulls") {
        let (Some(x), Some(y)) = (pull.number("/iteration"), pull.number("/seconds")) else { continue };
        let at_a_time = pull.shown("/concurrency", Unit::Count);
        let mut name = pull.text("/series").unwrap_or("-").to_owned();
        if pull.at("/success").0 == false {
            name.push_str(", failed");
        }
        let step = match steps.iter().position(|(other, _)| *other == at_a_time) {
            Some(place) => place,
            None => {
                steps.push((at_a_time, Vec::new()));
                steps.len() - 1
            }
        };
        let series = &mut steps[step].1;
        match series.iter_mut().find(|other| other.name == name) {
            Some(series) => series.points.push((x, y)),
            None => series.push(Series { name, points: vec![(x, y)] }),
        }
    }
    steps
}
