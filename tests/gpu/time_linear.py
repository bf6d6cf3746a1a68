"""torch.matmul of the shapes that time_linear times, in microseconds.

Prints a line for each: outputs, inputs, rows, time. Inputs, weights and results
are bf16; weights pass through memory so that none of them is in the L2 cache;
launches are those of a CUDA graph. Median of seven.
"""
import torch

SHAPES = ((4096, 4096), (12288, 4096), (4096, 12288), (151936, 4096), (64, 4096))
ROWS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 8192)
ARENA = 1300 << 20  # weights


def microseconds(rows, weights, n):
    outputs, inputs = weights[0].shape
    x = (torch.rand(rows, inputs, device="cuda") - 0.5).bfloat16()
    y = torch.empty(rows, outputs, device="cuda", dtype=torch.bfloat16)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for w in weights[:2]:
            torch.mm(x, w.t(), out=y)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(n):
            torch.mm(x, weights[i % len(weights)].t(), out=y)
    times = []
    for _ in range(8):
        begin = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / n)
    return sorted(times[1:])[3]


def main():
    arena = (torch.rand(ARENA, device="cuda", dtype=torch.bfloat16) - 0.5) * 0.06
    for outputs, inputs in SHAPES:
        size = outputs * inputs
        count = min(64, ARENA // size)
        weights = [arena[i * size:(i + 1) * size].view(outputs, inputs) for i in range(count)]
        for rows in ROWS:
            if outputs > 100000 and rows > 256:
                continue
            n = 20 if max(rows, 300) * size < 20e9 else 3
            print(outputs, inputs, rows, "%.1f" % microseconds(rows, weights, n))


main()
