//! The attributes of entries that a sync preserves.

use super::path::quote;
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// A set of [`Attribute`]s, in JSON a list of their names. The default is all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
#[serde(try_from = "Vec<String>", into = "Vec<&'static str>")]
#[cbor(transparent)]
pub struct Preserve(#[n(0)] u16);

/// An attribute of an entry that can be preserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Attribute {
    /// Permission bits with set-uid, set-gid and sticky.
    Mode = 1,
    /// The numeric owner.
    Owner = 2,
    /// The numeric group.
    Group = 4,
    /// The modification time.
    Times = 8,
    /// Extended attributes (`user.*`, `trusted.*`, `security.*`).
    Xattrs = 16,
    /// POSIX access control lists.
    Acls = 32,
    /// Hard links between entries of the source become hard links at the destination.
    Hardlinks = 64,
    /// Holes.
    Sparse = 128,
    /// FIFOs and sockets.
    Specials = 256,
    /// Device nodes.
    Devices = 512,
}

impl Attribute {
    /// All attributes with their names.
    pub const ALL: [(Attribute, &'static str); 10] = [
        (Attribute::Mode, "mode"),
        (Attribute::Owner, "owner"),
        (Attribute::Group, "group"),
        (Attribute::Times, "times"),
        (Attribute::Xattrs, "xattrs"),
        (Attribute::Acls, "acls"),
        (Attribute::Hardlinks, "hardlinks"),
        (Attribute::Sparse, "sparse"),
        (Attribute::Specials, "specials"),
        (Attribute::Devices, "devices"),
    ];
}

impl Preserve {
    /// Only content and file type.
    pub const NONE: Preserve = Preserve(0);

    /// All attributes.
    pub fn all() -> Self {
        Attribute::ALL.iter().fold(Preserve::NONE, |set, (one, _)| set.with(*one))
    }

    /// Whether it is [`Preserve::all`].
    pub fn is_all(&self) -> bool {
        *self == Preserve::all()
    }

    /// Whether `attribute` is preserved.
    pub fn contains(self, attribute: Attribute) -> bool {
        self.0 & attribute as u16 != 0
    }

    /// The set with `attribute`.
    #[must_use]
    pub fn with(self, attribute: Attribute) -> Self {
        Preserve(self.0 | attribute as u16)
    }

    /// The set without `attribute`.
    #[must_use]
    pub fn without(self, attribute: Attribute) -> Self {
        Preserve(self.0 & !(attribute as u16))
    }

    /// The names of the preserved attributes.
    pub fn names(self) -> Vec<&'static str> {
        Attribute::ALL
            .iter()
            .filter(|(one, _)| self.contains(*one))
            .map(|(_, name)| *name)
            .collect()
    }

    /// Parses a list of names; `all` and `none` are the two sets, `no-NAME` removes an attribute. The
    /// order matters; a list that begins with `no-` begins with all attributes.
    ///
    /// # Errors
    /// An error message with the unknown name.
    pub fn parse_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let mut set: Option<Preserve> = None;
        for word in names {
            let removed = word.strip_prefix("no-");
            let start = if removed.is_some() { Preserve::all() } else { Preserve::NONE };
            let current = set.unwrap_or(start);
            let name = removed.unwrap_or(word);
            let attribute = Attribute::ALL.iter().find(|(_, known)| *known == name);
            set = Some(match (attribute, word) {
                (Some((attribute, _)), _) if removed.is_some() => current.without(*attribute),
                (Some((attribute, _)), _) => current.with(*attribute),
                (None, "all") => Preserve::all(),
                (None, "none") => Preserve::NONE,
                _ => {
                    return Err(format!(
                        "unknown --preserve item {}; valid: all, none, {}, or one of them after `no-`",
                        quote(word),
                        Preserve::all().names().join(", ")
                    ));
                }
            });
        }
        Ok(set.unwrap_or_else(Preserve::all))
    }
}

impl Default for Preserve {
    fn default() -> Self {
        Preserve::all()
    }
}

impl From<Preserve> for Vec<&'static str> {
    fn from(set: Preserve) -> Self {
        let names = set.names();
        if names.is_empty() { vec!["none"] } else { names }
    }
}

impl TryFrom<Vec<String>> for Preserve {
    type Error = String;
    fn try_from(names: Vec<String>) -> Result<Self, String> {
        Preserve::parse_names(names.iter().map(String::as_str))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preserve_is_a_list_of_attribute_names() {
        let of = |text: &str| Preserve::parse_names(text.split(','));
        assert_eq!(of("all"), Ok(Preserve::all()));
        assert_eq!(of("none"), Ok(Preserve::NONE));
        assert_eq!(of("mode,times").unwrap().names(), ["mode", "times"]);
        assert_eq!(of("no-owner,no-group"), of("all,no-owner,no-group"));
        assert!(!of("no-owner").unwrap().contains(Attribute::Owner));
        assert!(of("mode,tims").unwrap_err().contains("`tims`"));
        assert!(of("no-all").is_err());
        for set in [Preserve::NONE, of("mode,acls").unwrap()] {
            let text = serde_json::to_string(&set).unwrap();
            assert_eq!(serde_json::from_str::<Preserve>(&text).unwrap(), set, "{text}");
        }
    }
}
