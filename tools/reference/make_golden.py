#!/usr/bin/env python3
"""Makes tests/golden/: small GPT-2 models with PyTorch's logits, gradients and training results.

needs   Python 3.10+ with the packages in requirements.txt; a CPU is enough, for some ten seconds:
            python3 -m venv target/venv && target/venv/bin/pip install -r tools/reference/requirements.txt
        steps.json records the versions that made the files.
run     target/venv/bin/python tools/reference/make_golden.py [--out tests/golden]
rerun   only when a case, a hyperparameter or a field changes here. Weights and tokens come from fixed seeds and are
        always equal to the bit. The last digits of results may change with torch's version, so commit all files of a
        run together.

Each case is a folder:
  config.json, model.safetensors   as save_pretrained writes them; `bytes` names wgpt's byte tokenizer where V = 257
  tokens.bin                       an llm.c token shard, just long enough: steps * accumulation * B * T + 1 tokens
  golden.safetensors               for the first B*T tokens of tokens.bin: `inputs`, `targets` (B, T) i32, `logits`
                                   (B, T, V), `loss` (1), and the gradient of that loss for every parameter under its
                                   Hugging Face name and in that layout (Conv1D: in, out); `transformer.wte.weight`
                                   includes the head's part. f32.
  steps.json                       hyperparameters, one row per step of training, norms of the weights afterwards

Everything is computed in float64 from the f32 weights and rounded once, so that a comparison shows the error of one
side only. steps.json also contains the loss and norm of the same training in float32, and the largest errors of float32
against float64, which show how far apart two correct programs may be.

How sharp a test must be: over the twelve steps float32 stays within 1e-7 (loss), 3e-7 (grad norm) and 1e-7 (final
norms) of float64, relatively. Forgetting the weight decay of wpe moves them by 8e-6, 1e-4 and 7e-4, and no decay at all
moves the loss by only 2e-5. A tolerance of 1e-4 on the loss would pass such mistakes; 2e-6 and 1e-5 do not.

The bias of the keys has no effect on the model (softmax ignores a constant added to a row), so its true gradient is
zero, and the gradient that a program computes is rounding error. AdamW divides that error by itself, so the keys' third
of `attn.c_attn.bias` moves differently in every program: compare its gradient by absolute error only, and never its
trained values. `final_norms` leaves it out.
"""

import argparse
import json
import pathlib
import platform
import shutil

import numpy as np
import safetensors
import safetensors.torch
import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel

import gpt2

TRAINING = {
    "steps": 12,
    "accumulation": 2,
    "lr": 1e-3,
    "warmup": 3,
    "final_lr_frac": 0.1,
    "beta1": 0.9,
    "beta2": 0.95,
    "eps": 1e-8,
    "weight_decay": 0.1,
    "clip": 1.0,
}

CASES = {
    # The byte tokenizer, and a shape that is not a multiple of any tile.
    "tiny": {"V": 257, "positions": 32, "L": 2, "NH": 3, "C": 48, "B": 3, "T": 20, "seed": 1},
    # Odd sizes: neither V, C, T nor the head size (11) is even. Small logits, so that the gradient's norm crosses 1
    # and steps both with and without clipping occur.
    "odd": {"V": 101, "positions": 17, "L": 3, "NH": 3, "C": 33, "B": 2, "T": 13, "seed": 2, "lnf": 0.3},
}


def text_tokens(count, rng):
    """Returns documents of made-up sentences in wgpt's byte tokens: 256 before each document, then bytes."""
    words = "the a small grey cat dog river stone sings sleeps under over near and then again".split()
    tokens = []
    while len(tokens) < count:
        sentence = " ".join(words[i] for i in rng.randint(0, len(words), size=rng.randint(3, 9)))
        tokens += [256, *(sentence.capitalize() + ".\n").encode()]
    return tokens[:count]


def chain_tokens(count, vocab, rng):
    """Returns a random walk: low ids are more frequent, each has two likely successors, one step in eight is free."""
    skewed = lambda *size: (vocab * rng.random_sample(size) ** 3).astype(int)
    successors = skewed(vocab, 2)
    tokens = [0]
    while len(tokens) < count:
        free = rng.randint(0, 8) == 0
        tokens.append(int(rng.randint(0, vocab) if free else successors[tokens[-1], rng.randint(0, 2)]))
    return tokens


def build(case, rng):
    """Builds a model in which every tensor matters: attention is not uniform, biases and layernorms are not 0 and 1."""
    extra = {"wgpt_tokenizer": "bytes"} if case["V"] == 257 else {}
    end = 256 if case["V"] == 257 else 0
    config = GPT2Config(
        vocab_size=case["V"],
        n_positions=case["positions"],
        n_embd=case["C"],
        n_layer=case["L"],
        n_head=case["NH"],
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        summary_first_dropout=0.0,
        bos_token_id=end,
        eos_token_id=end,
        attn_implementation="eager",
        **extra,
    )
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            # RandomState's legacy stream is frozen: it has the same bits in every version of NumPy and torch.
            noise = rng.standard_normal(tuple(p.shape))
            if ".ln_" in name:
                value = 0.2 * noise + (1.0 if name.endswith("weight") else 0.0)
                value = value * (case.get("lnf", 1.0) if ".ln_f." in name else 1.0)
            elif p.dim() == 1:
                value = 0.1 * noise
            elif ".wte." in name or ".wpe." in name:
                value = 0.15 * noise
            else:
                gain = 1.5 if "c_attn" in name else 0.7
                value = gain * noise / np.sqrt(p.shape[0])
            p.copy_(torch.from_numpy(value.astype(np.float32)))
    return model


def final_norms(model):
    """Returns the L2 norm of each parameter, without the bias of the keys."""
    norms = {}
    for name, p in model.named_parameters():
        if name.endswith("attn.c_attn.bias"):
            C = p.numel() // 3
            p = torch.cat([p[:C], p[2 * C :]])
        norms[name] = p.detach().double().norm().item()
    return norms


def first_batch(folder, tokens, case, dtype):
    """Computes logits, loss and gradients of the first batch in `dtype`."""
    model = gpt2.load(folder, dtype)
    inputs, targets = gpt2.cut(tokens, 0, case["B"], case["T"])
    logits, loss = gpt2.mean_loss(model, inputs, targets)
    loss.backward()
    tensors = {"logits": logits.detach(), "loss": loss.detach().reshape(1)}
    tensors |= {name: p.grad for name, p in model.named_parameters()}
    return inputs, targets, tensors


def make(name, case, out):
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    hp = {"B": case["B"], "T": case["T"], **TRAINING, "schedule": "cosine", "decays": "2-D tensors, wte and wpe included"}

    rng = np.random.RandomState(case["seed"])
    build(case, rng).save_pretrained(folder, safe_serialization=True)
    (folder / "generation_config.json").unlink(missing_ok=True)

    count = hp["steps"] * hp["accumulation"] * hp["B"] * hp["T"] + 1
    tokens = text_tokens(count, rng) if case["V"] == 257 else chain_tokens(count, case["V"], rng)
    gpt2.write_shard(folder / "tokens.bin", tokens)
    tokens = gpt2.read_shard(folder / "tokens.bin")

    # from here on everything is read back from the files, as wgpt reads it
    inputs, targets, exact = first_batch(folder, tokens, case, torch.float64)
    _, _, single = first_batch(folder, tokens, case, torch.float32)
    golden = {key: value.float().contiguous() for key, value in exact.items()}
    golden |= {"inputs": inputs.int(), "targets": targets.int()}
    safetensors.torch.save_file(golden, folder / "golden.safetensors")
    error = {key: (single[key].double() - exact[key]).abs().max().item() for key in exact}

    runs = {}
    for dtype in (torch.float64, torch.float32):
        model = gpt2.load(folder, dtype)
        runs[dtype] = list(gpt2.train(model, gpt2.batches([tokens], hp["B"], hp["T"]), hp)), final_norms(model)
    (rows, norms), (rows_f32, norms_f32) = runs[torch.float64], runs[torch.float32]
    rows = [
        {**row, "loss_f32": other["loss"], "grad_norm_f32": other["grad_norm"]} for row, other in zip(rows, rows_f32)
    ]

    def worst(a, b):
        return max(abs(x - y) / abs(y) for x, y in zip(a, b, strict=True))

    summary = {
        "made_by": {
            "script": "tools/reference/make_golden.py",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numpy": np.__version__,
            "safetensors": safetensors.__version__,
            "python": platform.python_version(),
        },
        "hyperparameters": hp,
        "first_batch": {
            "loss": exact["loss"].item(),
            "grad_norm": torch.sqrt(sum(v.square().sum() for k, v in exact.items() if k.startswith("transformer."))).item(),
            "float32_max_abs_error": {
                "logits": error["logits"],
                "loss": error["loss"],
                "gradients": max(v for k, v in error.items() if k.startswith("transformer.")),
            },
        },
        "steps": rows,
        "float32_max_rel_error": {
            "loss": worst([r["loss_f32"] for r in rows], [r["loss"] for r in rows]),
            "grad_norm": worst([r["grad_norm_f32"] for r in rows], [r["grad_norm"] for r in rows]),
            "final_norms": worst(norms_f32.values(), norms.values()),
        },
        "final_norms": norms,
    }
    (folder / "steps.json").write_text(json.dumps(summary, indent=1) + "\n")
    for path in folder.iterdir():
        path.chmod(0o644)

    print(f"{name}: first batch {summary['first_batch']}")
    for row in rows:
        print(f"  step {row['step']:2}  lr {row['lr']:.6e}  loss {row['loss']:.7f}  norm {row['grad_norm']:.7f}")
    print(f"  float32 against float64: {summary['float32_max_rel_error']}")


def main():
    parser = argparse.ArgumentParser(description="Makes tests/golden with PyTorch and transformers.")
    root = pathlib.Path(__file__).resolve().parents[2]
    parser.add_argument("--out", type=pathlib.Path, default=root / "tests" / "golden", help="default: tests/golden")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.utils.logging.disable_progress_bar()
    for name, case in CASES.items():
        make(name, case, args.out)


if __name__ == "__main__":
    main()
