//! The last steps of a large file (`commit`, `discard`) and of a sync (`flush` at this destination; `clean_up` as a
//! request to a destination).

use super::batch_outcome::count_action;
use super::job::{Job, JobResult, TaskOutcome, failure_report, run_blocking};
use crate::data::{CleanUpRequest, WrittenFile};
use crate::fs::{Cause, SentRanges, Target, spawn_blocking};
use crate::util::repeated_warnings::warn_ratelimited;
use crate::wire::content::HashMode;
use crate::wire::content::merge_ranges;
use crate::wire::entry_report::EntryAction;
use crate::wire::manifest::{Entry, Manifest, ManifestDir};
use crate::wire::task::TaskReport;
use crate::wire::{Digest, RelPath};

/// Publishes the part file of the only file of `manifest`, of which all ranges but the last are `range_length` long.
/// `chaining_values` has 32 bytes for each range; it is empty where content was not hashed. `in_place`: all ranges equal
/// those of the destination file, and only its metadata is repaired.
pub(super) async fn commit_file(
    job: Job<'_>,
    manifest: Manifest,
    range_length: u64,
    chaining_values: &[u8],
    in_place: bool,
) -> JobResult<TaskOutcome> {
    let digests = match manifest.entries.as_slice() {
        [entry] => range_digests(entry, range_length, chaining_values),
        entries => Err(format!("a commit holds one file, not {}", entries.len())),
    };
    let digests = digests.map_err(TaskOutcome::failed)?;
    let options = job.assignment.options.clone();
    let hashing = options.write_rules().hash_mode();
    let digest = merge_ranges(&digests).filter(|_| hashing == HashMode::Full);
    let destination = job.cx.roots.tree(&job.assignment.destination_path);
    let identity = job.identity()?;
    let destination = destination.map(|tree| tree.acting_as(identity));
    run_at_destination(job, manifest, move |target, entries, report| {
        let [entry] = entries else { return Ok(()) };
        let bytes = entry.size();
        let action = if in_place {
            (report.files_skipped, report.bytes_skipped) = (1, bytes);
            target.repair_metadata_in_place(entry)?
        } else {
            let exists = destination.is_some_and(|tree| tree.entry(&entry.path).is_ok());
            let sent = SentRanges { range_bytes: range_length, digests: &digests, hashing };
            target.publish_part_file(entry, (!digests.is_empty()).then_some(sent))?;
            report.files_done = 1;
            if exists { EntryAction::Update } else { EntryAction::Create }
        };
        report.digest = digest;
        count_action(
            report,
            &options,
            entry,
            action,
            WrittenFile { bytes, digest, relay_digest: None },
        );
        Ok(())
    })
    .await
}

/// Removes the part file of the only file of `manifest`, or the temporary files of a batch, which no task publishes.
pub(super) async fn discard_parts(job: Job<'_>, mut manifest: Manifest) -> JobResult<TaskOutcome> {
    // The metadata of the directories may have been set by another task since.
    manifest.dirs.clear();
    run_at_destination(job, manifest, |target, entries, _| {
        if let [entry] = entries {
            target.remove_part_file(entry)?;
        }
        entries.iter().try_for_each(|entry| target.remove_temp_files(entry))
    })
    .await
}

/// Removes at a destination what the sync kept there to find the names of one file.
pub(super) async fn clean_up(job: Job<'_>) -> JobResult<TaskOutcome> {
    let source = job.open_source().await?;
    let identity = source.identity().clone();
    let root = spawn_blocking(&identity, move || source.entry(&RelPath::root())).await;
    // Without a source root no metadata is restored; the removal is the same.
    let root = root.ok().and_then(Result::ok).filter(Entry::is_dir);
    let root = root.map(|entry| ManifestDir { path: entry.path, meta: entry.meta });
    let mut picker = job.destination_picker();
    while let Some(to) = picker.pick_next() {
        match to.request(CleanUpRequest { root: root.clone() }).await {
            Ok(cleaned) => {
                job.mark_wrote(to.worker());
                cleaned.map_err(|e| TaskOutcome::failed_with(job.with_observer(e, to.worker())))?;
                return Ok(TaskOutcome::succeeded(TaskReport::default()));
            }
            Err(error) => picker.record_failure(to.worker(), &error),
        }
    }
    Ok(picker.fail_exhausted())
}

/// Writes everything below the destination root to stable storage.
pub(super) async fn flush_destination(job: Job<'_>) -> JobResult<TaskOutcome> {
    let target = job.open_target()?;
    let identity = target.identity().clone();
    let flushed = run_blocking(&identity, "flushing", move || target.flush()).await?;
    flushed.map_err(|error| job.fail_with(&error))?;
    Ok(TaskOutcome::succeeded(TaskReport::default()))
}

fn range_digests(
    entry: &Entry,
    range_length: u64,
    chaining_values: &[u8],
) -> Result<Vec<Digest>, String> {
    let (values, rest) = chaining_values.as_chunks::<32>();
    let ranges = entry.size().div_ceil(range_length.max(1));
    let is_complete = rest.is_empty() && values.len() as u64 == ranges;
    if !is_complete && !chaining_values.is_empty() {
        return Err(format!("{} bytes are no values of {ranges} ranges", chaining_values.len()));
    }
    Ok(values.iter().map(|value| Digest(*value)).collect())
}

/// Calls `act` for the entries at the destination of this host, and sets the metadata of the directories above them.
async fn run_at_destination(
    job: Job<'_>,
    manifest: Manifest,
    act: impl FnOnce(&Target, &[Entry], &mut TaskReport) -> crate::fs::Result<()> + Send + 'static,
) -> JobResult<TaskOutcome> {
    let target = job.open_target()?;
    job.writers.mark_wrote(&job.cx.worker_id);
    let identity = target.identity().clone();
    let work = run_blocking(&identity, "writing to the destination", move || {
        let mut report = TaskReport::default();
        let done = target.with_root_checked(|| act(&target, &manifest.entries, &mut report));
        for error in target.apply_dir_metadata(&manifest.dirs) {
            // The entry of the directory reports a permanent error. Publishing is not undone.
            warn_ratelimited!(error.describe_cause(), "{error}");
        }
        report.warnings = target.take_metadata_warnings();
        report.needs_clean_up = target.has_anchors();
        (done, report)
    });
    let (done, report) = work.await?;
    let Err(error) = done else { return Ok(TaskOutcome::succeeded(report)) };
    let part_lost = error.cause == Cause::PartDataLost;
    if part_lost {
        let sync = &job.assignment.request_id;
        let cause = format_args!("{} (sync {sync})", error.describe_cause());
        warn_ratelimited!(cause, %sync, "{error}");
    }
    let error = job.with_observer(error.to_entry_error(), &job.cx.worker_id);
    let needs_clean_up = report.needs_clean_up;
    Ok(TaskOutcome::succeeded(TaskReport { part_lost, needs_clean_up, ..failure_report(error) }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::RelPath;
    use crate::wire::manifest::{EntryKind, FileVersion, Meta};

    #[test]
    fn commit_needs_one_chaining_value_for_each_range() {
        let entry = Entry::new(
            RelPath::new("f").unwrap(),
            EntryKind::File { size: 2049 },
            Meta { mode: 0, uid: 0, gid: 0, mtime_sec: 0, mtime_nsec: 0 },
            FileVersion::default(),
        );
        assert_eq!(range_digests(&entry, 1024, &[]), Ok(Vec::new()));
        assert_eq!(range_digests(&entry, 1024, &[1; 96]), Ok(vec![Digest([1; 32]); 3]));
        for length in [1, 64, 95, 97, 128] {
            assert!(range_digests(&entry, 1024, &vec![1; length]).is_err(), "{length}");
        }
        assert!(range_digests(&entry, 0, &[1; 96]).is_err());
    }
}
