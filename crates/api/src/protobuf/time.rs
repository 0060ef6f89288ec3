//! Timestamps: RFC 3339 in JSON, seconds and nanoseconds since 1970 in protobuf.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// `2006-01-02T15:04:05Z`, as `metav1.Time` prints.
pub(super) fn seconds_text(seconds: i64) -> Option<String> {
    let time = civil(seconds, 0)?;
    Some(format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        time.year(),
        time.month(),
        time.day(),
        time.hour(),
        time.minute(),
        time.second()
    ))
}

/// `2006-01-02T15:04:05.000000Z`, as `metav1.MicroTime` prints.
pub(super) fn micros_text(seconds: i64, nanos: i32) -> Option<String> {
    let time = civil(seconds, nanos)?;
    let micros = time.subsec_nanosecond() / 1000;
    Some(format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{micros:06}Z",
        time.year(),
        time.month(),
        time.day(),
        time.hour(),
        time.minute(),
        time.second()
    ))
}

/// Seconds and nanoseconds of an RFC 3339 text.
pub(super) fn parse(text: &str) -> Option<(i64, i32)> {
    let time: Timestamp = text.parse().ok()?;
    let (mut seconds, mut nanos) = (time.as_second(), time.subsec_nanosecond());
    if nanos < 0 {
        seconds -= 1;
        nanos += 1_000_000_000;
    }
    Some((seconds, nanos))
}

/// Years 0 to 9999, the ones that RFC 3339 has.
fn civil(seconds: i64, nanos: i32) -> Option<jiff::civil::DateTime> {
    if !(0..1_000_000_000).contains(&nanos) {
        return None;
    }
    let time = Timestamp::new(seconds, nanos).ok()?;
    let civil = TimeZone::UTC.to_datetime(time);
    (civil.year() >= 0).then_some(civil)
}
