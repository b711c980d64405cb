//! The current role of this master, as the API reports it.

use super::channel::ActorChannel;
use crate::wire::leader::{Leader, MasterRole, Readiness, ReadinessStatus, StoreStatus};
use crate::wire::problem::{Problem, ProblemCode};

/// See the [module](self).
#[derive(Clone)]
pub(super) enum LeadershipStatus {
    /// This master leads; the channel to its state actor.
    Leader(Leader, ActorChannel),
    /// Another master leads.
    Follower(Leader),
    /// No leader is known.
    NoLeader(NoLeaderReason),
}

/// Why no leader is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NoLeaderReason {
    /// The error message of the store.
    StoreUnavailable(String),
    /// A term of leadership ends or starts, which takes seconds.
    Transition(&'static str),
}

/// The name and the store of this master.
#[derive(Debug, Clone, Default)]
pub(super) struct MasterIdentity {
    pub(super) name: String,
    /// Without passwords.
    pub(super) store_location: String,
    /// What an operator should change.
    pub(super) warnings: Vec<String>,
}

impl LeadershipStatus {
    /// Why this master can neither process requests nor redirect them now, if so.
    pub(super) fn refusal(&self) -> Option<Problem> {
        match self {
            LeadershipStatus::Leader(_, channel) => {
                channel.health().err().map(|reason| store_unavailable(&reason))
            }
            LeadershipStatus::Follower(Leader { url: Some(_), .. }) => None,
            LeadershipStatus::Follower(leader) => Some(not_leader(leader)),
            LeadershipStatus::NoLeader(NoLeaderReason::StoreUnavailable(reason)) => {
                Some(store_unavailable(reason))
            }
            LeadershipStatus::NoLeader(NoLeaderReason::Transition(reason)) => Some(
                Problem::new(ProblemCode::NoLeader, *reason)
                    .with_hint("repeat the request after the time in Retry-After"),
            ),
        }
    }

    pub(super) fn readiness(&self, identity: &MasterIdentity) -> Readiness {
        let refusal = self.refusal();
        let (mut role, mut admission_block) = (MasterRole::Follower, None);
        let (leader, health) = match self {
            LeadershipStatus::Leader(leader, channel) => {
                role = MasterRole::Leader;
                admission_block = channel.admission_block.borrow().clone();
                (Some(leader), channel.health())
            }
            LeadershipStatus::Follower(leader) => (Some(leader), Ok(())),
            LeadershipStatus::NoLeader(NoLeaderReason::StoreUnavailable(reason)) => {
                (None, Err(reason.clone()))
            }
            LeadershipStatus::NoLeader(NoLeaderReason::Transition(_)) => (None, Ok(())),
        };
        let store = StoreStatus {
            location: identity.store_location.clone(),
            ok: health.is_ok(),
            problem: health.err().or(admission_block.map(|block| block.reason().to_owned())),
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
            leader: leader.cloned(),
            store,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            warnings: identity.warnings.clone(),
        }
    }
}

/// The response of a follower: 307 if it knows the URL of the leader, else 503.
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
                "send the request to that master; set its `advertise_url`, so that followers know its URL",
            )
        }
    };
    problem.leader = Some(Box::new(leader.clone()));
    problem
}

pub(super) fn store_unavailable(reason: &str) -> Problem {
    let detail = format!("the master can't decide anything now: {reason}");
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
        let readiness = |status: &LeadershipStatus| {
            let readiness = status.readiness(&MasterIdentity::default());
            let epoch = readiness.leader.map(|leader| leader.epoch);
            (readiness.status, readiness.role, readiness.store.ok, epoch)
        };
        let known = follower_of(Some("http://10.0.0.1:8888"));
        assert_eq!(
            readiness(&known),
            (ReadinessStatus::Following, MasterRole::Follower, true, Some(7))
        );
        let unknown = follower_of(None);
        assert_eq!(
            readiness(&unknown),
            (ReadinessStatus::Unavailable, MasterRole::Follower, true, Some(7))
        );
        let problem = unknown.refusal().unwrap();
        assert!(problem.detail.contains("host-a"), "{problem:?}");
        assert!(problem.hint.unwrap().contains("advertise_url"));
        let down = LeadershipStatus::NoLeader(NoLeaderReason::StoreUnavailable("refused".into()));
        assert_eq!(
            readiness(&down),
            (ReadinessStatus::Unavailable, MasterRole::Follower, false, None)
        );
        assert_eq!(down.refusal().unwrap().code, "store_unavailable");
        let change = LeadershipStatus::NoLeader(NoLeaderReason::Transition("no master leads yet"));
        assert_eq!(
            readiness(&change),
            (ReadinessStatus::Unavailable, MasterRole::Follower, true, None)
        );
        assert_eq!(change.refusal().unwrap().code, "no_leader");
    }
}
