//! `eagle-bench swarm`.

use crate::report::{
    model::{Bars, Better, Lines, Plot, Report, Series, Table, Unit, size},
    read::Fields,
};

pub(crate) fn view(fields: Fields<'_>) -> Report {
    let bytes = fields.number("/size_bytes").filter(|size| *size > 0.0);
    let nodes = fields.shown("/nodes", Unit::Count);
    let shown = bytes.map_or_else(|| "A blob".to_owned(), size);
    let rate = |path| fields.number(path).map_or_else(|| "unlimited".to_owned(), |rate| format!("{}/s", size(rate)));
    let mut report = Report::new(format!("{shown} to {nodes} nodes at {} each", rate("/rate_bytes_per_second")));
    report.setting("nodes", Some(nodes));
    report.setting("size", Some(shown));
    report.setting("limit of a node", Some(rate("/rate_bytes_per_second")));
    report.setting("limit of the seeder", Some(rate("/seeder_rate_bytes_per_second")));
    report.setting("piece", fields.number("/piece_length").map(size));
    report.setting("encryption", fields.text("/encryption").map(str::to_owned));
    report.setting("starts spread over", fields.number("/stagger_seconds").map(|value| Unit::Seconds.show(value)));
    figures(&mut report, fields, bytes);
    nodes_table(&mut report, fields);
    let times = |name: &str, path| Series {
        name: name.to_owned(),
        points: fields.list("/per_node").filter_map(|node| Some((node.number("/node")?, node.number(path)?))).collect(),
    };
    report.plots.push(Plot::Lines(Lines {
        title: "Time of each node".to_owned(),
        across: "node",
        across_unit: Unit::Count,
        unit: Unit::Seconds,
        dots: true,
        series: vec![times("last byte", "/complete_seconds"), times("first byte", "/first_byte_seconds")],
        level: fields.number("/ideal_seconds").map(|ideal| ("ideal".to_owned(), ideal)),
    }));
    let group = |name: &str, value| (name.to_owned(), vec![value]);
    let all = |path: &str| {
        let values: Vec<f64> = fields.list("/per_node").filter_map(|node| node.number(path)).collect();
        (!values.is_empty()).then(|| values.iter().sum())
    };
    report.plots.push(Plot::Bars(Bars {
        title: "Bytes by what sent them".to_owned(),
        unit: Unit::Bytes,
        series: vec!["bytes".to_owned()],
        groups: vec![
            group("origin, to the seeder", fields.number("/origin_bytes")),
            group("seeder, to nodes", all("/seeder_bytes")),
            group("nodes, to nodes", fields.number("/peer_bytes")),
        ],
    }));
    report.plots.push(Plot::Bars(Bars {
        title: "Processor's time".to_owned(),
        unit: Unit::Seconds,
        series: vec!["seconds".to_owned()],
        groups: ["proxy", "seeder", "tracker"]
            .map(|role| group(role, fields.number(&format!("/cpu_seconds_by_role/{role}"))))
            .to_vec(),
    }));
    report
}

fn figures(report: &mut Report, fields: Fields<'_>, size: Option<f64>) {
    let slowest = fields.number("/complete_seconds/max");
    for (name, path, unit, better) in [
        ("time, p50", "/complete_seconds/p50", Unit::Seconds, Better::Lower),
        ("time, slowest node", "/complete_seconds/max", Unit::Seconds, Better::Lower),
        ("ideal", "/ideal_seconds", Unit::Seconds, Better::Neither),
        ("efficiency, p50", "/efficiency/p50", Unit::Ratio, Better::Higher),
        ("efficiency, slowest node", "/efficiency/max", Unit::Ratio, Better::Higher),
        ("first byte, p50", "/first_byte_seconds/p50", Unit::Seconds, Better::Lower),
        ("first byte, slowest node", "/first_byte_seconds/max", Unit::Seconds, Better::Lower),
        ("first byte at least", "/first_byte_baseline_seconds/total", Unit::Seconds, Better::Neither),
    ] {
        report.figure(name, fields.number(path), unit, better);
    }
    let delivered = fields.number("/delivered_bytes").filter(|bytes| *bytes > 0.0);
    let throughput = delivered.zip(slowest).map(|(bytes, seconds)| bytes / seconds);
    report.figure("delivered, all nodes together", throughput, Unit::BytesPerSecond, Better::Higher);
    let times = |path| size.zip(fields.number(path)).map(|(size, bytes)| bytes / size);
    let share = |path| delivered.zip(fields.number(path)).map(|(delivered, bytes)| bytes / delivered);
    report.figure("origin sent, times the blob", times("/origin_bytes"), Unit::Ratio, Better::Lower);
    report.figure("requests to the origin", fields.number("/origin_requests"), Unit::Count, Better::Lower);
    report.figure("seeder sent, times the blob", times("/seeder_uploaded_bytes"), Unit::Ratio, Better::Lower);
    report.figure("from other nodes", share("/peer_bytes"), Unit::Share, Better::Higher);
    report.figure("control messages of what was delivered", share("/control_bytes"), Unit::Share, Better::Lower);
    let cpu = fields.number("/cpu_seconds_per_gb");
    report.figure("processor's time", cpu, Unit::SecondsPerGigabyte, Better::Lower);
    for role in ["proxy", "seeder", "tracker"] {
        let memory = |when: &str| fields.number(&format!("/{when}_rss_bytes/{role}"));
        report.figure(format!("memory of a {role}, idle"), memory("idle"), Unit::Bytes, Better::Lower);
        report.figure(format!("memory of a {role}, most"), memory("max"), Unit::Bytes, Better::Lower);
    }
}

fn nodes_table(report: &mut Report, fields: Fields<'_>) {
    let mut table = Table::new(
        "Nodes",
        &[
            "node",
            "first byte",
            "last byte",
            "efficiency",
            "from nodes",
            "from the seeder",
            "sent",
            "CPU",
            "most memory",
        ],
    );
    for node in fields.list("/per_node") {
        table.rows.push(vec![
            node.shown("/node", Unit::Count),
            node.shown("/first_byte_seconds", Unit::Seconds),
            node.shown("/complete_seconds", Unit::Seconds),
            node.shown("/efficiency", Unit::Ratio),
            node.shown("/peer_bytes", Unit::Bytes),
            node.shown("/seeder_bytes", Unit::Bytes),
            node.shown("/uploaded_bytes", Unit::Bytes),
            node.shown("/cpu_seconds", Unit::Seconds),
            node.shown("/max_rss_bytes", Unit::Bytes),
        ]);
        if let Some(error) = node.text("/error") {
            report.warnings.push(format!("Node {} did not get the blob: {error}", node.shown("/node", Unit::Count)));
        }
    }
    report.tables.push(table);
}
