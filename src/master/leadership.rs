//! What a master is at the moment, for those who answer requests: it leads, it follows, or nobody leads.

use super::channel::ActorChannel;
use crate::wire::leader::{Leader, MasterRole, Readiness, ReadinessStatus, StoreStatus};
use crate::wire::problem::{Problem, ProblemCode};

/// See the [module](self).
#[derive(Clone)]
pub(super) enum LeadershipStatus {
    /// This master leads; requests go to the desk of its owner.
    Leader(Leader, ActorChannel),
    /// Another one leads.
    Follower(Leader),
    /// Nobody leads as far as is known, for a reason in a sentence.
    NoLeader(NoLeaderReason),
}

/// Why nobody leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NoLeaderReason {
    /// The store is away: its words.
    StoreUnavailable(String),
    /// A reign ends or begins: that is over soon.
    Transition(&'static str),
}

/// Which master this is, and where its store is.
#[derive(Debug, Clone, Default)]
pub(super) struct MasterIdentity {
    pub(super) name: String,
    /// Where the store is, without passwords.
    pub(super) store_location: String,
}

impl LeadershipStatus {
    /// Who leads.
    pub(super) fn leader(&self) -> Option<&Leader> {
        match self {
            LeadershipStatus::Leader(leader, _) | LeadershipStatus::Follower(leader) => {
                Some(leader)
            }
            LeadershipStatus::NoLeader(_) => None,
        }
    }

    /// Why a request can't be answered here, or sent on, now.
    pub(super) fn refusal(&self) -> Option<Problem> {
        match self {
            LeadershipStatus::Leader(_, desk) => {
                desk.health().err().map(|why| store_unavailable(&why))
            }
            LeadershipStatus::Follower(Leader { url: Some(_), .. }) => None,
            LeadershipStatus::Follower(leader) => Some(not_leader(leader)),
            LeadershipStatus::NoLeader(NoLeaderReason::StoreUnavailable(why)) => {
                Some(store_unavailable(why))
            }
            LeadershipStatus::NoLeader(NoLeaderReason::Transition(why)) => Some(
                Problem::new(ProblemCode::NoLeader, *why)
                    .with_hint("repeat the request after the time in Retry-After"),
            ),
        }
    }

    /// All that is known, for operators.
    pub(super) fn readiness(&self, identity: &MasterIdentity) -> Readiness {
        let refusal = self.refusal();
        let (ok, problem) = match self {
            LeadershipStatus::Leader(_, desk) => match desk.health() {
                Ok(()) => {
                    (true, desk.admission_block.borrow().as_ref().map(|s| s.reason().to_owned()))
                }
                Err(why) => (false, Some(why)),
            },
            LeadershipStatus::NoLeader(NoLeaderReason::StoreUnavailable(why)) => {
                (false, Some(why.clone()))
            }
            LeadershipStatus::Follower(_)
            | LeadershipStatus::NoLeader(NoLeaderReason::Transition(_)) => (true, None),
        };
        let role = if matches!(self, LeadershipStatus::Leader(..)) {
            MasterRole::Leader
        } else {
            MasterRole::Follower
        };
        Readiness {
            status: match (&refusal, role) {
                (Some(_), _) => ReadinessStatus::Unavailable,
                (None, MasterRole::Leader) => ReadinessStatus::Ready,
                (None, MasterRole::Follower) => ReadinessStatus::Following,
            },
            reason: refusal.map(|problem| problem.detail),
            role,
            name: identity.name.clone(),
            leader: self.leader().cloned(),
            store: StoreStatus { location: identity.store_location.clone(), ok, problem },
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// The answer of a follower: 307 where it can say where to go, else 503.
pub(super) fn not_leader(leader: &Leader) -> Problem {
    let name = &leader.name;
    let mut problem = match &leader.url {
        Some(url) => {
            let detail = format!("this master follows; {name} leads, at {url}");
            Problem::new(ProblemCode::NotLeader, detail)
                .with_hint("send the request to the URL in Location")
        }
        None => {
            let detail = format!("this master follows; {name} leads, and its URL is not known");
            Problem::new(ProblemCode::LeaderUrlUnknown, detail).with_hint(
                "send the request to that master; set its `advertise_url`, so that others can name it",
            )
        }
    };
    problem.leader = Some(Box::new(leader.clone()));
    problem
}

/// Nothing can be decided: the store is not there.
pub(super) fn store_unavailable(why: &str) -> Problem {
    let detail = format!("the master can't decide anything now: {why}");
    Problem::new(ProblemCode::StoreUnavailable, detail)
        .with_hint("transfers in flight continue; repeat the request after the time in Retry-After")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follower_of(url: Option<&str>) -> LeadershipStatus {
        LeadershipStatus::Follower(Leader {
            name: "host-a http://10.0.0.1:8888".into(),
            url: url.map(str::to_owned),
            epoch: 7,
            since: None,
        })
    }

    #[test]
    fn a_follower_is_ready_only_if_it_knows_the_url_of_the_leader() {
        let told = |seat: &LeadershipStatus| {
            let seen = seat.readiness(&MasterIdentity::default());
            (seen.status, seen.role, seen.store.ok, seen.leader.map(|l| l.epoch))
        };
        let known = follower_of(Some("http://10.0.0.1:8888"));
        assert_eq!(told(&known), (ReadinessStatus::Following, MasterRole::Follower, true, Some(7)));
        let unknown = follower_of(None);
        assert_eq!(
            told(&unknown),
            (ReadinessStatus::Unavailable, MasterRole::Follower, true, Some(7))
        );
        let problem = unknown.refusal().unwrap();
        assert!(problem.detail.contains("host-a"), "{problem:?}");
        assert!(problem.hint.unwrap().contains("advertise_url"));
        let down = LeadershipStatus::NoLeader(NoLeaderReason::StoreUnavailable("refused".into()));
        assert_eq!(told(&down), (ReadinessStatus::Unavailable, MasterRole::Follower, false, None));
        assert_eq!(down.refusal().unwrap().code, "store_unavailable");
        let change = LeadershipStatus::NoLeader(NoLeaderReason::Transition("nobody leads yet"));
        assert_eq!(told(&change), (ReadinessStatus::Unavailable, MasterRole::Follower, true, None));
        assert_eq!(change.refusal().unwrap().code, "no_leader");
    }
}
