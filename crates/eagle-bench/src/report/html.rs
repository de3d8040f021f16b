//! Reports as one HTML file that needs nothing else: no script, no other file, no network.

use std::path::Path;

use anyhow::{Context as _, Result};
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{
    model::{Report, Setting, Statistic, Table},
    plot,
};

/// How it looks, in light and dark.
const STYLE: &str = include_str!("style.css");
/// The page can load and run nothing, whatever a result has in it.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";
/// Rows of a table that are shown; a page should open quickly. The JSON has all.
const MAX_ROWS: usize = 500;

/// Writes reports as one page.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn write(path: &Path, title: &str, reports: &[Section<'_>]) -> Result<()> {
    let text = page(title, reports).into_string();
    std::fs::write(path, text).with_context(|| format!("{} cannot be written", path.display()))
}

/// A report, or why there is none, under a name of its own.
#[derive(Debug)]
pub(crate) struct Section<'a> {
    pub(crate) name: String,
    pub(crate) report: Result<&'a Report, String>,
}

fn page(title: &str, sections: &[Section<'_>]) -> Markup {
    document(
        title,
        &html! {
            @if sections.len() > 1 {
                nav aria-label="Contents" {
                    ol {
                        @for (index, section) in sections.iter().enumerate() {
                            li {
                                a href=(format!("#part-{index}")) { (section.name) }
                                @match &section.report {
                                    Ok(report) => { ": " (report.title) }
                                    Err(_) => { ": failed" }
                                }
                            }
                        }
                    }
                }
            }
            @for (index, section) in sections.iter().enumerate() {
                section id=(format!("part-{index}")) {
                    @match &section.report {
                        Ok(report) => {
                            @if sections.len() > 1 { h2 { (section.name) } }
                            (body(report))
                        }
                        Err(error) => {
                            h2 { (section.name) }
                            pre.warning { (error) }
                        }
                    }
                }
            }
        },
    )
}

/// A whole page with this content.
pub(crate) fn document(title: &str, content: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="color-scheme" content="light dark";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header { h1 { (title) } }
                main { (content) }
            }
        }
    }
}

fn body(report: &Report) -> Markup {
    html! {
        p.title { (report.title) }
        @for warning in &report.warnings { p.warning { (warning) } }
        (settings("What was asked for", &report.settings))
        div.plots { @for plot in &report.plots { @if let Some(figure) = plot::figure(plot) { (figure) } } }
        @for table in &report.tables { (rows(table)) }
        @if report.tables.is_empty() {
            (figures(report))
        } @else {
            details {
                summary { "All " (report.figures.len()) " figures" }
                (figures(report))
            }
        }
        details {
            summary { "Measured on" }
            (settings("Measured on", &report.environment))
        }
    }
}

/// Names and values.
fn settings(label: &str, settings: &[Setting]) -> Markup {
    html! {
        @if !settings.is_empty() {
            dl aria-label=(label) {
                @for setting in settings { div { dt { (setting.name) } dd { (setting.value) } } }
            }
        }
    }
}

fn figures(report: &Report) -> Markup {
    let mut table = Table::new("Figures", &["", "value", "of"]);
    for figure in &report.figures {
        let of = figure.sample.as_ref().map_or_else(
            || "one value".to_owned(),
            |sample| {
                let what = match sample.statistic {
                    Statistic::Mean => "mean".to_owned(),
                    Statistic::Percentile(50) => "median".to_owned(),
                    Statistic::Percentile(percent) => format!("p{percent}"),
                };
                format!("{what} of {}", sample.values.len())
            },
        );
        table.rows.push(vec![figure.name.clone(), figure.unit.show(figure.value), of]);
    }
    rows(&table)
}

/// A table, unless it has no rows.
fn rows(table: &Table) -> Markup {
    html! {
        @if !table.rows.is_empty() {
            div.table tabindex="0" role="region" aria-label=(table.title) {
                table {
                    caption { (table.title) }
                    thead { tr { @for column in &table.columns { th scope="col" { (column) } } } }
                    tbody {
                        @for row in table.rows.iter().take(MAX_ROWS) {
                            tr {
                                @for (index, cell) in row.iter().enumerate() {
                                    @if index == 0 { th scope="row" { (cell) } } @else { td { (cell) } }
                                }
                            }
                        }
                    }
                }
                @if table.rows.len() > MAX_ROWS { p { (table.rows.len() - MAX_ROWS) " more rows are in the JSON." } }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::report::{markup::check, read};

    fn hostile() -> Report {
        let name = "</style></title><script>alert(1)</script><img src=x onerror=\"x\">' onload='x";
        let pull = |series: &str| {
            json!({"series": series, "concurrency": 1, "iteration": 1, "success": false, "seconds": 1.0,
                "error": name, "bytes": 1})
        };
        let step = json!({"series": name, "concurrency": 1, "pulls": 1, "seconds": {"p50": 1.0}, "bytes_per_second": 1.0, "origin_bytes": 5});
        let result = json!({"command": "pull", "host": {"cpu": name}, "command_line": name, "version": name,
            "image": name, "steps": [step], "pulls": [pull("direct"), pull(name)]});
        read::report(&result).unwrap()
    }

    #[test]
    fn hostile_names_are_text() {
        let report = hostile();
        let name = report.settings[0].value.clone();
        let sections = [
            Section { name: name.clone(), report: Ok(&report) },
            Section { name: name.clone(), report: Err(name.clone()) },
        ];
        let text = page(&name, &sections).into_string();
        check(&text).unwrap();
        assert!(text.contains("&lt;script&gt;alert(1)"), "{text}");
    }

    #[test]
    fn a_page_is_small_and_whole() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../benches/results/2026-11-21/pull-local.json");
        let report = read::load(&path).unwrap();
        let text = page("Pulls", &[Section { name: "pull".to_owned(), report: Ok(&report) }]).into_string();
        check(&text).unwrap();
        assert!(text.len() < 100_000, "{} bytes", text.len());
        assert!(text.matches("<svg role=\"img\"").count() >= 5);
    }
}
