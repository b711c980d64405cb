//! master

mod faults;
pub mod handle;
pub mod http;
mod submission;

pub use handle::Handle;
