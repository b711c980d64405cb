#!/usr/bin/env bash
# Makes a tree of everything that is easily lost on the way from one file system to another, to be
# compared after a copy. (The tree for measuring is made by make-tree.sh.)
#
#   scripts/make-torture.sh DIR [SCALE]
#
# SCALE is a part of the full size (default 1: a sparse file of 10 GiB, a hard-linked file of 200 MiB,
# a folder of 100,000 entries); what there is one of is there at any scale. Each of the parts can be set
# by itself:
#   SPARSE_MIB=N   the length of the sparse file, in MiB; it holds 3 MiB    (10240)
#   LINKED_MIB=N   the length of the file with names in three folders       (200)
#   ENTRIES=N      the number of entries in one folder                      (100000)
#
# An ordinary user gets what they can make; what is left out is named on standard error, once for each
# cause. ACLs are written as the kernel keeps them (python3 is needed, setfacl is not). `rm -rf DIR`
# removes it all (as root, or after `chmod -R u+rwX DIR`).
set -euo pipefail

if [ $# -lt 1 ] || [ $# -gt 2 ]; then
  sed -n '2,/^set/p' "$0" | sed -n 's/^# \{0,1\}//p' >&2
  exit 2
fi
command -v python3 >/dev/null || { echo "make-torture.sh: python3 is needed" >&2; exit 1; }

exec python3 - "$1" "${2:-1}" <<'PYTHON'
import errno
import hashlib
import os
import socket
import stat
import struct
import sys

root, scale = os.fsencode(sys.argv[1]), float(sys.argv[2])
MIB = 1 << 20


def number(name, full, least):
    return int(os.environ.get(name, "") or max(least, round(full * scale)))


SPARSE, LINKED = number("SPARSE_MIB", 10_240, 16), number("LINKED_MIB", 200, 5)
ENTRIES = number("ENTRIES", 100_000, 100)
ROOT = os.geteuid() == 0
if os.path.exists(root) and os.listdir(root):
    sys.exit(f"make-torture.sh: {sys.argv[1]} is not empty")
os.makedirs(root, exist_ok=True)
os.umask(0o022)
os.chdir(root)

pool = hashlib.shake_256(b"torture").digest(MIB) * 2
left_out = {}


def content(seed, length):
    """Bytes that can be made again, of any length."""
    start, data = seed * 4099 % MIB, bytearray()
    while len(data) < length:
        data += pool[start : start + min(MIB, length - len(data))]
        start = (start + 65_537) % MIB
    return seed.to_bytes(8, "little")[:length] + bytes(data[8:length])


def tried(what, make, *args, **more):
    """Makes something that not everybody, or not every file system, can make."""
    try:
        make(*args, **more)
        return True
    except OSError as e:
        if e.errno not in (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.ENOSPC, errno.EINVAL, errno.ERANGE):
            raise
        left_out.setdefault(f"{what}: {os.strerror(e.errno)}", []).append(args[0])
        return False


def write(path, data=b"", mode=0o644):
    above = os.path.dirname(path)
    if above:
        os.makedirs(above, exist_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(fd, "wb") as file:
        file.write(data)
        os.fchmod(fd, mode)
    return path


def stamp(path, seconds, ns=0, **how):
    time = seconds * 10**9 + ns
    os.utime(path, ns=(time, time), **how)
    got = os.stat(path, follow_symlinks=False).st_mtime_ns
    if got != time:
        left_out.setdefault("a time that this file system can't hold", []).append(path)


def owned(path, uid, gid):
    return tried("an owner of its own", os.chown, path, uid, gid, follow_symlinks=False)


# --- hard links -------------------------------------------------------------------------------------
for folder in (b"hard links/one", b"hard links/two/deeper", b"hard links/three"):
    os.makedirs(folder)
write(b"hard links/one/small", content(1, 3_000))
os.link(b"hard links/one/small", b"hard links/two/deeper/the same")
os.link(b"hard links/one/small", b"hard links/three/\xff also\n")
os.link(b"hard links/one/small", b"hard links/one/beside it")
write(b"hard links/three/empty")
os.link(b"hard links/three/empty", b"hard links/two/empty too")
with open(b"hard links/two/large", "xb") as large:
    for block in range(LINKED):
        large.write(content(block + 2, MIB))
    large.write(b"and a little more")
os.link(b"hard links/two/large", b"hard links/one/a large one")
os.link(b"hard links/two/large", b"hard links/z large")
os.symlink(b"small", b"hard links/one/link")
os.link(b"hard links/one/link", b"hard links/two/link with two names", follow_symlinks=False)
os.mkfifo(b"hard links/one/fifo")
os.link(b"hard links/one/fifo", b"hard links/three/fifo with two names")
# Many groups, so that their members meet in different batches.
for i in range(300):
    path = write(b"hard links/many/a/%03d" % i, content(i, 10 + i))
    os.makedirs(b"hard links/many/b/%d" % (i % 7), exist_ok=True)
    os.link(path, b"hard links/many/b/%d/%03d" % (i % 7, i))

# --- sparse -----------------------------------------------------------------------------------------
os.mkdir(b"sparse")
with open(b"sparse/large", "xb") as file:
    length = SPARSE * MIB
    file.truncate(length)
    pieces, size = 12, 3 * MIB // 12
    # Aligned ones, ones across a page, two that touch, and one that ends the file.
    places = [length * i // pieces // 4096 * 4096 + (i * 37 if i % 3 else 0) for i in range(1, pieces - 1)]
    places += [places[4] // 4096 * 4096 + size, length - size]
    for i, place in enumerate(sorted(places)):
        file.seek(place)
        file.write(content(i + 900, size))
for name, holes in (
    (b"only a hole", [(5 * MIB, None)]),
    (b"a hole at the end", [(0, 100_000), (9 * MIB + 5, None)]),
    (b"a hole at the start", [(4 * MIB, 70_000)]),
    (b"one byte in the middle", [(3 * MIB - 1, 1), (6 * MIB, None)]),
):
    with open(b"sparse/" + name, "xb") as file:
        for place, size in holes:
            if size is None:
                file.truncate(place)
            else:
                file.seek(place)
                file.write(content(place % 1000, size))
write(b"sparse/zeros that are no hole", bytes(2 * MIB))

# --- extended attributes, capabilities, ACLs --------------------------------------------------------
def xattr(path, name, value, **how):
    return tried(f"the attribute {name} of {len(value)} bytes", os.setxattr, path, name, value, **how)


for i, path in enumerate((write(b"xattrs/file", b"x"), write(b"xattrs/another file", content(3, 50_000)))):
    # File systems that keep them beside the inode have 4 KiB for all of a file, names included.
    xattr(path, "user.large", content(i, 4096)) or xattr(path, "user.large", content(i, 3_900))
    xattr(path, "user.empty", b"")
os.mkdir(b"xattrs/folder")
xattr(b"xattrs/folder", "user.large", content(7, 4096)) or xattr(b"xattrs/folder", "user.large", content(7, 3_900))
for i in range(20):
    path = write(b"xattrs/many/%d" % i, b"same name, other value")
    xattr(path, "user.origin", b"\0\xff value %d" % i)
    xattr(path, "user.\u00e9 odd\n", b"x")
path = write(b"xattrs/read only", b"r")
xattr(path, "user.of a file that forbids writing", b"1")
os.chmod(path, 0o444)
xattr(write(b"xattrs/trusted", b"t"), "trusted.longhaul", b"for root only")
os.symlink(b"file", b"xattrs/link")
xattr(b"xattrs/link", "trusted.of a link", b"1", follow_symlinks=False)
os.mkfifo(b"xattrs/fifo")
xattr(b"xattrs/fifo", "trusted.of a fifo", b"1")
# Kept only where the owner is set before it: a change of owner takes it away.
path = write(b"xattrs/capable", b"#!/bin/sh\n", 0o755)
if ROOT:
    owned(path, 1234, 1234)
xattr(path, "security.capability", struct.pack("<IIIII", 0x0200_0001, 1 << 10, 0, 0, 0))


def acl(path, kind, *entries):
    tags = {"user": 1, "USER": 2, "group": 4, "GROUP": 8, "mask": 16, "other": 32}
    value = struct.pack("<I", 2)
    for tag, perm, *of in entries:
        value += struct.pack("<HHI", tags[tag], perm, of[0] if of else 0xFFFF_FFFF)
    return tried("an ACL", os.setxattr, path, f"system.posix_acl_{kind}", value)


named = [("user", 7), ("USER", 5, 1001), ("USER", 0, 1002), ("group", 5), ("GROUP", 6, 2001), ("mask", 5), ("other", 0)]
acl(write(b"acls/file", b"a"), "access", *named)
acl(write(b"acls/setuid and acl", b"a", 0o4755), "access", *named)
os.makedirs(b"acls/folder/below")
acl(b"acls/folder", "access", *named)
acl(b"acls/folder", "default", *named)
# Made before the default was there: what a copy inherits from its new parent is too much.
write(b"acls/inherits nothing", b"plain", 0o640)
os.mkdir(b"acls/heirs")
write(b"acls/heirs/none", b"none", 0o600)
os.mkdir(b"acls/heirs/folder without", 0o700)
os.mkfifo(b"acls/heirs/fifo", 0o604)
acl(b"acls/heirs", "default", *named)
write(b"acls/heirs/inherits", b"inherited")
os.mkdir(b"acls/heirs/folder that inherits")

# --- owners and modes -------------------------------------------------------------------------------
for i, mode in enumerate((0o000, 0o400, 0o200, 0o111, 0o444, 0o644, 0o666, 0o777, 0o4755, 0o2755, 0o6711, 0o1644, 0o7777)):
    path = write(b"modes/%04o" % mode, b"mode")
    if ROOT:
        owned(path, (0, 1000, 65_534, 4_000_000_000)[i % 4], (0, 12_345, 4_000_000_001)[i % 3])
    tried("a mode", os.chmod, path, mode)
if ROOT:
    os.symlink(b"nowhere", b"modes/link of somebody")
    owned(b"modes/link of somebody", 1000, 1001)
# Given their modes at the very end: nothing could be made in them afterwards.
closed = []
for mode in (0o000, 0o111, 0o333, 0o444, 0o500, 0o555, 0o700, 0o1777, 0o2775, 0o3770):
    folder = b"modes/folder %04o" % mode
    write(folder + b"/file", content(mode, 500))
    write(folder + b"/sub/file", content(mode, 600))
    if ROOT and mode & 0o2000:
        owned(folder, 0, 12_345)
    closed.append((folder, mode))
write(b"modes/closed in closed/inner/file", b"inside")
closed += [(b"modes/closed in closed/inner", 0o555), (b"modes/closed in closed", 0o555)]

# --- special files ----------------------------------------------------------------------------------
os.mkdir(b"special")
os.mkfifo(b"special/fifo", 0o640)
os.chmod(b"special/fifo", 0o622)
here = os.open(b"special", os.O_RDONLY | os.O_DIRECTORY)
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(b"/proc/self/fd/%d/socket" % here)
os.close(here)
for name, kind, major, minor in ((b"char", stat.S_IFCHR, 1, 3), (b"block", stat.S_IFBLK, 7, 123), (b"large", stat.S_IFCHR, 300, 70_000)):
    tried("a device node", os.mknod, b"special/" + name, kind | 0o640, os.makedev(major, minor))

# --- symbolic links ---------------------------------------------------------------------------------
os.mkdir(b"links")
for name, target in (
    (b"dangling", b"no such thing"), (b"absolute", b"/etc/hostname"), (b"absolute and dangling", b"/no/such/thing"),
    (b"to itself", b"to itself"), (b"round a", b"round b"), (b"round b", b"round a"), (b"to a file", b"../modes/0644"),
    (b"to a folder", b"../sparse"), (b"to above", b".."), (b"out of the tree", b"../../../../../../../etc"),
    (b"not utf-8", b"\xff\xfe"), (b"new\nline", b"new\nline"), (b"long", b"x/" * 2_040 + b"x"), (b"spaces", b" "),
):
    os.symlink(target, b"links/" + name)
    stamp(b"links/" + name, 1_234_567_890, 123_456_789, follow_symlinks=False)
stamp(b"links/to itself", -5, 1, follow_symlinks=False)

# --- names ------------------------------------------------------------------------------------------
for name in (
    b"n" * 255, b"\xc3\xa9" * 127 + b"x", b"\xff" * 255, b"new\nline", b"\n", b"not utf-8 \xff\xfe\x80", b"-rf", b"--", b"--delete",
    b"trailing space ", b" ", b" leading", b"tab\tname", b"return\r", b"esc\x1b[31m", b"#hash", b"*", b"?[a-z]{x}", b"!negated",
    b"quote\"'\\", b"back\\slash", b"...", b".hidden", b"~", b"%41", b"\x01\x7f", "e\u0301 \u00e9 \u202e".encode(),
    b".ctl-0123456789abcdef-looks-like-ours",
):
    write(b"names/" + name, content(len(name), 64))
    write(b"names/folders/" + name + b"/" + name, content(len(name), 65))

# --- times ------------------------------------------------------------------------------------------
for name, seconds, ns in (
    (b"epoch", 0, 0), (b"one ns after the epoch", 0, 1), (b"one ns before 1970", -1, 999_999_999), (b"1969", -100_000, 5),
    (b"1903", -2_100_000_000, 123), (b"2038", 2_147_483_648, 7), (b"2106", 4_294_967_295, 999_999_999),
    (b"2106 and one second", 4_294_967_296, 1), (b"2109", 4_400_000_000, 987_654_321), (b"2400", 13_569_465_600, 42),
    (b"now", 1_700_000_000, 1),
):
    stamp(write(b"times/" + name, b"t"), seconds, ns)
    os.makedirs(b"times/folders/" + name)
    stamp(b"times/folders/" + name, seconds, ns)

# --- deep -------------------------------------------------------------------------------------------
# Made from inside: no path could name the lowest.
os.mkdir(b"deep")
at = os.open(b"deep", os.O_RDONLY | os.O_DIRECTORY)
levels = []
for level in range(110):
    name = b"level %03d of a very deep tree, with words" % level
    os.mkdir(name, dir_fd=at)
    below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=at)
    if level % 20 == 0:
        os.close(os.open(b"beside", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=below))
    levels.append((at, name))
    at = below
fd = os.open(b"bottom", os.O_WRONLY | os.O_CREAT, 0o640, dir_fd=at)
os.write(fd, b"found")
os.close(fd)
os.symlink(b"bottom", b"link", dir_fd=at)
os.utime(b"bottom", ns=(1_111_111_111_000_000_011,) * 2, dir_fd=at)
os.close(at)
for i, (at, name) in enumerate(reversed(levels)):
    os.utime(name, ns=((1_300_000_000 + i) * 10**9 + i,) * 2, dir_fd=at)
    os.close(at)

# --- wide -------------------------------------------------------------------------------------------
os.mkdir(b"wide")
for i in range(ENTRIES):
    fd = os.open(b"wide/%06d" % i, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    if i % 10 == 0:
        os.write(fd, content(i, 100))
    os.close(fd)
os.makedirs(b"empty/in it/nor here")

# --- folders last and from below: what is made in them sets their time ------------------------------
for above, folders, _ in os.walk(b".", topdown=False):
    for folder in folders:
        path = os.path.join(above, folder)
        if os.path.islink(path) or path.startswith((b"./deep/", b"./times/folders/")):
            continue
        stamp(path, 1_400_000_000 + len(path), 100 + len(path))
for folder, mode in closed:
    tried("a mode", os.chmod, folder, mode)
    got = stat.S_IMODE(os.stat(folder).st_mode)
    if got != mode:
        left_out.setdefault("a mode", []).append(folder)
os.chmod(b".", 0o775)
stamp(b".", 1_222_222_222, 222_222_222)

for cause, paths in left_out.items():
    print(f"make-torture.sh: left out, {cause}: {os.fsdecode(paths[0])!r}" + (f" and {len(paths) - 1} more" if paths[1:] else ""), file=sys.stderr)
PYTHON
