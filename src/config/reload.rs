//! A configuration that is read again while its program runs: what takes effect at once, and what needs a restart.

use super::master::{Limits, SyncDefaults};
use super::{AgentConfig, LogConfig, MasterConfig, NicConfig, StoreConfig};

/// What a file that was read again changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReloadReport {
    /// Keys whose new values are in effect.
    pub applied: Vec<&'static str>,
    /// Keys whose new values take effect after a restart; the old ones stay.
    pub needs_restart: Vec<&'static str>,
}

impl ReloadReport {
    fn apply_change<T: PartialEq>(&mut self, key: &'static str, old: &mut T, new: T) {
        if *old != new {
            *old = new;
            self.applied.push(key);
        }
    }

    fn mark_for_restart<T: PartialEq>(&mut self, key: &'static str, old: &T, new: &T) {
        if old != new {
            self.needs_restart.push(key);
        }
    }

    fn log(&mut self, old: &mut LogConfig, new: LogConfig) {
        let LogConfig { level, format, file } = new;
        self.apply_change("log.level", &mut old.level, level);
        self.apply_change("log.file", &mut old.file, file);
        self.mark_for_restart("log.format", &old.format, &format);
    }
}

/// A configuration that can be read again.
pub trait Reload: Clone {
    /// Takes what can take effect at once from `new`.
    fn reload(&mut self, new: Self) -> ReloadReport;

    /// What is logged, and how.
    fn log(&self) -> &LogConfig;

    /// The same, to be changed.
    fn log_mut(&mut self) -> &mut LogConfig;
}

impl Reload for MasterConfig {
    fn reload(&mut self, new: Self) -> ReloadReport {
        // By name, so that a new key is given its place here.
        let MasterConfig {
            listen,
            advertise_url,
            installation,
            leadership_lease,
            data_dir,
            store,
            heartbeat_interval,
            worker_heartbeat_timeout,
            lease,
            poll_wait_max,
            retention,
            limits,
            bwlimit,
            defaults,
            log,
        } = new;
        let mut found = ReloadReport::default();
        found.apply_change("heartbeat_interval", &mut self.heartbeat_interval, heartbeat_interval);
        found.apply_change("retention", &mut self.retention, retention);
        let Limits {
            max_active_syncs,
            no_space_timeout,
            window_tasks,
            max_connections,
            max_file_list_bytes,
        } = limits;
        let old = &mut self.limits;
        found.apply_change("limits.max_active_syncs", &mut old.max_active_syncs, max_active_syncs);
        found.apply_change("limits.no_space_timeout", &mut old.no_space_timeout, no_space_timeout);
        found.apply_change("limits.window_tasks", &mut old.window_tasks, window_tasks);
        let bytes = &mut old.max_file_list_bytes;
        found.apply_change("limits.max_file_list_bytes", bytes, max_file_list_bytes);
        found.mark_for_restart("limits.max_connections", &old.max_connections, &max_connections);
        found.apply_change("bwlimit", &mut self.bwlimit, bwlimit);
        let SyncDefaults { chunk_size_mb, max_retries, max_worker_losses } = defaults;
        let old = &mut self.defaults;
        found.apply_change("defaults.chunk_size_mb", &mut old.chunk_size_mb, chunk_size_mb);
        found.apply_change("defaults.max_retries", &mut old.max_retries, max_retries);
        let losses = &mut old.max_worker_losses;
        found.apply_change("defaults.max_worker_losses", losses, max_worker_losses);
        found.log(&mut self.log, log);
        found.mark_for_restart("listen", &self.listen, &listen);
        found.mark_for_restart("advertise_url", &self.advertise_url, &advertise_url);
        found.mark_for_restart("installation", &self.installation, &installation);
        found.mark_for_restart("leadership_lease", &self.leadership_lease, &leadership_lease);
        found.mark_for_restart("data_dir", &self.data_dir, &data_dir);
        let embedded = |store: &StoreConfig| matches!(store, StoreConfig::Embedded { .. });
        // Where the embedded store is, `data_dir` says.
        if !(embedded(&self.store) && embedded(&store)) {
            found.mark_for_restart("redis", &self.store, &store);
        }
        let timeout = &worker_heartbeat_timeout;
        found.mark_for_restart("worker_heartbeat_timeout", &self.worker_heartbeat_timeout, timeout);
        found.mark_for_restart("lease", &self.lease, &lease);
        found.mark_for_restart("poll_wait_max", &self.poll_wait_max, &poll_wait_max);
        found
    }

    fn log(&self) -> &LogConfig {
        &self.log
    }

    fn log_mut(&mut self) -> &mut LogConfig {
        &mut self.log
    }
}

impl Reload for AgentConfig {
    fn reload(&mut self, new: Self) -> ReloadReport {
        let AgentConfig {
            worker_id,
            master_urls,
            storage_paths,
            control_plane_address,
            data_plane_endpoints,
            heartbeat_interval,
            drain_timeout,
            slots,
            bwlimit,
            buffer_memory,
            direct_io,
            data_dir,
            log,
        } = new;
        let mut found = ReloadReport::default();
        found.apply_change("heartbeat_interval", &mut self.heartbeat_interval, heartbeat_interval);
        found.apply_change("drain_timeout", &mut self.drain_timeout, drain_timeout);
        found.apply_change("bwlimit", &mut self.bwlimit, bwlimit);
        let key = "network.data_plane_endpoints";
        if without_bwlimits(&self.data_plane_endpoints) == without_bwlimits(&data_plane_endpoints) {
            // Only their limits differ.
            found.apply_change(key, &mut self.data_plane_endpoints, data_plane_endpoints);
        } else {
            found.mark_for_restart(key, &self.data_plane_endpoints, &data_plane_endpoints);
        }
        found.log(&mut self.log, log);
        found.mark_for_restart("worker_id", &self.worker_id, &worker_id);
        found.mark_for_restart("master_url", &self.master_urls, &master_urls);
        found.mark_for_restart("storage_paths", &self.storage_paths, &storage_paths);
        let address = &control_plane_address;
        found.mark_for_restart(
            "network.control_plane_address",
            &self.control_plane_address,
            address,
        );
        found.mark_for_restart("slots", &self.slots, &slots);
        found.mark_for_restart("buffer_memory", &self.buffer_memory, &buffer_memory);
        found.mark_for_restart("direct_io", &self.direct_io, &direct_io);
        found.mark_for_restart("data_dir", &self.data_dir, &data_dir);
        found
    }

    fn log(&self) -> &LogConfig {
        &self.log
    }

    fn log_mut(&mut self) -> &mut LogConfig {
        &mut self.log
    }
}

/// The endpoints without their limits.
fn without_bwlimits(nics: &[NicConfig]) -> Vec<NicConfig> {
    let without = |nic: &NicConfig| {
        let mut nic = nic.clone();
        nic.settings.bwlimit = None;
        nic
    };
    nics.iter().map(without).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Env, load_agent, load_master};

    fn file(text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.yml");
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    fn master(text: &str) -> MasterConfig {
        let (_dir, path) = file(&format!("lease: 30s\n{text}"));
        load_master(Some(&path), &Env::empty()).unwrap().config
    }

    fn agent(shared: &str, worker: &str, endpoint: &str) -> AgentConfig {
        let text = format!(
            "drain_timeout: 60s\n{shared}workers:\n  - worker_id: w\n    storage_paths: [/a]\n{worker}    network:\n      \
             control_plane_address: 10.0.0.1\n      data_plane_endpoints: [{endpoint}]\n"
        );
        let text = match text.contains("master_url") {
            true => text,
            false => format!("master_url: http://m:1\n{text}"),
        };
        let (_dir, path) = file(&text);
        load_agent(&path, None, &Env::empty()).unwrap().config
    }

    #[test]
    fn each_key_of_a_master_is_applied_or_needs_a_restart() {
        for (line, key, applied) in [
            ("retention: 1d", "retention", true),
            ("heartbeat_interval: 1s", "heartbeat_interval", true),
            ("limits: {max_active_syncs: 1}", "limits.max_active_syncs", true),
            ("limits: {no_space_timeout: 1s}", "limits.no_space_timeout", true),
            ("limits: {window_tasks: 9}", "limits.window_tasks", true),
            ("limits: {max_file_list_bytes: 1MiB}", "limits.max_file_list_bytes", true),
            ("limits: {max_connections: 99}", "limits.max_connections", false),
            ("bwlimit: \"08:00-18:00 100MiB/s\"", "bwlimit", true),
            ("defaults: {chunk_size_mb: 1}", "defaults.chunk_size_mb", true),
            ("defaults: {max_retries: 1}", "defaults.max_retries", true),
            ("defaults: {max_worker_losses: 1}", "defaults.max_worker_losses", true),
            ("log: {level: debug}", "log.level", true),
            ("log: {file: /var/log/ctl.log}", "log.file", true),
            ("log: {format: json}", "log.format", false),
            ("listen: 0.0.0.0:1", "listen", false),
            ("advertise_url: http://a:1", "advertise_url", false),
            ("installation: a", "installation", false),
            ("leadership_lease: 9s", "leadership_lease", false),
            ("worker_heartbeat_timeout: 99s", "worker_heartbeat_timeout", false),
            ("poll_wait_max: 9s", "poll_wait_max", false),
            ("redis: {host: a}", "redis", false),
        ] {
            let (old, new) = (master(""), master(line));
            let mut running = old.clone();
            let found = running.reload(new.clone());
            let (changed, kept) = match applied {
                true => (&found.applied, &found.needs_restart),
                false => (&found.needs_restart, &found.applied),
            };
            assert_eq!((changed.as_slice(), kept.len()), (&[key][..], 0), "{line}: {found:?}");
            assert_eq!(running, if applied { new.clone() } else { old }, "{line}");
            // What needs a restart is named again, what is in effect is not.
            assert_eq!(running.reload(new).needs_restart, found.needs_restart, "{line}");
        }
        let mut running = master("");
        let both =
            running.reload(MasterConfig { lease: running.lease * 2, ..master("retention: 1d") });
        assert_eq!((both.applied, both.needs_restart), (vec!["retention"], vec!["lease"]));
        let moved = MasterConfig { data_dir: "/elsewhere".into(), ..running.clone() };
        assert_eq!(running.reload(moved).needs_restart, ["data_dir"]);
    }

    #[test]
    fn each_key_of_an_agent_is_applied_or_needs_a_restart() {
        let plain = "10.0.0.1";
        for (shared, worker, endpoint, key, applied) in [
            ("heartbeat_interval: 1s\n", "", plain, "heartbeat_interval", true),
            ("bwlimit: 1MiB/s\n", "", plain, "bwlimit", true),
            ("", "    drain_timeout: 1s\n", plain, "drain_timeout", true),
            ("log: {level: debug}\n", "", plain, "log.level", true),
            ("log: {format: json}\n", "", plain, "log.format", false),
            ("", "", "{address: 10.0.0.1, bwlimit: 1MiB/s}", "network.data_plane_endpoints", true),
            ("", "", "{address: 10.0.0.1, weight: 7}", "network.data_plane_endpoints", false),
            ("", "", "10.0.0.2", "network.data_plane_endpoints", false),
            ("master_url: http://n:1\n", "", plain, "master_url", false),
            ("slots: 3\n", "", plain, "slots", false),
            ("buffer_memory: 8MiB\n", "", plain, "buffer_memory", false),
            ("direct_io: true\n", "", plain, "direct_io", false),
            ("data_dir: /d\n", "", plain, "data_dir", false),
        ] {
            let (old, new) = (agent("", "", plain), agent(shared, worker, endpoint));
            let mut running = old.clone();
            let found = running.reload(new.clone());
            let (changed, kept) = match applied {
                true => (&found.applied, &found.needs_restart),
                false => (&found.needs_restart, &found.applied),
            };
            assert_eq!((changed.as_slice(), kept.len()), (&[key][..], 0), "{key}: {found:?}");
            assert_eq!(running, if applied { new } else { old }, "{key}");
        }
    }
}
