"""Start, stop and kill a real godwitd, and talk to it with Python's grpcio.

The client shares no line with ours: messages come from the public protos, the
transport is gRPC's own. Only loopback, only a temporary data directory; every
wait has a limit. Environment, set by tests.cmake:
  GODWITD, GODWITCTL   the programs
  GODWIT_TEST_MODEL    the model's directory
  PYTHONPATH           the generated stubs
"""

import collections
import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from godwit.v1 import admin_pb2_grpc, common_pb2
from godwit.v1 import generation_pb2 as gen
from godwit.v1 import generation_pb2_grpc, session_pb2_grpc

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
GODWITD = os.environ.get("GODWITD", os.path.join(ROOT, "build/godwitd"))
GODWITCTL = os.environ.get("GODWITCTL", os.path.join(ROOT, "build/godwitctl"))
MODEL = os.environ.get("GODWIT_TEST_MODEL",
                       os.path.join(ROOT, "assets/models/godwit-tiny"))
CASES = os.path.join(ROOT, "tests/golden/godwit-tiny/cases.json")

START_S = float(os.environ.get("GODWIT_TEST_START_S", "60"))
CALL_S = float(os.environ.get("GODWIT_TEST_CALL_S", "60"))
CHANNEL = [("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1),
           ("grpc.max_send_message_length", -1),
           # A node that was killed comes back at once: do not back off.
           ("grpc.initial_reconnect_backoff_ms", 20),
           ("grpc.min_reconnect_backoff_ms", 5000),  # of one attempt
           ("grpc.max_reconnect_backoff_ms", 100),
           # Every channel its own connection.
           ("grpc.use_local_subchannel_pool", 1)]


class NodeError(Exception):
    """The node did not start, or not stop, as it should."""


class Metadata(grpc.UnaryUnaryClientInterceptor,
               grpc.UnaryStreamClientInterceptor,
               grpc.StreamUnaryClientInterceptor):
    """Says the same in each call, whatever its method."""

    def __init__(self, *pairs):
        self.pairs = pairs

    def say(self, go_on, details, request):
        return go_on(details._replace(
            metadata=tuple(details.metadata or ()) + self.pairs), request)

    intercept_unary_unary = intercept_unary_stream = say
    intercept_stream_unary = say


class Client:
    """One connection and its stubs, of a tenant or of nobody."""

    def __init__(self, endpoint, credentials=None, options=(), tenant=None):
        if credentials is None:
            self.connection = grpc.insecure_channel(endpoint,
                                                    CHANNEL + list(options))
        else:
            self.connection = grpc.secure_channel(endpoint, credentials,
                                                  CHANNEL + list(options))
        self.channel = self.connection
        if tenant is not None:
            self.channel = grpc.intercept_channel(
                self.connection, Metadata(("godwit-tenant", tenant)))
        self.generation = generation_pb2_grpc.GenerationServiceStub(self.channel)
        self.session = session_pb2_grpc.SessionServiceStub(self.channel)
        self.admin = admin_pb2_grpc.AdminServiceStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)

    def close(self):
        self.connection.close()

    def __enter__(self):
        return self

    def __exit__(self, *what):
        self.close()

    def is_serving(self, service="", timeout=2):
        try:
            answer = self.health.Check(
                health_pb2.HealthCheckRequest(service=service), timeout=timeout)
        except grpc.RpcError:
            return False
        return answer.status == health_pb2.HealthCheckResponse.SERVING

    def generate(self, request, timeout=CALL_S):
        """The whole reply as a Reply."""
        return read_reply(self.generation.Generate(request, timeout=timeout),
                          Reply(request.HasField("resume_from_position")))

    def log(self, session, first=0, count=0, timeout=CALL_S):
        """The committed token ids of a session."""
        from godwit.v1 import session_pb2
        ids = []
        for piece in self.session.ReadTokens(session_pb2.ReadTokensRequest(
                session="sessions/" + session, from_position=first,
                max_tokens=count), timeout=timeout):
            assert piece.position == first + len(ids), "pieces do not join"
            ids.extend(piece.token_ids)
        return ids


class Node:
    """A godwitd process on a port of its own."""

    def __init__(self, data, options=(), model=MODEL, environment=None):
        self.data = data
        self.model = model
        self.options = list(options)
        self.environment = dict(os.environ, **(environment or {}))
        self.log_path = data.rstrip("/") + ".log"
        self.process = None
        self.port = 0
        self.log_start = 0

    @property
    def endpoint(self):
        return "127.0.0.1:%d" % self.port

    def spawn(self, listen="127.0.0.1:0"):
        """Start it without waiting; its log is appended to log_path."""
        self.log_start = (os.path.getsize(self.log_path)
                          if os.path.exists(self.log_path) else 0)
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                [GODWITD, "--model", self.model, "--data", self.data,
                 "--listen", listen] + self.options,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=self.environment)

    def read_log(self):
        """What this process has written."""
        with open(self.log_path, "rb") as log:
            log.seek(self.log_start)
            return log.read().decode("utf-8", "replace")

    def await_port(self):
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            match = re.search(r"serving .* on port (\d+)", self.read_log())
            if match:
                self.port = int(match.group(1))
                return
            if self.process.poll() is not None:
                raise NodeError("godwitd ended with %d:\n%s" %
                                (self.process.returncode, self.read_log()))
            time.sleep(0.01)
        raise NodeError("godwitd did not serve within %g s:\n%s" %
                        (START_S, self.read_log()))

    def start(self, listen="127.0.0.1:0"):
        self.spawn(listen)
        self.await_port()
        return self

    def client(self, *arguments, **options):
        return Client(self.endpoint, *arguments, **options)

    def stop(self, timeout=60):
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise NodeError("godwitd did not stop within %g s:\n%s" %
                            (timeout, self.read_log()))

    def kill(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait(30)


@contextlib.contextmanager
def workspace():
    """A temporary directory that goes away, unless GODWIT_TEST_KEEP is set."""
    path = tempfile.mkdtemp(prefix="godwit-e2e-")
    try:
        yield path
    finally:
        if not os.environ.get("GODWIT_TEST_KEEP"):
            shutil.rmtree(path, ignore_errors=True)


class NodeTests:
    """Mixin: one node for all tests of a class."""

    OPTIONS = ()

    @classmethod
    def setUpClass(cls):
        cls.workspace = workspace()
        cls.directory = cls.workspace.__enter__()
        cls.node = Node(os.path.join(cls.directory, "data"), cls.OPTIONS)
        try:
            cls.node.start()
        except BaseException:
            cls.tearDownClass()
            raise
        cls.client = cls.node.client()

    @classmethod
    def tearDownClass(cls):
        if hasattr(cls, "client"):
            cls.client.close()
        cls.node.kill()
        cls.workspace.__exit__(None, None, None)

    def assertFails(self, code, call, reason=None):
        """`call` fails with this gRPC code and ErrorInfo reason; the text."""
        with self.assertRaises(grpc.RpcError) as caught:
            call()
        self.assertEqual(caught.exception.code(), code, caught.exception.details())
        found = error_info(caught.exception)
        if reason is not None:
            self.assertIsNotNone(found, "no ErrorInfo: %s" %
                                 caught.exception.details())
            self.assertEqual(found.reason, reason, caught.exception.details())
            self.assertEqual(found.domain, "godwit.v1")
        self.assertTrue(caught.exception.details(), "an error says why")
        return caught.exception.details()

    def assertServes(self):
        """The node still does its work, and the same as ever."""
        reply = self.client.generate(gen.GenerateRequest(
            tokenized=tokens([644, 2392]), sampling_params=greedy(4)))
        self.assertEqual(reply.ids, [11, 283, 265, 2392])


class Reply:
    """A reply put together, held to the contract of the stream."""

    def __init__(self, is_resumed=False):
        self.is_resumed = is_resumed  # known tokens may come before a prefill
        self.accepted = None
        self.session = ""
        self.request_id = ""
        self.position = None  # of the first input token
        self.progress = []
        self.first = None  # position of the first token that was sent
        self.ids = []
        self.text = ""
        self.logprobs = []
        self.complete = None
        self.end = None

    def take(self, message):
        kind = message.WhichOneof("event")
        assert self.complete is None, "nothing follows the completion"
        assert (kind == "accepted") == (self.accepted is None), \
            "Accepted comes first and once, got %s" % kind
        if kind == "accepted":
            self.accepted = message.accepted
            self.session = message.session
            self.request_id = message.request_id
            self.position = message.position
        elif kind == "progress":
            progress = message.progress
            assert self.is_resumed or not self.ids, \
                "prefill is over when tokens come"
            assert progress.cached_tokens <= progress.processed_tokens
            assert progress.processed_tokens <= progress.total_tokens
            if self.progress:
                assert (progress.processed_tokens >=
                        self.progress[-1].processed_tokens)
            self.progress.append(progress)
        elif kind == "chunk":
            if self.first is None:
                self.first = message.position
            assert message.position == self.first + len(self.ids), \
                "token %d is missing, got %d" % (self.first + len(self.ids),
                                                 message.position)
            self.ids.extend(message.chunk.token_ids)
            self.text += message.chunk.text
            self.logprobs.extend(message.chunk.logprobs)
            assert (message.chunk.committed_position >=
                    message.position + len(message.chunk.token_ids)), \
                "only committed tokens are sent"
        elif kind == "complete":
            self.complete = message.complete
            self.end = message.position
        return kind


def read_reply(stream, into=None):
    reply = into or Reply()
    for message in stream:
        reply.take(message)
    assert reply.complete is not None, "a reply ends with its completion"
    return reply


def error_info(error):
    """The one google.rpc.ErrorInfo of a failed call, or None."""
    found = details_of(error, error_details_pb2.ErrorInfo)
    assert len(found) <= 1, "exactly one ErrorInfo"
    return found[0] if found else None


def details_of(error, kind):
    out = []
    for key, value in error.trailing_metadata() or ():
        if key != "grpc-status-details-bin":
            continue
        status = status_pb2.Status.FromString(value)
        assert status.code == error.code().value[0]
        for detail in status.details:
            if detail.Is(kind.DESCRIPTOR):
                message = kind()
                detail.Unpack(message)
                out.append(message)
    return out


def tokens(ids):
    return common_pb2.TokenizedInput(input_ids=ids)


def messages(*pairs):
    return common_pb2.Messages(messages=[
        common_pb2.Message(role=role, content=content) for role, content in pairs])


def greedy(count, **more):
    return gen.SamplingParams(temperature=0, max_tokens=count, ignore_eos=True,
                              **more)


def sampled(count, seed, **more):
    return gen.SamplingParams(temperature=0.9, top_p=0.95, max_tokens=count,
                              ignore_eos=True, seed=seed, **more)


def await_true(claim, what, timeout=20):
    """Poll until claim() holds."""
    end = time.monotonic() + timeout
    while not claim():
        if time.monotonic() > end:
            raise AssertionError("not within %g s: %s" % (timeout, what))
        time.sleep(0.01)


Run = collections.namedtuple("Run", "code out err")


def ctl(endpoint, *words, stdin=None, timeout=120, environment=None):
    """Run godwitctl to its end."""
    done = subprocess.run(
        [GODWITCTL, "--endpoint", endpoint] + list(words), timeout=timeout,
        input=stdin, stdin=None if stdin is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=dict(os.environ, **(environment or {})), check=False)
    return Run(done.returncode, done.stdout.decode("utf-8"),
               done.stderr.decode("utf-8", "replace"))


def certificates(directory):
    """ca, server, client and an unrelated `foreign`, each .pem and .key."""
    def openssl(*words):
        subprocess.run(("openssl",) + words, cwd=directory, check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    with open(os.path.join(directory, "san"), "w") as file:
        file.write("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    for name in ("ca", "foreign"):
        openssl("req", "-x509", *key, "-keyout", name + ".key", "-out",
                name + ".pem", "-subj", "/CN=" + name, "-days", "2")
    for name in ("server", "client"):
        openssl("req", *key, "-keyout", name + ".key", "-out", name + ".csr",
                "-subj", "/CN=" + name)
        openssl("x509", "-req", "-in", name + ".csr", "-CA", "ca.pem", "-CAkey",
                "ca.key", "-CAcreateserial", "-extfile", "san", "-days", "2",
                "-out", name + ".pem")


def read_bytes(*path):
    with open(os.path.join(*path), "rb") as file:
        return file.read()
