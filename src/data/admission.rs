//! Which connections a data server keeps. Anybody can open one, so a connection counts as one of a peer only from its
//! first request with a valid ticket on. Until then it is in a pool of its own, with a share for each source address,
//! and is closed when its place is needed: a flood of connections does not keep peers away.

use crate::util::client_network::network_of;
use crate::util::shutdown::Shutdown;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// At most this many connections of peers per agent; more are kept like those without a ticket.
const MAX_PEER_CONNECTIONS: usize = 512;
/// At most this many connections without a valid request per agent …
const MAX_UNVERIFIED: usize = 512;
/// … and per source address; of IPv6, per network of 64 bits.
pub(super) const MAX_UNVERIFIED_PER_ADDRESS: usize = 64;

/// The connections of a data server.
pub(super) struct Admission {
    peers: Arc<Semaphore>,
    unverified: Mutex<Unverified>,
}

/// Connections without a valid request, by number: the oldest has the lowest.
#[derive(Default)]
struct Unverified {
    last: u64,
    by_address: BTreeMap<IpAddr, BTreeSet<u64>>,
    closers: BTreeMap<u64, Shutdown>,
}

/// A connection. Its place is free when this is dropped.
pub(super) struct AdmittedConnection {
    admission: Arc<Admission>,
    address: IpAddr,
    number: u64,
    /// Cancelled when its place is needed.
    closer: Shutdown,
    peer: Mutex<Option<OwnedSemaphorePermit>>,
}

impl Default for Admission {
    fn default() -> Self {
        Admission {
            peers: Arc::new(Semaphore::new(MAX_PEER_CONNECTIONS)),
            unverified: Mutex::default(),
        }
    }
}

impl Admission {
    /// Admits a connection. If there are too many without a valid request, the oldest one of the same address, or else of
    /// the address with the most, is closed: a peer sends its first request at once, and so keeps its place.
    pub(super) fn admit(self: &Arc<Self>, address: IpAddr) -> Arc<AdmittedConnection> {
        let address = network_of(address);
        let closer = Shutdown::new();
        let mut unverified = self.unverified.lock();
        unverified.make_room(address);
        unverified.last += 1;
        let number = unverified.last;
        unverified.by_address.entry(address).or_default().insert(number);
        unverified.closers.insert(number, closer.clone());
        drop(unverified);
        let peer = Mutex::new(None);
        Arc::new(AdmittedConnection { admission: self.clone(), address, number, closer, peer })
    }
}

impl Unverified {
    fn make_room(&mut self, address: IpAddr) {
        let count = |numbers: &BTreeSet<u64>| numbers.len();
        let full = if self.by_address.get(&address).map_or(0, count) >= MAX_UNVERIFIED_PER_ADDRESS {
            Some(address)
        } else if self.closers.len() >= MAX_UNVERIFIED {
            self.by_address.iter().max_by_key(|(_, numbers)| count(numbers)).map(|(a, _)| *a)
        } else {
            None
        };
        let oldest = full.and_then(|full| Some((full, *self.by_address.get(&full)?.first()?)));
        if let Some((full, oldest)) = oldest
            && let Some(closer) = self.remove(full, oldest)
        {
            closer.cancel();
        }
    }

    fn remove(&mut self, address: IpAddr, number: u64) -> Option<Shutdown> {
        if let Some(numbers) = self.by_address.get_mut(&address) {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.by_address.remove(&address);
            }
        }
        self.closers.remove(&number)
    }
}

impl AdmittedConnection {
    /// The connection has sent a valid ticket: from now on it is one of a peer, and stays, if there is room for one.
    pub(super) fn mark_verified(&self) {
        let mut peer = self.peer.lock();
        if peer.is_none()
            && let Ok(permit) = self.admission.peers.clone().try_acquire_owned()
            && self.admission.unverified.lock().remove(self.address, self.number).is_some()
        {
            *peer = Some(permit);
        }
    }

    /// Returns when the place of the connection is needed.
    pub(super) async fn closed(&self) {
        self.closer.cancelled().await;
    }
}

impl Drop for AdmittedConnection {
    fn drop(&mut self) {
        self.admission.unverified.lock().remove(self.address, self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: usize) -> IpAddr {
        format!("192.0.2.{last}").parse().unwrap()
    }

    fn is_closed(connection: &AdmittedConnection) -> bool {
        connection.closer.is_cancelled()
    }

    #[test]
    fn the_oldest_of_an_address_makes_room_and_peers_are_never_closed() {
        let admission = Arc::new(Admission::default());
        let peer = admission.admit(address(1));
        peer.mark_verified();
        let other = admission.admit(address(2));
        let flood: Vec<_> = (0..1_000).map(|_| admission.admit(address(1))).collect();
        let open = flood.iter().filter(|connection| !is_closed(connection)).count();
        assert_eq!(open, MAX_UNVERIFIED_PER_ADDRESS);
        assert!(!is_closed(flood.last().unwrap()) && is_closed(&flood[0]));
        assert!(!is_closed(&peer) && !is_closed(&other));
        drop(flood);
        drop(other);
        assert!(admission.unverified.lock().closers.is_empty());
        assert!(admission.unverified.lock().by_address.is_empty());
        assert_eq!(admission.peers.available_permits(), MAX_PEER_CONNECTIONS - 1);
        drop(peer);
        assert_eq!(admission.peers.available_permits(), MAX_PEER_CONNECTIONS);
    }

    #[test]
    fn the_address_with_the_most_makes_room_for_another_one() {
        let admission = Arc::new(Admission::default());
        let few: Vec<_> = (0..8).map(|_| admission.admit(address(200))).collect();
        let flood: Vec<_> = (0..MAX_UNVERIFIED)
            .map(|n| admission.admit(address(n % (MAX_UNVERIFIED / MAX_UNVERIFIED_PER_ADDRESS))))
            .collect();
        let newcomer = admission.admit(address(201));
        assert!(few.iter().chain([&newcomer]).all(|connection| !is_closed(connection)));
        let open = flood.iter().filter(|connection| !is_closed(connection)).count();
        assert_eq!(open, MAX_UNVERIFIED - few.len() - 1);
    }

    #[test]
    fn a_peer_without_room_stays_among_the_others_and_a_closed_one_takes_no_room() {
        let admission = Arc::new(Admission::default());
        let connect = |n: usize| {
            let connection = admission.admit(address(n % 200));
            connection.mark_verified();
            connection
        };
        let mut peers: Vec<_> = (0..MAX_PEER_CONNECTIONS).map(connect).collect();
        let late = admission.admit(address(250));
        late.mark_verified();
        assert_eq!(admission.unverified.lock().closers.len(), 1);
        peers.pop();
        late.mark_verified();
        assert_eq!(admission.unverified.lock().closers.len(), 0);
        peers.pop();
        let closed = admission.admit(address(251));
        for _ in 0..MAX_UNVERIFIED_PER_ADDRESS {
            drop(admission.admit(address(251)));
        }
        let kept: Vec<_> =
            (0..MAX_UNVERIFIED_PER_ADDRESS).map(|_| admission.admit(address(251))).collect();
        assert!(is_closed(&closed));
        closed.mark_verified();
        assert_eq!(admission.peers.available_permits(), 1);
        drop(kept);
    }
}
