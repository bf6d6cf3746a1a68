"""A node serves: each method once for real, streams, cancels, stops, restarts.

Judged by tests/golden (Hugging Face transformers' own continuations), by the
contract of the stream (harness.Reply), and by comparing a reply with the same
request made under easier circumstances.
"""

import json
import os
import threading
import time
import unittest

import grpc
from google.protobuf import field_mask_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1 import reflection_pb2
from grpc_reflection.v1alpha import reflection_pb2 as reflection_alpha_pb2

from godwit.v1 import admin_pb2, common_pb2
from godwit.v1 import generation_pb2 as gen
from godwit.v1 import session_pb2
from harness import (CASES, Client, Node, NodeTests, Reply, await_true,
                     certificates, details_of, error_info, greedy, messages,
                     read_bytes, read_reply, sampled, tokens, workspace)

Code = grpc.StatusCode
Session = session_pb2.Session
PROMPT = [1398, 331, 259, 1762, 1073, 11, 283]  # "It was a dark night, and"

with open(CASES, encoding="utf-8") as file:
    GREEDY = [c for c in json.load(file) if c["kind"] == "greedy"]


def get(client, session):
    return client.session.GetSession(
        session_pb2.GetSessionRequest(name="sessions/" + session), timeout=20)


def request_for(session="", **fields):
    fields.setdefault("tokenized", tokens(PROMPT))
    if fields["tokenized"] is None or "text" in fields or "messages" in fields:
        del fields["tokenized"]
    return gen.GenerateRequest(
        session="sessions/" + session if session else "",
        create_session=bool(session), **fields)


class Generation(NodeTests, unittest.TestCase):

    def test_greedy_replies_equal_the_golden_ones(self):
        for case in GREEDY:
            for form in ({"text": case["prompt"]},
                         {"tokenized": tokens(case["input_ids"])}):
                reply = self.client.generate(gen.GenerateRequest(
                    sampling_params=greedy(len(case["greedy_ids"])), **form))
                self.assertEqual(reply.ids, case["greedy_ids"], case["prompt"])
                self.assertEqual(reply.complete.finish_reason,
                                 gen.FINISH_REASON_LENGTH)
                said = self.client.generation.Detokenize(gen.DetokenizeRequest(
                    token_ids=reply.ids, skip_special_tokens=True))
                self.assertEqual(reply.text, said.text)

    def test_an_ephemeral_reply_leaves_nothing(self):
        def listed():
            return self.client.session.ListSessions(
                session_pb2.ListSessionsRequest()).total_size
        before = listed()
        reply = self.client.generate(request_for(sampling_params=greedy(3)))
        self.assertEqual(reply.session, "")
        self.assertEqual(listed(), before)

    def test_accepted_usage_and_timing_add_up(self):
        first = self.client.generate(request_for(
            "usage", request_id="u1", sampling_params=sampled(20, 7)))
        self.assertEqual(first.session, "sessions/usage")
        self.assertEqual(first.request_id, "u1")
        self.assertEqual(first.accepted.seed, 7)
        self.assertEqual((first.position, first.first), (0, len(PROMPT)))
        self.assertEqual(len(first.ids), 20)
        self.assertEqual(first.end, len(PROMPT) + 20)
        self.assertEqual(first.complete.committed_position, first.end)
        usage = first.complete.usage
        self.assertEqual((usage.prompt_tokens, usage.completion_tokens,
                          usage.cached_tokens), (len(PROMPT), 20, 0))
        timing = first.complete.timing
        for name in ("prefill", "decode", "time_to_first_token"):
            self.assertGreater(getattr(timing, name).ToMicroseconds(), 0, name)

        second = self.client.generate(request_for(
            "usage", text=" The end.", sampling_params=greedy(5)))
        self.assertEqual(second.position, first.end)
        self.assertEqual(second.first, second.position +
                         second.complete.usage.prompt_tokens)
        # All but the last token of the log, which waits to be computed.
        self.assertGreaterEqual(second.complete.usage.cached_tokens,
                                first.end - 1)
        self.assertEqual(second.complete.reuse.reason, "RESIDENT")
        self.assertEqual(self.client.log("usage")[first.first:first.end],
                         first.ids)

    def test_messages_are_the_tokens_of_their_chatml(self):
        talk = messages(("system", "Be brief."),
                        ("user", "Who wrote <|im_end|> Emma?"))
        ids = list(self.client.generation.Tokenize(
            gen.TokenizeRequest(messages=talk)).token_ids)
        start, end = (self.client.generation.Tokenize(gen.TokenizeRequest(
            text=word, parse_special_tokens=True)).token_ids
            for word in ("<|im_start|>", "<|im_end|>"))
        self.assertEqual((len(start), len(end)), (1, 1))
        self.assertEqual(ids.count(start[0]), 3)
        self.assertEqual(ids.count(end[0]), 2, "a content cannot end itself")
        plain = self.client.generate(request_for(
            tokenized=tokens(ids), sampling_params=greedy(8)))
        talked = self.client.generate(request_for(
            messages=talk, sampling_params=greedy(8)))
        self.assertEqual(talked.ids, plain.ids)
        self.assertEqual(talked.complete.usage.prompt_tokens, len(ids))

    def test_tokenizer_calls_agree_with_the_golden_ids(self):
        for case in GREEDY:
            ids = list(self.client.generation.Tokenize(
                gen.TokenizeRequest(text=case["prompt"])).token_ids)
            self.assertEqual(ids, case["input_ids"])
            text = self.client.generation.Detokenize(
                gen.DetokenizeRequest(token_ids=ids)).text
            self.assertEqual(text, case["prompt"])
            counted = self.client.generation.CountTokens(
                gen.CountTokensRequest(text=case["prompt"]))
            self.assertEqual(counted.token_count, len(ids))
            self.assertGreaterEqual(counted.context_length, 131072)
        special = "a<|im_start|>b"
        plain = self.client.generation.Tokenize(
            gen.TokenizeRequest(text=special)).token_ids
        parsed = self.client.generation.Tokenize(gen.TokenizeRequest(
            text=special, parse_special_tokens=True)).token_ids
        self.assertLess(len(parsed), len(plain))
        nul = "a\0b\u00e9\U0001f600"
        ids = self.client.generation.Tokenize(
            gen.TokenizeRequest(text=nul)).token_ids
        self.assertEqual(self.client.generation.Detokenize(
            gen.DetokenizeRequest(token_ids=ids)).text, nul)

    def test_same_seed_same_reply_alone_and_in_a_crowd(self):
        seeds = list(range(100, 106))

        def ask(seed):
            with self.node.client() as client:
                return client.generate(request_for(
                    sampling_params=sampled(40, seed)))
        alone = {seed: ask(seed).ids for seed in seeds}
        self.assertGreater(len({tuple(ids) for ids in alone.values()}), 4)
        crowd = {}

        def run(seed):
            crowd[seed] = ask(seed).ids
        threads = [threading.Thread(target=run, args=(s,)) for s in seeds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        self.assertEqual(crowd, alone)

    def test_stop_texts_and_ids_end_the_reply(self):
        whole = self.client.generate(request_for(sampling_params=greedy(40)))
        word = whole.text[20:26]
        cut = self.client.generate(request_for(
            sampling_params=greedy(40, stop=[word])))
        self.assertEqual(cut.text, whole.text[:whole.text.index(word)])
        self.assertEqual(cut.complete.finish_reason,
                         gen.FINISH_REASON_STOP_SEQUENCE)
        at = whole.ids[5]
        ended = self.client.generate(request_for(
            sampling_params=greedy(40, stop_token_ids=[at])))
        self.assertEqual(ended.complete.finish_reason, gen.FINISH_REASON_STOP)
        n = whole.ids.index(at)
        self.assertEqual(ended.ids, whole.ids[:n + 1])

    def test_logprobs_come_with_each_token(self):
        reply = self.client.generate(request_for(
            sampling_params=greedy(6, logprobs=3)))
        self.assertEqual(len(reply.logprobs), 6)
        for token, one in zip(reply.ids, reply.logprobs):
            self.assertEqual(one.chosen.token_id, token)
            self.assertEqual(len(one.top), 3)
            self.assertEqual(one.top[0].token_id, token, "greedy takes the top")
            values = [t.logprob for t in one.top]
            self.assertEqual(values, sorted(values, reverse=True))
            self.assertLessEqual(values[0], 0)

    def test_a_long_prompt_reports_progress_and_stalls_nobody(self):
        n = 8000
        long = (PROMPT * n)[:n]
        reply, begun = Reply(), threading.Event()

        def prefill():
            with self.node.client() as client:
                for message in client.generation.Generate(request_for(
                        tokenized=tokens(long), sampling_params=greedy(2)),
                        timeout=120):
                    reply.take(message)
                    if reply.progress:
                        begun.set()
        thread = threading.Thread(target=prefill)
        thread.start()
        self.assertTrue(begun.wait(60))
        self.client.generate(request_for(sampling_params=greedy(20)))
        self.assertIsNone(reply.complete, "a chunk of prefill, not all of it")
        thread.join(120)
        self.assertGreaterEqual(len(reply.progress), 2)
        self.assertEqual({p.total_tokens for p in reply.progress}, {n})
        self.assertGreater(reply.progress[-1].processed_tokens, n / 2)


class Sessions(NodeTests, unittest.TestCase):

    def create(self, name, **fields):
        return self.client.session.CreateSession(
            session_pb2.CreateSessionRequest(session_id=name,
                                             session=Session(**fields)))

    def test_life_of_a_session(self):
        made = self.create("life", labels=[common_pb2.Label(key="a", value="1")])
        self.assertEqual((made.name, made.position), ("sessions/life", 0))
        self.assertTrue(made.uid)
        self.assertEqual(made.durability, common_pb2.DURABILITY_LOCAL)
        self.assertFails(Code.ALREADY_EXISTS, lambda: self.create("life"),
                         "SESSION_EXISTS")
        found = get(self.client, "life")
        self.assertEqual(found.uid, made.uid)
        self.assertEqual([(l.key, l.value) for l in found.labels], [("a", "1")])

        changed = self.client.session.UpdateSession(
            session_pb2.UpdateSessionRequest(session=Session(
                name="sessions/life", etag=found.etag,
                labels=[common_pb2.Label(key="b", value="2")]),
                update_mask=field_mask_pb2.FieldMask(paths=["labels"])))
        self.assertEqual([l.key for l in changed.labels], ["b"])
        self.assertNotEqual(changed.etag, found.etag)
        self.assertFails(
            Code.ABORTED,
            lambda: self.client.session.UpdateSession(
                session_pb2.UpdateSessionRequest(session=Session(
                    name="sessions/life", etag=found.etag))),
            "ETAG_MISMATCH")

        delete = session_pb2.DeleteSessionRequest(name="sessions/life")
        self.client.session.DeleteSession(delete)
        self.assertFails(Code.NOT_FOUND, lambda: get(self.client, "life"),
                         "SESSION_NOT_FOUND")
        self.assertFails(Code.NOT_FOUND,
                         lambda: self.client.session.DeleteSession(delete),
                         "SESSION_NOT_FOUND")
        delete.allow_missing = True
        self.client.session.DeleteSession(delete)
        self.assertNotEqual(self.create("life").uid, made.uid)

    def test_a_name_is_made_when_none_is_given(self):
        one, two = self.create(""), self.create("")
        self.assertNotEqual(one.name, two.name)
        self.assertEqual(get(self.client, one.name[len("sessions/"):]).uid,
                         one.uid)

    def test_pages_list_every_session_once_and_in_order(self):
        names = ["sessions/page-%02d" % i for i in range(25)]
        for name in reversed(names):
            self.create(name[len("sessions/"):])
        seen, token, sizes = [], "", []
        for _ in range(10):
            page = self.client.session.ListSessions(
                session_pb2.ListSessionsRequest(
                    page_size=10, page_token=token,
                    filter='name = "sessions/page-*"'))
            seen += [s.name for s in page.sessions]
            sizes.append(len(page.sessions))
            token = page.next_page_token
            if not token:
                break
        self.assertEqual(seen, names)
        self.assertEqual(sizes, [10, 10, 5])
        everything = self.client.session.ListSessions(
            session_pb2.ListSessionsRequest(page_size=1000))
        listed = [s.name for s in everything.sessions]
        self.assertEqual(listed, sorted(listed))
        self.assertLessEqual(set(names), set(listed))

    def test_the_log_is_read_from_anywhere(self):
        reply = self.client.generate(request_for(
            "log", sampling_params=greedy(30)))
        whole = PROMPT + reply.ids
        self.assertEqual(self.client.log("log"), whole)
        self.assertEqual(self.client.log("log", 5), whole[5:])
        self.assertEqual(self.client.log("log", 5, 9), whole[5:14])
        self.assertEqual(self.client.log("log", len(whole)), [])
        self.assertFails(Code.OUT_OF_RANGE,
                         lambda: self.client.log("log", len(whole) + 1))
        self.assertFails(Code.NOT_FOUND, lambda: self.client.log("nobody"),
                         "SESSION_NOT_FOUND")

    def test_appended_tokens_count_as_if_sent_with_the_prompt(self):
        whole = self.client.generate(request_for(sampling_params=greedy(10)))
        operation = self.client.session.AppendTokens(
            session_pb2.AppendTokensRequest(
                session="sessions/app", create_session=True, request_id="a1",
                tokenized=tokens(PROMPT[:4])))
        self.assertTrue(operation.done)
        self.assertFalse(operation.HasField("error"))
        answer = Session()
        self.assertTrue(operation.response.Unpack(answer))
        self.assertEqual((answer.name, answer.position), ("sessions/app", 4))
        again = self.client.session.AppendTokens(
            session_pb2.AppendTokensRequest(
                session="sessions/app", request_id="a1",
                tokenized=tokens(PROMPT[:4])))
        self.assertTrue(again.done, "a retry appends nothing")
        reply = self.client.generate(request_for(
            "app", tokenized=tokens(PROMPT[4:]), sampling_params=greedy(10)))
        self.assertEqual(reply.position, 4)
        self.assertEqual(reply.ids, whole.ids)

    def test_expected_position_refuses_a_log_that_moved(self):
        self.client.generate(request_for("moved", sampling_params=greedy(3)))
        self.assertFails(
            Code.ABORTED,
            lambda: self.client.generate(request_for(
                "moved", expected_position=3, sampling_params=greedy(3))),
            "POSITION_MISMATCH")
        end = len(PROMPT) + 3
        reply = self.client.generate(request_for(
            "moved", expected_position=end, sampling_params=greedy(3)))
        self.assertEqual(reply.position, end)

    def test_checkpoint_names_what_it_stored(self):
        reply = self.client.generate(request_for(
            "check", sampling_params=greedy(100)))
        checkpoint = self.client.admin.CheckpointSession(
            admin_pb2.CheckpointSessionRequest(session="sessions/check"),
            timeout=30)
        self.assertEqual(checkpoint.session, "sessions/check")
        self.assertGreaterEqual(checkpoint.position, reply.end - 1)
        self.assertLessEqual(checkpoint.position, reply.end)
        self.assertGreater(checkpoint.size_bytes, 100000)
        self.assertRegex(checkpoint.chain_hash, "^[0-9a-f]{32}$")

    def test_two_turns_of_one_session_do_not_mix(self):
        stream = self.client.generation.Generate(request_for(
            "busy", request_id="b1", sampling_params=greedy(4000)), timeout=60)
        next(stream)
        self.assertFails(
            Code.ABORTED,
            lambda: self.client.generate(request_for(
                "busy", sampling_params=greedy(3))), "OPERATION_IN_PROGRESS")
        self.client.generation.CancelGeneration(
            gen.CancelGenerationRequest(session="sessions/busy"))
        rest = Reply()
        rest.accepted = True
        for message in stream:
            rest.take(message)
        self.assertEqual(rest.complete.finish_reason,
                         gen.FINISH_REASON_CANCELLED)

    def test_a_turn_without_input_goes_on_from_the_last_token(self):
        whole = self.client.generate(
            request_for("whole", sampling_params=greedy(20)))
        part = self.client.generate(
            request_for("part", sampling_params=greedy(8)))
        rest = self.client.generate(
            request_for("part", tokenized=None, sampling_params=greedy(12)))
        self.assertEqual(part.ids + rest.ids, whole.ids)

    def test_deleting_a_session_cancels_its_running_turn(self):
        stream = self.client.generation.Generate(request_for(
            "alive", sampling_params=greedy(4000)), timeout=60)
        next(stream)
        self.client.session.DeleteSession(
            session_pb2.DeleteSessionRequest(name="sessions/alive"))
        last = list(stream)[-1]
        self.assertEqual(last.complete.finish_reason,
                         gen.FINISH_REASON_CANCELLED)
        self.assertFails(Code.NOT_FOUND,
                         lambda: get(self.client, "alive"),
                         "SESSION_NOT_FOUND")


class Node_(NodeTests, unittest.TestCase):

    def test_node_describes_itself(self):
        node = self.client.admin.GetNode(admin_pb2.GetNodeRequest())
        self.assertRegex(node.name, "^nodes/.+")
        self.assertEqual(node.state, admin_pb2.Node.READY)
        self.assertEqual(node.model, "godwit-tiny")
        self.assertRegex(node.model_fingerprint, "^[0-9a-f]{32}$")
        self.assertTrue(node.version and node.numerics_id and node.backend)
        self.assertGreaterEqual(node.threads, 1)
        self.assertGreater(node.weight_bytes, 15e6)
        self.assertGreater(node.bytes_per_token, 500)
        self.assertGreater(node.bytes_per_session, 500000)
        again = self.client.admin.GetNode(
            admin_pb2.GetNodeRequest(name=node.name))
        self.assertEqual(again.name, node.name)
        self.assertFails(Code.NOT_FOUND, lambda: self.client.admin.GetNode(
            admin_pb2.GetNodeRequest(name="nodes/other")))

    def test_counters_count(self):
        before = self.client.admin.GetNode(admin_pb2.GetNodeRequest())
        self.client.generate(request_for(sampling_params=greedy(9)))
        after = self.client.admin.GetNode(admin_pb2.GetNodeRequest())
        self.assertEqual(after.generated_tokens_total -
                         before.generated_tokens_total, 9)
        self.assertEqual(after.prompt_tokens_total - before.prompt_tokens_total,
                         len(PROMPT))

    def test_health(self):
        for service in ("", "godwit.v1.GenerationService"):
            self.assertTrue(self.client.is_serving(service), service)
        self.assertFails(Code.NOT_FOUND, lambda: self.client.health.Check(
            health_pb2.HealthCheckRequest(service="nobody")))
        watch = self.client.health.Watch(health_pb2.HealthCheckRequest(),
                                         timeout=10)
        self.assertEqual(next(watch).status,
                         health_pb2.HealthCheckResponse.SERVING)
        watch.cancel()

    def reflect(self, package, kinds, **request):
        call = self.client.channel.stream_stream(
            "/grpc.reflection.%s.ServerReflection/ServerReflectionInfo" % package,
            request_serializer=kinds.ServerReflectionRequest.SerializeToString,
            response_deserializer=kinds.ServerReflectionResponse.FromString)
        return next(call(iter([kinds.ServerReflectionRequest(**request)]),
                         timeout=10))

    def add_file(self, pool, files, name):
        """Imports first: the answer's order is the server's affair."""
        file = files.pop(name, None)
        if file:
            for needed in file.dependency:
                self.add_file(pool, files, needed)
            pool.Add(file)

    def test_reflection_describes_the_api(self):
        from google.protobuf import descriptor_pb2, descriptor_pool
        for package, kinds in (("v1", reflection_pb2),
                               ("v1alpha", reflection_alpha_pb2)):
            services = {s.name for s in self.reflect(
                package, kinds,
                list_services="").list_services_response.service}
            self.assertLessEqual(
                {"godwit.v1.GenerationService", "godwit.v1.SessionService",
                 "godwit.v1.AdminService", "grpc.health.v1.Health"}, services)
            answer = self.reflect(
                package, kinds,
                file_containing_symbol="godwit.v1.GenerationService")
            pool = descriptor_pool.DescriptorPool()
            files = {f.name: f for f in map(
                descriptor_pb2.FileDescriptorProto.FromString,
                answer.file_descriptor_response.file_descriptor_proto)}
            self.add_file(pool, files, "godwit/v1/generation.proto")
            service = pool.FindServiceByName("godwit.v1.GenerationService")
            self.assertIn("Generate", service.methods_by_name)
            lost = self.reflect(package, kinds,
                                file_containing_symbol="godwit.v1.Nothing")
            self.assertEqual(lost.error_response.error_code,
                             Code.NOT_FOUND.value[0])

    def test_what_is_not_there_yet_says_so(self):
        admin = self.client.admin
        calls = [
            lambda: admin.GetCluster(admin_pb2.GetClusterRequest()),
            lambda: admin.ListNodes(admin_pb2.ListNodesRequest()),
            lambda: admin.CordonNode(admin_pb2.CordonNodeRequest()),
            lambda: admin.UncordonNode(admin_pb2.UncordonNodeRequest()),
            lambda: admin.DrainNode(admin_pb2.DrainNodeRequest()),
            lambda: admin.DecommissionNode(admin_pb2.DecommissionNodeRequest()),
            lambda: admin.MigrateSession(admin_pb2.MigrateSessionRequest()),
            lambda: list(admin.WatchEvents(admin_pb2.WatchEventsRequest())),
        ]
        for i, call in enumerate(calls):
            with self.assertRaises(grpc.RpcError, msg=str(i)) as caught:
                call()
            error = caught.exception
            self.assertEqual(error.code(), Code.UNIMPLEMENTED, str(i))
            self.assertIsNotNone(error_info(error), "%d has no reason" % i)
            self.assertGreater(len(error.details()), 10)
        self.assertServes()


class Streams(NodeTests, unittest.TestCase):

    def assertNobodyRunsSoon(self):
        await_true(lambda: self.client.admin.GetNode(
            admin_pb2.GetNodeRequest()).running_requests == 0, "nobody runs")

    def assertIdleSoon(self, session):
        await_true(lambda: get(self.client, session).state in
                   (Session.IDLE, Session.PARKED), session + " is idle")
        self.assertNobodyRunsSoon()

    def test_a_cancelled_call_frees_the_engine(self):
        stream = self.client.generation.Generate(request_for(
            "cancelled", sampling_params=greedy(20000)), timeout=60)
        for message in stream:
            if message.WhichOneof("event") == "chunk":
                break
        self.assertEqual(get(self.client, "cancelled").state, Session.DECODING)
        stream.cancel()
        self.assertIdleSoon("cancelled")
        n = get(self.client, "cancelled").position
        self.assertEqual(len(self.client.log("cancelled")), n)

    def test_a_cancelled_prefill_stops_within_a_chunk(self):
        stream = self.client.generation.Generate(request_for(
            "prefill", tokenized=tokens((PROMPT * 12000)[:80000]),
            sampling_params=greedy(1)), timeout=60)
        for message in stream:
            if message.WhichOneof("event") == "progress":
                break
        stream.cancel()
        self.assertIdleSoon("prefill")

    def test_a_deadline_ends_the_call_and_the_work(self):
        self.assertNobodyRunsSoon()  # or it could be refused: too late anyway
        with self.assertRaises(grpc.RpcError) as caught:
            self.client.generate(request_for(
                "deadline", sampling_params=greedy(100000)), timeout=0.5)
        self.assertEqual(caught.exception.code(), Code.DEADLINE_EXCEEDED)
        self.assertIdleSoon("deadline")

    def test_a_lost_client_frees_the_engine(self):
        client = self.node.client()
        stream = client.generation.Generate(request_for(
            "lost", sampling_params=greedy(100000)), timeout=60)
        next(stream)
        client.close()
        self.assertIdleSoon("lost")

    def test_a_retry_gets_the_same_turn_again(self):
        request = request_for("retry", request_id="r1",
                              sampling_params=sampled(25, 3))
        first = self.client.generate(request)
        again = self.client.generate(request)
        self.assertEqual((again.first, again.ids, again.text),
                         (first.first, first.ids, first.text))
        self.assertEqual(again.complete.finish_reason,
                         first.complete.finish_reason)
        self.assertEqual(len(self.client.log("retry")), first.end)
        request.resume_from_position = first.first + 20
        tail = self.client.generate(request)
        self.assertEqual((tail.first, tail.ids),
                         (first.first + 20, first.ids[20:]))

    def test_a_dropped_stream_goes_on_where_it_broke(self):
        whole = self.client.generate(request_for(
            sampling_params=sampled(300, 11)))
        request = request_for("broken", request_id="d1",
                              sampling_params=sampled(300, 11))
        client = self.node.client()
        part = Reply()
        for message in client.generation.Generate(request, timeout=60):
            part.take(message)
            if len(part.ids) >= 40:
                break
        client.close()
        request.resume_from_position = part.first + len(part.ids)
        rest = self.client.generate(request)
        self.assertEqual(rest.first, part.first + len(part.ids))
        self.assertEqual(part.ids + rest.ids, whole.ids)
        self.assertEqual(part.text + rest.text, whole.text)
        self.assertEqual(self.client.log("broken"), PROMPT + whole.ids)

    def test_a_second_reader_takes_the_reply_over(self):
        request = request_for("attach", request_id="t1",
                              sampling_params=sampled(500, 5))
        stream = self.client.generation.Generate(request, timeout=60)
        part = Reply()
        for message in stream:
            part.take(message)
            if len(part.ids) >= 5:
                break
        with self.node.client() as other:
            whole = other.generate(request)
        self.assertEqual(len(whole.ids), 500)
        self.assertEqual(whole.ids[:5], part.ids[:5])
        with self.assertRaises(grpc.RpcError) as caught:
            for message in stream:
                part.take(message)
        self.assertEqual(caught.exception.code(), Code.ABORTED)
        self.assertEqual(error_info(caught.exception).reason, "REPLY_TAKEN_OVER")

    def test_a_slow_reader_pauses_its_own_session_only(self):
        n = 1500  # half as many again as fit
        # Log-probabilities make messages big enough to fill the call's queue;
        # without the probe the client's window stays at 64 KiB.
        params = sampled(n, 21, logprobs=20)
        with self.node.client(options=[("grpc.http2.bdp_probe", 0)]) as slow:
            stream = slow.generation.Generate(
                request_for("slow", sampling_params=params), timeout=120)
            reply = Reply()
            reply.take(next(stream))
            positions = []

            def has_stalled():
                positions.append(get(self.client, "slow").position)
                time.sleep(0.1)
                return len(positions) > 5 and positions[-1] == positions[-6] > 50
            await_true(has_stalled, "the engine pauses the session", 60)
            self.assertLess(positions[-1], n, "not all of it fitted")
            with self.node.client() as fast:
                quick = fast.generate(request_for(sampling_params=params))
            self.assertEqual(get(self.client, "slow").position, positions[-1])
            read_reply(stream, reply)
        self.assertEqual(reply.ids, quick.ids)
        self.assertEqual(reply.text, quick.text)


class Security(unittest.TestCase):

    def test_tls_and_mutual_tls(self):
        with workspace() as directory:
            certificates(directory)

            def file(name):
                return os.path.join(directory, name)

            def credentials(ca="ca.pem", name=None):
                return grpc.ssl_channel_credentials(
                    read_bytes(file(ca)),
                    read_bytes(file(name + ".key")) if name else None,
                    read_bytes(file(name + ".pem")) if name else None)
            server = ["--tls-cert", file("server.pem"), "--tls-key",
                      file("server.key")]
            cases = [  # options, credentials, is welcome
                (server, credentials(), True),
                (server, credentials("foreign.pem"), False),
                (server, None, False),
                (server + ["--tls-ca", file("ca.pem")],
                 credentials(name="client"), True),
                (server + ["--tls-ca", file("ca.pem")],
                 credentials(name="foreign"), False),
                (server + ["--tls-ca", file("ca.pem")], credentials(), False),
            ]
            node, options = None, None
            try:
                for wanted, what, is_welcome in cases:
                    if options != wanted:
                        if node:
                            self.assertEqual(node.stop(), 0)
                        node = Node(file("data"), wanted).start()
                        options = wanted
                    with Client(node.endpoint, what) as client:
                        self.assertEqual(client.is_serving(), is_welcome,
                                         (wanted[4:], what))
            finally:
                if node:
                    node.kill()


class Life(unittest.TestCase):

    def test_a_stop_keeps_every_session(self):
        turns = [dict(sampling_params=sampled(60, 42)),
                 dict(tokenized=tokens([13, 306]),
                      sampling_params=sampled(60, 43)),
                 dict(tokenized=tokens([265]), sampling_params=greedy(5))]
        with workspace() as directory:
            node = Node(os.path.join(directory, "data")).start()
            try:
                with node.client() as client:
                    whole = [client.generate(request_for("whole", **turn)).ids
                             for turn in turns]
                    first = client.generate(request_for("kept", **turns[0]))
                    self.assertEqual(first.ids, whole[0])
                    uid = get(client, "kept").uid
                self.assertEqual(node.stop(), 0, node.read_log())
                node.start()
                with node.client() as client:
                    self.assertEqual(get(client, "kept").uid, uid)
                    self.assertEqual(client.log("kept"), PROMPT + first.ids)
                    again = client.generate(request_for(**turns[0]))
                    self.assertEqual(again.ids, whole[0], "same seed")
                    second = client.generate(request_for("kept", **turns[1]))
                    self.assertEqual(second.ids, whole[1])
                    checkpoint = client.admin.CheckpointSession(
                        admin_pb2.CheckpointSessionRequest(
                            session="sessions/kept"), timeout=30)
                self.assertEqual(node.stop(), 0)
                node.start()
                with node.client() as client:
                    third = client.generate(request_for("kept", **turns[2]))
                    self.assertEqual(third.ids, whole[2])
                    self.assertEqual(third.complete.reuse.reason, "RESTORED")
                    self.assertGreaterEqual(third.complete.usage.cached_tokens,
                                            checkpoint.position)
                    self.assertEqual(client.log("kept"), client.log("whole"))
            finally:
                node.kill()

    def test_sigterm_finishes_or_parks_what_runs(self):
        with workspace() as directory:
            node = Node(os.path.join(directory, "data"), ["--grace", "2"]).start()
            try:
                short = request_for("short", request_id="s1",
                                    sampling_params=sampled(30, 1))
                long = request_for("long", request_id="l1",
                                   sampling_params=sampled(30000, 2))
                with node.client() as client:
                    streams = [client.generation.Generate(r, timeout=60)
                               for r in (short, long)]
                    for stream in streams:
                        next(stream)
                    codes = []
                    waiter = threading.Thread(
                        target=lambda: codes.append(node.stop()))
                    waiter.start()
                    replies = []
                    for stream in streams:
                        reply = Reply()
                        reply.accepted = True
                        try:
                            for message in stream:
                                reply.take(message)
                        except grpc.RpcError as error:
                            self.assertEqual(error.code(), Code.UNAVAILABLE)
                        replies.append(reply)
                    waiter.join(30)
                self.assertEqual(codes, [0], node.read_log())
                self.assertEqual(replies[0].complete.finish_reason,
                                 gen.FINISH_REASON_LENGTH)
                self.assertEqual(len(replies[0].ids), 30)
                parked = replies[1].ids
                if replies[1].complete:
                    self.assertEqual(replies[1].complete.finish_reason,
                                     gen.FINISH_REASON_DRAINED)
                self.assertLess(len(parked), 30000)
                node.start()
                with node.client() as client:
                    log = client.log("long")[len(PROMPT):]
                    self.assertEqual(log[:len(parked)], parked,
                                     "what was sent is kept")
                    with node.client() as other:
                        long.resume_from_position = len(PROMPT) + len(parked)
                        rest = Reply(is_resumed=True)
                        for message in other.generation.Generate(long,
                                                                 timeout=60):
                            rest.take(message)
                            if len(rest.ids) >= 50:
                                break
                    self.assertEqual(rest.first, len(PROMPT) + len(parked))
                    check = parked + rest.ids
                    whole = client.generation.Generate(request_for(
                        sampling_params=sampled(30000, 2)), timeout=60)
                    reference = Reply()
                    for message in whole:
                        reference.take(message)
                        if len(reference.ids) >= min(len(check), 3000):
                            break
                    whole.cancel()
                    n = min(len(check), 3000)
                    self.assertEqual(reference.ids[:n], check[:n])
            finally:
                node.kill()

    def test_an_interrupt_stops_as_well(self):
        with workspace() as directory:
            node = Node(os.path.join(directory, "data")).start()
            try:
                node.process.send_signal(2)
                self.assertEqual(node.process.wait(30), 0)
            finally:
                node.kill()


if __name__ == "__main__":
    unittest.main(verbosity=2)
