"""Syncs that run while everything fails at random: see scripts/chaos.sh."""

import argparse
import collections
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time

from lab import ENDED, LOG_LEADER, Lab, differs, release


def options():
    parser = argparse.ArgumentParser(prog="scripts/chaos.sh", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31))
    parser.add_argument("--ctl", metavar="BIN", help="the program (built with cargo build --release)")
    parser.add_argument("--masters", type=int, default=2)
    parser.add_argument("--dir", default="/tmp", help="where trees, state and logs are made")
    parser.add_argument("--room", type=int, default=2048, metavar="MIB", help="size of the destination")
    parser.add_argument("--only", metavar="KINDS", help="just these faults: " + ", ".join(FAULTS))
    parser.add_argument("--keep", action="store_true", help="keep trees and logs")
    return parser.parse_args()


# --- faults: each does its harm, waits, and undoes it -------------------------------------------------------


def pause(rng, shortest, longest):
    time.sleep(rng.uniform(shortest, longest))


def killed(process, rng, longest):
    process.kill()
    pause(rng, 0, longest)
    process.start()


def stopped(process, rng, longest):
    process.stop()
    pause(rng, 0.5, longest)
    process.go_on()


def kill_agent(chaos, rng):
    killed(rng.choice(chaos.lab.agents), rng, 6)


def stop_agent(chaos, rng):
    stopped(rng.choice(chaos.lab.agents), rng, 20)


def kill_master(chaos, rng):
    killed(rng.choice(chaos.lab.masters), rng, 8)


def stop_master(chaos, rng):
    stopped(rng.choice(chaos.lab.masters), rng, 12)


def kill_redis(chaos, rng):
    killed(chaos.lab.redis, rng, 4)


def flush_redis(chaos, rng):
    chaos.lab.redis_cli("flushall")


def sleepy_redis(chaos, rng):
    chaos.lab.redis_cli("debug", "sleep", str(rng.randint(1, 6)))


def drop_clients(chaos, rng):
    chaos.lab.redis_cli("client", "kill", "type", "normal")


def cut(chaos, rng):
    """One host, or one way between two, is cut off."""
    addresses = [bytes(int(p) for p in a.split(".")) for a in chaos.lab.addresses.values()]
    one, other = rng.sample(addresses, 2)
    cuts = [(one, None), (None, one)] if rng.random() < 0.5 else [(one, other)]
    for each in cuts:
        chaos.lab.line.cut(*each)
    pause(rng, 0.5, 15)
    for each in cuts:
        chaos.lab.line.heal(*each)


def flip(chaos, rng):
    """Bits flip in one of so many packets of content."""
    chaos.lab.line.flip_one_in = rng.choice([20, 100, 500])
    pause(rng, 2, 8)
    chaos.lab.line.flip_one_in = 0


def fill(chaos, rng):
    """The destination is full for a while."""
    filler = f"{chaos.lab.dir}/dst/.filler"
    with contextlib.suppress(OSError):
        room = os.statvfs(f"{chaos.lab.dir}/dst")
        with open(filler, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, room.f_bavail * room.f_frsize - (1 << 16)))
    pause(rng, 2, 12)
    with contextlib.suppress(OSError):
        os.remove(filler)


def press_pause(chaos, rng):
    """An operator pauses a sync, and lets it go on."""
    active = [sync for sync in chaos.syncs.values() if not sync.ended]
    if active:
        sync = rng.choice(active)
        chaos.lab.ctl("sync", "pause", sync.id)
        pause(rng, 1, 5)
        chaos.lab.ctl("sync", "resume", sync.id)


FAULTS = {
    "kill-agent": kill_agent, "stop-agent": stop_agent, "kill-master": kill_master, "stop-master": stop_master,
    "kill-redis": kill_redis, "flush-redis": flush_redis, "sleepy-redis": sleepy_redis, "drop-clients": drop_clients,
    "cut": cut, "flip": flip, "fill": fill, "pause": press_pause,
}
RARE = {"flush-redis": 0.2, "kill-redis": 0.5, "fill": 0.5}


# --- syncs ---------------------------------------------------------------------------------------------------


class Sync:
    def __init__(self, number, source, destination):
        self.id, self.source, self.destination = f"chaos-{number}", source, destination
        self.ended, self.progress, self.retries, self.tries = None, None, 0, []


def make_tree(root, rng):
    """Some large files, many small ones; the seed determines their content."""
    os.makedirs(root)
    for number in range(rng.randint(1, 4)):
        with open(f"{root}/large{number}", "wb") as file:
            file.write(rng.randbytes(rng.randint(1, 48) << 20))
    for folder in range(rng.randint(1, 8)):
        os.makedirs(f"{root}/d{folder}/sub")
        for number in range(rng.randint(1, 300)):
            with open(f"{root}/d{folder}/sub/f{number}", "wb") as file:
                file.write(rng.randbytes(rng.choice([0, 10, 1000, 9000, 70_000])))
    os.symlink("large0", f"{root}/link")


class Chaos:
    def __init__(self, lab, args):
        self.lab, self.args = lab, args
        self.rng, self.data = random.Random(args.seed), random.Random(args.seed + 1)
        self.syncs, self.counts, self.numbers = {}, collections.Counter(), 0
        self.wrong = []

    def submit(self):
        self.numbers += 1
        source, destination = f"{self.lab.dir}/src/t{self.numbers}", f"{self.lab.dir}/dst/t{self.numbers}"
        make_tree(source, self.data)
        sync = Sync(self.numbers, source, destination)
        self.syncs[sync.id] = sync
        self.ask(sync)

    def ask(self, sync):
        """Submits it, as often as it takes: the id makes the repeat safe."""
        said = self.lab.ctl("sync", "submit", sync.source, sync.destination, "--id", sync.id, "--chunk-size-mb", "4")
        if said.returncode == 11:
            sys.exit(f"chaos.sh: {said.stderr}")
        sync.asked = said.returncode == 0 or "there is a sync" in said.stderr or "exists" in said.stderr

    def look(self):
        """How the syncs stand; what has ended is judged."""
        for sync in self.syncs.values():
            if sync.ended:
                continue
            if not sync.asked:
                self.ask(sync)
            said = self.lab.ctl("sync", "status", sync.id, "-o", "json")
            if said.returncode != 0:
                if "sync_not_found" in said.stderr or "there is no sync" in said.stderr:
                    sync.asked = False
                continue
            with contextlib.suppress(ValueError):
                sync.progress = json.loads(said.stdout)
                if sync.progress["state"] in ENDED:
                    self.judge(sync)

    def judge(self, sync):
        seen = sync.progress
        counted = [seen[k] for k in ("files_done", "files_skipped", "files_failed")]
        if sum(counted) != seen["files_total"]:
            self.wrong.append(f"{sync.id}: {counted} of {seen['files_total']} files")
        if seen["state"] == "COMPLETED":
            files = sum(len(files) for _, _, files in os.walk(sync.source))
            if seen["files_total"] != files:
                self.wrong.append(f"{sync.id}: counted {seen['files_total']} files, there are {files}")
            found = differs(sync.source, sync.destination)
            if found:
                self.wrong.append(f"{sync.id} is COMPLETED and differs: {found[:300]}")
            sync.ended = "COMPLETED"
            self.counts["completed"] += 1
            self.counts["tasks queued again"] += seen.get("retries", 0)
            self.counts["damages found"] += seen.get("integrity_errors", 0)
            subprocess.run(["rm", "-rf", sync.source, sync.destination], check=False)
        else:
            # Honest failures are tried again.
            sync.retries += 1
            self.counts[f"{seen['state'].lower()}, tried again"] += 1
            sync.tries.append(seen.get("reason") or "")
            if sync.retries > 20:
                self.wrong.append(f"{sync.id} fails again and again: {sync.tries[-1][:300]}")
                sync.ended = seen["state"]
                return
            said = self.lab.ctl("sync", "retry", sync.id, "-q")
            if said.returncode == 0 and said.stdout.strip():
                sync.id = said.stdout.strip()

    def harm(self, until):
        kinds = self.args.only.split(",") if self.args.only else list(FAULTS)
        weights = [RARE.get(kind, 1) for kind in kinds]
        while time.monotonic() < until:
            while sum(not sync.ended for sync in self.syncs.values()) < 3:
                self.submit()
            kind = self.rng.choices(kinds, weights)[0]
            self.counts[f"fault {kind}"] += 1
            with contextlib.suppress(subprocess.TimeoutExpired):
                FAULTS[kind](self, self.rng)
                self.look()
            for process in [*self.lab.masters, *self.lab.agents]:
                if not process.alive():
                    self.wrong.append(f"{process.name} ended by itself with {process.process.poll()}")
                    process.start()

    def end(self):
        """Heals, and waits for the end of all."""
        self.lab.heal()
        with contextlib.suppress(OSError):
            os.remove(f"{self.lab.dir}/dst/.filler")
        until = time.monotonic() + 600
        while time.monotonic() < until and any(not sync.ended for sync in self.syncs.values()):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.look()
            time.sleep(1)
        for sync in self.syncs.values():
            if not sync.ended:
                seen = sync.progress or {}
                self.wrong.append(f"{sync.id} hangs: {seen.get('state')} {seen.get('reason')}")
        for process in [*self.lab.masters, *self.lab.agents]:
            with open(process.log(), errors="replace") as log:
                text = log.read()
            self.counts["times that a master began to lead"] += text.count(LOG_LEADER)
            if "panicked" in text:
                self.wrong.append(f"{process.name} panicked: see {process.log()}")

    def report(self):
        print(f"seed {self.args.seed}, {self.args.minutes:g} minutes, {len(self.syncs)} syncs, "
              f"{self.lab.line.flips} bits flipped")
        for what, count in sorted(self.counts.items()):
            print(f"  {what}: {count}")
        for sync in self.syncs.values():
            for why in sync.tries:
                print(f"  failed before it was tried again: {why[:300]}")
        for what in self.wrong:
            print(f"  WRONG: {what}")
        print("0 lost, 0 wrong, 0 double counted, 0 hung" if not self.wrong else f"{len(self.wrong)} WRONG")


def main():
    args = options()
    if os.getuid() != 0:
        sys.exit("chaos.sh: network namespaces and mounts need root")
    args.ctl = os.path.abspath(args.ctl or release())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    lab = Lab(args, f"chaos-{os.getpid()}")
    chaos = Chaos(lab, args)
    try:
        lab.open()
        chaos.harm(time.monotonic() + args.minutes * 60)
        chaos.end()
        chaos.report()
    finally:
        if chaos.wrong:
            args.keep = True
            print(f"kept: {lab.dir}")
        lab.close()
    sys.exit(1 if chaos.wrong else 0)


main()
