//! A range of a large file: copied into its part file, or only compared.

use super::batch::single_item;
use super::batch_outcome::{created_dir_records, file_record};
use super::job::{Job, TaskOutcome, is_source_error};
use crate::data::outcome::{CompareOutcome, OfferOutcome, PackOutcome, RangeMode};
use crate::data::protocol::validate_range;
use crate::data::{CloneOutcome, Destination, OfferDecision, RangeOutcome, SendError};
use crate::fs::Tree;
use crate::util::repeated_warnings::warn_ratelimited;
use crate::wire::manifest::{Entry, EntryKind, Manifest};
use crate::wire::options::EntryAction;
use crate::wire::sync::{ErrorClass, FileError};
use crate::wire::task::{TaskReport, WorkItem};

/// Brings `length` bytes at `offset` of the only file of `manifest` to one of the destination workers,
/// or has them compared there.
pub async fn transfer_range(
    job: Job<'_>,
    manifest: Manifest,
    (offset, length): (u64, u64),
    compare: bool,
) -> TaskOutcome {
    let source = match job.open_source().await {
        Ok(source) => source,
        Err(done) => return *done,
    };
    let [entry] = manifest.entries.as_slice() else {
        return TaskOutcome::failed(format!(
            "a range holds one file, not {}",
            manifest.entries.len()
        ));
    };
    if let Err(why) = validate_range(offset, length, entry.size()) {
        return TaskOutcome::failed(why);
    }
    let mut choice = job.destination_picker();
    while let Some(to) = choice.pick_next() {
        let range = (offset, length);
        let way =
            RangeTransfer { job, to: &to, source: &source, manifest: &manifest, entry, range };
        let mut report = TaskReport::default();
        match way.run(compare, &mut report).await {
            Ok(Ok(())) => return TaskOutcome::succeeded(report),
            Ok(Err(error)) => {
                report.failures.push(job.with_observer(error, to.worker()));
                return TaskOutcome::succeeded(report);
            }
            Err(error) => choice.record_failure(to.worker(), &error),
        }
    }
    choice.fail_exhausted()
}

/// A range on its way to one destination.
struct RangeTransfer<'a> {
    job: Job<'a>,
    to: &'a Destination,
    source: &'a Tree,
    manifest: &'a Manifest,
    entry: &'a Entry,
    range: (u64, u64),
}

impl RangeTransfer<'_> {
    /// Fills the report; the inner error is the file's.
    async fn run(
        &self,
        compare: bool,
        report: &mut TaskReport,
    ) -> Result<Result<(), FileError>, SendError> {
        // It also makes the directories above the file.
        let mut offered = self.to.offer(self.manifest).await?;
        self.job.mark_wrote(self.to.worker());
        let made = std::mem::take(&mut offered.created_dirs);
        report.records = created_dir_records(&self.job.assignment.options, made);
        report.needs_clean_up = offered.needs_clean_up;
        match offered.results.first() {
            Some(Err(error)) => Ok(Err(error.clone())),
            Some(Ok(OfferDecision::Done(action))) => {
                self.report_in_place(*action, offered, report);
                Ok(Ok(()))
            }
            Some(Ok(OfferDecision::NeedsDigest)) if compare => self.compare_range(report).await,
            _ if compare => {
                report.differs = true;
                Ok(Ok(()))
            }
            answer => {
                // A file that is as long as ours may have equal blocks.
                let (action, base) = match answer {
                    Some(Ok(OfferDecision::NeedsContent { action, has_basis: base })) => {
                        (*action, *base)
                    }
                    _ => (EntryAction::Update, true),
                };
                match self.to.clone_file(self.source, self.manifest).await? {
                    CloneOutcome::Cloned(packed) => {
                        match self.report_cloned(action, packed, report) {
                            Err(error) if error.class == ErrorClass::Changed => {
                                Ok(self.report_replacement(report).await)
                            }
                            done => Ok(done),
                        }
                    }
                    CloneOutcome::NotNeeded(offered) => Ok(self.report_existing(offered, report)),
                    CloneOutcome::Unavailable => self.send_range(base, report).await,
                }
            }
        }
    }

    /// The whole file needs nothing (any more): it is the same, left alone, or was linked.
    fn report_in_place(&self, action: EntryAction, offered: OfferOutcome, report: &mut TaskReport) {
        let size = self.entry.size();
        let options = &self.job.assignment.options;
        let digest = offered.digests.first().copied().flatten();
        report.unchanged = true;
        report.warnings = offered.warnings;
        report.actions.entry(action).or_default().add(size);
        report.records.extend(file_record(options, self.entry, action, size, digest));
    }

    /// Another range of it has brought the whole file, or it cannot be.
    fn report_existing(
        &self,
        offered: OfferOutcome,
        report: &mut TaskReport,
    ) -> Result<(), FileError> {
        match offered.results.first() {
            Some(Ok(OfferDecision::Done(action))) => self.report_in_place(*action, offered, report),
            Some(Err(error)) => return Err(error.clone()),
            _ => {}
        }
        Ok(())
    }

    /// The whole file was cloned.
    fn report_cloned(
        &self,
        action: EntryAction,
        packed: PackOutcome,
        report: &mut TaskReport,
    ) -> Result<(), FileError> {
        let PackOutcome {
            files,
            cloned,
            warnings: notes,
            dir_errors: unstamped,
            needs_clean_up: to_sweep,
            ..
        } = packed;
        for (_, error) in unstamped {
            // Its own entry says so where it lasts.
            warn_ratelimited!(error.describe_cause(), "{error}");
        }
        report.needs_clean_up |= to_sweep;
        report.bytes_cloned = cloned;
        let Some(written) = files.into_iter().next() else { return Ok(()) };
        let written = written?;
        (report.unchanged, report.files_done, report.bytes_done) = (true, 1, written.bytes);
        report.warnings = notes;
        report.actions.entry(action).or_default().add(written.bytes);
        let options = &self.job.assignment.options;
        report.records.extend(file_record(
            options,
            self.entry,
            action,
            written.bytes,
            written.digest,
        ));
        Ok(())
    }

    async fn compare_range(
        &self,
        report: &mut TaskReport,
    ) -> Result<Result<(), FileError>, SendError> {
        match self.to.compare(self.source, self.manifest, self.entry, self.range).await? {
            CompareOutcome::Equal(value) => report.digest = Some(value),
            CompareOutcome::Differs => report.differs = true,
            CompareOutcome::Changed => return Ok(self.report_replacement(report).await),
            CompareOutcome::Failed(error) => return Ok(Err(error)),
        }
        Ok(Ok(()))
    }

    /// Sends the range, or what the destination does not have of it where it has a `base` to keep
    /// blocks of.
    async fn send_range(
        &self,
        base: bool,
        report: &mut TaskReport,
    ) -> Result<Result<(), FileError>, SendError> {
        let delta = base && !self.job.assignment.options.whole_file;
        let mut mode = if delta { RangeMode::Delta } else { RangeMode::Whole };
        loop {
            match self
                .to
                .transfer_range(self.source, self.manifest, self.entry, self.range, mode)
                .await?
            {
                RangeOutcome::Written { value, sent, kept } => {
                    report.bytes_done = self.range.1;
                    report.digest = value;
                    report.bytes_sent += sent;
                    report.bytes_kept = kept;
                    return Ok(Ok(()));
                }
                RangeOutcome::Changed => return Ok(self.report_replacement(report).await),
                // What is there may be out of the destination's reach: it can still be replaced.
                RangeOutcome::Failed(error)
                    if mode == RangeMode::Delta && !is_source_error(&error) =>
                {
                    tracing::debug!(
                        sync = %self.job.assignment.request_id,
                        "a range is sent whole: {error}"
                    );
                    mode = RangeMode::Whole;
                }
                RangeOutcome::Failed(error) => return Ok(Err(error)),
            }
        }
    }

    /// The source is another version: that takes the place of the whole file.
    async fn report_replacement(&self, report: &mut TaskReport) -> Result<(), FileError> {
        report.replacement =
            Some(current_version(self.job, self.source, self.entry, self.manifest).await?);
        Ok(())
    }
}

/// The file as what it is now, as work that takes the place of the whole file.
async fn current_version(
    job: Job<'_>,
    source: &Tree,
    entry: &Entry,
    manifest: &Manifest,
) -> Result<WorkItem, FileError> {
    let (source, path, dirs) = (source.clone(), entry.path.clone(), manifest.dirs.clone());
    let other = |message: &str| FileError {
        class: ErrorClass::Changed,
        ..super::job::entry_error(entry.path.as_bytes(), "read source", message)
    };
    let links = job.assignment.options.links;
    let (chunk, by_data) = (job.chunk_bytes(), job.splits_by_data());
    let look = move || {
        let (mut entry, dirs) = source.find_entry(&path, links)?;
        if by_data {
            source.measure_stored_bytes(&mut entry, chunk);
        }
        Ok((entry, dirs))
    };
    let looked: Result<crate::fs::Result<_>, _> = tokio::task::spawn_blocking(look).await;
    let (entry, _) = match looked {
        Ok(looked) => looked.map_err(|e| e.to_file_error())?,
        Err(_) => {
            return Err(other("reading the source panicked; see the log"));
        }
    };
    if entry.kind == EntryKind::Dir {
        return Err(other("it is a directory now; sync again to copy what is in it"));
    }
    single_item(entry, &dirs, chunk, by_data).ok_or_else(|| other("it cannot be described"))
}
