//! Limits on bytes per second by the time of the week, as in
//! `08:00-18:00 100MiB/s, Sat-Sun 00:00-24:00 none`. Times are local; outside of all entries there is no limit.

use super::units;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::ops::Range;

const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
const MINUTES_PER_DAY: usize = 24 * 60;
const MINUTES_PER_WEEK: usize = 7 * MINUTES_PER_DAY;

/// A limit for each minute of the week.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Timetable(Vec<Entry>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    /// The configured text.
    text: String,
    /// Whether the entry applies, for each minute of the week.
    minutes: Vec<bool>,
    /// Bytes per second.
    limit: Option<u64>,
}

impl Timetable {
    /// Adds an entry: `[DAYS] [HH:MM-HH:MM] LIMIT`. A range with an end before its start ends on the next
    /// day; the default is all days and the whole day.
    ///
    /// # Errors
    /// An error message that quotes the invalid part.
    pub fn add(&mut self, text: &str) -> Result<(), String> {
        let entry = Entry::parse(text)?;
        for earlier in &self.0 {
            let mut pairs = earlier.minutes.iter().zip(&entry.minutes);
            if let Some(overlap) = pairs.position(|(a, b)| *a && *b) {
                return Err(format!(
                    "`{}` overlaps `{}`: both set the limit on {}; give each its own times",
                    entry.text,
                    earlier.text,
                    format_minute(overlap)
                ));
            }
        }
        // No limit at any time is the default.
        if entry.limit.is_some() || entry.minutes.contains(&false) {
            self.0.push(entry);
        }
        Ok(())
    }

    /// The limit at a time in `zone`, in bytes per second.
    pub fn limit_at(&self, time: Timestamp, zone: &TimeZone) -> Option<u64> {
        if self.0.is_empty() {
            return None;
        }
        let local = zone.to_datetime(time);
        let number = |part: i8| usize::from(part.unsigned_abs());
        let day = number(local.weekday().to_monday_zero_offset());
        let minute = day * MINUTES_PER_DAY + number(local.hour()) * 60 + number(local.minute());
        self.0.iter().find(|entry| entry.minutes[minute])?.limit
    }
}

impl Entry {
    fn parse(text: &str) -> Result<Self, String> {
        let text: String = text.trim().chars().take(80).flat_map(char::escape_debug).collect();
        let error = |reason: String| format!("`{text}`: {reason}");
        let mut words = text.split_whitespace().peekable();
        // A single word is the limit, e.g. `none`.
        let is_days = |word: &&str| {
            word.starts_with(char::is_alphabetic) && text.split_whitespace().nth(1).is_some()
        };
        let days = words.next_if(is_days).map(parse_days).transpose().map_err(error)?;
        let times = words.next_if(|word| word.contains(':')).map(parse_times).transpose();
        let (days, times) =
            (days.unwrap_or(0..7), times.map_err(error)?.unwrap_or(0..MINUTES_PER_DAY));
        let limit: Vec<&str> = words.collect();
        if limit.is_empty() {
            return Err(error(
                "the limit is missing; write for example 08:00-18:00 100MiB/s".into(),
            ));
        }
        let limit = units::parse_bwlimit(&limit.join(" ")).map_err(error)?;
        let mut minutes = vec![false; MINUTES_PER_WEEK];
        for minute in days.flat_map(|day| times.clone().map(move |m| day * MINUTES_PER_DAY + m)) {
            minutes[minute % MINUTES_PER_WEEK] = true;
        }
        Ok(Entry { text, minutes, limit })
    }
}

/// `Mon` or `Mon-Fri`, as numbers from 0; those after Sunday continue with 7.
fn parse_days(word: &str) -> Result<Range<usize>, String> {
    let day = |name: &str| {
        let index = DAYS.iter().position(|day| day.eq_ignore_ascii_case(name));
        index.ok_or_else(|| {
            format!("`{name}` is not a day; the days are {}, e.g. Mon-Fri", DAYS.join(", "))
        })
    };
    let (first, last) = word.split_once('-').unwrap_or((word, word));
    let (first, last) = (day(first)?, day(last)?);
    Ok(first..last + 1 + if last < first { 7 } else { 0 })
}

/// `HH:MM-HH:MM`, in minutes; an end on the next day is after [`MINUTES_PER_DAY`].
fn parse_times(word: &str) -> Result<Range<usize>, String> {
    let minutes = |text: &str| {
        let number = |part: &str| part.parse::<usize>().ok().filter(|_| part.len() == 2);
        let (hour, minute) = text.split_once(':')?;
        let (hour, minute) = (number(hour)?, number(minute)?);
        let total = hour * 60 + minute;
        (minute < 60 && total <= MINUTES_PER_DAY).then_some(total)
    };
    let invalid =
        |text: &str| format!("`{text}` is not a time; write times as 08:00, from 00:00 to 24:00");
    let (from, to) = word
        .split_once('-')
        .ok_or_else(|| format!("`{word}` is one time; write from and to, e.g. 08:00-18:00"))?;
    let start = minutes(from).filter(|start| *start < MINUTES_PER_DAY);
    let start = start.ok_or_else(|| invalid(from))?;
    let end = minutes(to).ok_or_else(|| invalid(to))?;
    if start == end {
        return Err(format!("{word} has no length; omit the time for the whole day"));
    }
    Ok(start..if end < start { end + MINUTES_PER_DAY } else { end })
}

/// A minute of the week, e.g. `Mon 08:00`.
fn format_minute(minute: usize) -> String {
    let day = DAYS[minute / MINUTES_PER_DAY % 7];
    format!("{day} {:02}:{:02}", minute % MINUTES_PER_DAY / 60, minute % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn table(entries: &[&str]) -> Result<Timetable, String> {
        let mut table = Timetable::default();
        entries.iter().try_for_each(|entry| table.add(entry)).map(|()| table)
    }

    /// In MiB, at local times two hours ahead of UTC; 2026-06-01 is a Monday.
    fn at(table: &Timetable, local: &str) -> Option<u64> {
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        let time = local.parse::<jiff::civil::DateTime>().unwrap();
        let time = zone.to_timestamp(time).unwrap();
        table.limit_at(time, &zone).map(|limit| limit / MIB)
    }

    #[test]
    fn each_time_of_the_week_has_its_limit() {
        let table =
            table(&["Mon-Fri 08:00-18:00 100MiB/s", "18:00-07:30 500M", "sat none"]).unwrap_err();
        assert!(table.contains("`sat none` overlaps `18:00-07:30 500M`"), "{table}");
        assert!(table.contains("on Sat 00:00"), "{table}");
        let table =
            self::table(&["Mon-Fri 08:00-18:00 100 MiB/s", "Mon-Thu 18:00-07:30 500M", "Sun 1G"])
                .unwrap();
        for (time, limit) in [
            ("2026-06-01T07:59:59", None),
            ("2026-06-01T08:00:00", Some(100)),
            ("2026-06-01T17:59:59", Some(100)),
            ("2026-06-01T18:00:00", Some(500)),
            ("2026-06-02T07:29:59", Some(500)),
            ("2026-06-02T07:30:00", None),
            ("2026-06-05T07:00:00", Some(500)),
            ("2026-06-05T19:00:00", None),
            ("2026-06-06T12:00:00", None),
            ("2026-06-07T00:00:00", Some(1024)),
            ("2026-06-07T23:59:59", Some(1024)),
            ("2026-06-08T00:00:00", None),
        ] {
            assert_eq!(at(&table, time), limit, "{time}");
        }
    }

    #[test]
    fn times_and_days_may_wrap_around_the_week() {
        let table = table(&["Fri-Mon 22:00-06:00 1M"]).unwrap();
        for (time, limited) in [
            ("2026-06-07T23:00:00", true),
            ("2026-06-08T05:59:00", true),
            ("2026-06-08T06:00:00", false),
            ("2026-06-08T22:00:00", true),
            ("2026-06-09T05:00:00", true),
            ("2026-06-09T22:00:00", false),
            ("2026-06-05T05:00:00", false),
        ] {
            assert_eq!(at(&table, time).is_some(), limited, "{time}");
        }
    }

    #[test]
    fn a_limit_without_times_applies_always() {
        for text in ["100MiB/s", "00:00-24:00 100M", "Mon-Sun 100M", "Wed-Tue 100M"] {
            let table = table(&[text]).unwrap();
            assert_eq!(at(&table, "2026-06-03T12:34:00"), Some(100), "{text}");
        }
        assert_eq!(table(&["none"]), Ok(Timetable::default()));
        assert_eq!(at(&Timetable::default(), "2026-06-03T12:34:00"), None);
    }

    #[test]
    fn errors_quote_the_wrong_part() {
        for (bad, reason) in [
            ("", "limit is missing"),
            ("08:00-18:00", "limit is missing"),
            ("Mon-Fri", "is not a limit"),
            ("08:00 1M", "from and to"),
            ("8:00-18:00 1M", "`8:00` is not a time"),
            ("08:60-18:00 1M", "`08:60` is not a time"),
            ("08:00-24:01 1M", "`24:01` is not a time"),
            ("24:00-08:00 1M", "`24:00` is not a time"),
            ("08:00-08:00 1M", "no length"),
            ("Mon-Fry 1M", "`Fry` is not a day"),
            ("Mo 08:00-18:00 1M", "`Mo` is not a day"),
            ("08:00-18:00 fast", "is not a limit"),
            ("08:00-18:00 100Mb/s", "bits or bytes"),
        ] {
            let error = table(&[bad]).unwrap_err();
            assert!(
                error.contains(reason) && error.contains(&format!("`{bad}`")),
                "{bad}: {error}"
            );
        }
        assert!(table(&["1M", "2M"]).unwrap_err().contains("both set the limit on Mon 00:00"));
        assert!(table(&["Sun 23:00-01:00 1M", "Mon 00:30-02:00 2M"]).is_err());
    }
}
