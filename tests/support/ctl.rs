//! Runs `ctl` commands as an operator does.

use super::MAX_WAIT;
use super::process::{CommandOutput, RunningCommand, User, clean_command, ctl_binary};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A `ctl` command to be run.
pub(crate) struct Ctl {
    args: Vec<OsString>,
    env: Vec<(String, OsString)>,
    input: Option<Vec<u8>>,
    user: User,
    home: PathBuf,
}

thread_local! {
    /// Where the commands of a test keep their state; removed when the test's thread ends.
    static HOME: tempfile::TempDir = tempfile::tempdir().expect("a directory");
}

/// `ctl ARGS…`, with no environment.
pub(crate) fn ctl<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Ctl {
    Ctl {
        args: args.into_iter().map(|a| a.as_ref().to_owned()).collect(),
        env: Vec::new(),
        input: None,
        user: User::Same,
        home: HOME.with(|dir| dir.path().to_owned()),
    }
}

impl Ctl {
    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    pub(crate) fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.to_owned(), value.as_ref().to_owned()));
        self
    }

    /// What stands on its standard input.
    pub(crate) fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Some(bytes.into());
        self
    }

    /// Runs as another user, with its files in `dir`.
    pub(crate) fn user(mut self, user: User, dir: &Path) -> Self {
        self.user = user;
        self.home = dir.to_owned();
        self
    }

    /// As a command of the standard library.
    pub(crate) fn command(&self) -> Command {
        let mut command = clean_command(&ctl_binary(self.user, &self.home), &self.home, self.user);
        command.args(&self.args).envs(self.env.iter().map(|(k, v)| (k, v)));
        command
    }

    /// Starts it.
    pub(crate) fn start(&self) -> RunningCommand {
        RunningCommand::start(self.command(), self.input.as_deref())
    }

    /// Runs it to its end.
    pub(crate) fn run(&self) -> CommandOutput {
        self.start().finish(MAX_WAIT)
    }
}
