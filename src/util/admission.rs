//! Which connections a server keeps. Anybody can open one, so a connection counts as one of a peer only from its first
//! request with valid credentials on. Until then it is in a pool of its own, with a share for each source address, and is
//! closed when its place is needed: a flood of connections does not keep peers away.

use super::client_network::network_of;
use super::shutdown::Shutdown;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many connections a server keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdmissionLimits {
    /// Connections of peers; more are kept like those without valid credentials.
    pub max_peers: usize,
    /// Connections without a valid request …
    pub max_unverified: usize,
    /// … and per source address; of IPv6, per network of 64 bits.
    pub max_unverified_per_address: usize,
    /// Connections that were closed for another one and still hold their socket.
    pub max_closing: usize,
}

/// The connections of a server.
pub struct Admission {
    limits: AdmissionLimits,
    peers: Arc<Semaphore>,
    closing: Arc<Semaphore>,
    unverified: Mutex<Unverified>,
}

/// A permit to admit one connection. The one that is closed for it has it until its socket is closed.
pub type Room = Option<OwnedSemaphorePermit>;

/// Connections without a valid request, by number: the oldest has the lowest.
#[derive(Default)]
struct Unverified {
    last: u64,
    by_address: BTreeMap<IpAddr, BTreeSet<u64>>,
    places: BTreeMap<u64, Arc<Place>>,
}

/// The place of a connection.
#[derive(Default)]
struct Place {
    /// Cancelled when the place is needed.
    closer: Shutdown,
    /// Of the connection that it was closed for.
    room: Mutex<Room>,
}

/// A connection. Its place is free when this is dropped.
pub struct AdmittedConnection {
    admission: Arc<Admission>,
    address: IpAddr,
    number: u64,
    place: Arc<Place>,
    peer: Mutex<Option<OwnedSemaphorePermit>>,
}

impl Admission {
    /// Without connections.
    pub fn new(limits: AdmissionLimits) -> Self {
        Admission {
            limits,
            peers: Arc::new(Semaphore::new(limits.max_peers)),
            closing: Arc::new(Semaphore::new(limits.max_closing)),
            unverified: Mutex::default(),
        }
    }

    /// Returns when not too many of the connections that were closed still hold their sockets. Without this, a flood of
    /// connections would use up the descriptors of the process faster than it closes them.
    pub async fn wait_for_room(&self) -> Room {
        self.closing.clone().acquire_owned().await.ok()
    }

    /// Admits a connection. If there are too many without a valid request, the oldest one of the same address, or else of
    /// the address with the most, is closed: a peer sends its first request at once, and so keeps its place.
    pub fn admit(self: &Arc<Self>, address: IpAddr, room: Room) -> Arc<AdmittedConnection> {
        let address = network_of(address);
        let place = Arc::<Place>::default();
        let mut unverified = self.unverified.lock();
        unverified.make_room(address, room, &self.limits);
        unverified.last += 1;
        let number = unverified.last;
        unverified.by_address.entry(address).or_default().insert(number);
        unverified.places.insert(number, place.clone());
        drop(unverified);
        let peer = Mutex::new(None);
        Arc::new(AdmittedConnection { admission: self.clone(), address, number, place, peer })
    }
}

impl Unverified {
    fn make_room(&mut self, address: IpAddr, room: Room, limits: &AdmissionLimits) {
        let count = |numbers: &BTreeSet<u64>| numbers.len();
        let own = self.by_address.get(&address).map_or(0, count);
        let full = if own >= limits.max_unverified_per_address {
            Some(address)
        } else if self.places.len() >= limits.max_unverified {
            self.by_address.iter().max_by_key(|(_, numbers)| count(numbers)).map(|(a, _)| *a)
        } else {
            None
        };
        let oldest = full.and_then(|full| Some((full, *self.by_address.get(&full)?.first()?)));
        if let Some((full, oldest)) = oldest
            && let Some(place) = self.remove(full, oldest)
        {
            *place.room.lock() = room;
            place.closer.cancel();
        }
    }

    fn remove(&mut self, address: IpAddr, number: u64) -> Option<Arc<Place>> {
        if let Some(numbers) = self.by_address.get_mut(&address) {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.by_address.remove(&address);
            }
        }
        self.places.remove(&number)
    }
}

impl AdmittedConnection {
    /// The connection has sent valid credentials: from now on it is one of a peer, and stays, if there is room for one.
    pub fn mark_verified(&self) {
        let mut peer = self.peer.lock();
        if peer.is_none()
            && let Ok(permit) = self.admission.peers.clone().try_acquire_owned()
            && self.admission.unverified.lock().remove(self.address, self.number).is_some()
        {
            *peer = Some(permit);
        }
    }

    /// Returns when the place of the connection is needed.
    pub async fn closed(&self) {
        self.place.closer.cancelled().await;
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
    use futures_util::FutureExt;

    const LIMITS: AdmissionLimits = AdmissionLimits {
        max_peers: 512,
        max_unverified: 512,
        max_unverified_per_address: 64,
        max_closing: 64,
    };

    fn address(last: usize) -> IpAddr {
        format!("192.0.2.{last}").parse().unwrap()
    }

    /// Admits a connection although others still close.
    fn admit(admission: &Arc<Admission>, address: IpAddr) -> Arc<AdmittedConnection> {
        admission.closing.add_permits(1);
        let room = admission.wait_for_room().now_or_never().expect("there is room");
        admission.admit(address, room)
    }

    fn is_closed(connection: &AdmittedConnection) -> bool {
        connection.place.closer.is_cancelled()
    }

    #[test]
    fn the_oldest_of_an_address_makes_room_and_peers_are_never_closed() {
        let admission = Arc::new(Admission::new(LIMITS));
        let peer = admit(&admission, address(1));
        peer.mark_verified();
        let other = admit(&admission, address(2));
        let flood: Vec<_> = (0..1_000).map(|_| admit(&admission, address(1))).collect();
        let open = flood.iter().filter(|connection| !is_closed(connection)).count();
        assert_eq!(open, LIMITS.max_unverified_per_address);
        assert!(!is_closed(flood.last().unwrap()) && is_closed(&flood[0]));
        assert!(!is_closed(&peer) && !is_closed(&other));
        drop(flood);
        drop(other);
        assert!(admission.unverified.lock().places.is_empty());
        assert!(admission.unverified.lock().by_address.is_empty());
        assert_eq!(admission.peers.available_permits(), LIMITS.max_peers - 1);
        drop(peer);
        assert_eq!(admission.peers.available_permits(), LIMITS.max_peers);
    }

    #[test]
    fn the_address_with_the_most_makes_room_for_another_one() {
        let admission = Arc::new(Admission::new(LIMITS));
        let few: Vec<_> = (0..8).map(|_| admit(&admission, address(200))).collect();
        let flood: Vec<_> = (0..LIMITS.max_unverified)
            .map(|n| {
                admit(
                    &admission,
                    address(n % (LIMITS.max_unverified / LIMITS.max_unverified_per_address)),
                )
            })
            .collect();
        let newcomer = admit(&admission, address(201));
        assert!(few.iter().chain([&newcomer]).all(|connection| !is_closed(connection)));
        let open = flood.iter().filter(|connection| !is_closed(connection)).count();
        assert_eq!(open, LIMITS.max_unverified - few.len() - 1);
    }

    #[test]
    fn a_peer_without_room_stays_among_the_others_and_a_closed_one_takes_no_room() {
        let admission = Arc::new(Admission::new(LIMITS));
        let connect = |n: usize| {
            let connection = admit(&admission, address(n % 200));
            connection.mark_verified();
            connection
        };
        let mut peers: Vec<_> = (0..LIMITS.max_peers).map(connect).collect();
        let late = admit(&admission, address(250));
        late.mark_verified();
        assert_eq!(admission.unverified.lock().places.len(), 1);
        peers.pop();
        late.mark_verified();
        assert_eq!(admission.unverified.lock().places.len(), 0);
        peers.pop();
        let closed = admit(&admission, address(251));
        for _ in 0..LIMITS.max_unverified_per_address {
            drop(admit(&admission, address(251)));
        }
        let kept: Vec<_> = (0..LIMITS.max_unverified_per_address)
            .map(|_| admit(&admission, address(251)))
            .collect();
        assert!(is_closed(&closed));
        closed.mark_verified();
        assert_eq!(admission.peers.available_permits(), 1);
        drop(kept);
    }

    #[test]
    fn a_connection_is_accepted_when_those_that_were_closed_have_ended() {
        let admission = Arc::new(Admission::new(LIMITS));
        let admit = || {
            let room = admission.wait_for_room().now_or_never()?;
            Some(admission.admit(address(1), room))
        };
        let flood: Vec<_> = std::iter::from_fn(admit).collect();
        assert_eq!(flood.len(), LIMITS.max_unverified_per_address + LIMITS.max_closing);
        let (mut closed, open): (Vec<_>, Vec<_>) = flood.into_iter().partition(|c| is_closed(c));
        assert_eq!(open.len(), LIMITS.max_unverified_per_address);
        closed.pop();
        assert!(admit().is_some());
        assert!(admit().is_none());
        drop(closed);
        drop(open);
        assert_eq!(admission.closing.available_permits(), LIMITS.max_closing);
    }
}
