"""Compares Longhaul with what else is installed: see scripts/bench.sh."""

import argparse
import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile

import data
import meter
import report
from longhaul import ClearContent, Encrypted, LikeRsync, Longhaul
from sides import others

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def options():
    parser = argparse.ArgumentParser(
        prog="scripts/bench.sh", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Compares Longhaul with what else is installed, in turn, on the same data.",
        epilog="sets, at scale 1:\n" + "".join(
            f"  {name:14} {data.TREES[name] if name in data.TREES else one.text}\n" for name, one in data.SETS.items())
        + "sides: longhaul, rsync, tar, guc, rclone, syq, cp, yardstick; what is not installed is left out; by name\n"
        "only: rsync-all (rsync -aHAX) and longhaul-a (keeps what rsync -a does), to compare what does the same;\n"
        "longhaul-tls and longhaul-clear (TLS between agents, with and without encryption of content; as root)\n\n"
        "Before each run, for all sides alike, the destination is emptied and flushed, untimed. Round 0 warms and is\n"
        "not counted; the order of the sides turns with each round. Files and bytes are counted after each run.")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="counted rounds (5)")
    parser.add_argument("--sets", default="large,mid,small,again,local-large,local-small", metavar="LIST",
                        help="data sets; all: every one of them (%(default)s)")
    parser.add_argument("--sides", metavar="LIST", help="only these (all; guc and rclone not with a million files)")
    parser.add_argument("--scale", type=float, default=1.0, metavar="X", help="part of the full size, e.g. 0.01 (1)")
    parser.add_argument("--dir", metavar="DIR", help="where source and destination are, e.g. /dev/shm/x "
                        "(a temporary folder); all is made in DIR/longhaul-bench")
    parser.add_argument("--keep", action="store_true", help="keep the sources for the next time, and the logs of this one")
    parser.add_argument("--ctl", metavar="BIN", help="Longhaul's binary (built with cargo build --release)")
    parser.add_argument("--yardstick", metavar="BIN", help="also run BIN receive ADDR DST, BIN send ADDR SRC")
    parser.add_argument("--check", action="store_true", help="compare content after each run")
    parser.add_argument("--no-flush", action="store_true",
                        help="time the others without the flush that Longhaul includes")
    parser.add_argument("--timeout", type=int, default=1800, metavar="S", help="seconds after which a run failed (1800)")
    for what in ("markdown", "png", "json"):
        parser.add_argument(f"--{what}", metavar="FILE", help=f"write the result as {what}")
    parser.add_argument("--from", dest="earlier", metavar="FILE", action="append", default=[],
                        help="measure nothing, report what an earlier --json FILE holds; may be repeated")
    return parser.parse_args()


class Bench:
    """Where everything is, and what all sides share."""

    def __init__(self, args):
        self.flush, self.single_file, self.args = not args.no_flush, False, args
        self.made, self.lock = None, None
        if args.dir is None:
            self.made = args.dir = tempfile.mkdtemp(prefix="longhaul-bench.")
        elif not os.path.exists(args.dir):
            self.made = args.dir
        self.base = os.path.join(os.path.abspath(args.dir), "longhaul-bench")
        self.sources, self.dst, self.state = (os.path.join(self.base, name) for name in ("src", "dst", "state"))

    def open(self):
        mark = os.path.join(self.base, ".lock")
        if os.path.isdir(self.base) and not os.path.exists(mark):
            sys.exit(f"bench.sh: {self.base} exists and was not made by this script; name another --dir")
        os.makedirs(self.base, exist_ok=True)
        lock = open(mark, "w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"bench.sh: another run uses {self.base}")
        self.lock = lock
        for path in (self.dst, self.state):
            remove(path)
        for path in (self.sources, self.dst, self.state):
            os.makedirs(path, exist_ok=True)

    def close(self):
        if self.lock is None:
            return
        remove(self.dst)
        if self.args.keep:
            say(f"kept: {self.sources}, {self.state}")
            return
        remove(self.base)
        if self.made:
            # Somebody else may have put something there.
            with contextlib.suppress(OSError):
                os.rmdir(self.made)


def remove(path):
    subprocess.run(["rm", "-rf", "--", path], check=True)


def binary(args):
    if args.ctl:
        return os.path.abspath(args.ctl)
    subprocess.run(["cargo", "build", "--release", "--locked", "--quiet"], cwd=ROOT, check=True)
    return os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")), "release", "ctl")


def choose(args, bench):
    """The sets and sides of this run; names that are not known end it."""
    sets = list(data.SETS) if args.sets == "all" else args.sets.split(",")
    for name in sets:
        if name not in data.SETS:
            sys.exit(f"bench.sh: there is no set {name}; there are {', '.join(data.SETS)}")
    ctl = binary(args)
    sides = [side(bench, ctl) for side in (Longhaul, LikeRsync, Encrypted, ClearContent)]
    sides += others(bench, args.yardstick and os.path.abspath(args.yardstick))
    wanted = args.sides.split(",") if args.sides else [side.name for side in sides if not side.named_only]
    for name in wanted:
        if name not in [side.name for side in sides]:
            sys.exit(f"bench.sh: there is no side {name}; there are {', '.join(side.name for side in sides)}")
    there, left_out = [], {}
    for side in sides:
        if side.name not in wanted:
            continue
        if reason := side.absent():
            left_out[side.name] = reason
            say(f"left out: {side.name}: {reason}")
        else:
            there.append(side)
    return sets, there, left_out


def say(text):
    print(text, file=sys.stderr, flush=True)


def enough_room(bench, tree, scale):
    """Source (where it is not there yet) and destination must fit, with something to spare."""
    times = (1 if os.path.exists(source(bench, tree)) else 2) * 1.1
    (size, entries), room = data.needs(tree, scale), os.statvfs(bench.base)
    # Some file systems make inodes as they go and say that they have none.
    if room.f_bavail * room.f_frsize < size * times or room.f_files and room.f_favail < entries * times:
        sys.exit(f"bench.sh: {bench.base} has no room for {size * times / data.MIB:,.0f} MiB in {entries * times:,.0f} "
                 "entries; use a smaller --scale or another --dir")


def source(bench, tree):
    return os.path.join(bench.sources, f"{tree}-{bench.args.scale:g}")


def one_run(bench, side, one, src, expected):
    """Runs a side once; its record. What it left is checked before it counts."""
    out = os.path.join(bench.dst, "out")
    if one.again:
        if not os.path.isdir(out):
            subprocess.run(["cp", "-a", src, out], check=True)
        before = data.total(out).print
    else:
        remove(out)
    meter.syncfs(bench.dst)
    record = {"side": side.name}
    try:
        with deadline(bench.args.timeout):
            used = side.run(src, out, one.again)
        found = data.total(out)
        if found[:2] != expected[:2]:
            raise meter.Failed(f"{found.files} files of {found.bytes} bytes arrived instead of "
                               f"{expected.files} of {expected.bytes}")
        if one.again and found.print != before:
            raise meter.Failed("it wrote files that were complete")
        if bench.args.check and (name := data.differs(src, out)):
            raise meter.Failed(f"{name} is not what the source has")
        record |= used._asdict()
    except (meter.Failed, OSError) as error:
        record["error"] = str(error)
        remove(out)
    return record


@contextlib.contextmanager
def deadline(seconds):
    """What takes longer fails."""
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def run_set(bench, name, sides, result):
    """All rounds of one set, into the result as they are done."""
    one = data.SETS[name]
    sides = [side for side in sides if takes_part(side, name, one, bench.args)]
    if not sides:
        say(f"{name}: no side takes part")
        return
    src = source(bench, one.tree)
    enough_room(bench, one.tree, bench.args.scale)
    say(f"{name}: making {one.tree}" if not os.path.exists(src) else f"{name}:")
    data.make(one.tree, src, bench.args.scale)
    expected = data.total(src)
    bench.single_file = expected.files == 1
    result["sets"][name] = {"files": expected.files, "bytes": expected.bytes, "text": one.text}
    try:
        for side in sides:
            side.opens(one.local)
        for turn in range(bench.args.runs + 1):
            at = turn % len(sides)
            for side in sides[at:] + sides[:at]:
                record = {"set": name, "round": turn, "counted": turn > 0} | one_run(bench, side, one, src, expected)
                result["runs"].append(record)
                what = f"{record['seconds']:8.2f} s" if "seconds" in record else f"FAILED: {record['error']}"
                say(f"  round {turn}{'' if turn else ' (warms)'}  {side.name:10} {what}")
    finally:
        for side in sides:
            side.close()
    remove(os.path.join(bench.dst, "out"))


def takes_part(side, name, one, args):
    if one.local:
        return side.name in ("longhaul", "cp")
    if one.again and not side.again:
        return False
    if one.tree == "million" and side.slow and not args.sides:
        say(f"{name}: {side.name} takes long and is left out; --sides takes it in")
        return False
    return True


def ended(number, _frame):
    sys.exit(128 + number)


def overdue(_number, _frame):
    raise meter.Failed("it took longer than --timeout allows")


def main():
    args = options()
    for path in filter(None, (args.json, args.markdown, args.png)):
        if not os.access(os.path.dirname(os.path.abspath(path)), os.W_OK):
            sys.exit(f"bench.sh: {path} can't be written: its folder does not exist or is not ours")
    if args.earlier:
        report.write(report.merged(args.earlier), args)
        return
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, ended)
    signal.signal(signal.SIGALRM, overdue)
    meter.adopt_orphans()
    bench, result = Bench(args), {"runs": []}
    try:
        bench.open()
        sets, sides, left_out = choose(args, bench)
        result |= {"about": report.about(bench, sides, left_out), "sets": {}}
        for position, name in enumerate(sets):
            run_set(bench, name, sides, result)
            tree = data.SETS[name].tree
            if not args.keep and tree not in [data.SETS[later].tree for later in sets[position + 1 :]]:
                remove(source(bench, tree))
    except KeyboardInterrupt:
        say("interrupted; what follows is of the rounds that were done")
        sys.exit(130)
    except (meter.Failed, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"bench.sh: {error}")
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        meter.stop_all()
        bench.close()
        if any(run["counted"] for run in result["runs"]):
            report.write(result, args)
    if any("error" in run for run in result["runs"]):
        sys.exit(1)


main()
