"""Prints a GPU's copy and matrix product rates in PyTorch as JSON. `cargo bench` compares its own roofs with them."""

import json
import sys
import time

import torch


def best(work, amount):
    """Returns the best rate of several runs, each long enough for the clock."""
    work()
    torch.cuda.synchronize()
    rate = 0.0
    for _ in range(5):
        begin = time.perf_counter()
        for _ in range(10):
            work()
        torch.cuda.synchronize()
        rate = max(rate, 10 * amount / (time.perf_counter() - begin))
    return rate


def product(dtype, n=8192):
    a, b = (torch.randn(n, n, device="cuda", dtype=dtype) for _ in range(2))
    out = torch.empty(n, n, device="cuda", dtype=dtype)
    return best(lambda: torch.mm(a, b, out=out), 2 * n**3)


def main():
    if not torch.cuda.is_available():
        print("PyTorch sees no GPU", file=sys.stderr)
        return 1
    torch.backends.cuda.matmul.allow_tf32 = False
    source = torch.randn(64 << 20, device="cuda")
    target = torch.empty_like(source)
    copy = best(lambda: target.copy_(source), 2 * source.numel() * source.element_size())
    figures = {"copy": copy, "f32": product(torch.float32), "f16": product(torch.float16)}
    print(json.dumps({**figures, "device": torch.cuda.get_device_name(), "torch": torch.__version__}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
