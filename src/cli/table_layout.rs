//! Tables, one row per record. In a pipe a table is as wide as its texts. On a terminal it is fitted to the width: reasons
//! move below their rows, texts are shortened, less important columns are omitted.

use std::io::IsTerminal;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Blanks between two columns.
const COLUMN_GAP: usize = 2;
/// Indentation of a text below its row.
const NOTE_INDENT: usize = 4;
/// A text below its row has at most this many lines.
const MAX_NOTE_LINES: usize = 3;

/// Shortens a text to a number of terminal columns.
pub(super) type ShortenFn = fn(&str, usize) -> String;

/// A column, and how it is fitted to a narrow terminal.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column {
    pub(super) header: &'static str,
    /// Columns are omitted in this order, lowest first; `None`: never.
    pub(super) omit_order: Option<u8>,
    /// Shortened to at least this width before a column is omitted; to less only if no column can be omitted any more.
    pub(super) shortening: Option<(usize, ShortenFn)>,
    /// Moved below the rows if the table is too wide.
    pub(super) is_below_row: bool,
}

impl Column {
    pub(super) const fn new(header: &'static str) -> Column {
        Column { header, omit_order: None, shortening: None, is_below_row: false }
    }
}

/// The width of standard output if it is a terminal: `COLUMNS`, or that of the terminal.
pub(super) fn terminal_width() -> Option<usize> {
    let stdout = std::io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    let configured = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok());
    let actual = || rustix::termios::tcgetwinsize(&stdout).ok().map(|size| size.ws_col.into());
    configured.or_else(actual).filter(|columns| *columns > 0)
}

/// Lays out `rows`: lines without trailing blanks, none wider than `width`.
pub(super) fn render_table(
    columns: &[Column],
    rows: Vec<Vec<String>>,
    width: Option<usize>,
) -> String {
    let mut layout = TableLayout { columns: columns.to_vec(), rows };
    let notes = match width {
        Some(width) if table_width(&layout.column_widths()) > width => layout.fit_to_width(width),
        _ => Vec::new(),
    };
    let mut lines = layout.render_lines().into_iter();
    let mut text = lines.next().unwrap_or_default();
    for (index, line) in lines.enumerate() {
        text.push_str(&line);
        let note = notes.get(index).filter(|note| !note.is_empty());
        let note_width = width.unwrap_or(usize::MAX).saturating_sub(NOTE_INDENT);
        for line in note.into_iter().flat_map(|note| wrap_text(note, note_width, MAX_NOTE_LINES)) {
            text.push_str(&format!("{:NOTE_INDENT$}{line}\n", ""));
        }
    }
    text
}

struct TableLayout {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

impl TableLayout {
    fn column_widths(&self) -> Vec<usize> {
        let width = |(index, column): (usize, &Column)| {
            let cells = self.rows.iter().map(|row| display_width(&row[index]));
            cells.fold(display_width(column.header), usize::max)
        };
        self.columns.iter().enumerate().map(width).collect()
    }

    /// The width after shortening.
    fn min_width(&self) -> usize {
        let mut widths = self.column_widths();
        for (width, column) in widths.iter_mut().zip(&self.columns) {
            if let Some((min, _)) = column.shortening {
                *width = min.min(*width);
            }
        }
        table_width(&widths)
    }

    /// Makes the table narrower and returns the text below each row.
    fn fit_to_width(&mut self, width: usize) -> Vec<String> {
        let below = self.columns.iter().position(|column| column.is_below_row);
        let notes = below.map(|index| self.remove_column(index)).unwrap_or_default();
        while self.min_width() > width {
            let omittable =
                (0..self.columns.len()).filter(|i| self.columns[*i].omit_order.is_some());
            // Empty columns first.
            let next = omittable.min_by_key(|i| {
                let is_empty = self.is_column_empty(*i);
                (!is_empty, self.columns[*i].omit_order.filter(|_| !is_empty), *i)
            });
            match next {
                Some(index) => drop(self.remove_column(index)),
                None => break,
            }
        }
        self.shorten_columns(width);
        notes
    }

    /// Shortens the widest column that can be shortened, until the table fits or nothing can be shortened.
    fn shorten_columns(&mut self, width: usize) {
        let mut widths = self.column_widths();
        while table_width(&widths) > width {
            let candidates = (0..widths.len()).filter(|i| self.columns[*i].shortening.is_some());
            match candidates.max_by_key(|i| widths[*i]).filter(|i| widths[*i] > 1) {
                Some(widest) => widths[widest] -= 1,
                None => break,
            }
        }
        for (index, max) in widths.into_iter().enumerate() {
            let Some((_, shorten)) = self.columns[index].shortening else { continue };
            self.columns[index].header = truncate_header(self.columns[index].header, max);
            for row in &mut self.rows {
                if display_width(&row[index]) > max {
                    row[index] = shorten(&row[index], max);
                }
            }
        }
    }

    fn is_column_empty(&self, index: usize) -> bool {
        self.rows.iter().all(|row| ["", "-", "0"].contains(&row[index].as_str()))
    }

    fn remove_column(&mut self, index: usize) -> Vec<String> {
        self.columns.remove(index);
        self.rows.iter_mut().map(|row| row.remove(index)).collect()
    }

    /// The header and one line per row.
    fn render_lines(self) -> Vec<String> {
        let widths = self.column_widths();
        let header = self.columns.iter().map(|column| column.header.to_owned()).collect();
        let line = |cells: Vec<String>| {
            let mut line = String::new();
            for (cell, width) in cells.iter().zip(&widths) {
                let padding = width + COLUMN_GAP - display_width(cell);
                line.push_str(&format!("{cell}{:padding$}", ""));
            }
            line.trim_end().to_owned() + "\n"
        };
        [header].into_iter().chain(self.rows).map(line).collect()
    }
}

fn table_width(column_widths: &[usize]) -> usize {
    let gaps = COLUMN_GAP * column_widths.len().saturating_sub(1);
    column_widths.iter().sum::<usize>() + gaps
}

/// A header is one line: it is truncated to the width of its column.
fn truncate_header(header: &'static str, max: usize) -> &'static str {
    let end = header.char_indices().nth(max).map_or(header.len(), |(end, _)| end);
    header.get(..end).unwrap_or(header)
}

/// The number of terminal columns of a text: East Asian characters take two.
pub(super) fn display_width(text: &str) -> usize {
    text.width()
}

/// The beginning of a text.
pub(super) fn truncate_end(text: &str, max: usize) -> String {
    if display_width(text) <= max {
        return text.to_owned();
    }
    let (kept, _) = split_at_width(text, max.saturating_sub(1));
    kept.chars().chain(['…']).take(max).collect()
}

/// The end of a text.
fn truncate_start(text: &str, max: usize) -> String {
    if display_width(text) <= max {
        return text.to_owned();
    }
    let suffixes = text.char_indices().map(|(start, _)| &text[start..]);
    let kept = suffixes.into_iter().find(|suffix| display_width(suffix) < max).unwrap_or_default();
    ['…'].into_iter().chain(kept.chars()).take(max).collect()
}

/// The longest beginning that takes at most `max` columns, and the rest.
fn split_at_width(text: &str, max: usize) -> (&str, &str) {
    let mut width = 0;
    let end = text.char_indices().find(|(_, c)| {
        width += c.width().unwrap_or(0);
        width > max
    });
    text.split_at(end.map_or(text.len(), |(end, _)| end))
}

/// A text in at most `max_lines` lines of at most `width` columns, wrapped between words if possible.
pub(super) fn wrap_text(text: &str, width: usize, max_lines: usize) -> Vec<String> {
    let (mut rest, mut lines) = (text, Vec::new());
    while display_width(rest) > width && lines.len() + 1 < max_lines {
        let (line, _) = split_at_width(rest, width);
        let is_between_words = rest[line.len()..].starts_with(' ');
        let end = match line.rfind(' ') {
            _ if is_between_words => line.len(),
            Some(space) if space > 0 => space,
            _ if line.is_empty() => break,
            _ => line.len(),
        };
        lines.push(rest[..end].trim_end().to_owned());
        rest = rest[end..].trim_start();
    }
    lines.push(truncate_end(rest, width));
    lines
}

/// Between a source and its destination.
pub(super) const ARROW: &str = " → ";

/// Keeps the ends of the source and the destination path, which differ most between syncs.
pub(super) fn shorten_pair(text: &str, max: usize) -> String {
    let Some((from, to)) = text.split_once(ARROW) else { return truncate_start(text, max) };
    let width = max.saturating_sub(display_width(ARROW));
    if width < 4 {
        return truncate_start(to, max);
    }
    // Columns that one path does not need are given to the other.
    let from_width = (width / 2).max(width.saturating_sub(display_width(to)));
    let from_width = from_width.min(display_width(from));
    let [from, to] = [truncate_start(from, from_width), truncate_start(to, width - from_width)];
    format!("{from}{ARROW}{to}")
}

/// Keeps the first items of a list, and counts the others.
pub(super) fn shorten_list(text: &str, max: usize) -> String {
    let items: Vec<&str> = text.split(", ").collect();
    let first = |n: usize| match items.len() - n {
        0 => items.join(", "),
        more => format!("{} +{more} more", items[..n].join(", ")),
    };
    let fitting = (1..=items.len()).rev().map(first).find(|text| display_width(text) <= max);
    fitting.unwrap_or_else(|| truncate_end(text, max))
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 5] = [
        Column::new("ID"),
        Column { omit_order: Some(1), ..Column::new("SIZE") },
        Column { omit_order: Some(2), ..Column::new("ETA") },
        Column { shortening: Some((12, shorten_pair)), ..Column::new("PATHS") },
        Column { is_below_row: true, ..Column::new("REASON") },
    ];

    fn row(cells: [&str; 5]) -> Vec<String> {
        cells.map(str::to_owned).to_vec()
    }

    fn of(width: Option<usize>) -> Vec<String> {
        let rows = vec![
            row(["one", "1 GiB", "-", "/scratch/a → /archive/a", ""]),
            row(["two", "2 GiB", "-", "/scratch/b → /archive/b", "no active worker serves it"]),
        ];
        render_table(&COLUMNS, rows, width).lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_table_is_fitted_to_the_terminal_step_by_step() {
        let wide = "two  2 GiB  -    /scratch/b → /archive/b  no active worker serves it";
        for width in [None, Some(200), Some(wide.chars().count())] {
            assert_eq!(of(width)[2], wide, "{width:?}");
        }
        assert_eq!(
            of(Some(66)),
            [
                "ID   SIZE   ETA  PATHS",
                "one  1 GiB  -    /scratch/a → /archive/a",
                "two  2 GiB  -    /scratch/b → /archive/b",
                "    no active worker serves it",
            ]
        );
        assert_eq!(of(Some(30))[2], "two  2 GiB  -    …ch/b → …ve/b");
        // An empty column is omitted before a less important one.
        assert_eq!(of(Some(28))[2], "two  2 GiB  …tch/b → …hive/b");
        assert_eq!(of(Some(20))[2], "two  …tch/b → …ive/b");
        assert_eq!(of(Some(20))[3..], ["    no active worker", "    serves it"]);
        for width in 6..70 {
            for line in of(Some(width)) {
                assert!(line.chars().count() <= width, "{width}: {line}");
            }
        }
    }

    #[test]
    fn a_text_is_wrapped_between_words_and_truncated_after_the_last_line() {
        let of = |text, width, lines| wrap_text(text, width, lines).join("|");
        assert_eq!(of("no active worker serves it", 40, 3), "no active worker serves it");
        assert_eq!(of("no active worker serves it", 16, 3), "no active worker|serves it");
        assert_eq!(of("no active worker serves it", 15, 3), "no active|worker serves|it");
        assert_eq!(of("no active worker serves it", 15, 2), "no active|worker serves …");
        assert_eq!(of("/a/very/long/path is gone", 8, 9), "/a/very/|long/pat|h is|gone");
        assert_eq!(of("", 8, 9), "");
        assert_eq!(of("a b", 0, 9), "");
    }

    #[test]
    fn wide_characters_count_as_two_columns() {
        assert_eq!(
            (truncate_end("データ設定", 5), truncate_start("データ設定", 5)),
            ("デー…".into(), "…設定".into())
        );
        assert_eq!(truncate_end("データ", 6), "データ");
        assert_eq!(wrap_text("データ設定", 4, 9), ["デー", "タ設", "定"]);
    }

    #[test]
    fn a_list_is_shortened_to_whole_items() {
        let list = "/arch (1.0 GiB), /more (-), /third (2 B)";
        assert_eq!(shorten_list(list, 40), list);
        assert_eq!(shorten_list(list, 39), "/arch (1.0 GiB), /more (-) +1 more");
        assert_eq!(shorten_list(list, 30), "/arch (1.0 GiB) +2 more");
        assert_eq!(shorten_list(list, 9), "/arch (1…");
    }
}
