//! A picture of a simulation (SVG): completion over time, and the spread of pieces.

use std::fmt::Write as _;

use eagle_sim::{Report, Sample};

use crate::report::plot::step;

/// Size of the picture, and of its two diagrams with the room around them, in SVG's units.
const WIDTH: f64 = 880.0;
const HEIGHT: f64 = 400.0;
const PLOT: (f64, f64) = (350.0, 250.0);
const LEFT: [f64; 2] = [60.0, 490.0];
const TOP: f64 = 80.0;
/// About as many labels as a time axis has room for.
const TICKS: f64 = 6.0;

/// A line of a diagram: what it shows, its colour, and its value in a sample.
type Line = (&'static str, &'static str, fn(&Sample) -> f64);

/// Colours that are told apart without seeing red and green, too (Okabe and Ito).
const COMPLETION: [Line; 4] = [
    ("least of a node", "#d55e00", |sample| sample.owned[0]),
    ("middle", "#0072b2", |sample| sample.owned[1]),
    ("most", "#009e73", |sample| sample.owned[2]),
    ("nodes done", "#000000", |sample| sample.done),
];
const SPREAD: [Line; 3] = [
    ("rarest piece", "#d55e00", |sample| sample.spread[0]),
    ("middle", "#0072b2", |sample| sample.spread[1]),
    ("commonest", "#009e73", |sample| sample.spread[2]),
];

/// Draws a report.
pub(super) fn draw(name: &str, description: &str, report: &Report) -> String {
    let end = report.samples.last().map_or(0.0, |sample| sample.seconds).max(report.ideal_seconds);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    text(&mut svg, (20.0, 28.0), "font-size=\"16\" font-weight=\"bold\"", name);
    text(&mut svg, (20.0, 48.0), "", description);
    diagram(&mut svg, LEFT[0], "share of everything that a node owns", end, report, &COMPLETION);
    diagram(&mut svg, LEFT[1], "share of the nodes that own a piece", end, report, &SPREAD);
    svg.push_str("</svg>\n");
    svg
}

fn diagram(svg: &mut String, left: f64, title: &str, end: f64, report: &Report, lines: &[Line]) {
    let (width, height) = PLOT;
    let bottom = TOP + height;
    let x = |seconds: f64| left + seconds / end.max(f64::MIN_POSITIVE) * width;
    let y = |share: f64| bottom - share * height;
    text(svg, (left, TOP - 10.0), "", title);
    for quarter in 0..=4 {
        let share = f64::from(quarter) / 4.0;
        line(svg, (left, y(share)), (left + width, y(share)), "stroke=\"#ddd\"");
        text(svg, (left - 6.0, y(share) + 4.0), "text-anchor=\"end\"", &format!("{:.0} %", share * 100.0));
    }
    let step = step(end, TICKS);
    let mut at = 0.0;
    while at <= end * 1.001 {
        line(svg, (x(at), bottom), (x(at), bottom + 4.0), "stroke=\"#888\"");
        text(svg, (x(at), bottom + 18.0), "text-anchor=\"middle\"", &format!("{} s", short(at)));
        at += step;
    }
    let ideal = x(report.ideal_seconds);
    line(svg, (ideal, TOP), (ideal, bottom), "stroke=\"#888\" stroke-dasharray=\"4 3\"");
    text(svg, (ideal - 4.0, bottom - 6.0), "text-anchor=\"end\" fill=\"#666\"", "ideal");
    let mut key = left;
    for (what, colour, value) in lines {
        let points: Vec<String> =
            report.samples.iter().map(|sample| format!("{:.1},{:.1}", x(sample.seconds), y(value(sample)))).collect();
        // Writing to a string does not fail.
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            points.join(" ")
        );
        line(
            svg,
            (key, bottom + 40.0),
            (key + 16.0, bottom + 40.0),
            &format!("stroke=\"{colour}\" stroke-width=\"2\""),
        );
        text(svg, (key + 20.0, bottom + 44.0), "", what);
        // A letter of this size is about 6 wide.
        key += 34.0 + 6.0 * what.len() as f64;
    }
}

/// A number with no more digits than it takes.
fn short(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64), style: &str) {
    let _ = writeln!(
        svg,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" {style}/>",
        from.0, from.1, to.0, to.1
    );
}

fn text(svg: &mut String, at: (f64, f64), style: &str, content: &str) {
    let escaped = content.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"{:.1}\" {style}>{escaped}</text>", at.0, at.1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_short() {
        assert_eq!(short(2.0), "2");
        assert_eq!(short(0.25), "0.25");
    }

    #[test]
    fn titles_are_escaped() {
        let mut svg = String::new();
        text(&mut svg, (0.0, 0.0), "", "a < b & c");
        assert!(svg.contains("a &lt; b &amp; c"));
    }
}
