//! `eagle-bench sim`.

use crate::report::{
    model::{Better, Lines, Plot, Report, Series, Table, Unit, size},
    read::Fields,
};

pub(crate) fn view(fields: Fields<'_>) -> Report {
    let plan = fields.text("/plan").unwrap_or("a plan");
    let mut report = Report::new(format!("Simulation of {plan}: {}", fields.text("/description").unwrap_or_default()));
    report.setting("plan", fields.text("/plan").map(str::to_owned));
    report.setting("seed", fields.number("/seed").map(|value| Unit::Count.show(value)));
    report.setting("nodes", fields.number("/nodes").map(|value| Unit::Count.show(value)));
    report.setting("size", fields.number("/size_bytes").map(size));
    report.setting("nodes go by", fields.text("/policy").map(str::to_owned));
    let mut table = Table::new("Nodes", &["", "p50", "p99", "worst"]);
    for (key, name, unit, better) in [
        ("seconds", "time", Unit::Seconds, Better::Lower),
        ("efficiency", "efficiency", Unit::Ratio, Better::Higher),
        ("over_bound", "time over a node's own bound", Unit::Ratio, Better::Lower),
        ("first_piece_seconds", "first piece", Unit::Seconds, Better::Lower),
    ] {
        let three = fields.at(&format!("/{key}"));
        for (part, label) in [("p50", "p50"), ("p99", "p99"), ("max", "worst")] {
            report.figure(format!("{name}, {label}"), three.number(&format!("/{part}")), unit, better);
        }
        table.rows.push(
            [name.to_owned()].into_iter().chain(["/p50", "/p99", "/max"].map(|part| three.shown(part, unit))).collect(),
        );
    }
    report.tables.push(table);
    report.figure("nodes that finished", fields.number("/finished"), Unit::Count, Better::Higher);
    let size = fields.number("/size_bytes").filter(|size| *size > 0.0);
    let times = |path| size.zip(fields.number(path)).map(|(size, bytes)| bytes / size);
    report.figure("origin sent, times the size", times("/origin_bytes"), Unit::Ratio, Better::Lower);
    report.figure("seeders sent, times the size", times("/seeder_bytes"), Unit::Ratio, Better::Lower);
    for (path, name) in [
        ("/cross_rack/ratio", "between racks, over the least"),
        ("/cross_zone/ratio", "between zones, over the least"),
        ("/cross_region/ratio", "between regions, over the least"),
        ("/blind/slowest_ratio", "slowest node over that of nodes that know no places"),
    ] {
        report.figure(name, fields.number(path), Unit::Ratio, Better::Lower);
    }
    report.figure("pieces sent twice", fields.number("/duplicate_share"), Unit::Share, Better::Lower);
    report.figure("control messages of all bytes", fields.number("/control_share"), Unit::Share, Better::Lower);
    report.figure("requests that ran out of time", fields.number("/stalled_requests"), Unit::Count, Better::Lower);
    report.figure("time to simulate", fields.number("/wall_seconds"), Unit::Seconds, Better::Neither);
    let mut targets = Table::new("Targets", &["", "wanted", "got", "met"]);
    for target in fields.list("/targets") {
        let met = target.at("/met").0.as_bool().map_or("-", |met| if met { "yes" } else { "no" });
        targets.rows.push(vec![
            target.text("/what").unwrap_or("-").to_owned(),
            target.shown("/wanted", Unit::Ratio),
            target.shown("/got", Unit::Ratio),
            met.to_owned(),
        ]);
    }
    report.tables.push(targets);
    let ideal = fields.number("/ideal_seconds").map(|ideal| format!("ideal {}", Unit::Seconds.show(ideal)));
    report.plots.push(over_time(
        fields,
        format!("Share of everything that a node owns ({})", ideal.as_deref().unwrap_or("no ideal")),
        &[("least of a node", "/owned/0"), ("middle", "/owned/1"), ("most", "/owned/2"), ("nodes done", "/done")],
    ));
    report.plots.push(over_time(
        fields,
        "Share of the nodes that own a piece".to_owned(),
        &[("rarest piece", "/spread/0"), ("middle", "/spread/1"), ("commonest", "/spread/2")],
    ));
    report
}

fn over_time(fields: Fields<'_>, title: String, lines: &[(&str, &str)]) -> Plot {
    let series = lines.iter().map(|(name, path)| Series {
        name: (*name).to_owned(),
        points: fields
            .list("/samples")
            .filter_map(|sample| Some((sample.number("/seconds")?, sample.number(path)?)))
            .collect(),
    });
    Plot::Lines(Lines {
        title,
        across: "time",
        across_unit: Unit::Seconds,
        unit: Unit::Share,
        dots: false,
        series: series.collect(),
        level: None,
    })
}
