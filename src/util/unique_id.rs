//! Random ids.

use std::time::{SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// A new id. Ids sort by the time of their creation, unless the clock is before 1970.
pub fn generate_id() -> Uuid {
    if SystemTime::now() < UNIX_EPOCH { Uuid::new_v4() } else { Uuid::now_v7() }
}
