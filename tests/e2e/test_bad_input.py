"""Whatever comes in, the answer is a clear error and the node serves on.

Each row says what is sent, and which gRPC code and ErrorInfo reason (or exit
code and words on stderr) must come back. After each row the node gives a reply
that is known from tests/golden.
"""

import os
import random
import shutil
import socket
import subprocess
import unittest

import grpc

from godwit.v1 import admin_pb2, common_pb2
from godwit.v1 import generation_pb2 as gen
from godwit.v1 import session_pb2
from harness import (GODWITD, MODEL, Node, NodeTests, details_of, error_info,
                     greedy, messages, tokens, workspace)

Code = grpc.StatusCode
GENERATE = "/godwit.v1.GenerationService/Generate"
TOKENIZE = "/godwit.v1.GenerationService/Tokenize"
N_VOCAB = 4096


def delimited(number, body):
    """A length-delimited protobuf field, of any bytes."""
    n, size = len(body), b""
    while n > 127:
        size += bytes([n & 127 | 128])
        n >>= 7
    return bytes([number << 3 | 2]) + size + bytes([n]) + body


class Calls(NodeTests, unittest.TestCase):

    OPTIONS = ["--context", "9000"]

    def setUp(self):
        self.client.session.CreateSession(session_pb2.CreateSessionRequest(
            session_id="there-" + self.id().rsplit(".", 1)[-1]))

    def tearDown(self):
        self.assertServes()
        node = self.client.admin.GetNode(admin_pb2.GetNodeRequest())
        self.assertEqual((node.running_requests, node.waiting_requests), (0, 0))

    def generate(self, **fields):
        fields.setdefault("sampling_params", greedy(2))
        if not {"text", "messages"} & set(fields):
            fields.setdefault("tokenized", tokens([5, 6, 7]))
        return lambda: self.client.generate(gen.GenerateRequest(**fields))

    def raw(self, method, body, timeout=30):
        """Bytes that no protobuf library would make."""
        call = self.client.channel.unary_stream(
            method, request_serializer=lambda b: b,
            response_deserializer=lambda b: b)
        return lambda: list(call(body, timeout=timeout))

    def test_unknown_session(self):
        self.assertFails(Code.NOT_FOUND, self.generate(session="sessions/no"),
                         "SESSION_NOT_FOUND")
        for name in ("no", "sessions/", "sessions/a b", "sessions/a/b",
                     "sessions/" + "x" * 128, "sessions/\u00e9", "nodes/a"):
            text = self.assertFails(Code.INVALID_ARGUMENT,
                                    self.generate(session=name))
            self.assertIn("session", text)
        self.assertFails(
            Code.INVALID_ARGUMENT,
            lambda: self.client.session.CreateSession(
                session_pb2.CreateSessionRequest(session_id="a/b")))

    def test_unknown_model(self):
        self.assertFails(Code.NOT_FOUND, self.generate(model="gpt-17"),
                         "MODEL_NOT_FOUND")

    def test_no_input_at_all(self):
        self.assertFails(
            Code.INVALID_ARGUMENT, lambda: self.client.generate(
                gen.GenerateRequest(sampling_params=greedy(1))))
        self.assertFails(Code.INVALID_ARGUMENT,
                         self.generate(tokenized=tokens([])))
        self.assertFails(Code.INVALID_ARGUMENT, self.generate(
            messages=common_pb2.Messages()))

    def test_sampling_parameters_out_of_range(self):
        nan, inf = float("nan"), float("inf")
        bad = [("temperature", -0.1), ("temperature", 101), ("temperature", nan),
               ("temperature", inf), ("top_p", 0), ("top_p", 1.1),
               ("top_p", nan), ("top_k", -2), ("min_p", -0.1), ("min_p", 1.1),
               ("frequency_penalty", 2.1), ("presence_penalty", -2.1),
               ("repetition_penalty", 0), ("repetition_penalty", -1),
               ("max_tokens", 0), ("logprobs", -1), ("logprobs", 21)]
        for name, value in bad:
            with self.subTest(name=name, value=value):
                call = self.generate(
                    sampling_params=gen.SamplingParams(**{name: value}))
                with self.assertRaises(grpc.RpcError) as caught:
                    call()
                error = caught.exception
                self.assertEqual(error.code(), Code.INVALID_ARGUMENT)
                self.assertIn(name, error.details())
                self.assertTrue(error_info(error).reason)
                from google.rpc import error_details_pb2
                fields = [v.field for b in details_of(
                    error, error_details_pb2.BadRequest)
                    for v in b.field_violations]
                self.assertEqual(len(fields), 1, "one field is at fault")
                self.assertIn(name, fields[0])

    def test_lists_that_are_too_long(self):
        for params in (dict(stop=["a"] * 17), dict(stop=["a" * 128]),
                       dict(stop=[""]), dict(stop_token_ids=[1] * 65),
                       dict(stop_token_ids=[N_VOCAB]),
                       dict(logit_bias=[gen.LogitBias(token_id=1)] * 301),
                       dict(logit_bias=[gen.LogitBias(token_id=N_VOCAB)]),
                       dict(logit_bias=[gen.LogitBias(token_id=1, bias=101)])):
            with self.subTest(params=params):
                self.assertFails(Code.INVALID_ARGUMENT, self.generate(
                    sampling_params=gen.SamplingParams(**params)))

    def test_negative_sizes(self):
        self.assertFails(
            Code.INVALID_ARGUMENT,
            lambda: self.client.session.ListSessions(
                session_pb2.ListSessionsRequest(page_size=-1)))
        from google.protobuf import duration_pb2
        self.assertFails(
            Code.INVALID_ARGUMENT,
            lambda: self.client.session.CreateSession(
                session_pb2.CreateSessionRequest(session=session_pb2.Session(
                    ttl=duration_pb2.Duration(seconds=-5)))))

    def test_bad_page_token(self):
        for token in ("garbage", "x" * 5000, "\u00ff"):
            text = self.assertFails(
                Code.INVALID_ARGUMENT,
                lambda: self.client.session.ListSessions(
                    session_pb2.ListSessionsRequest(page_token=token)))
            self.assertIn("page_token", text)
        self.assertFails(
            Code.INVALID_ARGUMENT,
            lambda: self.client.session.ListSessions(
                session_pb2.ListSessionsRequest(filter="rm -rf")))

    def test_ten_megabytes_of_garbage(self):
        noise = random.Random(1).randbytes(10 << 20)
        text = self.assertFails(Code.INVALID_ARGUMENT,
                                self.raw(GENERATE, delimited(5, noise)))
        self.assertIn("UTF-8", text)
        letters = "".join(chr(33 + b % 94) for b in noise)
        self.assertFails(Code.INVALID_ARGUMENT, self.generate(text=letters),
                         "CONTEXT_LENGTH_EXCEEDED")
        self.assertFails(Code.INVALID_ARGUMENT, self.generate(messages=messages(
            ("user", letters))), "CONTEXT_LENGTH_EXCEEDED")
        self.assertFails(Code.INVALID_ARGUMENT, self.raw(GENERATE, noise))

    def test_one_endless_word(self):
        """No split between words must not mean quadratic work."""
        for word in ("a" * (1 << 20), "\u0301" * (1 << 19), " " * (1 << 20)):
            self.assertFails(Code.INVALID_ARGUMENT,
                             self.generate(text=word + "x" * (1 << 20)),
                             "CONTEXT_LENGTH_EXCEEDED")

    def test_invalid_utf8(self):
        for bad in (b"\xff", b"abc\xc3", b"\xed\xa0\x80", b"\xc0\x80",
                    b"\xf4\x90\x80\x80"):
            text = self.assertFails(Code.INVALID_ARGUMENT,
                                    self.raw(GENERATE, delimited(5, bad)))
            self.assertIn("UTF-8", text)
            self.assertFails(Code.INVALID_ARGUMENT,
                             self.raw(TOKENIZE, delimited(2, bad)))
            message = delimited(1, delimited(1, b"user") + delimited(2, bad))
            self.assertFails(Code.INVALID_ARGUMENT,
                             self.raw(GENERATE, delimited(15, message)))
            self.assertFails(Code.INVALID_ARGUMENT,
                             self.raw(GENERATE, delimited(1, b"sessions/" + bad)))

    def test_messages_of_nobody(self):
        self.assertFails(Code.INVALID_ARGUMENT, self.generate(
            messages=messages(("wizard", "hi"))))

    def test_bytes_that_are_no_message(self):
        for body in (b"\xff\xff\xff", b"\x0a\xff\xff\xff\xff\x0f",
                     b"\x0a\x05ab", b"\x07"):
            self.assertFails(Code.INVALID_ARGUMENT, self.raw(GENERATE, body))
        bomb = b""  # length prefixes that promise more and more
        for _ in range(2000):
            bomb = delimited(6, bomb)
        self.assertFails(Code.INVALID_ARGUMENT, self.raw(GENERATE, bomb))

    def test_token_ids_out_of_range(self):
        for bad in (N_VOCAB, 1 << 31, (1 << 32) - 1):
            text = self.assertFails(
                Code.INVALID_ARGUMENT,
                self.generate(tokenized=tokens([1, bad])))
            self.assertIn(str(bad), text)
        self.assertFails(
            Code.INVALID_ARGUMENT,
            lambda: self.client.generation.Detokenize(
                gen.DetokenizeRequest(token_ids=[N_VOCAB])))

    def test_context_overflow(self):
        self.assertFails(Code.INVALID_ARGUMENT,
                         self.generate(tokenized=tokens([5] * 9001)),
                         "CONTEXT_LENGTH_EXCEEDED")
        self.assertFails(Code.INVALID_ARGUMENT,
                         self.generate(tokenized=tokens([5] * 9000)),
                         "CONTEXT_LENGTH_EXCEEDED")
        self.client.session.AppendTokens(session_pb2.AppendTokensRequest(
            session="sessions/full", create_session=True,
            tokenized=tokens([5] * 8990)), timeout=120)
        self.assertFails(
            Code.INVALID_ARGUMENT,
            self.generate(session="sessions/full", tokenized=tokens([5] * 11)),
            "CONTEXT_LENGTH_EXCEEDED")
        reply = self.client.generate(gen.GenerateRequest(
            session="sessions/full", tokenized=tokens([5] * 4),
            sampling_params=greedy(50)))
        self.assertEqual(reply.complete.finish_reason, gen.FINISH_REASON_LENGTH)
        self.assertLessEqual(reply.end, 9000)
        self.assertGreaterEqual(reply.end, 8999)

    def test_deadline_of_nothing(self):
        for timeout in (0, 1e-6, 1e-3):
            with self.assertRaises(grpc.RpcError) as caught:
                self.client.generate(gen.GenerateRequest(
                    tokenized=tokens([5] * 3000), sampling_params=greedy(3000)),
                    timeout=timeout)
            error = caught.exception
            if error.code() == Code.RESOURCE_EXHAUSTED:  # said before it passed
                self.assertEqual(error_info(error).reason, "DEADLINE")
            else:
                self.assertEqual(error.code(), Code.DEADLINE_EXCEEDED)

    def test_request_id_used_again(self):
        request = gen.GenerateRequest(
            session="sessions/ids", create_session=True, request_id="same",
            tokenized=tokens([5, 6]), sampling_params=greedy(3))
        first = self.client.generate(request)
        other = gen.GenerateRequest()
        other.CopyFrom(request)
        other.tokenized.input_ids.append(7)
        self.assertFails(Code.INVALID_ARGUMENT,
                         lambda: self.client.generate(other),
                         "REQUEST_ID_REUSED")
        other.CopyFrom(request)
        other.sampling_params.max_tokens = 4
        self.assertFails(Code.INVALID_ARGUMENT,
                         lambda: self.client.generate(other),
                         "REQUEST_ID_REUSED")
        self.assertEqual(len(self.client.log("ids")), first.end)
        for bad in ("x" * 65, "a b", "\u00e9"):
            self.assertFails(Code.INVALID_ARGUMENT,
                             self.generate(session="sessions/ids",
                                           request_id=bad))

    def test_resuming_what_is_not_there(self):
        self.assertFails(
            Code.NOT_FOUND,
            lambda: self.client.generate(gen.GenerateRequest(
                session="sessions/res", create_session=True, request_id="zz",
                resume_from_position=5)), "REQUEST_UNKNOWN")

    def test_unknown_method(self):
        for method in ("/godwit.v1.GenerationService/Nothing",
                       "/nobody.Service/Call"):
            with self.assertRaises(grpc.RpcError) as caught:
                self.raw(method, b"")()
            self.assertEqual(caught.exception.code(), Code.UNIMPLEMENTED)

    def test_message_above_the_limit(self):
        with self.assertRaises(grpc.RpcError) as caught:
            self.client.generate(gen.GenerateRequest(text="a" * (17 << 20)))
        self.assertEqual(caught.exception.code(), Code.RESOURCE_EXHAUSTED)

    def test_metadata_above_the_limit(self):
        # The core may close the connection that brought it: one of its own.
        with self.node.client() as client:
            with self.assertRaises(grpc.RpcError) as caught:
                client.generation.Tokenize(
                    gen.TokenizeRequest(text="a"), timeout=10,
                    metadata=[("x-huge", "v" * 100000)])
        self.assertIn(caught.exception.code(),
                      (Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE))

    def test_noise_on_the_port(self):
        for noise in (b"GET / HTTP/1.1\r\n\r\n", random.Random(2).randbytes(4096),
                      b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100):
            with socket.create_connection(("127.0.0.1", self.node.port)) as peer:
                peer.settimeout(5)
                try:
                    peer.sendall(noise)
                    peer.recv(100)
                except OSError:
                    pass

    def test_many_labels(self):
        for labels in ([common_pb2.Label(key="k%d" % i) for i in range(17)],
                       [common_pb2.Label(key="k" * 64)],
                       [common_pb2.Label(key="k", value="v" * 256)],
                       [common_pb2.Label(key="k"), common_pb2.Label(key="k")],
                       [common_pb2.Label(key="")]):
            self.assertFails(
                Code.INVALID_ARGUMENT,
                lambda: self.client.session.CreateSession(
                    session_pb2.CreateSessionRequest(
                        session=session_pb2.Session(labels=labels))))


class Starts(unittest.TestCase):
    """A node that cannot serve says why in its last line, and ends."""

    def setUp(self):
        self.work = workspace()
        self.directory = self.work.__enter__()

    def tearDown(self):
        self.work.__exit__(None, None, None)

    def path(self, *names):
        return os.path.join(self.directory, *names)

    def refuse(self, words, code, model=MODEL, data=None, options=()):
        done = subprocess.run(
            [GODWITD, "--model", model, "--data", data or self.path("data"),
             "--listen", "127.0.0.1:0"] + list(options),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, timeout=60, check=False)
        said = done.stderr.decode("utf-8", "replace")
        self.assertEqual(done.returncode, code, said)
        last = said.strip().rsplit("\n", 1)[-1]
        for word in words:
            self.assertIn(word, last)
        self.assertEqual(done.stdout, b"")

    def test_command_line(self):
        self.refuse(["--nope"], 2, options=["--nope"])
        self.refuse(["--threads", "-1"], 2, options=["--threads", "-1"])
        self.refuse(["--max-queue", "0"], 2, options=["--max-queue", "0"])
        self.refuse(["--grace"], 2, options=["--grace"])
        self.refuse(["nonsense"], 1, options=["--listen", "nonsense"])

    def test_model_directory(self):
        self.refuse(["/no/such/model"], 1, model="/no/such/model")
        os.mkdir(self.path("empty"))
        self.refuse([self.path("empty"), "config.json"], 1,
                    model=self.path("empty"))

    def test_broken_model_files(self):
        for name, cut in (("model.safetensors", 1000000),
                          ("model.safetensors", 4), ("model.safetensors", 0),
                          ("config.json", 40), ("tokenizer.json", 5000)):
            with self.subTest(name=name, cut=cut):
                model = self.path("model")
                shutil.rmtree(model, ignore_errors=True)
                shutil.copytree(MODEL, model)
                os.truncate(os.path.join(model, name), cut)
                self.refuse([name], 1, model=model)

    def test_port_in_use(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            self.refuse([str(port), "in use"], 1,
                        options=["--listen", "127.0.0.1:%d" % port])

    def test_unwritable_data_directory(self):
        with open(self.path("file"), "w"):
            pass
        self.refuse([self.path("file")], 1, data=self.path("file"))
        self.refuse(["/proc/godwit-data"], 1, data="/proc/godwit-data")
        self.refuse([self.path("no", "where")], 1, data=self.path("no", "where"))

    def test_second_node_on_one_data_directory(self):
        node = Node(self.path("data")).start()
        try:
            self.refuse([self.path("data")], 1)
            with node.client() as client:
                reply = client.generate(gen.GenerateRequest(
                    tokenized=tokens([644, 2392]), sampling_params=greedy(4)))
                self.assertEqual(reply.ids, [11, 283, 265, 2392])
            self.assertEqual(node.stop(), 0)
        finally:
            node.kill()

    def test_tls_files(self):
        self.refuse(["/no/cert"], 1, options=["--tls-cert", "/no/cert",
                                              "--tls-key", "/no/key"])
        with open(self.path("junk"), "w") as file:
            file.write("junk")
        self.refuse([], 1, options=["--tls-cert", self.path("junk"),
                                    "--tls-key", self.path("junk")])


if __name__ == "__main__":
    unittest.main(verbosity=2)
