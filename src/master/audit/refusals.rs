//! Denials that wait to be written. Anybody can cause them, so equal ones within a minute are counted, and the number
//! of lines for each minute is bounded, whatever clients do.

use crate::audit::{AuditAction, AuditEntry};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Denials that are equal within this time are counted.
const REPEAT_WINDOW: Duration = Duration::from_secs(60);
/// The maximum number of different denials in a window; further ones are counted as one.
const MAX_DIFFERENT: usize = 64;
/// The maximum number of lines that wait while the log cannot be written; further ones are counted.
const MAX_WAITING: usize = 512;

/// What makes denials equal: not what a client can vary at will, such as the object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key([Option<String>; 6], Option<u16>);

impl Key {
    fn of(entry: &AuditEntry) -> Self {
        let AuditEntry { action, principal, address, method, route, code, status, .. } =
            entry.clone();
        Key([Some(action), principal, address, method, route, code], status)
    }
}

#[derive(Debug)]
struct Seen {
    /// When the window began.
    since: Instant,
    repeats: u64,
    entry: AuditEntry,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Refusals {
    seen: BTreeMap<Key, Seen>,
    waiting: Vec<AuditEntry>,
    /// Denials without a line, because too many waited.
    unwritten: u64,
}

impl Refusals {
    /// Adds a denial. Returns whether a line waits for it.
    pub(super) fn add(&mut self, mut entry: AuditEntry, now: Instant) -> bool {
        let mut key = Key::of(&entry);
        if !self.seen.contains_key(&key) && self.seen.len() >= MAX_DIFFERENT {
            entry = AuditEntry {
                action: "request".to_owned(),
                detail: Some("denials of other kinds, or to other clients".to_owned()),
                ..AuditEntry::default()
            };
            key = Key::of(&entry);
        }
        if let Some(seen) = self.seen.get_mut(&key) {
            seen.repeats += 1;
            return false;
        }
        self.wait(entry.clone());
        self.seen.insert(key, Seen { since: now, repeats: 0, entry });
        true
    }

    fn wait(&mut self, entry: AuditEntry) {
        match self.waiting.len() < MAX_WAITING {
            true => self.waiting.push(entry),
            false => self.unwritten += entry.repeats.unwrap_or(1),
        }
    }

    /// The lines to write now: also the counts of windows that have ended, or all (`is_last`).
    pub(super) fn take_due(&mut self, now: Instant, is_last: bool) -> Vec<AuditEntry> {
        let mut due = std::mem::take(&mut self.waiting);
        self.seen.retain(|_, seen| {
            if !is_last && now.saturating_duration_since(seen.since) < REPEAT_WINDOW {
                return true;
            }
            let repeats = std::mem::take(&mut seen.repeats);
            if repeats == 0 {
                return false;
            }
            // The object and the request are those of the first one.
            due.push(AuditEntry {
                repeats: Some(repeats),
                sync: None,
                worker: None,
                request: None,
                ..seen.entry.clone()
            });
            seen.since = now;
            true
        });
        if self.unwritten > 0 {
            due.push(AuditEntry {
                action: AuditAction::UNWRITTEN.to_owned(),
                repeats: Some(std::mem::take(&mut self.unwritten)),
                detail: Some(
                    "so many denials have no line: the log could not be written".to_owned(),
                ),
                ..AuditEntry::default()
            });
        }
        due
    }

    /// Lines that could not be written wait again.
    pub(super) fn put_back(&mut self, due: Vec<AuditEntry>) {
        let later = std::mem::take(&mut self.waiting);
        for entry in due.into_iter().chain(later) {
            if entry.action == AuditAction::UNWRITTEN {
                self.unwritten += entry.repeats.unwrap_or(0);
            } else {
                self.wait(entry);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denial(address: &str, sync: &str) -> AuditEntry {
        AuditEntry {
            action: "sync.cancel".into(),
            address: Some(address.into()),
            sync: Some(sync.into()),
            status: Some(403),
            ..AuditEntry::default()
        }
    }

    #[test]
    fn equal_denials_are_counted_and_the_count_is_a_line_after_a_minute() {
        let (mut refusals, start) = (Refusals::default(), Instant::now());
        assert!(refusals.add(denial("a", "1"), start));
        assert!(!refusals.add(denial("a", "2"), start));
        assert!(refusals.add(denial("b", "1"), start));
        assert!(!refusals.add(denial("a", "3"), start + Duration::from_secs(30)));
        assert_eq!(refusals.take_due(start, false), [denial("a", "1"), denial("b", "1")]);
        assert_eq!(refusals.take_due(start + Duration::from_secs(59), false), []);
        let counted = AuditEntry { repeats: Some(2), sync: None, ..denial("a", "") };
        assert_eq!(refusals.take_due(start + REPEAT_WINDOW, false), [counted]);
        // A new window: another one has a line of its own, which `a` has not yet.
        assert!(refusals.add(denial("b", "4"), start + REPEAT_WINDOW));
        assert!(!refusals.add(denial("a", "5"), start + REPEAT_WINDOW));
        let last = refusals.take_due(start + REPEAT_WINDOW, true);
        assert_eq!(last.len(), 2, "{last:?}");
    }

    #[test]
    fn lines_are_bounded_whatever_clients_send_and_however_long_they_wait() {
        let (mut refusals, mut now) = (Refusals::default(), Instant::now());
        for n in 0..10_000 {
            refusals.add(denial(&format!("address {n}"), "1"), now);
        }
        let due = refusals.take_due(now, false);
        assert_eq!(due.len(), MAX_DIFFERENT + 1, "{:?}", due.last());
        now += REPEAT_WINDOW;
        let others = refusals.take_due(now, false);
        assert_eq!(others.len(), 1, "{others:?}");
        assert_eq!(others[0].repeats, Some(10_000 - MAX_DIFFERENT as u64 - 1));
        refusals.put_back(due);
        for n in 0..10_000 {
            now += REPEAT_WINDOW;
            refusals.add(denial(&format!("address {n}"), "1"), now);
            let due = refusals.take_due(now, false);
            refusals.put_back(due);
        }
        let due = refusals.take_due(now, false);
        assert_eq!(due.len(), MAX_WAITING + 1);
        assert!(due.last().unwrap().repeats.unwrap() > 9_000, "{:?}", due.last());
    }
}
