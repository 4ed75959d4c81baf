"""Times training steps of GPT-2 124M in PyTorch: the same work as wgpt's, for comparison.

Prints lines of: name, variant, precision, batch, ms/step, remark; separated by tabs. On CUDA the first variant is the
one to beat: compiled, bf16, flash attention. The others are bf16 without compiling, and f32 with and without TF32. Each
variant is measured at --batch and at the best of --batches. A batch that does not fit into memory is reported and
skipped.

With --turns the script builds and compiles everything once and prints READY. Then, for each line on standard input, it
measures everything once and prints DONE, so that another program can be measured in turn with it.

--rehearse runs the same code with a tiny model, and without PyTorch with made-up times. Its lines begin with
`rehearsal`.
"""

import argparse
import contextlib
import sys
import time

try:
    import torch
except ImportError:
    torch = None

HINT = "No module named 'torch'; pip install torch"
LAYERS, HEADS, CHANNELS, POSITIONS, VOCAB = 12, 12, 768, 1024, 50304  # the vocabulary is padded as wgpt's
TOKENS = 50257
if "--rehearse" in sys.argv:
    LAYERS, HEADS, CHANNELS, VOCAB, TOKENS = 1, 2, 32, 128, 120

# name, precision, compiled, TF32
CUDA = [
    ("compile, flash attention", "bf16", True, True),
    ("eager, flash attention", "bf16", False, True),
    ("compile, TF32", "f32", True, True),
    ("eager, TF32", "f32", False, True),
    ("compile", "f32", True, False),
    ("eager", "f32", False, False),
]
CPU = [("eager", "f32", False, False), ("compile", "f32", True, False)]


def model_class():
    from torch import nn
    from torch.nn import functional as F

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

    return Model


class Steps:
    """A model and its optimizer, which all variants and batches share, so that their memory is allocated once."""

    def __init__(self, context):
        self.context = context
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.variants = CUDA if self.device == "cuda" else CPU
        self.about = f"PyTorch {torch.__version__}, {self.device}"
        # every batch and precision is compiled separately
        for limit in ("recompile_limit", "cache_size_limit"):
            if hasattr(torch._dynamo.config, limit):
                setattr(torch._dynamo.config, limit, 64)
                break
        torch.manual_seed(42)
        self.model = model_class()().to(self.device)
        decays = [p for p in self.model.parameters() if p.dim() > 1]
        others = [p for p in self.model.parameters() if p.dim() <= 1]
        groups = [{"params": decays, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-5, betas=(0.9, 0.95), fused=True)
        self.compiled = torch.compile(self.model, dynamic=False)
        self.batches = {}

    def batch(self, size):
        if size not in self.batches:
            tokens = torch.randint(TOKENS, (size, self.context + 1), device=self.device)
            self.batches[size] = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        return self.batches[size]

    def attention(self, precision):
        if self.device != "cuda" or precision != "bf16":
            return contextlib.nullcontext()
        from torch.nn.attention import SDPBackend, sdpa_kernel

        return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION])

    def ms(self, variant, size, steps):
        """Returns the milliseconds of one step, averaged over several that run without waiting for the host."""
        _, precision, compiled, tf32 = variant
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        run = self.compiled if compiled else self.model
        inputs, targets = self.batch(size)
        begin = time.perf_counter()
        for _ in range(steps):
            self.optimizer.zero_grad(set_to_none=True)
            with torch.autocast(self.device, dtype=torch.bfloat16, enabled=precision == "bf16"):
                with self.attention(precision):
                    loss = run(inputs, targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
        loss.item()  # waits for the device
        return 1e3 * (time.perf_counter() - begin) / steps

    def free(self):
        """Frees memory for the next measurement."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.device == "cuda":
            torch.cuda.empty_cache()


class StandIn:
    """Replaces Steps without PyTorch, for rehearsals: times are made up, and batches above 32 do not fit."""

    def __init__(self, context):
        self.context, self.device, self.variants, self.about = context, "none", CUDA[:2], "no PyTorch, made-up times"

    def ms(self, variant, size, steps):
        if size > 32:
            raise MemoryError("out of memory")
        time.sleep(1e-3 * steps)
        return 1.0 + size / 8 + (0 if variant[2] else 1)

    def free(self):
        pass


def reason(error):
    text = str(error).strip()
    if "out of memory" in text.lower():
        return "out of memory"
    return text.splitlines()[0][:120] if text else type(error).__name__


def median(values):
    values = sorted(values)
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2


class Peer:
    def __init__(self, args, steps):
        self.args, self.steps = args, steps
        self.chunk = 1 if steps.device == "cpu" else 5
        self.chosen = []  # (variant, batch, remark)

    def line(self, variant, size, ms, remark):
        name = "rehearsal" if self.args.rehearse else "pytorch"
        print(name, variant[0], variant[1], size, ms, remark, sep="\t", flush=True)

    def try_batch(self, variant, size, end):
        """Compiles and warms up. Returns the milliseconds of a step, or None on failure."""
        try:
            left = end - time.perf_counter()
            if left <= 0:
                raise TimeoutError("no time left")
            if variant[2] and self.steps.device == "cpu" and not self.args.rehearse and left < 60:
                raise TimeoutError("no time left: compiling takes a minute")
            self.steps.ms(variant, size, 1 if self.steps.device == "cpu" else 3)
            return self.steps.ms(variant, size, self.chunk)
        except Exception as error:  # one batch's failure must not lose the others
            self.line(variant, size, "-", f"not run: {reason(error)}")
            return None
        finally:
            self.steps.free()

    def prepare(self, seconds):
        end = time.perf_counter() + seconds
        for variant in self.steps.variants:
            if self.args.variants and variant[0] not in self.args.variants and variant[1] not in self.args.variants:
                continue
            # wgpt's batch first; only the variants to beat are measured at others too
            sizes = [self.args.batch]
            if variant[1] == "bf16" or variant is self.steps.variants[0]:
                sizes += [size for size in self.args.batches if size != self.args.batch]
            rates = {}
            for size in sizes:
                ms = self.try_batch(variant, size, end)
                if ms is not None:
                    rates[size] = size / ms
            best = max(rates, key=rates.get) if rates else None
            for size in rates:
                remark = self.steps.about
                if len(rates) > 1 and size == best:
                    remark += f"; best of batches {', '.join(map(str, sorted(rates)))}"
                if size in (self.args.batch, best):
                    self.chosen.append((variant, size, remark))

    def turn(self):
        end = time.perf_counter() + self.args.seconds
        for done, (variant, size, remark) in enumerate(self.chosen):
            share = (end - time.perf_counter()) / (len(self.chosen) - done)
            begin, times = time.perf_counter(), []
            try:
                self.steps.ms(variant, size, 1)
                while len(times) < 2 or (len(times) < 20 and time.perf_counter() - begin < share):
                    times.append(self.steps.ms(variant, size, self.chunk))
                count = len(times) * self.chunk
                self.line(variant, size, f"{median(times):.3f}", f"{remark}; {count} steps")
            except Exception as error:
                self.line(variant, size, "-", f"not run: {reason(error)}")
            self.steps.free()


def numbers(text):
    return [int(word) for word in text.split(",") if word]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--batches", type=numbers, default=[], help="other batches to try, such as 16,32,64")
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--variants", default="", help="names or precisions, separated by semicolons")
    parser.add_argument("--seconds", type=float, default=60, help="seconds per turn for measuring")
    parser.add_argument("--prepare", type=float, default=240, help="seconds for compiling and finding the best batch")
    parser.add_argument("--turns", action="store_true", help="measure one turn for each line on standard input")
    parser.add_argument("--rehearse", action="store_true")
    args = parser.parse_args()
    args.variants = [name.strip() for name in args.variants.split(";") if name.strip()]
    if torch is None and not args.rehearse:
        print(HINT, file=sys.stderr)
        return 1
    peer = Peer(args, Steps(args.context) if torch is not None else StandIn(args.context))
    peer.prepare(args.prepare)
    if not args.turns:
        peer.turn()
        return 0
    print("READY", flush=True)
    for _ in sys.stdin:
        peer.turn()
        print("DONE", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
