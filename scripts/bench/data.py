"""The data sets: what is in them, how they are made, and what a copy of one must hold."""

import filecmp
import mmap
import os
import shutil
from collections import namedtuple

MIB = 1 << 20

# tree: the source, one of TREES. again: the destination holds all of it already. local: one agent has both paths.
Set = namedtuple("Set", "tree again local text")
SETS = {
    "large": Set("large", False, False, "one large file"),
    "mid": Set("mid", False, False, "files of 2 MiB"),
    "small": Set("small", False, False, "files of 100 to 8,000 bytes"),
    "million": Set("million", False, False, "small files, four of five empty"),
    "again": Set("small", True, False, "small files, nothing changed"),
    "again-million": Set("million", True, False, "a million small files, nothing changed"),
    "local-large": Set("large", False, True, "one large file, one agent with both paths"),
    "local-small": Set("small", False, True, "small files, one agent with both paths"),
}

TREES = {
    "large": "one file of 3 GiB",
    "mid": "1,000 files of 2 MiB",
    "small": "100,000 files of 100 to 8,000 bytes",
    "million": "1,000,000 files, 200,000 of 100 to 8,000 bytes, the others empty",
}


def number(full, scale):
    return max(1, round(full * scale))


def make(tree, path, scale):
    """Makes a source tree, unless it is there. Content looks random: no side gains by holes or equal blocks."""
    if os.path.exists(path):
        return
    scratch = path + ".part"
    shutil.rmtree(scratch, ignore_errors=True)
    os.makedirs(scratch)
    # A mapping of its own is given back when this ends; memory of ours would show as that of the sides.
    pool = mmap.mmap(-1, 16 * MIB)
    for _ in range(16):
        pool.write(os.urandom(MIB))
    if tree == "large":
        whole(f"{scratch}/file", number(3 << 30, scale), 0, pool)
    elif tree == "mid":
        for i in range(number(1000, scale)):
            whole(f"{scratch}/f{i:05}", 2 * MIB, i, pool)
    elif tree == "small":
        many(scratch, number(100_000, scale), 1, pool)
    else:
        many(scratch, number(1_000_000, scale), 5, pool)
    os.rename(scratch, path)


def whole(path, size, seed, pool):
    """Blocks of 16 MiB of the pool, each with its own head and turned by its own number of bytes."""
    with open(path, "wb", buffering=0) as file:
        at = 0
        while at < size:
            turn = (seed * 4093 + at // len(pool) * 8191) % len(pool)
            head = b"%016d%016d" % (seed, at)
            for part in (head, memoryview(pool)[turn:], memoryview(pool)[: max(0, turn - len(head))]):
                part = memoryview(part)[: size - at]
                file.write(part)
                at += len(part)


def many(root, count, every, pool):
    """Small files, 250 to a folder, ten folders to a folder; one of `every` has content."""
    for i in range(count):
        folder = f"{root}/{i // 2500:03}/{i // 250 % 10}"
        if i % 250 == 0:
            os.makedirs(folder)
        with open(f"{folder}/f{i}", "wb", buffering=0) as file:
            if i % every == 0:
                at = i * 7919 % (8 * MIB)
                file.write(memoryview(pool)[at : at + 100 + i * 2654435761 % 7901])


def needs(tree, scale):
    """About how many bytes, on a file system with pages of 4 KiB, and how many entries a tree takes."""
    size, entries = {"large": (3072, 2), "mid": (2000, 1001), "small": (800, 100_500), "million": (2600, 1_005_000)}[tree]
    return size * MIB * scale, entries * scale


Sum = namedtuple("Sum", "files bytes print")


def total(path):
    """Files and bytes of a tree; `print` changes when any of its files is replaced or written."""
    files = size = mark = 0
    stack = [path]
    while stack:
        with os.scandir(stack.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    stack.append(entry.path)
                else:
                    meta = entry.stat(follow_symlinks=False)
                    files, size = files + 1, size + meta.st_size
                    mark = (mark + meta.st_ino * 31 + meta.st_ctime_ns) % (1 << 64)
    return Sum(files, size, mark)


def differs(src, dst):
    """The first file of `src` that is not the same in `dst`, or None."""
    filecmp.clear_cache()  # It knows files by size and time: those of an earlier round look the same.
    for folder, folders, files in os.walk(src):
        folders.sort()
        there = os.path.join(dst, os.path.relpath(folder, src))
        for name in sorted(files):
            other = os.path.join(there, name)
            if not os.path.exists(other) or not filecmp.cmp(os.path.join(folder, name), other, shallow=False):
                return other
    return None
