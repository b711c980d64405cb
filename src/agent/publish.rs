//! The last steps of a large file (`commit`, `discard`) and of a sync (`flush`), at the destination.

use super::execute::{Done, Job};
use crate::fs::{Cause, Ranges, Target};
use crate::wire::Digest;
use crate::wire::manifest::{Entry, Manifest, merge_ranges};
use crate::wire::sync::FileError;
use crate::wire::task::TaskReport;

/// Publishes the part file of the only file of `manifest`, whose ranges have the values in `chain`.
pub async fn commit(job: Job<'_>, manifest: Manifest, range_length: u64, chain: &[u8]) -> Done {
    let values = match only(&manifest).and_then(|entry| values(entry, range_length, chain)) {
        Ok(values) => values,
        Err(why) => return Done::failed(why),
    };
    let digest = merge_ranges(&values);
    let report = TaskReport { files_done: 1, digest, ..TaskReport::default() };
    at_destination(job, manifest, report, move |target, entry| {
        let hashed = !values.is_empty();
        let ranges = hashed.then_some(Ranges { length: range_length, values: &values });
        target.publish_part(entry, ranges)
    })
    .await
}

/// Removes the part file of the only file of `manifest`.
pub async fn discard(job: Job<'_>, mut manifest: Manifest) -> Done {
    if let Err(why) = only(&manifest) {
        return Done::failed(why);
    }
    // The directories may have got other metadata since: they are not ours to stamp any more.
    manifest.dirs.clear();
    let report = TaskReport::default();
    at_destination(job, manifest, report, |target, entry| target.discard_part(entry)).await
}

/// Puts everything below the destination root on stable storage.
pub async fn flush(job: Job<'_>) -> Done {
    let target = match job.target() {
        Ok(target) => target,
        Err(done) => return *done,
    };
    match tokio::task::spawn_blocking(move || target.flush()).await {
        Ok(Ok(())) => Done::well(TaskReport::default()),
        Ok(Err(error)) => {
            let error = job.seen(error.to_file_error(), &job.cx.worker);
            Done { report: failures(error.clone()), ..Done::failed(error.message) }
        }
        Err(e) => Done::failed(format!("flushing failed inside: {e}")),
    }
}

fn failures(error: FileError) -> TaskReport {
    TaskReport { failures: vec![error], ..TaskReport::default() }
}

fn only(manifest: &Manifest) -> Result<&Entry, String> {
    match manifest.entries.as_slice() {
        [entry] => Ok(entry),
        all => Err(format!("a part file of {} files cannot be", all.len())),
    }
}

/// The chaining value of each range; none where they were not hashed.
fn values(entry: &Entry, range_length: u64, chain: &[u8]) -> Result<Vec<Digest>, String> {
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

/// Does `act` on the file at our own destination, and stamps the directories above it.
async fn at_destination(
    job: Job<'_>,
    manifest: Manifest,
    report: TaskReport,
    act: impl FnOnce(&Target, &Entry) -> crate::fs::Result<()> + Send + 'static,
) -> Done {
    let target = match job.target() {
        Ok(target) => target,
        Err(done) => return *done,
    };
    job.writers.wrote(&job.cx.worker);
    let work = tokio::task::spawn_blocking(move || {
        let done = manifest.entries.first().map_or(Ok(()), |entry| act(&target, entry));
        for error in target.stamp(&manifest.dirs) {
            // Its own entry says so where it lasts; publishing is not undone for it.
            tracing::warn!("{}", error.message);
        }
        done
    });
    match work.await {
        Ok(Ok(())) => Done::well(report),
        Ok(Err(error)) if error.cause == Cause::Lost => {
            tracing::warn!(sync = %job.assignment.request_id, "{error}");
            let error = job.seen(error.to_file_error(), &job.cx.worker);
            Done::well(TaskReport { part_lost: true, ..failures(error) })
        }
        Ok(Err(error)) => Done::entry_failed(job.seen(error.to_file_error(), &job.cx.worker)),
        Err(e) => Done::failed(format!("writing to the destination failed inside: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::RelPath;
    use crate::wire::manifest::{Ident, Kind, Meta};

    #[test]
    fn a_chain_must_have_one_value_for_each_range() {
        let entry = Entry::new(
            RelPath::new("f").unwrap(),
            Kind::File { size: 2049 },
            Meta { mode: 0, uid: 0, gid: 0, mtime_sec: 0, mtime_nsec: 0 },
            Ident::default(),
        );
        assert_eq!(values(&entry, 1024, &[]), Ok(Vec::new()));
        assert_eq!(values(&entry, 1024, &[1; 96]), Ok(vec![Digest([1; 32]); 3]));
        for length in [1, 64, 95, 97, 128] {
            assert!(values(&entry, 1024, &vec![1; length]).is_err(), "{length}");
        }
        assert!(values(&entry, 0, &[1; 96]).is_err());
    }
}
