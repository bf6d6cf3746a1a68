#!/usr/bin/env python3
"""compute-sanitizer's racecheck over a kernel's check, with what is known of it.

    tests/gpu/race.py [--without NAME] PROGRAM WORD...

racecheck does not see that one thread's arrival at a barrier speaks for those
that it met before, in its warp or at a named barrier. KNOWN has those pairs of accesses, each with what
orders it; a pair that is not there, or a check that fails, is an error. Without: no kernel that has the
name in its own.

Exit: 0 no pair but known ones, 1 another one or a failure, 2 no compute-sanitizer.
"""

import collections
import re
import shutil
import subprocess
import sys

REFILL = ("a tile is refilled behind `empty`, at which a lane of each warp arrives "
          "once all have read; attend_list: behind `k_empty`, for which the tile was "
          "multiplied, and that was behind `k_full`, at which a lane of each warp "
          "arrives once all have rotated")
FULL = ("of a chunk that the call does not bring whole: the lanes of a warp meet when what "
        "each has written or asked for is there, then one arrives at `full`")
HANDED = "has_state and has_u say that it is written, is_free that it was read"
KNOWN = {
    # attend_few, attend_list; keys_of is where the compiler puts some of its bulk copies
    ("Read load_matrices", "Write bulk_copy"): REFILL,
    ("Read load_matrices", "Write keys_of"): REFILL,
    ("Read load_transposed", "Write bulk_copy"): REFILL,
    ("Write bulk_copy", "Write turn_unit"): REFILL,
    ("Write keys_of", "Write turn_unit"): REFILL,
    ("Read add_sums", "Write weigh"):
        "all workers meet, then one arrives at weight_ready",
    ("Read add_sums", "Write find_maxima"):
        "the same: factors are written before weights are",
    ("Read find_maxima", "Write cluster_store"):
        "all workers of a CTA meet, then one arrives at each max_ready, release",
    # delta_prepare, delta_recur
    ("Read load_matrices", "Write fill_rows"): FULL,
    ("Read load_matrices", "Write ptx_cp_async_16"): FULL,  # fill_rows' copies
    ("Read load_inputs", "Write load_values"): FULL,
    ("Read load_inputs", "Write ptx_cp_async_16"): FULL,
    ("Read put_chunk", "Write multiply_state"): HANDED,
    ("Read add_seen", "Write solve_chunk"): HANDED,
}


def find_sanitizer():
    return (shutil.which("compute-sanitizer") or
            shutil.which("/usr/local/cuda/bin/compute-sanitizer"))


def access(text):
    """Read or Write, and the function's bare name."""
    found = re.search(r"(Write|Read) access at (.*?)\+0x", text)
    if not found:
        return text.strip()
    name = re.sub(r"[(<].*", "", re.sub(r"^(void|bool|float) ", "", found.group(2)))
    return "%s %s" % (found.group(1), name.split()[-1])


def pairs_of(said):
    """Hazards for each pair of accesses, in the order of names, and its first report."""
    n, report = collections.Counter(), {}
    for first, others in re.findall(
            r"Race reported between ([^\n]*)\n((?:=+ +and [^\n]*\n)*)", said):
        for other in others.splitlines():
            hazards = re.search(r"\[(\d+) hazards", other)
            pair = tuple(sorted((access(first), access(other))))
            n[pair] += int(hazards.group(1)) if hazards else 1
            report.setdefault(pair, "    %s\n    %s" % (first, other))
    return n, report


def main():
    sanitizer = find_sanitizer()
    if not sanitizer:
        print("there is no compute-sanitizer here")
        return 2
    command = [sanitizer, "--tool", "racecheck", "--print-limit", "100000"]
    words = sys.argv[1:]
    if words[0] == "--without":
        command += ["--kernel-name-exclude", "kns=" + words[1]]
        words = words[2:]
    done = subprocess.run(
        command + words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        encoding="utf-8", errors="replace", check=False)
    pairs, report = pairs_of(done.stdout)
    other = [pair for pair in pairs if pair not in KNOWN]
    for pair in other:
        print("%s and %s: %d hazards" % (pair + (pairs[pair],)))
        print(report[pair])
    if done.returncode or "RACECHECK SUMMARY" not in done.stdout:
        print(done.stdout[-2000:])
        print("exit", done.returncode)
        return 1
    print("%d pairs of accesses, %d of them known to be ordered" %
          (len(pairs), len(pairs) - len(other)))
    return 1 if other else 0


if __name__ == "__main__":
    sys.exit(main())
