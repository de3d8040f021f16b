//! The plot of a soak: memory, descriptors and tasks over time, one below the other.

use std::fmt::Write as _;

use super::trend::{Series, descriptors, memory};

/// Of one of the three, pixels.
const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 220.0;
/// Around each, for the labels.
const MARGIN: f64 = 60.0;
/// Distinct also for those who do not see red and green apart.
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#000000"];

/// Seconds and values.
type Points = Vec<(f64, f64)>;

/// A picture that any browser shows.
pub(crate) fn svg(series: &[Series]) -> String {
    let mib = |series: &Series| series.points(|sample| memory(sample) / 1_048_576.0);
    let panels: [(&str, Vec<Points>); 3] = [
        ("resident memory, MiB", series.iter().map(mib).collect()),
        ("descriptors", series.iter().map(|series| series.points(descriptors)).collect()),
        ("tasks", series.iter().map(|series| series.points(|sample| sample.tasks)).collect()),
    ];
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        WIDTH + 3.0 * MARGIN,
        3.0 * (HEIGHT + MARGIN)
    );
    for (row, (title, lines)) in (0_u8..).zip(&panels) {
        panel(&mut text, f64::from(row) * (HEIGHT + MARGIN) + MARGIN / 2.0, title, lines);
    }
    for (row, (series, colour)) in (0_u8..).zip(series.iter().zip(COLOURS.iter().cycle())) {
        let (x, y) = (WIDTH + MARGIN + 10.0, 40.0 + 18.0 * f64::from(row));
        // Writing to a string cannot fail, here and below.
        let _ = writeln!(text, "<text x=\"{x}\" y=\"{y}\" fill=\"{colour}\">{}</text>", series.name);
    }
    text.push_str("</svg>\n");
    text
}

fn panel(text: &mut String, top: f64, title: &str, lines: &[Points]) {
    let most = |pick: fn(&(f64, f64)) -> f64| lines.iter().flatten().map(pick).fold(1.0, f64::max);
    let (end, highest) = (most(|point| point.0), most(|point| point.1) * 1.1);
    let bottom = top + HEIGHT;
    let _ = writeln!(
        text,
        "<text x=\"{MARGIN}\" y=\"{:.0}\">{title}</text>\n\
         <path d=\"M{MARGIN} {top:.0}V{bottom:.0}H{:.0}\" fill=\"none\" stroke=\"#888\"/>\n\
         <text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{:.1} min</text>",
        top - 6.0,
        WIDTH + MARGIN,
        WIDTH + MARGIN,
        bottom + 16.0,
        end / 60.0
    );
    for part in [0.0, 0.5, 1.0] {
        let y = bottom - part * HEIGHT;
        let _ = writeln!(
            text,
            "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{:.0}</text>",
            MARGIN - 6.0,
            y + 4.0,
            part * highest
        );
    }
    for (points, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
        let places: Vec<_> = points
            .iter()
            .map(|(at, value)| format!("{:.1},{:.1}", MARGIN + at / end * WIDTH, bottom - value / highest * HEIGHT))
            .collect();
        let _ = writeln!(text, "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\"/>", places.join(" "));
    }
}
