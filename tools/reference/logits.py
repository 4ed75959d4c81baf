#!/usr/bin/env python3
"""Computes a folder's logits with transformers, which also checks that transformers can load the folder.

needs   what make_golden.py needs
run     python tools/reference/logits.py FOLDER --tokens 1,2,3 [--tokens 4,5,6 ...] [--out FILE] [--compare FILE]
        Each --tokens is a row; all rows have the same length. Without --out or --compare, prints JSON.
files   JSON {"tokens": [[...]], "logits": [[[...]]]} (B, T, V), or safetensors with `tokens` (B, T) i32 and `logits`
        (B, T, V) f32, depending on the file name's extension. A file to compare with needs only `logits`, with T*V or
        B*T*V values in any nesting.
result  exit code 1 if a key is missing or unexpected, if a token is outside the vocabulary, or if --compare finds a
        difference above --tolerance * (1 + |logit|)
"""

import argparse
import json
import pathlib
import sys

import numpy as np
import safetensors.numpy
import torch
import transformers

import gpt2


def read(path):
    """Returns the logits of a file as a flat f64 array."""
    if path.suffix == ".json":
        return np.asarray(json.loads(path.read_text())["logits"], np.float64).ravel()
    return safetensors.numpy.load_file(path)["logits"].astype(np.float64).ravel()


def write(path, tokens, logits):
    if path is None or path.suffix == ".json":
        text = json.dumps({"tokens": tokens.tolist(), "logits": logits.tolist()})
        print(text) if path is None else path.write_text(text + "\n")
    else:
        safetensors.numpy.save_file({"tokens": tokens.astype(np.int32), "logits": logits}, path)


def main():
    parser = argparse.ArgumentParser(description="Logits of a Hugging Face folder, by transformers.")
    parser.add_argument("folder")
    row = lambda text: [int(word) for word in text.replace(",", " ").split()]
    parser.add_argument("--tokens", type=row, action="append", required=True, help="a row of ids; may be repeated")
    parser.add_argument("--out", type=pathlib.Path, help="FILE.json or FILE.safetensors")
    parser.add_argument("--compare", type=pathlib.Path, help="FILE.json or FILE.safetensors with logits to check")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="of --compare; default 1e-4")
    args = parser.parse_args()

    transformers.utils.logging.disable_progress_bar()
    model = gpt2.load(args.folder)
    if len({len(row) for row in args.tokens}) != 1 or not args.tokens[0]:
        raise SystemExit("--tokens: expected rows of equal length that are not empty")
    tokens = np.array(args.tokens)
    V, positions = model.config.vocab_size, model.config.n_positions
    if tokens.min() < 0 or tokens.max() >= V or tokens.shape[1] > positions:
        raise SystemExit(f"--tokens: expected ids below {V} and at most {positions} of them")
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(tokens), use_cache=False).logits.numpy()

    if args.out or not args.compare:
        write(args.out, tokens, logits)
    if args.compare:
        want, got = logits.astype(np.float64).ravel(), read(args.compare)
        if got.shape != want.shape:
            raise SystemExit(f"{args.compare}: {got.size} logits, expected {want.size}")
        error = np.abs(got - want) / (1.0 + np.abs(want))
        print(f"largest |difference| / (1 + |logit|): {error.max():.3e}")
        sys.exit(0 if (error <= args.tolerance).all() else 1)


if __name__ == "__main__":
    main()
