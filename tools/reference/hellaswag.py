#!/usr/bin/env python3
"""Answers questions in HellaSwag's form with transformers, and compares the answers of `wgpt eval --answers` with them.

needs   what make_golden.py needs
run     python tools/reference/hellaswag.py --make 240 FILE.jsonl
        wgpt eval --from FOLDER --hellaswag FILE.jsonl --answers ANSWERS.jsonl
        python tools/reference/hellaswag.py FILE.jsonl FOLDER ANSWERS.jsonl
        python tools/reference/hellaswag.py --golden tests/golden/tiny     (for tests/eval.rs)
result  exit code 1 unless every choice is the same, and every loss within 1e-4 of wgpt's
"""

import argparse
import json
import os
import pathlib
import random
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

NAMES = ["A man", "The woman in red", "Two boys", "She", "An old sailor", "The naïve king", "A dog"]
VERBS = ["walks to", "looks at", "is holding", "throws", "begins to sing about", "cannot find", "paints", "eats"]
THINGS = ["the roof", "a boat", "his kingdom", "the ball", "many roses", "the café", "a very long letter to nobody", "it"]


def make(count, path):
    rng = random.Random(7)
    sentence = lambda: f"{rng.choice(NAMES)} {rng.choice(VERBS)} {rng.choice(THINGS)}"
    ending = lambda: f"{rng.choice(VERBS)} {rng.choice(THINGS)}" + rng.choice([".", ", then " + sentence().lower() + ".", "!"])
    with path.open("w") as out:
        for i in range(count):
            context = ". ".join(sentence() for _ in range(rng.randrange(1, 5))) + ". " + rng.choice(NAMES)
            endings = []
            while len(endings) < 4:
                text = ending()
                if text not in endings:  # equal endings would be a tie
                    endings.append(text)
            row = {"ind": i, "ctx": context, "endings": endings, "label": rng.randrange(4)}
            out.write(json.dumps(row, ensure_ascii=False) + "\n")


def golden(folder):
    """Writes short questions, some longer than the context, with transformers' answers; tokens are bytes."""
    import gpt2
    model, encode = gpt2.load(folder), lambda text: list(text.encode())
    rng = random.Random(11)
    with (folder / "hellaswag.jsonl").open("w") as out:
        for i in range(220):
            context = f"{rng.choice(NAMES)} {rng.choice(VERBS)}"
            endings = rng.sample(THINGS[:6] + NAMES[1:] + ["a", "é", "roses", "no one"], 4)
            row = {"ctx": context, "endings": endings, "label": rng.randrange(4)}
            row["losses"] = [round(loss, 6) for loss in losses(model, encode, row)]
            row["choice"] = row["losses"].index(min(row["losses"]))
            out.write(json.dumps(row, ensure_ascii=False) + "\n")


def losses(model, encode, row):
    """Returns the mean loss of each ending, scored alone, without padding. A long question loses its beginning."""
    import torch
    context = encode(row["ctx"])
    result = []
    for ending in row["endings"]:
        answer = encode(" " + ending)
        tokens = torch.tensor([(context + answer)[-model.config.n_positions - 1:]])
        with torch.no_grad():
            logits = model(input_ids=tokens[:, :-1]).logits[0, -len(answer):].double()
        result.append(torch.nn.functional.cross_entropy(logits, tokens[0, -len(answer):]).item())
    return result


def main():
    parser = argparse.ArgumentParser(description="HellaSwag by transformers.")
    parser.add_argument("--make", type=int, help="write this many generated questions instead")
    parser.add_argument("--golden", type=pathlib.Path, help="a folder of tests/golden to write questions and answers into")
    parser.add_argument("file", type=pathlib.Path, nargs="?")
    parser.add_argument("folder", nargs="?")
    parser.add_argument("answers", type=pathlib.Path, nargs="?")
    args = parser.parse_args()
    if args.golden:
        golden(args.golden)
        return
    if args.make:
        make(args.make, args.file)
        return
    import gpt2
    import transformers
    transformers.utils.logging.disable_progress_bar()
    model, tokenizer = gpt2.load(args.folder), transformers.AutoTokenizer.from_pretrained(args.folder)
    encode = lambda text: tokenizer(text)["input_ids"]
    ours = [json.loads(line) for line in args.answers.read_text().splitlines()]
    rows = [json.loads(line) for line in args.file.read_text().splitlines()]
    same = correct = 0
    worst, close = 0.0, 1e9
    for row, answer in zip(rows, ours, strict=True):
        want = losses(model, encode, row)
        choice = want.index(min(want))
        same += choice == answer["choice"]
        correct += choice == int(row["label"])
        worst = max(worst, *(abs(a - b) for a, b in zip(want, answer["losses"])))
        first, second = sorted(want)[:2]
        close = min(close, second - first)
    print(f"{same} of {len(rows)} choices are the same; {correct} correct; largest difference of a loss {worst:.2e}; "
          f"smallest gap between two losses {close:.2e}")
    sys.exit(0 if same == len(rows) and worst < 1e-4 else 1)


if __name__ == "__main__":
    main()
