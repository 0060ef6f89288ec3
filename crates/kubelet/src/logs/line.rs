//! One line of a log in CRI's format. Pure.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// RFC 3339 with nanoseconds, as written.
    pub timestamp: &'a str,
    pub stream: Stream,
    /// The line goes on in the next one.
    pub partial: bool,
    /// Without the newline.
    pub content: &'a [u8],
}

/// Takes a line apart (its newline may be there or not); `None` if it is none of CRI's.
pub fn parse(raw: &[u8]) -> Option<Line<'_>> {
    let raw = raw.strip_suffix(b"\n").unwrap_or(raw);
    let mut rest = raw;
    let mut word = || {
        let end = rest.iter().position(|byte| *byte == b' ')?;
        let (word, after) = rest.split_at(end);
        rest = &after[1..];
        std::str::from_utf8(word).ok()
    };
    let timestamp = word()?;
    let stream = match word()? {
        "stdout" => Stream::Stdout,
        "stderr" => Stream::Stderr,
        _ => return None,
    };
    // The tag is the last word of an empty line; it may have no space after it.
    let (tag, content): (&[u8], &[u8]) = match rest.iter().position(|byte| *byte == b' ') {
        Some(end) => (&rest[..end], &rest[end + 1..]),
        None => (rest, &[]),
    };
    let tag = tag.split(|byte| *byte == b':').next()?;
    let partial = match tag {
        b"P" => true,
        b"F" => false,
        _ => return None,
    };
    Some(Line {
        timestamp,
        stream,
        partial,
        content,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines() {
        let line = |stream, partial, content| {
            Some(Line {
                timestamp: "2026-01-02T15:04:05.1Z",
                stream,
                partial,
                content,
            })
        };
        for (raw, expect) in [
            (
                &b"2026-01-02T15:04:05.1Z stdout F hello world\n"[..],
                line(Stream::Stdout, false, &b"hello world"[..]),
            ),
            (
                b"2026-01-02T15:04:05.1Z stderr P part",
                line(Stream::Stderr, true, b"part"),
            ),
            (
                b"2026-01-02T15:04:05.1Z stdout F \n",
                line(Stream::Stdout, false, b""),
            ),
            (
                b"2026-01-02T15:04:05.1Z stdout F\n",
                line(Stream::Stdout, false, b""),
            ),
            (
                b"2026-01-02T15:04:05.1Z stdout F:x  two spaces",
                line(Stream::Stdout, false, b" two spaces"),
            ),
            (b"2026-01-02T15:04:05.1Z stdin F x", None),
            (b"2026-01-02T15:04:05.1Z stdout X x", None),
            (b"garbage", None),
            (b"", None),
        ] {
            assert_eq!(parse(raw), expect, "{}", String::from_utf8_lossy(raw));
        }
    }

    proptest! {
        #[test]
        fn safety_any_line_is_survived(raw in "[0-9TZ:.-]{0,8} ?(stdout|stderr)? ?[PF:]{0,3} ?.{0,12}\n?", noise: Vec<u8>) {
            let _ = parse(&noise);
            if let Some(line) = parse(raw.as_bytes()) {
                let ending = raw.strip_suffix('\n').unwrap_or(&raw);
                prop_assert!(ending.as_bytes().ends_with(line.content));
            }
        }
    }
}
