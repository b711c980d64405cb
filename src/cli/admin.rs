//! `ctl admin …`: what operators of the installation do.

use super::args::{AdminCommand, Output};
use super::exit::Exit;
use super::failure::Failure;
use super::{Context, out};
use crate::wire::admin::Reconciled;

/// Runs one of the commands.
///
/// # Errors
/// The master can't be asked.
pub(super) async fn run(ctx: &Context, command: AdminCommand) -> Result<Exit, Failure> {
    match command {
        AdminCommand::Reconcile => {
            let done = ctx.client()?.reconcile().await?;
            match ctx.global.output {
                Output::Json => out::data(&done.body)?,
                Output::Table if ctx.global.quiet => {}
                Output::Table => out::data(told(&done).as_bytes())?,
            }
        }
    }
    Ok(Exit::Ok)
}

/// What was put right, in words.
fn told(done: &Reconciled) -> String {
    let mut lines: Vec<String> = Vec::new();
    for task in &done.requeued {
        let (kind, sync, worker) = (&task.kind, &task.request_id, &task.worker_id);
        lines.push(format!("{kind} of sync {sync} was taken from worker {worker}: {}", task.why));
    }
    let more = done.requeued_tasks.saturating_sub(done.requeued.len() as u64);
    let counts = [
        (more, "more tasks were taken from workers that do not hold them"),
        (done.dropped_records, "records in the store belonged to nothing and were dropped"),
        (done.dropped_blobs, "manifests in the store belonged to nothing and were dropped"),
        (done.restored_records, "records were missing in the store and were written again"),
    ];
    let counts = counts.iter().filter(|(n, _)| *n > 0);
    lines.extend(counts.map(|(n, what)| format!("{n} {what}")));
    for sync in &done.restarted_syncs {
        lines.push(format!("sync {sync} began anew: manifests were missing in the store"));
    }
    if lines.is_empty() {
        lines.push("Everything fits together; nothing was changed".to_owned());
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_right_is_told_in_words_and_nothing_too() {
        assert!(told(&Reconciled::default()).contains("nothing was changed"));
        let done = Reconciled {
            requeued_tasks: 3,
            dropped_blobs: 2,
            restarted_syncs: vec!["demo".parse().unwrap()],
            ..Reconciled::default()
        };
        let text = told(&done);
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(
            text.starts_with("3 more tasks") && text.contains("sync demo began anew"),
            "{text}"
        );
    }
}
