"""Our gRPC server judged by Python's grpcio, with stubs that protoc made from
the public protos: neither shares a line with rpc/. The engine behind it is
tests/unit/rpc/fake_engine.h, so every answer is known beforehand.

usage: check_server.py FAKE_SERVER      (PYTHONPATH: the build's python folder)
"""

import atexit
import os
import subprocess
import sys
import tempfile
import threading
import time

import grpc
from godwit.v1 import admin_pb2, admin_pb2_grpc
from godwit.v1 import common_pb2
from godwit.v1 import generation_pb2 as gen
from godwit.v1 import generation_pb2_grpc
from godwit.v1 import session_pb2, session_pb2_grpc
from google.protobuf import descriptor_pb2, duration_pb2, empty_pb2, field_mask_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1 import reflection_pb2

PROGRAM = sys.argv[1]


class Server:
    def __init__(self, *args):
        self.process = subprocess.Popen(
            [PROGRAM, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True)
        self.port = int(self.process.stdout.readline() or 0)
        if not self.port:
            raise AssertionError(self.process.stderr.read())
        self.errors = []
        self.reader = threading.Thread(
            target=lambda: self.errors.extend(self.process.stderr),
            daemon=True)
        atexit.register(self.process.kill)
        self.reader.start()

    def channel(self, options=()):
        channel = grpc.insecure_channel("127.0.0.1:%d" % self.port,
                                        options=list(options))
        self.generation = generation_pb2_grpc.GenerationServiceStub(channel)
        self.session = session_pb2_grpc.SessionServiceStub(channel)
        self.admin = admin_pb2_grpc.AdminServiceStub(channel)
        return channel

    def say(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def stop(self):
        self.process.stdin.close()
        code = self.process.wait(20)
        self.reader.join()
        text = "".join(self.errors)
        assert code == 0, (code, text)
        for bad in ("LeakSanitizer", "runtime error:", "ThreadSanitizer",
                    "AddressSanitizer"):
            assert bad not in text, text
        return text


def details(error):
    for key, value in error.trailing_metadata():
        if key == "grpc-status-details-bin":
            status = status_pb2.Status.FromString(value)
            assert status.code == error.code().value[0]
            assert status.message == error.details()
            found = {"trailers": dict(error.trailing_metadata())}
            for item in status.details:
                for kind in (error_details_pb2.ErrorInfo,
                             error_details_pb2.RetryInfo,
                             error_details_pb2.BadRequest):
                    if item.Is(kind.DESCRIPTOR):
                        found[kind.__name__] = kind()
                        item.Unpack(found[kind.__name__])
            return found
    raise AssertionError("no status details: %s" % error)


def fails(code, reason, call, *args, field=None, **more):
    try:
        reply = call(*args, timeout=10, **more)
        if hasattr(reply, "__iter__"):
            list(reply)
    except grpc.RpcError as error:
        assert error.code() == code, error
        found = details(error)
        info = found["ErrorInfo"]
        assert info.reason == reason, info
        assert info.domain == "godwit.v1", info
        if field:
            assert found["BadRequest"].field_violations[0].field == field
        else:
            assert "BadRequest" not in found
        return found
    raise AssertionError("succeeded")


def until(claim, what):
    for _ in range(400):
        if claim():
            return
        time.sleep(0.01)
    raise AssertionError(what)


def counters(server):
    return server.admin.GetNode(admin_pb2.GetNodeRequest(), timeout=10)


def test_generate(server):
    replies = list(server.generation.Generate(gen.GenerateRequest(
        session="sessions/a", request_id="r-1", text="hello world",
        sampling_params=gen.SamplingParams(max_tokens=2, seed=9)), timeout=10))
    kinds = [reply.WhichOneof("event") for reply in replies]
    assert kinds == ["accepted", "progress", "progress", "chunk", "chunk",
                     "complete"], kinds
    accepted = replies[0]
    assert accepted.request_id == "r-1" and accepted.session == "sessions/a"
    assert accepted.accepted.seed == 9
    n = server.generation.CountTokens(
        gen.CountTokensRequest(text="hello world"), timeout=10)
    assert accepted.position == n.token_count and n.context_length == 32768
    assert replies[1].progress.total_tokens == 2 * n.token_count
    assert replies[2].progress.elapsed.ToSeconds() == 3
    assert not replies[2].progress.HasField("estimated_remaining")
    assert [list(r.chunk.token_ids) for r in replies[3:5]] == [[0], [1]]
    assert "".join(r.chunk.text for r in replies[3:5]) == "0 1 "
    assert [r.position for r in replies[3:5]] == [100, 101]
    assert replies[4].chunk.committed_position == 102
    complete = replies[5].complete
    assert complete.finish_reason == gen.FINISH_REASON_LENGTH
    assert complete.usage.completion_tokens == 2
    assert complete.committed_position == 102
    assert complete.timing.prefill.ToSeconds() == 2
    assert complete.timing.queued.nanos == 1000
    assert complete.reuse.reason == "RESTORED"
    assert complete.reuse.restored_tokens == 7


def test_progress_is_what_was_asked(server):
    def kinds(interval):
        options = gen.PrefillOptions(progress_interval=interval)
        return [r.WhichOneof("event") for r in server.generation.Generate(
            gen.GenerateRequest(text="x", prefill=options), timeout=10)]
    none = kinds(duration_pb2.Duration())
    assert "progress" not in none and none[-1] == "complete", none
    rare = kinds(duration_pb2.Duration(seconds=3600))
    assert rare.count("progress") == 1, rare


def test_tokenize(server):
    text = "Nul \0 and naïve \U0001F600 <|im_end|>"
    ids = server.generation.Tokenize(gen.TokenizeRequest(text=text)).token_ids
    back = server.generation.Detokenize(gen.DetokenizeRequest(token_ids=ids))
    assert back.text == text, back
    plain = len(ids)
    ids = server.generation.Tokenize(gen.TokenizeRequest(
        text=text, parse_special_tokens=True)).token_ids
    assert len(ids) < plain
    messages = common_pb2.Messages(messages=[common_pb2.Message(
        role="user", content="hi <|im_end|>")])
    with_opening = server.generation.Tokenize(
        gen.TokenizeRequest(messages=messages)).token_ids
    messages.add_generation_prompt = False
    without = server.generation.Tokenize(
        gen.TokenizeRequest(messages=messages)).token_ids
    assert list(with_opening)[:len(without)] == list(without)
    assert len(with_opening) > len(without)


def test_sessions(server):
    made = server.session.CreateSession(session_pb2.CreateSessionRequest(
        session_id="new.one"), timeout=10)
    assert made.name == "sessions/new.one" and made.etag == "e-1"
    assert made.state == session_pb2.Session.IDLE
    assert made.model == "godwit-tiny" and made.kv_bytes == 4096
    assert made.create_time.ToMilliseconds() == 1700000000123
    assert made.durability == common_pb2.DURABILITY_LOCAL
    assert len(made.uid) == 36
    got = server.session.GetSession(
        session_pb2.GetSessionRequest(name="sessions/x"), timeout=10)
    assert got.name == "sessions/x"
    changed = server.session.UpdateSession(session_pb2.UpdateSessionRequest(
        session=session_pb2.Session(name="sessions/y"),
        update_mask=field_mask_pb2.FieldMask(paths=["labels"])), timeout=10)
    assert changed.name == "sessions/y"
    gone = server.session.DeleteSession(
        session_pb2.DeleteSessionRequest(name="sessions/x"), timeout=10)
    assert gone == empty_pb2.Empty()
    log = list(server.session.ReadTokens(session_pb2.ReadTokensRequest(
        session="sessions/x", from_position=5), timeout=10))
    assert len(log) == 1 and log[0].position == 5
    assert list(log[0].token_ids) == [7, 8, 9]
    point = server.admin.CheckpointSession(
        admin_pb2.CheckpointSessionRequest(session="sessions/x"), timeout=10)
    assert point.position == 64 and point.session == "sessions/x"
    assert server.generation.CancelGeneration(
        gen.CancelGenerationRequest(request_id="r"), timeout=10) is not None


def test_pages(server):
    names, token, n_page = [], "", 0
    for n_page in range(1, 11):
        page = server.session.ListSessions(session_pb2.ListSessionsRequest(
            page_size=2, page_token=token), timeout=10)
        names += [s.name for s in page.sessions]
        assert page.total_size == 5
        token = page.next_page_token
        if not token:
            break
    assert names == ["sessions/s%d" % i for i in range(5)], names
    assert n_page == 3, n_page
    page = server.session.ListSessions(
        session_pb2.ListSessionsRequest(page_size=2), timeout=10)
    fails(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT",
          server.session.ListSessions, session_pb2.ListSessionsRequest(
              page_token=page.next_page_token,
              filter='name = "sessions/s*"'), field="page_token")


def test_node(server):
    node = server.admin.GetNode(
        admin_pb2.GetNodeRequest(name="nodes/fake"), timeout=10)
    assert node.name == "nodes/fake" and node.state == admin_pb2.Node.READY
    assert node.model == "godwit-tiny" and node.architecture == "llama"


def test_append(server):
    operation = server.session.AppendTokens(session_pb2.AppendTokensRequest(
        session="sessions/a", request_id="op7",
        tokenized=common_pb2.TokenizedInput(input_ids=[1, 2, 3])), timeout=10)
    assert operation.done and operation.name == "operations/op7"
    session = session_pb2.Session()
    assert operation.response.Unpack(session)
    assert session.name == "sessions/a" and session.position == 100


def test_errors(server):
    generate = server.generation.Generate
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    fails(grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND", generate,
          gen.GenerateRequest(session="sessions/missing", text="x"))
    found = fails(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", generate,
                  gen.GenerateRequest(session="sessions/busy", text="x"))
    assert found["RetryInfo"].retry_delay.ToMilliseconds() == 1500
    assert found["trailers"]["grpc-retry-pushback-ms"] == "1500"
    fails(invalid, "SAMPLING_OUT_OF_RANGE", generate, gen.GenerateRequest(
        text="x", sampling_params=gen.SamplingParams(top_p=1.5)),
        field="sampling_params.top_p")
    fails(invalid, "EMPTY_INPUT", generate, gen.GenerateRequest(),
          field="input")
    fails(grpc.StatusCode.UNIMPLEMENTED, "NOT_IN_THIS_BUILD",
          server.admin.GetCluster, admin_pb2.GetClusterRequest())
    fails(invalid, "INVALID_ARGUMENT", server.session.ImportSession, iter([]))
    fails(grpc.StatusCode.UNIMPLEMENTED, "NOT_IN_THIS_BUILD",
          server.admin.DrainNode, admin_pb2.DrainNodeRequest())
    fails(grpc.StatusCode.NOT_FOUND, "NODE_NOT_FOUND", server.admin.GetNode,
          admin_pb2.GetNodeRequest(name="nodes/other"), field="name")


def test_raw(server, channel):
    def raw(method, request):
        return channel.unary_unary(method)(request, timeout=10)
    generate = "/godwit.v1.GenerationService/Generate"
    for request, field in ((b"\x2a\x02\xff\xfe", "text"),      # not UTF-8
                           (b"\x0a\x0asessions/\x00", "session"),
                           (b"\x0a\xff", None),                # cut off
                           (b"\x2b\x2c", None)):               # a group
        try:
            raw(generate, request)
            raise AssertionError(request)
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
            found = details(error)
            if field:
                violation = found["BadRequest"].field_violations[0]
                assert violation.field == field, violation
    for method in ("/godwit.v1.GenerationService/Nothing", "/x", "/"):
        try:
            raw(method, b"")
            raise AssertionError(method)
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error
            assert details(error)["ErrorInfo"].reason == "UNKNOWN_METHOD"
    try:
        raw(generate, b"\x2a\x80\x80\x80\x01" + bytes(2 << 20))
        raise AssertionError("2 MiB were taken, the limit is 1 MiB")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, error
    raw("/grpc.health.v1.Health/Check", b"")  # the node serves on


def test_health(server, channel):
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString)
    for name in ("", "godwit.v1.GenerationService", "godwit.v1.SessionService"):
        reply = check(health_pb2.HealthCheckRequest(service=name), timeout=10)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
    fails(grpc.StatusCode.NOT_FOUND, "SERVICE_NOT_FOUND", check,
          health_pb2.HealthCheckRequest(service="nothing"), field="service")


def watch(channel, name):
    return channel.unary_stream(
        "/grpc.health.v1.Health/Watch",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString)(
            health_pb2.HealthCheckRequest(service=name), timeout=20)


def test_reflection(channel):
    for version in ("v1", "v1alpha"):
        ask = channel.stream_stream(
            "/grpc.reflection.%s.ServerReflection/ServerReflectionInfo" % version,
            request_serializer=
            reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=
            reflection_pb2.ServerReflectionResponse.FromString)
        request = reflection_pb2.ServerReflectionRequest
        listed, by_symbol, by_method, by_name, missing = ask(iter([
            request(list_services=""),
            request(file_containing_symbol="godwit.v1.SessionService"),
            request(file_containing_symbol="godwit.v1.SessionService.GetSession"),
            request(file_by_filename="google/rpc/status.proto"),
            request(file_containing_symbol="godwit.v1.Nothing")]), timeout=10)
        names = {s.name for s in listed.list_services_response.service}
        assert {"godwit.v1.GenerationService", "godwit.v1.SessionService",
                "godwit.v1.AdminService", "grpc.health.v1.Health",
                "grpc.reflection.v1.ServerReflection"} <= names, names
        files = [descriptor_pb2.FileDescriptorProto.FromString(item) for item
                 in by_symbol.file_descriptor_response.file_descriptor_proto]
        assert files[0].name == "godwit/v1/session.proto"
        have = {file.name for file in files}
        assert all(name in have for file in files for name in file.dependency)
        want = descriptor_pb2.FileDescriptorProto()
        session_pb2.DESCRIPTOR.CopyToProto(want)
        assert files[0].service == want.service
        assert by_method.file_descriptor_response == \
            by_symbol.file_descriptor_response
        assert by_name.HasField("file_descriptor_response")
        assert missing.error_response.error_code == 5
        assert by_symbol.original_request.file_containing_symbol == \
            "godwit.v1.SessionService"


def test_deadline(server):
    node = server.admin.GetNode(admin_pb2.GetNodeRequest(), timeout=30)
    # gRPC rounds a timeout up for the wire.
    assert 20000 < node.waiting_requests <= 31000, node.waiting_requests
    before = counters(server).steps_total
    try:
        list(server.generation.Generate(gen.GenerateRequest(
            session="sessions/silent", text="x"), timeout=0.3))
        raise AssertionError("no deadline")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
    until(lambda: counters(server).steps_total == before + 1,
          "the engine was not told that the reader is gone")


def test_cancel(server):
    before = counters(server).steps_total
    call = server.generation.Generate(gen.GenerateRequest(
        session="sessions/silent", text="x"), timeout=30)
    next(call)
    call.cancel()
    until(lambda: counters(server).steps_total == before + 1,
          "the engine was not told of the cancellation")
    until(lambda: counters(server).running_requests == 0, "it runs on")


def test_slow_reader(server):
    """40 MB for a client that does not read at first: it is paused, costs
    nobody else anything, resumes, and gets every token in order."""
    n = 10000
    before = counters(server)
    call = server.generation.Generate(gen.GenerateRequest(
        session="sessions/large", text="x",
        sampling_params=gen.SamplingParams(max_tokens=n)), timeout=60)
    assert next(call).WhichOneof("event") == "accepted"
    until(lambda: counters(server).prompt_tokens_total >
          before.prompt_tokens_total, "the engine was not paused")
    test_generate(server)
    ids = [i for r in call for i in r.chunk.token_ids]
    assert ids == list(range(n)), len(ids)
    after = counters(server)
    assert after.generated_tokens_total > before.generated_tokens_total
    assert after.steps_total == before.steps_total


def test_too_slow_reader(server):
    """An engine that does not obey the pause: the call is ended, not the node."""
    before = counters(server).steps_total
    call = server.generation.Generate(gen.GenerateRequest(
        session="sessions/deaf", text="x",
        sampling_params=gen.SamplingParams(max_tokens=1000000)), timeout=60)
    next(call)
    until(lambda: counters(server).steps_total == before + 1, "not detached")
    try:
        for _ in call:
            pass
        raise AssertionError("completed")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, error
        assert details(error)["ErrorInfo"].reason == "SLOW_READER"


def test_drain(server, channel):
    watches = [watch(channel, name) for name in ("", "nothing")]
    first = [next(w).status for w in watches]
    status = health_pb2.HealthCheckResponse
    assert first == [status.SERVING, status.SERVICE_UNKNOWN], first
    running = server.generation.Generate(gen.GenerateRequest(
        session="sessions/large", text="x",
        sampling_params=gen.SamplingParams(max_tokens=10000)), timeout=60)
    next(running)
    server.say("drain")
    assert next(watches[0]).status == status.NOT_SERVING
    try:
        next(watches[0])
        raise AssertionError("the watch goes on")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.UNAVAILABLE, error
    found = fails(grpc.StatusCode.UNAVAILABLE, "NODE_DRAINING",
                  server.generation.Generate, gen.GenerateRequest(text="x"))
    assert found["RetryInfo"].retry_delay.ToMilliseconds() == 1000
    check = channel.unary_unary("/grpc.health.v1.Health/Check")
    assert check(b"", timeout=10) == b"\x08\x02"
    assert sum(len(r.chunk.token_ids) for r in running) == 10000


def test_stop_answers_all(program_args=()):
    """What the engine never answered ends with UNAVAILABLE, at once."""
    server = Server(*program_args)
    channel = server.channel()
    call = server.generation.Generate(gen.GenerateRequest(
        session="sessions/silent", text="x"), timeout=30)
    next(call)
    start = time.monotonic()
    server.process.stdin.close()
    try:
        for _ in call:
            pass
        raise AssertionError("completed")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.UNAVAILABLE, error
        assert details(error)["ErrorInfo"].reason == "NODE_DRAINING"
    assert server.process.wait(20) == 0
    assert time.monotonic() - start < 5
    server.reader.join()
    channel.close()


def make_certificates(folder):
    def openssl(*args):
        subprocess.run(["openssl", *args], cwd=folder, check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with open(os.path.join(folder, "san"), "w", encoding="ascii") as file:
        file.write("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    for ca in ("ca", "foreign"):
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt",
                "ec_paramgen_curve:P-256", "-nodes", "-keyout", ca + ".key",
                "-out", ca + ".pem", "-days", "2", "-subj", "/CN=" + ca)
    for name, ca in (("server", "ca"), ("client", "ca"), ("other", "foreign")):
        openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
                "-nodes", "-keyout", name + ".key", "-out", name + ".csr",
                "-subj", "/CN=" + name)
        openssl("x509", "-req", "-in", name + ".csr", "-CA", ca + ".pem",
                "-CAkey", ca + ".key", "-CAcreateserial", "-out",
                name + ".pem", "-days", "2", "-extfile", "san")


def test_tls():
    with tempfile.TemporaryDirectory() as folder:
        make_certificates(folder)

        def path(name):
            return os.path.join(folder, name)

        def read(name):
            with open(path(name), "rb") as file:
                return file.read()

        def call(server, *credentials):
            with grpc.secure_channel(
                    "127.0.0.1:%d" % server.port,
                    grpc.ssl_channel_credentials(*credentials)) as channel:
                return channel.unary_unary("/grpc.health.v1.Health/Check")(
                    b"", timeout=5)

        def refused(server, *credentials):
            try:
                call(server, *credentials)
            except grpc.RpcError as error:
                assert error.code() in (grpc.StatusCode.UNAVAILABLE,
                                        grpc.StatusCode.DEADLINE_EXCEEDED), error
                return
            raise AssertionError("not refused")

        server = Server(path("server.pem"), path("server.key"))
        assert call(server, read("ca.pem")) == b"\x08\x01"
        refused(server, read("foreign.pem"))
        server.stop()

        server = Server(path("server.pem"), path("server.key"), path("ca.pem"))
        own = (read("client.key"), read("client.pem"))
        assert call(server, read("ca.pem"), *own) == b"\x08\x01"
        refused(server, read("ca.pem"))
        refused(server, read("ca.pem"), read("other.key"), read("other.pem"))
        server.stop()

        for args, text in (
                ((path("none.pem"), path("server.key")), "No such file"),
                ((path("server.pem"), path("client.key")), "do not match"),
                ((path("server.key"), path("server.key")), "no PEM block"),
                ((path("server.pem"),), "without its key")):
            done = subprocess.run([PROGRAM, *args], capture_output=True,
                                  text=True, timeout=20, stdin=subprocess.DEVNULL)
            assert done.returncode == 1 and text in done.stderr, done


def main():
    server = Server()
    channel = server.channel()
    for test in (test_generate, test_progress_is_what_was_asked, test_tokenize,
                 test_sessions, test_pages, test_node, test_append, test_errors,
                 test_deadline, test_cancel, test_slow_reader,
                 test_too_slow_reader):
        start = time.monotonic()
        test(server)
        print("%-34s %5.2f s" % (test.__name__, time.monotonic() - start))
    test_raw(server, channel)
    test_health(server, channel)
    test_reflection(channel)
    test_drain(server, channel)
    channel.close()
    server.stop()
    test_stop_answers_all()
    test_tls()
    print("ok")


main()
