//! `ctl admin …`: maintenance of the installation.

use super::Context;
use super::args::{AdminCommand, RotateCommand};
use super::error::{CliError, Result};
use super::exit::Exit;
use super::pending_file::PendingFile;
use super::sanitize::display_path;
use crate::util::{checksum, units};
use crate::wire::WorkerId;
use crate::wire::admin::{AuthorityView, ConfirmClockReply, ReconcileReply, RotateTicketKeyReply};
use serde_json::json;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::time::Duration;

/// # Errors
/// The master can't be reached, or refuses the command.
pub(super) async fn run(ctx: &Context, command: AdminCommand) -> Result<Exit> {
    match command {
        AdminCommand::Backup { file } => back_up(ctx, &file).await?,
        AdminCommand::Reconcile => {
            let reply = ctx.new_client()?.reconcile().await?;
            ctx.print(&reply.body, "", &reconcile_text(&reply))?;
        }
        AdminCommand::Rotate { key: RotateCommand::TicketKey } => {
            let reply = ctx.new_client()?.rotate_ticket_key().await?;
            ctx.print(&reply.body, "", &rotation_text(&reply))?;
        }
        AdminCommand::Rotate { key: RotateCommand::Ca { status, finish, force } } => {
            let client = ctx.new_client()?;
            let reply = match (status, finish) {
                (true, _) => client.get_authority().await?,
                (false, true) => client.finish_rotation(force).await?,
                (false, false) => client.rotate_authority().await?,
            };
            ctx.print(&reply.body, "", &authority_text(&reply))?;
        }
        AdminCommand::ConfirmClock => {
            let reply = ctx.new_client()?.confirm_clock().await?;
            ctx.print(&reply.body, "", &confirmation_text(&reply))?;
        }
    }
    Ok(Exit::Ok)
}

/// Copies the store into `file`, which appears complete or not at all.
///
/// # Errors
/// `file` exists or can't be written; the master can't be reached, or keeps its state in Redis.
async fn back_up(ctx: &Context, file: &Path) -> Result<()> {
    let shown = display_path(file);
    let write_error = |e: std::io::Error| match e.kind() {
        ErrorKind::AlreadyExists => CliError::new(format!("{shown} exists and is not overwritten"))
            .with_hint("name a file that does not exist, or remove this one"),
        _ => CliError::new(format!("cannot write the backup {shown}: {e}")),
    };
    match file.symlink_metadata() {
        Ok(_) => return Err(write_error(ErrorKind::AlreadyExists.into())),
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(write_error(e)),
    }
    let mut pending = PendingFile::create(file, 0o600).map_err(write_error)?;
    let mut body = ctx.new_client()?.download_backup().await?;
    let (mut checksum, mut bytes) = (checksum::ChecksumHasher::default(), 0_u64);
    while let Some(chunk) = body.next_chunk().await? {
        checksum.update(&chunk);
        bytes += chunk.len() as u64;
        pending.file.write_all(&chunk).map_err(write_error)?;
    }
    if body.checksum() != Some(checksum.header_value()) {
        return Err(CliError::from(body.corruption_error()));
    }
    pending.publish(file, false).map_err(write_error)?;
    let text = format!("the store is copied to {shown} ({})", units::format_bytes(bytes));
    ctx.print(json!({"file": file, "bytes": bytes}).to_string().as_bytes(), "", &text)
}

fn confirmation_text(reply: &ConfirmClockReply) -> String {
    let offset = units::format_duration(Duration::from_secs(reply.ahead_seconds.unsigned_abs()));
    let side = if reply.ahead_seconds < 0 { "behind" } else { "ahead of" };
    format!(
        "The clock of the master shows {}, {offset} {side} the expected time, and is accepted from now on",
        reply.time
    )
}

fn rotation_text(reply: &RotateTicketKeyReply) -> String {
    let [signs_in, valid] = [reply.signs_in_seconds, reply.previous_valid_seconds]
        .map(|seconds| units::format_duration(Duration::from_secs(seconds)));
    format!(
        "Tickets are signed with the key {} in {signs_in}, when all agents have its public key; those of the key {} are \
         accepted for {valid}",
        reply.key_id, reply.previous_key_id
    )
}

fn authority_text(view: &AuthorityView) -> String {
    let AuthorityView { authority, agents, previous } = view;
    let Some(previous) = previous else {
        return format!("The certificate authority is {authority}; it replaced no other one");
    };
    let former = &previous.authority;
    if let Some(finished_at) = previous.finished_at {
        return format!(
            "The certificate authority is {authority}; certificates of the former one, {former}, are refused since \
             {finished_at}"
        );
    }
    let (left, since) = (previous.agents_left, previous.replaced_at);
    let progress = format!(
        "The certificate authority is {authority} since {since}; certificates of the former one, {former}, are accepted \
         until the rotation is finished"
    );
    let next = if left == 0 {
        let agents = units::pluralize(*agents, "agent", "agents");
        format!(
            "All {agents} have certificates of the new authority; finish the rotation: ctl admin rotate ca --finish"
        )
    } else {
        let (have, of) =
            (if left == 1 { "has" } else { "have" }, units::pluralize(*agents, "agent", "agents"));
        let mut names: Vec<&str> = previous.workers_left.iter().map(WorkerId::as_str).collect();
        if names.len() as u64 != left {
            names.push("…");
        }
        format!(
            "{left} of {of} {have} not connected with a certificate of the new authority yet: {}; their certificates expire \
             by {}\nSee again: ctl admin rotate ca --status",
            names.join(", "),
            previous.certificates_end_at
        )
    };
    format!("{progress}\n{next}")
}

fn reconcile_text(reply: &ReconcileReply) -> String {
    let mut lines: Vec<String> = Vec::new();
    for task in &reply.requeued {
        let (kind, sync, worker) = (&task.kind, &task.request_id, &task.worker_id);
        lines
            .push(format!("{kind} of sync {sync} was taken from worker {worker}: {}", task.reason));
    }
    let more = reply.requeued_tasks.saturating_sub(reply.requeued.len() as u64);
    let records = ["record was", "records were"];
    for (n, [one, many], what) in [
        (more, ["more task was", "more tasks were"], "taken from workers that do not hold them"),
        (reply.dropped_records, records, "orphaned: removed"),
        (reply.dropped_blobs, ["manifest was", "manifests were"], "orphaned: removed"),
        (reply.restored_records, records, "missing in the store: written again"),
    ] {
        lines.extend((n > 0).then(|| format!("{} {what}", units::pluralize(n, one, many))));
    }
    for sync in &reply.restarted_syncs {
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
    fn a_rotation_names_both_keys_and_their_times() {
        let text = rotation_text(&RotateTicketKeyReply {
            key_id: "b1".into(),
            signs_in_seconds: 45,
            previous_key_id: "a1".into(),
            previous_valid_seconds: 1005,
        });
        assert!(text.contains("the key b1 in 45s") && text.contains("the key a1 are"), "{text}");
        assert!(text.contains("accepted for 16m45s"), "{text}");
    }

    #[test]
    fn the_state_of_the_authority_names_the_agents_that_are_left_and_the_next_command() {
        let at = jiff::Timestamp::UNIX_EPOCH;
        let previous = crate::wire::admin::PreviousAuthorityView {
            authority: crate::wire::Digest([1; 32]),
            replaced_at: at,
            certificates_end_at: at,
            finished_at: None,
            agents_left: 3,
            workers_left: vec!["a".parse().unwrap(), "b".parse().unwrap()],
        };
        let view = |previous| AuthorityView {
            authority: crate::wire::Digest([2; 32]),
            agents: 4,
            previous,
        };
        assert!(authority_text(&view(None)).ends_with("replaced no other one"));
        let text = authority_text(&view(Some(previous.clone())));
        assert!(
            text.contains("3 of 4 agents have not") && text.contains("yet: a, b, …;"),
            "{text}"
        );
        let (agents_left, workers_left) = (0, vec![]);
        let done =
            crate::wire::admin::PreviousAuthorityView { agents_left, workers_left, ..previous };
        assert!(authority_text(&view(Some(done.clone()))).ends_with("rotate ca --finish"));
        let finished = crate::wire::admin::PreviousAuthorityView { finished_at: Some(at), ..done };
        assert!(authority_text(&view(Some(finished))).contains("are refused since 1970"));
    }

    #[test]
    fn the_confirmation_of_the_clock_names_its_offset() {
        let of = |ahead_seconds| {
            confirmation_text(&ConfirmClockReply {
                time: jiff::Timestamp::UNIX_EPOCH,
                ahead_seconds,
            })
        };
        assert!(
            of(400 * 86_400).contains("1970-01-01T00:00:00Z, 400d00h ahead of the"),
            "{}",
            of(34_560_000)
        );
        assert!(of(-7_200).contains("2h00m behind the"), "{}", of(-7_200));
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
