//! The environment variables, read once at the start of the program. All other code gets
//! them as a value, so tests do not change the variables of the process.

use std::path::PathBuf;

/// The state directory of a service that runs as root.
const SYSTEM_STATE_DIR: &str = "/var/lib/longhaul";

/// The environment variables of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Env {
    /// `REDIS_URL`: the store of the master; overrides the file.
    pub redis_url: Option<String>,
    /// `CTL_MASTER_URL`: the master of the agents; several are separated by commas.
    pub master_url: Option<String>,
    /// `CTL_LOG_LEVEL`: for master and agent.
    pub log_level: Option<String>,
    /// `AGENT_LOG_LEVEL`: for the agent; overrides `CTL_LOG_LEVEL`.
    pub agent_log_level: Option<String>,
    /// The default of `data_dir`: `/var/lib/longhaul` for root, for others
    /// `$XDG_STATE_HOME/longhaul` or `~/.local/state/longhaul`.
    pub state_dir: PathBuf,
    /// `CREDENTIALS_DIRECTORY`: where systemd puts the credentials of a service (`LoadCredential=`).
    pub credentials_dir: Option<PathBuf>,
}

impl Env {
    /// An environment without variables.
    pub fn empty() -> Self {
        Env {
            redis_url: None,
            master_url: None,
            log_level: None,
            agent_log_level: None,
            state_dir: SYSTEM_STATE_DIR.into(),
            credentials_dir: None,
        }
    }

    /// The environment of this process.
    pub fn from_process() -> Self {
        let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        // A value that is not UTF-8 is kept with replacement characters, so that its check reports it.
        let text = |name: &str| var(name).map(|value| value.to_string_lossy().into_owned());
        Env {
            redis_url: text("REDIS_URL"),
            master_url: text("CTL_MASTER_URL"),
            log_level: text("CTL_LOG_LEVEL"),
            agent_log_level: text("AGENT_LOG_LEVEL"),
            state_dir: state_dir(
                rustix::process::geteuid().is_root(),
                var("XDG_STATE_HOME").map(PathBuf::from),
                var("HOME").map(PathBuf::from),
            ),
            credentials_dir: var("CREDENTIALS_DIRECTORY").map(PathBuf::from),
        }
    }
}

/// Relative values count as unset (XDG base directory specification).
fn state_dir(root: bool, state_home: Option<PathBuf>, home: Option<PathBuf>) -> PathBuf {
    if root {
        return SYSTEM_STATE_DIR.into();
    }
    state_home
        .filter(|dir| dir.is_absolute())
        .or_else(|| home.filter(|dir| dir.is_absolute()).map(|dir| dir.join(".local/state")))
        .map_or_else(|| SYSTEM_STATE_DIR.into(), |dir| dir.join("longhaul"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_directory_follows_the_user() {
        let dir = |root, state: Option<&str>, home: Option<&str>| {
            state_dir(root, state.map(Into::into), home.map(Into::into))
        };
        assert_eq!(dir(true, Some("/s"), Some("/root")), PathBuf::from("/var/lib/longhaul"));
        assert_eq!(dir(false, Some("/s"), Some("/h")), PathBuf::from("/s/longhaul"));
        assert_eq!(dir(false, None, Some("/h")), PathBuf::from("/h/.local/state/longhaul"));
        assert_eq!(dir(false, Some("rel"), Some("/h")), PathBuf::from("/h/.local/state/longhaul"));
        assert_eq!(dir(false, None, None), PathBuf::from("/var/lib/longhaul"));
    }
}
