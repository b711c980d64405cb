//! Times on the command line.

use crate::util::units;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

/// A time: RFC 3339, a local date or time, or a time before now such as `2h`.
pub(super) fn parse_time(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    if let Ok(local) = text.parse::<DateTime>() {
        let zoned = local.to_zoned(TimeZone::system()).map_err(|e| e.to_string())?;
        return Ok(zoned.timestamp());
    }
    let ago = units::parse_duration(text).map_err(|_| {
        "must be a time such as `2026-03-01T08:00:00Z`, a local one such as `2026-03-01` or `2026-03-01T09:00`, or the \
         time before now such as `2h`"
            .to_owned()
    })?;
    Timestamp::now().checked_sub(ago).map_err(|_| "is too long ago".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_absolute_local_or_before_now() {
        assert_eq!(parse_time("1970-01-01T00:00:00Z"), Ok(Timestamp::UNIX_EPOCH));
        assert!(parse_time("2026-03-01").is_ok() && parse_time("2026-03-01T09:00").is_ok());
        let (before, ago) = (Timestamp::now(), parse_time("2h").unwrap());
        let seconds = before.duration_since(ago).as_secs();
        assert!((7_190..=7_200).contains(&seconds), "{seconds}");
        for wrong in ["", "yesterday", "2026-13-01", "-2h"] {
            assert!(parse_time(wrong).is_err(), "{wrong}");
        }
    }
}
