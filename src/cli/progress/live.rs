//! Progress drawn in place on a terminal. The only module that uses indicatif.

use super::tracker::percent_done;
use super::{ProgressEvent, ProgressMonitor, ProgressTracker};
use crate::cli::destinations::destination_lines;
use crate::cli::sanitize::sanitize;
use crate::cli::sync_text::{display_id, eta_text, or_dash};
use crate::cli::table_layout::{display_width, truncate_end, wrap_text};
use crate::util::units;
use crate::wire::RequestId;
use crate::wire::sync::{SyncPhase, SyncProgress, SyncState};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;
use std::time::{Duration, Instant};

const MAX_REDRAWS_PER_SECOND: u8 = 5;
/// Narrower terminals get no bar.
const MIN_BAR_COLUMNS: usize = 60;
const MAX_BAR_COLUMNS: usize = 26;
/// Lines are laid out for at most this many columns.
const MAX_COLUMNS: usize = 100;
/// A reason has at most this many lines.
const MAX_REASON_LINES: usize = 4;

/// The lines of a sync on the screen.
struct DrawnSync {
    id: RequestId,
    sync: SyncProgress,
    lines: Vec<String>,
}

/// Draws one block with the lines of each sync, truncated to the height of the terminal.
pub(super) struct LiveView {
    screen: MultiProgress,
    block: ProgressBar,
    drawn: Vec<DrawnSync>,
    spinner_step: usize,
}

impl LiveView {
    pub(super) fn new() -> Self {
        let screen = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(
            MAX_REDRAWS_PER_SECOND,
        ));
        let block = screen.add(ProgressBar::new_spinner());
        if let Ok(style) = ProgressStyle::with_template("{msg}") {
            block.set_style(style);
        }
        LiveView { screen, block, drawn: Vec::new(), spinner_step: 0 }
    }

    fn redraw(&mut self) {
        let (height, _) = terminal_size();
        // Running syncs first, in case not all fit.
        self.drawn.sort_by_key(|s| s.sync.state.is_final());
        let syncs: Vec<&[String]> = self.drawn.iter().map(|s| s.lines.as_slice()).collect();
        self.block.set_message(fit_to_height(&syncs, height.saturating_sub(1).max(1)));
        self.block.tick();
    }
}

impl ProgressMonitor for LiveView {
    fn handle_event(&mut self, event: ProgressEvent<'_>, _: Timestamp) {
        match event {
            ProgressEvent::Updated(sync, tracker)
            | ProgressEvent::StatusRequested(sync, tracker) => {
                self.spinner_step += 1;
                let (_, width) = terminal_size();
                let lines = render_lines(sync, tracker, Instant::now(), width, self.spinner_step);
                let shown = DrawnSync { id: sync.request_id.clone(), sync: sync.clone(), lines };
                match self.drawn.iter_mut().find(|s| s.id == shown.id) {
                    Some(old) => *old = shown,
                    None => self.drawn.push(shown),
                }
                self.redraw();
            }
            ProgressEvent::Note(text) => {
                let _ = self.screen.println(sanitize(text));
            }
            ProgressEvent::Finished => {
                self.block.finish_and_clear();
                let _ = self.screen.clear();
                self.drawn.clear();
            }
        }
    }
}

/// Rows and columns of the terminal.
fn terminal_size() -> (usize, usize) {
    let size = rustix::termios::tcgetwinsize(std::io::stderr()).ok();
    let or = |n: u16, else_: usize| if n == 0 { else_ } else { usize::from(n) };
    size.map_or((24, 80), |s| (or(s.ws_row, 24), or(s.ws_col, 80)))
}

/// The lines of as many syncs as fit into `height` lines; the last line counts the others.
fn fit_to_height(syncs: &[&[String]], height: usize) -> String {
    let all: usize = syncs.iter().map(|lines| lines.len()).sum();
    if all <= height || syncs.len() == 1 {
        return syncs.concat()[..all.min(height)].join("\n");
    }
    let (mut lines, mut shown) = (Vec::new(), 0);
    for sync in syncs {
        if lines.len() + sync.len() >= height {
            break;
        }
        lines.extend_from_slice(sync);
        shown += 1;
    }
    lines.push(format!("+{} more", syncs.len() - shown));
    lines.join("\n")
}

/// The lines of one sync, none wider than `width`.
fn render_lines(
    sync: &SyncProgress,
    tracker: &ProgressTracker,
    now: Instant,
    width: usize,
    spinner_step: usize,
) -> Vec<String> {
    let width = width.saturating_sub(1).clamp(20, MAX_COLUMNS);
    let name = format!("{}  {}", display_id(sync), sync.state.as_str());
    if sync.state.is_final() {
        return vec![truncate_end(&name, width)];
    }
    let reason = tracker.wait_reason(sync, now).map(sanitize);
    let mut lines = match sync.state {
        SyncState::Queued => {
            let line = format!("{name}  waiting: {}", reason.as_deref().unwrap_or_default());
            if reason.is_some() && display_width(&line) <= width {
                return vec![line];
            }
            vec![format!("{name}  waiting")]
        }
        _ => vec![
            progress_text(sync, tracker.watched_for(now), &name, width, spinner_step),
            counts_text(sync),
        ],
    };
    lines.extend(destination_lines(sync).into_iter().map(|line| format!("    {line}")));
    for line in &mut lines {
        *line = truncate_end(line, width);
    }
    let reason = match tracker.stalled_for(sync, now) {
        Some(still) => {
            let reason = reason.unwrap_or_else(|| "no byte moved".to_owned());
            Some(format!("stalled for {}: {reason}", format_seconds(still)))
        }
        None => reason,
    };
    let reason = reason.map(|reason| wrap_text(&reason, width.saturating_sub(4), MAX_REASON_LINES));
    lines.extend(reason.into_iter().flatten().map(|line| format!("    {line}")));
    lines
}

fn format_seconds(time: Duration) -> String {
    units::format_duration(Duration::from_secs(time.as_secs()))
}

/// The name, a bar or a spinner, and as many of percentage, bytes, rate and times as fit.
fn progress_text(
    sync: &SyncProgress,
    elapsed: Duration,
    name: &str,
    width: usize,
    spinner_step: usize,
) -> String {
    let sent = units::format_bytes(sync.transferred_bytes + sync.bytes_skipped);
    let bound = if sync.scan_done { "" } else { "≥ " };
    let bytes = format!("{sent} / {bound}{}", units::format_bytes(sync.total_bytes));
    let rate = or_dash(sync.rate.map(|rate| units::format_rate(rate as f64)));
    let elapsed = format!("elapsed {}", format_seconds(elapsed));
    let percent = percent_done(sync);
    let first = match percent {
        None => format!("{} scanning…", ["-", "\\", "|", "/"][spinner_step % 4]),
        Some(percent) => format!("{percent:5.1} %"),
    };
    let eta = percent.and(eta_text(sync)).map(|eta| (1, format!("ETA {eta}")));
    let parts = [(0, first), (3, bytes), (2, rate)].into_iter().chain(eta).chain([(4, elapsed)]);
    let width_left = width.saturating_sub(display_width(name) + 2);
    let parts = join_fitting(&parts.collect::<Vec<_>>(), width_left);
    let bar_width = width_left.saturating_sub(display_width(&parts) + 4).min(MAX_BAR_COLUMNS);
    match percent {
        Some(percent) if width >= MIN_BAR_COLUMNS && bar_width >= 8 => {
            format!("{name}  {}{parts}", progress_bar(percent, bar_width))
        }
        _ => format!("{name}  {parts}"),
    }
}

/// Counts of files, and what the sync does after copying.
fn counts_text(sync: &SyncProgress) -> String {
    let bound = if sync.scan_done { "" } else { "≥ " };
    let [handled, total, skipped, failed] = [
        sync.files_done + sync.files_skipped,
        sync.files_total,
        sync.files_skipped,
        sync.failure_count(),
    ]
    .map(units::format_count);
    let mut text =
        format!("    files {handled} / {bound}{total} ({skipped} skipped, {failed} failed)");
    text.push_str(match sync.phase {
        SyncPhase::Verifying => "   reading back",
        SyncPhase::Pruning if sync.options.dry_run => "   counting deletions",
        SyncPhase::Pruning => "   deleting extraneous entries",
        SyncPhase::Flushing => "   flushing",
        _ => "",
    });
    if sync.options.dry_run {
        text.push_str("   (dry run)");
    }
    if sync.retries > 0 {
        text.push_str(&format!("   {} retried", units::pluralize(sync.retries, "task", "tasks")));
    }
    text
}

/// The parts that fit into `width`, in order; those with the highest numbers are omitted first.
fn join_fitting(parts: &[(u8, String)], width: usize) -> String {
    let mut parts: Vec<&(u8, String)> = parts.iter().collect();
    loop {
        let line = parts.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>().join("   ");
        let least = parts.iter().map(|(rank, _)| *rank).max().filter(|_| parts.len() > 1);
        match least.filter(|_| display_width(&line) > width) {
            Some(least) => parts.retain(|(rank, _)| *rank != least),
            None => return line,
        }
    }
}

fn progress_bar(percent: f64, width: usize) -> String {
    let done = ((percent / 100.0) * width as f64) as usize;
    let done = done.min(width);
    format!("[{}{}] ", "#".repeat(done), "-".repeat(width - done))
}

#[cfg(test)]
mod tests {
    use super::super::super::fixtures;
    use super::*;

    fn lines(sync: &SyncProgress, width: usize) -> Vec<String> {
        render_lines(sync, &ProgressTracker::new(sync, Instant::now()), Instant::now(), width, 0)
    }

    #[test]
    fn a_running_scan_shows_a_lower_bound_and_no_percentage() {
        let sync = SyncProgress {
            state: SyncState::Progress,
            total_bytes: 3 << 30,
            files_total: 81_204,
            ..fixtures::sync("run43")
        };
        let text = lines(&sync, 100).join("\n");
        assert!(text.contains("≥ 3.0 GiB") && text.contains("≥ 81,204"), "{text}");
        assert!(!text.contains('%') && !text.contains("ETA"), "{text}");
    }

    #[test]
    fn no_line_is_wider_than_the_terminal_and_narrow_ones_have_no_bar() {
        let sync = SyncProgress {
            state: SyncState::Progress,
            scan_done: true,
            transferred_bytes: 54,
            total_bytes: 100,
            reason: Some("x".repeat(300)),
            ..fixtures::sync("run42")
        };
        assert!(lines(&sync, 90)[0].contains("[#"), "{:?}", lines(&sync, 90));
        for width in [20, 40, 59, 80, 200] {
            for line in lines(&sync, width) {
                assert!(line.chars().count() < width.max(21), "{width}: {line}");
                assert!(width >= MIN_BAR_COLUMNS || !line.contains('['), "{line}");
            }
        }
    }

    #[test]
    fn each_destination_has_a_line_below_its_sync() {
        let of = |id: &str, percent| fixtures::destination(id, SyncState::Progress, percent);
        let destinations = (1..=10).map(|n| of(&format!("gpu-{n}"), n)).collect();
        let sync = SyncProgress {
            state: SyncState::Progress,
            scan_done: true,
            destinations,
            ..fixtures::sync("run42")
        };
        let shown = lines(&sync, 70);
        assert_eq!(shown.len(), 11, "{shown:?}");
        assert!(shown[2].starts_with("    gpu-1  PROGRESS  1 %  1 B / 100 B"), "{shown:?}");
        assert_eq!(shown[10], "    and 2 more: 2 PROGRESS 9 %…");
        assert!(shown.iter().all(|line| line.chars().count() < 70), "{shown:?}");
    }

    #[test]
    fn the_phase_after_copying_is_shown() {
        let of = |phase, dry_run| {
            let options = crate::wire::options::SyncOptions { dry_run, ..Default::default() };
            let state = SyncState::Progress;
            let sync =
                SyncProgress { state, phase, options, scan_done: true, ..fixtures::sync("x") };
            lines(&sync, 200)[1].clone()
        };
        for (phase, dry_run, label) in [
            (SyncPhase::Verifying, false, "reading back"),
            (SyncPhase::Pruning, false, "deleting extraneous entries"),
            (SyncPhase::Pruning, true, "counting deletions"),
            (SyncPhase::Flushing, false, "flushing"),
            (SyncPhase::Transferring, true, "(dry run)"),
        ] {
            assert!(of(phase, dry_run).contains(label), "{phase:?}: {}", of(phase, dry_run));
        }
        assert!(of(SyncPhase::Transferring, false).ends_with("0 failed)"));
    }

    #[test]
    fn a_waiting_or_paused_sync_shows_its_reason_and_a_new_one_does_not() {
        let sync =
            SyncProgress { reason: Some("no worker holds /a\x1b".into()), ..fixtures::sync("q") };
        assert_eq!(lines(&sync, 80), ["q  QUEUED  waiting"]);
        let (begun, later) = (Instant::now(), Instant::now() + std::time::Duration::from_secs(3));
        let text = render_lines(&sync, &ProgressTracker::new(&sync, begun), later, 80, 0);
        assert_eq!(text, ["q  QUEUED  waiting: no worker holds /a\\#033"]);
        let sync = SyncProgress { state: SyncState::Paused, ..sync };
        assert_eq!(lines(&sync, 80)[2], "    no worker holds /a\\#033");
    }

    #[test]
    fn rate_and_eta_are_those_of_the_master() {
        let sync = SyncProgress {
            state: SyncState::Progress,
            scan_done: true,
            transferred_bytes: 40 << 20,
            total_bytes: 100 << 20,
            rate: Some(2 << 20),
            eta_seconds: Some(30),
            ..fixtures::sync("run42")
        };
        let line = &lines(&sync, 100)[0];
        assert!(line.contains("40.0 MiB / 100.0 MiB   2.0 MiB/s   ETA 30s"), "{line}");
    }

    #[test]
    fn a_narrow_terminal_shows_what_matters_most_and_the_whole_reason() {
        let sync = SyncProgress {
            state: SyncState::Progress,
            scan_done: true,
            transferred_bytes: 40 << 20,
            total_bytes: 100 << 20,
            rate: Some(2 << 20),
            eta_seconds: Some(30),
            reason: Some("waits to try again: worker b cannot be reached".to_owned()),
            ..fixtures::sync("run42")
        };
        assert_eq!(
            lines(&sync, 70)[0],
            "run42  PROGRESS   40.0 %   40.0 MiB / 100.0 MiB   2.0 MiB/s   ETA 30s"
        );
        assert_eq!(
            lines(&sync, 41),
            [
                "run42  PROGRESS   40.0 %   ETA 30s",
                "    files 0 / 0 (0 skipped, 0 failed)",
                "    waits to try again: worker b cannot",
                "    be reached",
            ]
        );
        assert_eq!(lines(&sync, 31)[0], "run42  PROGRESS   40.0 %");
        let queued = SyncProgress { state: SyncState::Queued, ..sync };
        let (begun, later) = (Instant::now(), Instant::now() + std::time::Duration::from_secs(3));
        assert_eq!(
            render_lines(&queued, &ProgressTracker::new(&queued, begun), later, 41, 0)[..2],
            ["run42  QUEUED  waiting", "    waits to try again: worker b cannot"]
        );
    }

    #[test]
    fn each_sync_is_drawn_once_and_running_ones_come_first() {
        let now = Timestamp::UNIX_EPOCH;
        let mut live = LiveView::new();
        let of = |id: &str, state| SyncProgress { state, ..fixtures::sync(id) };
        let tracker = ProgressTracker::new(&fixtures::sync("x"), Instant::now());
        for (id, state) in [
            ("one", SyncState::Progress),
            ("two", SyncState::Progress),
            ("one", SyncState::Completed),
            ("two", SyncState::Progress),
            ("one", SyncState::Completed),
        ] {
            live.handle_event(ProgressEvent::Updated(&of(id, state), &tracker), now);
        }
        let shown: Vec<_> = live.drawn.iter().map(|s| (s.id.as_str(), s.sync.state)).collect();
        assert_eq!(shown, [("two", SyncState::Progress), ("one", SyncState::Completed)]);
        live.handle_event(ProgressEvent::Finished, now);
        assert!(live.drawn.is_empty());
    }

    #[test]
    fn what_does_not_fit_in_the_height_is_counted() {
        let of = |counts: &[usize], height| {
            let syncs: Vec<Vec<String>> = counts
                .iter()
                .zip("abcd".chars())
                .map(|(n, name)| (1..=*n).map(|i| format!("{name}{i}")).collect())
                .collect();
            fit_to_height(&syncs.iter().map(Vec::as_slice).collect::<Vec<_>>(), height)
        };
        assert_eq!(of(&[2, 1], 3), "a1\na2\nb1");
        assert_eq!(of(&[2, 3, 2], 6), "a1\na2\nb1\nb2\nb3\n+1 more");
        assert_eq!(of(&[2, 3, 2], 5), "a1\na2\n+2 more");
        assert_eq!(of(&[2, 2, 2], 2), "+3 more");
        assert_eq!(of(&[3], 2), "a1\na2");
    }
}
