//! Tables for people: one row a record. Into a pipe a table is as wide as its texts. On a terminal it is no wider than
//! that: reasons go below their rows, texts are shortened, columns that matter less are left out.

use comfy_table::{ContentArrangement, Table, presets};
use std::io::IsTerminal;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Spaces between two columns.
const COLUMN_GAP: usize = 2;
/// How far a text below its row is indented.
const NOTE_INDENT: usize = 4;
/// A text below its row takes at most so many lines.
const MAX_NOTE_LINES: usize = 3;

/// Shortens a text to a number of characters.
pub(super) type ShortenFn = fn(&str, usize) -> String;

/// A column, and how it gives way on a narrow terminal.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column {
    header: &'static str,
    /// Left out in this order, lowest first; `None`: never.
    omit_order: Option<u8>,
    /// Shortened to this width before any column is left out.
    shortening: Option<(usize, ShortenFn)>,
    /// Its texts stand below their rows where they do not fit beside them.
    is_below_row: bool,
}

impl Column {
    /// A column that stays as it is.
    pub(super) const fn new(header: &'static str) -> Column {
        Column { header, omit_order: None, shortening: None, is_below_row: false }
    }

    /// The column is left out on a narrow terminal, those with a lower number before it.
    pub(super) const fn with_omit_order(self, order: u8) -> Column {
        Column { omit_order: Some(order), ..self }
    }

    /// The texts are shortened on a narrow terminal; to less than `least` only where nothing can be left out any more.
    pub(super) const fn with_shortening(self, least: usize, shorten: ShortenFn) -> Column {
        Column { shortening: Some((least, shorten)), ..self }
    }

    /// The texts move below their rows on a narrow terminal.
    pub(super) const fn below_row(self) -> Column {
        Column { is_below_row: true, ..self }
    }
}

/// The columns of the terminal that standard output is, or what `MAX_COLUMNS` says; `None` for anything else.
pub(super) fn terminal_width() -> Option<usize> {
    let stdout = std::io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    let set = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok());
    let real = || rustix::termios::tcgetwinsize(&stdout).ok().map(|size| usize::from(size.ws_col));
    set.or_else(real).filter(|columns| *columns > 0)
}

/// Lays out `rows`, two spaces between columns, lines without trailing spaces, none wider than `width`.
pub(super) fn render_table(
    columns: &[Column],
    rows: Vec<Vec<String>>,
    width: Option<usize>,
) -> String {
    let mut plan = TableLayout { columns: columns.to_vec(), rows };
    let below = match width {
        Some(width) if plan.full_width() > width => plan.fit_to_width(width),
        _ => Vec::new(),
    };
    let mut lines = plan.render_lines().into_iter();
    let mut text: String = lines.next().into_iter().collect();
    for (nth, line) in lines.enumerate() {
        text.push_str(&line);
        if let Some(note) = below.get(nth).filter(|note| !note.is_empty()) {
            let room = width.map_or(usize::MAX, |width| width.saturating_sub(NOTE_INDENT));
            for line in wrap_text(note, room, MAX_NOTE_LINES) {
                text.push_str(&format!("{:NOTE_INDENT$}{line}\n", ""));
            }
        }
    }
    text
}

struct TableLayout {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

impl TableLayout {
    /// How wide a column is.
    fn column_width(&self, nth: usize) -> usize {
        let cells = self.rows.iter().map(|row| display_width(&row[nth]));
        cells.chain([display_width(self.columns[nth].header)]).max().unwrap_or(0)
    }

    /// How wide the table is.
    fn full_width(&self) -> usize {
        self.sum_columns(|plan, nth| plan.column_width(nth))
    }

    /// How wide the table is once its texts are shortened.
    fn min_width(&self) -> usize {
        self.sum_columns(|plan, nth| {
            let least = plan.columns[nth].shortening.map_or(usize::MAX, |(least, _)| least);
            plan.column_width(nth).min(least)
        })
    }

    fn sum_columns(&self, of: impl Fn(&TableLayout, usize) -> usize) -> usize {
        let all: usize = (0..self.columns.len()).map(|nth| of(self, nth)).sum();
        all + COLUMN_GAP * self.columns.len().saturating_sub(1)
    }

    /// Makes the table narrower; returns what stands below each row.
    fn fit_to_width(&mut self, width: usize) -> Vec<String> {
        let below = self.columns.iter().position(|column| column.is_below_row);
        let below = below.map(|nth| self.remove_column(nth)).unwrap_or_default();
        while self.min_width() > width {
            let empty = (0..self.columns.len())
                .find(|nth| self.columns[*nth].omit_order.is_some() && self.is_column_empty(*nth));
            let next = (0..self.columns.len())
                .filter(|nth| self.columns[*nth].omit_order.is_some())
                .min_by_key(|nth| self.columns[*nth].omit_order);
            match empty.or(next) {
                Some(nth) => drop(self.remove_column(nth)),
                None => break,
            }
        }
        self.shorten_columns(width);
        below
    }

    /// Shortens the widest of the texts that can be, until the table fits or none is left.
    fn shorten_columns(&mut self, width: usize) {
        let mut most: Vec<usize> =
            (0..self.columns.len()).map(|nth| self.column_width(nth)).collect();
        let gaps = COLUMN_GAP * self.columns.len().saturating_sub(1);
        while most.iter().sum::<usize>() + gaps > width {
            let able = (0..most.len()).filter(|nth| self.columns[*nth].shortening.is_some());
            match able.max_by_key(|nth| most[*nth]).filter(|nth| most[*nth] > 1) {
                Some(widest) => most[widest] -= 1,
                None => break,
            }
        }
        for (nth, most) in most.into_iter().enumerate() {
            let Some((_, shorten)) = self.columns[nth].shortening else { continue };
            self.columns[nth].header = truncate_header(self.columns[nth].header, most);
            for row in &mut self.rows {
                if display_width(&row[nth]) > most {
                    row[nth] = shorten(&row[nth], most);
                }
            }
        }
    }

    /// Whether no row holds anything in a column.
    fn is_column_empty(&self, nth: usize) -> bool {
        self.rows.iter().all(|row| ["", "-", "0"].contains(&row[nth].as_str()))
    }

    fn remove_column(&mut self, nth: usize) -> Vec<String> {
        self.columns.remove(nth);
        self.rows.iter_mut().map(|row| row.remove(nth)).collect()
    }

    /// The lines, the header first.
    fn render_lines(self) -> Vec<String> {
        let mut table = Table::new();
        table
            .load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled)
            .force_no_tty()
            .set_header(self.columns.iter().map(|column| column.header).collect::<Vec<_>>())
            .add_rows(self.rows);
        for column in table.column_iter_mut() {
            column.set_padding((0, COLUMN_GAP as u16));
        }
        table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
    }
}

/// A header is one line: a wider one than its column is cut.
fn truncate_header(header: &'static str, most: usize) -> &'static str {
    let end = header.char_indices().nth(most).map_or(header.len(), |(end, _)| end);
    header.get(..end).unwrap_or(header)
}

/// How many columns of a terminal a text takes: characters of East Asian scripts take two.
pub(super) fn display_width(text: &str) -> usize {
    text.width()
}

/// The beginning of a text.
pub(super) fn truncate_end(text: &str, most: usize) -> String {
    if display_width(text) <= most {
        return text.to_owned();
    }
    let (kept, _) = split_at_width(text, most.saturating_sub(1));
    kept.chars().chain(['…']).take(most).collect()
}

/// The end of a text.
fn truncate_start(text: &str, most: usize) -> String {
    if display_width(text) <= most {
        return text.to_owned();
    }
    let room = most.saturating_sub(1);
    let starts = text.char_indices().map(|(start, _)| &text[start..]);
    let kept = starts.into_iter().find(|rest| display_width(rest) <= room).unwrap_or_default();
    ['…'].into_iter().chain(kept.chars()).take(most).collect()
}

/// The longest beginning that takes no more than `most` columns, and the rest.
fn split_at_width(text: &str, most: usize) -> (&str, &str) {
    let mut taken = 0;
    let end = text.char_indices().find(|(_, c)| {
        taken += c.width().unwrap_or(0);
        taken > most
    });
    text.split_at(end.map_or(text.len(), |(end, _)| end))
}

/// A text in at most `lines` lines of at most `width` columns, broken between words where it can be.
pub(super) fn wrap_text(text: &str, width: usize, lines: usize) -> Vec<String> {
    let (mut rest, mut wrapped) = (text, Vec::new());
    while display_width(rest) > width && wrapped.len() + 1 < lines {
        let (line, _) = split_at_width(rest, width);
        let is_between = rest[line.len()..].starts_with(' ');
        let end = match line.rfind(' ') {
            _ if is_between => line.len(),
            Some(space) if space > 0 => space,
            _ if line.is_empty() => break,
            _ => line.len(),
        };
        wrapped.push(rest[..end].trim_end().to_owned());
        rest = rest[end..].trim_start();
    }
    wrapped.push(truncate_end(rest, width));
    wrapped
}

/// Between a source and its destination.
pub(super) const ARROW: &str = " → ";

/// The ends of a source and of its destination: the names there say most.
pub(super) fn shorten_pair(text: &str, most: usize) -> String {
    let Some((from, to)) = text.split_once(ARROW) else { return truncate_start(text, most) };
    let room = most.saturating_sub(display_width(ARROW));
    if room < 4 {
        return truncate_start(to, most);
    }
    let half = room / 2;
    // What one does not need is the other's.
    let first = half.max(room.saturating_sub(display_width(to))).min(display_width(from));
    format!("{}{ARROW}{}", truncate_start(from, first), truncate_start(to, room - first))
}

/// The first of several things separated by commas, and how many more there are.
pub(super) fn shorten_list(text: &str, most: usize) -> String {
    let all: Vec<&str> = text.split(", ").collect();
    let shown = |n: usize| match all.len() - n {
        0 => all.join(", "),
        more => format!("{} +{more} more", all[..n].join(", ")),
    };
    let fitting = (1..=all.len()).rev().map(shown).find(|text| display_width(text) <= most);
    fitting.unwrap_or_else(|| truncate_end(text, most))
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 5] = [
        Column::new("ID"),
        Column::new("SIZE").with_omit_order(1),
        Column::new("ETA").with_omit_order(2),
        Column::new("PATHS").with_shortening(12, shorten_pair),
        Column::new("REASON").below_row(),
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
        // A column that holds nothing goes before one that matters less.
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
