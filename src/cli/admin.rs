//! `ctl admin …`: what operators of the installation do.

use super::args::{AdminCommand, OutputFormat};
use super::error::CliError;
use super::exit::Exit;
use super::{Context, backup, console};
use crate::util::units;
use crate::wire::admin::{ConfirmClockReply, ReconcileReply};
use std::time::Duration;

/// Runs one of the commands.
///
/// # Errors
/// The master can't be asked.
pub(super) async fn run(ctx: &Context, command: AdminCommand) -> Result<Exit, CliError> {
    match command {
        AdminCommand::Backup { file } => backup::run(ctx, &file).await?,
        AdminCommand::Reconcile => {
            let done = ctx.new_client()?.reconcile().await?;
            match ctx.global.output {
                OutputFormat::Json => console::write_data(&done.body)?,
                OutputFormat::Table if ctx.global.quiet => {}
                OutputFormat::Table => console::write_data(reconcile_text(&done).as_bytes())?,
            }
        }
        AdminCommand::ConfirmClock => {
            let done = ctx.new_client()?.confirm_clock().await?;
            match ctx.global.output {
                OutputFormat::Json => console::write_data(&done.body)?,
                OutputFormat::Table if ctx.global.quiet => {}
                OutputFormat::Table => console::write_data(confirmation_text(&done).as_bytes())?,
            }
        }
    }
    Ok(Exit::Ok)
}

/// What was confirmed, in words.
fn confirmation_text(done: &ConfirmClockReply) -> String {
    let by = units::format_duration(Duration::from_secs(done.ahead_seconds.unsigned_abs()));
    let side = if done.ahead_seconds < 0 { "behind" } else { "ahead of" };
    format!(
        "The clock of the master shows {}, {by} {side} what was expected, and is accepted from now on",
        done.time
    )
}

/// What was put right, in words.
fn reconcile_text(done: &ReconcileReply) -> String {
    let mut lines: Vec<String> = Vec::new();
    for task in &done.requeued {
        let (kind, sync, worker) = (&task.kind, &task.request_id, &task.worker_id);
        lines
            .push(format!("{kind} of sync {sync} was taken from worker {worker}: {}", task.reason));
    }
    let more = done.requeued_tasks.saturating_sub(done.requeued.len() as u64);
    let counts = [
        (more, ["more task was", "more tasks were"], "taken from workers that do not hold them"),
        (done.dropped_records, ["record was", "records were"], "orphaned: removed"),
        (done.dropped_blobs, ["manifest was", "manifests were"], "orphaned: removed"),
        (
            done.restored_records,
            ["record was", "records were"],
            "missing in the store: written again",
        ),
    ];
    let counts = counts.iter().filter(|(n, ..)| *n > 0);
    lines.extend(
        counts.map(|(n, [one, many], what)| format!("{} {what}", units::pluralize(*n, one, many))),
    );
    for sync in &done.restarted_syncs {
        lines.push(format!("sync {sync} was restarted: manifests were missing in the store"));
    }
    if lines.is_empty() {
        lines.push("No inconsistency was found; nothing was changed".to_owned());
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_confirmation_of_the_clock_names_its_offset() {
        let of = |ahead_seconds| {
            confirmation_text(&ConfirmClockReply {
                time: jiff::Timestamp::UNIX_EPOCH,
                ahead_seconds,
            })
        };
        assert!(
            of(400 * 86_400).contains("1970-01-01T00:00:00Z, 400d00h ahead of what"),
            "{}",
            of(34_560_000)
        );
        assert!(of(-7_200).contains("2h00m behind what"), "{}", of(-7_200));
    }

    #[test]
    fn the_result_of_reconcile_is_printed_also_when_nothing_changed() {
        assert!(reconcile_text(&ReconcileReply::default()).contains("nothing was changed"));
        let done = ReconcileReply {
            requeued_tasks: 3,
            dropped_blobs: 2,
            restarted_syncs: vec!["demo".parse().unwrap()],
            ..ReconcileReply::default()
        };
        let text = reconcile_text(&done);
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(
            text.starts_with("3 more tasks") && text.contains("sync demo was restarted"),
            "{text}"
        );
    }
}
