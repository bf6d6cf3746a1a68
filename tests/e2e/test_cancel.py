"""Who gives up in the middle of a long prompt: the engine is free after the
pass it is in, what is computed stays, and a retry goes on from there.

`test_cancel.py measure [TOKENS]` shows the times with a prompt of 100,000.
"""

import os
import random
import sys
import time
import unittest

from godwit.v1 import admin_pb2
from godwit.v1 import generation_pb2 as gen
from harness import Node, NodeTests, await_true, greedy, tokens, workspace

N_TOKEN = 8000
N_REPLY = 8


def prompt(n, seed=7):
    rng = random.Random(seed)
    return [rng.randrange(300, 4000) for _ in range(n)]


def request(session, ids):
    request = gen.GenerateRequest(
        session="sessions/" + session, create_session=True,
        request_id=session + "-1", tokenized=tokens(ids),
        sampling_params=greedy(N_REPLY))
    # As often as there is anything to say.
    request.prefill.progress_interval.FromMilliseconds(1)
    return request


def read_until(stream, n_least):
    """The first progress from n_least tokens on."""
    for message in stream:
        if (message.WhichOneof("event") == "progress" and
                message.progress.processed_tokens >= n_least):
            return message.progress.processed_tokens
    raise AssertionError("the prefill ended before %d tokens" % n_least)


def node_of(client):
    return client.admin.GetNode(admin_pb2.GetNodeRequest())


def is_idle(client):
    node = node_of(client)
    return node.running_requests + node.waiting_requests == 0


class Cancel(NodeTests, unittest.TestCase):

    def test_a_retry_goes_on_from_where_a_cancelled_prefill_stood(self):
        ids = prompt(N_TOKEN)
        stream = self.client.generation.Generate(request("left", ids), timeout=120)
        seen = read_until(stream, 2048)
        stream.cancel()
        await_true(lambda: is_idle(self.client), "the engine is free")

        reply = self.client.generate(request("left", ids), timeout=120)
        reuse = reply.complete.reuse
        self.assertEqual(reuse.reason, "RESIDENT")
        # All that was finished is there, and the rest had not been computed.
        self.assertGreaterEqual(reuse.matched_tokens, seen)
        self.assertLess(reuse.matched_tokens, N_TOKEN)
        self.assertEqual(reply.complete.usage.cached_tokens, reuse.matched_tokens)
        self.assertEqual(reuse.replayed_tokens, 0)
        if reply.progress:
            self.assertEqual(reply.progress[0].cached_tokens,
                             reuse.matched_tokens)

        # The oracle: nobody gave up, and nothing was there.
        whole = self.client.generate(request("whole", prompt(N_TOKEN)), timeout=120)
        self.assertEqual(reply.ids, whole.ids)
        self.assertEqual(self.client.log("left"), ids + whole.ids)

    def test_a_prompt_comes_forward_though_it_is_cancelled_again_and_again(self):
        """What was computed before a cancel is found and never computed again.
        That no pass begins behind one, unit.scheduler.engine_lanes shows: here
        the word may take some passes to the engine."""
        ids = prompt(N_TOKEN, 8)
        steps = []
        for _ in range(3):
            stream = self.client.generation.Generate(request("steps", ids),
                                                     timeout=120)
            first = next(m.progress for m in stream
                         if m.WhichOneof("event") == "progress")
            stream.cancel()
            await_true(lambda: is_idle(self.client), "the engine is free")
            steps.append((first.cached_tokens, first.processed_tokens))
        reply = self.client.generate(request("steps", ids), timeout=120)
        steps.append((reply.complete.reuse.matched_tokens, N_TOKEN))
        for (_, done), (found, _) in zip(steps, steps[1:]):
            self.assertGreaterEqual(found, done)
        for found, done in steps[:-1]:
            self.assertGreater(done, found)
        whole = self.client.generate(request("steps-whole", ids), timeout=120)
        self.assertEqual(reply.ids, whole.ids)


def measure(n_token):
    with workspace() as directory:
        node = Node(os.path.join(directory, "data"))
        try:
            node.start()
            with node.client() as client:
                measure_on(client, n_token)
        finally:
            node.kill()


def measure_on(client, n_token):
    ids = prompt(n_token)
    stream = client.generation.Generate(request("left", ids), timeout=1200)
    begin = time.monotonic()
    seen, at = read_until(stream, 1), time.monotonic()
    passes = []  # tokens, seconds
    for message in stream:
        if message.WhichOneof("event") != "progress":
            continue
        now = time.monotonic()
        passes.append((message.progress.processed_tokens - seen, now - at))
        seen, at = message.progress.processed_tokens, now
        if seen >= n_token // 2:
            break
    stream.cancel()
    cancelled = time.monotonic()
    await_true(lambda: is_idle(client), "the engine is free")
    freed = time.monotonic() - cancelled
    again = time.monotonic()
    reply = client.generate(request("left", ids), timeout=1200)
    took = time.monotonic() - again
    print("tokens\tcancelled_at\tafter_s\tlast_pass_tokens\tlast_pass_s\t"
          "freed_s\tfound\treason\tretry_s")
    print("%d\t%d\t%.2f\t%d\t%.3f\t%.3f\t%d\t%s\t%.2f" % (
        n_token, seen, cancelled - begin, passes[-1][0], passes[-1][1], freed,
        reply.complete.reuse.matched_tokens, reply.complete.reuse.reason, took))


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(int((sys.argv[2:] or [100000])[0]))
    else:
        unittest.main(verbosity=2)
