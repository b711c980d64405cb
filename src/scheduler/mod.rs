//! The scheduler: a pure state machine.

pub mod event;

pub use event::{Caller, Effect, Event, IdempotencyKey, Now, Reply};
