//! Log lines as JSON objects with the keys `time`, `level`, `msg` and `target`, then the fields of the event, then
//! one object with the fields of each enclosing span.

use serde_json::{Value, json};
use std::fmt;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

/// The keys of every line; a field with such a name gets the suffix `_`.
const RESERVED_KEYS: [&str; 4] = ["time", "level", "msg", "target"];

pub(super) struct JsonFormat;

impl<S, N> FormatEvent<S, N> for JsonFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let (time, meta) = (jiff::Timestamp::now(), event.metadata());
        let (level, target) = (meta.level().as_str(), json!(meta.target()));
        let msg = json!(fields.message);
        write!(writer, r#"{{"time":"{time:.6}","level":"{level}","msg":{msg},"target":{target}"#)?;
        for (name, value) in &fields.others {
            let suffix = if RESERVED_KEYS.contains(name) { "_" } else { "" };
            write!(writer, ",{}:{value}", json!(format!("{name}{suffix}")))?;
        }
        for span in ctx.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            let extensions = span.extensions();
            // `JsonFields` formatted them as an object.
            if let Some(fields) = extensions.get::<FormattedFields<JsonFields>>() {
                write!(writer, ",{}:{}", json!(span.name()), fields.fields)?;
            }
        }
        writeln!(writer, "}}")
    }
}

/// The fields of an event, in order.
#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, Value)>,
}

impl Fields {
    fn add(&mut self, field: &Field, value: Value) {
        match field.name() {
            "message" => self.message = value.as_str().map_or(value.to_string(), str::to_owned),
            name => self.others.push((name, value)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format!("{value:?}").into());
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value.into());
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value.into());
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value.into());
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use std::io::Write;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
            self.0.lock().write(line)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_is_one_object_with_time_level_and_msg_first() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .json()
            .event_format(JsonFormat)
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!("http", id = "q\"1");
            let _entered = span.enter();
            tracing::warn!(sync = "s", count = 3u64, time = "later", ok = true, "a \"{}\"\n", 'b');
        });
        let text = String::from_utf8(lines.0.lock().clone()).unwrap();
        assert!(text.starts_with("{\"time\":\"2") && text.ends_with("}\n"), "{text}");
        let mut line: Value = serde_json::from_str(&text).unwrap();
        let time = line.as_object_mut().unwrap().remove("time").unwrap();
        let time = time.as_str().unwrap();
        assert!(time.len() == 27 && time.parse::<jiff::Timestamp>().is_ok(), "{time}");
        assert_eq!(
            line,
            json!({
                "level": "WARN", "msg": "a \"b\"\n", "target": module_path!(), "sync": "s", "count": 3,
                "time_": "later", "ok": true, "http": {"id": "q\"1"},
            })
        );
    }
}
