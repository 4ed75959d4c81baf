"""Training steps of GPT-2 124M in PyTorch: the same work as ours, for comparing times. Prints one line a variant.

Eager and compiled, f32 with and without TF32, bf16 with flash attention: whatever this machine's PyTorch can do. Written
for comparison alone, in PyTorch's own fast operators.
"""

import argparse
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

LAYERS, HEADS, CHANNELS, POSITIONS, VOCAB = 12, 12, 768, 1024, 50304  # the vocabulary padded as ours


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(CHANNELS), nn.LayerNorm(CHANNELS)
        self.qkv, self.attproj = nn.Linear(CHANNELS, 3 * CHANNELS), nn.Linear(CHANNELS, CHANNELS)
        self.fc, self.fcproj = nn.Linear(CHANNELS, 4 * CHANNELS), nn.Linear(4 * CHANNELS, CHANNELS)

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (p.view(b, t, HEADS, c // HEADS).transpose(1, 2) for p in self.qkv(self.ln1(x)).split(c, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attproj(y.transpose(1, 2).reshape(b, t, c))
        return x + self.fcproj(F.gelu(self.fc(self.ln2(x)), approximate="tanh"))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCAB, CHANNELS), nn.Embedding(POSITIONS, CHANNELS)
        self.blocks, self.lnf = nn.ModuleList(Block() for _ in range(LAYERS)), nn.LayerNorm(CHANNELS)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens, targets):
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.lnf(x), self.wte.weight)
        return F.cross_entropy(logits.view(-1, VOCAB).float(), targets.view(-1))


def variants(cuda):
    """(name, precision, compiled, TF32)"""
    if not cuda:
        return [("eager", "f32", False, False), ("compile", "f32", True, False)]
    return [
        ("eager", "f32", False, False),
        ("eager, TF32", "f32", False, True),
        ("compile", "f32", True, False),
        ("compile, TF32", "f32", True, True),
        ("compile, flash attention", "bf16", True, True),
    ]


def measure(args, device, compiled, precision, tf32, seconds):
    torch.manual_seed(42)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    model = Model().to(device)
    decays = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decays, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-5, betas=(0.9, 0.95), fused=True)
    run = torch.compile(model) if compiled else model
    tokens = torch.randint(50257, (args.batch, args.context + 1), device=device)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = run(inputs, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        # reading the loss waits for the device
        return loss.item()

    begin = time.perf_counter()
    warm_up = 3 if device == "cuda" else 1
    for _ in range(warm_up):
        step()
    times = []
    while len(times) < 2 or (len(times) < 20 and time.perf_counter() - begin < seconds):
        before = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - before))
    times.sort()
    return times[len(times) // 2], len(times)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    todo = variants(device == "cuda")
    end = time.perf_counter() + args.seconds
    for done, (name, precision, compiled, tf32) in enumerate(todo):
        share = (end - time.perf_counter()) / (len(todo) - done)
        try:
            if share <= 0:
                raise TimeoutError("no time is left")
            if compiled and device == "cpu" and share < 60:
                raise TimeoutError("compiling takes a minute; no time is left")
            ms, steps = measure(args, device, compiled, precision, tf32, share * 0.8)
            remark = f"PyTorch {torch.__version__}, {device}, {steps} steps"
            print("pytorch", name, precision, f"{ms:.3f}", remark, sep="\t", flush=True)
        except Exception as error:  # one variant's failure must not lose the others
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            print("pytorch", name, precision, "-", f"not run: {reason[:120]}", sep="\t", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
