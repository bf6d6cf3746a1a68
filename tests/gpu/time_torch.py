"""Kernels beside PyTorch's, in turn in one process: attention of causal prompts
beside scaled_dot_product_attention, products of weights beside torch.matmul.

usage: time_torch.py BUILD [attend|product]

Prints a line for each: microseconds of ours, of PyTorch's, and ours / PyTorch's
of one pass: least, median, most. Passes are in turn on a busy card, which is
slowed down by the power that it may draw: as in a model's step, and unlike in a
program that times one launch at a time. Both read the same memory, and results
must agree.

Attention: SDPA (its default backend) gets bf16 with rotated keys, ours keys as
they were stored, and floats; its results are floats, in a line of its own bf16 as
SDPA's are. Of KV heads shared by SDPA and KV heads repeated, the faster counts.
"rotation + SDPA" has the keys rotated by PyTorch's operators before, which ours
has within. A shape has a process of its own: behind others in one process SDPA
takes up to a tenth longer.

Products: y of ours is float, of PyTorch's bf16. Weights pass through memory so
that none of them is in the L2 cache; launches are those of a CUDA graph.

Exit: 0 done, 1 results differ, 3 there is no PyTorch with CUDA here.
"""
import ctypes
import multiprocessing
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor

try:
    import torch
except ImportError:
    print("no PyTorch")
    sys.exit(3)

PROMPTS = ((64, 16, 16), (128, 16, 16), (128, 32, 4), (256, 8, 8), (256, 16, 4))
TOKENS = 16384
BLOCK = 64  # tokens
PRODUCTS = ((4096, 4096), (12288, 4096), (4096, 12288), (151936, 4096), (64, 4096))
ROWS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 8192)
ARENA = 1300 << 20  # weights
PASSES = 8
UNTIMED, TIMED = 4, 5  # calls
TOLERANCE = 1e-2  # by norms; bf16 rounds to 2^-9


class Prompt(ctypes.Structure):
    """struct prompt of beside.cu, its rope_table flat."""
    _fields_ = [(name, ctypes.c_uint32) for name in ("n_head", "n_kv_head", "d_head", "n_token")]
    _fields_ += [(name, ctypes.c_void_p)
                 for name in ("q", "k", "v", "out", "rounded", "gate", "block")]
    _fields_ += [("n_rot", ctypes.c_uint32), ("n_position", ctypes.c_uint64)]
    _fields_ += [(name, ctypes.c_void_p) for name in ("cos", "sin", "device")]


def load(build):
    """The library, its launches on PyTorch's stream."""
    lib = ctypes.CDLL(f"{build}/libgodwit_beside.so")
    lib.beside_linear.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_uint32] * 3
    lib.beside_stream.argtypes = [ctypes.c_void_p]
    lib.beside_stream(torch.cuda.current_stream().cuda_stream)
    return lib


def in_turn(calls, launches):
    """Microseconds of a launch by call and pass; a call launches so many. What
    came before leaves the card warm or rested: so the order turns each pass, and
    calls begin when the card is at work for them."""
    times = [[] for _ in calls]
    for turn in range(PASSES):
        for call, found in list(zip(calls, times))[::-1 if turn % 2 else 1]:
            events = [torch.cuda.Event(enable_timing=True) for _ in range(TIMED + 1)]
            for _ in range(UNTIMED):
                call()
            for event in events[:-1]:
                event.record()
                call()
            events[-1].record()
            torch.cuda.synchronize()
            found.append(statistics.median(
                a.elapsed_time(b) * 1e3 / launches for a, b in zip(events, events[1:])))
    return times


def line(what, ours, theirs):
    """The largest ratio of their passes."""
    ratios = sorted(a / b for a, b in zip(ours, theirs))
    print("%-62s | %9.1f | %9.1f | %5.2f %5.2f %5.2f" %
          (what, statistics.median(ours), statistics.median(theirs),
           ratios[0], statistics.median(ratios), ratios[-1]), flush=True)
    return ratios[-1]


def agree(what, ours, theirs):
    error = ((ours.float() - theirs.float()).norm() / theirs.float().norm()).item()
    if not error < TOLERANCE:
        print(f"FAILED {what}: results differ by {error:.1e} of their norm")
        sys.exit(1)


def turned(k, cos, sin):
    """Keys [head, token, dim] in bf16, their leading dims rotated."""
    half = cos.shape[1]
    x, y = k[..., :half].float(), k[..., half:2 * half].float()
    return torch.cat(((x * cos - y * sin).bfloat16(), (y * cos + x * sin).bfloat16(),
                      k[..., 2 * half:]), -1)


def attend(build, dims, heads, kv_heads):
    """The largest of ours / SDPA."""
    lib = load(build)
    half = (dims if dims <= 128 else 64) // 2
    angle = (torch.arange(TOKENS, device="cuda", dtype=torch.float64)[:, None] *
             1e6 ** (-torch.arange(half, device="cuda", dtype=torch.float64) / half))
    cos, sin = angle.cos().float(), angle.sin().float()
    # As kernels have them: of 64 positions, dim by dim.
    tables = [x.view(-1, BLOCK, half).transpose(1, 2).contiguous() for x in (cos, sin)]
    q = torch.randn(TOKENS, heads, dims, device="cuda")
    k, v = (torch.randn(TOKENS, kv_heads, dims, device="cuda") for _ in range(2))
    out = torch.empty_like(q)
    blocks = torch.empty(TOKENS // BLOCK, 2 * kv_heads * dims * BLOCK, device="cuda",
                         dtype=torch.bfloat16)
    table = torch.tensor([block.data_ptr() for block in blocks], device="cuda")
    rounded = torch.empty(TOKENS, heads, dims, device="cuda", dtype=torch.bfloat16)

    def prompt_of(results):
        return Prompt(heads, kv_heads, dims, TOKENS,
                      *(x.data_ptr() for x in (q, k, v, out)), results, None,
                      table.data_ptr(), 2 * half, TOKENS,
                      *(x.data_ptr() for x in tables), None)

    prompt, prompt16 = prompt_of(None), prompt_of(rounded.data_ptr())
    lib.beside_append(ctypes.byref(prompt))
    q16, k16, v16 = (x.bfloat16().transpose(0, 1).contiguous()[None] for x in (q, k, v))
    k_turned = turned(k16, cos, sin)
    group = heads // kv_heads
    wide_k, wide_v = (x.repeat_interleave(group, 1) for x in (k_turned, v16))

    def sdpa(keys, values):
        return torch.nn.functional.scaled_dot_product_attention(
            q16, keys, values, is_causal=True, enable_gqa=keys.shape[1] < heads)

    times = in_turn((lambda: lib.beside_attend(ctypes.byref(prompt)),
                     lambda: lib.beside_attend(ctypes.byref(prompt16)),
                     lambda: sdpa(wide_k, wide_v), lambda: sdpa(k_turned, v16),
                     lambda: sdpa(turned(k16, cos, sin), v16)), 1)
    what = f"attention, {dims} dims, {heads}/{kv_heads} heads"
    agree(what, out.transpose(0, 1), sdpa(wide_k, wide_v)[0])
    if not torch.equal(rounded, out.bfloat16()):
        print(f"FAILED {what}: rounded results are not those of floats")
        sys.exit(1)
    best = min(times[2:4], key=statistics.median)
    most = line(what + ": SDPA", times[0], best)
    line(what + ", bf16 result: SDPA", times[1], best)
    line(what + ": rotation + SDPA", times[0], times[4])
    return most


def graph_of(call, n):
    graph = torch.cuda.CUDAGraph()
    call(0)  # scratch memory grows
    torch.cuda.synchronize()
    graph.capture_begin()
    for i in range(n):
        call(i)
    graph.capture_end()
    return graph


def product(lib, arena, outputs, inputs, rows):
    size = outputs * inputs
    count = min(64, ARENA // size)
    weights = [arena[i * size:(i + 1) * size].view(outputs, inputs) for i in range(count)]
    x = (torch.rand(rows, inputs, device="cuda") - 0.5).bfloat16()
    y = torch.empty(rows, outputs, device="cuda")
    y16 = torch.empty(rows, outputs, device="cuda", dtype=torch.bfloat16)

    def ours(i):
        lib.beside_linear(y.data_ptr(), x.data_ptr(), weights[i % count].data_ptr(),
                          rows, inputs, outputs)

    def theirs(i):
        torch.mm(x, weights[i % count].t(), out=y16)

    n = 20 if max(rows, 300) * size < 20e9 else 3
    graphs = [graph_of(call, n) for call in (ours, theirs)]
    times = in_turn([graph.replay for graph in graphs], n)
    what = f"product, {inputs} to {outputs}, {rows} rows: matmul"
    agree(what, y, y16)
    line(what, *times)


def products(build):
    with torch.cuda.stream(torch.cuda.Stream()):  # the usual one captures nothing
        lib = load(build)
        arena = (torch.rand(ARENA, device="cuda", dtype=torch.bfloat16) - 0.5) * 0.06
        for outputs, inputs in PRODUCTS:
            for rows in ROWS:
                if outputs <= 100000 or rows <= 256:
                    product(lib, arena, outputs, inputs, rows)


def apart(work, *args):
    """In a process of its own; this one leaves the card alone."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        return pool.submit(work, *args).result()


def main():
    build, what = sys.argv[1], sys.argv[2:]
    if not apart(torch.cuda.is_available):
        print("PyTorch finds no GPU")
        sys.exit(3)
    print("%-62s | %9s | %9s | %s" % ("", "ours, us", "PyTorch's", "ours / PyTorch's"),
          flush=True)  # or each process would print it
    last = "all results agree"
    if what != ["product"]:
        most = {prompt: apart(attend, build, *prompt) for prompt in PROMPTS}
        at_128 = max(ratio for (dims, _, _), ratio in most.items() if dims == 128)
        last += ", head dim 128 takes at most %.2f of SDPA's time" % at_128
    if what != ["attend"]:
        apart(products, build)
    print(last)


if __name__ == "__main__":
    main()
