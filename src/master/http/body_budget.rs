//! The memory for request bodies. The address with the most of it gives some up for another one: no client can keep the
//! others from sending theirs.

use crate::util::client_network::network_of;
use crate::wire::problem::{Problem, ProblemCode};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;

/// Bodies up to this size do not count: the limit of connections limits their memory.
const UNCOUNTED_BODY_BYTES: usize = 4 << 10;
/// The fewest and the most large bodies that are decoded at the same time: a document may need many times the memory of
/// its text.
const MIN_DECODERS: usize = 2;
const MAX_DECODERS: usize = 8;

/// The memory for all bodies.
#[derive(Clone)]
pub(super) struct BodyBudget(Arc<Shared>);

struct Shared {
    max_bytes: usize,
    shares: Mutex<Shares>,
    decoders: Semaphore,
}

#[derive(Default)]
struct Shares {
    last: u64,
    used: usize,
    /// By the address of the client; of IPv6 by its network.
    by_address: BTreeMap<IpAddr, Share>,
}

/// The bodies of one address.
#[derive(Default)]
struct Share {
    bytes: usize,
    bodies: BTreeMap<u64, Reserved>,
}

struct Reserved {
    bytes: usize,
    /// Cancelled when the memory is needed by another address. `None`: the body is complete, and is kept.
    closer: Option<CancellationToken>,
}

/// The part of the budget that one body has; returned when this is dropped.
pub(super) struct Reservation {
    budget: BodyBudget,
    address: IpAddr,
    number: u64,
    closer: CancellationToken,
}

impl BodyBudget {
    pub(super) fn new(max_bytes: usize) -> Self {
        let cores = std::thread::available_parallelism().map_or(MIN_DECODERS, usize::from);
        BodyBudget(Arc::new(Shared {
            max_bytes,
            shares: Mutex::default(),
            decoders: Semaphore::new(cores.clamp(MIN_DECODERS, MAX_DECODERS)),
        }))
    }

    /// A part without bytes, for a body from `client`.
    pub(super) fn open(&self, client: Option<IpAddr>) -> Reservation {
        let address = client.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), network_of);
        let closer = CancellationToken::new();
        let mut shares = self.0.shares.lock();
        shares.last += 1;
        let number = shares.last;
        let reserved = Reserved { bytes: 0, closer: Some(closer.clone()) };
        shares.by_address.entry(address).or_default().bodies.insert(number, reserved);
        Reservation { budget: self.clone(), address, number, closer }
    }
}

impl Shares {
    /// Whether the budget has `more` bytes for `address`, after the largest unfinished bodies of addresses that have more
    /// than this one will have were given up.
    fn make_room(&mut self, address: IpAddr, more: usize, max_bytes: usize) -> bool {
        while self.used.saturating_add(more) > max_bytes {
            let own = self.by_address.get(&address).map_or(0, |share| share.bytes);
            let others = self.by_address.iter().filter(|(at, share)| {
                **at != address && share.bytes > own.saturating_add(more) && share.can_give_up()
            });
            let most = others.max_by_key(|(_, share)| share.bytes).map(|(at, _)| *at);
            let Some(share) = most.and_then(|at| self.by_address.get_mut(&at)) else {
                return false;
            };
            self.used -= share.give_up_largest();
        }
        true
    }

    fn remove(&mut self, address: IpAddr, number: u64) {
        let Some(share) = self.by_address.get_mut(&address) else { return };
        if let Some(body) = share.bodies.remove(&number) {
            share.bytes -= body.bytes;
            self.used -= body.bytes;
        }
        if share.bodies.is_empty() {
            self.by_address.remove(&address);
        }
    }
}

impl Share {
    fn unfinished(&self) -> impl Iterator<Item = (&u64, &Reserved)> {
        self.bodies.iter().filter(|(_, body)| body.closer.is_some() && body.bytes > 0)
    }

    fn can_give_up(&self) -> bool {
        self.unfinished().next().is_some()
    }

    /// Ends the reading of the largest body. Its bytes, which this returns, are free as soon as its task runs.
    fn give_up_largest(&mut self) -> usize {
        let largest = self.unfinished().max_by_key(|(_, body)| body.bytes).map(|(no, _)| *no);
        let Some(body) = largest.and_then(|number| self.bodies.get_mut(&number)) else { return 0 };
        if let Some(closer) = body.closer.take() {
            closer.cancel();
        }
        let bytes = std::mem::take(&mut body.bytes);
        self.bytes -= bytes;
        bytes
    }
}

impl Reservation {
    /// Reserves what a body of `len` bytes needs.
    ///
    /// # Errors
    /// 503: the budget is used up, and no other address has more of it.
    pub(super) fn grow(&self, len: usize) -> Result<(), Problem> {
        let shared = &self.budget.0;
        let mut shares = shared.shares.lock();
        let share = shares.by_address.get(&self.address);
        let own = share.and_then(|share| share.bodies.get(&self.number));
        if own.is_none_or(|body| body.closer.is_none()) {
            return Err(budget_exhausted());
        }
        let have = own.map_or(0, |body| body.bytes);
        let need = if len > UNCOUNTED_BODY_BYTES { len } else { 0 };
        let more = need.saturating_sub(have);
        if !shares.make_room(self.address, more, shared.max_bytes) {
            return Err(budget_exhausted());
        }
        shares.used += more;
        if let Some(share) = shares.by_address.get_mut(&self.address) {
            share.bytes += more;
            if let Some(body) = share.bodies.get_mut(&self.number) {
                body.bytes += more;
            }
        }
        Ok(())
    }

    /// Returns when another address needs the memory.
    ///
    /// # Errors
    /// Always 503.
    pub(super) async fn given_up(&self) -> Problem {
        self.closer.cancelled().await;
        budget_exhausted()
    }

    /// The body is complete: it keeps its part until this is dropped.
    ///
    /// # Errors
    /// 503: another address needed the memory just before.
    pub(super) fn complete(&self) -> Result<(), Problem> {
        let mut shares = self.budget.0.shares.lock();
        let share = shares.by_address.get_mut(&self.address);
        let body = share.and_then(|share| share.bodies.get_mut(&self.number));
        body.and_then(|body| body.closer.take()).map(drop).ok_or_else(budget_exhausted)
    }

    /// A permit to decode a large body, when not too many others are being decoded.
    pub(super) async fn decoder(&self) -> Option<SemaphorePermit<'_>> {
        self.budget.0.decoders.acquire().await.ok()
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.0.shares.lock().remove(self.address, self.number);
    }
}

fn budget_exhausted() -> Problem {
    Problem::new(
        ProblemCode::Overloaded,
        "too many large requests at once; this one changed nothing",
    )
    .with_hint("repeat the request after the time in Retry-After")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn address(last: u8) -> Option<IpAddr> {
        Some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, last)))
    }

    fn body(budget: &BodyBudget, last: u8, len: usize) -> Option<Reservation> {
        let body = budget.open(address(last));
        body.grow(len).ok().map(|()| body)
    }

    #[test]
    fn the_address_with_the_most_gives_up_its_largest_body_and_only_for_one_that_has_less() {
        let budget = BodyBudget::new(8 * MIB);
        let held: Vec<_> =
            [1, 4, 2, 1].map(|mib| body(&budget, 1, mib * MIB).unwrap()).into_iter().collect();
        assert!(body(&budget, 1, MIB).is_none(), "an address takes nothing from itself");
        let other = body(&budget, 2, 2 * MIB).unwrap();
        let given_up: Vec<bool> = held.iter().map(|body| body.closer.is_cancelled()).collect();
        assert_eq!(given_up, [false, true, false, false]);
        assert!(held[1].grow(5 * MIB).is_err() && held[1].complete().is_err());
        // 2 MiB are free now, which anybody may have.
        let more = body(&budget, 1, 2 * MIB).unwrap();
        assert!(other.grow(3 * MIB).is_ok(), "3 of 8, and the other one has 6");
        assert!(other.grow(6 * MIB).is_err(), "not more than the other one has");
        let small = body(&budget, 3, UNCOUNTED_BODY_BYTES).unwrap();
        assert!(small.grow(MIB).is_ok());
        drop((held, other, more, small));
        let shares = budget.0.shares.lock();
        assert_eq!((shares.used, shares.by_address.len()), (0, 0));
    }

    #[test]
    fn a_complete_body_is_kept() {
        let budget = BodyBudget::new(4 * MIB);
        let complete = body(&budget, 1, 3 * MIB).unwrap();
        complete.complete().unwrap();
        assert!(body(&budget, 2, 2 * MIB).is_none());
        assert!(!complete.closer.is_cancelled());
        drop(complete);
        assert!(body(&budget, 2, 2 * MIB).is_some());
    }

    #[test]
    fn addresses_of_one_network_have_one_share() {
        let budget = BodyBudget::new(4 * MIB);
        let open = |text: &str| budget.open(Some(text.parse().unwrap()));
        let first = open("2001:db8::1");
        first.grow(3 * MIB).unwrap();
        assert!(open("2001:db8::2").grow(2 * MIB).is_err());
        assert!(open("2001:db8:0:1::1").grow(2 * MIB).is_ok());
        assert!(first.closer.is_cancelled());
    }
}
