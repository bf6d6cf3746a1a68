"""godwitctl: what it prints, on which stream, and its exit code.

The judge of contents is Python's grpcio asking the same node.
"""

import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import tempfile
import threading
import time
import unittest

from godwit.v1 import admin_pb2
from godwit.v1 import generation_pb2 as gen
from godwit.v1 import session_pb2
from harness import (CASES, GODWITCTL, ROOT, Node, NodeTests, await_true,
                     certificates, ctl, greedy, messages, tokens, workspace)

DONE, FAILED, USAGE, NOT_FOUND, NO_CONNECTION, TIMEOUT, REFUSED = 0, 1, 2, 3, 4, 6, 7

with open(CASES, encoding="utf-8") as file:
    CASE = next(c for c in json.load(file) if c["kind"] == "greedy")


def load_needle():
    spec = importlib.util.spec_from_file_location(
        "needle", os.path.join(ROOT, "ops/needle.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Commands(NodeTests, unittest.TestCase):

    def ctl(self, *words, **options):
        return ctl(self.node.endpoint, *words, **options)

    def good(self, *words, **options):
        run = self.ctl(*words, **options)
        self.assertEqual((run.code, run.err), (DONE, ""), words)
        return run.out

    def bad(self, code, pattern, *words, **options):
        """Fails with one line on stderr; nothing on stdout."""
        run = self.ctl(*words, **options)
        self.assertEqual(run.code, code, (words, run))
        self.assertEqual(run.out, "")
        self.assertRegex(run.err, r"\Agodwitctl: [^\n]+\n\Z")
        self.assertRegex(run.err, pattern)

    def text_of(self, ids):
        return self.client.generation.Detokenize(gen.DetokenizeRequest(
            token_ids=ids, skip_special_tokens=True)).text

    # --- generate ---

    def generate(self, *words, n=20, **options):
        return self.good("generate", "--max-tokens", str(n), "--temperature",
                         "0", "--ignore-eos", *words, **options)

    def test_the_reply_is_all_that_stdout_gets(self):
        wanted = self.text_of(CASE["greedy_ids"][:20])
        self.assertEqual(self.generate("--prompt", CASE["prompt"]), wanted)
        self.assertEqual(
            self.generate("--prompt-file", "-", stdin=CASE["prompt"].encode()),
            wanted)
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(CASE["prompt"])
            file.flush()
            self.assertEqual(self.generate("--prompt-file", file.name), wanted)

    def test_options_stand_anywhere_and_the_environment_counts(self):
        wanted = self.text_of(CASE["greedy_ids"][:5])
        run = subprocess.run(
            [GODWITCTL, "--max-tokens=5", "--ignore-eos", "generate",
             "--temperature=0", "--prompt=" + CASE["prompt"]],
            env=dict(os.environ, GODWIT_ENDPOINT=self.node.endpoint),
            stdout=subprocess.PIPE, check=True, timeout=60)
        self.assertEqual(run.stdout.decode(), wanted)

    def test_a_session_goes_on(self):
        name = "talk"
        first = self.generate("--session", name, "--prompt", CASE["prompt"])
        second = self.generate("--session", "sessions/" + name, "--prompt", " So")
        log = self.client.log(name)
        self.assertEqual(self.text_of(log), CASE["prompt"] + first + " So" +
                         second)
        self.bad(NOT_FOUND, "session", "generate", "--session", "nobody",
                 "--create=false", "--prompt", "x")

    def test_a_session_has_a_policy(self):
        policy = "infllm:sink=64:window=128:pick=64:step=4:keys=far:index=bounds"
        self.good("session", "create", "far", "--policy",
                  "infllm:window=128:pick=64:step=4")
        made = json.loads(self.good("session", "get", "far", "--output", "json"))
        self.assertEqual(made["policy"], policy)
        prompt = CASE["prompt"] * 12
        far = self.generate("--session", "far", "--prompt", prompt)
        near = self.generate("--session", "near", "--policy", policy,
                             "--prompt", prompt)
        self.assertEqual(far, near)
        self.good("session", "policy", "far", "quest:pick=64")
        changed = self.generate("--session", "far", "--prompt", prompt)
        named = self.generate("--session", "near", "--policy", "quest:pick=64",
                              "--prompt", prompt)
        self.assertEqual(changed, named)
        self.assertRegex(self.good("session", "get", "near"),
                         r"(?m)^POLICY +quest:")
        self.bad(USAGE, "no policy", "generate", "--policy", "qest", "--prompt",
                 "x")

    def test_snapkv_takes_its_end_from_the_prompt(self):
        self.bad(USAGE, "end=1000", "session", "create", "snap", "--policy",
                 "snapkv")
        prompt = CASE["prompt"] * 12
        self.generate("--session", "snap", "--policy", "snapkv:pick=64",
                      "--prompt", prompt)
        made = json.loads(self.good("session", "get", "snap", "--output",
                                    "json"))
        kind, _, end = made["policy"].rpartition(":end=")
        self.assertEqual(kind, "snapkv:sink=0:window=64:pick=64:keys=true")
        self.assertEqual(int(end), len(self.client.log("snap")) - 20)
        self.generate("--session", "snap", "--policy", "snapkv:pick=64",
                      "--prompt", "x")

    def test_sirllm_takes_the_end_of_turns_from_the_model(self):
        self.generate("--session", "sir", "--policy",
                      "sirllm:window=64:pick=64", "--prompt",
                      CASE["prompt"] * 12)
        made = json.loads(self.good("session", "get", "sir", "--output",
                                    "json"))
        self.assertRegex(made["policy"],
                         r"^sirllm:sink=64:window=64:pick=64:keys=rank:"
                         r"decay=90:turn=(\d+|none)$")
        self.generate("--session", "sir", "--policy", made["policy"],
                      "--prompt", "x")
        self.bad(USAGE, "decay=0.9", "generate", "--policy",
                 "sirllm:decay=0.9", "--prompt", "x")

    def test_the_conversation_is_read_again(self):
        first = CASE["greedy_ids"][:8]
        self.generate("--session", "twice", "--prompt", CASE["prompt"], n=8)
        told = self.client.log("twice")
        self.assertEqual(told[-8:], first)
        got = self.generate("--session", "twice", "--prompt", " So", "--reread",
                            "all", n=6)
        asked = list(self.client.generation.Tokenize(
            gen.TokenizeRequest(text=" So")).token_ids)
        log = self.client.log("twice")
        self.assertEqual(log[len(told):-6], asked + told + asked)
        spelt = self.client.generate(gen.GenerateRequest(
            tokenized=tokens(log[:-6]), sampling_params=greedy(6)))
        self.assertEqual(log[-6:], spelt.ids)
        self.assertEqual(got, spelt.text)
        self.generate("--session", "twice", "--prompt", " So", "--reread", "5",
                      n=1)
        self.assertEqual(self.client.log("twice")[len(log):-1],
                         asked + log[-5:] + asked)
        self.bad(USAGE, "append", "generate", "--session", "fresh", "--reread",
                 "all", "--prompt", "x")
        self.bad(USAGE, "without a session", "generate", "--reread", "all",
                 "--prompt", "x")
        self.bad(USAGE, "--reread is", "generate", "--session", "twice",
                 "--reread", "0", "--prompt", "x")

    def test_the_reply_is_made_from_chosen_tokens(self):
        plain = self.generate("--prompt", CASE["prompt"], n=8)
        got = self.generate("--prompt", CASE["prompt"], "--gemfilter",
                            "100000", n=8)
        self.assertEqual(got, plain)
        prompt = CASE["prompt"] * 6
        told = json.loads(self.good(
            "generate", "--session", "gem", "--prompt", prompt, "--gemfilter",
            "20,pool=3", "--max-tokens", "6", "--temperature", "0",
            "--ignore-eos", "--output", "json"))
        self.assertEqual(int(told["gemfilter_tokens"]), 20)
        log = self.client.log("gem")
        call = self.client.generate(gen.GenerateRequest(
            tokenized=tokens(log[:-6]), sampling_params=greedy(6),
            gemfilter="20,pool=3"))
        self.assertEqual(call.ids, log[-6:], "without a session, too")
        self.assertEqual(call.complete.usage.gemfilter_tokens, 20)
        after = self.client.generate(gen.GenerateRequest(
            tokenized=tokens(log), sampling_params=greedy(4)))
        self.client.generate(gen.GenerateRequest(
            session="sessions/gem", sampling_params=greedy(4)))
        self.assertEqual(self.client.log("gem")[len(log):], after.ids)
        for text, why in (("0", "at least 1"), ("9,layer=0", "softmax layer"),
                          ("9,pool=2", "odd")):
            self.bad(USAGE, why, "generate", "--prompt", "x", "--gemfilter",
                     text)
        self.bad(USAGE, "reread", "generate", "--session", "gem", "--reread",
                 "all", "--gemfilter", "9", "--prompt", "x")
        self.bad(REFUSED, "policy full", "generate", "--policy", "window",
                 "--gemfilter", "9", "--prompt", "x")

    def test_same_seed_same_text(self):
        def ask(seed):
            return self.good("generate", "--prompt", "The ship", "--seed", seed,
                             "--max-tokens", "30", "--temperature", "1",
                             "--top-p", "0.9", "--top-k", "50", "--min-p", "0.01")
        self.assertEqual(ask("18446744073709551615"), ask("18446744073709551615"))
        self.assertNotEqual(ask("1"), ask("2"))

    def test_chat_sends_messages(self):
        self.generate("--session", "chat", "--chat", "--prompt", "Hello?", n=4)
        wanted = list(self.client.generation.Tokenize(gen.TokenizeRequest(
            messages=messages(("user", "Hello?")))).token_ids)
        self.assertEqual(self.client.log("chat")[:len(wanted)], wanted)
        self.generate("--session", "chat2", "--system", "Be.", "--prompt",
                      "Hello?", n=4)
        wanted = list(self.client.generation.Tokenize(gen.TokenizeRequest(
            messages=messages(("system", "Be."), ("user", "Hello?")))).token_ids)
        self.assertEqual(self.client.log("chat2")[:len(wanted)], wanted)

    def test_json_reply(self):
        answer = json.loads(self.generate("--session", "js", "--prompt",
                                          CASE["prompt"], "--output", "json"))
        self.assertEqual((answer["apiVersion"], answer["kind"]),
                         ("godwit.v1", "Reply"))
        self.assertEqual(answer["text"], self.text_of(CASE["greedy_ids"][:20]))
        self.assertEqual(answer["session"], "sessions/js")
        self.assertEqual(answer["completion_tokens"], 20)
        self.assertEqual(answer["finish_reason"], "FINISH_REASON_LENGTH")
        self.assertEqual(answer["position"], len(CASE["input_ids"]) + 20)
        self.assertIn(answer["reuse"], ("NONE", "SLOWER", "PREFIX"))
        self.assertEqual(answer["replayed_tokens"], 0)

    def test_a_request_can_be_asked_for_again(self):
        words = ("--session", "again", "--prompt", CASE["prompt"],
                 "--request-id", "q1", "--seed", "3")
        whole = self.generate(*words)
        self.assertEqual(self.generate(*words), whole)
        at = len(CASE["input_ids"]) + 8
        rest = self.good("generate", "--session", "again", "--request-id", "q1",
                         "--resume-from", str(at))
        self.assertTrue(whole.endswith(rest))
        self.assertEqual(rest, self.text_of(CASE["greedy_ids"][8:20]))

    def test_text_streams_while_it_is_made(self):
        process = subprocess.Popen(
            [GODWITCTL, "--endpoint", self.node.endpoint, "generate",
             "--session", "stream", "--prompt", "The ship", "--max-tokens",
             "50000", "--temperature", "0.8", "--ignore-eos"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            self.assertTrue(process.stdout.read(30))
            self.assertIsNone(process.poll(), "text comes before the end")
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=20)
        finally:
            process.kill()
        self.assertEqual(process.returncode, 130)
        self.assertRegex(err.decode(), r"\Agodwitctl: interrupted at position \d+;"
                         r" session stream keeps[^\n]*\n\Z")
        await_true(lambda: self.client.session.GetSession(
            session_pb2.GetSessionRequest(name="sessions/stream")).state in
            (session_pb2.Session.IDLE, session_pb2.Session.PARKED),
            "the node stops")

    # --- long prompts ---

    def test_a_needle_is_found_and_progress_is_shown(self):
        needle = load_needle()
        prompt, value = needle.build_prompt(self.text_of, 5000)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:
            file.write(prompt)
            file.flush()
            run = self.ctl("generate", "--prompt-file", file.name, "--special",
                           "--max-tokens", "8", "--temperature", "0",
                           "--progress", "lines")
        self.assertEqual(run.code, DONE, run.err)
        self.assertIn(value, run.out)
        lines = run.err.splitlines()
        self.assertTrue(lines)
        for line in lines:
            self.assertRegex(
                line, r"^prefill +\d+% \d+/[45]\d{3} tokens(, \d+ s left)?$")

    def test_a_terminal_gets_a_bar(self):
        import pty
        main, side = pty.openpty()
        text = (" ".join(["night and day"] * 1000)).encode()
        process = subprocess.Popen(
            [GODWITCTL, "--endpoint", self.node.endpoint, "generate",
             "--prompt-file", "-", "--max-tokens", "1", "--progress", "bar"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=side)
        os.close(side)
        seen = []

        def read():
            try:
                while True:
                    seen.append(os.read(main, 4096))
            except OSError:
                pass
        reader = threading.Thread(target=read)
        reader.start()
        process.communicate(text, timeout=120)
        reader.join(10)
        os.close(main)
        drawn = b"".join(seen).decode()
        self.assertEqual(process.returncode, 0, drawn)
        self.assertRegex(drawn, r"\r\x1b\[Kprefill +\d+% \[[#-]{20}\] \d+/\d+ tokens")
        self.assertTrue(drawn.endswith("\r\x1b[K"), "the bar goes away")

    # --- tokenize, detokenize ---

    def test_tokenize_and_detokenize(self):
        ids = [str(i) for i in CASE["input_ids"]]
        self.assertEqual(self.good("tokenize", CASE["prompt"]).split("\n"),
                         ids + [""])
        self.assertEqual(self.good("tokenize", "--prompt", CASE["prompt"]).split(),
                         ids)
        self.assertEqual(
            json.loads(self.good("tokenize", CASE["prompt"], "--output",
                                 "json"))["ids"], CASE["input_ids"])
        tsv = self.good("tokenize", CASE["prompt"], "--output", "tsv")
        self.assertEqual(tsv.splitlines()[:2], ["position\tid", "0\t" + ids[0]])
        self.assertEqual(self.good("detokenize", *ids), CASE["prompt"])
        self.assertEqual(self.good("detokenize", stdin=" ".join(ids).encode()),
                         CASE["prompt"])
        self.assertEqual(len(self.good("tokenize", "--special",
                                       "<|im_start|>").split()), 1)
        self.bad(USAGE, "no token id", "detokenize", "12", "x")
        self.bad(USAGE, "99999", "detokenize", "99999")

    # --- session ---

    def test_session_commands(self):
        made = self.good("session", "create", "s1", "--labels", "a=1,b=",
                         "--output", "json")
        made = json.loads(made)
        self.assertEqual((made["kind"], made["id"], made["position"],
                          made["labels"]), ("Session", "s1", 0, {"a": "1", "b": ""}))
        self.assertIsNone(made["expires"])
        self.assertRegex(made["created"], r"^\d{4}-\d\d-\d\dT[\d:]{8}Z$")
        self.bad(REFUSED, "s1", "session", "create", "s1")
        self.generate("--session", "s1", "--prompt", CASE["prompt"])
        log = [str(i) for i in CASE["input_ids"] + CASE["greedy_ids"][:20]]
        self.assertEqual(self.good("session", "tokens", "s1"),
                         "\n".join(log) + "\n")
        self.assertEqual(self.good("session", "tokens", "s1", "--from", "3",
                                   "--limit", "4").split(), log[3:7])
        self.assertEqual(json.loads(self.good(
            "session", "tokens", "s1", "--output", "json"))["ids"],
            [int(i) for i in log])
        shown = self.good("session", "get", "s1")
        self.assertRegex(shown, r"(?m)^POSITION +27$")
        self.assertRegex(shown, r"(?m)^CHAIN_HASH +[0-9a-f]{32}$")
        tsv = self.good("session", "get", "s1", "--output", "tsv").splitlines()
        self.assertEqual(len(tsv), 2)
        row = dict(zip(tsv[0].split("\t"), tsv[1].split("\t")))
        self.assertEqual((row["id"], row["position"]), ("s1", "27"))
        stored = json.loads(self.good("session", "checkpoint", "s1", "--output",
                                      "json"))
        self.assertGreaterEqual(stored["position"], 26)
        self.assertRegex(self.good("session", "policy", "s1"),
                         r"(?m)^POLICY +full$")
        self.assertRegex(self.good("session", "policy", "s1", "window"),
                         r"(?m)^POLICY +window:sink=")
        self.assertEqual(self.good("session", "tokens", "s1").split(), log)
        self.bad(USAGE, "policy", "session", "policy", "s1", "widow")
        changed = json.loads(self.good("session", "update", "s1", "--labels",
                                       "c=3", "--output", "json"))
        self.assertEqual(changed["labels"], {"c": "3"})
        self.assertRegex(self.good("session", "get", "s1"), r"(?m)^LABELS +c=3$")
        self.bad(REFUSED, "etag", "session", "update", "s1", "--labels", "d=4",
                 "--etag", "stale")
        self.assertEqual(self.good("session", "delete", "s1"), "")
        self.bad(NOT_FOUND, "s1", "session", "get", "s1")
        self.bad(NOT_FOUND, "s1", "session", "tokens", "s1")
        self.bad(NOT_FOUND, "s1", "session", "delete", "s1")
        self.assertEqual(self.good("session", "delete", "s1", "--allow-missing"),
                         "")
        unnamed = json.loads(self.good("session", "create", "--output", "json"))
        self.assertTrue(unnamed["id"])

    def test_session_list(self):
        for i in range(3):
            self.good("session", "create", "list-%d" % i)
        table = self.good("session", "list", "--prefix", "list-").splitlines()
        self.assertEqual(table[0].split(),
                         ["ID", "STATE", "POSITION", "COMMITTED", "ACTIVE",
                          "PARENT", "FORKED_AT"])
        self.assertEqual([l.split()[0] for l in table[1:]],
                         ["list-0", "list-1", "list-2"])
        answer = json.loads(self.good("session", "list", "--prefix", "list-",
                                      "--limit", "2", "--output", "json"))
        self.assertEqual(answer["kind"], "SessionList")
        self.assertEqual([s["id"] for s in answer["items"]],
                         ["list-0", "list-1"])
        self.assertEqual(self.good("session", "list", "--prefix", "none-"), "")
        self.assertEqual(json.loads(self.good(
            "session", "list", "--prefix", "none-", "--output",
            "json"))["items"], [])

    # --- node, version, help ---

    def test_node_version_and_help(self):
        node = json.loads(self.good("node", "get", "--output", "json"))
        there = self.client.admin.GetNode(admin_pb2.GetNodeRequest())
        self.assertEqual(("nodes/" + node["id"], node["model_fingerprint"]),
                         (there.name, there.model_fingerprint))
        self.assertRegex(self.good("node", "get"), r"(?m)^STATE +READY$")
        self.assertRegex(self.good("version"), r"^godwitctl \d+\.\d+\.\d+\n$")
        self.assertIn("session create", self.good("help"))
        self.assertIn("session create", self.good("--help"))
        for words in (("session", "--help"), ("help", "session")):
            shown = self.good(*words)
            self.assertIn("session create", shown)
            self.assertNotIn("node get", shown)
        for words in (("help", "generate"), ("generate", "--help")):
            self.assertIn("--max-tokens", self.good(*words))

    # --- what can go wrong ---

    def test_bad_command_lines(self):
        for words, pattern in (
                ((), "command"), (("dance",), "dance"), (("session",), "session"),
                (("session", "get"), "ID"),
                (("session", "get", "a", "b"), "2 words"),
                (("session", "get", "a", "--seed", "1"), "--seed"),
                (("generate",), "--prompt"),
                (("generate", "--prompt", "a", "--prompt-file", "b"), "once"),
                (("generate", "--prompt", "a", "--max-tokens", "-3"), "-3"),
                (("generate", "--prompt", "a", "--temperature", "hot"), "hot"),
                (("generate", "--prompt", "a", "--temperature", "-1"),
                 "temperature"),
                (("generate", "--prompt", "a", "--seed", "-1"), "-1"),
                (("generate", "--prompt", "a", "--output", "xml"), "xml"),
                (("generate", "--prompt", "a", "--output", "tsv"), "tsv"),
                (("generate", "--prompt"), "value"),
                (("session", "create", "a/b"), "session_id"),
                (("session", "create", "x", "--labels", "novalue"), "K=V")):
            self.bad(USAGE, pattern, *words)

    def test_bad_prompts(self):
        self.bad(FAILED, "/no/file", "generate", "--prompt-file", "/no/file")
        for bad, offset in ((b"abc\xff", 3), (b"\xc0\x80", 0), (b"a\xc3", 1),
                            (b"\xed\xa0\x80", 0), (b"\xf4\x90\x80\x80", 0),
                            (b"\xe0\x80\x80", 0), (b"\xf0\x80\x80\x80", 0),
                            ("\u00e9\U0001f600".encode() + b"\x80", 6)):
            self.bad(USAGE, r"UTF-8: byte 0x%02x at offset %d$" %
                     (bad[offset], offset), "generate", "--prompt-file", "-",
                     stdin=bad)
        whole = "a\0\u07ff\u0800\ud7ff\ue000\uffff\U00010000\U0010ffff"
        ids = self.good("tokenize", "--prompt-file", "-", stdin=whole.encode())
        self.assertEqual(self.good("detokenize", stdin=ids.encode()), whole)
        self.bad(USAGE, "16711680 bytes", "generate", "--prompt-file", "-",
                 stdin=b"a" * (17 << 20))
        self.bad(USAGE, "context", "generate", "--prompt-file", "-",
                 stdin=b"abcdefgh " * 1000000)

    def test_timeout(self):
        self.bad(TIMEOUT, "300 ms", "generate", "--prompt-file", "-",
                 "--timeout", "0.3", "--max-tokens", "50000",
                 stdin=b"night and day " * 9000)

    def test_nobody_listens(self):
        run = ctl("127.0.0.1:1", "node", "get")
        self.assertEqual((run.code, run.out), (NO_CONNECTION, ""))
        self.assertEqual(
            run.err, "godwitctl: no server at 127.0.0.1:1; start one with "
            "'godwitd' or pass --endpoint HOST:PORT\n")
        self.assertEqual(ctl("nonsense", "node", "get").code, USAGE)


def readme_resume():
    """The words of README's two commands of one request, as they stand there."""
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as readme:
        lines = [shlex.split(l) for l in readme if "--request-id r1" in l]
    assert len(lines) == 2 and all(l[0] == "build/godwitctl" for l in lines)
    return lines[0][1:], lines[1][1:]


class Breaks(unittest.TestCase):

    def test_readmes_commands_resume(self):
        first, second = readme_resume()
        at = int(second[second.index("--resume-from") + 1])
        with workspace() as directory:
            node = Node(os.path.join(directory, "data")).start()
            try:
                whole = ctl(node.endpoint, *first)
                self.assertEqual((whole.code, whole.err), (DONE, ""))
                again = ctl(node.endpoint, *first)
                self.assertEqual((again.code, again.out), (DONE, whole.out))
                node.kill()
                node.start()
                rest = ctl(node.endpoint, *second)
                self.assertEqual((rest.code, rest.err), (DONE, ""))
                with node.client() as client:
                    text = client.generation.Detokenize(gen.DetokenizeRequest(
                        token_ids=client.log("chat-2")[at:],
                        skip_special_tokens=True)).text
                self.assertTrue(text)
                self.assertEqual(rest.out, text)
                self.assertTrue(whole.out.endswith(text))
            finally:
                node.kill()

    def test_a_lost_node_leaves_a_way_to_go_on(self):
        with workspace() as directory:
            node = Node(os.path.join(directory, "data")).start()
            try:
                process = subprocess.Popen(
                    [GODWITCTL, "--endpoint", node.endpoint, "generate",
                     "--session", "lost", "--prompt", "The ship", "--max-tokens",
                     "600", "--temperature", "0.8", "--ignore-eos"],
                    # Unbuffered: communicate() would not see what a buffer holds.
                    bufsize=0, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                head = b""
                while len(head) < 100:
                    piece = process.stdout.read(100)
                    self.assertTrue(piece, "it ended early")
                    head += piece
                node.kill()
                out, err = process.communicate(timeout=20)
                self.assertEqual(process.returncode, NO_CONNECTION)
                hint = re.fullmatch(
                    r"godwitctl: connection to \S+ lost; go on with the same "
                    r"command and (--request-id \S+ --resume-from "
                    r"\d+)\n", err.decode())
                self.assertTrue(hint, err)
                node.start()
                run = ctl(node.endpoint, "generate", "--session", "lost",
                          "--prompt", "The ship", "--max-tokens", "600",
                          "--temperature", "0.8", "--ignore-eos",
                          *hint.group(1).split())
                self.assertEqual((run.code, run.err), (DONE, ""))
                with node.client() as client:
                    log = client.log("lost")
                    text = client.generation.Detokenize(gen.DetokenizeRequest(
                        token_ids=log, skip_special_tokens=True)).text
                self.assertEqual("The ship" + (head + out).decode() + run.out,
                                 text)
            finally:
                node.kill()

    def test_tls(self):
        with workspace() as directory:
            certificates(directory)

            def file(name):
                return os.path.join(directory, name)
            node = Node(file("data"), [
                "--tls-cert", file("server.pem"), "--tls-key",
                file("server.key"), "--tls-ca", file("ca.pem")]).start()
            try:
                us = ["--tls-ca", file("ca.pem"), "--tls-cert",
                      file("client.pem"), "--tls-key", file("client.key")]
                self.assertEqual(ctl(node.endpoint, "node", "get", *us).code,
                                 DONE)
                for words in (us[:2], [], us[2:],
                              ["--tls-ca", file("foreign.pem")] + us[2:]):
                    run = ctl(node.endpoint, "node", "get", *words)
                    self.assertEqual(run.code, NO_CONNECTION, (words, run))
                    self.assertRegex(run.err, r"\Agodwitctl: [^\n]+\n\Z")
                self.assertEqual(ctl(node.endpoint, "node", "get", *us[:4]).code,
                                 USAGE)
                self.assertEqual(ctl(node.endpoint, "node", "get", "--tls-ca",
                                     "/no/file").code, NOT_FOUND)
            finally:
                node.kill()


if __name__ == "__main__":
    unittest.main(verbosity=2)
