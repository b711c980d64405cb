//! The data plane: how content gets from an agent to another one, over HTTP/1.1 on hyper.
//!
//! ```text
//! read, hash ─▶ socket ══▶ socket ─▶ hash, write
//!        thread                 thread
//! ```
//!
//! Each stream has a thread at each end; several streams, and the kernel's buffers between them, overlap
//! reading, sending and writing. Memory per stream is a megabyte or two, whatever is sent, and bounded for all of
//! them ([`pool`]); the slowest stage sets the pace of all.
//!
//! - [`protocol`], [`asks`]: verbs, limits, requests, replies; [`frame`], [`stream`]: how content travels
//! - [`gate`]: tickets and what they allow; [`full_or_read_only`]: the storage roots that a ticket must lie under
//! - [`server`], [`verbs`], [`receive`], [`maintain`]: the receiving end; [`store`]: how both it and a
//!   copy on one host write
//! - [`peers`], [`peer`], [`send`]: the sending end; [`routes`] (with [`route`],
//!   [`choice`], [`lease`], [`watch`], [`try_connect`]): over which
//!   NICs; [`nics`], [`meter`]: our own; [`read`]: how both it and a copy on one host read
//! - [`local`]: the same where both ends are this host; [`destination`]: either of the two; [`delta`]:
//!   ranges that are compared first; [`stripe`]: ranges over several NICs
//! - [`outcome`]: what became of entries; [`until`]: when work ends; [`read_worker`], [`pool`]: plumbing

pub mod asking;
pub mod asks;
pub mod body;
pub mod choice;
pub mod connect;
pub mod delta;
pub mod destination;
pub mod endpoints;
pub mod frame;
pub mod gate;
pub mod lease;
pub mod listen;
pub mod local;
pub mod maintain;
pub mod meter;
pub mod nics;
pub mod outcome;
pub mod peer;
pub mod peers;
pub mod pool;
pub mod protocol;
pub mod read;
pub mod receive;
pub mod requests;
pub mod roots;
mod route;
pub mod routes;
pub mod send;
pub mod server;
pub mod store;
pub mod stream;
mod stripe;
#[cfg(test)]
mod tests;
pub mod until;
pub mod verbs;
pub mod watch;

pub use asks::{PruneAsk, PrunedPage, Resume};
pub use destination::Destination;
pub use endpoints::Endpoints;
pub use gate::TicketGate;
pub use local::{Cloned, Local};
pub use outcome::{
    Compared, Found, Offered, Packed, RangeMode, RangeSent, SendError, UnstampedDir, Written,
};
pub use peer::Peer;
pub use peers::Peers;
pub use pool::Buffers;
pub use read::hash_source;
pub use requests::Requests;
pub use roots::Roots;
pub use server::{DataServer, Served};
pub use until::Until;
