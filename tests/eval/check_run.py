#!/usr/bin/env python3
"""`godwitd eval` end to end on godwit-tiny: does it measure the model?

    check_run.py GODWITD MODEL_DIR

Scores, rows and intervals are worked out once more from the answers, by code
that shares no line with the node's. The needles that the model was trained on
must be found, and a length of the past that no weights could hold must not be.
Threads and shared prefixes change no byte.
"""

import json
import math
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET

TASKS = "needle,needle_multikey,passkey,kv,niah_single_2,cwe,mqar"
RUN = ["--tasks", TASKS, "--lengths", "960,1088", "--depths", "3", "--seed", "3",
       "--weight-format", "w8a8"]
SAMPLES = 3  # one at each depth
COLUMNS = ("version model numerics policy seed depths task length depth samples "
           "hits of score low high prompt_tokens").split()


def same(a, b, what):
    if a != b:
        sys.exit("%s is %r, expected %r" % (what, a, b))


def want(is_right, what):
    if not is_right:
        sys.exit(what)


def run(godwitd, *options):
    return subprocess.run([godwitd, "eval", *options], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, encoding="utf-8")


def measure(godwitd, model, folder, name, samples, *options):
    paths = [os.path.join(folder, name + end)
             for end in (".tsv", ".svg", ".jsonl")]
    done = run(godwitd, "--model", model, *RUN, "--samples", str(samples),
               "--out", paths[0], "--plot", paths[1], "--answers", paths[2],
               *options)
    same((done.returncode, done.stdout), (0, ""), done.stderr)
    want("14 of 14: full, mqar at 1088 tokens" in done.stderr, done.stderr)
    found = re.search(r"prompts of (\d+) tokens, (\d+) of them", done.stderr)
    texts = []
    for path in paths:
        with open(path, encoding="utf-8") as file:
            texts.append(file.read())
    return texts, int(found.group(1)), int(found.group(2))


def hits(task, answer, expected):
    if task == "passkey":
        digits = [x for x in re.split("[^0-9]", answer) if x]
        return int(digits[:1] == expected)
    if task == "kv":
        return int(expected[0] in re.sub("[\n:\"'.,?!{}]", " ", answer).split())
    return sum(x.lower() in answer.lower() for x in expected)


def bounds(p, n):
    """Wilson's interval as the two roots of (p - x)^2 = z^2 x (1 - x) / n."""
    z = 1.959963984540054
    a, b, c = 1 + z * z / n, -2 * p - z * z / n, p * p
    root = math.sqrt(max(b * b - 4 * a * c, 0))
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


def check_rows(tsv, answers):
    lines = [line.split("\t") for line in tsv.splitlines()]
    same(lines[0], COLUMNS, "header")
    rows = {}
    for line in lines[1:]:
        row = dict(zip(COLUMNS, line))
        rows[row["task"], int(row["length"]), row["depth"]] = row
    same(len(rows), 2 * (5 * 4 + 2), "rows")
    for (task, length, depth), row in rows.items():
        step = {"0.00": 0, "0.50": 1, "1.00": 2}.get(depth)
        of = [a for a in answers if a["task"] == task and a["length"] == length
              and (depth == "-" or a["depth_step"] == step)]
        same(int(row["samples"]), len(of), "samples")
        n_hit, n_of = (sum(a[k] for a in of) for k in ("hits", "of"))
        same((int(row["hits"]), int(row["of"])), (n_hit, n_of), "hits")
        trials = n_of if task == "mqar" else len(of)
        numbers = (n_hit / n_of, *bounds(n_hit / n_of, trials))
        for name, number in zip(("score", "low", "high"), numbers):
            want(abs(float(row[name]) - number) < 0.00051,
                 "%s of %s is %s, expected %f" % (name, task, row[name], number))
        same(row["policy"], "full", "policy")
    return {key: float(row["score"]) for key, row in rows.items()}


def check_answers(answers):
    for a in answers:
        if a["task"] == "mqar":
            same((a["answer"], a["of"]), (None, 64), "answer")
        else:
            same(a["of"], len(a["expected"]), "expected")
            same(a["hits"], hits(a["task"], a["answer"], a["expected"]),
                 "hits of %r" % a)


def check_plot(svg):
    root = ET.fromstring(svg)
    texts = ["".join(x.itertext()) for x in root.iter()
             if x.tag.endswith("}text")]
    for name in TASKS.split(",") + ["960", "1088"]:
        want(texts.count(name) == 1, "%s in the plot" % name)
    rects = [x.attrib for x in root.iter() if x.tag.endswith("}rect")][1:]
    same(len(rects), 2 * (5 * 4 + 2), "rectangles")
    # Strips tile the width of their cell, from depth 0 on the left.
    cells = [r for r in rects if int(r["height"]) > 10]
    strips = [r for r in rects if int(r["height"]) == 10]
    same((len(cells), len(strips)), (14, 30), "cells and strips")
    for i in range(0, len(strips), 3):
        x, width = ([int(r[k]) for r in strips[i:i + 3]] for k in ("x", "width"))
        want(x[1] == x[0] + width[0] and x[2] == x[1] + width[1], "strips")
        of = [c for c in cells if int(c["x"]) == x[0] and int(c["width"]) ==
              sum(width) and int(c["y"]) < int(strips[i]["y"]) <=
              int(c["y"]) + int(c["height"])]
        same(len(of), 1, "cells over a strip")
    return sorted(r["fill"] for r in rects)


def check_colours(fills, rows):
    """As many of the two ends as there are scores 0 and 1."""
    for fill, score in (("#f7f7f7", 0.0), ("#08306b", 1.0)):
        same(fills.count(fill), list(rows.values()).count(score), fill)


def check_scores(score):
    for length in (960, 1088):
        # A guess finds 1 of 9,000,000 numbers; one token of 2,044 values.
        want(score["needle", length, "-"] >= 0.8, "needles are not found")
        want(score["needle_multikey", length, "-"] >= 0.8, "nor with others")
        want(score["mqar", length, "-"] >= 0.5, "no recall")
        # Nothing in this model's training looks like these.
        want(score["kv", length, "-"] == 0, "UUIDs are found: are they shown?")


def check_refusals(godwitd, model):
    for options, reason in (
            ([], "--model is required"),
            (["--model", "/nowhere"], "/nowhere"),
            (["--model", model, "--tasks", "needle,nadel"], "no task 'nadel'"),
            (["--model", model, "--tasks", ""], "no task ''"),
            (["--model", model, "--lengths", "1024,"], "--lengths"),
            (["--model", model, "--lengths", "-1"], "--lengths"),
            (["--model", model, "--lengths", "63"], "--lengths"),
            (["--model", model, "--lengths", "1048576"], "context of 1048576"),
            (["--model", model, "--tasks", "cwe", "--lengths", "600"],
             "cwe needs"),
            (["--model", model, "--tasks", "mqar", "--lengths", "1001"],
             "even length"),
            (["--model", model, "--policy", "full,windows"], "there are: full"),
            (["--model", model, "--samples", "0"], "--samples"),
            (["--model", model, "--json"], "--json"),
            (["--model", model, "--show", "nadel"], "no task 'nadel'"),
            (["--rows", "/nowhere/x", "--plot", "y"], "cannot read"),
            (["--rows", "/dev/null", "--plot", "y"], "no row"),
            (["--rows", "/dev/null"], "--rows needs --plot"),
            (["--model", model, "--out", "/nowhere/x"], "/nowhere/x"),
            (["--nonsense"], "nonsense")):
        done = run(godwitd, *options)
        same((done.returncode, done.stdout), (2, ""), options)
        want(reason in done.stderr, "%s: %s" % (options, done.stderr))


def check_rows_again(godwitd, folder, tsv, svg):
    """Rows in two files give the picture of the run that made them."""
    lines = tsv.splitlines(keepends=True)
    paths = [os.path.join(folder, name) for name in ("a", "b", "again.svg")]
    for path, part in zip(paths, (lines[1:20], lines[20:])):
        with open(path, "w", encoding="utf-8") as file:
            file.writelines([lines[0], *part])
    rows = ["--rows", ",".join(paths[:2]), "--plot", paths[2]]
    done = run(godwitd, *rows)
    same((done.returncode, done.stderr), (0, ""), "rows")
    with open(paths[2], encoding="utf-8") as file:
        same(file.read(), svg, "plot of rows")
    for old, new, reason in (("needle", "nadel", "a line 2: no task 'nadel"),
                             ("full", "window", "a line 3: another model"),
                             ("0.00\t1\t", "0.00\t-1\t", "a line 2: no row"),
                             ("version", "", "a line 1: not the header")):
        text = lines[0] + lines[1] + lines[2]
        at = text.rindex(old) if old == "full" else text.index(old)
        with open(paths[0], "w", encoding="utf-8") as file:
            file.write(text[:at] + new + text[at + len(old):])
        done = run(godwitd, *rows)
        same((done.returncode, done.stdout), (2, ""), new)
        want(reason in done.stderr, done.stderr)


def counts(*tsvs):
    """Samples, hits and tokens by task and depth, of several outputs."""
    found = {}
    for line in "".join(tsvs).splitlines():
        row = line.split("\t")
        if row[0] == "version":
            continue
        sums = found.setdefault((row[6], row[8]), [0, 0, 0, 0])
        for i, at in enumerate((9, 10, 11, 15)):
            sums[i] += int(row[at])
    return found


def check_parts(godwitd, model):
    """Runs that share out the samples of a row have done them all."""
    base = ("--model", model, "--tasks", "needle,passkey,mqar", "--lengths",
            "700", "--depths", "3")
    whole = run(godwitd, *base, "--samples", "3").stdout
    first = run(godwitd, *base, "--samples", "1").stdout
    rest = run(godwitd, *base, "--samples", "2", "--first", "1").stdout
    want(len(counts(whole)) == 9, whole)
    same(counts(first, rest), counts(whole), "samples shared out")


def main():
    godwitd, model = sys.argv[1:3]
    check_refusals(godwitd, model)
    check_parts(godwitd, model)
    with tempfile.TemporaryDirectory() as folder:
        texts, n_all, n_shared = measure(godwitd, model, folder, "one",
                                         SAMPLES, "--threads", "1")
        answers = [json.loads(line) for line in texts[2].splitlines()]
        check_answers(answers)
        rows = check_rows(texts[0], answers)
        check_scores(rows)
        check_colours(check_plot(texts[1]), rows)
        check_rows_again(godwitd, folder, texts[0], texts[1])
        want(n_shared < 0.9 * n_all, "%d of %d computed" % (n_shared, n_all))
        plain, n_plain, n_each = measure(godwitd, model, folder, "two", SAMPLES,
                                         "--threads", "2", "--share=false")
        same(n_each, n_plain, "tokens without sharing")
        same(plain, texts, "what two threads say, nothing shared")
    print("ok: %d of %d tokens computed when shared" % (n_shared, n_all))


if __name__ == "__main__":
    main()
