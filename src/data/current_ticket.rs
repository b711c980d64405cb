//! The ticket of an assignment, which the reply to a heartbeat can replace while the assignment is executed.

use parking_lot::RwLock;
use std::fmt;
use std::sync::Arc;

/// A ticket that can be replaced. Clones are the same one.
#[derive(Clone, Default)]
pub struct CurrentTicket(Arc<RwLock<Arc<str>>>);

impl CurrentTicket {
    /// The ticket for a request that is sent now.
    pub fn text(&self) -> Arc<str> {
        self.0.read().clone()
    }

    /// Replaces it for all requests from now on.
    pub fn replace(&self, ticket: &str) {
        *self.0.write() = ticket.into();
    }
}

impl From<&str> for CurrentTicket {
    fn from(ticket: &str) -> Self {
        CurrentTicket(Arc::new(RwLock::new(ticket.into())))
    }
}

impl From<&String> for CurrentTicket {
    fn from(ticket: &String) -> Self {
        ticket.as_str().into()
    }
}

/// A ticket is a secret: its holder may write to its destination.
impl fmt::Debug for CurrentTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CurrentTicket(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_ticket_is_used_by_all_holders_and_never_shown() {
        let held = CurrentTicket::from("first");
        let peer = held.clone();
        held.replace("second");
        assert_eq!((&*held.text(), &*peer.text()), ("second", "second"));
        assert_eq!(format!("{peer:?}"), "CurrentTicket(…)");
    }
}
