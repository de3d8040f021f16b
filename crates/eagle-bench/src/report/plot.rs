//! Plots as SVG inside a page: colours come from the page's style, so that they suit a light and a dark one; series also
//! differ in dashes and shapes.

use maud::{Markup, html};

use super::model::{Bars, Lines, Plot, Series, Unit};

/// Size of a plot of lines and the room around its area, in SVG's units.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 74.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 46.0;
/// About as many labels as each axis has room for.
const TICKS_ACROSS: f64 = 8.0;
const TICKS_UP: f64 = 5.0;
/// Points of a series that are drawn; of more, the least and the greatest of each of half as many stretches are.
const MAX_POINTS: usize = 400;
/// Series and groups that are drawn: more cannot be told apart, and a page should stay small.
const MAX_SERIES: usize = 12;
const MAX_GROUPS: usize = 40;
/// Colours, dashes and shapes that the style has.
const STYLES: usize = 6;
/// Heights in a plot of bars: a bar, the name of its group, and what is between groups.
const BAR: f64 = 15.0;
const NAME: f64 = 18.0;
const GAP: f64 = 10.0;
/// Room for the value behind the longest bar.
const VALUE: f64 = 90.0;
/// Letters of a name that a plot has room for.
const MAX_NAME: usize = 110;

/// A plot with its title and key; nothing if there is nothing to draw.
pub(super) fn figure(plot: &Plot) -> Option<Markup> {
    let (title, names, dots, drawing) = match plot {
        Plot::Lines(plot) => {
            let series: Vec<&Series> = plot.series.iter().filter(|series| !series.points.is_empty()).collect();
            if series.is_empty() {
                return None;
            }
            let shown = &series[..series.len().min(MAX_SERIES)];
            let names = shown.iter().map(|series| series.name.clone()).collect::<Vec<_>>();
            (&plot.title, names, plot.dots, lines(plot, shown))
        }
        Plot::Bars(plot) => {
            if !plot.groups.iter().any(|(_, values)| values.iter().any(Option::is_some)) {
                return None;
            }
            (&plot.title, plot.series.clone(), true, bars(plot))
        }
    };
    Some(html! {
        figure {
            figcaption { (title) }
            (drawing)
            @if names.len() > 1 {
                ul.key {
                    @for (index, name) in names.iter().enumerate() { li { (swatch(index, dots)) (name) } }
                }
            }
        }
    })
}

/// What a series looks like.
fn swatch(index: usize, dots: bool) -> Markup {
    html! {
        svg viewBox="0 0 24 12" width="24" height="12" aria-hidden="true" {
            @if dots { (shape(index, 12.0, 6.0, 4.0)) }
            @else { line x1="1" y1="6" x2="23" y2="6" class=(format!("line s{}", index % STYLES)) {} }
        }
    }
}

/// A mark of a series: circle, square, triangle, diamond, cross, bar.
fn shape(index: usize, x: f64, y: f64, r: f64) -> Markup {
    let path = match index % STYLES {
        0 => format!("M{:.1} {y:.1}a{r:.1} {r:.1} 0 1 0 {d:.1} 0a{r:.1} {r:.1} 0 1 0 -{d:.1} 0z", x - r, d = 2.0 * r),
        1 => format!("M{:.1} {:.1}h{d:.1}v{d:.1}h-{d:.1}z", x - r, y - r, d = 2.0 * r),
        2 => format!("M{x:.1} {:.1}l{r:.1} {d:.1}h-{d:.1}z", y - r, d = 2.0 * r),
        3 => format!("M{x:.1} {:.1}l{r:.1} {r:.1}l-{r:.1} {r:.1}l-{r:.1} -{r:.1}z", y - r),
        4 => format!("M{:.1} {:.1}l{d:.1} {d:.1}m0 -{d:.1}l-{d:.1} {d:.1}", x - r, y - r, d = 2.0 * r),
        _ => format!("M{x:.1} {:.1}v{:.1}", y - r, 2.0 * r),
    };
    html! { path d=(path) class=(format!("mark s{}", index % STYLES)) {} }
}

fn lines(plot: &Lines, series: &[&Series]) -> Markup {
    let points = || series.iter().flat_map(|series| &series.points);
    let level = plot.level.as_ref().map_or(0.0, |(_, level)| *level);
    let most = |value: fn(&(f64, f64)) -> f64, least: f64| points().map(value).fold(least, f64::max);
    let (end, top) = (most(|point| point.0, 0.0), most(|point| point.1, level));
    let (end, top) = (end.max(f64::MIN_POSITIVE), top.max(f64::MIN_POSITIVE));
    let (up, across) = (step(top, TICKS_UP), step(end, TICKS_ACROSS));
    // There is no half an iteration.
    let across = if plot.across_unit == Unit::Count { across.max(1.0) } else { across };
    // The highest value stands below a line of the grid.
    let top = (top / up).ceil() * up;
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    let x = |value: f64| LEFT + (value / end).clamp(0.0, 1.0) * (right - LEFT);
    let y = |value: f64| bottom - (value / top).clamp(0.0, 1.0) * (bottom - TOP);
    let names: Vec<&str> = series.iter().map(|series| series.name.as_str()).collect();
    let label = format!(
        "{}: {} over {}, from 0 to {}; highest {}",
        plot.title,
        names.join(", "),
        plot.across,
        plot.across_unit.show(end),
        plot.unit.show(most(|point| point.1, 0.0))
    );
    html! {
        svg role="img" aria-label=(label) viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) {
            @for value in ticks(top, up) {
                line.grid x1=(fixed(LEFT)) y1=(fixed(y(value))) x2=(fixed(right)) y2=(fixed(y(value))) {}
                text.end x=(fixed(LEFT - 8.0)) y=(fixed(y(value) + 4.0)) { (plot.unit.show(value)) }
            }
            @for value in ticks(end, across) {
                line.grid x1=(fixed(x(value))) y1=(fixed(bottom)) x2=(fixed(x(value))) y2=(fixed(bottom + 4.0)) {}
                text.middle x=(fixed(x(value))) y=(fixed(bottom + 18.0)) { (plot.across_unit.show(value)) }
            }
            text.middle x=(fixed((LEFT + right) / 2.0)) y=(fixed(HEIGHT - 8.0)) { (plot.across) }
            @if let Some((name, level)) = &plot.level {
                line.level x1=(fixed(LEFT)) y1=(fixed(y(*level))) x2=(fixed(right)) y2=(fixed(y(*level))) {}
                text.end x=(fixed(right)) y=(fixed(y(*level) - 5.0)) { (name) " " (plot.unit.show(*level)) }
            }
            @for (index, series) in series.iter().enumerate() {
                @let points = thinned(&series.points);
                @if plot.dots {
                    @for (across, value) in points { (shape(index, x(across), y(value), 2.8)) }
                } @else {
                    @let path: Vec<String> = points.iter().map(|(across, value)| format!("{:.1},{:.1}", x(*across), y(*value))).collect();
                    polyline points=(path.join(" ")) class=(format!("line s{}", index % STYLES)) {}
                    @if points.len() <= 12 {
                        @for (across, value) in points { (shape(index, x(across), y(value), 3.0)) }
                    }
                }
            }
        }
    }
}

fn bars(plot: &Bars) -> Markup {
    let groups = &plot.groups[..plot.groups.len().min(MAX_GROUPS)];
    let series = plot.series.len().min(MAX_SERIES);
    let values = || groups.iter().flat_map(|(_, values)| values.iter().take(series).flatten().copied());
    let top = values().fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let group_height = NAME + BAR * series as f64 + GAP;
    let height = group_height * groups.len() as f64;
    let width = |value: f64| ((value / top).clamp(0.0, 1.0) * (WIDTH - VALUE)).max(1.0);
    let all: Vec<String> = groups
        .iter()
        .map(|(name, values)| {
            let values: Vec<String> = values.iter().flatten().map(|value| plot.unit.show(*value)).collect();
            format!("{name} {}", values.join(" and "))
        })
        .collect();
    html! {
        svg role="img" aria-label=(format!("{}: {}", plot.title, all.join("; "))) viewBox=(format!("0 0 {WIDTH} {height:.0}")) {
            @for (group, (name, values)) in groups.iter().enumerate() {
                @let top = group_height * group as f64;
                text x="0" y=(fixed(top + NAME - 5.0)) { (shortened(name)) }
                @for (index, value) in values.iter().take(series).enumerate() {
                    @let y = top + NAME + BAR * index as f64;
                    @if let Some(value) = value {
                        rect x="0" y=(fixed(y)) width=(fixed(width(*value))) height=(fixed(BAR - 3.0)) class=(format!("bar s{}", index % STYLES)) {}
                        text.value x=(fixed(width(*value) + 6.0)) y=(fixed(y + BAR - 5.0)) { (plot.unit.show(*value)) }
                    }
                }
            }
        }
    }
}

fn fixed(value: f64) -> String {
    format!("{value:.1}")
}

fn shortened(name: &str) -> String {
    if name.chars().count() <= MAX_NAME {
        return name.to_owned();
    }
    name.chars().take(MAX_NAME).chain(['…']).collect()
}

/// Few enough points to draw, without losing those that stick out.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= MAX_POINTS {
        return points.to_vec();
    }
    let length = points.len().div_ceil(MAX_POINTS / 2);
    let extremes = points.chunks(length).flat_map(|stretch| {
        let by_value = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let (least, most) = (stretch.iter().min_by(by_value), stretch.iter().max_by(by_value));
        [least, most].into_iter().flatten().copied()
    });
    extremes.collect()
}

/// What is between two labels of an axis that ends there: 1, 2 or 5 times a power of ten.
pub(crate) fn step(end: f64, ticks: f64) -> f64 {
    let least = end / ticks;
    let power = 10f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|step| *step >= least).unwrap_or(end)
}

/// The labels from 0 to the end.
fn ticks(end: f64, step: f64) -> impl Iterator<Item = f64> {
    // Numbers that are beyond counting get no more labels than others.
    (0..=20u32).map(move |count| f64::from(count) * step).take_while(move |value| *value <= end * 1.001)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_round_and_few() {
        for end in [0.013, 0.9, 8.74, 61.0, 900.0, 1e300, 1e-300] {
            let step = step(end, TICKS_ACROSS);
            assert!((2.0..=8.5).contains(&(end / step)), "{end}: {step}");
            assert!((2..=9).contains(&ticks(end, step).count()), "{end}: {step}");
        }
        assert_eq!(ticks(0.0, 0.0).count(), 21);
        assert_eq!(ticks(f64::NAN, f64::NAN).count(), 0);
    }

    #[test]
    fn of_many_points_those_that_stick_out_are_drawn() {
        let mut points: Vec<(f64, f64)> = (0..10_000u32).map(|at| (f64::from(at), 1.0)).collect();
        points[5_123].1 = 9.0;
        points[77].1 = 0.1;
        let drawn = thinned(&points);
        assert!(drawn.len() <= MAX_POINTS, "{}", drawn.len());
        assert!(drawn.contains(&(5_123.0, 9.0)) && drawn.contains(&(77.0, 0.1)));
        assert_eq!(thinned(&points[..5]), points[..5]);
    }

    #[test]
    fn names_are_escaped_and_nothing_is_drawn_of_nothing() {
        let plot = |points| {
            Plot::Lines(Lines {
                title: "<b>".to_owned(),
                across: "iteration",
                across_unit: Unit::Count,
                unit: Unit::Seconds,
                dots: true,
                series: vec![Series { name: "\"><script>".to_owned(), points }],
                level: None,
            })
        };
        assert!(figure(&plot(Vec::new())).is_none());
        let drawn = figure(&plot(vec![(1.0, 2.0)])).unwrap().into_string();
        assert!(!drawn.contains("<b>") && !drawn.contains("<script"), "{drawn}");
        assert!(drawn.contains("&lt;b&gt;"), "{drawn}");
    }
}
