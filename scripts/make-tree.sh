#!/usr/bin/env bash
# Makes the tree on which whole runs are measured and checked: one very large file, many of 1 MiB, very
# many small ones in nested folders, links, empty files and folders, and names with spaces, newlines and
# bytes that are not UTF-8.
#
#   scripts/make-tree.sh DIR [SCALE]
#
# SCALE is a part of the full size, e.g. 0.01 (default 1: 3 GiB, 2,000 files of 1 MiB, 50,000 small
# ones). Each of the parts can be set by itself:
#   LARGE_MIB=N    the size of the large file, in MiB         (3072)
#   MEDIUM=N       the number of files of 1 MiB               (2000)
#   SMALL=N        the number of files below 8 KiB            (50000)
#   EMPTY=N        the number of further files that are empty (0)
# The same arguments make the same tree, times included.
set -euo pipefail

if [ $# -lt 1 ] || [ $# -gt 2 ]; then
  sed -n '2,/^set/p' "$0" | sed -n 's/^# \{0,1\}//p' >&2
  exit 2
fi
command -v python3 >/dev/null || { echo "make-tree.sh: python3 is needed" >&2; exit 1; }

exec python3 - "$1" "${2:-1}" <<'PYTHON'
import hashlib
import os
import sys

root, scale = os.fsencode(sys.argv[1]), float(sys.argv[2])


def number(name, full):
    return int(os.environ.get(name, "") or round(full * scale))


LARGE, MEDIUM = number("LARGE_MIB", 3072), number("MEDIUM", 2000)
SMALL, EMPTY = number("SMALL", 50_000), number("EMPTY", 0)
MIB = 1 << 20
if os.path.exists(root) and os.listdir(root):
    sys.exit(f"make-tree.sh: {sys.argv[1]} is not empty")

# Looks random, can be made again, and costs next to nothing: a pool of which each file takes its own
# piece, with its own head.
pool = hashlib.shake_256(b"longhaul").digest(4 * MIB)
pool += pool[:MIB]


def content(seed, length):
    head = seed.to_bytes(8, "little")[:length]
    start = seed * 4099 % (4 * MIB)
    return head + pool[start : start + length - len(head)]


def write(path, data, seed=0):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        os.write(fd, data)
        stamp(fd, seed)
    finally:
        os.close(fd)


def stamp(what, seed, **how):
    time = (1_600_000_000 + seed) * 10**9 + seed * 7919 % 10**9
    os.utime(what, ns=(time, time), **how)


def at(*parts):
    return os.path.join(root, *parts)


os.makedirs(root, exist_ok=True)
with open(at(b"large"), "xb") as large:
    for block in range(LARGE):
        large.write(content(block + 1, MIB))
stamp(at(b"large"), 1)

os.mkdir(at(b"medium"))
for i in range(MEDIUM):
    write(at(b"medium", b"m%05d" % i), content(i + 10_000, MIB), i)

# Nested folders of 100 files, two levels of ten.
for i in range(SMALL):
    folder = i // 100
    path = at(b"small", b"%d" % (folder % 10), b"%d" % (folder // 10 % 10), b"folder %d" % folder)
    if i % 100 == 0:
        os.makedirs(path)
    write(os.path.join(path, b"s%06d.dat" % i), content(i + 20_000, i * 37 % 8192), i)
for i in range(EMPTY):
    if i % 1000 == 0:
        os.makedirs(at(b"empty", b"%d" % (i // 1000)))
    os.close(os.open(at(b"empty", b"%d" % (i // 1000), b"e%d" % i), os.O_CREAT | os.O_EXCL | os.O_WRONLY))

odd = [
    b"with spaces and a trailing one ", b"new\nline", b"not utf-8 \xff\xfe", b"tab\tand\rreturn", b"esc\x1b[31m",
    b"-rf", b"--", b"#hash", b"*?[x]", b"quote\"'\\", "\u00e9 e\u0301 \u202e".encode(), b"n" * 255,
]
for i, name in enumerate(odd):
    os.makedirs(at(b"odd names", b"folders", name))
    write(at(b"odd names", name), content(i + 30_000, 100 + i), i)
    write(at(b"odd names", b"folders", name, name), content(i + 31_000, 200 + i), i)
    os.symlink(name, at(b"odd names", b"link to %d" % i))
    stamp(at(b"odd names", b"link to %d" % i), i, follow_symlinks=False)

os.makedirs(at(b"nothing in it", b"nor in this", b"nor here"))
for i in range(100):
    os.makedirs(at(b"empty folders", b"%d" % i))
    write(at(b"empty folders", b"file %d" % i), b"", i)
os.mkdir(at(b"links"))
for name, target in [
    (b"to large", b"../large"), (b"to a folder", b"../medium"), (b"dangling", b"no such thing"),
    (b"absolute", b"/etc/hostname"), (b"loop", b"loop"), (b"long", b"x/" * 2000 + b"x"),
]:
    os.symlink(target, at(b"links", name))
    stamp(at(b"links", name), 5, follow_symlinks=False)
deep = at(b"deep")
for level in range(60):
    deep = os.path.join(deep, b"level %d" % level)
os.makedirs(deep)
write(os.path.join(deep, b"bottom"), b"found", 3)
os.mkdir(at(b"modes"))
for i, mode in enumerate([0o400, 0o600, 0o644, 0o755, 0o777, 0o4755]):
    path = at(b"modes", b"%o" % mode)
    write(path, content(i + 40_000, 1000), i)
    os.chmod(path, mode)
os.makedirs(at(b"modes", b"private"), 0o700)
os.mkdir(at(b"modes", b"sticky"))
os.chmod(at(b"modes", b"sticky"), 0o1777)

# Folders last and from below: what is made in them sets their time.
for above, folders, _ in os.walk(root, topdown=False):
    for folder in folders:
        path = os.path.join(above, folder)
        if not os.path.islink(path):
            stamp(path, len(path))
stamp(root, 1)
PYTHON
