"""A prefix is shared over kill -9, and damage to the store never shows.

  python3 tests/e2e/test_prefix.py Prefix
  python3 tests/e2e/test_prefix.py ratio    warm and cold, measured; no test
"""

import os
import random
import statistics
import sys
import time
import unittest

from godwit.v1 import admin_pb2
from godwit.v1 import generation_pb2 as gen
from harness import Node, greedy, messages, tokens, workspace

SYSTEM = "Answer like the captain of a whaler would. " * 20


def ask(client, question, session="", tenant=""):
    return client.generate(gen.GenerateRequest(
        session=session, create_session=bool(session), tenant=tenant,
        messages=messages(("system", SYSTEM), ("user", question)),
        sampling_params=greedy(8)))


class Prefix(unittest.TestCase):
    def expect(self, reply, reason, matched=None):
        reuse = reply.complete.reuse
        self.assertEqual(reuse.reason, reason)
        if matched is not None:
            self.assertEqual(reuse.matched_tokens, matched)
        self.assertEqual(reuse.restored_tokens, reuse.matched_tokens)
        self.assertEqual(reply.complete.usage.cached_tokens,
                         reuse.matched_tokens)
        self.assertEqual(reuse.replayed_tokens, 0)

    def await_prefix(self, client, question):
        """The snapshot is written behind the reply that it was taken in."""
        end = time.monotonic() + 30
        while True:
            reply = ask(client, question)
            if reply.complete.reuse.reason != "NONE":
                return reply
            self.assertLess(time.monotonic(), end, "no prefix is found")

    def test_a_system_message_is_computed_once(self):
        with workspace() as directory:
            cold = Node(os.path.join(directory, "cold"), ["--prefix-store", "0"])
            node = Node(os.path.join(directory, "data"))
            try:
                self.scenario(cold.start(), node.start())
            finally:
                cold.kill()
                node.kill()

    def scenario(self, cold, node):
        questions = ["Which way?", "And the weather?", "Who is aboard?"]
        with cold.client() as client:
            want = [ask(client, q) for q in questions]
            for reply in want:
                self.expect(reply, "NONE", 0)
            n_system = len(client.generation.Tokenize(gen.TokenizeRequest(
                messages=gen_system())).token_ids)
        with node.client() as client:
            first = ask(client, questions[0])
            self.expect(first, "NONE", 0)
            self.assertEqual(first.ids, want[0].ids)
            warm = self.await_prefix(client, questions[1])
            self.expect(warm, "PREFIX", n_system)
            self.assertEqual(warm.ids, want[1].ids)
            ask(client, questions[2], session="sessions/kept")
            self.expect(ask(client, questions[2], tenant="other"), "NONE", 0)
        node.kill()
        node.start()
        with node.client() as client:
            warm = ask(client, questions[2])
            self.expect(warm, "PREFIX", n_system)
            self.assertEqual(warm.ids, want[2].ids)
            checkpoint = client.admin.CheckpointSession(
                admin_pb2.CheckpointSessionRequest(session="sessions/kept"))
            self.assertGreater(checkpoint.create_time.seconds, 1600000000)
            self.assertNotEqual(checkpoint.chain_hash, "0" * 32)
        node.kill()
        damage(os.path.join(node.data, "store"))
        node.start()
        with node.client() as client:
            for question, cold_reply in zip(questions, want):
                again = ask(client, question)
                self.assertEqual(again.ids, cold_reply.ids)


def gen_system():
    talk = messages(("system", SYSTEM))
    talk.add_generation_prompt = False
    return talk


def damage(directory):
    """Some flipped bytes in whatever the database keeps data in."""
    for name in sorted(os.listdir(directory)):
        path = os.path.join(directory, name)
        size = os.path.getsize(path)
        if not name.endswith((".sst", ".blob", ".log")) or size < 4096:
            continue
        with open(path, "r+b") as file:
            for at in range(2000, size - 1, 65536):
                file.seek(at)
                byte = file.read(1)
                file.seek(at)
                file.write(bytes([byte[0] ^ 16]))


def first_token_s(client, ids):
    reply = client.generate(gen.GenerateRequest(
        tokenized=tokens(ids), sampling_params=greedy(1)))
    took = reply.complete.timing.time_to_first_token
    return took.seconds + took.nanos * 1e-9, reply.complete.reuse


def ratio():
    """Time to first token, warm / cold: a prefix and 32 tokens of its own."""
    rng = random.Random(5)

    def draw(n):
        return [rng.randrange(4000) for _ in range(n)]

    print("prefix\tcold_ms\twarm_ms\tratio\twarm_reason")
    with workspace() as directory:
        cold = Node(os.path.join(directory, "cold"), ["--prefix-store", "0"])
        warm = Node(os.path.join(directory, "warm"))
        try:
            cold.start(), warm.start()
            with cold.client() as one, warm.client() as two:
                for n in (64, 128, 256, 512, 1024, 2048, 4096, 8192):
                    prefix, pairs, reasons = draw(n), [], []
                    for _ in range(3):  # the third finds it
                        first_token_s(two, prefix + draw(32))
                        time.sleep(0.3)
                    for _ in range(7):
                        ids = prefix + draw(32)
                        cold_s, _ = first_token_s(one, ids)
                        warm_s, reuse = first_token_s(two, ids)
                        pairs.append((cold_s, warm_s))
                        reasons.append(reuse.reason)
                    cold_ms, warm_ms = (1e3 * statistics.median(p[i] for p in pairs)
                                        for i in (0, 1))
                    print("%d\t%.2f\t%.2f\t%.3f\t%s" % (
                        n, cold_ms, warm_ms, warm_ms / cold_ms,
                        ",".join(sorted(set(reasons)))), flush=True)
        finally:
            cold.kill()
            warm.kill()


if __name__ == "__main__":
    if sys.argv[1:] == ["ratio"]:
        ratio()
    else:
        unittest.main()
