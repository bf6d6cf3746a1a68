"""What is stored of sessions: verified, moved, bounded, and spoiled on purpose.

The judge is a node of its own that gets each session's tokens as one prompt of
a session that shares nothing.
"""

import json
import os
import re
import unittest

import grpc

from godwit.v1 import generation_pb2 as gen
from godwit.v1 import session_pb2
from harness import (Node, NodeTests, ctl, greedy, tokens, workspace)
from test_fork import delete, fork, ids, rewind, turn

Code = grpc.StatusCode


def verify(client, session, replay=False):
    return client.session.VerifySession(session_pb2.VerifySessionRequest(
        session="sessions/" + session, replay=replay), timeout=120)


def counts(found):
    return {kind.kind: kind.count for kind in found.kinds}


def n_bad(found):
    return sum(kind.bad + kind.missing for kind in found.kinds)


class Verify(NodeTests, unittest.TestCase):

    def test_a_tree_is_sound_by_both_clients(self):
        turn(self.client, "root", ids(1, 5000), 20)
        fork(self.client, "root", "leaf", 3000)
        turn(self.client, "leaf", ids(2, 700), 10)
        for name, position in (("root", 5020), ("leaf", 3710)):
            found = verify(self.client, name, replay=True)
            self.assertEqual((n_bad(found), list(found.findings)), (0, []))
            self.assertEqual(found.session, "sessions/" + name)
            self.assertEqual(found.position, position)
            self.assertTrue(found.replayed)
            self.assertGreater(found.compared_values, 0)
            self.assertEqual(found.different_values, 0)
            self.assertEqual(counts(found)["session"], 1)
            self.assertGreater(counts(found)["block"], 0)
            run = ctl(self.node.endpoint, "session", "verify", name,
                      "--output", "json")
            self.assertEqual(run.code, 0, run.err)
            shown = json.loads(run.out)
            self.assertEqual(shown["kind"], "SessionVerification")
            self.assertEqual({row["kind"]: row["count"]
                              for row in shown["items"]}, counts(found))
        self.assertFails(Code.NOT_FOUND, lambda: verify(self.client, "nobody"),
                         "SESSION_NOT_FOUND")


if __name__ == "__main__":
    unittest.main()
