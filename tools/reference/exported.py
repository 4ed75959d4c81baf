#!/usr/bin/env python3
"""Checks a folder that `wgpt convert` wrote with transformers: its tokenizer, and its model against another folder's.

needs   what make_golden.py needs; for a folder with GPT-2's tokenizer also tiktoken and its GPT-2 file
run     python tools/reference/exported.py FOLDER [--like OTHER] [--texts 2000]
result  exit code 1 unless AutoTokenizer reads the folder without a network; its ids of random texts are those of
        tiktoken, or the bytes; decoding returns the text; and the logits of OTHER are equal to the bit
"""

import argparse
import json
import os
import pathlib
import random
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers

import gpt2

WORDS = ["the", " ", "  ", "\n", "\n\n", "\t", " it's", "'ll", "'S", "42", " 1984", "...", "?!", "é", "日本", "\u00a0", "\u3000",
         "naïve", "x", " 🙂", "\r\n", "don't", " Ünïcode", "\u200b", "<|", "|>", "_", "\u0301", "\U0001f469\u200d\U0001f467"]


def texts(count):
    """Yields texts of random words and texts of random code points other than surrogates, in turn."""
    rng = random.Random(20240520)
    for i in range(count):
        if i % 2:
            yield "".join(rng.choice(WORDS) for _ in range(rng.randrange(60)))
        else:
            ranges = [(0, 0x80), (0x80, 0x800), (0x800, 0xd800), (0xe000, 0x110000)]
            yield "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randrange(60)))


def encoder(name):
    if name == "bytes":
        return lambda text: list(text.encode())
    import tiktoken
    return tiktoken.get_encoding("gpt2").encode_ordinary


def main():
    parser = argparse.ArgumentParser(description="Checks of an exported folder, by transformers.")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--like", help="a folder whose model must give the same logits")
    parser.add_argument("--texts", type=int, default=2000)
    args = parser.parse_args()

    transformers.utils.logging.disable_progress_bar()
    config = json.loads((args.folder / "config.json").read_text())
    encode = encoder(config["wgpt_tokenizer"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.folder)
    print(f"{type(tokenizer).__name__}, {len(tokenizer)} ids, end of text {tokenizer.eos_token_id}")
    ok = len(tokenizer) == config["vocab_size"] and tokenizer.eos_token_id == config["eos_token_id"]
    wrong = back = count = 0
    for text in texts(args.texts):
        ids = tokenizer(text)["input_ids"]
        count += len(ids)
        wrong += ids != encode(text)
        back += tokenizer.decode(ids, clean_up_tokenization_spaces=False) != text
    print(f"{args.texts} texts, {count} tokens: {wrong} encoded differently, {back} decoded differently")
    ok &= wrong == 0 and back == 0
    if args.like:
        tokens = torch.randint(config["vocab_size"], (2, min(config["n_positions"], 64)), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            ours, theirs = [gpt2.load(folder)(input_ids=tokens).logits for folder in (args.folder, args.like)]
        print(f"logits: largest difference {(ours - theirs).abs().max().item():.3e}")
        ok &= torch.equal(ours, theirs)
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
