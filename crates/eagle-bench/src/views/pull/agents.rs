//! Who pulled, where that were agents.

use std::collections::BTreeMap;

use crate::report::{
    model::{Report, Statistic, Table, Unit},
    read::Fields,
};

/// Tables of the agents and of what each of them did, and what is wrong with them.
pub(super) fn show(report: &mut Report, fields: Fields<'_>) {
    let mut agents = Table::new(
        "Agents",
        &[
            "agent",
            "machine",
            "processor",
            "cores",
            "memory",
            "system",
            "kernel",
            "version",
            "runtime",
            "load before",
            "round trip",
        ],
    );
    for agent in fields.list("/agents") {
        let text = |path: &str| agent.text(path).unwrap_or("-").to_owned();
        let name = text("/name");
        if agent.text("/build") == Some("debug") {
            report.warnings.push(format!("Agent {name} is a debug build: its figures say nothing about a release."));
        }
        agents.rows.push(vec![
            name,
            text("/hostname"),
            text("/host/cpu"),
            agent.shown("/host/cores", Unit::Count),
            agent.shown("/host/memory_bytes", Unit::Bytes),
            text("/host/system"),
            text("/host/kernel"),
            text("/version"),
            text("/runtime_version"),
            agent.shown("/host/load_before", Unit::Count),
            agent.shown("/round_trip_seconds", Unit::Seconds),
        ]);
    }
    if agents.rows.is_empty() {
        return;
    }
    report.setting("agents", Some(agents.rows.len().to_string()));
    report.tables.extend([agents, pulls(fields)]);
}

/// The pulls of each agent in each step.
fn pulls(fields: Fields<'_>) -> Table {
    let mut table = Table::new(
        "Pulls of each agent",
        &["at a time", "series", "agent", "pulls", "good", "p50", "p90", "max", "bytes"],
    );
    let mut steps: Vec<(String, String, BTreeMap<String, Share>)> = Vec::new();
    for pull in fields.list("/pulls") {
        let Some(agent) = pull.text("/agent") else { continue };
        let step = (pull.shown("/concurrency", Unit::Count), pull.text("/series").unwrap_or("-").to_owned());
        // Pulls of a step are beside each other.
        if steps.last().is_none_or(|last| (&last.0, &last.1) != (&step.0, &step.1)) {
            steps.push((step.0, step.1, BTreeMap::new()));
        }
        if let Some((.., shares)) = steps.last_mut() {
            shares.entry(agent.to_owned()).or_default().add(pull);
        }
    }
    for (at_a_time, series, shares) in steps {
        for (agent, mut share) in shares {
            let good = share.seconds.len();
            let mut row = vec![at_a_time.clone(), series.clone(), agent, share.pulls.to_string(), good.to_string()];
            for percent in [50, 90, 100] {
                let time = Statistic::Percentile(percent).of(&mut share.seconds);
                row.push(time.map_or_else(|| "-".to_owned(), |time| Unit::Seconds.show(time)));
            }
            row.push(Unit::Bytes.show(share.bytes));
            table.rows.push(row);
        }
    }
    table
}

/// What one agent did in one step.
#[derive(Debug, Default)]
struct Share {
    pulls: usize,
    /// Of those that succeeded.
    seconds: Vec<f64>,
    bytes: f64,
}

impl Share {
    fn add(&mut self, pull: Fields<'_>) {
        self.pulls += 1;
        self.bytes += pull.number("/bytes").unwrap_or_default();
        if pull.at("/success").0 == true {
            self.seconds.extend(pull.number("/seconds"));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_agent_has_its_rows() {
        let pull = |agent: &str, seconds: f64, success: bool| json!({"series": "eagle", "concurrency": 3, "agent": agent, "seconds": seconds, "success": success, "bytes": 10});
        let result = json!({
            "agents": [
                {"name": "a:1", "hostname": "one", "build": "release", "host": {"cores": 2}, "round_trip_seconds": 0.002},
                {"name": "b:1", "hostname": "two", "build": "debug"},
            ],
            "pulls": [pull("a:1", 1.0, true), pull("b:1", 9.0, true), pull("a:1", 3.0, true), pull("b:1", 1.0, false)],
        });
        let mut report = Report::default();
        show(&mut report, Fields(&result));
        let [agents, pulls] = &report.tables[..] else { panic!("{report:?}") };
        assert_eq!((&*agents.rows[0][0], &*agents.rows[0][1], &*agents.rows[0][10]), ("a:1", "one", "2.00 ms"));
        assert_eq!(pulls.rows[0], ["3", "eagle", "a:1", "2", "2", "1.00 s", "3.00 s", "3.00 s", "20 B"]);
        assert_eq!(pulls.rows[1][..6], ["3", "eagle", "b:1", "2", "1", "9.00 s"]);
        assert!(report.warnings.len() == 1 && report.warnings[0].contains("b:1"), "{report:?}");

        let mut report = Report::default();
        show(&mut report, Fields(&json!({"pulls": [{"series": "eagle", "seconds": 1.0}]})));
        assert!(report.tables.is_empty() && report.settings.is_empty());
    }
}
