//! master

pub mod handle;
mod submission;

pub use handle::Handle;
