//! Text forms of sizes, rates, counts and durations. Sizes are binary (IEC): one MiB is 1,048,576 bytes.

use crate::wire::path::quote;
use std::time::Duration;

const PREFIXES: [&str; 6] = ["K", "M", "G", "T", "P", "E"];

/// A number of bytes with up to four digits: `0 BACKOFF`, `1023 BACKOFF`, `6.1 TiB`.
pub fn format_bytes(n: u64) -> String {
    if n < 1024 { format!("{n} B") } else { format_scaled(n as f64, "iB") }
}

/// Bytes per second: `11.8 GiB/s`, `0 BACKOFF/s` (also for what is no positive number).
pub fn format_rate(bytes_per_second: f64) -> String {
    if !bytes_per_second.is_finite() || bytes_per_second < 0.5 {
        "0 B/s".to_owned()
    } else if bytes_per_second < 1023.5 {
        format!("{bytes_per_second:.0} B/s")
    } else {
        format_scaled(bytes_per_second.max(1024.0), "iB/s")
    }
}

fn format_scaled(n: f64, unit: &str) -> String {
    let mut value = n / 1024.0;
    let mut prefix = 0;
    // 1023.96 would become 1024.0.
    while value >= 1023.95 && prefix + 1 < PREFIXES.len() {
        value /= 1024.0;
        prefix += 1;
    }
    format!("{value:.1} {}{unit}", PREFIXES[prefix])
}

/// A count with thousands separators: `81,204`.
pub fn format_count(n: u64) -> String {
    let (rest, group) = (n / 1000, n % 1000);
    if rest == 0 { group.to_string() } else { format!("{},{group:03}", format_count(rest)) }
}

/// A count with its noun: `1 entry`, `81,204 entries`.
pub fn pluralize(n: u64, one: &str, many: &str) -> String {
    format!("{} {}", format_count(n), if n == 1 { one } else { many })
}

/// A duration in its two largest units: `350ms`, `12s`, `4m05s`, `2h07m`, `3d04h`.
pub fn format_duration(d: Duration) -> String {
    if d.is_zero() {
        return "0s".to_owned();
    }
    if d < Duration::from_secs(1) {
        return format!("{}ms", d.as_millis());
    }
    let s = d.as_secs();
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86_400 => format!("{}h{:02}m", s / 3600, s / 60 % 60),
        _ => format!("{}d{:02}h", s / 86_400, s / 3600 % 24),
    }
}

/// Parses a duration: `45s`, `500ms`, `5m`, `2h`, `60d`, `1h30m`, or a number of seconds. Each
/// unit at most once, larger ones first.
///
/// # Errors
/// An error message, to be printed after the name of the setting.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let too_long = || format!("{} is too long a duration", quote(text));
    let invalid = || {
        format!("{} is not a duration; write for example 45s, 5m, 2h, 1h30m or 60d", quote(text))
    };
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        // The limit is that of milliseconds, as for a number with a unit.
        let seconds: u64 = text.parse().map_err(|_| too_long())?;
        return seconds.checked_mul(1000).map(Duration::from_millis).ok_or_else(too_long);
    }
    // Stricter than jiff: no ISO 8601, no sign, no fraction, no space between a number and its unit.
    let is_plain = text.starts_with(|c: char| c.is_ascii_digit())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b' ')
        && !text.as_bytes().windows(2).any(|w| w[0].is_ascii_digit() && w[1] == b' ');
    let span = text.parse::<jiff::Span>().ok().filter(|_| is_plain).ok_or_else(invalid)?;
    let duration = span.to_duration(jiff::SpanRelativeTo::days_are_24_hours());
    duration.ok().and_then(|d| Duration::try_from(d).ok()).ok_or_else(invalid)
}

/// Parses a size in bytes: `4096`, `64K`, `64KB`, `64KiB` (all binary); also with M, G, T, P.
/// Upper and lower case, a space before the unit and a fraction (`1.5G`) are allowed.
///
/// # Errors
/// An error message, to be printed after the name of the setting.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let invalid =
        || format!("{} is not a size; write for example 4096, 64MiB or 1.5G", quote(text));
    let too_large = || format!("{} is too large a size", quote(text));
    let text = text.trim();
    let end = text.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
    let (number, unit) = text.split_at(end);
    let unit = unit.trim_start().to_ascii_lowercase();
    let prefix = unit.strip_suffix("ib").or(unit.strip_suffix('b')).unwrap_or(&unit);
    let power = ["", "k", "m", "g", "t", "p"].iter().position(|known| *known == prefix);
    let shift = 10 * power.filter(|_| unit != "ib").ok_or_else(invalid)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let is_fraction =
        (1..=6).contains(&fraction.len()) && fraction.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !is_fraction {
        return Err(invalid());
    }
    let whole: u64 = whole.parse().map_err(|_| too_large())?;
    let whole = whole.checked_mul(1 << shift).ok_or_else(too_large)?;
    let fraction_value: u128 = fraction.parse().map_err(|_| invalid())?;
    let part = ((fraction_value << shift) / 10u128.pow(fraction.len() as u32)) as u64;
    whole.checked_add(part).ok_or_else(too_large)
}

/// The minimum limit, in bytes per second: with a lower one the streams of a copy would pause so long
/// that they count as failed.
const MIN_BWLIMIT: u64 = 64 << 10;

/// Parses a limit in bytes per second, a [size](parse_size) with an optional `/s`; `None` for
/// `none`, `unlimited` and `0`.
///
/// # Errors
/// An error message, to be printed after the name of the setting.
pub fn parse_bwlimit(text: &str) -> Result<Option<u64>, String> {
    let bad = |reason: &str| {
        format!("{} {reason}; write for example 100MiB/s, 1.5G or none", quote(text))
    };
    let trimmed = text.trim();
    if ["none", "unlimited"].contains(&trimmed) {
        return Ok(None);
    }
    let size = trimmed.strip_suffix("/s").unwrap_or(trimmed).trim_end();
    // `Mb` usually means bits: the limit would be eight times too high.
    if size.ends_with('b') && size.trim_end_matches('b').ends_with(['K', 'M', 'G', 'T', 'P']) {
        return Err(bad("may mean bits or bytes: limits are in bytes per second"));
    }
    match parse_size(size).map_err(|_| bad("is not a limit in bytes per second"))? {
        0 => Ok(None),
        1..MIN_BWLIMIT => Err(bad("is too slow for a copy: at least 64KiB/s")),
        limit => Ok(Some(limit)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_rates_are_formatted_with_binary_prefixes() {
        let tib = 1u64 << 40;
        for (n, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (6 * tib + tib / 10, "6.1 TiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(format_bytes(n), text);
        }
        assert_eq!(format_rate(11.8 * (1u64 << 30) as f64), "11.8 GiB/s");
        for (n, text) in [
            (0.0, "0 B/s"),
            (f64::NAN, "0 B/s"),
            (-4.0, "0 B/s"),
            (512.4, "512 B/s"),
            (1023.7, "1.0 KiB/s"),
        ] {
            assert_eq!(format_rate(n), text);
        }
    }

    #[test]
    fn counts_have_separators() {
        for (n, text) in
            [(0, "0"), (999, "999"), (1000, "1,000"), (81_204, "81,204"), (1_234_567, "1,234,567")]
        {
            assert_eq!(format_count(n), text);
        }
    }

    #[test]
    fn durations_show_two_units() {
        for (ms, text) in [
            (0, "0s"),
            (350, "350ms"),
            (12_999, "12s"),
            (245_000, "4m05s"),
            (7_620_000, "2h07m"),
            (273_600_000, "3d04h"),
        ] {
            assert_eq!(format_duration(Duration::from_millis(ms)), text);
        }
    }

    #[test]
    fn durations_are_read_in_every_spelling() {
        for (text, ms) in [
            ("45s", 45_000),
            ("5m", 300_000),
            ("2h", 7_200_000),
            ("60d", 5_184_000_000),
            ("1h30m", 5_400_000),
            ("1h 30m", 5_400_000),
            ("4m05s", 245_000),
            ("500ms", 500),
            ("30", 30_000),
            ("0", 0),
            (" 1w ", 604_800_000),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for bad in [
            "",
            "s",
            "5x",
            "-5s",
            "5m1h",
            "5s5s",
            "1.5h",
            "5 m",
            "1h30",
            "é",
            "99999999999999999999",
            "9999999999999999d",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
        let error = parse_duration("soon\x1b[31m").unwrap_err();
        assert!(error.contains("1h30m") && !error.contains('\x1b'), "{error}");
    }

    #[test]
    fn limits_are_read_in_every_spelling() {
        for text in ["100MiB/s", "100 MiB/s", "100M", "104857600", "102400K", "100mb/s"] {
            assert_eq!(parse_bwlimit(text), Ok(Some(100 << 20)), "{text}");
        }
        for text in ["none", "0", " unlimited ", "0MiB/s"] {
            assert_eq!(parse_bwlimit(text), Ok(None), "{text}");
        }
        for (bad, reason) in [
            ("", "100MiB/s"),
            ("fast", "not a limit"),
            ("-1", "not a limit"),
            ("100Mb/s", "bits or bytes"),
            ("10Gbit/s", "not a limit"),
            ("100MiB/m", "not a limit"),
            ("1", "at least 64KiB/s"),
            ("65535", "at least 64KiB/s"),
        ] {
            assert!(parse_bwlimit(bad).is_err_and(|e| e.contains(reason)), "{bad}");
        }
    }

    #[test]
    fn sizes_are_read_in_every_spelling() {
        for text in ["64MiB", "64MB", "64M", "64m", "64 mib", "65536K", "67108864", "0.0625G"] {
            assert_eq!(parse_size(text), Ok(64 << 20), "{text}");
        }
        assert_eq!(parse_size("1.5k"), Ok(1536));
        assert_eq!(parse_size("0"), Ok(0));
        for bad in [
            "",
            "M",
            "10GG",
            "-1",
            "1e3k",
            "1.2.3M",
            ".5M",
            "5.M",
            "1.0000001M",
            "99999P",
            "18446744073709551616",
        ] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_parsed_or_rejected_with_a_short_message(
            text in proptest::prop_oneof!["\\PC{0,20}", "-?[0-9]{0,25}[.,]?[0-9]{0,5} ?[a-zA-Z]{0,4}(/s)?"],
        ) {
            let errors = [
                parse_size(&text).err(),
                parse_duration(&text).err(),
                parse_bwlimit(&text).err(),
                crate::util::timetable::Timetable::default().add(&text).err(),
            ];
            for reason in errors.into_iter().flatten() {
                proptest::prop_assert!(!reason.is_empty() && reason.len() < 500, "{}", reason);
            }
        }
    }
}
