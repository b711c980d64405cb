#!/usr/bin/env python3
"""Names every difference between two trees: types, owners, modes, times to the nanosecond, extended
attributes (ACLs among them), link targets, device numbers, content, which names are one file, and how
much of a sparse file is held. What `rsync -n` does not see is in it: paths of any length, parts of seconds,
holes. No name is opened that is not a regular file or a folder.

    scripts/compare-trees.py SRC DST [--ignore WHAT,...] [--no-content]

One line for each difference: WHAT, a tab, what it was and became, a tab, the path (as Python writes
bytes). WHAT is one of: missing, extra, type, owner, group, mode, mtime, xattr, acl, target, device, length,
content, holes, linked. --ignore leaves some of them out. Exit 0: none; 1: some.
"""

import argparse
import os
import stat
import sys

MIB = 1 << 20


def entries(root):
    """(path, directory descriptor, name, stat) of all, the root first. Path is for people."""
    top = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    yield b".", top, b".", os.stat(b".", dir_fd=top)
    yield from below(b"", top)
    os.close(top)


def below(path, fd):
    for name in sorted(os.listdir(b"/proc/self/fd/%d" % fd)):
        meta = os.stat(name, dir_fd=fd, follow_symlinks=False)
        yield path + name, fd, name, meta
        if stat.S_ISDIR(meta.st_mode):
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
            yield from below(path + name + b"/", inner)
            os.close(inner)


def attributes(fd, name):
    here = b"/proc/self/fd/%d/%s" % (fd, name)
    try:
        names = os.listxattr(here, follow_symlinks=False)
    except OSError:
        return {}
    return {n: os.getxattr(here, n, follow_symlinks=False) for n in names if n != "security.selinux"}


def content_differs(a, b):
    fds = [os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=fd) for fd, name in (a, b)]
    try:
        size, at = os.fstat(fds[0]).st_size, 0
        while at < size:
            # Where both have a hole there is nothing to read.
            starts = [data_from(fd, at, size) for fd in fds]
            at = min(starts)
            if at >= size:
                return None
            left, right = (os.pread(fd, MIB, at) for fd in fds)
            if left != right:
                for i, (x, y) in enumerate(zip(left, right)):
                    if x != y:
                        return at + i
                return at + min(len(left), len(right))
            at += len(left)
        return None
    finally:
        for fd in fds:
            os.close(fd)


def data_from(fd, at, size):
    try:
        return os.lseek(fd, at, os.SEEK_DATA)
    except OSError:
        return size


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("src")
    args.add_argument("dst")
    args.add_argument("--ignore", default="")
    args.add_argument("--no-content", action="store_true")
    args = args.parse_args()
    sys.setrecursionlimit(10_000)
    ignored = set(args.ignore.split(","))
    found = 0

    def say(what, path, a="", b=""):
        nonlocal found
        if what not in ignored:
            found += 1
            shown = path if len(path) <= 400 else b"..." + path[-300:]
            print(f"{what}\t{a} -> {b}\t{shown!r}")

    trees = [entries(os.fsencode(side)) for side in (args.src, args.dst)]
    groups = ({}, {})
    # Both come in one order, so that they are walked side by side, however long they are.
    a, b = (next(tree, None) for tree in trees)
    while a or b:
        if b is None or (a and order(a[0]) < order(b[0])):
            say("missing", a[0])
            a = next(trees[0], None)
        elif a is None or order(b[0]) < order(a[0]):
            say("extra", b[0])
            b = next(trees[1], None)
        else:
            compare(a, b, say, not args.no_content)
            for side, (path, _, _, meta) in zip(groups, (a, b)):
                if meta.st_nlink > 1 and not stat.S_ISDIR(meta.st_mode):
                    side.setdefault((meta.st_dev, meta.st_ino), []).append(path)
            a, b = (next(tree, None) for tree in trees)
    one, other = ({path: tuple(names) for names in side.values() for path in names} for side in groups)
    for path in sorted(one.keys() | other.keys()):
        if one.get(path, (path,)) != other.get(path, (path,)):
            say("linked", path, len(one.get(path, (path,))), len(other.get(path, (path,))))
    sys.exit(1 if found else 0)


def order(path):
    return [] if path == b"." else path.split(b"/")


def compare(a, b, say, with_content):
    (path, a_fd, a_name, x), (_, b_fd, b_name, y) = a, b
    if stat.S_IFMT(x.st_mode) != stat.S_IFMT(y.st_mode):
        say("type", path, oct(stat.S_IFMT(x.st_mode)), oct(stat.S_IFMT(y.st_mode)))
        return
    if x.st_uid != y.st_uid:
        say("owner", path, x.st_uid, y.st_uid)
    if x.st_gid != y.st_gid:
        say("group", path, x.st_gid, y.st_gid)
    if x.st_mtime_ns != y.st_mtime_ns:
        say("mtime", path, x.st_mtime_ns, y.st_mtime_ns)
    left, right = attributes(a_fd, a_name), attributes(b_fd, b_name)
    for name in sorted(left.keys() | right.keys()):
        if left.get(name) != right.get(name):
            what = "acl" if name.startswith("system.posix_acl") else "xattr"
            say(what, path, *(f"{name}={side.get(name)!r:.60}" for side in (left, right)))
    if stat.S_ISLNK(x.st_mode):
        targets = [os.readlink(name, dir_fd=fd) for fd, name in ((a_fd, a_name), (b_fd, b_name))]
        if targets[0] != targets[1]:
            say("target", path, *targets)
        return
    if stat.S_IMODE(x.st_mode) != stat.S_IMODE(y.st_mode):
        say("mode", path, oct(stat.S_IMODE(x.st_mode)), oct(stat.S_IMODE(y.st_mode)))
    if x.st_rdev != y.st_rdev:
        say("device", path, x.st_rdev, y.st_rdev)
    if not stat.S_ISREG(x.st_mode):
        return
    if x.st_size != y.st_size:
        say("length", path, x.st_size, y.st_size)
        return
    if with_content:
        at = content_differs((a_fd, a_name), (b_fd, b_name))
        if at is not None:
            say("content", path, f"from byte {at} on")
    # Only holes of some size count: a file system rounds as it likes.
    if x.st_blocks * 512 + MIB // 2 < x.st_size and y.st_blocks > x.st_blocks * 1.01 + 256:
        say("holes", path, x.st_blocks * 512, y.st_blocks * 512)


if __name__ == "__main__":
    main()
