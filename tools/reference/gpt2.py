"""Code that the scripts of this folder share: token shards, their order, the learning rate, and training in PyTorch.

Needs torch, transformers, numpy and safetensors. Nothing here is needed to build, run or test wgpt.
"""

import math
import pathlib
import sys

import numpy as np
import torch
from transformers import GPT2LMHeadModel

SHARD_MAGIC = 20240520
SHARD_HEADER_BYTES = 1024


# --- token shards -----------------------------------------------------------------------------------------------------


def write_shard(path, tokens):
    """Writes llm.c's token shard: 256 i32 (magic, version 1, count), then u16 tokens, all little-endian."""
    header = np.zeros(256, "<i4")
    header[:3] = SHARD_MAGIC, 1, len(tokens)
    pathlib.Path(path).write_bytes(header.tobytes() + np.asarray(tokens, "<u2").tobytes())


def read_shard(path):
    """Returns the tokens of a shard as i64."""
    raw = pathlib.Path(path).read_bytes()
    header = np.frombuffer(raw[:SHARD_HEADER_BYTES], "<i4")
    if len(header) != 256 or header[0] != SHARD_MAGIC or header[1] != 1:
        raise SystemExit(f"{path}: not a token shard of version 1")
    tokens = np.frombuffer(raw[SHARD_HEADER_BYTES:], "<u2")
    if len(tokens) != header[2]:
        raise SystemExit(f"{path}: the header has a count of {header[2]} tokens, but the file contains {len(tokens)}")
    return tokens.astype(np.int64)


def cut(tokens, sample, B, T):
    """Returns inputs and targets (B, T) of a sample. Row b of the inputs is tokens b*T..(b+1)*T of the sample."""
    start = sample * B * T
    window = tokens[start : start + B * T + 1]
    if len(window) != B * T + 1:
        raise SystemExit(f"sample {sample} needs {B * T + 1} tokens from {start}, the shard has {len(tokens)}")
    return torch.from_numpy(window[:-1].reshape(B, T).copy()), torch.from_numpy(window[1:].reshape(B, T).copy())


def batches(shards, B, T, seed=None):
    """Yields (inputs, targets) without end: in file order if `seed` is None, else in the order of llm.c's loader.

    llm.c draws 32-bit words of mt19937 and takes them modulo. Shards are permuted again each epoch, starting from the
    previous permutation. The samples of a shard are permuted from the identity each time the shard is opened.
    """
    rng = None if seed is None else np.random.RandomState(seed)

    def permute(indices):
        for i in range(len(indices) - 1, 0, -1):
            j = int(rng.randint(0, 2**32, dtype=np.uint32)) % (i + 1)
            indices[i], indices[j] = indices[j], indices[i]

    order = list(range(len(shards)))
    while True:
        if rng is not None:
            permute(order)
        for shard in order:
            samples = list(range((len(shards[shard]) - 1) // (B * T)))
            if not samples:
                raise SystemExit(f"shard {shard} has {len(shards[shard])} tokens, a sample needs {B * T + 1}")
            if rng is not None:
                permute(samples)
            for sample in samples:
                yield cut(shards[shard], sample, B, T)


# --- model ------------------------------------------------------------------------------------------------------------


def load(folder, dtype=torch.float32):
    """Loads a Hugging Face folder as a model in `dtype`, with eager attention and no dropout. Exits on a wrong key."""
    model, info = GPT2LMHeadModel.from_pretrained(
        str(folder), output_loading_info=True, attn_implementation="eager", local_files_only=True, dtype=torch.float32
    )
    # The tied head has no key of its own, so transformers does not list it as missing.
    wrong = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys}
    if wrong:
        raise SystemExit(f"{folder}: keys do not match GPT2LMHeadModel: {wrong}")
    for name, value in vars(model.config).items():
        if name.endswith("_pdrop") and value != 0:
            print(f"{folder}: {name} is {value}; dropout is switched off here", file=sys.stderr)
    # eval() switches dropout off and changes nothing else in this model.
    return model.to(dtype).eval()


def mean_loss(model, inputs, targets):
    """Returns logits (B, T, V) and the mean cross-entropy over all B*T tokens.

    The loss is computed here because transformers' own loss shifts its labels, and ours are already shifted.
    """
    logits = model(input_ids=inputs, use_cache=False).logits
    return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


# --- training ---------------------------------------------------------------------------------------------------------


def learning_rate(step, hp):
    """Returns the rate of llm.c's cosine schedule; `step` counts from 0."""
    if step < hp["warmup"]:
        return hp["lr"] * (step + 1) / hp["warmup"]
    ratio = (step - hp["warmup"]) / (hp["steps"] - hp["warmup"])
    low = hp["lr"] * hp["final_lr_frac"]
    return low + 0.5 * (1.0 + math.cos(math.pi * ratio)) * (hp["lr"] - low)


def train(model, source, hp):
    """Trains and yields a row per step: step (from 1), lr, loss, grad_norm (before clipping).

    Clipping is torch's, g * min(1, clip / (norm + 1e-6)): within 1e-6 of llm.c's g / max(1, norm) for clip 1.
    """
    params = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in params if p.dim() >= 2], "weight_decay": hp["weight_decay"]},
        {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=hp["lr"], betas=(hp["beta1"], hp["beta2"]), eps=hp["eps"], foreach=False, fused=False
    )
    for step in range(hp["steps"]):
        lr = learning_rate(step, hp)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        total = 0.0
        for _ in range(hp["accumulation"]):
            inputs, targets = next(source)
            _, loss = mean_loss(model, inputs, targets)
            (loss / hp["accumulation"]).backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(params, hp["clip"] or math.inf, foreach=False).item()
        optimizer.step()
        yield {"step": step + 1, "lr": lr, "loss": total / hp["accumulation"], "grad_norm": norm}
