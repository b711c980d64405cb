//! Transfers a range of a large file into its part file, or compares it.

use super::batch::BatchBuilder;
use super::batch_outcome::{count_action, created_dir_records};
use super::job::{Job, JobResult, TaskOutcome, failure_report, run_blocking};
use crate::data::outcome::{OfferOutcome, PackOutcome, RangeError, RangeMode, WrittenRange};
use crate::data::protocol::validate_range;
use crate::data::{CloneOutcome, Destination, WrittenFile};
use crate::fs::{self, OfferDecision, Tree};
use crate::util::repeated_warnings::warn_ratelimited;
use crate::wire::entry_report::EntryAction;
use crate::wire::manifest::{Entry, EntryKind, Manifest};
use crate::wire::outcome::{EntryError, ErrorClass, Side};
use crate::wire::task::{TaskReport, WorkItem};

/// Transfers `length` bytes at `offset` of the only file of `manifest` to one of the destination workers, or only
/// compares them there.
pub(super) async fn transfer_range(
    job: Job<'_>,
    manifest: Manifest,
    (offset, length): (u64, u64),
    compare: bool,
) -> JobResult<TaskOutcome> {
    let source = job.open_source().await?;
    let [entry] = manifest.entries.as_slice() else {
        let why = format!("a range holds one file, not {}", manifest.entries.len());
        return Ok(TaskOutcome::failed(why));
    };
    validate_range(offset, length, entry.size()).map_err(TaskOutcome::failed)?;
    if let Err(error) = job.require_range_digest(entry) {
        let error = job.with_observer(error.to_entry_error(), &job.cx.worker_id);
        return Ok(TaskOutcome::succeeded(failure_report(error)));
    }
    let mut picker = job.destination_picker();
    while let Some(to) = picker.pick_next() {
        let range = (offset, length);
        let (source, manifest, report) = (&source, &manifest, TaskReport::default());
        let mut transfer = RangeTransfer { job, to: &to, source, manifest, entry, range, report };
        let transferred = transfer.run(compare).await;
        let mut report = transfer.report;
        match transferred {
            Ok(()) => return Ok(TaskOutcome::succeeded(report)),
            Err(RangeError::Entry(error)) => {
                report.failures.push(job.with_observer(*error, to.worker()));
                return Ok(TaskOutcome::succeeded(report));
            }
            Err(RangeError::Send(error)) => picker.record_failure(to.worker(), &error),
        }
    }
    Ok(picker.fail_exhausted())
}

/// The transfer of a range to one destination.
struct RangeTransfer<'a> {
    job: Job<'a>,
    to: &'a Destination,
    source: &'a Tree,
    manifest: &'a Manifest,
    entry: &'a Entry,
    range: (u64, u64),
    report: TaskReport,
}

impl RangeTransfer<'_> {
    async fn run(&mut self, compare: bool) -> Result<(), RangeError> {
        // The offer also creates the directories above the file.
        let mut offered = self.to.offer(self.manifest).await?;
        self.job.mark_wrote(self.to.worker());
        let created_dirs = std::mem::take(&mut offered.created_dirs);
        self.report.records = created_dir_records(&self.job.assignment.options, created_dirs);
        self.report.needs_clean_up = offered.needs_clean_up;
        // Where the destination compares digests it has a file of the same size, which may have equal blocks.
        let (action, has_basis) = match offered.results.first().cloned().transpose()? {
            Some(OfferDecision::Done(action)) => {
                self.report_in_place(action, offered);
                return Ok(());
            }
            Some(OfferDecision::NeedsDigest) if compare => return self.compare_range().await,
            _ if compare => {
                self.report.differs = true;
                return Ok(());
            }
            Some(OfferDecision::NeedsContent { action, has_basis }) => (action, has_basis),
            Some(OfferDecision::NeedsDigest) | None => (EntryAction::Update, true),
        };
        match self.to.clone_file(self.source, self.manifest).await? {
            CloneOutcome::Cloned(packed) => match self.report_cloned(action, packed) {
                Err(error) => self.replace_if_changed(error.into()).await,
                Ok(()) => Ok(()),
            },
            CloneOutcome::NotNeeded(offered) => {
                // The transfer of another range has completed the file.
                if let Some(OfferDecision::Done(action)) =
                    offered.results.first().cloned().transpose()?
                {
                    self.report_in_place(action, offered);
                }
                Ok(())
            }
            CloneOutcome::Unavailable => self.send_range(has_basis).await,
        }
    }

    fn count_action(&mut self, action: EntryAction, file: WrittenFile) {
        count_action(&mut self.report, &self.job.assignment.options, self.entry, action, file);
    }

    /// The whole file is up to date, kept, or was linked.
    fn report_in_place(&mut self, action: EntryAction, offered: OfferOutcome) {
        let digest = offered.digests.first().copied().flatten();
        self.report.unchanged = true;
        self.report.warnings = offered.warnings;
        self.count_action(
            action,
            WrittenFile { bytes: self.entry.size(), digest, relay_digest: None },
        );
    }

    fn report_cloned(
        &mut self,
        action: EntryAction,
        packed: PackOutcome,
    ) -> Result<(), EntryError> {
        for error in packed.dir_errors {
            // The entry of the directory reports a permanent error.
            warn_ratelimited!(error.describe_cause(), "{error}");
        }
        self.report.needs_clean_up |= packed.needs_clean_up;
        self.report.bytes_cloned = packed.cloned;
        let Some(written) = packed.files.into_iter().next().transpose()? else { return Ok(()) };
        self.report.unchanged = true;
        (self.report.files_done, self.report.bytes_done) = (1, written.bytes);
        self.report.warnings = packed.warnings;
        self.count_action(action, written);
        Ok(())
    }

    async fn compare_range(&mut self) -> Result<(), RangeError> {
        match self.to.compare(self.source, self.manifest, self.entry, self.range).await {
            Ok(Some(digest)) => {
                self.job.verify_relayed_range(self.entry, Some(digest))?;
                self.report.digest = Some(digest);
            }
            Ok(None) => self.report.differs = true,
            Err(error) => return self.replace_if_changed(error).await,
        }
        Ok(())
    }

    /// Sends the range; where the destination has a basis file, without the blocks that it has.
    async fn send_range(&mut self, has_basis: bool) -> Result<(), RangeError> {
        let RangeTransfer { job, to, source, manifest, entry, range, .. } = *self;
        let delta = has_basis && !job.assignment.options.whole_file;
        let mut mode = if delta { RangeMode::Delta } else { RangeMode::Whole };
        loop {
            match to.transfer_range(source, manifest, entry, range, mode).await {
                Ok(WrittenRange { value, sent, kept }) => {
                    self.report.bytes_sent += sent;
                    // What was written of a damaged range is not reported as done: it is sent again.
                    job.verify_relayed_range(entry, value)?;
                    self.report.bytes_done = range.1;
                    self.report.digest = value;
                    self.report.bytes_kept = kept;
                    return Ok(());
                }
                // The destination may be unable to read its file and still able to replace it.
                Err(RangeError::Entry(error))
                    if mode == RangeMode::Delta && !error.is_reader_error() =>
                {
                    let sync = &job.assignment.request_id;
                    tracing::debug!(%sync, "a range is sent whole: {error}");
                    mode = RangeMode::Whole;
                }
                Err(error) => return self.replace_if_changed(error).await,
            }
        }
    }

    /// Where the source changed, a work item of its current version replaces that of the whole file.
    async fn replace_if_changed(&mut self, error: RangeError) -> Result<(), RangeError> {
        match error {
            RangeError::Entry(error)
                if error.class == ErrorClass::Changed && error.is_source_error() =>
            {
                self.report.replacement = Some(self.current_version().await?);
                Ok(())
            }
            error => Err(error),
        }
    }

    async fn current_version(&self) -> Result<WorkItem, EntryError> {
        let RangeTransfer { job, entry, manifest, .. } = self;
        let changed = |message: &str| EntryError {
            class: ErrorClass::Changed,
            ..EntryError::new(entry.path.as_bytes(), Side::Source, "read", message)
        };
        let (source, path) = (self.source.clone(), entry.path.clone());
        let (builder, links) = (job.batch_builder(), job.assignment.options.links);
        let identity = source.identity().clone();
        let find = move || -> fs::Result<(Entry, BatchBuilder)> {
            let (mut entry, _) = source.find_entry(&path, links)?;
            builder.measure_data(&source, &mut entry);
            Ok((entry, builder))
        };
        let found = run_blocking(&identity, "reading the source", find).await;
        let found = found.map_err(|_| changed("reading the source panicked; see the log"))?;
        let (entry, mut builder) = found.map_err(|e| e.to_entry_error())?;
        if entry.kind == EntryKind::Dir {
            return Err(changed("it is a directory now; sync again to copy what is in it"));
        }
        builder.add_entry(entry, &manifest.dirs);
        builder.take_page().work.pop().ok_or_else(|| changed("it cannot be described"))
    }
}
