"""Four times what a node can take, for a while: it stays up, says no early and
with a time to come back, and whatever it does answer has the same tokens as on
a node with nothing else to do. Seeds are fixed; nothing is judged by the clock.
"""

import threading
import unittest

import grpc
from google.rpc import error_details_pb2

from godwit.v1 import admin_pb2
from harness import NodeTests, details_of, error_info, sampled
from godwit.v1 import generation_pb2 as gen

N_CLIENT = 16       # against 2 places and a queue of 2: four times both
N_CALL = 6
TENANTS = ("ant", "bee")
REFUSALS = {"QUEUE_FULL", "TENANT_QUOTA", "SHED", "DEADLINE"}


def request(client, call, **more):
    number = client * N_CALL + call
    return gen.GenerateRequest(
        text=("%d once upon a time " % number) * (1 + number * 7 % 90),
        sampling_params=sampled(8 + number % 17, number), tenant=TENANTS[client % 2],
        priority=(-1, 0, 1)[client % 3], **more)


class Overload(NodeTests, unittest.TestCase):
    OPTIONS = ("--max-running", "2", "--max-queue", "2", "--session-memory", "64")

    def run_client(self, client):
        for call in range(N_CALL):
            key = (client, call)
            try:
                reply = self.client.generate(request(*key), timeout=120)
                self.done[key] = reply.ids
            except grpc.RpcError as error:
                self.failed[key] = error

    def test_four_times_the_capacity(self):
        self.done, self.failed = {}, {}
        threads = [threading.Thread(target=self.run_client, args=(i,))
                   for i in range(N_CLIENT)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(240)
            self.assertFalse(thread.is_alive())
        self.assertEqual(len(self.done) + len(self.failed), N_CLIENT * N_CALL)
        self.assertTrue(self.done)
        self.assertTrue(self.failed)
        for error in self.failed.values():
            self.assertEqual(error.code(), grpc.StatusCode.RESOURCE_EXHAUSTED)
            self.assertIn(error_info(error).reason, REFUSALS)
            retry = details_of(error, error_details_pb2.RetryInfo)
            self.assertTrue(retry and retry[0].retry_delay.ToMilliseconds() > 0)
        shed = [client for client, _ in self.failed if client % 3 == 0]
        kept = [client for client, _ in self.failed if client % 3 != 0]
        n_shed = sum(client % 3 == 0 for client in range(N_CLIENT))
        self.assertGreaterEqual(len(shed) / n_shed, len(kept) / (N_CLIENT - n_shed))
        node = self.client.admin.GetNode(admin_pb2.GetNodeRequest())
        self.assertEqual(node.running_requests + node.waiting_requests, 0)
        self.assertLessEqual(node.session_bytes, node.session_bytes_max)
        for key, tokens in self.done.items():  # now it has nothing else to do
            alone = self.client.generate(request(*key), timeout=120)
            self.assertEqual(alone.ids, tokens, key)


if __name__ == "__main__":
    unittest.main(verbosity=2)
