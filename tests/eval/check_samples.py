#!/usr/bin/env python3
"""Samples of `godwitd eval` against the definitions in docs/EVAL.md.

    check_samples.py GODWITD MODEL_DIR

An oracle: it reads the texts as a person would, with regular expressions, and
works the answers out. It shares no line with the generators. Then laws: the
same seed gives the same bytes, another seed gives others, a sample does not
depend on how many there are. Last, pinned digests, so that a benchmark's texts
never change unnoticed.
"""

import collections
import hashlib
import json
import os
import re
import subprocess
import sys

N_DEPTH = 5
NOISE = ("The grass is green. The sky is blue. The sun is yellow. Here we go. "
         "There and back again.")
RULER = re.compile(r"One of the special magic (numbers|uuids) for (\S+) is: "
                   r"([0-9a-f-]+)\.(?=[ \n])")
OWN = re.compile(r"The special magic number for (\w+) is (\d{7})\. ")
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-"
                  r"[0-9a-f]{12}")


class Wrong(Exception):
    pass


def want(is_right, *what):
    if not is_right:
        raise Wrong(" ".join(map(str, what)))


def same(a, b, *what):
    want(a == b, *what, "is", repr(a), "expected", repr(b))


def at_depth(sample, start, length, text, tolerance=0.06):
    """A needle begins where its depth says, in shares of the haystack."""
    wanted = sample["depth_step"] / (N_DEPTH - 1)
    free = length - text
    want(abs(start / free - wanted) <= tolerance, "needle at", start / free,
         "expected", wanted)


def hidden(sample, needle, question):
    """One needle among noise, as InfiniteBench has it."""
    prompt, key = sample["prompt"], sample["expected"][0]
    found = list(re.finditer(needle, prompt))
    same(len(found), 1, "needles")
    same(found[0].group(1), key, "the needle's first key")
    same(found[0].group(2), key, "the needle's second key")
    same(prompt.count(key), 2, "the key's places")
    want(prompt.endswith(question), "question", prompt[-80:])
    lines = prompt.split("\n")
    body = lines[1:-2]
    same(lines[-2], "", "line before the question")
    same(body.count(NOISE), len(body) - 1, "noise lines")
    at = next(i for i, line in enumerate(body) if line != NOISE)
    wanted = sample["depth_step"] / (N_DEPTH - 1) * (len(body) - 1)
    want(abs(at - wanted) <= 0.51, "line", at, "of", len(body))


def check_passkey(sample):
    hidden(sample, r"The pass key is (\d{5})\. Remember it\. (\d+) is the pass "
           r"key\.\n", "\nWhat is the pass key? The pass key is")


def check_number(sample):
    hidden(sample, r"The sequence of digits is (\d{10})\. Remember it\. (\d+) "
           r"is the sequence of digits\.\n",
           "\nWhat is the sequence of digits? The sequence of digits is")
    key = sample["expected"][0]
    want(sum(a == b for a, b in zip(key, key[1:])) >= 5, "repeats in", key)


def check_kv(sample):
    text = sample["prompt"]
    data = text[text.index("{"):text.index("}") + 1]
    pairs = json.loads(data, object_pairs_hook=list)
    asked = re.search(r'\nKey: "(\S+)"\nThe value associated with the specified'
                      r" key is: $", text).group(1)
    for pair in pairs:
        want(all(UUID.fullmatch(x) for x in pair), "no UUIDs", pair)
    same(len(dict(pairs)), len(pairs), "different keys")
    same(dict(pairs)[asked], sample["expected"][0], "value")
    place(sample, [k for k, _ in pairs].index(asked), len(pairs))


def place(sample, index, n):
    wanted = sample["depth_step"] / (N_DEPTH - 1) * (n - 1)
    want(abs(index - wanted) <= 0.51, "place", index, "of", n)


def ruler(sample, n_needle, is_essay, kind):
    """Needles as (start, end, key, value), and the haystack without them."""
    text = sample["prompt"]
    intro, rest = text.split("\n", 1)
    want("special magic %ss are hidden" % kind in intro, "intro", intro)
    body, question = rest.rsplit("\nWhat ", 1)
    found = list(RULER.finditer(body + "\n"))
    same(len(found), n_needle, "needles")
    same({m.group(1) for m in found}, {kind + "s"}, "kind")
    hay = RULER.sub("", body + "\n")
    if is_essay:
        sentences = [s.strip() for s in hay.split(".") if s.strip()]
        want(len(set(sentences)) > 0.95 * len(sentences), "dull essay")
        want("grass is green" not in hay, "noise in an essay")
    else:
        same(set(hay.strip("\n").split("\n")) - {"", NOISE}, set(), "noise")
    asked = re.search(r"for (.+) mentioned in the provided text\? The special "
                      r"magic %ss? for \1 mentioned in the provided text "
                      r"(is|are)$" % kind, question).group(1)
    return found, re.split(", | and ", asked), body


def single(sample, n_needle, is_essay, kind):
    found, asked, body = ruler(sample, n_needle, is_essay, kind)
    same(len(asked), 1, "keys asked")
    same(len({m.group(2) for m in found}), n_needle, "different keys")
    needle = next(m for m in found if m.group(2) == asked[0])
    same([needle.group(3)], sample["expected"], "value")
    same(sample["prompt"].count(needle.group(3)), 1, "the value's places")
    at_depth(sample, needle.start(), len(body), len(needle.group()))
    same(bool(UUID.fullmatch(needle.group(3))), kind == "uuid", "UUID")
    want(kind == "uuid" or re.fullmatch(r"\d{7}", needle.group(3)), "digits")


def check_niah_single_1(sample):
    single(sample, 1, False, "number")


def check_niah_single_2(sample):
    single(sample, 1, True, "number")


def check_niah_single_3(sample):
    single(sample, 1, True, "uuid")


def check_niah_multikey_1(sample):
    single(sample, 4, True, "number")


def check_niah_multivalue(sample):
    found, asked, _ = ruler(sample, 4, True, "number")
    same({m.group(2) for m in found}, set(asked), "keys")
    same(len({m.group(3) for m in found}), 4, "different values")
    same(sorted(m.group(3) for m in found), sorted(sample["expected"]), "values")


def check_niah_multiquery(sample):
    found, asked, _ = ruler(sample, 4, True, "number")
    value = {m.group(2): m.group(3) for m in found}
    same(len(value), 4, "different keys")
    same([value[key] for key in asked], sample["expected"], "values")


def needles_alone(sample, kind, key):
    intro, rest = sample["prompt"].split("\n", 1)
    lines = rest.split("\n")[:-1]
    found = [RULER.fullmatch(line + "\n", 0, len(line)) or
             RULER.match(line + "\n") for line in lines]
    want(all(found), "a line that is no needle")
    value = {m.group(2): m.group(3) for m in found}
    same(len(value), len(lines), "different keys")
    want(all(key.fullmatch(k) for k in value), "keys")
    asked = re.search(r"\nWhat is the special magic %s for (\S+) mentioned in "
                      r"the provided text\? The special magic %s for \1 "
                      r"mentioned in the provided text is$" % (kind, kind),
                      sample["prompt"]).group(1)
    same([value[asked]], sample["expected"], "value")
    place(sample, [m.group(2) for m in found].index(asked), len(lines))


def check_niah_multikey_2(sample):
    needles_alone(sample, "number", re.compile("[a-z]+-[a-z]+"))


def check_niah_multikey_3(sample):
    needles_alone(sample, "uuid", UUID)


def follow(text, n_letter):
    """Names that come to have the value asked for, read line by line."""
    value = {}
    for name, right in re.findall(r"^VAR (\w+) = (VAR \w+|\d{5})$", text, re.M):
        want(re.fullmatch("[A-Z]{%d}" % n_letter, name), "name", name)
        want(name not in value, name, "twice")
        value[name] = value[right[4:]] if right[0] == "V" else right
    asked = re.search(r"assigned the value (\d+) in the text above", text)
    return [n for n in value if value[n] == asked.group(1)], len(value)


def check_vt(sample):
    shown, asked = sample["prompt"].split("Memorize and track")[1:]
    for text, n_letter in ((shown, 3), (asked, 5)):
        same(set(line for line in text.split("\n")[2:]
                 if not line.startswith(("VAR ", "Question: "))) - {NOISE, ""},
             set(), "haystack")
    names, n = follow(shown, 3)
    same((len(names), n), (5, 5), "shown names")
    same(shown.split("they are:")[1].split(), names, "shown answer")
    names, n = follow(asked, 5)
    same((len(names), n), (5, 5), "names")
    same(sample["expected"], names, "names")
    want(asked.endswith("they are:"), "question")


def listed(text):
    items = re.findall(r"(\d+)\. (\w+)", text.split("\n")[1])
    same([int(i) for i, _ in items], list(range(1, len(items) + 1)), "numbers")
    return collections.Counter(word for _, word in items)


def check_cwe(sample):
    shown, asked = sample["prompt"].split("Below is a numbered list")[1:]
    is_long = sample["length"] >= 8192
    for text, common, rare in ((shown, 10 if is_long else 2, 3 if is_long else 1),
                               (asked, 30 if is_long else 6, 3 if is_long else 1)):
        count = listed(text)
        top = [w for w, n in count.most_common(10)]
        same({n for _, n in count.most_common()[:10]}, {common}, "common")
        want({n for _, n in count.most_common()[10:]} <= {rare}, "rare")
        want(len(count) > 10, "no rare words")
        if text is shown:
            answer = re.findall(r"\d+\. (\w+)", text.split("are:")[1])
            same(sorted(answer), sorted(top), "shown answer")
        else:
            same(sorted(sample["expected"]), sorted(top), "common words")


def check_fwe(sample):
    text = sample["prompt"].split("coded words. ")[1].split("\nQuestion")[0]
    count = collections.Counter(text.split(" "))
    top = count.most_common(5)
    same(top[0][0], "...", "most frequent")
    same([w for w, _ in top[1:4]], sample["expected"], "frequent words")
    want(top[3][1] > top[4][1], "a tie for the third place")
    n = top[0][1] / 0.6079
    for k, (word, times) in enumerate(top, 1):
        want(abs(times - n * 0.6079 / k**2) <= 2, word, times, "times")
        want(k == 1 or re.fullmatch("[a-z]{6}", word), "word", word)
    want(len(count) <= max(sample["length"] // 50, 5), "vocabulary")


def check_mqar(sample):
    ids, positions, values = (sample[k] for k in ("ids", "positions", "values"))
    n = len(positions)
    same(n, min(64, sample["length"] // 8), "pairs")
    same(len(ids), sample["length"], "tokens")
    same(len(set(positions)), n, "different places")
    same(len(set(ids[0:2 * n:2])), n, "different keys")
    same(len(set(ids[1:2 * n:2])), n, "different values")
    want(max(ids[0:2 * n:2]) < min(ids[1:2 * n:2]) or
         max(ids[0:2 * n:2]) < 2044 <= min(ids[1:2 * n:2]), "key and value ids")
    value = dict(zip(ids[0:2 * n:2], ids[1:2 * n:2]))
    for position, wanted in zip(positions, values):
        want(position >= 2 * n and position % 2 == 0, "place", position)
        same(value[ids[position]], wanted, "value")
    want(max(ids) < 4088, "a special token")
    # Three of four by the power law 1/gap; one of four if gaps were uniform.
    space = (sample["length"] - 2 * n) // 2
    near = sum((p - 2 * n) // 2 < space / 4 for p in positions)
    want(near > n / 2, "queries far away:", near, "near of", n)


def own(sample, n_needle):
    body, question = sample["prompt"].split("<|im_start|>user\n")
    found = list(OWN.finditer(body))
    same(len(found), n_needle, "needles")
    asked = re.fullmatch(
        r"What is the special magic number for (\w+)\?<\|im_end\|>\n"
        r"<\|im_start\|>assistant\nThe special magic number for \1 is ",
        question).group(1)
    value = {m.group(1): m.group(2) for m in found}
    same(len(value), n_needle, "different keys")
    same([value[asked]], sample["expected"], "value")
    needle = next(m for m in found if m.group(1) == asked)
    at_depth(sample, needle.start(), len(body), len(needle.group()))


def check_needle(sample):
    own(sample, 1)


def check_needle_multikey(sample):
    own(sample, 4)


# ---------------------------------------------------------------- all of them


class Tokens:
    """Text of ids, from tokenizer.json alone."""

    def __init__(self, model):
        with open(os.path.join(model, "tokenizer.json"), encoding="utf-8") as f:
            file = json.load(f)
        visible = ([*range(33, 127)] + [*range(161, 173)] + [*range(174, 256)])
        hidden_bytes = [b for b in range(256) if b not in visible]
        self.byte = {chr(b): b for b in visible}
        self.byte.update({chr(256 + i): b for i, b in enumerate(hidden_bytes)})
        self.text = {i: bytes(self.byte[c] for c in t)
                     for t, i in file["model"]["vocab"].items()}
        self.text.update({t["id"]: t["content"].encode()
                          for t in file["added_tokens"]})

    def decode(self, ids):
        return b"".join(self.text[i] for i in ids).decode()


def run(godwitd, model, *options):
    return subprocess.run([godwitd, "eval", "--model", model, *options],
                          check=True, stdout=subprocess.PIPE).stdout


def samples(godwitd, model, task, *options):
    out = run(godwitd, model, "--show", task, "--json", "--depths",
              str(N_DEPTH), *options)
    return [json.loads(line) for line in out.decode().splitlines()], out


def check_task(godwitd, model, tokens, task):
    lines, out = samples(godwitd, model, task, "--samples", "12", "--lengths",
                         "1024,1500,9000", "--seed", "7")
    same(len(lines), 36, "samples")
    for i, sample in enumerate(lines):
        same((sample["task"], sample["index"]), (task, i % 12), "name")
        length = (1024, 1500, 9000)[i // 12]
        same(sample["length"], length, "length")
        same(len(sample["ids"]), sample["tokens"], "tokens")
        # One unit is missing at most; a pair of UUIDs has 80 tokens.
        want(sample["tokens"] <= length, sample["tokens"], "tokens")
        want(sample["tokens"] >= length - 85, "only", sample["tokens"])
        if sample["prompt"] is not None:
            same(tokens.decode(sample["ids"]), sample["prompt"], "ids")
        if sample["depth_step"] is not None:
            same(sample["depth_step"], i % 12 % N_DEPTH, "depth")
        globals()["check_" + task](sample)
    same(len({json.dumps(s["expected"] or s["values"]) for s in lines[24:]}),
         12, "different answers")
    if task in ("kv", "niah_multikey_2", "niah_multikey_3"):
        # Five depths ask one text, the next five another.
        texts = [s["prompt"].rsplit("\n", 2 if task == "kv" else 1)[0]
                 for s in lines[24:]]
        same([texts.index(t) for t in texts], [i // 5 * 5 for i in range(12)],
             "shared texts")
    again = run(godwitd, model, "--show", task, "--json", "--depths",
                str(N_DEPTH), "--samples", "3", "--lengths", "1500", "--seed",
                "7").decode().splitlines()
    same([json.loads(x) for x in again], lines[12:15], "fewer samples")
    other = samples(godwitd, model, task, "--samples", "1", "--lengths", "1500",
                    "--seed", "8")[0][0]
    want(other["ids"] != lines[12]["ids"], "the seed changes nothing")
    return hashlib.sha256(out).hexdigest()[:16]


def main():
    godwitd, model = sys.argv[1:3]
    pinned_path = os.path.join(os.path.dirname(os.path.abspath(__file__)),
                               "digests.json")
    with open(pinned_path, encoding="utf-8") as file:
        pinned = json.load(file)
    rows = subprocess.run([godwitd, "eval", "--list"], check=True,
                          stdout=subprocess.PIPE).stdout.decode().splitlines()
    tasks = [row.split("\t")[0] for row in rows[1:]]
    same(sorted(tasks), sorted(pinned), "tasks that have digests")
    tokens, bad = Tokens(model), 0
    for task in tasks:
        try:
            digest = check_task(godwitd, model, tokens, task)
            same(digest, pinned[task], "digest")
            print("%s: ok" % task)
        except (Wrong, AttributeError, ValueError, KeyError) as error:
            bad += 1
            print("%s: %s: %s" % (task, type(error).__name__, error))
    return bad != 0


if __name__ == "__main__":
    sys.exit(main())
