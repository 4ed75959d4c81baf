#!/usr/bin/env python3
"""Repeats a training run of wgpt in PyTorch and compares loss and gradient norm, step by step.

needs   what make_golden.py needs. d12 needs some 4 GB and, on a CPU, seconds per step.
run     wgpt train --init FOLDER --data 'DATA/*_train_*.bin' --out runs/a --batch 4 --context 64 --steps 20 ...
        python tools/reference/follow.py FOLDER runs/a/metrics.jsonl DATA/*_train_*.bin -B 4 -T 64 --steps 20 ...
        FOLDER contains the weights the run started from, in Hugging Face's layout. Hyperparameters default to wgpt's;
        pass those that the run used. The schedule is cosine.
result  one line per step, the largest relative difference last. Exit code 1 if a difference is above --tolerance, or a
        value is missing or not finite; 0 otherwise.
"""

import argparse
import json
import math
import sys

import torch
import transformers

import gpt2


def read_metrics(path):
    """Returns the training lines of metrics.jsonl by step. A later line of a step replaces an earlier one."""
    rows = {}
    with open(path, encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            if "loss" in row:
                rows[row["step"]] = row
    if not rows:
        raise SystemExit(f"{path}: no line with a loss")
    return rows


def difference(got, want):
    """Returns |got - want| / |want|; infinite if a value is missing or not finite."""
    if got is None or not math.isfinite(got) or not math.isfinite(want):
        return math.inf
    return abs(got - want) / max(abs(want), 1e-30)


def main():
    parser = argparse.ArgumentParser(description="Compares a run of wgpt with the same training in PyTorch.")
    parser.add_argument("folder", help="initial weights: a folder in Hugging Face's layout")
    parser.add_argument("metrics", help="metrics.jsonl of the run")
    parser.add_argument("shards", nargs="+", help="the run's token shards")
    parser.add_argument("-B", "--batch", type=int, required=True, help="rows of a micro-batch")
    parser.add_argument("-T", "--context", type=int, required=True, help="tokens of a row")
    parser.add_argument("--steps", type=int, help="length of the schedule; default: the last step in METRICS")
    parser.add_argument("--first", type=int, help="follow only the first steps, this many; default: all")
    parser.add_argument("--accumulation", type=int, default=1, help="micro-batches per step; default 1")
    parser.add_argument("--lr", type=float, default=6e-4, help="default 6e-4")
    parser.add_argument("--warmup", type=int, default=0, help="default 0")
    parser.add_argument("--final-lr-frac", type=float, default=0.0, help="default 0")
    parser.add_argument("--weight-decay", type=float, default=0.1, help="on 2-D tensors; default 0.1")
    parser.add_argument("--clip", type=float, default=1.0, help="0 switches clipping off; default 1.0")
    parser.add_argument("--beta1", type=float, default=0.9, help="default 0.9")
    parser.add_argument("--beta2", type=float, default=0.95, help="default 0.95")
    parser.add_argument("--eps", type=float, default=1e-8, help="default 1e-8")
    parser.add_argument("--seed", type=int, default=42, help="of the shuffle, which is llm.c's; default 42")
    parser.add_argument("--file-order", action="store_true", help="no shuffle: batches in file order")
    parser.add_argument("--double", action="store_true", help="compute in float64")
    parser.add_argument("--threads", type=int, help="torch's threads; default: torch's choice")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="relative; default 1e-4")
    args = parser.parse_args()

    if args.threads:
        torch.set_num_threads(args.threads)
    transformers.utils.logging.disable_progress_bar()
    metrics = read_metrics(args.metrics)
    hp = vars(args) | {"steps": args.steps or max(metrics)}
    # wgpt opens shards in the order of their names, as llm.c's glob does.
    shards = [gpt2.read_shard(path) for path in sorted(args.shards)]
    source = gpt2.batches(shards, args.batch, args.context, None if args.file_order else args.seed)
    model = gpt2.load(args.folder, torch.float64 if args.double else torch.float32)

    worst = {"loss": (-1.0, 0), "grad_norm": (-1.0, 0)}
    for want in gpt2.train(model, source, hp):
        step = want["step"]
        got = metrics.get(step, {})
        cells = []
        for key in worst:
            d = difference(got.get(key), want[key])
            worst[key] = max(worst[key], (d, step))
            cells.append(f"{key} {got.get(key)} torch {want[key]:.8g} rel {d:.1e}")
        print(f"step {step}  " + "  ".join(cells), flush=True)
        if step == args.first:
            break

    for key, (d, step) in worst.items():
        print(f"largest relative difference of {key}: {d:.3e} at step {step}")
    failed = any(not d <= args.tolerance for d, _ in worst.values())
    print(f"{'ABOVE' if failed else 'within'} tolerance {args.tolerance:g}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
