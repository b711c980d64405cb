//! What the options of a sync mean for its tasks in the present phase.

use super::phase::{PhaseFacts, PhaseState};
use super::sync_job::SyncJob;
use crate::wire::options::{Chown, Compare, SyncOptions, Verify, WriteRules};
use crate::wire::preserve::{Attribute, Preserve};
use crate::wire::task::TaskSpec;
use crate::wire::ticket::PrunePermit;

impl SyncJob {
    /// Whether only workers with support for limits may send for it. A limit of the whole
    /// installation does not exclude agents without that support.
    pub(super) fn is_limited(&self) -> bool {
        self.bwlimit.is_some()
    }

    /// The permit in the ticket of a walk over extraneous entries.
    pub(super) fn prune_permit(&self, spec: &TaskSpec) -> Option<PrunePermit> {
        let TaskSpec::Prune { apply, .. } = spec else { return None };
        let deletion = self.deleter.as_ref().filter(|_| *apply).map(|d| d.deletion.clone());
        Some(deletion.map_or(PrunePermit::Count, PrunePermit::Delete))
    }

    /// The options of one of its tasks. Only walks get the filter.
    pub(super) fn task_options(&self, spec: &TaskSpec) -> SyncOptions {
        let mut options = self.request.options.clone();
        options.allow_overlap = false;
        if *spec == TaskSpec::CleanUp && !self.is_active() {
            // Another sync may use the destination already, so the metadata of the root are not set.
            (options.preserve, options.chown) = (Preserve::NONE, Chown::default());
        }
        if self.phase == PhaseState::Readback {
            options.compare = Compare::Checksum;
        }
        if matches!(spec, TaskSpec::Scan { .. } | TaskSpec::List { .. } | TaskSpec::Prune { .. }) {
            options.filter = self.filter.clone();
        }
        options
    }

    /// The rules by which one of its tasks writes, with the [options](SyncJob::task_options) of the task.
    pub(super) fn write_rules(&self, spec: &TaskSpec, options: &SyncOptions) -> WriteRules {
        let readback = self.phase == PhaseState::Readback;
        let mut rules = WriteRules { readback, ..options.write_rules() };
        if matches!(spec, TaskSpec::Range { compare: true, .. }) {
            // The range is compared by content, whatever the operator chose.
            rules.compare = Compare::Checksum;
        }
        rules
    }

    /// Whether it needs a worker that supports options.
    pub(super) fn has_nondefault_options(&self) -> bool {
        // No agent needs this option.
        let allow_overlap = self.request.options.allow_overlap;
        let default = SyncOptions { allow_overlap, ..SyncOptions::default() };
        let requested = self.request.options != default || self.filter_key().is_some();
        // An agent without options would act with its own rights.
        requested || self.request.run_as.is_some() || self.recheck.has_begun()
    }

    pub(super) fn is_dry_run(&self) -> bool {
        self.request.options.dry_run
    }

    /// Whether large files are compared before they are sent. This also computes digests of present
    /// files, if requested: each range is read once, by any worker.
    pub(super) fn compares_large_files(&self) -> bool {
        let options = &self.request.options;
        self.phase == PhaseState::Readback
            || options.compare == Compare::Checksum
            || options.manifest
    }

    /// Whether its destinations can share scans and send each other what they got: content is moved, and the destination
    /// does not compare it with the source first.
    pub(super) fn can_share_scans(&self) -> bool {
        let options = &self.request.options;
        !options.dry_run && !options.manifest && options.compare != Compare::Checksum
    }

    /// Whether the first range of a large file decides if the others are compared.
    pub(super) fn probes_first_range(&self) -> bool {
        self.phase == PhaseState::Copy
            && self.request.options.manifest
            && self.request.options.compare != Compare::Checksum
    }

    /// Whether found and done entries are counted: later passes only check what was counted.
    pub(super) fn counts_entries(&self) -> bool {
        self.phase == PhaseState::Copy
    }

    /// Whether hard links are preserved, which needs anchors at the destination.
    pub(super) fn keeps_hard_links(&self) -> bool {
        !self.is_dry_run() && self.request.options.preserve.contains(Attribute::Hardlinks)
    }

    /// The phase that follows, if any.
    pub(super) fn next_phase(&self) -> Option<PhaseState> {
        let options = &self.request.options;
        self.phase.next(&PhaseFacts {
            dry_run: options.dry_run,
            verifies: options.verify == Verify::Readback,
            mirrors: options.delete.is_some(),
            failed: !self.error_counts.is_empty(),
            hard_failure: self.has_hard_failures || self.source_root_failed,
            stopped: self.mirror_stop.is_some(),
            recheck: self.recheck.is_pending,
            rechecked: self.recheck.is_after_count,
            extraneous: self.counters.extraneous.extraneous > 0,
            blocked: !self.blocked.is_empty(),
            anchors: self.needs_clean_up,
            unflushed: !self.unflushed_writers.is_empty(),
        })
    }
}
