//! `eagle-bench cache`.

use crate::report::{
    model::{Bars, Better, Plot, Report, Table, Unit},
    read::Fields,
};

pub(crate) fn view(fields: Fields<'_>) -> Report {
    let mut report = Report::new("What the cache itself costs".to_owned());
    let count = |path| fields.number(path).map(|value| Unit::Count.show(value));
    report.setting("entries", count("/bookkeeping/entries"));
    report.setting("blobs at the start", count("/start/blobs"));
    report.setting("blobs evicted at once", count("/eviction/victims"));
    report.setting("rounds of evictions", count("/eviction/rounds"));
    let once = [
        ("uses", "/bookkeeping/uses_per_second", Unit::PerSecond, Better::Higher),
        ("admissions that evict one", "/bookkeeping/admissions_per_second", Unit::PerSecond, Better::Higher),
        ("start", "/start/seconds", Unit::Seconds, Better::Lower),
        ("start of a whole proxy", "/start/proxy_seconds", Unit::Seconds, Better::Lower),
        ("time to evict", "/eviction/seconds", Unit::Seconds, Better::Lower),
        ("warm hits, p99, calm", "/eviction/calm_p99_seconds", Unit::Seconds, Better::Lower),
        ("warm hits, p99, while evicting", "/eviction/evicting_p99_seconds", Unit::Seconds, Better::Lower),
        ("warm hits, p99, evicting over calm", "/eviction/ratio", Unit::Ratio, Better::Lower),
    ];
    for (name, path, unit, better) in once {
        report.figure(name, fields.number(path), unit, better);
    }
    let mut table = Table::new("A blob read in order from the page cache", &["", "throughput", "processor's time"]);
    let mut groups = Vec::new();
    for read in fields.list("/reads") {
        let how = read.text("/how").unwrap_or("read");
        let rate = read.number("/bytes_per_second");
        let cpu = read.number("/cpu_seconds_per_gb");
        report.figure(format!("read {how}: throughput"), rate, Unit::BytesPerSecond, Better::Higher);
        report.figure(format!("read {how}: processor's time"), cpu, Unit::SecondsPerGigabyte, Better::Lower);
        table.rows.push(vec![
            how.to_owned(),
            read.shown("/bytes_per_second", Unit::BytesPerSecond),
            read.shown("/cpu_seconds_per_gb", Unit::SecondsPerGigabyte),
        ]);
        groups.push((how.to_owned(), vec![rate]));
    }
    report.tables.push(table);
    report.plots.push(Plot::Bars(Bars {
        title: "Reading a blob from the page cache".to_owned(),
        unit: Unit::BytesPerSecond,
        series: vec!["throughput".to_owned()],
        groups,
    }));
    let hits = |path| fields.number(path);
    report.plots.push(Plot::Bars(Bars {
        title: "99th percentile of warm hits".to_owned(),
        unit: Unit::Seconds,
        series: vec!["p99".to_owned()],
        groups: vec![
            ("calm".to_owned(), vec![hits("/eviction/calm_p99_seconds")]),
            ("while blobs are evicted".to_owned(), vec![hits("/eviction/evicting_p99_seconds")]),
        ],
    }));
    report
}
