//! Growing pauses between attempts. Pure.

use jiff::{SignedDuration, Timestamp};

/// First pause, as upstream's for crashing containers and failing pulls.
pub const INITIAL_SECONDS: i64 = 10;
/// Longest pause.
pub const MAX_SECONDS: i64 = 300;
/// A container that ran this long starts over with the first pause (twice the longest).
const RESET_SECONDS: i64 = 2 * MAX_SECONDS;

/// The pause of one container or image; starts at none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    delay_seconds: i64,
    updated_at: Option<Timestamp>,
}

impl Backoff {
    pub fn delay_seconds(&self) -> i64 {
        self.delay_seconds
    }

    /// When an attempt may follow what ended at `ended_at`; `None`: at once.
    pub fn until(&self, ended_at: Timestamp) -> Option<Timestamp> {
        if self.delay_seconds == 0 || self.expired(ended_at) {
            return None;
        }
        Some(ended_at + SignedDuration::from_secs(self.delay_seconds))
    }

    /// Notes an attempt after what ended at `ended_at`, so that the next pause is longer.
    pub fn advance(&mut self, ended_at: Timestamp, now: Timestamp) {
        self.delay_seconds = if self.delay_seconds == 0 || self.expired(ended_at) {
            INITIAL_SECONDS
        } else {
            (self.delay_seconds * 2).min(MAX_SECONDS)
        };
        self.updated_at = Some(now);
    }

    fn expired(&self, at: Timestamp) -> bool {
        self.updated_at.is_some_and(|updated_at| {
            at.duration_since(updated_at) > SignedDuration::from_secs(RESET_SECONDS)
        })
    }
}

/// A Go duration of whole seconds: `10s`, `1m20s`, `5m0s`.
pub fn format_seconds(seconds: i64) -> String {
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, _) => format!("{minutes}m{rest}s"),
        _ => format!("{hours}h{minutes}m{rest}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_maximum_and_resets() {
        let at = |seconds| Timestamp::UNIX_EPOCH + SignedDuration::from_secs(seconds);
        let mut backoff = Backoff::default();
        assert_eq!(backoff.until(at(0)), None, "the first restart is immediate");
        let mut now = 0;
        for expect in [10, 20, 40, 80, 160, 300, 300] {
            backoff.advance(at(now), at(now));
            assert_eq!(backoff.delay_seconds(), expect);
            assert_eq!(backoff.until(at(now + 1)), Some(at(now + 1 + expect)));
            now += 5;
        }
        assert_eq!(backoff.until(at(now + 601)), None);
        backoff.advance(at(now + 601), at(now + 601));
        assert_eq!(backoff.delay_seconds(), 10);
    }

    #[test]
    fn durations_read_as_go_prints_them() {
        for (seconds, expect) in [(10, "10s"), (80, "1m20s"), (300, "5m0s"), (3600, "1h0m0s")] {
            assert_eq!(format_seconds(seconds), expect);
        }
    }
}
