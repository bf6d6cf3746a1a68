"""A gRPC server that shares no line with ours, for test_client.c.

Serves raw bytes under /test.Peer/*, prints its port, and ends when its stdin
closes, so that it never outlives the test. With --tls DIR it uses DIR/server.pem
and DIR/server.key and asks clients for a certificate signed by DIR/ca.pem.
"""
import os
import sys
import threading
import time
from concurrent import futures

import grpc

cancelled = threading.Event()


def field(number, body):
    """One length-delimited protobuf field (body shorter than 128 bytes)."""
    assert len(body) < 128
    return bytes([number << 3 | 2, len(body)]) + body


def any_of(name, body):
    url = b"type.googleapis.com/" + name
    return field(3, field(1, url) + field(2, body))


def fail(request, context):
    """google.rpc.Status{8, "queue is full", [ErrorInfo, RetryInfo, BadRequest]}"""
    del request
    info = field(1, b"QUEUE_FULL") + field(2, b"godwit")
    retry = field(1, b"\x08\x01\x10" + b"\x80\xca\xb5\xee\x01")  # 1 s + 0.5 s
    bad = field(1, field(1, b"sampling_params.top_p") + field(2, b"is 3"))
    details = (b"\x08\x08" + field(2, b"queue is full") +
               any_of(b"google.rpc.ErrorInfo", info) +
               any_of(b"google.rpc.RetryInfo", retry) +
               any_of(b"google.rpc.BadRequest", bad))
    context.set_trailing_metadata((("grpc-status-details-bin", details),))
    context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "queue is full")


def broken_details(request, context):
    del request
    context.set_trailing_metadata((("grpc-status-details-bin", b"\xff\xff"),))
    context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")


def count(request, context):
    del context
    for i in range(int(request)):
        yield b"%d" % i


def forever(request, context):
    del request
    context.add_callback(cancelled.set)
    while not cancelled.is_set():
        yield b"x" * 1000
        time.sleep(0.001)


def await_cancel(request, context):
    del request, context
    return b"yes" if cancelled.wait(10) else b"no"


def silent(request, context):
    del request
    gone = threading.Event()
    context.add_callback(gone.set)
    gone.wait(10)
    return b""


def die(request, context):
    del request, context
    yield b"last words"
    time.sleep(0.2)
    os._exit(1)


UNARY = {"Echo": lambda request, context: request, "Fail": fail,
         "BrokenDetails": broken_details, "AwaitCancel": await_cancel,
         "Silent": silent}
STREAM = {"Count": count, "Forever": forever, "Die": die}


def main():
    methods = {n: grpc.unary_unary_rpc_method_handler(f)
               for n, f in UNARY.items()}
    methods.update({n: grpc.unary_stream_rpc_method_handler(f)
                    for n, f in STREAM.items()})
    server = grpc.server(futures.ThreadPoolExecutor(8), options=[
        ("grpc.max_receive_message_length", 64 << 20)])
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("test.Peer", methods),))
    if len(sys.argv) > 2 and sys.argv[1] == "--tls":
        def read(name):
            with open(os.path.join(sys.argv[2], name), "rb") as file:
                return file.read()
        credentials = grpc.ssl_server_credentials(
            [(read("server.key"), read("server.pem"))], read("ca.pem"), True)
        port = server.add_secure_port("127.0.0.1:0", credentials)
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    sys.stdin.read()
    os._exit(0)


main()
