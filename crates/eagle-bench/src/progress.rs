//! What is seen while a benchmark runs: one line that changes on a terminal, a line now and then otherwise.

use std::{
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

/// Ten redraws a second look smooth and cost nothing.
const REDRAW: Duration = Duration::from_millis(100);
/// Lines of a log, so not many.
const LINE: Duration = Duration::from_secs(2);

/// Shows `bytes` against `total`, with a note, for as long as it is polled; to be raced with the work.
pub(crate) async fn show(total: u64, bytes: impl Fn() -> u64, note: impl Fn() -> String) {
    let bar = std::io::stderr().is_terminal().then(|| {
        let style = ProgressStyle::with_template(
            "  {bar:32.cyan/blue} {percent:>3} %  {decimal_bytes_per_sec:>12}  {elapsed:>4}  {msg}",
        );
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━╸ ");
        Clear(ProgressBar::new(total).with_style(style))
    });
    let start = Instant::now();
    let mut tick = tokio::time::interval(REDRAW);
    let mut next = start;
    loop {
        tick.tick().await;
        if let Some(Clear(bar)) = &bar {
            bar.set_position(bytes());
            bar.set_message(note());
        } else if Instant::now() >= next {
            next += LINE;
            let percent = bytes().saturating_mul(100) / total.max(1);
            eprintln!("{:>6.1} s  {percent:>3} %  {}", start.elapsed().as_secs_f64(), note());
        }
    }
}

/// Takes the line away when the work is done.
struct Clear(ProgressBar);

impl Drop for Clear {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
