//! The data plane: how content gets from an agent to another one, over HTTP/1.1 on hyper.
//!
//! ```text
//! read, hash ─▶ socket ══▶ socket ─▶ hash, write
//!        thread                 thread
//! ```
//!
//! Each stream has a thread at each end; several streams, and the kernel's buffers between them, overlap
//! reading, sending and writing. Memory per stream is a megabyte or two, whatever is sent, and bounded for all of
//! them ([`buffer_pool`]); the slowest stage sets the pace of all.
//!
//! - [`protocol`], [`control_messages`]: verbs, limits, requests, replies; [`frame`], [`stream`]: how content travels
//! - [`gate`]: tickets and what they allow; [`roots`]: the storage roots that a ticket must lie under
//! - [`server`], [`verbs`], [`receive`], [`control_handlers`]: the receiving end; [`store`]: how both it and a
//!   copy on one host write
//! - [`peers`], [`peer`], [`send`]: the sending end; [`routes`] (with [`routing_state`],
//!   [`route_ranking`], [`lease`], [`watch`], [`connect`]): over which
//!   NICs; [`nics`], [`meter`]: our own; [`read`]: how both it and a copy on one host read
//! - [`local`]: the same where both ends are this host; [`destination`]: either of the two; [`delta`]:
//!   ranges that are compared first; [`stripe`]: ranges over several NICs
//! - [`outcome`]: what became of entries; [`until`]: when work ends; [`stall`], [`buffer_pool`]: plumbing

pub mod active_requests;
pub mod buffer_pool;
pub mod connect;
pub mod content_client;
pub mod control_handlers;
pub mod control_messages;
pub mod delta;
pub mod destination;
pub mod endpoints;
pub mod frame;
pub mod gate;
pub mod lease;
pub mod listen;
pub mod local;
pub mod meter;
pub mod nics;
pub mod outcome;
pub mod peer;
pub mod peers;
pub mod protocol;
pub mod read;
pub mod receive;
pub mod roots;
pub mod route_ranking;
pub mod routes;
mod routing_state;
pub mod send;
pub mod server;
pub mod stall;
pub mod store;
pub mod stream;
mod stripe;
#[cfg(test)]
mod tests;
pub mod until;
pub mod verbs;
pub mod watch;

pub use active_requests::ActiveRequests;
pub use buffer_pool::BufferPools;
pub use control_messages::{PruneOutcome, PruneRequest, PruneResume};
pub use destination::Destination;
pub use endpoints::Endpoints;
pub use gate::TicketVerifier;
pub use local::{CloneOutcome, Local};
pub use outcome::{
    CompareOutcome, DirMetadataError, OfferDecision, OfferOutcome, PackOutcome, RangeMode,
    RangeOutcome, SendError, WrittenFile,
};
pub use peer::Peer;
pub use peers::Peers;
pub use read::hash_source;
pub use roots::Roots;
pub use server::{DataServer, ServerContext};
pub use until::Deadline;
