//! Acting as the submitter: work on the trees of a sync with `run_as` is done by threads that have the identity of its
//! user meanwhile, so that the kernel judges each access, owner and device.
//!
//! ```text
//! spawn_blocking(identity, work)      on a thread of the pool
//!   take: groups, effective gid, effective uid; the kernel drops all effective capabilities with the last one
//!   work: each step of a `Tree` compares the identity of the thread with its own (`Tree::check_identity`)
//!   restore: the uid first, which brings the capabilities back
//! ```
//!
//! - The system calls change one thread; those of libc would change all threads of the process.
//! - The real and the saved uid stay those of the agent. So the thread can return, and the user of the identity can
//!   neither trace it nor send it signals.
//! - A thread that can't return to the identity of the agent ends the process: it must not serve others.
//! - Work for a tree on a thread without the identity of the tree fails ([`Errno::PERM`]): a new caller that does not use
//!   [`spawn_blocking`] does nothing with the rights of the agent.
//! - A thread has the identity of the one that starts it, so the threads of the runtime begin with [`begin_thread`].
//! - What belongs to the agent (the journal of unflushed writes, the check where a storage path leads) runs in
//!   [`as_agent`].

use super::errno::SysResult;
use crate::util::repeated_warnings::warn_ratelimited;
use crate::wire::run_as::RunAs;
use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, capabilities, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};
use std::cell::RefCell;
use std::marker::PhantomData;
use std::sync::{Arc, OnceLock};
use tokio::task::JoinHandle;

/// As what work on a tree is done: the agent, or the user of a `run_as`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ActingUser(Option<Arc<RunAs>>);

thread_local! {
    /// What this thread acts as; `None`: the agent.
    static CURRENT: RefCell<Option<Arc<RunAs>>> = const { RefCell::new(None) };
}

impl ActingUser {
    /// That of the user of `run_as`; without one that of the agent. To act as the user that this process is already
    /// needs no change.
    pub fn new(run_as: Option<RunAs>) -> ActingUser {
        let own = AgentIdentity::get();
        ActingUser(run_as.filter(|user| !own.is_user(user)).map(Arc::new))
    }

    /// The user, if it is not that of the agent.
    pub(super) fn user(&self) -> Option<&RunAs> {
        self.0.as_deref()
    }

    /// Whether this thread has it.
    pub(super) fn is_current(&self) -> bool {
        CURRENT.with_borrow(|current| match (current, &self.0) {
            (None, None) => true,
            (Some(a), Some(b)) => Arc::ptr_eq(a, b) || a == b,
            _ => false,
        })
    }

    /// Runs `work` with this identity. Where it can't be taken, `work` runs as the agent, and each access to a tree of
    /// this identity fails.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> T {
        let _taken = self.0.as_ref().filter(|_| !self.is_current()).map(|user| {
            let taken = Taken::take(user);
            if let Err(errno) = taken {
                let what = "this agent cannot act as another user";
                warn_ratelimited!(what, "{what} ({user}): {errno}");
            }
            taken
        });
        work()
    }
}

/// Runs `work` on a thread for blocking calls, as `identity`.
pub fn spawn_blocking<T: Send + 'static>(
    identity: &ActingUser,
    work: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    let identity = identity.clone();
    tokio::task::spawn_blocking(move || identity.run(work))
}

/// Runs `work` as the agent, in work with another identity.
pub(super) fn as_agent<T>(work: impl FnOnce() -> T) -> T {
    let Some(user) = CURRENT.take() else { return work() };
    AgentIdentity::get().restore();
    let _again = Again(user);
    work()
}

/// Gives a thread that has just been started the identity of the agent: it has that of the thread that started it, which
/// may act for a user. The first call must come from a thread that does not.
pub fn begin_thread() {
    let own = AgentIdentity::get();
    if rustix::process::geteuid() != own.uid {
        own.restore();
    }
}

/// Why this process can't act as `user`; `None`: it can.
pub fn find_obstacle(user: &RunAs) -> Option<String> {
    let own = AgentIdentity::get();
    if own.is_user(user) {
        return None;
    }
    if !own.uid.is_root() {
        let groups = own.groups.iter().map(|gid| format!(",{}", gid.as_raw())).collect::<String>();
        let itself = format!("{}:{}{groups}", own.uid.as_raw(), own.gid.as_raw());
        return Some(match own.has_capabilities {
            true => format!(
                "the agent runs as {itself} with capabilities: only an agent of root can act as others"
            ),
            false => format!(
                "the agent runs as {itself}: only an agent of root can act as others (a token for it: --run-as {itself})"
            ),
        });
    }
    let needed = CapabilitySet::SETUID | CapabilitySet::SETGID;
    match capabilities(None) {
        Ok(sets) if sets.effective.contains(needed) => None,
        Ok(_) => Some("the agent has no CAP_SETUID and CAP_SETGID".to_owned()),
        Err(errno) => Some(format!("the capabilities of the agent cannot be read: {errno}")),
    }
}

/// Logs that work on a tree was stopped because its thread has another identity.
pub(super) fn warn_wrong_identity() {
    let what = "an access to files as another user than that of the sync was stopped";
    warn_ratelimited!(what, "{what}; this is a defect, or the log has the reason above");
}

/// What all threads of the process are when they do not act for a user.
#[derive(Debug)]
struct AgentIdentity {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    /// Without any the kernel treats it like any other user.
    has_capabilities: bool,
}

impl AgentIdentity {
    /// Read once, when no thread can have another identity yet.
    fn get() -> &'static AgentIdentity {
        static OWN: OnceLock<AgentIdentity> = OnceLock::new();
        OWN.get_or_init(|| AgentIdentity {
            uid: rustix::process::geteuid(),
            gid: rustix::process::getegid(),
            groups: rustix::process::getgroups().unwrap_or_default(),
            has_capabilities: capabilities(None).map_or(true, |sets| !sets.effective.is_empty()),
        })
    }

    /// Whether it has exactly the rights of `user` or fewer.
    fn is_user(&self, user: &RunAs) -> bool {
        let is_granted = |gid: &Gid| {
            let gid = gid.as_raw();
            gid == user.gid || user.groups.contains(&gid)
        };
        let ids = (self.uid.as_raw(), self.gid.as_raw());
        ids == (user.uid, user.gid) && !self.has_capabilities && self.groups.iter().all(is_granted)
    }

    /// Makes this thread that of the agent again.
    fn restore(&self) {
        let restored = set_thread_res_uid(self.uid, self.uid, self.uid)
            .and_then(|()| set_thread_res_gid(self.gid, self.gid, self.gid))
            .and_then(|()| set_thread_groups(&self.groups));
        if let Err(errno) = restored {
            tracing::error!(%errno, "a thread cannot return to the identity of the agent, which ends here");
            std::process::abort();
        }
    }
}

/// The identity of this thread until it is dropped.
struct Taken(PhantomData<*const ()>);

impl Taken {
    fn take(user: &Arc<RunAs>) -> SysResult<Taken> {
        let own = AgentIdentity::get();
        let groups: Vec<Gid> = user.groups.iter().copied().map(Gid::from_raw).collect();
        let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
        let taken = set_thread_groups(&groups)
            .and_then(|()| set_thread_res_gid(own.gid, gid, own.gid))
            .and_then(|()| set_thread_res_uid(own.uid, uid, own.uid))
            .and_then(|()| capabilities(None));
        // Capabilities can stay where a process has asked for that (`SECBIT_NO_SETUID_FIXUP`).
        match taken.map(|sets| sets.effective.is_empty()) {
            Ok(true) => {
                CURRENT.set(Some(Arc::clone(user)));
                Ok(Taken(PhantomData))
            }
            failed => {
                own.restore();
                Err(failed.err().unwrap_or(Errno::PERM))
            }
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        AgentIdentity::get().restore();
        CURRENT.set(None);
    }
}

/// Takes the identity again at the end of [`as_agent`].
struct Again(Arc<RunAs>);

impl Drop for Again {
    fn drop(&mut self) {
        match Taken::take(&self.0) {
            // The outer guard restores it.
            Ok(taken) => std::mem::forget(taken),
            // The rest of the work fails at the first access to the tree.
            Err(errno) => tracing::error!(%errno, "a thread cannot act as {} again", self.0),
        }
    }
}

#[cfg(test)]
mod tests;
