#!/usr/bin/env python3
"""How a sync does over a long path: two hosts of a lab (netlab.sh), joined by a line with a given delay and
speed, and for each setting of `slots` the goodput of one large file. Needs root. Run by hand:

  scripts/netlab.sh run -- scripts/longpath.py --ctl BIN [--rtt MS] [--mbit N] [--mib N] [--slots 1,3,24,auto] [--rounds N]

The line is a pair of TUN devices (chaos/line.py); what comes out of one waits and goes into the other. (A kernel
with `netem` could do it as well; not every one has it.)"""

import argparse
import collections
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "chaos"))
from line import Line, sh, tun  # noqa: E402

def lab(*words):
    return ["ip", "netns", "exec", *words]


def limit(space, mbit):
    """A NIC that sends no faster than `mbit`. Its queue holds what a fast sender has under way on such a path."""
    sh("tc", "-n", space, "qdisc", "add", "dev", "wan0", "root", "tbf", "rate", f"{mbit}mbit",
       "burst", "256kb", "limit", str(64 << 20))


class Bench:
    def __init__(self, args, name, dir):
        self.args, self.name, self.dir = args, name, dir
        os.makedirs(f"{dir}/src")
        os.makedirs(f"{dir}/dst")
        piece = os.urandom(1 << 20)
        with open(f"{dir}/src/file", "wb") as file:
            for i in range(args.mib):
                file.write(struct.pack("<Q", i) + piece[8:])

    def start(self, host, role, *words):
        log = open(f"{self.dir}/{role}.log", "ab")
        return subprocess.Popen(lab(f"{self.name}-{host}", self.args.ctl, *words), stderr=log, stdout=log)

    def ctl(self, *words):
        words = lab(f"{self.name}-mgmt", self.args.ctl, "--master-url", "http://10.77.0.254:8888", *words)
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout

    def copy(self, slots):
        """One sync with fresh services; MiB/s, and how many tasks were in hand at its end."""
        state = f"{self.dir}/state"
        shutil.rmtree(state, ignore_errors=True)
        shutil.rmtree(f"{self.dir}/dst/out", ignore_errors=True)
        os.makedirs(state)
        with open(f"{state}/master.yml", "w") as file:
            file.write(f"listen: 10.77.0.254:8888\ninsecure: true\ndata_dir: {state}/master\n")
        with open(f"{state}/agents.yml", "w") as file:
            file.write(f"master_url: http://10.77.0.254:8888\ndata_dir: {state}/agents\nworkers:\n")
            for host, path in ((1, "src"), (2, "dst")):
                file.write(f"  - worker_id: h{host}\n    storage_paths: [{self.dir}/{path}]\n"
                           + ("" if slots == "auto" else f"    slots: {slots}\n")
                           + f'    network: {{ data_plane_endpoints: ["10.78.0.{host}"] }}\n')
        services = [self.start("mgmt", "master", "master", "--config", f"{state}/master.yml")]
        services += [self.start(f"h{h}", f"h{h}", "agent", "--worker-id", f"h{h}", "--config", f"{state}/agents.yml")
                     for h in (1, 2)]
        try:
            self.await_workers(services)
            since = time.monotonic()
            self.ctl("sync", "submit", f"{self.dir}/src/", f"{self.dir}/dst/out", "--wait", "-q", "--progress", "none")
            return self.args.mib / (time.monotonic() - since)
        finally:
            for process in services:
                process.terminate()
            for process in services:
                process.wait()

    def await_workers(self, services):
        until = time.monotonic() + 30
        while time.monotonic() < until and all(process.poll() is None for process in services):
            try:
                if len(json.loads(self.ctl("workers", "list", "-o", "json")).get("active", [])) == 2:
                    return
            except subprocess.CalledProcessError:
                pass
            time.sleep(0.1)
        sys.exit(f"longpath.py: the agents did not come up; see {self.dir}/*.log")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ctl", required=True, type=os.path.abspath)
    parser.add_argument("--rtt", type=float, default=200, help="milliseconds there and back (200)")
    parser.add_argument("--mbit", type=int, default=1000, help="speed of the line (1000)")
    parser.add_argument("--mib", type=int, default=3072, help="size of the file (3072)")
    parser.add_argument("--slots", default="1,3,24,auto", help="`slots` of the agents; auto: as they choose")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    name = os.environ.get("NETLAB") or sys.exit("longpath.py: run it by `scripts/netlab.sh run -- …`")
    ends = {f"10.78.0.{h}": tun(f"lp{os.getpid()}{h}"[:15], f"{name}-h{h}", f"10.78.0.{h}") for h in (1, 2)}
    for host in (1, 2):
        limit(f"{name}-h{host}", args.mbit)
    line = Line(ends, args.rtt / 2000)
    line.start()
    dir = tempfile.mkdtemp(prefix="longpath.", dir="/dev/shm")
    try:
        bench, speeds = Bench(args, name, dir), collections.defaultdict(list)
        for turn in range(args.rounds):
            for slots in args.slots.split(","):
                speeds[slots].append(bench.copy(slots))
                print(f"round {turn + 1}  slots {slots:>4}: {speeds[slots][-1]:6.1f} MiB/s", flush=True)
        for slots, all in speeds.items():
            print(f"median   slots {slots:>4}: {statistics.median(all):6.1f} MiB/s of {args.mbit / 8.388608:.1f}")
    finally:
        line.close()
        shutil.rmtree(dir)


main()
