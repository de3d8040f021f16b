//! Lists: rows under titles, of which as many columns are shown as fit.

/// Space between columns.
const GAP: usize = 2;

/// A column.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column {
    pub(super) title: &'static str,
    /// Characters that it needs.
    pub(super) width: usize,
    /// Numbers stand on the right.
    pub(super) right: bool,
    /// The higher, the sooner it goes where there is no room. Those of 0 stay.
    pub(super) rank: u8,
    /// Whether it takes what is left of the width.
    pub(super) grows: bool,
}

impl Column {
    pub(super) const fn text(title: &'static str, width: usize, rank: u8) -> Self {
        Self { title, width, right: false, rank, grows: false }
    }

    pub(super) const fn number(title: &'static str, width: usize, rank: u8) -> Self {
        Self { title, width, right: true, rank, grows: false }
    }

    pub(super) const fn growing(self) -> Self {
        Self { grows: true, ..self }
    }
}

/// What a view lists.
#[derive(Debug)]
pub(super) struct List {
    /// One line above it.
    pub(super) title: String,
    pub(super) columns: &'static [Column],
    pub(super) rows: Vec<Vec<String>>,
    /// What stands there when there are no rows.
    pub(super) empty: &'static str,
}

/// Which columns are shown in so many characters, in their order, each with its width.
pub(super) fn fit(columns: &[Column], width: usize) -> Vec<(usize, usize)> {
    let mut by_rank: Vec<usize> = (0..columns.len()).collect();
    by_rank.sort_by_key(|index| columns[*index].rank);
    let (mut shown, mut used) = (Vec::new(), 0);
    for index in by_rank {
        let Column { width: needed, rank, .. } = columns[index];
        let needed = needed + if shown.is_empty() { 0 } else { GAP };
        if rank > 0 && used + needed > width {
            // Nothing that matters less is shown in its place.
            break;
        }
        used += needed;
        shown.push(index);
    }
    shown.sort_unstable();
    let spare = width.saturating_sub(used);
    let growing = shown.iter().filter(|index| columns[**index].grows).count();
    let mut shown: Vec<(usize, usize)> = shown.into_iter().map(|index| (index, columns[index].width)).collect();
    let mut left = spare;
    for (position, (_, width)) in shown.iter_mut().filter(|(index, _)| columns[*index].grows).enumerate() {
        let more = left / (growing - position);
        *width += more;
        left -= more;
    }
    shown
}

/// A text in so many characters: cut, or filled with spaces.
pub(super) fn cell(text: &str, width: usize, right: bool) -> String {
    let count = unicode_width(text);
    if count > width {
        let mut cut = String::new();
        for c in text.chars() {
            if unicode_width(&cut) + unicode_width(c.encode_utf8(&mut [0; 4])) + 1 > width {
                break;
            }
            cut.push(c);
        }
        if width > 0 {
            cut.push('…');
        }
        return cell(&cut, width.max(unicode_width(&cut)), right);
    }
    let pad = " ".repeat(width - count);
    if right { format!("{pad}{text}") } else { format!("{text}{pad}") }
}

/// Cells of a terminal that a text takes.
fn unicode_width(text: &str) -> usize {
    ratatui::text::Span::raw(text).width()
}

/// One row as a line.
pub(super) fn line(columns: &[Column], shown: &[(usize, usize)], text: impl Fn(usize) -> String) -> String {
    let cells = shown.iter().map(|(index, width)| cell(&text(*index), *width, columns[*index].right));
    cells.collect::<Vec<_>>().join(&" ".repeat(GAP))
}

impl List {
    /// The line of titles and the rows, for a width.
    pub(super) fn lines(&self, width: usize) -> (String, impl Iterator<Item = String>) {
        let shown = fit(self.columns, width);
        let head = line(self.columns, &shown, |index| self.columns[index].title.to_owned());
        let rows = self
            .rows
            .iter()
            .map(move |row| line(self.columns, &shown, |index| row.get(index).cloned().unwrap_or_default()));
        (head, rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: &[Column] =
        &[Column::text("NAME", 4, 0).growing(), Column::number("SIZE", 6, 2), Column::number("RATE", 5, 1)];

    #[test]
    fn columns_go_by_rank_and_what_is_left_is_used() {
        assert_eq!(fit(COLUMNS, 30), [(0, 15), (1, 6), (2, 5)]);
        assert_eq!(fit(COLUMNS, 19), [(0, 4), (1, 6), (2, 5)]);
        assert_eq!(fit(COLUMNS, 18), [(0, 11), (2, 5)]);
        assert_eq!(fit(COLUMNS, 2), [(0, 4)]);
    }

    #[test]
    fn cells_have_their_width() {
        assert_eq!(cell("ab", 4, true), "  ab");
        assert_eq!(cell("abcdef", 4, false), "abc…");
        assert_eq!(cell("日本語", 4, false), "日… ");
        assert_eq!(cell("abc", 0, false), "");
        assert_eq!(cell("日", 1, false), "…");
    }
}
