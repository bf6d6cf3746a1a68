"""A session of whose keys and values only a part is in RAM.

The judge is a node that keeps all of them.

  python3 tests/e2e/test_paged.py measure 1000000 [POLICY [MIB [SEED]]]
      one session of so many tokens under --kv-memory MIB: needles at depths 0
      to 100 %, pace, RSS, kill -9 and forks, and what it costs; no test. SEED
      is of the essay and, as a text, of the numbers
  python3 tests/e2e/test_paged.py kills 1000000 [POLICY [MIB]]
      such a session with kill -9 in a prompt and in a reply, beside one that
      was left alone: answers, and ids and log-probabilities of replies; no test
  python3 tests/e2e/test_paged.py memory 131072 [SESSIONS [FORKS [MIB]]]
      so many sessions of so many tokens and forks of each, one after the other:
      what RSS grows by at most, and how many are in RAM at the end; no test
  python3 tests/e2e/test_paged.py pace DIR 32768,1000000 [POLICY [MIB]]
      tokens a second of replies to sessions of so many tokens, which are made
      in DIR unless they are there; no test
  python3 tests/e2e/test_paged.py needles DIR 32768,1000000 [MIB]
      which needles forks of them find; no test
  python3 tests/e2e/test_paged.py resume DIR 100000 [POLICY]
      the first new token of such a session in DIR after kill -9; no test
"""

import json
import os
import random
import statistics
import subprocess
import sys
import time
import unittest

import grpc

from godwit.v1 import admin_pb2, session_pb2
from godwit.v1 import generation_pb2 as gen
from harness import (GODWITD, MODEL, Node, Reply, ctl, greedy, read_reply,
                     sampled, tokens, workspace)
from test_fork import delete, fork, ids

KEYS = ("castle", "garden", "letter", "harbour", "window", "captain", "winter",
        "river", "candle", "market", "forest")  # at depths 0 to 100 %
PIECE = 65536  # tokens of one message
N_QUESTION = 64  # tokens of the essay's own question, at most


class Text:
    """The essay of `godwitd eval` with a number at each tenth of it (and one
    more, that nobody asks for, in the middle), and the questions."""

    def __init__(self, endpoint, n_token, directory=None, seed=1):
        self.endpoint = endpoint
        kept = directory and os.path.join(directory, "text%d.json" % n_token)
        if kept and os.path.exists(kept):
            with open(kept, encoding="ascii") as file:
                self.ids, self.values = json.load(file)
            return
        self.make(n_token, seed)
        if kept:
            with open(kept, "w", encoding="ascii") as file:
                json.dump([self.ids, self.values], file)

    def make(self, n_token, seed):
        shown = json.loads(subprocess.run(
            [GODWITD, "eval", "--model", MODEL, "--show", "needle", "--json",
             "--lengths", str(n_token), "--samples", "1", "--depths", "1",
             "--seed", str(seed)],
            check=True, stdout=subprocess.PIPE).stdout.splitlines()[0])
        rng = random.Random(seed)
        self.values = ["%07d" % rng.randrange(10**6, 10**7) for _ in KEYS]
        needles = [self.encode(" The special magic number for %s is %s." % pair)
                   for pair in zip(KEYS, self.values)]
        n_essay = len(shown["ids"]) - N_QUESTION - sum(map(len, needles))
        self.ids = []
        for i, needle in enumerate(needles):
            at, end = (n_essay * j // (len(KEYS) - 1) for j in (i, i + 1))
            self.ids += needle + shown["ids"][at:min(end, n_essay)]

    def encode(self, text):
        run = ctl(self.endpoint, "tokenize", "--special", "--prompt", text)
        assert run.code == 0, run.err
        return [int(line) for line in run.out.split()]

    def question(self, i):
        return self.encode(
            "<|im_start|>user\nWhat is the special magic number for %s?"
            "<|im_end|>\n<|im_start|>assistant\n"
            "The special magic number for %s is " % (KEYS[i], KEYS[i]))


def append(client, session, given, policy="", count=1):
    """All of it, in messages of PIECE tokens; the last one's reply."""
    for at in range(0, len(given), PIECE):
        reply = client.generate(gen.GenerateRequest(
            session="sessions/" + session, create_session=True,
            policy=policy if at == 0 else "",
            tokenized=tokens(given[at:at + PIECE]),
            sampling_params=greedy(count)), timeout=7200)
    return reply


def ask(client, session, text, i, name):
    """What a fork of the session answers to question i."""
    name += "-%d" % time.time_ns()
    fork(client, session, name)
    reply = client.generate(gen.GenerateRequest(
        session="sessions/" + name, tokenized=tokens(text.question(i)),
        sampling_params=greedy(8)), timeout=600)
    delete(client, name)
    return reply.text


def status_kib(node, field):
    with open("/proc/%d/status" % node.process.pid, encoding="ascii") as file:
        for line in file:
            if line.startswith(field + ":"):
                return int(line.split()[1])
    raise KeyError(field)


def begin_peak(node):
    """VmHWM is of what comes from now on."""
    with open("/proc/%d/clear_refs" % node.process.pid, "w",
              encoding="ascii") as file:
        file.write("5")


def core_seconds(node):
    with open("/proc/%d/stat" % node.process.pid, encoding="ascii") as file:
        words = file.read().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


class Paged(unittest.TestCase):
    """Both nodes do the same; one of them has RAM for a part of it."""

    POLICY = "infllm:window=128:pick=256"
    LENGTH = 4500

    def start(self, directory, name, *options, numerics="bf16-pair"):
        # The same sizes on all machines: in fp32, which those without bf16
        # instructions choose, keys and values have twice the bytes.
        options += ("--numerics", numerics)
        node = Node(os.path.join(directory, name), options).start()
        self.addCleanup(node.kill)
        return node, node.client()

    def test_it_says_the_same_over_kills_and_forks(self):
        with workspace() as directory:
            node, client = self.start(directory, "paged", "--kv-memory", "5")
            _, judge = self.start(directory, "judge")
            text = Text(node.endpoint, self.LENGTH)
            for it in (client, judge):
                append(it, "long", text.ids, self.POLICY)
            self.assertEqual(client.log("long"), judge.log("long"))
            for life in range(2):
                for i in range(0, len(KEYS), 5):
                    answer = ask(client, "long", text, i, "q%d" % i)
                    self.assertEqual(answer,
                                     ask(judge, "long", text, i, "q%d" % i))
                replies = [it.generate(gen.GenerateRequest(
                    session="sessions/long", request_id="r%d" % life,
                    tokenized=tokens(ids(life, 200)),
                    sampling_params=sampled(150, life))).ids
                    for it in (client, judge)]
                self.assertEqual(*replies)
                client.close()
                node.kill()
                node.start()
                client = node.client()
                text.endpoint = node.endpoint
            self.assertEqual(client.log("long"), judge.log("long"))

    def test_a_resume_replays_no_more_than_it_must(self):
        with workspace() as directory:
            node, client = self.start(directory, "paged", "--kv-memory", "5")
            append(client, "long", ids(1, self.LENGTH), self.POLICY)
            # SIGTERM saves what is in memory, and is as good a point as any.
            self.assertEqual(node.stop(), 0)
            node.start()
            client = node.client()
            append(client, "other", ids(2, 700), self.POLICY)
            reply = append(client, "long", ids(3, 5))
            reuse = reply.complete.reuse
            self.assertEqual(reuse.replayed_tokens, 1)
            self.assertGreater(reuse.restored_tokens, self.LENGTH - 64)

    @unittest.skipIf(os.environ.get("GODWIT_TEST_SANITIZED"),
                     "memory is not what it is without sanitizers")
    def test_memory_stays_within_its_budget(self):
        """Two sessions and forks of them: what all their keys and values take
        is twice what the node may grow by. In fp32 half as many tokens have
        them."""
        mib, n_token, n_fork = 16, 8704, 4
        with workspace() as directory:
            node, client = self.start(directory, "paged", "--kv-memory",
                                      str(mib), numerics="fp32")
            append(client, "warm", ids(1, 2000), "infllm")
            delete(client, "warm")
            begin_peak(node)
            before = status_kib(node, "VmRSS") / 1024
            for i, name in enumerate(("one", "two")):
                append(client, name, ids(10 + i, n_token), "infllm")
                for k in range(n_fork):
                    fork(client, name, "%s%d" % (name, k))
                    append(client, "%s%d" % (name, k), ids(k, 40), count=8)
            said = client.admin.GetNode(admin_pb2.GetNodeRequest())
            self.assertLessEqual(said.session_bytes, said.session_bytes_max)
            self.assertLess(said.session_bytes_max, mib << 20)
            self.assertGreater(2 * n_token * said.bytes_per_token,
                               2 * mib << 20)
            self.assertLess(status_kib(node, "VmHWM") / 1024 - before, mib)

    def test_what_sirllm_keeps_is_read_when_it_is_seen(self):
        policy = "sirllm:window=128:pick=256"
        with workspace() as directory:
            node, client = self.start(directory, "paged", "--kv-memory", "5")
            _, judge = self.start(directory, "judge")
            for it in (client, judge):
                append(it, "long", ids(1, self.LENGTH), policy)
            replies = [it.generate(gen.GenerateRequest(
                session="sessions/long", request_id="r",
                tokenized=tokens(ids(2, 200)),
                sampling_params=sampled(150, 1))).ids
                for it in (client, judge)]
            self.assertEqual(*replies)
            run = ctl(node.endpoint, "session", "inspect", "long", "--show",
                      "policy", "--output", "json")
            self.assertEqual(run.code, 0, run.err)
            shown = json.loads(run.out)["items"]
            self.assertEqual(len(shown), 2)
            for layer in shown:
                self.assertTrue(layer["paged"])
                self.assertGreater(layer["steps"], 0)
                self.assertGreater(layer["hits"], layer["steps"])

    def test_one_that_sees_all_must_fit(self):
        with workspace() as directory:
            _, client = self.start(directory, "paged", "--kv-memory", "5")
            append(client, "part", ids(1, self.LENGTH), self.POLICY)
            with self.assertRaises(Exception) as caught:
                append(client, "all", ids(1, self.LENGTH))
            self.assertIn("KV_MEMORY", str(caught.exception.trailing_metadata()))


# --- measure ---

def say(what, *values):
    print("\t".join([what] + [str(value) for value in values]), flush=True)


def begin(directory, mib, n_token):
    options = ["--context", str(min(2 * n_token + 65536, 1048576))]
    if mib != "0":
        options += ["--kv-memory", mib]
    node = Node(os.path.join(directory, "data"), options).start()
    client = node.client()
    client.generate(gen.GenerateRequest(tokenized=tokens(ids(1, 2000)),
                                        sampling_params=greedy(4)))
    say("RSS MiB before", status_kib(node, "VmRSS") // 1024)
    return node, client


def say_memory(node):
    say("RSS MiB, and at most", status_kib(node, "VmRSS") // 1024,
        status_kib(node, "VmHWM") // 1024)


def fill(node, client, text, policy):
    start, cost = time.monotonic(), core_seconds(node)
    at, seconds = 0, []
    for at in range(0, len(text.ids), PIECE):
        now = time.monotonic()
        append(client, "long", text.ids[at:at + PIECE],
               policy if at == 0 else "")
        seconds.append(time.monotonic() - now)
    took = time.monotonic() - start
    say("prefill tokens/s", len(text.ids), round(len(text.ids) / took),
        "last message", round((len(text.ids) - at) / seconds[-1]),
        "core-seconds", round(core_seconds(node) - cost))


def found(client, text, name, session="long"):
    right = []
    for i in range(len(KEYS)):
        answer = ask(client, session, text, i, "%s%d" % (name, i))
        right.append(text.values[i] in answer)
    say("needles " + name, sum(right), "of", len(KEYS), "by depth",
        "".join("x" if r else "-" for r in right))
    return right


def reply_pace(client, session, count):
    """Tokens a second between the first and the last token of a reply."""
    times = []
    request = gen.GenerateRequest(
        session="sessions/" + session, tokenized=tokens(ids(5, 3)),
        sampling_params=sampled(count, 9))
    for message in client.generation.Generate(request, timeout=600):
        if message.WhichOneof("event") == "chunk":
            times.append((time.monotonic(), len(message.chunk.token_ids)))
    return sum(n for _, n in times[1:]) / (times[-1][0] - times[0][0])


def measure(n_token, policy="infllm", mib="64", seed=1):
    with workspace() as directory:
        node, client = begin(directory, mib, n_token)
        try:
            text = Text(node.endpoint, n_token, seed=seed)
            fill(node, client, text, policy)
            say_memory(node)
            cost = core_seconds(node)
            before = found(client, text, "found")
            say("core-seconds of these", round(core_seconds(node) - cost, 1))
            fork(client, "long", "pace")
            say("reply tokens/s", round(reply_pace(client, "pace", 1000)))
            delete(client, "pace")
            client.close()
            node.kill()
            node.start()
            client = node.client()
            text.endpoint = node.endpoint
            say("the same after kill -9",
                found(client, text, "again") == before)
            say_memory(node)
        finally:
            node.kill()


def memory(n_token, n_session="2", n_fork="11", mib="64"):
    with workspace() as directory:
        node, client = begin(directory, mib, n_token)
        try:
            begin_peak(node)
            before = status_kib(node, "VmRSS") / 1024
            for i in range(int(n_session)):
                name, replies = "s%d" % i, []
                append(client, name, ids(10 + i, n_token), "infllm")
                client.admin.CheckpointSession(  # forks share what is stored
                    admin_pb2.CheckpointSessionRequest(
                        session="sessions/" + name), timeout=600)
                say("peak MiB more, filled",
                    round(status_kib(node, "VmHWM") / 1024 - before, 1))
                for k in range(int(n_fork)):
                    fork(client, name, "%s-%d" % (name, k))
                    now = time.monotonic()
                    append(client, "%s-%d" % (name, k), ids(k, 40), count=8)
                    replies.append((time.monotonic() - now) * 1e3)
                if replies:
                    say("ms of a fork's first turn, median and most",
                        round(statistics.median(replies), 1),
                        round(max(replies), 1))
                said = client.admin.GetNode(admin_pb2.GetNodeRequest())
                say("peak MiB more, forked",
                    round(status_kib(node, "VmHWM") / 1024 - before, 1),
                    "sessions in RAM", said.resident_sessions,
                    "their MiB", round(said.session_bytes / 2**20, 1), "of",
                    round(said.session_bytes_max / 2**20, 1))
        finally:
            node.kill()


def cut(node, client, request, is_enough):
    """Kill the node when enough of the reply came, and send it again."""
    reply = Reply()
    for message in client.generation.Generate(request, timeout=7200):
        reply.take(message)
        if is_enough(reply):
            break
    assert reply.complete is None, "nothing was cut"
    client.close()
    node.kill()
    node.start()
    client = node.client()
    again = read_reply(client.generation.Generate(request, timeout=7200),
                       Reply(is_resumed=True))
    assert again.ids[:len(reply.ids)] == reply.ids, "tokens that were sent"
    say("kill -9 after", reply.progress[-1].processed_tokens, "tokens and",
        len(reply.ids), "of the reply; restored",
        again.complete.reuse.restored_tokens, "replayed",
        again.complete.reuse.replayed_tokens)
    return client, again


def probe(client, session, name):
    """A long reply of a new fork, and how probable each token was."""
    start = time.monotonic()
    fork(client, session, name)
    say("fork ms", round((time.monotonic() - start) * 1e3, 1))
    return gen.GenerateRequest(
        session="sessions/" + name, request_id=name,
        tokenized=tokens(ids(5, 3)),
        sampling_params=sampled(500, 9, logprobs=5))


def are_same(reply, judge):
    """Tokens of before a kill are sent again without what was computed."""
    count = len(reply.logprobs)
    return count and (reply.ids == judge.ids and
                      reply.logprobs == judge.logprobs[-count:])


def fill_and_kill(node, client, text, policy):
    """The node dies in the middle of the text, in a message."""
    at = len(text.ids) // PIECE // 2 * PIECE
    begin_ids, rest = text.ids[:at], text.ids[at + PIECE:]
    append(client, "cut", begin_ids, policy)
    position = client.session.GetSession(session_pb2.GetSessionRequest(
        name="sessions/cut")).position
    client, _ = cut(node, client, gen.GenerateRequest(
        session="sessions/cut", request_id="cut",
        tokenized=tokens(text.ids[at:at + PIECE]),
        sampling_params=greedy(1)),
        lambda reply: reply.progress and
        reply.progress[-1].processed_tokens > position + PIECE // 4)
    append(client, "cut", rest)
    return client


def kills(n_token, policy="infllm", mib="64"):
    """The judge is a session of the same messages in a node that lives on."""
    with workspace() as directory:
        node, client = begin(directory, mib, n_token)
        try:
            text = Text(node.endpoint, n_token)
            append(client, "whole", text.ids, policy)
            told = found(client, text, "whole", "whole")
            said = client.generate(probe(client, "whole", "probe-whole"),
                                   timeout=600)
            say_memory(node)
            client = fill_and_kill(node, client, text, policy)
            text.endpoint = node.endpoint
            before = client.generate(probe(client, "cut", "probe-before"),
                                     timeout=600)
            client, after = cut(
                node, client, probe(client, "cut", "probe-after"),
                lambda reply: len(reply.ids) >= 200)
            text.endpoint = node.endpoint
            say("replies of 500: whole, cut, cut twice",
                *(are_same(it, said) for it in (said, before, after)))
            say("needles the same",
                found(client, text, "cut", "cut") == told)
            say_memory(node)
        finally:
            node.kill()


def extend(client, session, text, length, policy):
    """Up to so many tokens, from where it is."""
    try:
        position = client.session.GetSession(session_pb2.GetSessionRequest(
            name="sessions/" + session)).position
    except grpc.RpcError:
        position = 0
    length = min(length, len(text.ids))
    if position >= length:
        return
    start = time.monotonic()
    append(client, session, text.ids[position:length],
           "" if position else policy)
    say("prefill tokens/s", position, length,
        round((length - position) / (time.monotonic() - start)))


def pace(directory, lengths, policy="infllm", mib="64"):
    lengths = sorted(int(n) for n in lengths.split(","))
    os.makedirs(directory, exist_ok=True)
    node, client = begin(directory, mib, lengths[-1])
    try:
        for length in lengths:
            extend(client, "s%d" % length,
                   Text(node.endpoint, length, directory), length, policy)
        for length in 2 * lengths:
            name = "pace%d" % time.time_ns()
            fork(client, "s%d" % length, name)
            say("reply tokens/s at", length,
                *[round(reply_pace(client, name, 500)) for _ in range(4)])
            delete(client, name)
        say_memory(node)
        node.stop()
    finally:
        node.kill()


def needles(directory, lengths, mib="64"):
    lengths = sorted(int(n) for n in lengths.split(","))
    node, client = begin(directory, mib, lengths[-1])
    try:
        for length in lengths:
            text = Text(node.endpoint, length, directory)
            found(client, text, "at%d" % length, "s%d" % length)
        say_memory(node)
        node.stop()
    finally:
        node.kill()


def first_token(client, session, seed):
    """Milliseconds to the first new token, and what it began from."""
    start, first = time.monotonic(), None
    for message in client.generation.Generate(gen.GenerateRequest(
            session="sessions/" + session, tokenized=tokens(ids(seed, 4)),
            sampling_params=greedy(4)), timeout=600):
        kind = message.WhichOneof("event")
        if kind == "chunk" and first is None:
            first = (time.monotonic() - start) * 1e3
        if kind == "complete":
            return first, message.complete.reuse


def resume(directory, n_token, policy=""):
    is_new = not os.path.exists(directory)
    os.makedirs(directory, exist_ok=True)
    node, client = begin(directory, "0", int(n_token))
    took = []
    try:
        if is_new:
            text = Text(node.endpoint, int(n_token))
            append(client, "long", text.ids, policy)
            client.admin.CheckpointSession(
                admin_pb2.CheckpointSessionRequest(session="sessions/long"))
        for i in range(5 * (not is_new)):
            client.close()
            node.kill()
            node.start()
            client = node.client()
            while not client.is_serving():
                time.sleep(0.001)
            first, reuse = first_token(client, "long", i)
            took.append(first)
            say("first token ms", round(first, 1), "restored",
                reuse.restored_tokens, "replayed", reuse.replayed_tokens)
    finally:
        node.kill()
    if took:
        say("median ms", round(statistics.median(took), 1))


def main(words):
    if words[0] == "pace":
        pace(*words[1:])
    elif words[0] == "kills":
        kills(int(words[1]), *words[2:])
    elif words[0] == "needles":
        needles(*words[1:])
    elif words[0] == "measure":
        measure(int(words[1]), *words[2:])
    elif words[0] == "memory":
        memory(int(words[1]), *words[2:])
    else:
        resume(*words[1:])


if __name__ == "__main__":
    if len(sys.argv) > 2 and sys.argv[1] in (
            "measure", "kills", "memory", "pace", "needles", "resume"):
        main(sys.argv[1:])
    else:
        unittest.main(verbosity=2)
