//! Names by chance.

use std::time::{SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// One that nobody else has. They sort by the time at which they were made, unless a clock is so wrong that it
/// stands before 1970.
pub fn generate_id() -> Uuid {
    if SystemTime::now() < UNIX_EPOCH { Uuid::new_v4() } else { Uuid::now_v7() }
}
