#!/usr/bin/python3
"""Can `godwitd check`, `tokenize` and `bench` fail, and do they say why?

Each row damages a golden directory or a command line in one place and states
the exit code (0 within tolerance, 1 beyond, 2 bad input) and words that must be
in the output. The undamaged directories pass first, so that no row can pass
for another reason.
Usage: check_judge.py GODWITD GOLDEN_DIR TINY_DIR
"""
import json
import os
import struct
import subprocess
import sys
import tempfile

PROGRAM, GOLDEN, TINY = sys.argv[1], sys.argv[2], sys.argv[3]
QWEN3 = os.path.join(GOLDEN, "qwen3")


def read_tensors(path):
    with open(path, "rb") as file:
        raw = file.read()
    n = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8:8 + n])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        tensors[name] = [entry["dtype"], entry["shape"],
                         bytearray(raw[8 + n + begin:8 + n + end])]
    return tensors


def write_tensors(path, tensors):
    header, data = {}, b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape,
                        "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


def run(words, stdin=b""):
    done = subprocess.run([PROGRAM] + words, input=stdin, timeout=300,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.returncode, done.stdout.decode()


# ------------------------------------------------- one prompt: qwen3's golden

def add_float(name, index, value):
    def damage(tensors):
        raw = tensors[name][2]
        old = struct.unpack_from("<f", raw, 4 * index)[0]
        struct.pack_into("<f", raw, 4 * index, old + value)
    return damage


def set_id(name, index, value):
    def damage(tensors):
        struct.pack_into("<i", tensors[name][2], 4 * index, value)
    return damage


def drop(name):
    return lambda tensors: tensors.pop(name)


def retype(name, dtype):
    def damage(tensors):
        tensors[name][0] = dtype
    return damage


def other_greedy(tensors):
    """Another first token, although the oracle's logits stay sure."""
    old = struct.unpack_from("<i", tensors["greedy_ids"][2], 0)[0]
    struct.pack_into("<i", tensors["greedy_ids"][2], 0, (old + 1) % 512)


PROMPT = [
    ("nothing", lambda tensors: None, 0, "greedy=24/24"),
    ("a logit within tolerance", add_float("logits", 70000, 1e-3), 0, "24/24"),
    ("a logit beyond it", add_float("logits", 70000, 3e-3), 1, "24/24"),
    ("a logit that is no number", add_float("logits", 0, float("nan")), 1,
     "max_abs_err=inf"),
    ("a greedy logit beyond it", add_float("greedy_logits", 9, -3e-3), 1, ""),
    ("another greedy token", other_greedy, 1, "/24"),
    ("a token outside", set_id("input_ids", 5, 512), 2, "input_ids[5] is 512"),
    ("a token below 0", set_id("greedy_ids", 1, -1), 2, "greedy_ids[1] is -1"),
    ("no logits", drop("logits"), 2, "logits"),
    ("no ids", drop("greedy_ids"), 2, "no tensor 'greedy_ids'"),
    ("ids as floats", retype("input_ids", "F32"), 2, "expected I32"),
]


# ------------------------------------------- cases: a subset of godwit-tiny's

def small_cases():
    """Each with its logits, where there are any."""
    with open(os.path.join(GOLDEN, "godwit-tiny", "cases.json"),
              encoding="utf-8") as file:
        cases = json.load(file)
    greedy, tie, niah = cases[0], cases[1], cases[5]
    tokens = cases[17]["input_ids"][:1025]
    # The whole text's likelihood of its first 1,024 tokens is this one's own.
    text = {"kind": "perplexity", "input_ids": tokens,
            "mean_nll": cases[17]["nll_first_1024"],
            "nll_first_1024": cases[17]["nll_first_1024"]}
    tensors = read_tensors(
        os.path.join(GOLDEN, "godwit-tiny", "golden.safetensors"))
    return [greedy, niah, text, tie], [tensors["logits.0"], tensors["logits.5"],
                                       None, tensors["logits.1"]]


def write_cases(directory, damage, kind):
    """All of them, or those of a kind alone, when one was damaged."""
    cases, logits = small_cases()
    damage(cases)
    kept = [i for i, case in enumerate(cases)
            if kind in ("all", case["kind"])]
    write_tensors(os.path.join(directory, "golden.safetensors"),
                  {"logits.%d" % n: logits[i] for n, i in enumerate(kept)
                   if logits[i]})
    with open(os.path.join(directory, "cases.json"), "w",
              encoding="utf-8") as out:
        json.dump([cases[i] for i in kept], out)


def put(index, key, value):
    def damage(cases):
        cases[index][key] = value
    return damage


def bump(index, key, place):
    def damage(cases):
        cases[index][key][place] += 1
    return damage


# What is computed is of the kind that is damaged.
CASES = [
    ("nothing", lambda cases: None, "all", 0, "total cases=4/4"),
    ("another token", bump(0, "greedy_ids", 3), "greedy", 1,
     "greedy cases=1/2"),
    ("a late token", bump(0, "greedy_ids", 63), "greedy", 1,
     "greedy cases=1/2"),
    ("another answer", put(1, "answer", "0000000"), "niah", 1, "answers=0/1"),
    ("likelihood off", put(2, "mean_nll", 3.7530), "perplexity", 1,
     "perplexity cases=0/1"),
    ("first tokens' off", put(2, "nll_first_1024", 3.0), "perplexity", 1,
     "cases=0/1"),
    ("no likelihood", put(2, "mean_nll", None), "all", 2, "mean_nll"),
    ("too short a text", put(2, "input_ids", [1, 2, 3]), "all", 2, "3 tokens"),
    ("an unknown kind", put(0, "kind", "poem"), "all", 2, "kind is 'poem'"),
    ("no tokens", put(0, "input_ids", []), "all", 2, "input_ids is missing"),
    ("a token outside", put(0, "greedy_ids", [4096]), "all", 2,
     "greedy_ids[0]"),
    ("a token as text", put(0, "greedy_ids", ["a"]), "all", 2,
     "greedy_ids[0]"),
    ("no cases", lambda cases: cases.clear(), "all", 2, "0 cases"),
]

# Rounded products are judged by margins, likelihoods and needles alone.
ROUNDED = [
    ("nothing", lambda cases: None, "all", "bf16-pair", "w8", 0,
     "total cases=4/4"),
    ("a near-tie", bump(3, "greedy_ids", 3), "greedy", "bf16-pair", "bf16", 0,
     "greedy=67/68 near_tie=0.000437"),
    ("one by 0.07", bump(0, "greedy_ids", 0), "greedy", "bf16-pair", "bf16", 1,
     "greedy cases=1/2"),
    ("another token", bump(0, "greedy_ids", 63), "greedy", "bf16-pair", "bf16",
     1, "greedy cases=1/2"),
    ("another answer", put(1, "answer", "0000000"), "niah", "bf16-tile",
     "bf16", 1, "answers=0/1"),
    ("likelihood off", put(2, "mean_nll", 3.7582), "perplexity", "bf16-pair",
     "bf16", 1, "perplexity cases=0/1"),
    ("likelihood off", put(2, "mean_nll", 3.7650), "perplexity", "fp32", "w8",
     1, "perplexity cases=0/1"),
]

COMMANDS = [
    (["check"], b"", 2, "--model must be given"),
    (["check", "--model", "/nonexistent"], b"", 2, "/nonexistent"),
    (["check", "--model", QWEN3, "--backend", "abacus"], b"", 2, "abacus"),
    (["check", "--model", QWEN3, "--golden", TINY], b"", 2, "golden.safeten"),
    (["check", "--model", QWEN3, "--threads", "9999"], b"", 2, "threads"),
    (["check", "--model", QWEN3, "--numerics", "fp32"], b"", 0,
     "fp32-chain-2/f32/kv-f32/rope-"),
    (["check", "--model", TINY, "--numerics", "bf16-tile", "--weight-format",
      "w8"], b"", 0, "bf16-tile-2/w8-128/kv-bf16/rope-"),
    (["check", "--model", TINY, "--numerics", "bf16-pair", "--weight-format",
      "w8a8"], b"", 0, "bf16-pair-2/w8a8-128/kv-bf16/rope-"),
    (["check", "--model", QWEN3, "--numerics", "fp16"], b"", 2,
     "expected auto|fp32|bf16-pair|bf16-tile"),
    (["check", "--model", QWEN3, "--weight-format", "w4"], b"", 2,
     "expected auto|bf16|w8|w8a8|f8"),
    (["check", "--help"], b"", 0, "--golden"),
    (["tokenize", "--model", QWEN3], b"", 2, "tokenizer.json"),
    (["tokenize", "--model", TINY], b'{"text":"a"}\nx\n', 2, "line 2: not JSO"),
    (["tokenize", "--model", TINY], b'{"txt":"a"}\n', 2, 'line 1: no string'),
    (["tokenize", "--model", TINY], b'{"text":"\xff"}\n', 2, "line 1: "),
    (["tokenize", "--model", TINY], b'{"text":""}\n', 0,
     '{"ids":[],"decoded":""}'),
    (["tokenize", "--model", TINY], b"", 0, ""),
    (["bench", "--model", "/nonexistent"], b"", 2, "/nonexistent"),
    (["bench", "--model", TINY, "--runs", "0"], b"", 2, "runs"),
    (["bench", "--model", TINY, "--synthetic", "x"], b"", 2, "one of --model"),
    (["bench", "--model", TINY, "--parts", "all"], b"", 2, "--parts is 'all'"),
    (["bench", "--model", TINY, "--contexts", "1,,2"], b"", 2, "'1,,2'"),
    (["bench", "--synthetic", os.path.join(QWEN3, "config.json"), "--parts",
      "decode", "--contexts", "70", "--batches", "2", "--runs", "1"], b"", 0,
     "decode\t70\t2\t"),
]


def main():
    bad = []

    def judge(what, found, code, text):
        if found[0] != code or text not in found[1]:
            bad.append(what)
            print(f"{what}: exit {found[0]}, expected {code} and '{text}' in:\n"
                  f"{found[1]}", file=sys.stderr)

    with tempfile.TemporaryDirectory() as dir:
        file = os.path.join(dir, "golden.safetensors")
        for what, damage, code, text in PROMPT:
            tensors = read_tensors(os.path.join(QWEN3, "golden.safetensors"))
            damage(tensors)
            write_tensors(file, tensors)
            judge("prompt: " + what,
                  run(["check", "--model", QWEN3, "--golden", dir,
                       "--numerics", "fp32"]), code, text)
        exact = [(what, damage, kind, "fp32", "auto", code, text)
                 for what, damage, kind, code, text in CASES]
        for (what, damage, kind, numerics, format, code,
             text) in exact + ROUNDED:
            write_cases(dir, damage, kind)
            judge("cases: " + what,
                  run(["check", "--model", TINY, "--golden", dir,
                       "--numerics", numerics, "--weight-format", format]),
                  code, text)
    for words, stdin, code, text in COMMANDS:
        judge(" ".join(words), run(words, stdin), code, text)
    n = len(PROMPT) + len(CASES) + len(ROUNDED) + len(COMMANDS)
    print(f"judge rows={n - len(bad)}/{n}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
