"""Do recurrent states collapse? A prompt of newlines, the text for which
Stuffed Mamba (arXiv:2410.07145) shows it: nothing in it is worth remembering, so
a model that cannot forget piles it up until its output is noise.

  python3 tests/e2e/test_collapse.py measure 300000 [POLICY [CAP]]
      norms of the states along so many newlines, and a needle behind them; no
      test. CAP is --state-cap
"""

import math
import os
import sys
import time
import unittest

from godwit.v1 import admin_pb2, session_pb2
from godwit.v1 import generation_pb2 as gen
from harness import Node, ctl, greedy, tokens, workspace

PIECE = 65536  # tokens of one message
NEEDLE = " The special magic number for castle is 4071925."
QUESTION = ("<|im_start|>user\nWhat is the special magic number for castle?"
            "<|im_end|>\n<|im_start|>assistant\n"
            "The special magic number for castle is ")


def encode(node, text):
    run = ctl(node.endpoint, "tokenize", "--special", "--prompt", text)
    assert run.code == 0, run.err
    return [int(line) for line in run.out.split()]


def append(client, session, given, policy=""):
    for at in range(0, len(given), PIECE):
        operation = client.session.AppendTokens(
            session_pb2.AppendTokensRequest(
                session="sessions/" + session, create_session=True,
                policy=policy, tokenized=tokens(given[at:at + PIECE])),
            timeout=3600)
        assert operation.done


def head_norms(client, session):
    """Of each recurrent layer, the largest root mean square of a head."""
    client.admin.CheckpointSession(admin_pb2.CheckpointSessionRequest(
        session="sessions/" + session), timeout=120)
    found = client.admin.InspectSession(admin_pb2.InspectSessionRequest(
        session="sessions/" + session))
    return [layer.state_head_rms for layer in found.layers
            if layer.kind == "delta"]


def stages(n_token):
    """Where norms are looked at: 4,096, 8,192, ..., and the end."""
    at = 4096
    while at < n_token:
        yield at
        at *= 2
    yield n_token


def pile_up(node, client, n_token, policy):
    """Norms after each stage. A session's newest token waits for the next one,
    so it gets one more than its states shall see."""
    newline = encode(node, "\n")
    assert len(newline) == 1
    n, norms = 0, {}
    for at in stages(n_token):
        append(client, "long", newline * (at + 1 - n), policy)
        n = at + 1
        norms[at] = head_norms(client, "long")
    return norms


def find(node, client):
    """The reply to a question about what stands behind all newlines."""
    return client.generate(gen.GenerateRequest(
        session="sessions/long",
        tokenized=tokens(encode(node, NEEDLE + QUESTION)),
        sampling_params=greedy(8)), timeout=600).text


class Newlines(unittest.TestCase):

    LENGTH = 8192

    def run_node(self, directory, name, *options):
        node = Node(os.path.join(directory, name), options).start()
        self.addCleanup(node.kill)
        with node.client() as client:
            norms = pile_up(node, client, self.LENGTH, "window")
            reply = find(node, client)
        return norms, reply

    def test_states_stay_small_and_the_model_sound(self):
        with workspace() as directory:
            norms, reply = self.run_node(directory, "plain")
            print("largest norm of a head by newlines:",
                  {at: round(max(all_), 5) for at, all_ in norms.items()})
            for at, all_ in norms.items():
                for layer, norm in enumerate(all_):
                    self.assertTrue(math.isfinite(norm) and norm > 0)
                    self.assertLess(norm, 2 * norms[4096][layer],
                                    "layer %d grows until %d" % (layer, at))
            self.assertIn("4071925", reply)
            most = max(max(all_) for all_ in norms.values())
            # A guard that has nothing to do does nothing.
            capped, again = self.run_node(directory, "guarded", "--state-cap",
                                          "%g" % (2 * most))
            self.assertEqual((capped, again), (norms, reply))

    def test_a_cap_holds_where_it_is_reached(self):
        with workspace() as directory:
            cap = 0.002
            node = Node(os.path.join(directory, "capped"),
                        ["--state-cap", str(cap)]).start()
            self.addCleanup(node.kill)
            with node.client() as client:
                norms = pile_up(node, client, 8192, "window")
            for at in (4096, 8192):
                self.assertLess(max(norms[at]), cap * 1.000001)
                self.assertGreater(max(norms[at]), cap * 0.999999)


def measure(n_token, policy="window", cap="0"):
    with workspace() as directory:
        node = Node(os.path.join(directory, "data"),
                    ["--state-cap", cap]).start()
        begin = time.monotonic()
        try:
            with node.client() as client:
                for at, norms in pile_up(node, client, int(n_token),
                                         policy).items():
                    print("%d newlines: %s" % (
                        at, " ".join("%.5f" % norm for norm in norms)))
                print("answer: %r, wanted 4071925" % find(node, client))
        finally:
            node.kill()
        print("%.0f s" % (time.monotonic() - begin))


if __name__ == "__main__":
    if len(sys.argv) > 2 and sys.argv[1] == "measure":
        measure(*sys.argv[2:])
    else:
        unittest.main()
