//! Longhaul moves bulk data between storage hosts.
//!
//! One binary, `ctl`, is the master, the agent and the operator's command line. The master decides,
//! the agents move bytes; nothing but small documents ever passes through the master.
//!
//! ```text
//! operator ── ctl sync … ──HTTP──▶ master ──commit──▶ store (Redis | embedded)
//!                                    ▲  ▲
//!             heartbeat, poll, result│  │heartbeat, poll, result
//!                                    │  │
//! source storage ◀─read─ agent A ────┘  └──── agent B ─write─▶ destination storage
//!                           └────── data plane: NIC i ─▶ NIC j ──────┘
//! ```
//!
//! Modules, lowest layer first; imports point only downwards (`tests/layers.rs` holds them to it):
//! `wire ← util ← identity ← config ← {store, audit, client, fs} ← {scheduler, data} ← {master, agent} ← cli ← main`.

pub mod wire;

pub mod util;

pub mod identity;

pub mod config;

mod audit;
pub mod client;
mod fs;
mod store;

mod data;
mod scheduler;

mod agent;
mod master;

pub mod cli;
