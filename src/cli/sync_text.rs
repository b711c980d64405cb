//! Parts of a sync's document as text, for tables, reports and progress.

use crate::util::shell_quote::quote_for_shell;
use crate::util::units;
use crate::wire::address::Address;
use crate::wire::sync::{FailedStep, SyncOutcome, SyncProgress};
use crate::wire::worker_selector::WorkerSelector;
use crate::wire::{AbsPath, RelPath};
use jiff::Timestamp;
use std::time::Duration;

/// Time from `from` to `to`; 0 if the clocks of two hosts disagree.
pub(super) fn duration_between(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

/// Time in UTC with whole seconds.
pub(super) fn format_time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

pub(super) fn or_dash(value: Option<String>) -> String {
    value.unwrap_or_else(|| "-".to_owned())
}

/// The id of a sync on a terminal: the short form of a generated one.
pub(super) fn display_id(sync: &SyncProgress) -> &str {
    sync.short_id.as_deref().unwrap_or(sync.request_id.as_str())
}

/// The highest percentage before the end.
const MAX_PERCENT_BEFORE_END: f64 = 99.9;

/// The percentage of the bytes, or without bytes of the files, that are done (each: done and total). `None` during the
/// scan; below 100 until it is complete.
pub(super) fn percent_of(
    scan_done: bool,
    is_complete: bool,
    bytes: (u64, u64),
    files: (u64, u64),
) -> Option<f64> {
    if !scan_done {
        return None;
    }
    if is_complete {
        return Some(100.0);
    }
    let (done, total) = if bytes.1 > 0 { bytes } else { files };
    if total == 0 {
        return Some(0.0);
    }
    // Rounded down: 99.96 must not be shown as 100.0.
    let percent = (done as f64 / total as f64 * 1000.0).floor() / 10.0;
    Some(percent.min(MAX_PERCENT_BEFORE_END))
}

/// More selectors in an address are only counted.
const MAX_SHOWN_SELECTORS: usize = 8;

/// `[WORKERS:]/path` for people. Of many workers the first are shown, and the others are counted.
pub(super) fn address_text(workers: &[WorkerSelector], path: &AbsPath) -> String {
    if workers.is_empty() {
        return path.to_string();
    }
    format!("{}:{path}", first_names(workers, MAX_SHOWN_SELECTORS, ","))
}

/// The first `max` of `names`, and how many more there are.
pub(super) fn first_names<T: ToString>(names: &[T], max: usize, separator: &str) -> String {
    let hidden = names.len().saturating_sub(max);
    let shown = names.iter().take(max).map(T::to_string);
    let more = (hidden > 0).then(|| format!("+{hidden}"));
    shown.chain(more).collect::<Vec<_>>().join(separator)
}

/// Source and destination of a sync as arguments of a command.
pub(super) fn quoted_addresses(sync: &SyncProgress) -> [String; 2] {
    let sides = [
        (&sync.source_workers, &sync.source_path),
        (&sync.destination_workers, &sync.destination_path),
    ];
    sides.map(|(workers, path)| {
        let address = Address { workers: workers.clone(), path: path.clone() };
        quote_for_shell(&address.to_bytes())
    })
}

/// Where an entry NAME of the source is copied to.
pub(super) fn mapping_example(source: &AbsPath, destination: &AbsPath) -> String {
    let name = RelPath::new("NAME").unwrap_or_default();
    format!("{} → {}", source.join(&name), destination.join(&name))
}

/// What the state does not say of how a sync ended.
pub(super) fn outcome_label(sync: &SyncProgress) -> Option<&'static str> {
    outcome_text(sync.outcome?)
}

/// What a final state does not say of an outcome.
pub(super) fn outcome_text(outcome: SyncOutcome) -> Option<&'static str> {
    match outcome {
        SyncOutcome::Partial => Some("partial"),
        SyncOutcome::VanishedOnly => Some("files vanished or kept changing"),
        SyncOutcome::DeleteStopped => Some("copied, deletion stopped"),
        SyncOutcome::CopyStopped => Some("stopped before copying"),
        SyncOutcome::Unverified => Some("unverified"),
        SyncOutcome::Full | SyncOutcome::Cancelled => None,
    }
}

pub(super) fn eta_text(sync: &SyncProgress) -> Option<String> {
    sync.eta_seconds.map(|seconds| units::format_duration(Duration::from_secs(seconds)))
}

/// Bytes per second over the whole time of a sync that has ended.
pub(super) fn effective_rate(sync: &SyncProgress) -> Option<f64> {
    let seconds = duration_between(sync.started_at?, sync.ended_at?).as_secs_f64();
    (seconds > 0.0 && sync.transferred_bytes > 0).then(|| sync.transferred_bytes as f64 / seconds)
}

/// How many of the copied bytes were sent over the network, if not exactly all.
pub(super) fn sent_text(sync: &SyncProgress) -> Option<String> {
    let counted = sync.sent_bytes + sync.kept_bytes + sync.cloned_bytes > 0;
    (counted && sync.sent_bytes != sync.transferred_bytes).then(|| {
        let mut text = format!("{} sent", units::format_bytes(sync.sent_bytes));
        for (bytes, what) in
            [(sync.kept_bytes, "the destination had"), (sync.cloned_bytes, "cloned")]
        {
            if bytes > 0 {
                text.push_str(&format!(", {} {what}", units::format_bytes(bytes)));
            }
        }
        text
    })
}

/// Failures that are not failures of entries, e.g. `1 listing failed, 2 deletions failed`.
pub(super) fn failed_steps_text(sync: &SyncProgress) -> Option<String> {
    let each = sync.failed_steps.iter().filter(|(_, count)| **count > 0).map(|(step, count)| {
        let [one, many] = match step {
            FailedStep::List => ["listing", "listings"],
            FailedStep::ReadBack => ["read-back", "read-backs"],
            FailedStep::Delete => ["deletion", "deletions"],
            FailedStep::CleanUp => ["clean-up", "clean-ups"],
            FailedStep::Flush => ["flush", "flushes"],
        };
        format!("{} failed", units::pluralize(*count, one, many))
    });
    Some(each.collect::<Vec<_>>().join(", ")).filter(|steps| !steps.is_empty())
}

/// The result of reading the destination back, if that was done.
pub(super) fn readback_text(sync: &SyncProgress) -> Option<String> {
    let read = sync.verified_files + sync.repaired_files;
    let repaired = units::format_count(sync.repaired_files);
    (read > 0).then(|| format!("{} read back, {repaired} repaired", units::format_count(read)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::fixtures;

    #[test]
    fn an_address_is_shown_with_its_workers_and_quoted_in_commands() {
        let workers: Vec<WorkerSelector> =
            (1..=10).map(|n| format!("gpu-{n}").parse().unwrap()).collect();
        let path = AbsPath::new(b"/a b\n").unwrap();
        assert_eq!(address_text(&[], &path), "/a b\\#012");
        assert_eq!(address_text(&workers[..2], &path), "gpu-1,gpu-2:/a b\\#012");
        let many = address_text(&workers, &path);
        assert!(many.ends_with(",gpu-8,+2:/a b\\#012"), "{many}");
        let sync = SyncProgress {
            source_path: path,
            source_workers: workers[..1].to_vec(),
            destination_workers: vec!["gpu-*".parse().unwrap()],
            ..fixtures::sync("x")
        };
        assert_eq!(quoted_addresses(&sync), [r"$'gpu-1:/a b\n'", "'gpu-*:/dst'"]);
    }
}
