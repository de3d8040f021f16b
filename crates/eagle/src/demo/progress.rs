//! What is seen while the pulls run: a bar per node on a terminal, a line now and then otherwise.

use std::{
    io::IsTerminal,
    sync::Arc,
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::pull::Progress;

/// Ten redraws a second look smooth and cost nothing.
const REDRAW: Duration = Duration::from_millis(100);
/// Lines of a log, so not many.
const LINE: Duration = Duration::from_secs(2);

/// Shows the pulls until every one has ended. Quiet shows nothing.
pub(super) async fn show(nodes: Vec<Arc<Progress>>, quiet: bool) {
    if quiet {
        return;
    }
    if std::io::stderr().is_terminal() { bars(&nodes).await } else { lines(&nodes).await }
}

async fn bars(nodes: &[Arc<Progress>]) {
    let style = ProgressStyle::with_template(
        "  {prefix:>8} {bar:32.cyan/blue} {percent:>3} %  {bytes:>10}  {decimal_bytes_per_sec:>12}  {msg}",
    )
    .unwrap_or_else(|_| ProgressStyle::default_bar())
    .progress_chars("━╸ ");
    let multi = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
    let bars: Vec<ProgressBar> = (1..=nodes.len())
        .map(|number| {
            let bar = multi.add(ProgressBar::new(1).with_style(style.clone()));
            bar.set_prefix(format!("node {number}"));
            bar
        })
        .collect();
    let mut tick = tokio::time::interval(REDRAW);
    loop {
        tick.tick().await;
        for (bar, node) in bars.iter().zip(nodes) {
            bar.set_length(node.total());
            bar.set_position(node.delivered());
            if let Some(elapsed) = node.elapsed()
                && !bar.is_finished()
            {
                bar.finish_with_message(format!("done in {:.2} s", elapsed.as_secs_f64()));
            }
        }
        if bars.iter().all(ProgressBar::is_finished) {
            break;
        }
    }
}

async fn lines(nodes: &[Arc<Progress>]) {
    let start = Instant::now();
    let mut tick = tokio::time::interval(REDRAW);
    let mut next = start + LINE;
    loop {
        tick.tick().await;
        let ended = nodes.iter().all(|node| node.elapsed().is_some());
        if !ended && Instant::now() < next {
            continue;
        }
        next += LINE;
        let percents: Vec<String> =
            nodes.iter().map(|node| format!("{:>3} %", node.delivered() * 100 / node.total())).collect();
        eprintln!("{:>6.1} s  {}", start.elapsed().as_secs_f64(), percents.join("  "));
        if ended {
            break;
        }
    }
}
