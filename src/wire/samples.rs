//! Recorded samples of documents in `tests/formats`, which every later version must read and write unchanged.
//!
//! `UPDATE_FORMATS=1` writes the samples that are made from values (see `tests/formats/README.md`).

use minicbor::{Decode, Encode};
use serde::de::{DeserializeOwned, Visitor};
use serde::forward_to_deserialize_any;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::fs;
use std::path::PathBuf;

/// The samples of one directory. [`finish`](Self::finish) fails for files that no test reads.
pub(crate) struct Samples {
    dir: PathBuf,
    read: BTreeSet<String>,
    update: bool,
}

impl Samples {
    /// The samples in `tests/formats/DIR`.
    pub(crate) fn open(dir: &str) -> Self {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/formats").join(dir);
        let update = std::env::var_os("UPDATE_FORMATS").is_some();
        if update {
            fs::create_dir_all(&dir).unwrap();
        }
        Samples { dir, read: BTreeSet::new(), update }
    }

    /// Whether samples are written anew.
    pub(crate) fn is_update(&self) -> bool {
        self.update
    }

    /// Removes the files of the directory.
    pub(crate) fn remove_all(&self) {
        self.file_names().iter().for_each(|file| fs::remove_file(self.dir.join(file)).unwrap());
    }

    /// The names of the files in the directory.
    pub(crate) fn file_names(&self) -> BTreeSet<String> {
        let files =
            fs::read_dir(&self.dir).unwrap_or_else(|e| panic!("{}: {e}", self.dir.display()));
        files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// The bytes of a file. With `UPDATE_FORMATS` the file is written with `current` first.
    pub(crate) fn read(&mut self, file: &str, current: Option<&[u8]>) -> Vec<u8> {
        let path = self.dir.join(file);
        if let (true, Some(current)) = (self.update, current) {
            fs::write(&path, current).unwrap();
        }
        self.read.insert(file.to_owned());
        fs::read(&path).unwrap_or_else(|e| {
            panic!("{}: {e}; write new samples with UPDATE_FORMATS=1", path.display())
        })
    }

    /// Checks that the JSON document `NAME.json` has every field of `T` and that reading and writing it changes nothing.
    pub(crate) fn check_json<T: Serialize + DeserializeOwned>(&mut self, name: &str) -> T {
        let bytes = self.read(&format!("{name}.json"), None);
        let document: Value = serde_json::from_slice(&bytes).unwrap();
        if let (Some(fields), Some(members)) = (field_names::<T>(), document.as_object()) {
            let missing: Vec<_> = fields.iter().filter(|f| !members.contains_key(**f)).collect();
            assert!(missing.is_empty(), "the sample {name} lacks the fields {missing:?}");
        }
        let value: T = serde_json::from_value(document.clone())
            .unwrap_or_else(|e| panic!("the sample {name} cannot be read any more: {e}"));
        assert_eq!(serde_json::to_value(&value).unwrap(), document, "the format of {name} changed");
        value
    }

    /// Checks that `value` is written as the JSON document `NAME.json`.
    pub(crate) fn check_written<T: Serialize>(&mut self, name: &str, value: &T) {
        let bytes = self.read(&format!("{name}.json"), None);
        let document: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(serde_json::to_value(value).unwrap(), document, "the format of {name} changed");
    }

    /// Checks that the JSON list `NAME.json` has every word of the enum `T` and is read and written unchanged.
    pub(crate) fn check_words<T: Serialize + DeserializeOwned>(&mut self, name: &str) {
        let bytes = self.read(&format!("{name}.json"), None);
        let words: Vec<String> = serde_json::from_slice(&bytes).unwrap();
        let variants = variant_names::<T>().unwrap_or_else(|| panic!("{name}: not an enum"));
        assert_eq!(words, variants, "the words of {name} changed");
        let values: Vec<T> = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(serde_json::to_value(&values).unwrap(), serde_json::json!(words));
    }

    /// Checks that the bytes in `NAME.hex` are read as `value` and that `value` is encoded to them.
    pub(crate) fn check_bytes<T: PartialEq + Debug>(
        &mut self,
        name: &str,
        value: &T,
        encode: impl FnOnce(&T) -> Vec<u8>,
        decode: impl FnOnce(&[u8]) -> T,
    ) {
        let encoded = encode(value);
        let bytes = from_hex(&self.read(&format!("{name}.hex"), Some(to_hex(&encoded).as_bytes())));
        assert_eq!(&decode(&bytes), value, "the sample {name} is not read as before");
        assert_eq!(to_hex(&encoded), to_hex(&bytes), "the format of {name} changed");
    }

    /// [`check_bytes`](Self::check_bytes) of a CBOR document.
    pub(crate) fn check_cbor<T>(&mut self, name: &str, value: &T)
    where
        T: PartialEq + Debug + Encode<()> + for<'b> Decode<'b, ()>,
    {
        self.check_bytes(
            name,
            value,
            |value| minicbor::to_vec(value).unwrap(),
            |bytes| minicbor::decode(bytes).unwrap(),
        );
    }

    /// Checks that every file of the directory was read.
    pub(crate) fn finish(self) {
        let unread: Vec<_> = self.file_names().difference(&self.read).cloned().collect();
        assert!(unread.is_empty(), "no test reads {unread:?} in {}", self.dir.display());
    }
}

/// Hexadecimal digits, 32 bytes a line.
fn to_hex(bytes: &[u8]) -> String {
    let line =
        |line: &[u8]| line.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n";
    bytes.chunks(32).map(line).collect()
}

fn from_hex(text: &[u8]) -> Vec<u8> {
    let digits: Vec<u8> = text.iter().copied().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

/// The names of the fields of a struct with a derived [`Deserialize`]; `None` for another type.
fn field_names<'de, T: Deserialize<'de>>() -> Option<&'static [&'static str]> {
    let mut probe = Probe::default();
    let _ = T::deserialize(&mut probe);
    probe.fields
}

/// The words of an enum with a derived [`Deserialize`]; `None` for another type.
fn variant_names<'de, T: Deserialize<'de>>() -> Option<&'static [&'static str]> {
    let mut probe = Probe::default();
    let _ = T::deserialize(&mut probe);
    probe.variants
}

/// A deserializer that always fails, and keeps the names of the fields or variants that the type passes to it.
#[derive(Default)]
struct Probe {
    fields: Option<&'static [&'static str]>,
    variants: Option<&'static [&'static str]>,
}

impl<'de> Deserializer<'de> for &mut Probe {
    type Error = serde::de::value::Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
        Err(serde::de::Error::custom("a probe has no value"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, Self::Error> {
        self.fields = Some(fields);
        Err(serde::de::Error::custom("a probe has no value"))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, Self::Error> {
        self.variants = Some(variants);
        Err(serde::de::Error::custom("a probe has no value"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map identifier ignored_any
    }
}
