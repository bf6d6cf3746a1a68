"""What is stored of sessions: verified, moved, bounded, and spoiled on purpose.

The judge is a node of its own that gets each session's tokens as one prompt of
a session that shares nothing.

  python3 tests/e2e/test_stored.py measure 10000 [DIR]   parked sessions, which
      are made in DIR alone unless they are there; no test
"""

import concurrent.futures
import itertools
import json
import os
import random
import re
import statistics
import struct
import sys
import time
import unittest

import grpc
from google.rpc import error_details_pb2

from godwit.v1 import generation_pb2 as gen
from godwit.v1 import admin_pb2, session_pb2
from harness import (Node, NodeTests, await_true, ctl, details_of, error_info, greedy,
                     sampled, tokens, workspace)
from test_fork import delete, fork, ids, names, turn

Code = grpc.StatusCode


def verify(client, session, replay=False):
    return client.session.VerifySession(session_pb2.VerifySessionRequest(
        session="sessions/" + session, replay=replay), timeout=120)


def counts(found):
    return {kind.kind: kind.count for kind in found.kinds}


def n_bad(found):
    return sum(kind.bad + kind.missing for kind in found.kinds)


class Inspect(NodeTests, unittest.TestCase):

    def test_what_is_where_by_both_clients(self):
        turn(self.client, "root", ids(1, 1400), 20)
        fork(self.client, "root", "leaf", 1200)
        turn(self.client, "leaf", ids(2, 700), 10)
        checkpoint = self.client.admin.CheckpointSession(
            admin_pb2.CheckpointSessionRequest(session="sessions/leaf"))
        found = self.client.admin.InspectSession(
            admin_pb2.InspectSessionRequest(session="sessions/leaf"))
        self.assertEqual([layer.kind for layer in found.layers],
                         (["delta"] * 3 + ["softmax"]) * 2)
        self.assertEqual([(log.begin, log.end) for log in found.lineage],
                         [(0, 1200), (1200, 0)])
        self.assertEqual(found.session.parent_session, "sessions/root")
        self.assertEqual(sum(layer.stored_state_bytes + layer.stored_kv_bytes
                             for layer in found.layers),
                         found.session.stored_bytes)
        self.assertEqual(found.lineage[1].stored_bytes,
                         found.session.stored_bytes)
        self.assertEqual(found.checkpoints[0].position, checkpoint.position)
        for layer in found.layers:
            if layer.kind == "softmax":
                self.assertEqual(layer.state_head_rms, 0)
            else:
                self.assertGreater(layer.state_rms, 0)
                self.assertGreaterEqual(layer.state_head_rms, layer.state_rms)
                self.assertGreater(layer.state_max, layer.state_head_rms)
        listed = self.client.session.ListCheckpoints(
            session_pb2.ListCheckpointsRequest(session="sessions/leaf"))
        self.assertEqual(list(listed.checkpoints), list(found.checkpoints))
        for show, count in (("layers", 8), ("lineage", 2), ("policy", 2),
                            ("snapshots", len(found.checkpoints))):
            run = ctl(self.node.endpoint, "session", "inspect", "leaf",
                      "--show", show, "--output", "json")
            self.assertEqual(run.code, 0, run.err)
            shown = json.loads(run.out)["items"]
            self.assertEqual(len(shown), count)
            for layer in shown if show == "policy" else ():
                self.assertEqual(layer["policy"], found.session.policy)
                self.assertFalse(layer["paged"], "all blocks are in RAM here")
        self.assertFails(Code.NOT_FOUND, lambda:
                         self.client.admin.InspectSession(
                             admin_pb2.InspectSessionRequest(
                                 session="sessions/nobody")),
                         "SESSION_NOT_FOUND")


class Verify(NodeTests, unittest.TestCase):

    def test_a_tree_is_sound_by_both_clients(self):
        turn(self.client, "root", ids(1, 4200), 20)
        fork(self.client, "root", "leaf", 3000)
        turn(self.client, "leaf", ids(2, 700), 10)
        for name, position in (("root", 4220), ("leaf", 3710)):
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


# --- bundles ---

KEYS = {"ann": bytes(range(32)), "bob": bytes(range(1, 33))}


def export(client, session, **options):
    """The bundle, and how many messages it came in."""
    pieces = [chunk.data for chunk in client.session.ExportSession(
        session_pb2.ExportSessionRequest(session="sessions/" + session,
                                         **options), timeout=120)]
    return b"".join(pieces), len(pieces)


def chunks(bundle, name="", piece=100000, **options):
    yield session_pb2.SessionChunk(options=session_pb2.ImportOptions(
        session_id=name, **options))
    for at in range(0, len(bundle), piece):
        yield session_pb2.SessionChunk(data=bundle[at:at + piece])


def import_(client, bundle, name="", **options):
    return client.session.ImportSession(chunks(bundle, name, **options),
                                        timeout=120)


def unseal(bundle, key):
    """The plain bundle, by another implementation of what docs and seal.h say:
    frames with 32 bytes of head, HKDF-SHA256, AES-256-GCM."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    def derive(salt, info, length):
        return HKDF(hashes.SHA256(), length, salt, info).derive(key)

    frames, at = [], 0
    while at < len(bundle):
        magic, kind, version, n = struct.unpack_from("<IHHQ", bundle, at)
        assert magic == 0x31665747 and version == 1
        frames.append((kind, bundle[at + 32:at + 32 + n]))
        at += 32 + n
    kind, head = frames[0]
    assert kind == 10 and len(head) == 4 + 16 + 32
    assert struct.unpack_from("<I", head) == (1,)
    assert head[4:20] == derive(None, b"godwit key id 1", 16)
    cipher = AESGCM(derive(head[20:], b"godwit bundle 1", 32))
    plain = b""
    for number, (kind, piece) in enumerate(frames[1:]):
        its_number, is_last, n = struct.unpack_from("<QBI", piece)
        assert kind == 11 and its_number == number
        assert bool(is_last) == (number == len(frames) - 2)
        assert len(piece) == 13 + n + 16
        nonce = struct.pack("<QB", number, is_last) + b"\0\0\0"
        plain += cipher.decrypt(nonce, piece[13:], piece[:13])
    return plain


class Bundles(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        cls.workspace = workspace()
        cls.directory = cls.workspace.__enter__()
        cls.keys = os.path.join(cls.directory, "keys")
        with open(os.open(cls.keys, os.O_CREAT | os.O_WRONLY, 0o600), "w") as f:
            f.write("# tenants\n")
            for tenant, key in KEYS.items():
                f.write("%s %s\n" % (tenant, key.hex()))
        options = ["--tenant-keys", cls.keys]
        cls.nodes = [Node(os.path.join(cls.directory, name), options)
                     for name in ("from", "to")]
        cls.nodes.append(Node(os.path.join(cls.directory, "alone"),
                              ["--prefix-store", "0"]))
        for node in cls.nodes:
            node.start()
        cls.source, cls.target, cls.judge = [n.client() for n in cls.nodes]
        turn(cls.source, "s", ids(5, 1150), 30, seed=4)
        fork(cls.source, "s", "f", 1100)
        turn(cls.source, "f", ids(6, 200), 12, seed=5)
        for name in ("s", "f"):  # a save may wait; bundles have what is stored
            cls.source.admin.CheckpointSession(
                admin_pb2.CheckpointSessionRequest(session="sessions/" + name))

    @classmethod
    def tearDownClass(cls):
        for client in (cls.source, cls.target, cls.judge):
            client.close()
        for node in cls.nodes:
            node.kill()
        cls.workspace.__exit__(None, None, None)

    def expect_goes_on(self, client, name, seed):
        """As a session that shares nothing with it."""
        reply = client.generate(gen.GenerateRequest(
            session="sessions/" + name, tokenized=tokens(ids(seed, 20)),
            sampling_params=sampled(16, seed)), timeout=120)
        log = client.log(name)
        alone = turn(self.judge, "", log[:-16], 16, seed=seed)
        self.assertEqual(alone.ids, reply.ids)
        return reply

    def test_both_ways_with_and_without_state(self):
        for name in ("s", "f"):
            log = self.source.log(name)
            for with_state in (False, True):
                bundle, n = export(self.source, name, with_state=with_state)
                self.assertGreaterEqual(n, len(bundle) >> 18)
                other = "%s-%d" % (name, with_state)
                made = import_(self.target, bundle, other)
                self.assertEqual(made.name, "sessions/" + other)
                self.assertEqual(made.position, len(log))
                self.assertEqual(made.committed_position, len(log))
                self.assertEqual(self.target.log(other), log)
                found = verify(self.target, other, replay=True)
                self.assertEqual((n_bad(found), list(found.findings)), (0, []))
                self.assertEqual(found.compared_values > 0, with_state)
        type(self).target.close()
        self.nodes[1].kill()
        type(self).target = self.nodes[1].start().client()
        with self.nodes[1].client() as client:
            for seed, name in enumerate(("s-0", "s-1", "f-0", "f-1")):
                reply = self.expect_goes_on(client, name, seed)
                restored = reply.complete.reuse.restored_tokens
                if name[2] == "1":  # others may find that one's prefix
                    self.assertGreater(restored, 1100)
            back, _ = export(client, "f-1", with_state=True)
        import_(self.source, back, "back", piece=1 << 20)
        self.expect_goes_on(self.source, "back", 9)

    def test_sealed_by_the_description(self):
        plain, _ = export(self.source, "s", with_state=True)
        for tenant, key in KEYS.items():
            sealed, _ = export(self.source, "s", with_state=True, seal=True,
                               tenant=tenant)
            self.assertEqual(unseal(sealed, key), plain)
            name = "sealed-" + tenant
            import_(self.target, sealed, name, tenant=tenant, piece=777777)
            with self.nodes[1].client(tenant=tenant) as client:
                self.expect_goes_on(client, name, 3)
                with self.assertRaises(grpc.RpcError) as caught:
                    export(client, name, seal=True, tenant="eve")
                self.assertEqual(error_info(caught.exception).reason,
                                 "KEY_MISSING")
            with self.nodes[1].client(tenant="eve") as client:
                with self.assertRaises(grpc.RpcError) as caught:
                    self.expect_goes_on(client, name, 3)
                self.assertEqual(error_info(caught.exception).reason,
                                 "SESSION_NOT_FOUND")
            for wrong in KEYS.keys() - {tenant}:
                self.refuses(Code.FAILED_PRECONDITION, "KEY_MISMATCH", sealed,
                             tenant=wrong)
            self.refuses(Code.FAILED_PRECONDITION, "KEY_MISSING", sealed)

    def refuses(self, code, reason, bundle, **options):
        with self.assertRaises(grpc.RpcError) as caught:
            import_(self.target, bundle, "refused", **options)
        self.assertEqual(caught.exception.code(), code,
                         caught.exception.details())
        self.assertEqual(error_info(caught.exception).reason, reason)
        self.assertNotIn("refused", names(self.target))

    def test_what_is_no_whole_bundle(self):
        bundle, _ = export(self.source, "f", with_state=True)
        flipped = bytearray(bundle)
        flipped[len(bundle) // 2] ^= 1
        self.refuses(Code.DATA_LOSS, "BUNDLE_DAMAGED", bytes(flipped))
        self.refuses(Code.DATA_LOSS, "BUNDLE_TRUNCATED", bundle[:-1])
        self.refuses(Code.DATA_LOSS, "BUNDLE_TRUNCATED", b"")
        self.refuses(Code.DATA_LOSS, "BUNDLE_DAMAGED", b"text" * 100)
        with self.assertRaises(grpc.RpcError) as caught:
            import_(self.target, bundle, "no/name")
        self.assertEqual(caught.exception.code(), Code.INVALID_ARGUMENT)

    def test_a_slow_or_lost_client_holds_nothing(self):
        """Pieces are made when they are asked for; a call that is given up
        leaves room for the next ones."""
        for _ in range(20):
            stream = self.source.session.ExportSession(
                session_pb2.ExportSessionRequest(session="sessions/s",
                                                 with_state=True), timeout=60)
            next(stream)
            stream.cancel()
        bundle, _ = export(self.source, "s", with_state=True)

        def half():
            yield from itertools.islice(chunks(bundle, "half"), 5)
            raise RuntimeError("the client is gone")

        for _ in range(20):
            with self.assertRaises(grpc.RpcError):
                self.target.session.ImportSession(half(), timeout=60)
        self.assertNotIn("half", names(self.target))
        import_(self.target, bundle, "half")
        delete(self.target, "half")

    def test_the_command_line(self):
        path = os.path.join(self.directory, "s.bundle")
        source, target = self.nodes[0].endpoint, self.nodes[1].endpoint
        run = ctl(source, "session", "export", "f", "--file", path,
                  "--with-state", "--seal", "--seal-for", "ann")
        self.assertEqual((run.code, run.out), (0, ""), run.err)
        self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)
        run = ctl(source, "session", "export", "f", "--file", path)
        self.assertEqual(run.code, 1)
        self.assertIn("exists", run.err)
        run = ctl(target, "session", "import", path, "--as", "by-ctl",
                  "--tenant", "bob")
        self.assertEqual(run.code, 7, run.err)
        run = ctl(target, "session", "import", path, "--as", "by-ctl",
                  "--tenant", "ann", "--output", "json")
        self.assertEqual(run.code, 0, run.err)
        self.assertEqual(json.loads(run.out)["id"], "by-ctl")
        with self.nodes[1].client(tenant="ann") as client:
            self.expect_goes_on(client, "by-ctl", 11)
        run = ctl(target, "session", "park", "by-ctl", "--output", "json")
        self.assertEqual(run.code, 3, run.err)
        run = ctl(target, "session", "park", "by-ctl", "--tenant", "ann",
                  "--output", "json")
        self.assertEqual(run.code, 0, run.err)
        self.assertEqual(json.loads(run.out)["state"], "PARKED")
        part = os.path.join(self.directory, "part.bundle")
        run = ctl(source, "session", "export", "nobody", "--file", part)
        self.assertEqual(run.code, 3, run.err)
        self.assertFalse(os.path.exists(part))
        self.assertEqual(ctl(target, "session", "import", part).code, 1)


class Limits(unittest.TestCase):

    def test_the_store_keeps_to_its_limit_and_tenants_to_theirs(self):
        with workspace() as directory:
            node = Node(os.path.join(directory, "data"),
                        ["--store-limit", "8", "--tenant-sessions", "40",
                         "--tenant-tokens", "4000", "--prefix-store", "0"])
            alone = Node(os.path.join(directory, "alone"),
                         ["--prefix-store", "0"])
            try:
                node.start()
                with alone.start().client() as judge:
                    with node.client() as client:
                        self.fill(node, client)
                    node.kill()
                    node.start()
                    with node.client() as client:
                        self.expect_all(client, judge)
                    with node.client(tenant="ann") as client:
                        self.expect_quotas(client)
            finally:
                node.kill()
                alone.kill()

    def fill(self, node, client):
        """Of twelve sessions of some MiB each the newest and the pinned one
        keep theirs."""
        for i in range(12):
            name = "s%d" % i
            turn(client, name, ids(i, 300), 4)
            if i == 0:
                run = ctl(node.endpoint, "session", "pin", name, "--output",
                          "json")
                self.assertTrue(json.loads(run.out)["pinned"], run.err)
        stored = {}

        def is_kept():
            page = client.session.ListSessions(
                session_pb2.ListSessionsRequest(page_size=100), timeout=60)
            stored.update((s.name[len("sessions/"):], s.stored_bytes)
                          for s in page.sessions)
            return 0 < sum(stored.values()) <= 8 << 20

        await_true(is_kept, "the store keeps to its limit")
        self.assertGreater(stored["s0"], 0)
        self.assertEqual(stored["s1"], 0)
        run = ctl(node.endpoint, "session", "unpin", "s0", "--output", "json")
        self.assertFalse(json.loads(run.out)["pinned"])

    def expect_all(self, client, judge):
        for i in range(12):
            reply = turn(client, "s%d" % i, ids(100 + i, 9), 6, seed=i)
            log = client.log("s%d" % i)
            self.assertEqual(len(log), 319)
            alone = turn(judge, "", log[:-6], 6, seed=i)
            self.assertEqual(alone.ids, reply.ids)

    def expect_quotas(self, client):
        def ask(session, count):
            return client.generate(gen.GenerateRequest(
                session="sessions/" + session, create_session=True,
                tokenized=tokens(ids(1, count)),
                sampling_params=greedy(4)), timeout=120)

        ask("a", 2600)
        with self.assertRaises(grpc.RpcError) as caught:
            ask("b", 1397)
        self.assertEqual(caught.exception.code(), Code.RESOURCE_EXHAUSTED)
        self.assertEqual(error_info(caught.exception).reason, "TENANT_QUOTA")
        found = details_of(caught.exception, error_details_pb2.QuotaFailure)
        self.assertEqual(found[0].violations[0].subject, "tenant.tokens")
        self.assertNotIn("b", names(client))
        for i in range(39):
            ask("b%d" % i, 2)
        with self.assertRaises(grpc.RpcError) as caught:
            ask("one-more", 2)
        found = details_of(caught.exception, error_details_pb2.QuotaFailure)
        self.assertEqual(found[0].violations[0].subject, "tenant.sessions")


class Faults(unittest.TestCase):

    def test_flipped_bits_on_the_disk(self):
        """In the store's files, while the node is down: every session goes on
        with the same bits, and is sound after it was verified."""
        with workspace() as directory:
            data = os.path.join(directory, "data")
            node = Node(data, ["--prefix-store", "0"])
            alone = Node(os.path.join(directory, "alone"),
                         ["--prefix-store", "0"])
            try:
                node.start()
                with node.client() as client:
                    for i in range(4):
                        turn(client, "s%d" % i, ids(i, 400 + 150 * i), 4)
                    logs = [client.log("s%d" % i) for i in range(4)]
                for _ in range(2):  # the second start moves logs to tables
                    self.assertEqual(node.stop(), 0)
                    node.start()
                self.assertEqual(node.stop(), 0)
                self.assertGreater(self.flip(os.path.join(data, "store")), 0)
                node.start()
                with alone.start().client() as judge, node.client() as client:
                    self.expect_healed(client, judge, logs)
            finally:
                node.kill()
                alone.kill()

    @staticmethod
    def flip(directory):
        """A bit in every 100,000 bytes of what holds values."""
        rng, n = random.Random(1), 0
        for path in sorted(os.path.join(at, name)
                           for at, _, names in os.walk(directory)
                           for name in names):
            size = os.path.getsize(path)
            if not path.endswith((".sst", ".segment")) or size < 200000:
                continue
            with open(path, "r+b") as file:
                for start in range(50000, size - 50000, 100000):
                    at = start + rng.randrange(1000)
                    file.seek(at)
                    byte = file.read(1)[0]
                    file.seek(at)
                    file.write(bytes([byte ^ 1 << rng.randrange(8)]))
                    n += 1
        return n

    def expect_healed(self, client, judge, logs):
        n_found = 0
        for i, log in enumerate(logs):
            name = "s%d" % i
            self.assertEqual(client.log(name), log, "nothing committed is lost")
            n_found += n_bad(verify(client, name))
            reply = turn(client, name, ids(50 + i, 9), 6, seed=i)
            alone = turn(judge, "", client.log(name)[:-6], 6, seed=i)
            self.assertEqual(alone.ids, reply.ids)
            client.admin.CheckpointSession(admin_pb2.CheckpointSessionRequest(
                session="sessions/" + name), timeout=120)
            found = verify(client, name, replay=True)
            self.assertEqual((n_bad(found), list(found.findings)), (0, []))
            self.assertGreater(found.compared_values, 0)
        self.assertGreater(n_found, 0)


# --- measure ---

def rss_kib(pid):
    with open("/proc/%d/status" % pid) as file:
        return int(re.search(r"VmRSS:\s+(\d+)", file.read()).group(1))


def start_of(node):
    """Seconds from its start to its first answer, and what it takes then."""
    begin = time.monotonic()
    node.start()
    with node.client() as client:
        while not client.is_serving():
            time.sleep(0.001)
        seconds = time.monotonic() - begin
    time.sleep(1)  # what the start still frees
    return seconds, rss_kib(node.process.pid)


def make_sessions(client, count):
    def make(i):
        turn(client, "parked-%05d" % i, ids(i, 24 + i % 16), 2)

    with concurrent.futures.ThreadPoolExecutor(48) as pool:
        list(pool.map(make, range(count)))


def list_all(client, page_size):
    """All names, and the longest call."""
    found, token, worst = [], "", 0
    while True:
        begin = time.monotonic()
        page = client.session.ListSessions(session_pb2.ListSessionsRequest(
            page_size=page_size, page_token=token), timeout=60)
        worst = max(worst, time.monotonic() - begin)
        found += [s.name for s in page.sessions]
        token = page.next_page_token
        if not token:
            return found, worst


def p50_ms(call, count=200):
    times = []
    for i in range(count):
        begin = time.monotonic()
        call(i)
        times.append(time.monotonic() - begin)
    return statistics.median(times) * 1e3


def measure(count, kept=None):
    """Starts, memory and calls of a node with so many parked sessions, beside
    an empty one, alternately. The sessions are kept in a directory, where one
    is named, and made unless they are there."""
    with workspace() as directory:
        full = Node(os.path.join(kept or directory, "full"))
        empty = Node(os.path.join(directory, "empty"))
        if not os.path.exists(full.data):
            os.makedirs(os.path.dirname(full.data), exist_ok=True)
            with full.start().client() as client:
                make_sessions(client, count)
            full.kill()
            if kept:
                return
        rows = []
        for _ in range(5):
            for node in (empty, full):
                rows.append((node,) + start_of(node))
                node.kill()
        for node, name in ((empty, "empty"), (full, "full")):
            print("%s: ready in %.2f s (median of 5, worst %.2f), RSS %d KiB" % (
                name, statistics.median(r[1] for r in rows if r[0] is node),
                max(r[1] for r in rows if r[0] is node),
                statistics.median(r[2] for r in rows if r[0] is node)))
        more = (statistics.median(r[2] for r in rows if r[0] is full) -
                statistics.median(r[2] for r in rows if r[0] is empty))
        print("per parked session: %.0f bytes" % (more * 1024 / count))
        with full.start().client() as client:
            found, worst = list_all(client, 1000)
            assert len(found) == count == len(set(found))
            print("list, pages of 1000: longest call %.1f ms" % (worst * 1e3))
            found, worst = list_all(client, 50)
            print("list, pages of 50: longest call %.1f ms" % (worst * 1e3))
            print("get: p50 %.2f ms" % p50_ms(
                lambda i: client.session.GetSession(
                    session_pb2.GetSessionRequest(
                        name="sessions/parked-%05d" % (i * 37 % count)))))
            print("wake and one token: p50 %.2f ms" % p50_ms(
                lambda i: turn(client, "parked-%05d" % (i * 41 % count), [5],
                               1)))
        full.kill()


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(int(sys.argv[2]), *sys.argv[3:4])
    else:
        unittest.main()
