//! `ctl storage …`: the storages that workers see, and how it is known which are the same.

use super::args::{OutputFormat, StorageCommand};
use super::details::Details;
use super::error::Result;
use super::exit::Exit;
use super::sanitize::sanitize;
use super::sync_text::{first_names, or_dash};
use super::table_layout::{Column, render_table, shorten_list, terminal_width};
use super::{Context, console};
use crate::util::units;
use crate::wire::WorkerId;
use crate::wire::storage::{StorageEvidence, StorageView, StorageWorker};

/// More workers of a storage are only counted; `-o wide` shows all of them.
const MAX_LISTED_WORKERS: usize = 3;

/// # Errors
/// The master can't be reached, or there is no such storage.
pub(super) async fn run(ctx: &Context, command: StorageCommand) -> Result<Exit> {
    let client = ctx.new_client()?;
    match command {
        StorageCommand::List => {
            let list = client.list_storages().await?;
            let ids: String =
                list.storages.iter().map(|one| format!("{}\n", one.storage_id)).collect();
            let table = match ctx.global.output {
                OutputFormat::Wide => wide_storage_table(&list.storages),
                _ => storage_table(&list.storages, terminal_width()),
            };
            ctx.print(&list.body, &ids, &table)?;
            if list.storages.is_empty() && ctx.global.is_text() {
                console::print_note("no worker has named a storage path: ctl workers list");
            }
        }
        StorageCommand::Show { id } => {
            let storage = client.get_storage(&id).await?;
            let text = storage_details(&storage);
            ctx.print(&storage.body, &text, &text)?;
        }
    }
    Ok(Exit::Ok)
}

fn storage_table(storages: &[StorageView], width: Option<usize>) -> String {
    let columns = [
        Column::new("STORAGE"),
        Column::new("PATH"),
        Column { shortening: Some((16, shorten_list)), ..Column::new("WORKERS") },
        Column { omit_order: Some(1), ..Column::new("TYPE") },
        Column { omit_order: Some(2), ..Column::new("FREE") },
        Column::new("KNOWN"),
        Column { is_below_row: true, ..Column::new("REASON") },
    ];
    let rows = storages.iter().map(|storage| storage_row(storage, MAX_LISTED_WORKERS));
    render_table(&columns, rows.collect(), width)
}

/// As the table, with all workers and with the storages that were not compared yet.
fn wide_storage_table(storages: &[StorageView]) -> String {
    let columns =
        ["STORAGE", "PATH", "WORKERS", "TYPE", "FREE", "KNOWN", "NOT COMPARED WITH", "REASON"];
    let row = |storage: &StorageView| {
        let mut row = storage_row(storage, usize::MAX);
        row.insert(6, not_compared_text(storage).unwrap_or_else(|| "-".to_owned()));
        row
    };
    render_table(&columns.map(Column::new), storages.iter().map(row).collect(), None)
}

fn storage_row(storage: &StorageView, max_workers: usize) -> Vec<String> {
    let ids: Vec<&WorkerId> = storage.workers.iter().map(|worker| &worker.worker_id).collect();
    vec![
        storage.storage_id.to_string(),
        storage.path.to_string(),
        first_names(&ids, max_workers, ","),
        or_dash(storage.fs_type.as_deref().map(sanitize)),
        or_dash(storage.free_bytes.map(units::format_bytes)),
        known_text(storage).to_owned(),
        error_text(storage).unwrap_or_default(),
    ]
}

/// How it is known which workers see a storage: by the weakest evidence of them.
fn known_text(storage: &StorageView) -> &'static str {
    if !storage.not_compared_with.is_empty() {
        return "not compared";
    }
    let has = |evidence| storage.workers.iter().any(|worker| worker.evidence == evidence);
    let by_strength = [StorageEvidence::Declared, StorageEvidence::Likely, StorageEvidence::Proved];
    let weakest = by_strength.into_iter().find(|evidence| has(*evidence));
    weakest.unwrap_or(StorageEvidence::Single).as_str()
}

fn not_compared_text(storage: &StorageView) -> Option<String> {
    let ids: Vec<&str> = storage.not_compared_with.iter().map(|id| id.as_str()).collect();
    (!ids.is_empty()).then(|| ids.join(","))
}

/// The first worker that is not used there, and how many more there are.
fn error_text(storage: &StorageView) -> Option<String> {
    let mut errors =
        storage.workers.iter().filter_map(|worker| Some((worker, worker.error.as_ref()?)));
    let (worker, error) = errors.next()?;
    let more = match errors.count() {
        0 => String::new(),
        n => format!(" (and {n} more: ctl storage show {})", storage.storage_id),
    };
    Some(format!("{} is not used: {}{more}", worker.worker_id, sanitize(error)))
}

/// Everything about one storage, with a line for each worker.
fn storage_details(storage: &StorageView) -> String {
    let mut details = Details::default();
    details.add("Storage", storage.storage_id.to_string());
    details.add("Path", storage.path.to_string());
    details.add("Type", or_dash(storage.fs_type.as_deref().map(sanitize)));
    details.add("Free", or_dash(storage.free_bytes.map(units::format_bytes)));
    details.add("Known", known_text(storage));
    let unclear = not_compared_text(storage);
    details.add_some("Unclear", unclear.map(|ids| format!("whether it is the same as {ids}")));
    let columns = ["WORKER", "STATE", "EVIDENCE", "LOCAL PATH", "MOUNT SOURCE", "ERROR"];
    let row = |worker: &StorageWorker| {
        vec![
            worker.worker_id.to_string(),
            if worker.active { "ACTIVE" } else { "INACTIVE" }.to_owned(),
            worker.evidence.as_str().to_owned(),
            worker.local_path.as_ref().unwrap_or(&storage.path).to_string(),
            or_dash(worker.mount_source.as_deref().map(sanitize)),
            worker.error.as_deref().map(sanitize).unwrap_or_default(),
        ]
    };
    let rows = storage.workers.iter().map(row).collect();
    format!("{}\n{}", details.render(), render_table(&columns.map(Column::new), rows, None))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::AbsPath;
    use crate::wire::testing::storage_view;

    fn worker(id: &str, evidence: StorageEvidence) -> StorageWorker {
        let worker = storage_view("s", "/").workers.remove(0);
        StorageWorker { worker_id: id.parse().unwrap(), evidence, ..worker }
    }

    fn shared() -> StorageView {
        let ids = ["gpu-1", "gpu-2", "gpu-3", "gpu-4", "login"];
        let workers = ids.map(|id| worker(id, StorageEvidence::Proved)).to_vec();
        StorageView {
            fs_type: Some("lustre".into()),
            workers,
            ..storage_view("lustre-1", "/lustre")
        }
    }

    #[test]
    fn a_storage_is_one_line_and_of_many_workers_the_first_are_shown() {
        let local = storage_view("s-1a2b3c4d", "/scratch");
        let text = storage_table(&[shared(), local], None);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "STORAGE     PATH      WORKERS               TYPE    FREE     KNOWN   REASON",
                "lustre-1    /lustre   gpu-1,gpu-2,gpu-3,+2  lustre  1.0 TiB  proved",
                "s-1a2b3c4d  /scratch  w1                    ext4    1.0 TiB  single",
            ]
        );
        assert!(wide_storage_table(&[shared()]).contains("gpu-3,gpu-4,login"));
    }

    #[test]
    fn the_weakest_evidence_is_shown_and_a_missing_comparison_first_of_all() {
        use StorageEvidence::{Declared, Likely, Proved, Single};
        for (evidence, known) in [
            (&[Single][..], "single"),
            (&[Single, Proved], "proved"),
            (&[Single, Proved, Likely], "likely"),
            (&[Likely, Declared, Proved], "declared"),
            (&[], "single"),
        ] {
            let workers = evidence.iter().map(|one| worker("w", *one)).collect();
            let storage = StorageView { workers, ..shared() };
            assert_eq!(known_text(&storage), known);
            let other = vec!["s-2".parse().unwrap()];
            assert_eq!(
                known_text(&StorageView { not_compared_with: other, ..storage }),
                "not compared"
            );
        }
    }

    #[test]
    fn a_worker_that_is_not_used_is_named_with_the_reason() {
        let mut storage = shared();
        storage.workers[1].error = Some("sees another file tree\x1b".into());
        let text = storage_table(std::slice::from_ref(&storage), None);
        assert!(text.contains("gpu-2 is not used: sees another file tree\\#033"), "{text}");
        storage.workers[4].error = Some("x".into());
        let text = storage_table(std::slice::from_ref(&storage), Some(80));
        assert!(text.contains("(and 1 more: ctl storage show"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }

    #[test]
    fn the_details_of_a_storage_have_a_line_for_each_worker() {
        let mut storage = shared();
        storage.workers.truncate(2);
        storage.workers[1] = StorageWorker {
            active: false,
            local_path: Some(AbsPath::new("/mnt/l").unwrap()),
            mount_source: Some("nid1:/lustre".into()),
            ..storage.workers[1].clone()
        };
        storage.not_compared_with = vec!["s-1".parse().unwrap(), "s-2".parse().unwrap()];
        let text = storage_details(&storage);
        assert!(text.starts_with("Storage:     lustre-1\nPath:        /lustre\n"), "{text}");
        assert!(text.contains("Unclear:     whether it is the same as s-1,s-2\n"), "{text}");
        for line in [
            "gpu-1   ACTIVE    proved    /lustre     /dev/sda1",
            "gpu-2   INACTIVE  proved    /mnt/l      nid1:/lustre",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
    }
}
