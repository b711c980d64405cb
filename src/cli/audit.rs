//! `ctl audit …`: the audit log of the master on this host, read from its files.

use super::args::OutputFormat;
use super::audit_args::{AuditCommand, AuditListArgs, AuditLogArgs};
use super::error::{CliError, Result};
use super::exit::Exit;
use super::sanitize::{display_path, sanitize};
use super::{Context, console};
use crate::audit::{AuditEntry, AuditRecord, Head, Verification, open_files, read_lines, verify};
use crate::config::{Env, load_master};
use crate::util::units;
use serde_json::json;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// Printed before this number of bytes is collected.
const CHUNK_BYTES: usize = 64 << 10;
/// A shorter prefix of the id of a sync is not one.
const MIN_ID_PREFIX: usize = 8;

/// # Errors
/// The log cannot be read, or its chain is broken.
pub(super) fn run(ctx: &Context, command: AuditCommand) -> Result<Exit> {
    match command {
        AuditCommand::List(args) => list(ctx, &args),
        AuditCommand::Verify { log, head } => {
            let dir = data_dir(&log)?;
            let found = verify(&dir, head).map_err(|e| read_error(&dir, &e))?;
            print_verification(ctx, &dir, &found)
        }
    }
}

/// The data directory of the master.
fn data_dir(log: &AuditLogArgs) -> Result<PathBuf> {
    match &log.data_dir {
        Some(dir) => Ok(dir.clone()),
        None => Ok(load_master(log.config.as_deref(), &Env::from_process())?.config.data_dir),
    }
}

fn read_error(dir: &Path, error: &io::Error) -> CliError {
    let message = format!("cannot read the audit log in {}: {error}", display_path(dir));
    match error.kind() {
        ErrorKind::NotFound => no_log(dir),
        ErrorKind::PermissionDenied => CliError::new(message)
            .with_exit(Exit::Denied)
            .with_hint("run it as the user of the master, or as root"),
        _ => CliError::new(message),
    }
}

fn no_log(dir: &Path) -> CliError {
    CliError::new(format!("there is no audit log in {}", display_path(dir)))
        .with_exit(Exit::NotFound)
        .with_hint("name the configuration (--config FILE) or the data_dir (--data-dir DIR) of the master of this host")
}

fn list(ctx: &Context, args: &AuditListArgs) -> Result<Exit> {
    let dir = data_dir(&args.log)?;
    let files = open_files(&dir).map_err(|e| read_error(&dir, &e))?;
    if files.is_empty() {
        return Err(no_log(&dir));
    }
    let is_json = ctx.global.output == OutputFormat::Json;
    let mut printer = Printer { text: Vec::new(), is_read: true };
    if ctx.global.is_text() {
        printer.text.extend_from_slice(HEADER.as_bytes());
    }
    let mut unreadable = 0_u64;
    for (_, file) in &files {
        if !printer.is_read {
            break;
        }
        read_lines::<ListError>(file, |line, is_complete| {
            match serde_json::from_slice::<AuditRecord>(line) {
                Ok(record) if is_selected(&record, args) => match is_json {
                    true => printer.add(line),
                    false => printer.add(row(&record).as_bytes()),
                },
                Ok(_) => Ok(()),
                Err(_) => {
                    // The last line may be being written.
                    unreadable += u64::from(is_complete);
                    Ok(())
                }
            }
        })
        .or_else(|e| match e {
            ListError::Read(e) => Err(read_error(&dir, &e)),
            ListError::Print(e) => Err(e),
            ListError::Closed => Ok(()),
        })?;
    }
    printer.flush()?;
    if unreadable > 0 {
        let lines = units::pluralize(
            unreadable,
            "line is not a record and was",
            "lines are not records and were",
        );
        console::print_note(&format!("warning: {lines} left out: ctl audit verify says where"));
    }
    Ok(Exit::Ok)
}

/// Why reading lines ends before their end.
enum ListError {
    Read(io::Error),
    Print(CliError),
    /// Standard output is not read any more.
    Closed,
}

impl From<io::Error> for ListError {
    fn from(e: io::Error) -> Self {
        ListError::Read(e)
    }
}

/// Collects lines and prints them in chunks.
struct Printer {
    text: Vec<u8>,
    is_read: bool,
}

impl Printer {
    fn add(&mut self, line: &[u8]) -> Result<(), ListError> {
        self.text.extend_from_slice(line);
        self.text.push(b'\n');
        if self.text.len() >= CHUNK_BYTES {
            self.flush().map_err(ListError::Print)?;
        }
        if self.is_read { Ok(()) } else { Err(ListError::Closed) }
    }

    fn flush(&mut self) -> Result<()> {
        self.is_read = self.is_read && console::write_chunk(&std::mem::take(&mut self.text))?;
        Ok(())
    }
}

fn is_selected(record: &AuditRecord, args: &AuditListArgs) -> bool {
    let AuditEntry { sync, new_sync, principal, .. } = &record.entry;
    let names_sync = |wanted: &str| {
        let is_named =
            |id: &String| id == wanted || wanted.len() >= MIN_ID_PREFIX && id.starts_with(wanted);
        sync.iter().chain(new_sync).any(is_named)
    };
    args.since.is_none_or(|since| record.time >= since)
        && args.until.is_none_or(|until| record.time < until)
        && args.sync.as_deref().is_none_or(names_sync)
        && args.principal.as_ref().is_none_or(|wanted| principal.as_ref() == Some(wanted))
}

const HEADER: &str = "TIME                  PRINCIPAL           ADDRESS          ACTION                   OUTCOME                     OBJECT\n";

/// A line of the table, without a control character. Columns have fixed widths: the log may be too long to be measured
/// first.
fn row(record: &AuditRecord) -> String {
    let AuditEntry {
        action,
        principal,
        address,
        status,
        code,
        repeats,
        sync,
        new_sync,
        worker,
        token,
        source,
        destination,
        detail,
        installation,
        ..
    } = &record.entry;
    let mut outcome = status.map_or("-".to_owned(), |status| status.to_string());
    if let Some(code) = code {
        outcome.push_str(&format!(" {code}"));
    }
    if let Some(repeats) = repeats {
        outcome.push_str(&format!(" (x{repeats})"));
    }
    let mut object: Vec<String> = Vec::new();
    object.extend(sync.clone());
    object.extend(new_sync.as_ref().map(|id| format!("new sync {id}")));
    object.extend(worker.clone());
    object.extend(token.as_ref().map(|id| format!("token {id}")));
    if let (Some(source), Some(destination)) = (source, destination) {
        object.push(format!("{source} → {destination}"));
    }
    object.extend(installation.as_ref().map(|name| format!("installation {name}")));
    object.extend(detail.clone());
    let or_dash = |text: &Option<String>| sanitize(text.as_deref().unwrap_or("-"));
    let time = record.time.strftime("%Y-%m-%dT%H:%M:%SZ");
    let line = format!(
        "{time}  {:<18}  {:<15}  {:<23}  {:<26}  {}",
        or_dash(principal),
        or_dash(address),
        sanitize(action),
        sanitize(&outcome),
        sanitize(&object.join("  "))
    );
    line.trim_end().to_owned()
}

fn print_verification(ctx: &Context, dir: &Path, found: &Verification) -> Result<Exit> {
    if found.files.is_empty() {
        return Err(no_log(dir));
    }
    let broken = found.first_break.as_ref();
    let document = json!({
        "files": found.files,
        "lines": found.lines,
        "first": found.first_seq,
        "head": found.head.map(|head| head.to_string()),
        "installation": found.installation,
        "notes": found.notes,
        "broken": broken.map(|broken| json!({
            "file": broken.file, "line": broken.line, "meaning": broken.meaning,
        })),
    });
    ctx.print(document.to_string().as_bytes(), "", &verification_text(found))?;
    let Some(broken) = broken else { return Ok(Exit::Ok) };
    let place = format!("{} line {}", display_path(&broken.file), broken.line);
    Err(CliError::new(format!("the chain is broken at {place}"))
        .with_note(&broken.meaning)
        .with_hint("keep the files as evidence and compare them with the log of the master and with backups (docs/security.md)"))
}

fn verification_text(found: &Verification) -> String {
    let lines = units::pluralize(found.lines, "line", "lines");
    let files = units::pluralize(found.files.len() as u64, "file", "files");
    let mut text = match (&found.first_break, found.first_seq, found.head) {
        (None, Some(first), Some(Head { seq, .. })) => {
            format!("The chain of {lines} in {files} is complete, from record {first} to {seq}")
        }
        _ => format!("{lines} in {files} were checked"),
    };
    if let Some(installation) = &found.installation {
        text.push_str(&format!("\nInstallation: {}", sanitize(installation)));
    }
    if let Some(head) = found.head {
        text.push_str(&format!("\nHead: {head}"));
    }
    for note in &found.notes {
        text.push_str(&format!("\nNote: {}", sanitize(note)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Digest;
    use jiff::Timestamp;

    #[test]
    fn a_row_has_the_outcome_and_no_control_character_whatever_a_client_sent() {
        let record = AuditRecord {
            seq: 1,
            time: Timestamp::UNIX_EPOCH,
            prev: Digest([0; 32]),
            entry: AuditEntry {
                action: "sync.cancel".into(),
                principal: Some("uid:0".into()),
                address: Some("127.0.0.1".into()),
                sync: Some("a\nb\u{1b}[31m".into()),
                status: Some(403),
                code: Some("foreign_origin".into()),
                repeats: Some(7),
                ..AuditEntry::default()
            },
        };
        let text = row(&record);
        assert!(text.starts_with("1970-01-01T00:00:00Z  uid:0 "), "{text}");
        assert!(text.contains("403 foreign_origin (x7)") && text.contains("\\#012b\\#033[31m"));
        assert!(!text.chars().any(char::is_control), "{text:?}");
        // The columns are below their headers.
        for (header, value) in [("PRINCIPAL", "uid:0"), ("ADDRESS", "127."), ("OBJECT", "a\\")] {
            assert_eq!(HEADER.find(header), text.find(value), "{header}");
        }
    }
}
