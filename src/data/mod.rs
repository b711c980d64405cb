//! The data plane: agents send content to each other over HTTP/1.1 (hyper) and upgraded streams.
//!
//! ```text
//! read, hash ─▶ socket ══▶ socket ─▶ hash, write
//!        thread                 thread
//! ```
//!
//! Each stream has a thread at each end; several streams, and the kernel's buffers between them, overlap
//! reading, sending and writing. Memory per stream is a megabyte or two, whatever is sent, and bounded for all of
//! them ([`buffer_pool`]); the slowest stage limits the others.
//!
//! - [`protocol`], [`control_messages`], [`prune_messages`]: paths, limits, requests, replies; [`frame`]: how content travels
//! - [`ticket_verifier`]: tickets and what they allow; [`current_ticket`]: renewal; [`roots`]: the storage roots that a ticket must lie under
//! - [`server`], [`handlers`], [`content_server`], [`receive`]: the receiving end;
//!   [`content_writer`]: how it and a copy on one host write
//! - [`peers`], [`peer`], [`content_client`], [`send`]: the sending end; [`routes`] (with [`route_ranking`],
//!   [`pooled_connection`], [`route_monitor`], [`connect`]): over which NICs; [`nics`], [`meter`]: those of this host;
//!   [`source_reader`]: how it and a copy on one host read
//! - [`local`]: the same where both ends are this host; [`destination`]: either of the two; [`delta`]:
//!   ranges that are compared first, and over several NICs
//! - [`tls`], [`data_stream`], [`content_socket`]: connections in TLS, and plain ones of agents without certificates
//! - [`outcome`]: the outcomes of entries; [`deadline`]: when work ends; [`buffer_pool`]: memory

pub mod active_requests;
pub mod buffer_pool;
pub mod connect;
pub mod content_client;
pub mod content_server;
pub mod content_socket;
pub mod content_writer;
pub mod control_messages;
pub mod current_ticket;
pub mod data_stream;
pub mod deadline;
pub mod delta;
pub mod destination;
pub mod endpoints;
#[cfg(test)]
mod formats;
pub mod frame;
pub mod handlers;
pub mod listen;
pub mod local;
pub mod meter;
pub mod nics;
pub mod outcome;
pub mod peer;
pub mod peers;
pub mod pooled_connection;
pub mod protocol;
pub mod prune_messages;
pub mod receive;
pub mod roots;
pub mod route_monitor;
pub mod route_ranking;
pub mod routes;
mod routing_state;
pub mod send;
pub mod server;
mod server_context;
pub mod socket_reader;
pub mod source_reader;
#[cfg(test)]
mod tests;
pub mod ticket_verifier;
pub mod tls;

pub use active_requests::ActiveRequests;
pub use buffer_pool::BufferPools;
pub use control_messages::{CleanUpRequest, RootCheckRequest};
pub use current_ticket::CurrentTicket;
pub use deadline::{Deadline, TransferControl};
pub use destination::Destination;
pub use endpoints::Endpoints;
pub use local::{CloneOutcome, Local};
pub use outcome::{SendError, WrittenFile};
pub use peers::Peers;
pub use prune_messages::PruneRequest;
pub use roots::Roots;
pub use server::DataServer;
pub use source_reader::hash_source;
pub use ticket_verifier::{Refusal, TicketVerifier};
pub use tls::DataTls;
