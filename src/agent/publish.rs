//! The last steps of a large file (`commit`, `discard`) and of a sync (`flush`, at the destination
//! itself; `sweep`, asked of a destination).

use super::batch_outcome::file_record;
use super::job::{Job, TaskOutcome};
use crate::fs::{Cause, SentRanges, Target, Tree};
use crate::util::repeated_warnings::warn_ratelimited;
use crate::wire::content::HashMode;
use crate::wire::manifest::{Entry, Manifest, ManifestDir, merge_ranges};
use crate::wire::options::EntryAction;
use crate::wire::sync::FileError;
use crate::wire::task::TaskReport;
use crate::wire::{Digest, RelPath};

/// How a large file is ended.
pub struct CommitSpec<'a> {
    /// The length of all its ranges but the last.
    pub range_length: u64,
    /// The value of each, 32 bytes each.
    pub chaining_values: &'a [u8],
    /// All ranges are equal to what is there: only metadata are to be repaired.
    pub in_place: bool,
}

/// Publishes the part file of the only file of `manifest`, or repairs what is there.
pub async fn commit_file(job: Job<'_>, manifest: Manifest, ending: CommitSpec<'_>) -> TaskOutcome {
    let CommitSpec { range_length, chaining_values: chain, in_place } = ending;
    let values =
        match only_entry(&manifest).and_then(|entry| range_digests(entry, range_length, chain)) {
            Ok(values) => values,
            Err(why) => return TaskOutcome::failed(why),
        };
    let options = job.assignment.options.clone();
    let hashing = options.write_rules().hash_mode();
    let digest = merge_ranges(&values).filter(|_| hashing == HashMode::Full);
    let there = job.cx.roots.tree(&job.assignment.destination_path);
    run_at_destination(job, manifest, move |target, entries, report| {
        let [entry] = entries else { return Ok(()) };
        let size = entry.size();
        let action = if in_place {
            let action = target.repair_metadata_in_place(entry)?;
            (report.files_skipped, report.bytes_skipped) = (1, size);
            action
        } else {
            let action = publish_action(there.as_ref(), entry);
            let hashed = !values.is_empty();
            let ranges = hashed.then_some(SentRanges {
                range_bytes: range_length,
                digests: &values,
                hashing,
            });
            target.publish_part_file(entry, ranges)?;
            report.files_done = 1;
            action
        };
        report.digest = digest;
        report.actions.entry(action).or_default().add(size);
        report.records.extend(file_record(&options, entry, action, size, digest));
        Ok(())
    })
    .await
}

/// What publishing `entry` will be.
fn publish_action(destination: Option<&Tree>, entry: &Entry) -> EntryAction {
    match destination.map(|tree| tree.entry(&entry.path)) {
        Some(Ok(_)) => EntryAction::Update,
        _ => EntryAction::Create,
    }
}

/// Removes what nobody publishes any more: the part file of the only file of `manifest`, or the temporary
/// files of a batch.
pub async fn discard_parts(job: Job<'_>, mut manifest: Manifest) -> TaskOutcome {
    // The directories may have got other metadata since: they are not ours to stamp any more.
    manifest.dirs.clear();
    run_at_destination(job, manifest, |target, entries, _| {
        if let [entry] = entries {
            target.remove_part_file(entry)?;
        }
        entries.iter().try_for_each(|entry| target.remove_temp_files(entry))
    })
    .await
}

/// Has a destination remove what the sync kept there to find the names of one file.
pub async fn clean_up(job: Job<'_>) -> TaskOutcome {
    let source = match job.open_source().await {
        Ok(source) => source,
        Err(done) => return *done,
    };
    let looked = tokio::task::spawn_blocking(move || source.entry(&RelPath::root())).await;
    // Without a root there are no metadata to give back, and as much to remove.
    let root = looked.ok().and_then(Result::ok).filter(Entry::is_dir);
    let root = root.map(|entry| ManifestDir { path: entry.path, meta: entry.meta });
    let mut choice = job.destination_picker();
    while let Some(to) = choice.pick_next() {
        match to.clean_up(root.clone()).await {
            Ok(Ok(())) => {
                job.mark_wrote(to.worker());
                return TaskOutcome::succeeded(TaskReport::default());
            }
            Ok(Err(error)) => {
                job.mark_wrote(to.worker());
                let error = job.with_observer(error, to.worker());
                return TaskOutcome {
                    report: failure_report(error.clone()),
                    ..TaskOutcome::failed(error.to_string())
                };
            }
            Err(error) => choice.record_failure(to.worker(), &error),
        }
    }
    choice.fail_exhausted()
}

/// Puts everything below the destination root on stable storage.
pub async fn flush_destination(job: Job<'_>) -> TaskOutcome {
    let target = match job.open_target() {
        Ok(target) => target,
        Err(done) => return *done,
    };
    match tokio::task::spawn_blocking(move || target.flush()).await {
        Ok(Ok(())) => TaskOutcome::succeeded(TaskReport::default()),
        Ok(Err(error)) => job.fail_with(&error),
        Err(e) => TaskOutcome::failed(format!("flushing panicked: {e}")),
    }
}

fn failure_report(error: FileError) -> TaskReport {
    TaskReport { failures: vec![error], ..TaskReport::default() }
}

fn only_entry(manifest: &Manifest) -> Result<&Entry, String> {
    match manifest.entries.as_slice() {
        [entry] => Ok(entry),
        all => Err(format!("a part file of {} files cannot be", all.len())),
    }
}

/// The value of each range; none where they were not hashed.
fn range_digests(entry: &Entry, range_length: u64, chain: &[u8]) -> Result<Vec<Digest>, String> {
    if chain.is_empty() {
        return Ok(Vec::new());
    }
    let (values, rest) = chain.as_chunks::<32>();
    let ranges = entry.size().div_ceil(range_length.max(1));
    if !rest.is_empty() || values.len() as u64 != ranges {
        return Err(format!("{} bytes are no values of {ranges} ranges", chain.len()));
    }
    Ok(values.iter().map(|value| Digest(*value)).collect())
}

/// Does `act` on the entries at our own destination, and stamps the directories above them.
async fn run_at_destination(
    job: Job<'_>,
    manifest: Manifest,
    act: impl FnOnce(&Target, &[Entry], &mut TaskReport) -> crate::fs::Result<()> + Send + 'static,
) -> TaskOutcome {
    let target = match job.open_target() {
        Ok(target) => target,
        Err(done) => return *done,
    };
    job.writers.mark_wrote(&job.cx.worker_id);
    let work = tokio::task::spawn_blocking(move || {
        let mut report = TaskReport::default();
        let done = target.with_root_checked(|| act(&target, &manifest.entries, &mut report));
        for error in target.apply_dir_metadata(&manifest.dirs) {
            // Its own entry says so where it lasts; publishing is not undone for it.
            warn_ratelimited!(error.describe_cause(), "{error}");
        }
        (report.warnings, report.needs_clean_up) =
            (target.take_metadata_warnings(), target.has_anchors());
        (done, report)
    });
    match work.await {
        Ok((Ok(()), report)) => TaskOutcome::succeeded(report),
        Ok((Err(error), TaskReport { needs_clean_up: to_sweep, .. })) => {
            let part_lost = error.cause == Cause::PartDataLost;
            if part_lost {
                let sync = &job.assignment.request_id;
                let cause = format_args!("{} (sync {sync})", error.without_path());
                warn_ratelimited!(cause, %sync, "{error}");
            }
            let error = job.with_observer(error.to_file_error(), &job.cx.worker_id);
            TaskOutcome::succeeded(TaskReport {
                part_lost,
                needs_clean_up: to_sweep,
                ..failure_report(error)
            })
        }
        Err(e) => TaskOutcome::failed(format!("writing to the destination panicked: {e}")),
    }
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
