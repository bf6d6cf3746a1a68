"""godwitctl bench against a real node: what it says was sent, answered and
refused is what the node counted, and it is never more than was asked for.
Nothing is judged by the clock.
"""

import csv
import io
import json
import os
import signal
import subprocess
import tempfile
import unittest

from godwit.v1 import admin_pb2
from harness import GODWITCTL, Node, NodeTests, await_true, ctl, workspace

DONE, USAGE, NO_CONNECTION, INTERRUPTED = 0, 2, 4, 130
FAST = ("--rate", "200", "--prompt-tokens", "8-64", "--reply-tokens", "2-9")


def rows(text):
    return list(csv.DictReader(io.StringIO(text), delimiter="\t"))


class Bench(NodeTests, unittest.TestCase):

    def bench(self, *words, node=None):
        run = ctl((node or self.node).endpoint, "bench", *words, "--output", "tsv")
        self.assertEqual((run.code, run.err), (DONE, ""), words)
        return rows(run.out)

    def is_idle(self):
        node = self.client.admin.GetNode(admin_pb2.GetNodeRequest())
        return node.running_requests + node.waiting_requests == 0

    def counters(self):
        node = self.client.admin.GetNode(admin_pb2.GetNodeRequest())
        self.assertEqual(node.running_requests + node.waiting_requests, 0)
        return node.prompt_tokens_total, node.generated_tokens_total

    def test_its_figures_are_those_of_the_node(self):
        before = self.counters()
        with tempfile.NamedTemporaryFile("r") as file:
            (row,) = self.bench(*FAST, "--requests", "30", "--replies", file.name)
            replies = rows(file.read())
        after = self.counters()
        self.assertEqual((row["priority"], row["sent"], row["ok"]),
                         ("all", "30", "30"))
        for name in ("refused", "late", "failed", "skipped", "unsent", "retry_info"):
            self.assertEqual(row[name], "0", name)
        self.assertEqual(len(replies), 30)
        self.assertEqual(sum(int(r["prompt_tokens"]) for r in replies),
                         after[0] - before[0])
        self.assertEqual(sum(int(r["tokens"]) for r in replies),
                         after[1] - before[1])
        for r in replies:
            self.assertTrue(8 <= int(r["prompt_tokens"]) <= 64)
            self.assertEqual(r["tokens"], r["reply_tokens"])
            self.assertTrue(2 <= int(r["tokens"]) <= 9)
            self.assertLessEqual(float(r["ttft_ms"]), float(r["total_ms"]))
        # Nearest rank: the 15th of 30, the 27th, the last.
        first = sorted(float(r["ttft_ms"]) for r in replies)
        for name, rank in (("ttft_p50_ms", 14), ("ttft_p90_ms", 26),
                           ("ttft_p99_ms", 29)):
            self.assertAlmostEqual(float(row[name]), first[rank], delta=0.01)

    def test_a_seed_is_a_load(self):
        def digests(*words):
            with tempfile.NamedTemporaryFile("r") as file:
                self.bench(*FAST, "--requests", "8", "--replies", file.name, *words)
                return [r["digest"] for r in rows(file.read())]

        first = digests("--seed", "4")
        self.assertEqual(digests("--seed", "4", "--at-once", "3"), first)
        self.assertNotEqual(digests("--seed", "5"), first)

    def test_replies_under_load_are_those_alone(self):
        for more in ((), ("--input", "text"), ("--shared-tokens", "8")):
            (row,) = self.bench("--requests", "12", "--at-once", "6",
                                "--prompt-tokens", "100", "--reply-tokens",
                                "12", "--verify", *more)
            self.assertEqual((row["ok"], row["verified"], row["differing"]),
                             ("12", "12", "0"), more)

    def test_every_priority_has_a_row(self):
        every, shed, kept = self.bench(*FAST, "--requests", "40", "--sheddable",
                                       "0.5", "--tenants", "3")
        self.assertEqual((every["priority"], shed["priority"], kept["priority"]),
                         ("all", "-1", "0"))
        self.assertEqual(int(shed["sent"]) + int(kept["sent"]), 40)
        self.assertGreater(int(shed["sent"]), 0)
        self.assertGreater(int(kept["sent"]), 0)

    def test_time_and_count_are_limits(self):
        (row,) = self.bench("--rate", "5", "--arrivals", "even", "--seconds", "0.5",
                            "--requests", "1000", "--reply-tokens", "1")
        self.assertEqual(row["sent"], "3")
        (row,) = self.bench("--rate", "10000", "--requests", "20", "--reply-tokens",
                            "64", "--max-flight", "2")
        self.assertEqual(int(row["sent"]) + int(row["skipped"]), 20)
        self.assertGreater(int(row["skipped"]), 0)
        run = ctl(self.node.endpoint, "bench", "--requests", "2", "--rate", "10000",
                  "--reply-tokens", "20000", "--drain", "0", "--output", "tsv")
        self.assertEqual((run.code, rows(run.out)[0]["failed"]), (1, "2"))
        await_true(lambda: self.client.admin.GetNode(
            admin_pb2.GetNodeRequest()).running_requests == 0,
            "what was cancelled is not computed")

    def test_a_trace_is_replayed(self):
        with tempfile.NamedTemporaryFile("w") as trace, \
                tempfile.NamedTemporaryFile("r") as file:
            trace.write("arrive_us\ttenant\tpriority\tprompt_tokens\t"
                        "output_tokens\tdeadline_us\n"
                        "0\tant\t1\t40\t3\t0\n2000\t-\t0\t50\t4\t60000000\n")
            trace.flush()
            self.bench("--trace", trace.name, "--replies", file.name)
            replies = rows(file.read())
        self.assertEqual([(r["tenant"], r["priority"], r["prompt_tokens"],
                           r["tokens"], r["deadline_ms"]) for r in replies],
                         [("ant", "1", "40", "3", "0"), ("-", "0", "50", "4", "60000")])

    def test_refusals_are_results(self):
        with workspace() as directory:
            node = Node(os.path.join(directory, "data"),
                        ["--max-running", "1", "--max-queue", "1"])
            try:
                node.start()
                (row,) = self.bench("--rate", "10000", "--requests", "20",
                                    "--reply-tokens", "64", node=node)
            finally:
                node.kill()
        self.assertEqual(int(row["ok"]) + int(row["refused"]), 20)
        self.assertGreater(int(row["refused_queue_full"]), 0)
        self.assertEqual(row["retry_info"], row["refused"])

    def test_streams_are_measured_beside_a_long_prompt(self):
        run = ctl(self.node.endpoint, "bench", "streams", "--streams", "3",
                  "--long-tokens", "3000", "--window", "0.3", "--output", "json")
        self.assertEqual((run.code, run.err), (DONE, ""))
        before, prefill, after = json.loads(run.out)["items"]
        self.assertEqual([r["window"] for r in (before, prefill, after)],
                         ["before", "prefill", "after"])
        for row in (before, prefill, after):
            self.assertGreater(row["gaps"], 0)
            self.assertLessEqual(row["gap_p50_ms"], row["gap_p99_ms"])
            self.assertLessEqual(row["gap_p99_ms"], row["gap_max_ms"])
        self.assertEqual(before["p99_ratio"], 1)
        await_true(self.is_idle, "nothing is left running")

    def test_streams_that_end_are_followed_by_the_next(self):
        run = ctl(self.node.endpoint, "bench", "streams", "--streams", "2",
                  "--stream-tokens", "4", "--long-tokens", "3000",
                  "--window", "0.3", "--output", "json")
        self.assertEqual((run.code, run.err), (DONE, ""))
        # The first two replies have 2 and 4 tokens, so 4 gaps, and no more.
        self.assertGreater(sum(r["gaps"] for r in json.loads(run.out)["items"]), 8)
        await_true(self.is_idle, "nothing is left running")
        run = ctl(self.node.endpoint, "bench", "streams", "--streams", "1",
                  "--long-tokens", "1048576", "--window", "0.3")
        self.assertNotEqual(run.code, DONE)  # its reply has no room behind it
        self.assertRegex(run.out, "\nbefore ")  # what there is, is shown
        await_true(self.is_idle, "nothing is left running")

    def test_reuse_finds_what_is_shared(self):
        run = ctl(self.node.endpoint, "bench", "reuse", "--prefixes", "0,512",
                  "--repeats", "3", "--answer-tokens", "2", "--output", "tsv")
        self.assertEqual((run.code, run.err), (DONE, ""))
        nothing, shared = rows(run.out)
        self.assertEqual((nothing["shared_tokens"], nothing["cached_tokens"]),
                         ("0", "0"))
        self.assertEqual((shared["cached_tokens"], shared["reason"]),
                         ("512", "PREFIX"))

    def test_a_bad_command_line_sends_nothing(self):
        before = self.counters()
        for words in (("--requests", "0"), ("--requests", "100001"), ("--rate", "0"),
                      ("--seconds", "-1"), ("--prompt-tokens", "9-3"),
                      ("--prompt-tokens", "0"), ("--reply-tokens", "x"),
                      ("--deadline-ms", "-5"), ("--sheddable", "1.5"),
                      ("--input", "speech"), ("--seed", "one"),
                      ("--trace", os.devnull), ("word",), ("--streams", "3"),
                      ("--requests", "100000", "--reply-tokens", "65536"),
                      ("reuse", "--prefixes", "a,b")):
            run = ctl(self.node.endpoint, "bench", *words)
            self.assertEqual((run.code, run.out), (USAGE, ""), words)
            self.assertRegex(run.err, r"\Agodwitctl: [^\n]+\n\Z")
        self.assertEqual(self.counters(), before)

    def test_too_long_a_prompt_fails_the_bench_and_is_shown(self):
        with workspace() as directory:
            node = Node(os.path.join(directory, "data"), ["--context", "1024"])
            try:
                node.start()
                run = ctl(node.endpoint, "bench", "--requests", "2", "--rate",
                          "1000", "--prompt-tokens", "2000", "--output", "tsv")
            finally:
                node.kill()
        self.assertEqual(run.code, USAGE)
        self.assertRegex(run.err, "CONTEXT_LENGTH_EXCEEDED")
        self.assertEqual(rows(run.out)[0]["failed"], "2")


class Gone(unittest.TestCase):

    def test_without_a_node_nothing_is_measured(self):
        for words in ((), ("streams",), ("reuse",)):
            run = ctl("127.0.0.1:1", "bench", *words)
            self.assertEqual((run.code, run.out), (NO_CONNECTION, ""))
            self.assertRegex(run.err, r"\Agodwitctl: no server at [^\n]+\n\Z")

    def break_off(self, end):
        """A bench whose replies take for ever, from `end`(node, bench) on."""
        with workspace() as directory:
            node = Node(os.path.join(directory, "data"))
            try:
                node.start()
                bench = subprocess.Popen(
                    [GODWITCTL, "--endpoint", node.endpoint, "bench", "--rate",
                     "20", "--requests", "1000", "--reply-tokens", "10000",
                     "--output", "tsv"],
                    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE)
                with node.client() as client:
                    await_true(lambda: client.admin.GetNode(
                        admin_pb2.GetNodeRequest()).running_requests > 1,
                        "replies are under way")
                    end(node, bench)
                    out, err = bench.communicate(timeout=60)
            finally:
                node.kill()
        (row,) = rows(out.decode())
        self.assertGreater(int(row["failed"]), 1)
        self.assertGreater(int(row["unsent"]), 0)
        self.assertEqual(int(row["sent"]) + int(row["unsent"]), 1000)
        return bench.returncode, err.decode()

    def test_a_node_that_dies_ends_it_with_what_there_is(self):
        code, err = self.break_off(lambda node, bench: node.kill())
        self.assertEqual(code, NO_CONNECTION, err)
        self.assertRegex(err, r"\Agodwitctl: [^\n]+\n\Z")

    def test_an_interrupt_ends_it_with_what_there_is(self):
        code, err = self.break_off(
            lambda node, bench: bench.send_signal(signal.SIGINT))
        self.assertEqual((code, err), (INTERRUPTED, "godwitctl: interrupted\n"))


if __name__ == "__main__":
    unittest.main(verbosity=2)
