"""Processes: started in their own session, waited for with what they used, and surely ended.

CPU of a process that has ended comes from wait4 (its own and that of all its children), of one that goes on from
/proc/PID/stat before and after. This process is a subreaper, so what a daemon leaves behind comes here too."""

import ctypes
import os
import signal
import socket
import subprocess
import time

LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_CHILD_SUBREAPER = 36
TICK = os.sysconf("SC_CLK_TCK")
FLOOR_MARGIN = 512


class Failed(Exception):
    """A side did not do its work; the text says what it said."""


def adopt_orphans():
    LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def syncfs(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        if LIBC.syncfs(fd):
            raise OSError(ctypes.get_errno(), "syncfs", path)
    finally:
        os.close(fd)


class Process:
    """One program with its log. `used` is (CPU seconds, peak KiB) once it was waited for. The kernel counts a process
    at least as large as the one that started it was: a peak that can't be distinguished from ours is a `bound` only."""

    def __init__(self, role, argv, log, env=None, stdin=None, stdout=None, service=False):
        self.role, self.argv, self.log, self.used = role, argv, log, None
        self.service, self.floor, self.bound = service, forget_peak(os.getpid()), False
        with open(log, "ab") as out:
            self.popen = subprocess.Popen(
                argv, stdin=stdin or subprocess.DEVNULL, stdout=stdout or out, stderr=out,
                env={**os.environ, **(env or {})}, start_new_session=True)
        self.pid = self.popen.pid
        RUNNING[self.pid] = self

    def wait(self):
        """Exit code; negative: the signal that ended it."""
        if self.used is None:
            _, status, usage = os.wait4(self.pid, 0)
            self.popen.returncode = os.waitstatus_to_exitcode(status)
            self.used = (usage.ru_utime + usage.ru_stime, usage.ru_maxrss)
            self.bound = usage.ru_maxrss <= self.floor + FLOOR_MARGIN
            RUNNING.pop(self.pid, None)
        return self.popen.returncode

    def succeed(self):
        code = self.wait()
        if code != 0:
            raise Failed(f"{os.path.basename(self.argv[0])} ended with {code}: {self.last_words()}")

    def last_words(self):
        with open(self.log, "rb") as log:
            log.seek(max(0, os.path.getsize(self.log) - 2000))
            lines = log.read().decode(errors="replace").strip().splitlines()
        return " / ".join(line.strip() for line in lines[-3:]) or "it said nothing"

    def gone(self):
        """Whether it has ended by itself; it is not waited for."""
        return self.used is not None or state(self.pid) in (None, "Z")

    def cpu(self):
        """CPU seconds so far, those of its ended children included."""
        return cpu_of(self.pid)

    def peak(self):
        """The peak of its resident memory since `forget_peak`, KiB."""
        return peak_of(self.pid)

    def idle(self, seconds=5.0):
        """Waits until it has no children left: then all of their CPU is in its own account."""
        until = time.monotonic() + seconds
        while children(self.pid) and time.monotonic() < until:
            time.sleep(0.005)

    def stop(self, seconds=5.0):
        """SIGTERM, then SIGKILL for it and all in its session."""
        if self.used is not None:
            return
        send(self.pid, signal.SIGTERM)
        until = time.monotonic() + seconds
        while not self.gone() and time.monotonic() < until:
            time.sleep(0.005)
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.wait()


RUNNING = {}


def stop_all(but_services=False):
    """Ends what still runs, what was adopted included; services only at the end of a set."""
    for process in list(RUNNING.values()):
        if not (but_services and process.service):
            process.stop()
    end_adopted()


def end_adopted():
    """Ends the processes that others left to us, and those that these leave; their CPU seconds."""
    total = 0.0
    while left := [pid for pid in children(os.getpid()) if pid not in RUNNING]:
        for pid in left:
            send(pid, signal.SIGKILL)
            usage = os.wait4(pid, 0)[2]
            total += usage.ru_utime + usage.ru_stime
    return total


def send(pid, number):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def fields(pid):
    """The fields of /proc/PID/stat from the third (state) on."""
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rsplit(")", 1)[1].split()


def state(pid):
    try:
        return fields(pid)[0]
    except (FileNotFoundError, ProcessLookupError):
        return None


def forget_peak(pid):
    """Lets the kernel count the peak of its resident memory anew; what it is now, KiB."""
    with open(f"/proc/{pid}/clear_refs", "w") as refs:
        refs.write("5")
    return peak_of(pid)


def peak_of(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))


def cpu_of(pid):
    return sum(int(ticks) for ticks in fields(pid)[11:15]) / TICK


def children(pid):
    """Its child processes."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if fields(name)[1] == str(pid):
                    found.append(int(name))
            except (FileNotFoundError, ProcessLookupError):
                pass
    return found


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listens(port, pid="self"):
    """Whether something listens on the TCP port in the network namespace of a process. It is not connected to: some
    serve one connection only."""
    for table in (f"/proc/{pid}/net/tcp", f"/proc/{pid}/net/tcp6"):
        if os.path.exists(table):
            with open(table) as lines:
                for line in lines:
                    parts = line.split()
                    if len(parts) > 3 and parts[3] == "0A" and int(parts[1].rsplit(":", 1)[1], 16) == port:
                        return True
    return False


def await_port(port, process, seconds=20.0):
    until = time.monotonic() + seconds
    while not listens(port, process.pid):
        if process.gone() or time.monotonic() > until:
            raise Failed(f"{os.path.basename(process.argv[0])} does not listen on port {port}: {process.last_words()}")
        time.sleep(0.005)
