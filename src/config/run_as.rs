//! `run_as` and `root_syncs` of an agents file: as what the agent acts. It overrides what the master requests.

use super::reader::{Fields, Item};
use crate::wire::run_as::RunAs;

/// Users and groups below this are of the system on most hosts.
const DEFAULT_MIN_ID: u32 = 1000;
const MAX_DENIED: usize = 4_096;

/// As what an agent acts for syncs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunAsRules {
    /// Syncs without a `run_as` are done, with the rights of the agent.
    pub root_syncs: bool,
    /// Users with a lower number are refused.
    pub min_uid: u32,
    /// Users with a group or supplementary group of a lower number are refused: such a group may read a disk.
    pub min_gid: u32,
    /// These users are refused.
    pub deny: Vec<u32>,
}

impl Default for RunAsRules {
    fn default() -> Self {
        RunAsRules {
            root_syncs: true,
            min_uid: DEFAULT_MIN_ID,
            min_gid: DEFAULT_MIN_ID,
            deny: Vec::new(),
        }
    }
}

impl RunAsRules {
    /// Whether the agent acts as `user`, or as itself without one.
    ///
    /// # Errors
    /// Why not, and what to do.
    pub fn check(&self, user: Option<&RunAs>) -> Result<(), String> {
        let Some(user) = user else {
            if self.root_syncs {
                return Ok(());
            }
            return Err("its file has `root_syncs: false`, and the sync has no user to act as; submit it with a token \
                 that has one (ctl token create --run-as UID), or change the file"
                .to_owned());
        };
        let uid = user.uid;
        user.check()?;
        if uid < self.min_uid {
            let min = self.min_uid;
            return Err(format!(
                "uid {uid} is below {min}; use another user, or lower `run_as: {{min_uid: {min}}}` in its file"
            ));
        }
        let mut groups = std::iter::once(&user.gid).chain(&user.groups);
        if let Some(gid) = groups.find(|gid| **gid < self.min_gid) {
            let min = self.min_gid;
            return Err(format!(
                "gid {gid} is below {min}; use a token without this group, or lower `run_as: {{min_gid: {min}}}` in its \
                 file"
            ));
        }
        if self.deny.contains(&uid) {
            return Err(format!(
                "uid {uid} is in `run_as: {{deny: […]}}` of its file; use another user"
            ));
        }
        Ok(())
    }

    pub(super) fn read(&mut self, fields: &Fields<'_>) {
        fields.set("root_syncs", &mut self.root_syncs, |i| i.flag());
        fields.read_map("run_as", |rules| {
            rules.set("min_uid", &mut self.min_uid, |i| i.number(1..=u64::from(u32::MAX)));
            rules.set("min_gid", &mut self.min_gid, |i| i.number(0..=u64::from(u32::MAX)));
            rules.set("deny", &mut self.deny, read_uids);
        });
    }
}

fn read_uids(list: &Item<'_>) -> Option<Vec<u32>> {
    let items = list.items()?;
    if items.len() > MAX_DENIED {
        list.error(format!("has {} users, at most {MAX_DENIED} are allowed", items.len()));
        return None;
    }
    items.iter().map(|item| item.number(0..=u64::from(u32::MAX))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_an_agent_has_the_last_word() {
        let user = |uid| RunAs { uid, gid: uid, groups: Vec::new() };
        let rules = RunAsRules { deny: vec![1001], ..RunAsRules::default() };
        assert_eq!(rules.check(None), Ok(()));
        assert_eq!(rules.check(Some(&user(1000))), Ok(()));
        for (uid, reason) in [(0, "root"), (999, "below 1000"), (1001, "deny")] {
            let refused = rules.check(Some(&user(uid))).unwrap_err();
            assert!(refused.contains(reason), "{refused}");
        }
        let in_group = |gid, groups: &[u32]| RunAs { uid: 1000, gid, groups: groups.to_vec() };
        for user in [in_group(0, &[]), in_group(1000, &[1000, 6])] {
            let refused = rules.check(Some(&user)).unwrap_err();
            assert!(refused.contains("min_gid: 1000"), "{refused}");
        }
        let lower = RunAsRules { min_gid: 6, ..rules.clone() };
        assert_eq!(lower.check(Some(&in_group(1000, &[6]))), Ok(()));
        let strict = RunAsRules { root_syncs: false, ..rules };
        assert!(strict.check(None).unwrap_err().contains("ctl token create --run-as"));
        assert_eq!(strict.check(Some(&user(1000))), Ok(()));
    }
}
