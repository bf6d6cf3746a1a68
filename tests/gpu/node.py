#!/usr/bin/env python3
"""A whole node on a GPU, as an operator sees it: godwitd and godwitctl.

    tests/gpu/node.py BUILD [--device NAME] [PART...]

change  sessions that a node on the CPU made go on with one on the device, and
        back: nothing but their tokens is used, by the name NUMERICS_CHANGED,
        and the replies are those of a session that always was there
tight   more sessions than --session-memory holds: they leave for the host and
        come back, and no token differs
policy  the same under memory policies, and a kill between turns: what steps have
        chosen and the indices of blocks leave, come back and are stored
full    the device has less memory than the node believes: the reply that has no
        room ends with KV_MEMORY, all others go on
scratch the same where it is what a step needs in between that has no room
lost    the device is lost in the middle of replies: they end with DEVICE_LOST,
        what was committed is there, and the next node goes on with the same bits
excerpt replies from an excerpt: the plain one if it has all tokens; the same from
        other sessions and another node; the session is whole behind it
capped  recurrent states are scaled down, counted, and those of a replay
wild    the same after an operator has really written where nothing is; on a GPU

NAME is cuda (the default), for which BUILD has libgodwit_faulty.so beside
libgodwit_cuda.so, or apart, the device without hardware. Needs Python's own
library alone. Exits with 1 if something did not hold.
"""

import argparse
import contextlib
import functools
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "ops"))
import needle  # pylint: disable=wrong-import-position

MODEL = os.path.join(ROOT, "assets/models/godwit-tiny")
CPUS = ("amx", "avx512-bf16", "avx512-vnni", "avx512", "avx2", "ref")
START_S, CALL_S = 60, 120
NEEDLE_TOKENS = 1500
REPLY = 64  # tokens; a session of fewer is not stored
PARTS = ("change", "tight", "policy", "full", "scratch", "lost", "excerpt",
         "capped", "wild")


class Wrong(Exception):
    """Something did not hold."""


def want(claim, *what):
    if not claim:
        raise Wrong(" ".join(str(word) for word in what))


class Place:
    """Programs, the device, and a folder for data that goes away."""

    def __init__(self, build, device, folder):
        self.build, self.folder = build, folder
        self.device, self.faulty = [device], [device]
        if device == "cuda":
            self.device, self.faulty = (
                ["cuda:" + os.path.abspath(os.path.join(build, name))]
                for name in ("libgodwit_cuda.so", "libgodwit_faulty.so"))
        else:  # the arithmetic of a CPU, but another one than below
            self.device += ["--numerics", "bf16-pair", "--weight-format", "w8a8"]
            self.faulty = self.device
        self.is_gpu = device == "cuda"
        self.number = itertools.count()
        self.environment = dict(os.environ)
        if os.path.isdir(os.path.join(build, "lib")):  # of pack.sh
            self.environment["LD_LIBRARY_PATH"] = os.path.abspath(
                os.path.join(build, "lib"))

    def fresh(self, what="data"):
        return os.path.join(self.folder, "%s-%d" % (what, next(self.number)))

    @contextlib.contextmanager
    def node(self, data, backend, *options, fault=""):
        node = Node(self, data, backend, options, fault)
        try:
            yield node
            node.stop()
        finally:
            node.kill()

    def on_device(self, data, *options, fault=""):
        return self.node(data, self.faulty if fault else self.device, *options,
                         fault=fault)

    @contextlib.contextmanager
    def on_cpu(self, data):
        """The first backend of which this machine has the instructions."""
        for name in CPUS:
            try:
                node = Node(self, data, [name, "--numerics", "fp32"], (), "")
            except Wrong as wrong:
                if "lacks the instructions" not in str(wrong):
                    raise
                continue
            try:
                yield node
                node.stop()
            finally:
                node.kill()
            return
        raise Wrong("no backend of", CPUS)


class Node:
    def __init__(self, place, data, backend, options, fault):
        self.ctl = os.path.join(place.build, "godwitctl")
        self.environment = dict(place.environment, GODWIT_FAULT=fault)
        self.log_path = "%s-%d.log" % (data, next(place.number))
        self.is_killed = False
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                [os.path.join(place.build, "godwitd"), "--model", MODEL, "--data",
                 data, "--listen", "127.0.0.1:0", "--backend"] + backend +
                list(options), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=self.environment)
        self.endpoint = "127.0.0.1:%d" % self.await_port()

    def read_log(self):
        with open(self.log_path, encoding="utf-8", errors="replace") as log:
            return log.read()

    def await_port(self):
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            is_over = self.process.poll() is not None
            said = self.read_log()
            found = re.search(r"serving .* on port (\d+)", said)
            if found:
                return int(found.group(1))
            want(not is_over, "godwitd ended:", said)
            time.sleep(0.01)
        self.kill()
        raise Wrong("godwitd does not serve:", said)

    def kill(self):
        self.is_killed = True
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def stop(self):
        if self.is_killed:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        want(self.process.wait(CALL_S) == 0, "godwitd ended with",
             self.process.returncode, self.read_log())

    def start(self, *words):
        """A godwitctl under way."""
        return subprocess.Popen(
            [self.ctl, "--endpoint", self.endpoint, "--timeout", str(CALL_S)] +
            list(words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, encoding="utf-8", errors="replace",
            env=self.environment)

    def call(self, *words):
        """What it printed; fails with it."""
        call = self.start(*words)
        out, err = call.communicate(timeout=CALL_S + 10)
        want(call.returncode == 0, *words[:4], "failed:", err)
        return out

    def refused(self, *words):
        call = self.start(*words)
        out, err = call.communicate(timeout=CALL_S + 10)
        want(call.returncode != 0, *words[:4], "should have failed:", out)
        return err

    def json(self, *words):
        return json.loads(self.call(*words, "--output", "json"))

    def turn(self, session, *words):
        return self.json(*turn_words(session, *words))

    def tokens(self, session):
        return [int(word) for word in self.call("session", "tokens",
                                                session).split()]

    def detokenize(self, ids):
        return self.call("detokenize", *map(str, ids))

    def verify(self, session):
        """Its states, bit by bit, beside a replay of its tokens."""
        call = self.start("session", "verify", session, "--replay")
        out, err = call.communicate(timeout=CALL_S + 10)
        found = re.search(r"(\d+) values compared with a replay, 0 differ", err)
        want(call.returncode == 0 and found and int(found.group(1)) > 0,
             "session", session, "differs from a replay:", out, err)


def turn_words(session, prompt, *more, count=REPLY):
    return ("generate", "--session", session, "--prompt", prompt, "--special",
            "--ignore-eos", "--max-tokens", str(count)) + more


# --- another arithmetic, and back ---

GREEDY = ("--temperature", "0")
DICE = ("--temperature", "0.8", "--seed", "7")
TURNS = (("story", "It was a dark night, and", GREEDY),
         ("dice", "The captain", DICE))


def first_turns(node):
    """Sessions to move; the question for the hidden number and the number."""
    text, value = needle.build_prompt(node.detokenize, NEEDLE_TOKENS)
    at = text.index("<|im_start|>")
    node.turn("hidden", text[:at], *GREEDY)
    for session, prompt, how in TURNS:
        node.turn(session, prompt, *how)
    node.json("session", "fork", "story", "--as", "other-story")
    node.turn("other-story", " Then the ship", *GREEDY)
    return text[at:], value


def second_turns(node, question):
    """A turn of each; what the replies say."""
    said = {"hidden": node.turn("hidden", question, *GREEDY)}
    for session, _, how in TURNS:
        said[session] = node.turn(session, " Then the ship", *how)
    return said


def carry_on(node, fresh_node, bundles, question, value):
    """The sessions go on by their tokens alone, as those do of which a fresh
    node never had more."""
    before = {name: node.tokens(name) for name in bundles}
    said = second_turns(node, question)
    want(value in said["hidden"]["text"], "the number", value, "is not in",
         said["hidden"]["text"])
    for name, reply in said.items():
        want(reply["reuse"] == "NUMERICS_CHANGED", name, "reused", reply)
        want(reply["cached_tokens"] == 0, name, "used states of", reply)
        want(node.tokens(name)[:len(before[name])] == before[name], name,
             "has lost tokens")
        node.verify(name)
    with fresh_node as twin:
        for name, bundle in bundles.items():
            twin.json("session", "import", bundle, "--log-only")
            want(twin.tokens(name) == before[name], name, "came with others")
        want({n: r["text"] for n, r in second_turns(twin, question).items()} ==
             {n: r["text"] for n, r in said.items()}, "replies differ")
        for name in bundles:
            want(twin.tokens(name) == node.tokens(name), name, "differs")
    for name, reply in second_turns(node, question).items():  # and from here on
        want(reply["reuse"] == "RESIDENT", name, "is not in memory:", reply)


def export(place, node, *more):
    """A file of each session."""
    files = {name: place.fresh(name) for name in ["hidden"] + [name for name, _, _ in TURNS]}
    for name, file in files.items():
        node.call("session", "export", name, "--file", file, *more)
    return files


def n_same(a, b):
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y),
                min(len(a), len(b)))


def check_change(place):
    data = place.fresh()
    with place.on_cpu(data) as node:
        question, value = first_turns(node)
        numerics = node.json("node", "get")["numerics_id"]
        logs = export(place, node)
        states = export(place, node, "--with-state")
        cpu = node.tokens("other-story")
    with place.on_device(data) as node:
        there = node.json("node", "get")["numerics_id"]
        want(there != numerics, "both say", there)
        err = node.refused("session", "import", states["hidden"], "--as", "no")
        want("NUMERICS_MISMATCH" in err, "states were imported:", err)
        carry_on(node, place.on_device(place.fresh()), logs, question, value)
        device = node.tokens("story")
        logs = export(place, node)
    with place.on_cpu(data) as node:
        carry_on(node, place.on_cpu(place.fresh()), logs, question, value)
    return "%s and %s; of %d greedy tokens the first %d are equal" % (
        numerics, there, len(cpu), n_same(cpu, device))


# --- too little memory ---

N_SESSION, N_TURN = 6, 3


def play(session, t):
    return turn_words("s%d" % session, "%d. Once upon a time " % session *
                      (3 + (5 * session + 7 * t) % 20), "--request-id",
                      "turn-%d" % t, *(DICE if session % 2 else GREEDY))


@functools.lru_cache(maxsize=None)
def undisturbed(place, how=play):
    """The logs that all other ways must give, made once for all parts."""
    with place.on_device(place.fresh()) as node:
        for t in range(N_TURN):
            for s in range(N_SESSION):
                node.call(*how(s, t))
        return [node.tokens("s%d" % s) for s in range(N_SESSION)]


def tier(node, session):
    return node.json("session", "inspect", session)["items"][0]["tier"]


def check_leaving(place, how, is_killed):
    data, wanted, n_aside = place.fresh(), undisturbed(place, how), 0
    options = ("--session-memory", "4", "--host-memory", "64")
    for t in range(N_TURN):  # a node for each
        with place.on_device(data, *options) as node:
            for s in range(N_SESSION):
                node.call(*how(s, t))
            n_aside += sum(tier(node, "s%d" % s) == "host"
                           for s in range(N_SESSION))
            for s in range(N_SESSION):
                log = node.tokens("s%d" % s)
                want(log == wanted[s][:len(log)], "session", s, "differs")
            if t == N_TURN - 1:
                want([node.tokens("s%d" % s) for s in range(N_SESSION)] == wanted,
                     "tokens are missing")
                for s in range(N_SESSION):
                    node.verify("s%d" % s)
            if is_killed:
                node.kill()
    want(n_aside >= N_TURN, "only", n_aside, "sessions left the device")
    return "%d of %d sessions were aside at a turn's end" % (
        n_aside, N_TURN * N_SESSION)


def check_tight(place):
    return check_leaving(place, play, False)


POLICIES = ("infllm:sink=0:window=64:pick=64:step=8", "full",
            "quest:sink=64:window=0:pick=64:step=16",
            "snapkv:sink=0:window=0:pick=64", "window:sink=64:window=64",
            "recycle:sink=0:window=0:pick=64:step=8:reuse=16")


def play_policy(session, t):
    words = play(session, t)
    return words if t else words + ("--policy", POLICIES[session])


def check_policy(place):
    return check_leaving(place, play_policy, True)


BESIDE = ("generate", "--prompt", "The captain", "--max-tokens", "64") + GREEDY


def check_full(place, fault):
    """Prompts twice as long each time, until there is no room; beside each a
    reply that goes on, or is told so where keys have taken all."""
    data, n_word, err, fits = place.fresh(), 512, "", []
    with place.on_device(data, "--session-memory", "65536", fault=fault) as node:
        node.call(*play(0, 0))
        alone = node.call(*BESIDE)
        before = node.tokens("s0")
        while not err and n_word < 1 << 17:
            n_word *= 2
            long = os.path.join(place.folder, "long")
            with open(long, "w", encoding="utf-8") as file:
                file.write("Once upon a time " * (n_word // 4))
            words = ("generate", "--session", "long-%d" % n_word, "--prompt-file",
                     long, "--request-id", "one", "--max-tokens", "4") + GREEDY
            call, other = node.start(*words), node.start(*BESIDE)
            _, err = call.communicate(timeout=CALL_S)
            want(call.returncode == 0 or "KV_MEMORY" in err, "it says", err)
            out, said = other.communicate(timeout=CALL_S)
            want(other.returncode == 0 or
                 ("KV_MEMORY" in said and fault.startswith("full")),
                 "the reply beside it failed:", said)
            want(other.returncode or out == alone, "it differs beside:", out)
            if not call.returncode:
                err = ""
                fits.append("long-%d" % n_word)
        want(err, "even", n_word, "words fit")
        want(fits, "there was no room at all")
        want(node.tokens("s0") == before, "s0 has changed")
        node.call("session", "delete", fits[-1])
        node.call(*play(0, 1))  # there is room again
        log = node.tokens("s0")
        node.kill()
    return data, words, log, "in between" in err


def check_full_and_after(place, fault):
    wanted = undisturbed(place)
    data, words, log, is_scratch = check_full(place, fault)
    want(is_scratch or not fault.startswith("scratch"), "it was not scratch")
    with place.on_device(data) as node:
        want(node.tokens("s0") == log, "what was committed is not there")
        node.call(*play(0, 2))
        want(node.tokens("s0") == wanted[0], "s0 differs")
        node.call(*words)
        found = node.tokens(words[2])
    with place.on_device(place.fresh()) as node:
        node.call(*words)
        want(node.tokens(words[2]) == found, "the long prompt's reply differs")
    return "no room for %s of %d tokens, %d with its reply later" % (
        "what a step needs in between" if is_scratch else "the keys",
        len(found) - 4, len(found))


# --- a device that fails ---


def check_failing(place, fault):
    """All sessions at once; the next node goes on where this one cannot."""
    data, wanted = place.fresh(), undisturbed(place)
    told, left = {}, []  # session: the turn that failed
    with place.on_device(data, fault=fault) as node:
        for t in range(N_TURN):
            calls = {s: node.start(*play(s, t)) for s in range(N_SESSION)
                     if s not in told}
            for s, call in calls.items():
                _, err = call.communicate(timeout=CALL_S)
                want(call.returncode == 0 or "DEVICE_LOST" in err, "it says", err)
                if call.returncode:
                    told[s] = t
        for s in range(N_SESSION):
            left.append(node.tokens("s%d" % s))
            want(left[s] == wanted[s][:len(left[s])], "session", s, "differs")
        want(told, "nothing failed")
        want(left != wanted, "nothing is left to do")
        want("DEVICE_LOST" in node.refused("generate", "--prompt", "more"),
             "it does not say so again")
        if fault.startswith("wild"):
            node.kill()  # by what is written, not by how it stops
    with place.on_device(data) as node:
        for s in range(N_SESSION):
            want(node.tokens("s%d" % s) == left[s], "session", s, "lost tokens")
        for s in range(N_SESSION):  # a client asks again for what failed
            for t in range(told.get(s, N_TURN), N_TURN):
                node.call(*play(s, t))
        for s in range(N_SESSION):
            want(node.tokens("s%d" % s) == wanted[s], "session", s,
                 "went on with other tokens")
            node.verify("s%d" % s)
    return "%d sessions were told, with %d of %d tokens committed" % (
        len(told), sum(map(len, left)), sum(map(len, wanted)))


def check_scratch(place):
    """A GPU has one memory for all: with so much left it was scratch."""
    return check_full_and_after(place, "full@1:160" if place.is_gpu else
                                "scratch@1:2")


# --- what is rarely asked for ---

def check_excerpt(place):
    """Which tokens a GPU chooses is for check_mass to judge."""
    data, few = place.fresh(), ("--gemfilter", "300") + GREEDY
    with place.on_device(data) as node:
        text, _ = needle.build_prompt(node.detokenize, NEEDLE_TOKENS)
        plain = node.turn("plain", text, *GREEDY)
        whole = node.turn("whole", text, "--gemfilter", "100000", *GREEDY)
        want(whole["text"] == plain["text"], "all tokens do not reply as a prompt")
        first = node.turn("first", text, *few)
        want(first["gemfilter_tokens"] == 300, "kept other tokens:", first)
        beside = [node.start(*turn_words("beside-%d" % i, text, *few,
                                         "--output", "json")) for i in range(3)]
        for call in beside:
            out, err = call.communicate(timeout=CALL_S + 10)
            want(call.returncode == 0, "beside others:", err)
            want(json.loads(out)["text"] == first["text"], "differs beside others")
        log = node.tokens("first")
        node.kill()
    with place.on_device(data) as node:
        want(node.tokens("first") == log, "tokens are missing")
        want(node.turn("second", text, *few)["text"] == first["text"],
             "differs on the next node")
        node.turn("first", " Then the ship", *GREEDY)
        node.verify("first")
    return "%d of %d tokens, %s the reply to all of them" % (
        first["gemfilter_tokens"], NEEDLE_TOKENS,
        "also" if first["text"] == plain["text"] else "not")


def check_capped(place):
    data, cap, said = place.fresh(), ("--state-cap", "0.005"), {}
    for count in (REPLY, REPLY // 2):  # the other one takes it up
        with place.on_device(data, *cap) as node:
            want("cap-" in node.json("node", "get")["numerics_id"], "has no cap")
            text, _ = needle.build_prompt(node.detokenize, NEEDLE_TOKENS)
            node.json(*turn_words("long", text, *GREEDY, count=count))
            node.json(*turn_words("over", text[:len(text) // 2], *GREEDY,
                                  count=512))
            for session in ("long", "over"):
                node.verify(session)
                said[session] = node.tokens(session)
    return "%d and %d tokens are those of a replay" % tuple(
        len(log) for log in said.values())


CHECK = {"change": check_change, "tight": check_tight,
         "policy": check_policy,
         "full": lambda place: check_full_and_after(
             place, "full@1:%d" % (64 if place.is_gpu else 8)),
         "scratch": check_scratch,
         "lost": lambda place: check_failing(place, "lost@150"),
         "excerpt": check_excerpt,
         "capped": check_capped,
         "wild": lambda place: check_failing(place, "wild@150")}


def main():
    parse = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parse.add_argument("build")
    parse.add_argument("part", nargs="*", metavar="PART")
    parse.add_argument("--device", default="cuda", choices=("cuda", "apart"))
    options = parse.parse_intermixed_args()
    # Who is told to end takes its nodes along, and what they hold of the device.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    bad = False
    for part in options.part:
        if part not in PARTS:
            parse.error("no part '%s', there are: %s" % (part, ", ".join(PARTS)))
    with tempfile.TemporaryDirectory(prefix="godwit-gpu-") as folder:
        place = Place(options.build, options.device, folder)
        for part in options.part or PARTS:
            begin, said = time.monotonic(), ""
            if part == "wild" and not place.is_gpu:
                print("%-8s skipped  needs a GPU" % part, flush=True)
                continue
            try:
                said = CHECK[part](place)
            except (Wrong, subprocess.TimeoutExpired) as wrong:
                bad, said = True, "FAILED: %s" % wrong
            print("%-8s %6.1f s  %s" % (part, time.monotonic() - begin, said),
                  flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
