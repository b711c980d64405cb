"""One fault at a time, at full size: see scripts/acceptance-faults.sh."""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

from lab import ENDED, LOG_CORRUPTION, Lab, differs, release

MIB = 1 << 20
# What an agent logs when a result of its was taken.
TASK_ENDED = r"counted .*?sync=(\S+) task=(\S+) attempt=(\d+)"


def options():
    parser = argparse.ArgumentParser(prog="scripts/acceptance-faults.sh", description=__doc__)
    parser.add_argument("--ctl", metavar="BIN", help="the program (built with cargo build --release)")
    parser.add_argument("--row", metavar="ROWS", default=",".join(ROWS), help=", ".join(ROWS))
    parser.add_argument("--dir", default="/dev/shm", help="where trees, state and logs are made")
    parser.add_argument("--scale", type=float, default=1.0, help="of the data")
    parser.add_argument("--keep", action="store_true", help="keep trees and logs")
    return parser.parse_args()


class Row:
    """A lab with a sync in it, and what is judged."""

    def __init__(self, args, name, room, times=Lab.SHORT):
        self.args, self.failed, self.seed, self.id = args, False, 1, "it"
        lab_args = argparse.Namespace(**vars(args), room=room, masters=2, seed=1)
        self.lab = Lab(lab_args, f"faults-{name}-{os.getpid()}", times)

    def __enter__(self):
        self.lab.open()
        return self

    def __exit__(self, error, *_):
        self.lab.args.keep |= self.failed or error is not None
        if self.lab.args.keep:
            print(f"kept: {self.lab.dir}")
        self.lab.close()

    def verdict(self, what, holds, seen=""):
        self.failed |= not holds
        print(f"{'PASS' if holds else 'FAIL'}  {what}{f': {seen}' if seen != '' else ''}", flush=True)

    def source(self, large=(), small=0, folders=50):
        """Files of `large` MiB each, and `small` ones of 100 to 8,000 bytes."""
        root = f"{self.lab.dir}/src/tree"
        os.makedirs(root)
        for number, mib in enumerate(large):
            with open(f"{root}/large{number}", "wb") as file:
                for _ in range(max(1, int(mib * self.args.scale))):
                    file.write(os.urandom(MIB))
        small = int(small * self.args.scale)
        noise = os.urandom(MIB)
        for number in range(small):
            folder = f"{root}/d{number % folders}"
            if number < folders:
                os.makedirs(folder)
            start = number * 7919 % (MIB - 8000)
            with open(f"{folder}/f{number}", "wb") as file:
                file.write(noise[start : start + 100 + number * 37 % 7901])
        return root

    def destination(self):
        return f"{self.lab.dir}/dst/{self.id}"

    def submit(self, *more, chunk=16):
        said = self.lab.ctl("sync", "submit", f"{self.lab.dir}/src/tree", self.destination(), "--id", self.id,
                            "--chunk-size-mb", str(chunk), *more)
        if said.returncode != 0:
            raise SystemExit(f"acceptance-faults.sh: {said.stderr}")

    def status(self):
        """The sync's document; None: nobody answers now."""
        with contextlib.suppress(subprocess.TimeoutExpired, ValueError):
            said = self.lab.ctl("sync", "status", self.id, "-o", "json")
            return json.loads(said.stdout) if said.returncode == 0 else None

    def await_sync(self, what, holds, seconds=600):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            seen = self.status()
            if seen and holds(seen):
                return seen
            time.sleep(0.1)
        raise SystemExit(f"acceptance-faults.sh: in vain for {seconds} s: {what}; see {self.lab.dir}")

    def moved(self):
        """Bytes that the destination holds."""
        room = os.statvfs(f"{self.lab.dir}/dst")
        return (room.f_blocks - room.f_bfree) * room.f_frsize

    def part_files(self):
        names = (f"{folder}/{name}" for folder, _, files in os.walk(f"{self.lab.dir}/dst") for name in files)
        return [name for name in names if os.path.basename(name).startswith(".ctl-")]

    def judge_end(self, state="COMPLETED"):
        """Waits for the end and holds it to be as if nothing had happened."""
        seen = self.await_sync("the sync ends", lambda s: s["state"] in ENDED)
        self.verdict("ended", seen["state"] == state, f"{seen['state']} {seen.get('reason') or ''}".strip())
        self.verdict("trees are identical", not (found := differs(f"{self.lab.dir}/src/tree", self.destination())), found[:300])
        files = sum(len(names) for _, _, names in os.walk(f"{self.lab.dir}/src/tree"))
        counted = {k: seen[f"files_{k}"] for k in ("total", "done", "skipped", "failed")}
        self.verdict("every file is counted once", counted["total"] == files
                     == counted["done"] + counted["skipped"] and not counted["failed"], counted)
        self.verdict("no part file is left", not self.part_files())
        ends = [end for text in self.logs().values() for end in re.findall(TASK_ENDED, text)]
        twice = len(ends) - len(set(ends))
        self.verdict("no task ended twice under one attempt", bool(ends) and not twice, f"{len(ends)} ends, {twice} twice")
        self.verdict("no process panicked", not any("panicked" in text for text in self.logs().values()))
        return seen

    def logs(self):
        texts = {}
        for process in [*self.lab.masters, *self.lab.agents]:
            with open(process.log(), errors="replace") as log:
                texts[process.name] = log.read()
        return texts

    def leader(self):
        """The process that leads; None: nobody."""
        said = json.loads(self.lab.ctl("master", "status", "-o", "json").stdout)
        leads = [each.get("role") == "leader" and each.get("status") == "ready" for each in said]
        return self.lab.masters[leads.index(True)] if True in leads else None


class Pauses(threading.Thread):
    """The longest time in which nothing arrived at the destination."""

    def __init__(self, row):
        super().__init__(daemon=True)
        self.row, self.longest, self.over = row, 0.0, threading.Event()

    def run(self):
        last, since = self.row.moved(), time.monotonic()
        while not self.over.wait(0.05):
            now = self.row.moved()
            if now != last:
                last, since = now, time.monotonic()
            self.longest = max(self.longest, time.monotonic() - since)


# --- rows ------------------------------------------------------------------------------------------------------


def leader(args):
    with Row(args, "leader", room=8192, times="") as row:
        row.source(large=[3072], small=50_000)
        row.submit("--bwlimit", f"{max(1, int(40 * args.scale))}MiB/s")
        pauses = Pauses(row)
        row.await_sync("some is there", lambda s: s["transferred_bytes"] > 16 * MIB)
        pauses.start()
        takeovers = []
        for _ in range(10):
            row.lab.until(row.leader, 30, "a master leads")
            time.sleep(1)
            killed, since = row.leader(), time.monotonic()
            killed.kill()
            row.lab.until(row.leader, 30, "another master leads")
            takeovers.append(time.monotonic() - since)
            killed.start()
        pauses.over.set()
        under_way = row.status()["state"] not in ENDED
        row.verdict("the leader was killed ten times while the sync ran", under_way,
                    "another led after " + " ".join(f"{s:.1f}" for s in takeovers) + " s")
        seen = row.judge_end()
        print(f"      longest pause in bytes moved {pauses.longest:.2f} s, {seen['retries']} tasks tried again")
        return row.failed


def store(args):
    with Row(args, "store", room=8192) as row:
        row.source(large=[512, 512], small=20_000)
        row.submit("--bwlimit", f"{max(1, int(64 * args.scale))}MiB/s")
        some = lambda part: row.await_sync("some is there", lambda s: row.moved() > part * 1024 * MIB * args.scale)
        some(0.15)
        row.lab.redis_cli("flushall")
        print("      FLUSHALL")
        some(0.4)
        row.lab.redis_cli("shutdown", "nosave")
        row.lab.redis.process.wait()
        shutil.rmtree(f"{row.lab.dir}/state/appendonlydir", ignore_errors=True)
        time.sleep(2)
        row.lab.redis.start()
        print("      SHUTDOWN NOSAVE, data removed, started again")
        row.verdict("the sync was under way", (row.status() or {}).get("state") not in ENDED)
        seen = row.judge_end()
        print(f"      {seen['retries']} tasks tried again, {seen['files_skipped']} files found done")
        return row.failed


def room(args):
    with Row(args, "room", room=int(1024 * args.scale)) as row:
        row.source(large=[16] * 124, small=10_000)
        since = time.monotonic()
        row.submit()
        seen = row.await_sync("it is paused", lambda s: s["state"] == "PAUSED" or s["state"] in ENDED)
        row.verdict("paused with the reason", seen["state"] == "PAUSED", f"{seen.get('reason')}")
        print(f"      after {time.monotonic() - since:.1f} s, {row.moved() / MIB:.0f} MiB there")
        subprocess.run(["mount", "-o", f"remount,size={int(4096 * args.scale)}m", f"{row.lab.dir}/dst"], check=True)
        made = time.monotonic()
        row.await_sync("it goes on", lambda s: s["state"] != "PAUSED", 120)
        print(f"      went on {time.monotonic() - made:.1f} s after there was room")
        row.judge_end()
        return row.failed


def flips(args):
    with Row(args, "flips", room=4096) as row:
        row.source(large=[512], small=20_000)
        row.lab.line.flip_one_in = 400
        row.submit()
        row.await_sync("it has ended", lambda s: s["state"] in ENDED)
        row.lab.line.flip_one_in = 0
        seen = row.judge_end()
        warned = sum(text.count(LOG_CORRUPTION) for text in row.logs().values())
        row.verdict("bits flipped", row.lab.line.flips > 0, row.lab.line.flips)
        row.verdict("counted in the sync", seen.get("integrity_errors", 0) > 0, seen.get("integrity_errors", 0))
        row.verdict("named in the logs", warned > 0, warned)
        return row.failed


def connections(args):
    """One bit in one data connection of a hundred; a sync makes few of them, so there are several syncs."""
    with Row(args, "connections", room=4096) as row:
        row.source(large=[64], small=4_000)
        line = row.lab.line
        line.aside = bytes(int(part) for part in row.lab.MASTERS.split("."))
        line.flip_connections = 100
        found, syncs, others = 0, 0, []
        while line.connections < 400 and syncs < 80:
            syncs, row.id = syncs + 1, f"it{syncs}"
            row.submit(chunk=1)
            seen = row.await_sync("it has ended", lambda s: s["state"] in ENDED)
            found += seen.get("integrity_errors", 0)
            if seen["state"] != "COMPLETED" or differs(f"{row.lab.dir}/src/tree", row.destination()):
                others.append(row.id)
            shutil.rmtree(row.destination())
            time.sleep(10)  # kept connections are closed after it, and the next sync makes its own
        row.verdict("enough connections", line.connections >= 400, f"{line.connections} in {syncs} syncs")
        row.verdict("every bit was found and counted", found == line.flips > 0, f"{found} of {line.flips}")
        warned = sum(text.count(LOG_CORRUPTION) for text in row.logs().values())
        row.verdict("named in the logs", warned >= line.flips, warned)
        row.verdict("all trees are identical, all syncs completed", not others, " ".join(others))
        return row.failed


def stopped(args):
    with Row(args, "stopped", room=8192) as row:
        row.source(large=[1024], small=20_000)
        row.submit("--bwlimit", f"{max(1, int(24 * args.scale))}MiB/s")
        row.await_sync("some is there", lambda s: s["transferred_bytes"] > 64 * MIB * args.scale)
        agent = next(a for a in row.lab.agents if a.name == "b1")
        before = row.moved()
        agent.stop()
        time.sleep(60)
        agent.go_on()
        row.verdict("the others went on", row.moved() > before, f"{(row.moved() - before) / MIB:.0f} MiB in 60 s")
        seen = row.judge_end()
        print(f"      {seen['retries']} tasks tried again")
        return row.failed


def resident(process):
    with open(f"/proc/{process.process.pid}/status") as status:
        return next(int(line.split()[1]) >> 10 for line in status if line.startswith("VmRSS"))


def cancel(args):
    with Row(args, "cancel", room=8192) as row:
        row.source(large=[1024, 256, 256, 256, 256], small=20_000)
        everyone = [*row.lab.masters, *row.lab.agents]
        idle = [resident(p) for p in everyone]
        row.submit()
        row.await_sync("some is there", lambda s: s["transferred_bytes"] > 256 * MIB * args.scale)
        busy = [resident(p) for p in everyone]
        since = time.monotonic()
        said = row.lab.ctl("sync", "cancel", row.id)
        last, still = row.moved(), time.monotonic()
        while time.monotonic() < since + 8:
            if row.moved() > last:
                still = time.monotonic()
            last = row.moved()
            time.sleep(0.02)
        row.verdict("bytes stopped within 2 s", said.returncode == 0 and still - since <= 2, f"{still - since:.2f} s")
        row.await_sync("it is cancelled", lambda s: s["state"] == "CANCELLED")
        end = time.monotonic() + 30
        while row.part_files() and time.monotonic() < end:
            time.sleep(0.2)
        row.verdict("no part file is left", not row.part_files(), f"after {time.monotonic() - since:.1f} s")
        time.sleep(10)
        after = [resident(p) for p in everyone]
        row.verdict("memory returns", sum(after) <= sum(idle) + (sum(busy) - sum(idle)) / 2 + 16 * len(everyone),
                    f"MiB of masters and agents: {idle} idle, {busy} busy, {after} after")
        return row.failed


ROWS = {"leader": leader, "store": store, "room": room, "flips": flips, "connections": connections, "stopped": stopped, "cancel": cancel}


def main():
    args = options()
    if os.getuid() != 0:
        sys.exit("acceptance-faults.sh: network namespaces and mounts need root")
    if not shutil.which("redis-server"):
        sys.exit("acceptance-faults.sh: `redis-server` is missing")
    args.ctl = os.path.abspath(args.ctl or release())
    os.environ["CTL_LOG_LEVEL"] = "info,longhaul::agent::slots=debug"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    failed = False
    for name in args.row.split(","):
        print(f"{name}:", flush=True)
        failed |= ROWS[name](args)
    sys.exit(1 if failed else 0)


main()
