//! Limits on bytes per second by the time of the week, as operators write them:
//! `08:00-18:00 100MiB/s, Sat-Sun 00:00-24:00 none`. Times are of the local clock; where nothing is
//! said there is no limit.

use super::units;
use jiff::Timestamp;
use jiff::tz::TimeZone;

const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
/// Minutes of a day, and of a week.
const MINUTES_PER_DAY: usize = 24 * 60;
const MINUTES_PER_WEEK: usize = 7 * MINUTES_PER_DAY;

/// A limit for each minute of the week.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Timetable(Vec<Entry>);

/// One line of it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    /// As it was written.
    text: String,
    /// Minutes of the week, the end excluded; a part that wraps over the end of the week is two.
    spans: Vec<(usize, usize)>,
    /// Bytes per second.
    limit: Option<u64>,
}

impl Timetable {
    /// Adds an entry: `[DAYS] [HH:MM-HH:MM] LIMIT`. A time that ends before it begins ends on the next
    /// day; without days or times all are meant.
    ///
    /// # Errors
    /// A sentence that quotes what is wrong.
    pub fn add(&mut self, text: &str) -> Result<(), String> {
        let entry = Entry::parse(text)?;
        for earlier in &self.0 {
            if let Some(at) = earlier.first_overlap(&entry) {
                return Err(format!(
                    "`{}` overlaps `{}`: both set the limit on {}; give each its own times",
                    entry.text,
                    earlier.text,
                    format_minute(at)
                ));
            }
        }
        // That is what holds anyway.
        if entry.limit.is_some()
            || entry.spans.iter().map(|(from, to)| to - from).sum::<usize>() < MINUTES_PER_WEEK
        {
            self.0.push(entry);
        }
        Ok(())
    }

    /// The limit at a time of `zone`, in bytes per second.
    pub fn limit_at(&self, time: Timestamp, zone: &TimeZone) -> Option<u64> {
        if self.0.is_empty() {
            return None;
        }
        let local = zone.to_datetime(time);
        let day = usize::from(local.weekday().to_monday_zero_offset().unsigned_abs());
        let clock = |part: i8| usize::from(part.unsigned_abs());
        let at = day * MINUTES_PER_DAY + clock(local.hour()) * 60 + clock(local.minute());
        self.0.iter().find(|entry| entry.contains_minute(at))?.limit
    }
}

impl Entry {
    fn parse(text: &str) -> Result<Self, String> {
        let text: String = text.trim().chars().take(80).flat_map(char::escape_debug).collect();
        let wrong = |why: String| format!("`{text}`: {why}");
        let mut words = text.split_whitespace().peekable();
        let days = match words.peek().filter(|word| word.starts_with(char::is_alphabetic)) {
            // A limit such as `none` stands at the end.
            Some(_) if text.split_whitespace().count() == 1 => (0, 6),
            Some(word) => {
                let days = parse_days(word).map_err(wrong)?;
                words.next();
                days
            }
            None => (0, 6),
        };
        let times = match words.peek().filter(|word| word.contains(':')) {
            Some(word) => {
                let times = parse_times(word).map_err(wrong)?;
                words.next();
                times
            }
            None => (0, MINUTES_PER_DAY),
        };
        let rest: Vec<&str> = words.collect();
        if rest.is_empty() {
            return Err(wrong(
                "there is no limit in it; write for example 08:00-18:00 100MiB/s".into(),
            ));
        }
        let limit = units::parse_bwlimit(&rest.join(" ")).map_err(wrong)?;
        Ok(Entry { spans: week_spans(days, times), text, limit })
    }

    fn contains_minute(&self, at: usize) -> bool {
        self.spans.iter().any(|(from, to)| (*from..*to).contains(&at))
    }

    /// The first minute that both have.
    fn first_overlap(&self, other: &Entry) -> Option<usize> {
        let pairs = self.spans.iter().flat_map(|a| other.spans.iter().map(move |b| (a, b)));
        let common = pairs.map(|(a, b)| (a.0.max(b.0), a.1.min(b.1)));
        common.filter(|(from, to)| from < to).map(|(from, _)| from).min()
    }
}

/// `Mon` or `Mon-Fri`, as numbers from 0.
fn parse_days(word: &str) -> Result<(usize, usize), String> {
    let day = |name: &str| {
        let found = DAYS.iter().position(|day| day.eq_ignore_ascii_case(name));
        found.ok_or_else(|| {
            format!(
                "`{name}` is not a day; the days are Mon, Tue, Wed, Thu, Fri, Sat, Sun, e.g. Mon-Fri"
            )
        })
    };
    match word.split_once('-') {
        Some((from, to)) => Ok((day(from)?, day(to)?)),
        None => day(word).map(|day| (day, day)),
    }
}

/// `HH:MM-HH:MM`, as minutes; the end is larger than the start, by a day where it has to be.
fn parse_times(word: &str) -> Result<(usize, usize), String> {
    let time = |text: &str| {
        let number = |part: &str| part.parse::<usize>().ok().filter(|_| part.len() == 2);
        let (hour, minute) = text.split_once(':')?;
        let (hour, minute) = (number(hour)?, number(minute)?);
        let at = hour * 60 + minute;
        (minute < 60 && at <= MINUTES_PER_DAY).then_some(at)
    };
    let bad =
        |text: &str| format!("`{text}` is not a time; write times as 08:00, from 00:00 to 24:00");
    let (from, to) = word
        .split_once('-')
        .ok_or_else(|| format!("`{word}` names one time; write from and to, e.g. 08:00-18:00"))?;
    let (start, end) = (time(from).ok_or_else(|| bad(from))?, time(to).ok_or_else(|| bad(to))?);
    if start == MINUTES_PER_DAY {
        return Err(bad(from));
    }
    match start == end {
        true => Err(format!("{word} has no length; leave the time out to mean the whole day")),
        false if end < start => Ok((start, end + MINUTES_PER_DAY)),
        false => Ok((start, end)),
    }
}

/// The minutes of the week that are meant.
fn week_spans((first, last): (usize, usize), (start, end): (usize, usize)) -> Vec<(usize, usize)> {
    let days = if first <= last { last - first } else { last + 7 - first };
    let each = (0..=days).map(|n| (first + n) % 7 * MINUTES_PER_DAY);
    each.flat_map(|day| {
        let (from, to) = (day + start, day + end);
        let wrapped = (to > MINUTES_PER_WEEK).then(|| (0, to - MINUTES_PER_WEEK));
        [Some((from, to.min(MINUTES_PER_WEEK))), wrapped].into_iter().flatten()
    })
    .collect()
}

/// A minute of the week, for people.
fn format_minute(at: usize) -> String {
    let day = DAYS[at / MINUTES_PER_DAY % 7];
    format!("{day} {:02}:{:02}", at % MINUTES_PER_DAY / 60, at % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn table(entries: &[&str]) -> Result<Timetable, String> {
        let mut table = Timetable::default();
        entries.iter().try_for_each(|entry| table.add(entry)).map(|()| table)
    }

    /// In MiB, at local times of a zone that is two hours before UTC; 2026-06-01 is a Monday.
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
        for (bad, why) in [
            ("", "no limit"),
            ("08:00-18:00", "no limit"),
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
            let told = table(&[bad]).unwrap_err();
            assert!(told.contains(why) && told.contains(&format!("`{bad}`")), "{bad}: {told}");
        }
        assert!(table(&["1M", "2M"]).unwrap_err().contains("both set the limit on Mon 00:00"));
        assert!(table(&["Sun 23:00-01:00 1M", "Mon 00:30-02:00 2M"]).is_err());
    }
}
