# Makes a folder for transformers and wgpt of nanoGPT's ckpt.pt, or of
# build-nanogpt's log/model_*.pt. nanoGPT computes GELU exactly, GPT-2 by
# tanh: the losses of small models moved by 1e-5 to 5e-5.
import sys, torch
from transformers import GPT2Config, GPT2LMHeadModel

class GPTConfig:  # build-nanogpt pickles its settings as this class
    pass

torch.serialization.add_safe_globals([GPTConfig])
saved = torch.load(sys.argv[1], map_location="cpu", weights_only=True)
args = saved["model_args"] if "model_args" in saved else vars(saved["config"])
end = 50256 if args["vocab_size"] > 50256 else None
config = GPT2Config(
    vocab_size=args["vocab_size"], n_positions=args["block_size"],
    n_embd=args["n_embd"], n_layer=args["n_layer"], n_head=args["n_head"],
    bos_token_id=end, eos_token_id=end)
matrices = ("attn.c_attn.weight", "attn.c_proj.weight",
            "mlp.c_fc.weight", "mlp.c_proj.weight")
weights = {}
for name, x in saved["model"].items():
    name = name.replace("_orig_mod.", "").removeprefix("module.")
    if name.endswith(".attn.bias"):  # a mask
        continue
    # nanoGPT's Linear is (out, in), transformers' Conv1D (in, out)
    x = x.t() if name.endswith(matrices) else x
    weights[name] = x.float().contiguous()
model = GPT2LMHeadModel(config)
for name, x in model.named_parameters():
    if name.endswith(".bias"):  # missing after training with bias=False
        weights.setdefault(name, torch.zeros_like(x))
missing, unknown = model.load_state_dict(weights, strict=False)
masks = (".attn.bias", ".attn.masked_bias")
assert not unknown and all(name.endswith(masks) for name in missing), (
    missing, unknown)
model.save_pretrained(sys.argv[2])
