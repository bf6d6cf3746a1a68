"""kill -9 at random moments under load; then damage to the store.

Several clients follow a script of turns that a seed determines. When the node
dies they ask for the same turn again (same request_id, resume_from_position).
The judge is an uninterrupted run of the same script on a fresh data directory:
every session's log must equal it token for token, and every token that any
client ever received must be in the log at its position.

  KILLS=200 SEED=7 python3 tests/e2e/test_kill.py Kills
"""

import os
import random
import shutil
import threading
import time
import unittest

import grpc

from godwit.v1 import admin_pb2
from godwit.v1 import generation_pb2 as gen
from godwit.v1 import session_pb2
from harness import Node, Reply, error_info, greedy, sampled, tokens, workspace

KILLS = int(os.environ.get("KILLS", "25"))
SEED = int(os.environ.get("SEED", str(random.SystemRandom().randrange(10**6))))
N_CLIENT = int(os.environ.get("CLIENTS", "4"))
TURNS = 6  # of one session; then its client begins another
DAMAGES = os.environ.get("DAMAGES")  # the names of some, or all of them
UP_S = 0.5  # a node lives at most so long after it serves
EARLY = 0.15  # share of kills that come before it serves
RETRY_S = 90  # one turn may take so long, deaths included
N_VOCAB = 4000  # ids below this are plain text


def session_name(client, index):
    return "c%d-%d" % (client, index)


def turn_request(seed, client, index, turn):
    """The request of one turn: a function of its arguments alone."""
    rng = random.Random("%d/%d/%d/%d" % (seed, client, index, turn))
    fields = dict(
        session="sessions/" + session_name(client, index), create_session=True,
        request_id="turn-%d" % turn,
        tokenized=tokens([rng.randrange(N_VOCAB)
                          for _ in range(rng.choice([1, 20, 70, 300]))]))
    kind = rng.random()
    if kind < 0.15:
        return session_pb2.AppendTokensRequest(**fields)
    count = rng.randint(1, 80)
    if kind < 0.4:
        params = greedy(count)
    elif kind < 0.7:
        params = sampled(count, rng.randrange(2**63))
    else:
        params = sampled(count, rng.randrange(2**63), repetition_penalty=1.1,
                         presence_penalty=0.5, frequency_penalty=0.3)
    return gen.GenerateRequest(sampling_params=params, **fields)


class Load(threading.Thread):
    """One client that follows its script and remembers all it was sent."""

    def __init__(self, node, number, stop=None, turns=None):
        super().__init__(daemon=True)
        self.node, self.number = node, number
        self.stop, self.turns = stop, turns  # until stop, or so many turns
        self.n_turn = self.n_retry = self.n_token = 0
        self.received = {}  # session -> {position: token}
        self.failure = None

    def run(self):
        try:
            with self.node.client() as client:
                while (self.n_turn < self.turns if self.turns is not None
                       else not self.stop.is_set()):
                    index, turn = divmod(self.n_turn, TURNS)
                    self.play(client, session_name(self.number, index),
                              turn_request(SEED, self.number, index, turn))
                    self.n_turn += 1
        except BaseException as error:  # shown by the test
            self.failure = error

    def play(self, client, session, request):
        end = time.monotonic() + RETRY_S
        reply = None
        while time.monotonic() < end:
            try:
                if isinstance(request, session_pb2.AppendTokensRequest):
                    operation = client.session.AppendTokens(
                        request, timeout=60, wait_for_ready=True)
                    assert operation.done
                    return
                if reply and reply.ids:
                    request.resume_from_position = reply.first + len(reply.ids)
                reply = self.listen(client, session, request, reply)
                return
            except Broken as broken:
                reply = broken.reply
            except grpc.RpcError as error:
                self.judge(error)
            self.n_retry += 1
            time.sleep(0.02)
        raise AssertionError("%s %s did not end within %g s" %
                             (session, request.request_id, RETRY_S))

    def listen(self, client, session, request, earlier):
        reply = Reply(is_resumed=True)  # by its request_id alone, even
        wanted = request.resume_from_position
        try:
            for message in client.generation.Generate(
                    request, timeout=60, wait_for_ready=True):
                if reply.take(message) == "chunk":
                    self.remember(session, message.position,
                                  message.chunk.token_ids)
        except grpc.RpcError as error:
            self.judge(error)
            if not reply.ids:
                raise Broken(earlier) from error
            if earlier and earlier.ids:
                reply.first = earlier.first
                reply.ids = earlier.ids + reply.ids
            raise Broken(reply) from error
        assert reply.complete is not None, "a reply ends with its completion"
        assert reply.complete.finish_reason == gen.FINISH_REASON_LENGTH
        if reply.ids and request.HasField("resume_from_position"):
            assert reply.first == wanted, "resumed at %d instead of %d" % (
                reply.first, wanted)
        return reply

    def judge(self, error):
        """A node that is away is expected; everything else is a fault."""
        if error.code() != grpc.StatusCode.UNAVAILABLE:
            raise AssertionError("%s: %s (%s)" % (
                error.code(), error.details(), error_info(error))) from error

    def remember(self, session, position, ids):
        known = self.received.setdefault(session, {})
        for i, token in enumerate(ids):
            before = known.setdefault(position + i, token)
            assert before == token, "%s position %d was %d, is %d now" % (
                session, position + i, before, token)
        self.n_token += len(ids)


class Broken(Exception):
    """The stream broke; `reply` is what came of this turn so far, or None."""

    def __init__(self, reply):
        super().__init__()
        self.reply = reply


def play_all(node, turns=None, stop=None):
    """Threads of all clients; `turns` per client, or until stop."""
    loads = [Load(node, i, stop, turns[i] if turns else None)
             for i in range(N_CLIENT)]
    for load in loads:
        load.start()
    return loads


def join_all(test, loads):
    for load in loads:
        load.join(600)
        test.assertFalse(load.is_alive(), "client %d hangs" % load.number)
    for load in loads:
        if load.failure:
            raise load.failure


def logs_of(node, loads):
    out = {}
    with node.client() as client:
        for load in loads:
            for index in range((load.n_turn + TURNS - 1) // TURNS):
                name = session_name(load.number, index)
                out[name] = client.log(name)
    return out


class Kills(unittest.TestCase):

    def kill_often(self, node, loads):
        """KILLS deaths; returns the seconds from spawn to serving."""
        rng = random.Random(SEED)
        starts = []
        for _ in range(KILLS):
            if rng.random() < EARLY:
                time.sleep(rng.uniform(0, 0.2))
            else:
                node.await_port()
                starts.append(time.monotonic() - node.spawn_time)
                time.sleep(rng.uniform(0, UP_S))
            self.assertIsNone(node.process.poll(), "it died by itself:\n" +
                              node.read_log()[-3000:])
            node.kill()
            for load in loads:
                if load.failure:
                    raise load.failure
            node.spawn_time = time.monotonic()
            node.spawn("127.0.0.1:%d" % node.port)
        node.await_port()
        return starts

    def test_no_committed_token_is_lost_or_changed(self):
        print("\nSEED=%d KILLS=%d" % (SEED, KILLS), flush=True)
        with workspace() as directory:
            node = Node(os.path.join(directory, "data"))
            fresh = Node(os.path.join(directory, "fresh"))
            try:
                begin = node.spawn_time = time.monotonic()
                node.start()
                stop = threading.Event()
                loads = play_all(node, stop=stop)
                starts = self.kill_often(node, loads)
                stop.set()
                join_all(self, loads)
                logs = logs_of(node, loads)
                killed_s = time.monotonic() - begin
                self.assertEqual(node.stop(), 0, node.read_log())
                # Once more from the disk alone.
                node.start()
                self.assertEqual(logs_of(node, loads), logs)
                self.assertEqual(node.stop(), 0)

                fresh.start()
                references = play_all(fresh, turns=[l.n_turn for l in loads])
                join_all(self, references)
                wanted = logs_of(fresh, references)
                self.judge_logs(loads, logs, wanted)
                print("%d kills, %d turns, %d broken calls, %d tokens received, "
                      "start p50 %.2f s max %.2f s, %.0f s + %.0f s reference" % (
                          KILLS, sum(l.n_turn for l in loads),
                          sum(l.n_retry for l in loads),
                          sum(l.n_token for l in loads),
                          sorted(starts)[len(starts) // 2], max(starts), killed_s,
                          time.monotonic() - begin - killed_s), flush=True)
                self.assertGreater(sum(l.n_retry for l in loads), KILLS / 2,
                                   "the kills must hit running calls")
            except BaseException:
                print("data kept at %s with GODWIT_TEST_KEEP=1; log:\n%s" %
                      (directory, node.read_log()[-3000:]), flush=True)
                raise
            finally:
                node.kill()
                fresh.kill()

    def judge_logs(self, loads, logs, wanted):
        self.assertEqual(set(logs), set(wanted))
        for name, log in logs.items():
            if log == wanted[name]:
                continue
            n = next((i for i, (a, b) in enumerate(zip(log, wanted[name]))
                      if a != b), min(len(log), len(wanted[name])))
            self.fail("%s differs from the uninterrupted run at position %d of "
                      "%d (%d expected)" % (name, n, len(log),
                                            len(wanted[name])))
        for load in loads:
            for name, known in load.received.items():
                for position, token in known.items():
                    self.assertLess(position, len(logs[name]),
                                    "%s lost a token it had sent" % name)
                    self.assertEqual(logs[name][position], token, name)


def flip(path, every):
    """Invert one byte of every so many."""
    with open(path, "r+b") as file:
        size = os.path.getsize(path)
        for offset in range(every // 3, size, every):
            file.seek(offset)
            byte = file.read(1)
            file.seek(offset)
            file.write(bytes([byte[0] ^ 0xff]))


class Damage(unittest.TestCase):
    """Stored states are a cache: without them, or with wrong ones, same text."""

    SCRIPT = [  # (session, first random id, input tokens, output tokens)
        ("one", 1, 900, 40), ("two", 2, 300, 90), ("one", 3, 200, 60)]
    FINALE = [("one", 4, 30, 50), ("two", 5, 5, 50)]

    def play(self, client, script):
        completions = []
        for session, seed, n_input, n_output in script:
            rng = random.Random(seed)
            reply = client.generate(gen.GenerateRequest(
                session="sessions/" + session, create_session=True,
                tokenized=tokens([rng.randrange(N_VOCAB)
                                  for _ in range(n_input)]),
                sampling_params=sampled(n_output, seed)))
            completions.append(reply.complete)
        return completions

    def logs(self, client):
        return {name: client.log(name) for name in ("one", "two")}

    def values(self, store):
        """Files that hold values, or name them: segments, tables and the
        write-ahead log."""
        names = [os.path.join(at, n) for at, _, files in sorted(os.walk(store))
                 for n in sorted(files)
                 if n.rsplit(".", 1)[-1] in ("segment", "sst", "log")]
        return [n for n in names if os.path.getsize(n) > 0]

    def segments(self, store):
        found = [n for n in self.values(store) if n.endswith(".segment")]
        self.assertTrue(found, "large values lie in segments")
        return found

    def flip_segments(self, store):
        for name in self.segments(store):
            flip(name, 50000)

    def truncate_segments(self, store):
        for name in self.segments(store):
            os.truncate(name, os.path.getsize(name) // 2)

    def delete_segments(self, store):
        for name in self.segments(store):
            os.unlink(name)

    def flip_few(self, store):
        """The database opens; a few values have lost their meaning, and not
        all of them belong to snapshots that nobody needs any more."""
        largest = max(self.values(store), key=os.path.getsize)
        flip(largest, os.path.getsize(largest) // 8)

    def flip_some(self, store):
        for name in self.values(store):
            flip(name, 50000)

    def flip_many(self, store):
        for name in self.values(store):
            flip(name, 100)

    def truncate(self, store):
        for name in self.values(store):
            os.truncate(name, os.path.getsize(name) // 2)

    def delete_values(self, store):
        for name in self.values(store):
            os.unlink(name)

    def delete_all(self, store):
        shutil.rmtree(store)

    def test_damaged_states_are_computed_again(self):
        with workspace() as directory:
            whole = Node(os.path.join(directory, "whole")).start()
            try:
                with whole.client() as client:
                    self.play(client, self.SCRIPT + self.FINALE)
                    wanted = self.logs(client)
            finally:
                whole.kill()
            stored = os.path.join(directory, "stored")
            node = Node(stored).start()
            try:
                with node.client() as client:
                    self.play(client, self.SCRIPT)
                    for name in ("one", "two"):
                        client.admin.CheckpointSession(
                            admin_pb2.CheckpointSessionRequest(
                                session="sessions/" + name), timeout=30)
                self.assertEqual(node.stop(), 0)
                # All rows are in the store's write-ahead log now.
                with self.subTest(damage="flip_many in the log"):
                    self.continue_with(stored, "-log", wanted, self.flip_many,
                                       is_logged=False)
                node.start()  # moves them into tables
                self.assertEqual(node.stop(), 0)
            finally:
                node.kill()
            self.continue_with(stored, "-whole", wanted, None)
            damages = [self.flip_few, self.flip_some, self.flip_many,
                       self.flip_segments, self.truncate_segments,
                       self.delete_segments, self.truncate,
                       self.delete_values, self.delete_all]
            if DAMAGES:
                damages = [getattr(self, n) for n in DAMAGES.split(",")]
            for damage in damages:
                with self.subTest(damage=damage.__name__):
                    self.continue_with(stored, "-" + damage.__name__, wanted,
                                       damage, damage != self.delete_all)

    def continue_with(self, stored, suffix, wanted, damage, is_logged=False):
        data = stored + suffix
        shutil.copytree(stored, data)
        if damage:
            store = os.path.join(data, "store")
            self.assertTrue(self.values(store), "there is something to damage")
            damage(store)
        node = Node(data)
        try:
            node.start()
            with node.client() as client:
                done = self.play(client, self.FINALE)
                self.assertEqual(self.logs(client), wanted, "never other text")
            reasons = {c.reuse.reason for c in done}
            said = node.read_log()
            self.assertEqual(node.stop(), 0, node.read_log())
        finally:
            node.kill()
        if not damage:
            self.assertEqual(reasons, {"RESTORED"}, "the checkpoints are used")
            return
        self.assertNotEqual(reasons, {"RESTORED"}, "the damage was seen")
        if is_logged:
            self.assertRegex(said, r"(?m)^\S+ (warn|error)", "and logged")


if __name__ == "__main__":
    unittest.main(verbosity=2)
