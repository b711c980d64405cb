//! The user for which agents act: its numbers, as a token carries them and the master signs them into tickets.

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The most supplementary groups.
pub const MAX_GROUPS: usize = 64;
/// The kernel's "no change" ([`RunAs::check`]).
const NO_ID: u32 = u32::MAX;

/// User, group and supplementary groups. They are numbers: a name may mean another user on each host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, Encode, Decode)]
#[serde(deny_unknown_fields)]
pub struct RunAs {
    /// The user; not 0.
    #[n(0)]
    pub uid: u32,
    /// The group of new objects.
    #[n(1)]
    pub gid: u32,
    /// The supplementary groups.
    #[n(2)]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<u32>,
}

impl RunAs {
    /// Checks that it is a user other than root.
    ///
    /// # Errors
    /// A message.
    pub fn check(&self) -> Result<(), String> {
        if self.uid == 0 {
            return Err("uid 0 is root: leave run_as out, or name another user".to_owned());
        }
        if self.groups.len() > MAX_GROUPS {
            let count = self.groups.len();
            return Err(format!("{count} groups are too many: at most {MAX_GROUPS} are allowed"));
        }
        let mut all = self.groups.iter().chain([&self.uid, &self.gid]);
        if all.any(|id| *id == NO_ID) {
            return Err(format!("{NO_ID} is not a user or group"));
        }
        Ok(())
    }
}

impl FromStr for RunAs {
    type Err = String;

    /// Reads `UID[:GID[,GROUP…]]`. Without a GID it is the number of the user.
    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| {
            text.parse::<u32>().map_err(|_| {
                format!("must be UID[:GID[,GROUP…]] with numbers (see: id USER), not `{text}`")
            })
        };
        let (uid, groups) = text.split_once(':').unwrap_or((text, ""));
        let uid = number(uid)?;
        let mut groups = match groups {
            "" if !text.contains(':') => vec![uid],
            list => list.split(',').map(number).collect::<Result<_, _>>()?,
        };
        let gid = groups.remove(0);
        let run_as = RunAs { uid, gid, groups };
        run_as.check()?;
        Ok(run_as)
    }
}

/// `UID:GID[,GROUP…]`.
impl fmt::Display for RunAs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.uid, self.gid)?;
        self.groups.iter().try_for_each(|group| write!(f, ",{group}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_numbers_and_never_root() {
        let run_as = |uid, gid, groups: &[u32]| RunAs { uid, gid, groups: groups.to_vec() };
        for (text, expected, shown) in [
            ("1000", run_as(1000, 1000, &[]), "1000:1000"),
            ("1000:100", run_as(1000, 100, &[]), "1000:100"),
            ("1000:100,4,27", run_as(1000, 100, &[4, 27]), "1000:100,4,27"),
        ] {
            let read: RunAs = text.parse().unwrap();
            assert_eq!((&read, read.to_string().as_str()), (&expected, shown));
            let bytes = minicbor::to_vec(&read).unwrap();
            assert_eq!(minicbor::decode::<RunAs>(&bytes).unwrap(), read);
        }
        for bad in ["", "0", "0:0", "alice", "1000:", "1000:1,", "-1", "4294967295", "1:4294967295"]
        {
            assert!(bad.parse::<RunAs>().is_err(), "{bad}");
        }
        let many = vec!["7"; MAX_GROUPS + 2].join(",");
        assert!(format!("1000:{many}").parse::<RunAs>().is_err());
    }
}
