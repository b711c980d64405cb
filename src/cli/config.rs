//! `ctl config …`, and `--check` of the services.

use super::Context;
use super::args::ConfigCommand;
use super::error::Result;
use super::exit::Exit;
use super::sanitize::sanitize;
use crate::config::{CheckReport, Env, FileKind, Severity, check_file};

/// # Errors
/// Standard output can't be written.
pub(super) fn run(ctx: &Context, command: ConfigCommand) -> Result<Exit> {
    let ConfigCommand::Check { file, worker_id, strict } = command;
    let worker_id = worker_id.as_ref().map(|id| id.as_str());
    let host = worker_id.map(|_| Severity::Warning);
    let report = check_file(&file, worker_id, &Env::from_process(), host);
    let exit = print_report(ctx, &report)?;
    let is_strict_failure = exit == Exit::Ok && strict && report.warning_count() > 0;
    Ok(if is_strict_failure { Exit::Error } else { exit })
}

/// Prints a report. The exit code says whether the file can be used.
///
/// # Errors
/// Standard output can't be written.
pub(super) fn print_report(ctx: &Context, report: &CheckReport) -> Result<Exit> {
    let text = report.to_string().lines().map(sanitize).collect::<Vec<_>>().join("\n");
    let quiet = if report.is_usable() { "" } else { &text };
    ctx.print(report_document(report).to_string().as_bytes(), quiet, &text)?;
    Ok(if report.is_usable() { Exit::Ok } else { Exit::Config })
}

fn report_document(report: &CheckReport) -> serde_json::Value {
    let problems = report.problems.iter().map(|p| {
        serde_json::json!({
            "origin": p.origin,
            "line": p.at.map(|at| at.line),
            "column": p.at.map(|at| at.col),
            "severity": p.severity.as_str(),
            "message": p.message,
        })
    });
    serde_json::json!({
        "file": report.file,
        "kind": report.kind.map(|kind| match kind {
            FileKind::Master => "master",
            FileKind::Agents => "agents",
        }),
        "usable": report.is_usable(),
        "errors": report.error_count(),
        "warnings": report.warning_count(),
        "problems": problems.collect::<Vec<_>>(),
        "worker_ids": report.worker_ids,
    })
}
