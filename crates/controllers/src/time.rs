//! Times as the API stores them.

use jiff::Timestamp;

/// A `Time` has whole seconds: what is compared with a stored one must have, too.
pub fn whole_seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}
