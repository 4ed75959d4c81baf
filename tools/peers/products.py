#!/usr/bin/env python3
"""Times the fifteen matrix products of GPT-2 124M in PyTorch, which calls cuBLAS on CUDA. Prints the TFLOP/s of each.

    products.py [--rows N] [--chunk N] [--seconds S] [--json FILE] [--rehearse]

Rows are batch times context; the head is computed on a chunk of them, as in wgpt. The types are bf16 and f16 with sums
in f32, and f32 with TF32 and without. --rehearse runs the same code with tiny sizes, and without PyTorch with made-up
times; its figures are named `rehearsal`.
"""

import argparse
import json
import sys
import time

try:
    import torch
except ImportError:
    torch = None

CHANNELS, VOCAB = 768, 50304


def products(rows, chunk, channels, vocab):
    """Yields (layer, product, m, n, k): the product has an (m, n) result and depth k."""
    c = channels
    layers = [("qkv", rows, 3 * c, c), ("attproj", rows, c, c), ("fc", rows, 4 * c, c), ("fcproj", rows, c, 4 * c)]
    for layer, m, n, k in [*layers, ("head", chunk, vocab, c)]:
        yield layer, "forward", m, n, k
        yield layer, "backward_inp", m, k, n
        yield layer, "backward_weight", n, k, m


class Torch:
    def __init__(self):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.name = torch.cuda.get_device_name() if self.device == "cuda" else "CPU"
        self.version = torch.__version__

    def wait(self):
        if self.device == "cuda":
            torch.cuda.synchronize()

    def product(self, product, kind, m, n, k):
        """Returns a function that multiplies operands with the memory layout of training."""
        dtype = {"bf16": torch.bfloat16, "f16": torch.float16}.get(kind, torch.float32)
        torch.backends.cuda.matmul.allow_tf32 = kind == "tf32"
        # all sums in f32, as in wgpt
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False

        def make(*shape):
            return torch.randn(*shape, device=self.device, dtype=dtype)

        if product == "forward":
            a, b = make(m, k), make(n, k).t()
        elif product == "backward_inp":
            a, b = make(m, k), make(k, n)
        else:
            a, b = make(k, m).t(), make(k, n)
        out = torch.empty(m, n, device=self.device, dtype=dtype)
        return lambda: torch.mm(a, b, out=out)

    def free(self):
        if self.device == "cuda":
            torch.cuda.empty_cache()


class StandIn:
    device, name, version = "none", "no PyTorch, made-up times", "none"

    def wait(self):
        pass

    def product(self, product, kind, m, n, k):
        return lambda: time.sleep(1e-5)

    def free(self):
        pass


def rate(backend, work, flops, seconds):
    """Returns TFLOP/s: the best of several runs of several products each."""
    work()
    backend.wait()
    begin = time.perf_counter()
    work()
    backend.wait()
    once = time.perf_counter() - begin
    count = max(1, min(50, int(0.02 / max(once, 1e-9))))
    best, end = 0.0, time.perf_counter() + seconds
    for _ in range(20):
        begin = time.perf_counter()
        for _ in range(count):
            work()
        backend.wait()
        best = max(best, count * flops / (time.perf_counter() - begin) / 1e12)
        if time.perf_counter() > end:
            break
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=65536)
    parser.add_argument("--chunk", type=int, default=5248)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--json", help="a file for all figures")
    parser.add_argument("--rehearse", action="store_true")
    args = parser.parse_args()
    channels, vocab = CHANNELS, VOCAB
    if args.rehearse:
        args.rows, args.chunk, channels, vocab = 64, 32, 16, 128
    elif torch is None:
        print("No module named 'torch'; pip install torch", file=sys.stderr)
        return 1
    backend = Torch() if torch is not None else StandIn()
    kinds = ["bf16", "f16", "tf32", "f32"] if backend.device != "cpu" else ["bf16", "f32"]
    jobs = [(kind, job) for kind in kinds for job in products(args.rows, args.chunk, channels, vocab)]
    end = time.perf_counter() + args.seconds
    found = []
    name = "rehearsal" if args.rehearse else "pytorch"
    for done, (kind, (layer, product, m, n, k)) in enumerate(jobs):
        share = (end - time.perf_counter()) / (len(jobs) - done)
        row = {"layer": layer, "product": product, "type": kind, "m": m, "n": n, "k": k, "tflops": None, "remark": ""}
        try:
            if share <= 0:
                raise TimeoutError("no time left")
            work = backend.product(product, kind, m, n, k)
            row["tflops"] = rate(backend, work, 2 * m * n * k, min(share / 2, 1.0))
            del work
        except Exception as error:  # one product's failure must not lose the others
            text = str(error)
            short = "out of memory" if "out of memory" in text.lower() else (text.splitlines() or [type(error).__name__])[0]
            row["remark"] = f"not run: {short[:120]}"
        backend.free()
        found.append(row)
        figure = row["remark"] if row["tflops"] is None else f"{row['tflops']:.3f} TFLOP/s"
        print(name, kind, layer, product, f"{m}x{n}x{k}", figure, sep="\t", flush=True)
    about = {"name": name, "device": backend.name, "torch": backend.version, "rows": args.rows, "chunk": args.chunk}
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({**about, "products": found}, file, indent=1)
            file.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
