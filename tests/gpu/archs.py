"""What GPUs the parts of a CUDA library are for, read from its fat binaries.

usage: archs.py LIBRARY

Each source file is a fat binary of its own: machine code (ELF) and assembly for
the driver to compile (PTX), each for a capability. Every one must serve one of
the two ways of kernels/cuda/capability.h, or both, and nothing else; then no GPU
that is not refused meets a kernel that is not there. Says how many serve which;
exit 1 if one serves none, or no file has a way.
"""

import collections
import struct
import sys

MAGIC = struct.pack("<IHH", 0xBA55ED50, 1, 16)
KIND = {1: "ptx", 2: "elf"}
SM90 = {("elf", 90)}
SM80 = {("elf", 80), ("ptx", 80)}
WAYS = {"sm90": SM90, "sm80": SM80, "both": SM90 | SM80}


EMPTY = 8192  # bytes: no kernel is smaller, what has none is not larger


def parts(data, at, end):
    """(kind, capability) of each part of a fat binary."""
    while at < end:
        kind, _, header, size = struct.unpack_from("<HHIQ", data, at)
        yield KIND.get(kind, kind), struct.unpack_from("<I", data, at + 28)[0]
        at += header + size


def fat_binaries(data):
    at = data.find(MAGIC)
    while at >= 0:
        size = struct.unpack_from("<Q", data, at + 8)[0]
        if size > EMPTY:
            yield set(parts(data, at + 16, at + 16 + size))
        at = data.find(MAGIC, at + 16 + size)


def main():
    with open(sys.argv[1], "rb") as file:
        data = file.read()
    count = collections.Counter()
    is_good = True
    for found in fat_binaries(data):
        way = [name for name, has in WAYS.items() if has == found]
        if not way:
            print("a file is for", sorted(found))
            is_good = False
        count.update(way)
    print(", ".join(f"{name} {count[name]}" for name in WAYS))
    return 0 if is_good and all(count[name] for name in WAYS) else 1


if __name__ == "__main__":
    sys.exit(main())
