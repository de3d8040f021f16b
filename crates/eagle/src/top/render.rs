//! Draws the screen. The same screen in the same space is always the same picture.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Modifier, Style},
    text::{Line, Span},
    widgets::Paragraph,
};

use super::{
    list::List,
    screen::{Screen, Tab},
    source::Cluster,
};
use crate::{
    text::{clean, time},
    trackers::{Asked, at_a_glance, silent},
};

/// Width of plain output for each list: enough for all columns, and for whoever reads it with a tool.
const PLAIN: usize = 110;
/// Rows of each list in plain output; JSON has all.
const PLAIN_ROWS: usize = 50;

/// Draws into the whole of a frame. What does not fit is left out, down to nothing.
pub(super) fn draw(frame: &mut Frame<'_>, screen: &mut Screen) {
    let [head, tabs, titles, body, foot] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(2),
        Constraint::Length(1),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let list = screen.list();
    frame.render_widget(Paragraph::new(vec![heading(screen), summary(&screen.cluster)]), head);
    frame.render_widget(Paragraph::new(vec![tab_line(screen), Line::raw(list.title.clone())]), tabs);
    screen.page = usize::from(body.height).max(1);
    rows(frame, titles, body, &list, screen.chosen());
    frame.render_widget(Paragraph::new(keys(screen)), foot);
}

/// Who is asked; of several that do not all answer, who does not.
fn heading(screen: &Screen) -> Line<'_> {
    let up = time(screen.cluster.overview.uptime_seconds);
    let name = Span::styled("eagle top", Style::new().add_modifier(Modifier::BOLD));
    let all = &screen.cluster.trackers;
    let away: Vec<&Asked> = all.iter().filter(|tracker| tracker.problem.is_some()).collect();
    Line::from(match (all.len(), away.len()) {
        (1, _) => vec![name, Span::raw(format!("  {}  up {up}", addresses(all)))],
        (count, 0) => vec![name, Span::raw(format!("  {count} trackers  up {up}  {}", addresses(all)))],
        (count, silent) => vec![
            name,
            Span::raw(format!("  {} of {count} trackers  up {up}", count - silent)),
            Span::styled(format!("  no answer from {}", addresses(away)), Style::new().add_modifier(Modifier::BOLD)),
        ],
    })
}

fn addresses<'a>(trackers: impl IntoIterator<Item = &'a Asked>) -> String {
    trackers.into_iter().map(|tracker| clean(&tracker.address)).collect::<Vec<_>>().join(" ")
}

fn summary(cluster: &Cluster) -> Line<'static> {
    Line::raw(at_a_glance(&cluster.overview))
}

fn tab_line(screen: &Screen) -> Line<'_> {
    let mut spans = Vec::new();
    for (number, tab) in Tab::ALL.into_iter().enumerate() {
        let style = match tab == screen.tab {
            true => Style::new().add_modifier(Modifier::REVERSED),
            false => Style::new(),
        };
        spans.push(Span::styled(format!(" {} {} ", number + 1, tab.name()), style));
    }
    if let Some(problem) = &screen.problem {
        let style = Style::new().add_modifier(Modifier::BOLD);
        spans.push(Span::styled(format!("  not up to date: {problem}"), style));
    } else if screen.open.is_none() {
        spans.push(Span::raw(format!("  by {}", screen.order())));
    }
    Line::from(spans)
}

fn rows(frame: &mut Frame<'_>, titles: Rect, body: Rect, list: &List, chosen: usize) {
    let (head, lines) = list.lines(usize::from(body.width));
    frame.render_widget(Paragraph::new(Span::styled(head, Style::new().add_modifier(Modifier::BOLD))), titles);
    if list.rows.is_empty() {
        return frame.render_widget(Paragraph::new(list.empty), body);
    }
    let height = usize::from(body.height);
    // The page that the chosen row is on.
    let first = chosen.checked_div(height).map_or(0, |page| page * height);
    let lines = lines.enumerate().skip(first).take(height).map(|(number, line)| {
        let style = if number == chosen { Style::new().add_modifier(Modifier::REVERSED) } else { Style::new() };
        Line::styled(line, style)
    });
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()), body);
}

fn keys(screen: &Screen) -> Line<'static> {
    Line::raw(match (screen.open.is_some(), screen.tab) {
        (true, _) => "q quit  esc back  ↑↓ rows  tab view  r now",
        (false, Tab::Swarms) => "q quit  tab view  ↑↓ rows  s sort  enter who serves whom  r now",
        (false, _) => "q quit  tab view  ↑↓ rows  s sort  r now",
    })
}

/// All of it as text without a terminal's commands.
pub(super) fn plain(cluster: &Cluster) -> String {
    let mut text = format!("{}\n{}", at_a_glance(&cluster.overview), silent(&cluster.trackers));
    let mut screen = Screen::new(cluster.clone());
    for tab in Tab::ALL {
        screen.tab = tab;
        let list = screen.list();
        text.push_str(&format!("\n{}\n", list.title));
        let (head, lines) = list.lines(PLAIN);
        if list.rows.is_empty() {
            text.push_str(&format!("{}\n", list.empty));
            continue;
        }
        for line in std::iter::once(head).chain(lines.take(PLAIN_ROWS)) {
            text.push_str(&format!("{}\n", line.trim_end()));
        }
        if list.rows.len() > PLAIN_ROWS {
            text.push_str(&format!("and {} more\n", list.rows.len() - PLAIN_ROWS));
        }
    }
    text
}

#[cfg(test)]
mod tests;
