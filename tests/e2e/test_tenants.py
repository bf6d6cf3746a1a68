"""Two tenants, one without a name and an operator against every method that
names a session, by Python's grpcio: another's session is as if it were not
there. The table must have every method of the public protos."""

import json
import unittest

import grpc
from google.protobuf import field_mask_pb2

from godwit.v1 import admin_pb2, admin_pb2_grpc, session_pb2
from harness import (Metadata, NodeTests, await_true, ctl, gen, greedy,
                     tokens)

Code = grpc.StatusCode
S = "sessions/s"


def generate(client, session=S, count=8, creates=False, **more):
    return client.generate(gen.GenerateRequest(
        session=session, create_session=creates,
        tokenized=tokens([644, 2392] * 40), sampling_params=greedy(count),
        **more))


def import_(client, bundle, name):
    return client.session.ImportSession(iter([
        session_pb2.SessionChunk(data=bundle, options=session_pb2.ImportOptions(
            session_id=name))]), timeout=60)


def export(client, name=S, **options):
    return b"".join(piece.data for piece in client.session.ExportSession(
        session_pb2.ExportSessionRequest(session=name, **options), timeout=60))


# Each names S; the last one deletes it.
NAMING = {
    "Generate": generate,
    "CancelGeneration": lambda c: c.generation.CancelGeneration(
        gen.CancelGenerationRequest(session=S)),
    "GetSession": lambda c: c.session.GetSession(
        session_pb2.GetSessionRequest(name=S)),
    "UpdateSession": lambda c: c.session.UpdateSession(
        session_pb2.UpdateSessionRequest(
            session=session_pb2.Session(name=S, pinned=True),
            update_mask=field_mask_pb2.FieldMask(paths=["pinned"]))),
    "AppendTokens": lambda c: c.session.AppendTokens(
        session_pb2.AppendTokensRequest(session=S, tokenized=tokens([1, 2]))),
    "ReadTokens": lambda c: c.log("s"),
    "ForkSession": lambda c: c.session.ForkSession(
        session_pb2.ForkSessionRequest(session=S)),
    "TruncateSession": lambda c: c.session.TruncateSession(
        session_pb2.TruncateSessionRequest(session=S, position=10)),
    "VerifySession": lambda c: c.session.VerifySession(
        session_pb2.VerifySessionRequest(session=S)),
    "ListCheckpoints": lambda c: c.session.ListCheckpoints(
        session_pb2.ListCheckpointsRequest(session=S)),
    "ParkSession": lambda c: c.session.ParkSession(
        session_pb2.ParkSessionRequest(session=S)),
    "ExportSession": export,
    "CheckpointSession": lambda c: c.admin.CheckpointSession(
        admin_pb2.CheckpointSessionRequest(session=S)),
    "InspectSession": lambda c: c.admin.InspectSession(
        admin_pb2.InspectSessionRequest(session=S)),
    "DeleteSession": lambda c: c.session.DeleteSession(
        session_pb2.DeleteSessionRequest(name=S)),
}
# Name no session that exists, or are not in this build.
OTHERS = {"CountTokens", "Tokenize", "Detokenize", "CreateSession",
          "ListSessions", "ImportSession", "GetNode", "GetCluster", "ListNodes",
          "CordonNode", "UncordonNode", "DrainNode", "DecommissionNode",
          "MigrateSession", "WatchEvents"}


def names(client):
    answer = client.session.ListSessions(session_pb2.ListSessionsRequest())
    found = [session.name for session in answer.sessions]
    assert answer.total_size == len(found)
    return found


class Tenants(NodeTests, unittest.TestCase):

    OPTIONS = ("--operators",)

    def setUp(self):
        self.of = {tenant: self.node.client(tenant=tenant)
                   for tenant in ("ann", "bob", "*")}
        self.of[""] = self.client

    def tearDown(self):
        for tenant in ("ann", "bob", "*"):
            self.of[tenant].close()

    def test_the_table_has_every_method(self):
        methods = [method.name
                   for file in (gen, session_pb2, admin_pb2)
                   for service in file.DESCRIPTOR.services_by_name.values()
                   for method in service.methods]
        self.assertEqual(sorted(methods), sorted(list(NAMING) + list(OTHERS)))

    def strangers(self, owner):
        for tenant in ("ann", "bob", ""):
            if tenant == owner:
                continue
            client = self.of[tenant]
            for method, call in NAMING.items():
                with self.subTest(owner=owner, stranger=tenant, method=method):
                    self.assertFails(
                        Code.NOT_FOUND, lambda: call(client),
                        "REQUEST_UNKNOWN" if method == "CancelGeneration"
                        else "SESSION_NOT_FOUND")
            self.assertNotIn(S, names(client))
            client.session.DeleteSession(session_pb2.DeleteSessionRequest(
                name=S, allow_missing=True))  # nothing to it
            for make in (lambda: generate(client, creates=True),
                         lambda: client.session.CreateSession(
                             session_pb2.CreateSessionRequest(session_id="s")),
                         lambda: import_(client, self.bundle, "s")):
                self.assertFails(Code.ALREADY_EXISTS, make, "SESSION_EXISTS")

    def test_anothers_session_is_as_if_it_were_not_there(self):
        generate(self.client, "sessions/plain", creates=True)
        self.bundle = export(self.client, "sessions/plain")
        for owner in ("ann", "bob", ""):
            client = self.of[owner]
            generate(client, creates=True)
            log = client.log("s")
            self.strangers(owner)
            client.session.ParkSession(session_pb2.ParkSessionRequest(session=S))
            self.strangers(owner)
            self.assertEqual(client.log("s"), log)
            self.assertIn(S, names(client))
            self.assertIn(S, names(self.of["*"]))
            for method, call in NAMING.items():
                with self.subTest(owner=owner, method=method):
                    if method == "CancelGeneration":
                        self.assertFails(Code.NOT_FOUND, lambda: call(client),
                                         "REQUEST_UNKNOWN")
                    else:
                        call(client)
            for name in names(client):  # of the fork
                if name != "sessions/plain":
                    client.session.DeleteSession(
                        session_pb2.DeleteSessionRequest(name=name))

    def test_a_running_reply_is_its_tenants(self):
        client, other = self.of["ann"], self.of["bob"]
        stream = client.generation.Generate(gen.GenerateRequest(
            session="sessions/long", create_session=True, request_id="r-1",
            tokenized=tokens([644, 2392]), sampling_params=greedy(4000)))
        while next(stream).WhichOneof("event") != "chunk":
            pass
        for session in ("", "sessions/long"):
            self.assertFails(
                Code.NOT_FOUND,
                lambda: other.generation.CancelGeneration(
                    gen.CancelGenerationRequest(session=session,
                                                request_id="r-1")),
                "REQUEST_UNKNOWN")
        self.assertFails(Code.NOT_FOUND,
                         lambda: generate(other, "sessions/long",
                                          request_id="r-1"),
                         "SESSION_NOT_FOUND")
        client.generation.CancelGeneration(
            gen.CancelGenerationRequest(request_id="r-1"))
        last = None
        for message in stream:
            last = message
        self.assertEqual(last.complete.finish_reason,
                         gen.FINISH_REASON_CANCELLED)

    def test_no_hit_is_shared(self):
        def cached(tenant):
            reply = self.of[tenant].generate(gen.GenerateRequest(
                tokenized=tokens([7, 8, 9, 10] * 120),
                sampling_params=greedy(2)))
            return reply.complete.reuse.matched_tokens

        self.assertEqual(cached("ann"), 0)
        await_true(lambda: cached("ann") > 0, "the prefix is stored")
        self.assertEqual(cached("bob"), 0)
        self.assertEqual(cached(""), 0)

    def test_the_field_and_the_metadata_say_the_same(self):
        generate(self.of["ann"], "sessions/both", creates=True, tenant="ann")
        generate(self.client, "sessions/both", tenant="ann")  # as ever
        self.assertFails(Code.INVALID_ARGUMENT,
                         lambda: generate(self.of["ann"], "sessions/both",
                                          tenant="bob"), "TENANT_CONFLICT")
        self.assertFails(Code.INVALID_ARGUMENT,
                         lambda: generate(self.client, "sessions/both",
                                          tenant="*"))
        self.assertFails(Code.INVALID_ARGUMENT,
                         lambda: generate(self.of["*"], "sessions/both"))
        with self.node.client(tenant="x" * 64) as client:
            self.assertFails(Code.INVALID_ARGUMENT, lambda: names(client))
        twice = grpc.intercept_channel(
            self.client.connection, Metadata(("godwit-tenant", "ann"),
                                             ("godwit-tenant", "bob")))
        stub = admin_pb2_grpc.AdminServiceStub(twice)
        self.assertFails(Code.INVALID_ARGUMENT, lambda: stub.InspectSession(
            admin_pb2.InspectSessionRequest(session="sessions/both")))

    def test_the_command_line(self):
        generate(self.of["ann"], "sessions/anns", creates=True)
        for words, code in (((), 3), (("--tenant", "bob"), 3),
                            (("--tenant", "ann"), 0), (("--tenant", "*"), 0)):
            run = ctl(self.node.endpoint, "session", "get", "anns", "--output",
                      "json", *words)
            self.assertEqual(run.code, code, run.err)
            if code == 0:
                self.assertEqual(json.loads(run.out)["tenant"], "ann")
        run = ctl(self.node.endpoint, "session", "get", "anns", "--tenant",
                  "f\u00fcnf")
        self.assertEqual(run.code, 2, run.err)


class NoOperators(NodeTests, unittest.TestCase):

    def test_nobody_is_one_unless_the_node_says_so(self):
        with self.node.client(tenant="ann") as client:
            generate(client, creates=True)
        with self.node.client(tenant="*") as client:
            for method, call in NAMING.items():
                with self.subTest(method=method):
                    self.assertFails(Code.PERMISSION_DENIED,
                                     lambda: call(client), "OPERATOR_REFUSED")
            self.assertFails(Code.PERMISSION_DENIED, lambda: names(client),
                             "OPERATOR_REFUSED")


if __name__ == "__main__":
    unittest.main()
