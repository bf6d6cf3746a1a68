#!/usr/bin/env python3
"""Hide one sentence in a long text and ask a running node for it.

    ops/needle.py --tokens 131072 [--endpoint 127.0.0.1:50051] [--depth 0.3]

The text comes from tests/golden/godwit-tiny/cases.json (public-domain novels);
the sentence and the question have the form that assets/models/README.md
describes. The prompt goes through `godwitctl generate --prompt-file`, whose
progress is shown. Exit code 0 if the number was found, 1 if not.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CASES = os.path.join(ROOT, "tests/golden/godwit-tiny/cases.json")
NEEDLE = re.compile(r"The special magic number for \w+ is \d{7}\.")
KEYS = ("castle", "garden", "letter", "harbour", "window", "captain", "winter")
N_TAIL = 40  # tokens of a needle case's question
N_FRAME = 60  # tokens of our sentence, our question and what goes with them


def book_ids():
    """Token ids of prose, in pieces."""
    with open(CASES, encoding="utf-8") as file:
        cases = json.load(file)
    pieces = [c["input_ids"] for c in cases if c["kind"] == "perplexity"]
    pieces += [c["input_ids"][:-N_TAIL] for c in cases
               if c["kind"] == "niah" and c["length"] >= 9000]
    return pieces


def build_prompt(detokenize, n_token, depth=0.3, seed=1):
    """A prompt of about n_token tokens and the number that it hides."""
    rng = random.Random(seed)
    key, value = rng.choice(KEYS), "%07d" % rng.randrange(10**7)
    texts, left = [], n_token - N_FRAME
    while left > 0:
        for ids in book_ids():
            texts.append(NEEDLE.sub("", detokenize(ids[:left])))
            left -= len(ids)
            if left <= 0:
                break
    text = " ".join(texts)
    at = text.find(" ", int(len(text) * depth))
    sentence = " The special magic number for %s is %s." % (key, value)
    question = ("<|im_start|>user\nWhat is the special magic number for %s?"
                "<|im_end|>\n<|im_start|>assistant\n"
                "The special magic number for %s is " % (key, key))
    return text[:at] + sentence + text[at:] + question, value


def main():
    parse = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parse.add_argument("--tokens", type=int, default=131072)
    parse.add_argument("--depth", type=float, default=0.3)
    parse.add_argument("--seed", type=int, default=1)
    parse.add_argument("--endpoint", default=os.environ.get(
        "GODWIT_ENDPOINT", "127.0.0.1:50051"))
    parse.add_argument("--godwitctl", default=os.environ.get(
        "GODWITCTL", os.path.join(ROOT, "build/godwitctl")))
    parse.add_argument("--progress", default="auto")
    options = parse.parse_args()
    ctl = [options.godwitctl, "--endpoint", options.endpoint]

    def detokenize(ids):
        return subprocess.run(
            ctl + ["detokenize"], input=" ".join(map(str, ids)), check=True,
            stdout=subprocess.PIPE, encoding="utf-8").stdout

    def count(text):
        return subprocess.run(
            ctl + ["tokenize", "--special", "--prompt-file", "-"], input=text,
            check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout.count("\n")

    # Joints tokenise a little differently: add what is missing.
    n_token, n_wanted = 0, options.tokens
    while n_token < options.tokens:
        prompt, value = build_prompt(detokenize, n_wanted, options.depth,
                                     options.seed)
        n_token = count(prompt)
        n_wanted += max(options.tokens - n_token, 1)
    with tempfile.NamedTemporaryFile("w", suffix=".txt",
                                     encoding="utf-8") as file:
        file.write(prompt)
        file.flush()
        begin = time.monotonic()
        said = subprocess.run(
            ctl + ["generate", "--prompt-file", file.name, "--special",
                   "--max-tokens", "8", "--temperature", "0", "--stats",
                   "--progress", options.progress],
            check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout
    found = value in said
    print("tokens\thidden\tanswer\tfound\tseconds\n%d\t%s\t%s\t%s\t%.1f" % (
        n_token, value, said.strip(), "yes" if found else "no",
        time.monotonic() - begin))
    return 0 if found else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
