"""Sessions that share a log: forked, rewound and deleted, over kill -9.

The judge is a node of its own that gets each branch's tokens as one prompt of a
session that shares nothing.

  python3 tests/e2e/test_fork.py Forks
  python3 tests/e2e/test_fork.py measure 16000 64   time and memory; no test
"""

import concurrent.futures
import json
import os
import random
import statistics
import sys
import time
import unittest

import grpc

from godwit.v1 import generation_pb2 as gen
from godwit.v1 import session_pb2
from harness import (Node, NodeTests, ctl, greedy, sampled, tokens, workspace)

Code = grpc.StatusCode
N_VOCAB = 4000  # ids below this are plain text


def ids(seed, count):
    rng = random.Random(seed)
    return [rng.randrange(N_VOCAB) for _ in range(count)]


def turn(client, session, given, count=8, seed=None, timeout=300):
    """The ids of the reply to some ids more."""
    params = greedy(count) if seed is None else sampled(count, seed)
    return client.generate(gen.GenerateRequest(
        session="sessions/" + session if session else "",
        create_session=bool(session), tokenized=tokens(given),
        sampling_params=params), timeout=timeout)


def fork(client, session, name, position=None):
    request = session_pb2.ForkSessionRequest(session="sessions/" + session,
                                             session_id=name)
    if position is not None:
        request.position = position
    return client.session.ForkSession(request, timeout=60)


def rewind(client, session, position):
    return client.session.TruncateSession(session_pb2.TruncateSessionRequest(
        session="sessions/" + session, position=position), timeout=60)


def delete(client, session):
    client.session.DeleteSession(session_pb2.DeleteSessionRequest(
        name="sessions/" + session), timeout=60)


def names(client):
    page = client.session.ListSessions(
        session_pb2.ListSessionsRequest(page_size=1000), timeout=60)
    return [s.name[len("sessions/"):] for s in page.sessions]


class Forks(unittest.TestCase):

    def expect_alone(self, judge, client, session, reply, seed=None):
        """The last reply of a session, as if all before it were one prompt."""
        log = client.log(session)
        n = len(reply.ids)
        self.assertEqual(log[len(log) - n:], reply.ids)
        alone = turn(judge, "", log[:len(log) - n], n, seed)
        self.assertEqual(alone.ids, reply.ids)

    def test_a_tree_over_kills_and_deletions(self):
        with workspace() as directory:
            node = Node(os.path.join(directory, "data"))
            alone = Node(os.path.join(directory, "alone"),
                         ["--prefix-store", "0"])
            try:
                node.start()
                with alone.start().client() as judge:
                    self.scenario(node, judge)
            finally:
                node.kill()
                alone.kill()

    def scenario(self, node, judge):
        with node.client() as client:
            turn(client, "root", ids(1, 700), 40)
            root = client.log("root")
            places = [0, 1, 63, 64, 65, 300, 500, 739, 740]
            for place in places:
                made = fork(client, "root", "at-%d" % place, place)
                self.assertEqual(made.position, place)
                self.assertEqual(made.parent_session, "sessions/root")
                self.assertEqual(made.fork_position, place)
            self.assertEqual(fork(client, "root", "tip").position, 740)
        node.kill()
        node.start()
        with node.client() as client:
            for place in places:
                name = "at-%d" % place
                self.assertEqual(client.log(name), root[:place])
                reply = turn(client, name, ids(place, 5), 8, seed=place)
                self.expect_alone(judge, client, name, reply, seed=place)
            fork(client, "at-500", "leaf")
            delete(client, "root")
            delete(client, "at-500")
            turn(client, "root", ids(2, 30))  # the name is free
            self.assertEqual(len(client.log("root")), 38)
        node.kill()
        node.start()
        with node.client() as client:
            self.assertEqual(names(client), sorted(
                ["at-%d" % p for p in places if p != 500] +
                ["leaf", "root", "tip"]))
            self.assertEqual(client.log("tip"), root)
            for name in ("tip", "leaf", "at-739", "root"):
                reply = turn(client, name, ids(name, 9))
                self.expect_alone(judge, client, name, reply)
            self.rewinds(client, judge)
        node.kill()
        node.start()
        with node.client() as client:
            self.assertEqual(client.log("tip")[:600], root[:600])
            reply = turn(client, "tip", ids(9, 3))
            self.expect_alone(judge, client, "tip", reply)

    def rewinds(self, client, judge):
        for place in (750, 690, 640, 633, 600):
            self.assertEqual(rewind(client, "tip", place).position, place)
            self.assertEqual(len(client.log("tip")), place)
            reply = turn(client, "tip", ids(place, 4), 6, seed=place)
            self.expect_alone(judge, client, "tip", reply, seed=place)
        self.assertEqual(rewind(client, "tip", 600).fork_position, 600)

    def test_killed_while_it_forks_and_rewinds(self):
        """Every answer that came is true afterwards."""
        with workspace() as directory:
            node = Node(os.path.join(directory, "data"))
            try:
                with node.start().client() as client:
                    turn(client, "s", ids(3, 200), 4)
                    root = client.log("s")
                for round in range(4):
                    with node.client() as client, \
                            concurrent.futures.ThreadPoolExecutor(1) as pool:
                        killer = pool.submit(self.kill_after, node, 0.03 * round)
                        done = self.churn(client, round)
                        killer.result()
                    node.start()
                    with node.client() as client:
                        there = set(names(client))
                        for name, place in done.items():
                            self.assertIn(name, there)
                            self.assertEqual(client.log(name), root[:place])
            finally:
                node.kill()

    @staticmethod
    def kill_after(node, seconds):
        time.sleep(seconds)
        node.kill()

    @staticmethod
    def churn(client, round):
        """Forks of "s", each rewound, until the node is gone: the last known
        lengths."""
        done = {}
        try:
            for i in range(100000):
                name = "f%d-%d" % (round, i)
                fork(client, "s", name, 204 - i % 100)
                done[name] = rewind(client, name, i % 104).position
        except grpc.RpcError as error:
            assert error.code() in (Code.UNAVAILABLE, Code.CANCELLED), error
        return done


class Calls(NodeTests, unittest.TestCase):

    def test_errors_have_reasons(self):
        client = self.client
        turn(client, "e", ids(1, 20), 4)
        self.assertFails(Code.NOT_FOUND, lambda: fork(client, "nobody", "x"),
                         "SESSION_NOT_FOUND")
        self.assertFails(Code.OUT_OF_RANGE, lambda: fork(client, "e", "x", 25),
                         "POSITION_OUT_OF_RANGE")
        fork(client, "e", "taken")
        self.assertFails(Code.ALREADY_EXISTS, lambda: fork(client, "e", "taken"),
                         "SESSION_EXISTS")
        self.assertFails(Code.INVALID_ARGUMENT,
                         lambda: fork(client, "e", "no/name"))
        self.assertFails(Code.OUT_OF_RANGE, lambda: rewind(client, "e", 25),
                         "POSITION_OUT_OF_RANGE")
        self.assertTrue(fork(client, "e", "").name.startswith("sessions/"))
        self.assertServes()

    def test_a_running_turn_is_not_rewound_but_forked(self):
        client = self.client
        stream = client.generation.Generate(gen.GenerateRequest(
            session="sessions/run", create_session=True, request_id="r",
            tokenized=tokens(ids(5, 50)), sampling_params=greedy(3000)))
        for message in stream:
            if message.WhichOneof("event") == "chunk":
                break
        self.assertFails(Code.FAILED_PRECONDITION,
                         lambda: rewind(client, "run", 10), "TURN_RUNNING")
        made = fork(client, "run", "run-fork")
        self.assertGreater(made.position, 50)
        stream.cancel()
        self.assertEqual(client.log("run-fork"),
                         client.log("run")[:made.position])

    def test_ctl_forks_and_rewinds(self):
        turn(self.client, "c", ids(6, 90), 10)
        run = ctl(self.node.endpoint, "session", "fork", "c", "--as", "c2",
                  "--at", "77", "--output", "json")
        self.assertEqual(run.code, 0, run.err)
        shown = json.loads(run.out)
        self.assertEqual((shown["id"], shown["position"], shown["parent"],
                          shown["forked_at"]), ("c2", 77, "c", 77))
        run = ctl(self.node.endpoint, "session", "rewind", "c", "--to", "64",
                  "--output", "json")
        self.assertEqual(run.code, 0, run.err)
        self.assertEqual(json.loads(run.out)["position"], 64)
        self.assertEqual(len(self.client.log("c2")), 77)
        run = ctl(self.node.endpoint, "session", "list", "--prefix", "c2",
                  "--output", "tsv")
        head, row = [line.split("\t") for line in run.out.splitlines()]
        self.assertEqual(dict(zip(head, row))["parent"], "c")
        run = ctl(self.node.endpoint, "session", "rewind", "c")
        self.assertEqual(run.code, 2)
        self.assertIn("--to", run.err)


def rss_kib(node):
    with open("/proc/%d/status" % node.process.pid) as status:
        for line in status:
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
    raise AssertionError("no VmRSS")


def parent_for_measure(client, n_token):
    """Long prompts go in pieces, so that no message is too large."""
    given = ids(n_token, n_token)
    for first in range(0, n_token, 50000):
        client.session.AppendTokens(session_pb2.AppendTokensRequest(
            session="sessions/long", create_session=True,
            tokenized=tokens(given[first:first + 50000])), timeout=3000)
    return turn(client, "long", ids(1, 1), 1, timeout=3000)


def measure(n_token, n_fork):
    """One row: how long a fork takes, and what all of them cost in memory."""
    with workspace() as directory:
        node = Node(os.path.join(directory, "data"),
                    ["--context", str(n_token + 1000)])
        try:
            client = node.start().client()
            parent_for_measure(client, n_token)
            time.sleep(1)  # what is saved behind the reply
            before, fork_ms, turn_ms = rss_kib(node), [], []
            for i in range(n_fork):
                begin = time.monotonic()
                fork(client, "long", "fork-%d" % i)
                fork_ms.append((time.monotonic() - begin) * 1e3)
            forked = rss_kib(node)
            replies = []
            for i in range(n_fork):
                begin = time.monotonic()
                replies.append(turn(client, "fork-%d" % i, ids(i, 2), 4))
                turn_ms.append((time.monotonic() - begin) * 1e3)
            spoken = rss_kib(node)
            info = client.session.GetSession(session_pb2.GetSessionRequest(
                name="sessions/long"))
            judged = [i for i in range(n_fork)
                      if n_token <= 20000 and i % 16 == 0 or i == n_fork - 1]
            log = client.log("long")
            client.close()
        finally:
            node.kill()
        alone = Node(os.path.join(directory, "alone"),
                     ["--prefix-store", "0", "--context", str(n_token + 1000)])
        try:
            with alone.start().client() as judge:
                for i in judged:
                    same = turn(judge, "", log + ids(i, 2), 4, timeout=3000)
                    assert same.ids == replies[i].ids, "fork %d differs" % i
        finally:
            alone.kill()
    print("tokens\tforks\tfork_ms\tfork_ms_max\tturn_ms\tsession_mib\t"
          "rss_mib\trss_forked\trss_spoken\tper_fork_kib\tequal")
    print("%d\t%d\t%.2f\t%.2f\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t%.0f\t%d of %d" % (
        n_token, n_fork, statistics.median(fork_ms), max(fork_ms),
        statistics.median(turn_ms), (info.state_bytes + info.kv_bytes) / 2**20,
        before / 1024, forked / 1024, spoken / 1024,
        (spoken - before) / n_fork, len(judged), len(judged)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(int(sys.argv[2]) if len(sys.argv) > 2 else 16000,
                int(sys.argv[3]) if len(sys.argv) > 3 else 64)
    else:
        unittest.main(verbosity=2)
