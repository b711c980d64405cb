"""The others: each starts its daemon afresh for each run, untimed, and is timed from the start of its command to
its end, and the flush of the destination that Longhaul includes."""

import os
import shutil
import socket
import subprocess
import time
from collections import namedtuple

from meter import Process, await_port, end_adopted, free_port, stop_all, syncfs

# seconds; CPU seconds by role; peak KiB by role; roles with a peak that is an upper bound only.
Used = namedtuple("Used", "seconds cpu peak_kib bounds")


def account(seconds, processes, before=0.0):
    """Of processes that have ended; the first of them had used `before` when the time began."""
    cpu = {process.role: process.used[0] for process in processes}
    cpu[processes[0].role] += end_adopted() - before
    return Used(seconds, cpu, {process.role: process.used[1] for process in processes},
                [process.role for process in processes if process.bound])


def timed(bench, start):
    """Runs what `start` starts to its end; the processes and the seconds, flush included."""
    begin = time.monotonic()
    processes = start()
    # The last one first: it ends when the other one does, whatever becomes of that.
    for process in reversed(processes):
        process.succeed()
    if bench.flush:
        syncfs(bench.dst)
    return processes, time.monotonic() - begin


class Side:
    """name: on the command line and in tables; text: what it does for its time; package: where it comes from."""

    name = text = package = program = None
    # Whether it can be run again on a destination that is complete; whether a million files take it minutes.
    again, slow = True, False
    # Whether it takes part only where --sides names it.
    named_only = False
    tell_version = "--version"

    def __init__(self, bench):
        self.bench = bench

    def absent(self):
        """Why it can't take part, or None."""
        if shutil.which(self.program):
            return None
        return f"{self.program} is not installed ({self.package})"

    def version(self):
        said = subprocess.run([self.program, self.tell_version], capture_output=True, text=True, check=False)
        return ((said.stdout or said.stderr).strip().splitlines() or ["?"])[0].strip()

    def opens(self, local):
        """Before the rounds of a set."""

    def close(self):
        """After them, and after a failure."""

    def log(self, what="log"):
        return os.path.join(self.bench.state, f"{self.name}.{what}")

    # --- one run ---

    def daemon(self, src, dst):
        """Starts what must be there before; a Process that is stopped afterwards, or None."""
        return None

    def commands(self, src, dst, again):
        """Starts what is timed."""
        raise NotImplementedError

    def run(self, src, dst, again):
        """Untimed start, timed work, untimed end: Used. It raises Failed, with everything stopped."""
        try:
            daemon = self.daemon(src, dst)
            before = daemon.cpu() if daemon else 0.0
            processes, seconds = timed(self.bench, lambda: self.commands(src, dst, again))
            if daemon and daemon not in processes:
                daemon.idle()
                daemon.stop()
                processes = [daemon, *processes]
            return account(seconds, processes, before)
        finally:
            stop_all(but_services=True)


class Rsync(Side):
    name, program, package = "rsync", "rsync", "apt install rsync"
    text, keep = "rsync -a to its daemon", "-a"

    def daemon(self, src, dst):
        self.port, config = free_port(), self.log("conf")
        with open(config, "w") as file:
            file.write(f"port = {self.port}\naddress = 127.0.0.1\nuse chroot = no\nuid = {os.getuid()}\n"
                       f"gid = {os.getgid()}\npid file = {self.log('pid')}\nlog file = {self.log('daemon.log')}\n"
                       f"[dst]\npath = {self.bench.dst}\nread only = no\n")
        if os.path.exists(self.log("pid")):
            os.remove(self.log("pid"))
        process = Process("daemon", ["rsync", "--daemon", "--no-detach", f"--config={config}"], self.log())
        await_port(self.port, process)
        return process

    def commands(self, src, dst, again):
        name = os.path.relpath(dst, self.bench.dst)
        return [Process("client", ["rsync", self.keep, f"{src}/", f"rsync://127.0.0.1:{self.port}/dst/{name}/"], self.log())]


class RsyncAll(Rsync):
    name, text, keep, named_only = "rsync-all", "rsync -aHAX to its daemon: what longhaul keeps", "-aHAX", True


class Tar(Side):
    name, program, package, again = "tar", "tar", "apt install tar", False
    text = "tar c through a TCP connection into tar x, each with the socket itself (no relay between)"

    def commands(self, src, dst, again):
        os.makedirs(dst)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            with socket.create_connection(listener.getsockname()) as sending, listener.accept()[0] as receiving:
                return [
                    Process("sender", ["tar", "-C", src, "-cf", "-", "."], self.log(), stdout=sending),
                    Process("receiver", ["tar", "-C", dst, "-xpBf", "-"], self.log(), stdin=receiving),
                ]


class Globus(Side):
    name, program, package = "guc", "globus-url-copy", "apt install globus-gass-copy-progs globus-gridftp-server-progs"
    text = "globus-url-copy to a GridFTP server, 4 streams (trees: 2 connections, pipelined); content only, unverified"
    slow, tell_version = True, "-version"
    server = "globus-gridftp-server"

    def absent(self):
        found = shutil.which(self.server) or shutil.which(self.server, path="/usr/sbin:/usr/local/sbin")
        if not shutil.which(self.program) or not found:
            return f"{self.program} or {self.server} is not installed ({self.package})"
        self.server = found
        return None

    def daemon(self, src, dst):
        self.port = free_port()
        argv = [self.server, "-aa", "-p", str(self.port), "-control-interface", "127.0.0.1",
                "-data-interface", "127.0.0.1"]
        if os.getuid() == 0:
            argv += ["-allow-root", "-anonymous-user", "root"]
        process = Process("daemon", argv, self.log())
        await_port(self.port, process)
        return process

    def commands(self, src, dst, again):
        argv = [self.program, "-q", "-r", "-cd", "-p", "4"]
        if not self.bench.single_file:
            argv += ["-cc", "2", "-pp"]
        if again:
            argv.append("-sync")
        return [Process("client", [*argv, f"file://{src}/", f"ftp://127.0.0.1:{self.port}{dst}/"], self.log())]


class Rclone(Side):
    name, program, package, slow = "rclone", "rclone", "apt install rclone", True
    # Over WebDAV it waits 10 ms before each request: this is its fast way.
    text = "rclone copy from rclone serve http"

    def daemon(self, src, dst):
        self.port = free_port()
        self.env = {"RCLONE_CONFIG": self.log("conf")}
        with open(self.log("conf"), "w"):
            pass
        process = Process("daemon", ["rclone", "serve", "http", src, "--addr",
                                     f"127.0.0.1:{self.port}"], self.log(), env=self.env)
        await_port(self.port, process)
        return process

    def commands(self, src, dst, again):
        return [Process("client", ["rclone", "copy", ":http:", dst, "--http-url", f"http://127.0.0.1:{self.port}",
                                   "--transfers", "8"], self.log(), env=self.env)]


class Syq(Side):
    name, program, package = "syq", "syq", "cargo install syq"
    text = "syq cp over plain TCP to a second process of its own, which a shell on this host starts; unverified"

    def commands(self, src, dst, again):
        home, shell = self.log("home"), self.log("shell")
        os.makedirs(home, mode=0o700, exist_ok=True)
        with open(shell, "w") as file:
            # It is called with a host and a command. The other side listens on this address.
            file.write('#!/bin/sh\nshift\nexport SSH_CONNECTION="127.0.0.1 1 127.0.0.1 22"\nexec /bin/sh -c "$1"\n')
        os.chmod(shell, 0o700)
        env = {"HOME": home, "XDG_CACHE_HOME": home, "XDG_CONFIG_HOME": home, "SYQ_NO_UPDATE_CHECK": "1"}
        return [Process("client", ["syq", "cp", "--srcs-in", src, "--to", "127.0.0.1", "--into", dst, "--tcp-plain",
                                   "--rsh", shell, "--syq-path", shutil.which("syq"), "--preserve",
                                   "permissions,ownership", "--no-progress", "-q"], self.log(), env=env)]


class Cp(Side):
    name, program, package, again = "cp", "cp", "coreutils", False
    text = "cp -a, inside the kernel, no network"

    def commands(self, src, dst, again):
        return [Process("client", ["cp", "-a", src, dst], self.log())]


class Yardstick(Side):
    name, again = "yardstick", False
    text = "a minimal program: read, hash, send; receive, hash, write"

    def __init__(self, bench, program):
        super().__init__(bench)
        self.program = program

    def absent(self):
        return None if self.program else "no --yardstick BIN is given"

    def version(self):
        return self.program

    def daemon(self, src, dst):
        os.makedirs(dst)
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        self.receiver = Process("receiver", [self.program, "receive", self.address, dst], self.log("receiver"))
        await_port(port, self.receiver)
        return self.receiver

    def commands(self, src, dst, again):
        # The receiver ends by itself after one transfer; it stands first because it was there before.
        return [self.receiver, Process("sender", [self.program, "send", self.address, src], self.log("sender"))]


def others(bench, yardstick):
    sides = [Rsync(bench), RsyncAll(bench), Tar(bench), Globus(bench), Rclone(bench), Syq(bench), Cp(bench)]
    return [*sides, Yardstick(bench, yardstick)] if yardstick else sides
