//! The data plane: how content gets from an agent to another one, over HTTP/1.1 on hyper.
//!
//! ```text
//! read ─▶ hash ─▶ [channel] ─▶ socket ══▶ socket ─▶ [channel] ─▶ hash ─▶ write
//!   blocking thread         async, both ends              blocking thread
//! ```
//!
//! Every stage overlaps the next one, and every channel is a few buffers deep: memory per request is a
//! few megabytes, whatever is sent, and the slowest stage sets the pace of all.
//!
//! - [`protocol`]: verbs, limits, replies; [`frame`]: how content travels
//! - [`gate`]: tickets; [`roots`]: the storage roots that a ticket must lie under
//! - [`server`], [`receive`]: the receiving end
//! - [`peers`], [`routes`], [`send`]: the sending end
//! - [`local`]: the same where both ends are this host; [`destination`]: either of the two
//! - [`outcome`]: what became of entries; [`body`], [`pool`]: plumbing

pub mod body;
pub mod destination;
pub mod frame;
pub mod gate;
pub mod local;
pub mod outcome;
pub mod peers;
pub mod pool;
pub mod protocol;
pub mod receive;
pub mod roots;
pub mod routes;
pub mod send;
pub mod server;
#[cfg(test)]
mod tests;

pub use destination::Destination;
pub use gate::TicketGate;
pub use local::Local;
pub use outcome::{Found, Offered, Packed, RangeSent, SendError};
pub use peers::{Peer, Peers};
pub use roots::Roots;
pub use server::{DataServer, Served};
