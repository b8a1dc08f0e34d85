//! A point in time as people write it ([`Moment`]): RFC 3339, or an age. The command line and the JSON API accept the
//! same texts.

use std::str::FromStr;

use jiff::fmt::temporal::Pieces;
use smtpwatch_core::Timestamp;

/// Maximum number of digits of an age. Every such age fits in 64 bits as seconds.
pub const AGE_DIGITS: usize = 10;

/// A point in time, or an age.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moment {
    /// A point in time.
    At(Timestamp),
    /// So many seconds before the time at which it is resolved.
    SecondsAgo(i64),
}

/// The text is neither a time nor an age.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("expected a time such as 2026-11-23T15:04:05Z, or an age such as 30m, 24h or 7d")]
pub struct MomentError;

impl Moment {
    /// The point in time; `now` resolves an age.
    #[must_use]
    pub fn at(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(at) => at,
            Self::SecondsAgo(seconds) => Timestamp(now.0.saturating_sub(seconds.saturating_mul(1_000_000_000))),
        }
    }
}

impl FromStr for Moment {
    type Err = MomentError;

    fn from_str(text: &str) -> Result<Self, MomentError> {
        parse_seconds(text).map(Moment::SecondsAgo).or_else(|| point(text)).ok_or(MomentError)
    }
}

/// Seconds of a number of seconds, minutes, hours, days or weeks: `30m`.
#[must_use]
pub fn parse_seconds(text: &str) -> Option<i64> {
    let unit = match text.as_bytes().last()? {
        b's' => 1,
        b'm' => 60,
        b'h' => 3_600,
        b'd' => 86_400,
        b'w' => 604_800,
        _ => return None,
    };
    let digits = text.get(..text.len() - 1)?;
    let accepted = digits.len() <= AGE_DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit());
    let count: i64 = digits.parse().ok().filter(|_| accepted)?;
    Some(count.saturating_mul(unit))
}

/// RFC 3339 §5.6, also with a space instead of the `T`, and with the time zone of RFC 9557 as suffix. Times outside the
/// range of a [`Timestamp`] are clamped to it: nothing was seen there.
fn point(text: &str) -> Option<Moment> {
    let shape = "dddd-dd-ddtdd:dd:dd".bytes().zip(text.bytes()).all(|(expected, found)| match expected {
        b'd' => found.is_ascii_digit(),
        b't' => matches!(found, b'T' | b't' | b' '),
        other => found == other,
    });
    // The parser accepts further forms; a time without an offset is not a point in time.
    if !shape || text.len() < 20 {
        return None;
    }
    let pieces = Pieces::parse(text).ok()?;
    let (offset, time) = (pieces.to_numeric_offset()?, pieces.time()?);
    let at = offset.to_timestamp(pieces.date().to_datetime(time));
    let beyond = if pieces.date().year() < 1970 { i64::MIN } else { i64::MAX };
    let nanoseconds = at.ok().and_then(|at| i64::try_from(at.as_nanosecond()).ok());
    Some(Moment::At(Timestamp(nanoseconds.unwrap_or(beyond))))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-23T15:04:05Z.
    const NOW: Timestamp = Timestamp::from_secs(1_795_446_245);

    #[test]
    fn times_and_ages() {
        let ago = |seconds: i64| NOW.0 - seconds * 1_000_000_000;
        for (text, expected) in [
            ("2026-11-23T15:04:05Z", NOW.0),
            ("2026-11-23t16:04:05+01:00", NOW.0),
            ("2026-11-23T15:04:05.000001Z", NOW.0 + 1_000),
            ("2026-11-23 15:04:05Z", NOW.0),
            ("2026-11-23T16:04:05+01:00[Europe/Berlin]", NOW.0),
            ("2026-11-23T15:04:05Z[Europe/Berlin]", NOW.0),
            ("0001-01-01T00:00:00Z", i64::MIN),
            ("9999-12-31T23:59:59Z", i64::MAX),
            ("0s", NOW.0),
            ("30m", ago(1_800)),
            ("24h", ago(86_400)),
            ("7d", ago(7 * 86_400)),
            ("2w", ago(14 * 86_400)),
            ("1234567s", ago(1_234_567)),
            // More than the range of a time: the earliest one that an age can name.
            ("999999w", NOW.0.saturating_sub(i64::MAX)),
            ("4294967295d", NOW.0.saturating_sub(i64::MAX)),
        ] {
            assert_eq!(text.parse::<Moment>().map(|moment| moment.at(NOW).0), Ok(expected), "{text}");
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "h",
            "+1h",
            "-1h",
            "1",
            "1y",
            "1 h",
            "12345678901d",
            "2026-11-23",
            "2026-11-23T15:04:05",
            "2026-11-23T15:04:05[Europe/Berlin]",
            "2026-11-23_15:04:05Z",
            "2026-11-23T15:04Z",
            "20261123T150405Z",
            "yesterday",
            "2026-13-23T15:04:05Z",
            "ähm",
            "é",
        ] {
            assert_eq!(text.parse::<Moment>(), Err(MomentError), "{text}");
        }
    }
}
