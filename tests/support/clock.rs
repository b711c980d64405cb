//! Wrong clocks, which can be set while a process runs: the reply of the C library to a request for the
//! time of day is changed by so many seconds. What never jumps (monotonic time) stays as it is, and
//! so do the times that the kernel gives to files.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Loaded before the C library. The seconds to add stand in a file of 8 bytes.
const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile long *wrong;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("WRONG_CLOCK");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *at = mmap(0, sizeof *wrong, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (at != MAP_FAILED)
        wrong = at;
}

int clock_gettime(clockid_t id, struct timespec *time) {
    int failed = syscall(SYS_clock_gettime, id, time);
    if (!failed && wrong && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE))
        time->tv_sec += *wrong;
    return failed;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    (void)zone;
    struct timespec now;
    int failed = clock_gettime(CLOCK_REALTIME, &now);
    if (!failed) {
        time->tv_sec = now.tv_sec;
        time->tv_usec = now.tv_nsec / 1000;
    }
    return failed;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at)
        *at = now.tv_sec;
    return now.tv_sec;
}
"#;

/// Seconds of a day.
pub(crate) const DAY: i64 = 24 * 3600;

/// Builds what is loaded, beside the clock `path`.
fn build_library(path: &Path) {
    let (source, library) = (path.with_file_name("clock.c"), library(path));
    if library.exists() {
        return;
    }
    std::fs::write(&source, SOURCE).expect("write the source");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source);
    assert!(cc.status().expect("a C compiler, as Rust needs one to link").success());
}

fn library(path: &Path) -> PathBuf {
    path.with_file_name("clock.so")
}

/// A clock that can be set. Processes have it from their start on.
pub(crate) struct Clock {
    path: PathBuf,
    file: File,
}

impl Clock {
    /// One that is kept in `path`, and is wrong by so many seconds.
    pub(crate) fn at(path: PathBuf, seconds: i64) -> Clock {
        build_library(&path);
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let clock = Clock { file: file.expect("a file"), path };
        clock.set(seconds);
        clock
    }

    /// Sets it, also for processes that run.
    pub(crate) fn set(&self, seconds: i64) {
        self.file.write_all_at(&seconds.to_ne_bytes(), 0).expect("write the clock");
    }

    /// The environment of a process that uses it.
    pub(crate) fn environment_for(path: &Path) -> [(&'static str, PathBuf); 2] {
        [("LD_PRELOAD", library(path)), ("WRONG_CLOCK", path.to_owned())]
    }

    /// The same for this one.
    pub(crate) fn environment_of_this(&self) -> [(&'static str, PathBuf); 2] {
        Clock::environment_for(&self.path)
    }

    /// Applies the clock of a process of this name in `dir`, where there is one, to `command`.
    pub(crate) fn apply_to(command: &mut Command, dir: &Path, name: &str) {
        let path = dir.join(format!("{name}.clock"));
        if path.exists() {
            command.envs(Clock::environment_for(&path));
        }
    }
}
