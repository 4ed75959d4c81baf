//! Flags and commands of other trainers (nanoGPT, llm.c, Hugging Face's Trainer, llama.cpp) and their counterparts
//! here.

/// Flags with one counterpart. The advice holds for every command that has each `--flag` of its text.
struct Foreign {
    /// Names without dashes, words separated by `-`, in lower case.
    names: &'static [&'static str],
    /// The advice.
    advice: &'static str,
}

const fn flag(names: &'static [&'static str], advice: &'static str) -> Foreign {
    Foreign { names, advice }
}

/// Names of the number of epochs.
const EPOCHS: &[&str] = &["epochs", "epoch", "num-epochs", "num-train-epochs", "max-epochs"];
/// Names of the number of tokens of a whole run.
const ALL_TOKENS: &[&str] = &["max-tokens", "total-tokens", "num-tokens"];

/// Long flags, for every command that has the flags of the advice. Of several entries with a name the first one that
/// fits the command counts.
const LONG: &[Foreign] = &[
    // the length of a run
    flag(
        &["max-iters", "max-steps", "num-iterations", "iterations", "iters", "num-steps", "n-steps", "total-steps"],
        "try --steps N",
    ),
    flag(EPOCHS, "one epoch is the default; try --steps N"),
    flag(ALL_TOKENS, "try --tokens N"),
    flag(ALL_TOKENS, "try --steps N, each of --tokens-per-step tokens"),
    // the sizes of a step
    flag(
        &["batch-size", "micro-batch-size", "device-batch-size", "per-device-train-batch-size", "bs", "b"],
        "try --batch N",
    ),
    flag(
        &[
            "block-size",
            "sequence-length",
            "seq-length",
            "seq-len",
            "max-seq-len",
            "max-length",
            "context-length",
            "context-size",
            "ctx",
            "ctx-size",
            "n-ctx",
            "n-positions",
        ],
        "try --context N",
    ),
    flag(&["total-batch-size", "tokens-per-batch"], "try --tokens-per-step N"),
    flag(
        &["gradient-accumulation-steps", "grad-accum-steps", "grad-accum", "accumulate-grad-batches", "accumulation"],
        "try --tokens-per-step N, which is batch x context x micro-steps",
    ),
    // the model
    flag(&["n-layer", "n-layers", "num-layers", "num-hidden-layers", "depth"], "try --layers N"),
    flag(&["n-head", "n-heads", "num-heads", "num-attention-heads"], "try --heads N"),
    flag(&["n-embd", "embd", "d-model", "hidden-size", "dim", "width"], "try --channels N"),
    flag(&["vocab-size"], "try --vocab N"),
    flag(&["init-from"], "try --init MODEL for weights, --resume DIR for a run"),
    flag(&["from", "load", "pretrained", "model-name-or-path", "model-path", "weights", "ckpt"], "try --init MODEL"),
    flag(
        &[
            "model",
            "init",
            "init-from",
            "load",
            "ckpt",
            "checkpoint",
            "model-path",
            "model-name-or-path",
            "weights",
            "m",
        ],
        "try --from MODEL",
    ),
    // the optimizer and its schedule
    flag(&["learning-rate", "peak-lr", "max-lr"], "try --lr RATE"),
    flag(&["warmup-iters", "warmup-steps", "warmup-iterations", "num-warmup-steps"], "try --warmup N"),
    flag(
        &["min-lr", "learning-rate-decay-frac", "final-learning-rate-frac", "lr-decay-frac"],
        "try --final-lr-frac F, the last rate over the peak",
    ),
    flag(&["decay-lr", "no-decay-lr"], "try --schedule constant or cosine"),
    flag(&["lr-decay-iters", "lr-decay-steps"], "the schedule ends with --steps"),
    flag(&["lr-scheduler", "lr-scheduler-type", "scheduler", "lr-schedule"], "try --schedule NAME"),
    flag(&["grad-clip", "max-grad-norm", "gradient-clip-val", "clip-grad"], "try --clip NORM"),
    flag(&["wd"], "try --weight-decay F"),
    flag(&["adam-beta1"], "try --beta1 F"),
    flag(&["adam-beta2"], "try --beta2 F"),
    flag(&["adam-eps", "adam-epsilon", "epsilon"], "try --eps F"),
    flag(&["random-seed"], "try --seed N"),
    // precision and kernels
    flag(&["bf16", "bfloat16"], "WGSL has no bf16; try --precision f16"),
    flag(&["fp16", "float16", "half", "amp", "mixed-precision", "dtype", "tensorcores"], "try --precision f16"),
    flag(&["tf32", "enable-tf32"], "there is no TF32, f32 is computed as f32; try --precision f16"),
    flag(&["outtype", "out-type"], "try --dtype TYPE"),
    flag(&["gradient-checkpointing", "activation-checkpointing"], "try --recompute block"),
    // data
    flag(
        &[
            "dataset",
            "dataset-name",
            "input-bin",
            "train-bin",
            "train-data",
            "train-file",
            "data-path",
            "data-dir",
            "input",
        ],
        "try --data FILES for token shards, --text FILE for text",
    ),
    flag(&["input-val-bin", "val-bin", "val-data", "validation-file", "eval-data"], "try --val FILES"),
    flag(
        &["val", "input-bin", "input-val-bin", "val-data", "dataset", "dataset-name", "data-path", "data-dir", "input"],
        "try --data FILES",
    ),
    flag(&["tokenizer-name", "tokenizer-path"], "try --tokenizer NAME"),
    flag(&["shuffle"], "batches are shuffled unless you say --no-shuffle"),
    flag(&["overfit-single-batch", "overfit-batches"], "try --overfit-one-batch"),
    flag(&["text-field", "text-key", "text-column", "column"], "try --field NAME"),
    flag(&["num-proc", "num-workers", "workers", "jobs", "j"], "try --threads N"),
    flag(&["shard-size"], "try --shard-tokens N"),
    // records and intervals
    flag(&["eval-interval", "eval-every", "eval-steps", "val-loss-every", "val-interval"], "try --val-every N"),
    flag(&["eval-iters", "val-max-steps", "val-iters"], "try --val-steps N"),
    flag(&["log-interval", "logging-steps", "log-steps", "print-every"], "try --log-every N"),
    flag(&["quiet", "silent"], "try --log-every N for fewer lines"),
    flag(
        &["save-every", "save-interval", "save-steps", "checkpoint-interval", "always-save-checkpoint"],
        "try --checkpoint-every N",
    ),
    flag(&["save-total-limit"], "try --keep N"),
    flag(
        &["out-dir", "output-dir", "output", "save-dir", "log-dir", "logdir", "run-name", "name", "folder", "o"],
        "try --out DIR",
    ),
    flag(&["out-dir", "output-dir"], "try --from DIR, the run's folder"),
    flag(&["hellaswag-eval"], "try --hellaswag FILE --hellaswag-every N"),
    flag(&["tasks"], "try --hellaswag FILE"),
    flag(&["resume-from-checkpoint", "resume-from", "continue"], "try --resume DIR"),
    flag(&["overwrite", "overwrite-output-dir", "force"], "try --restart, which renames the old run"),
    // devices
    flag(
        &["gpus", "num-gpus", "n-gpus", "nproc-per-node", "num-processes", "world-size", "ddp", "backend"],
        "try --devices all, or mpirun for several machines",
    ),
    flag(&["gpu", "cuda", "cpu", "adapter"], "try --device NAME; `wgpt devices` lists them"),
    flag(&["vram", "gpu-memory", "max-memory"], "try --memory SIZE, such as 24GiB"),
    flag(&["mfu"], "try --tflops N, which is MFU times the GPU's peak"),
    flag(&["price", "cost", "dollars-per-hour"], "try --price-per-hour DOLLARS"),
    // text
    flag(&["max-new-tokens", "n-predict", "length", "num-tokens", "max-length"], "try --max-tokens N"),
    flag(&["num-samples", "n-samples", "num-return-sequences", "n"], "try --samples N"),
    flag(&["temp", "t"], "try --temperature T"),
    flag(&["greedy", "no-sample"], "try --temperature 0"),
];

/// Flags of a command that have no counterpart among its flags.
const OF_COMMAND: &[(&str, &[&str], &str)] = &[
    ("train", &["compile", "torch-compile"], "leave it out: kernels are compiled for the adapter"),
    ("train", &["flash", "flash-attention"], "leave it out: attention kernels are chosen for the adapter"),
    ("train", &["dropout", "attn-dropout"], "leave it out: there is no dropout, as in llm.c"),
    ("train", &["bias"], "leave it out: the model has GPT-2's biases"),
    ("train", &["zero-stage"], "leave it out: several devices always share the moments (ZeRO-1)"),
    ("train", &["use-master-weights"], "leave it out: master weights are always f32"),
    ("train", &["num-workers", "workers"], "leave it out: a thread reads ahead"),
    ("train", &["optimizer", "optim"], "leave it out: the optimizer is AdamW"),
    ("train", &["eval-only", "do-eval"], "try `wgpt eval --from MODEL --data FILES`"),
    ("train", &["do-train"], "leave it out"),
    (
        "train",
        &["wandb", "wandb-log", "wandb-project", "wandb-run-name", "tensorboard", "report-to"],
        "leave it out: every run writes metrics.jsonl, report.html and TensorBoard's tb/",
    ),
    ("train", &["config", "config-file", "cfg", "recipe"], "name the recipe without a flag: wgpt train FILE"),
    ("plan", &["config", "config-file", "cfg", "recipe"], "name the recipe without a flag: wgpt plan FILE"),
    ("plan", EPOCHS, "try --tokens N, of all epochs"),
    (
        "plan",
        &["gpus", "num-gpus", "n-gpus", "nproc-per-node", "num-processes", "world-size"],
        "try --devices N, and --nodes M for several machines",
    ),
    ("profile", &["tokens-per-step"], "try --accumulation N, the micro-steps per step"),
    ("profile", EPOCHS, "try --steps N"),
    (
        "generate",
        &["prompt", "p", "start", "input", "text", "i"],
        "the prompt needs no flag: wgpt generate --from MODEL 'TEXT'",
    ),
    ("generate", &["stream"], "leave it out: text appears token by token"),
    ("generate", &["interactive", "chat"], "leave it out: `wgpt generate` continues one text"),
    ("eval", &["text"], "make token shards of it first: `wgpt data prepare FILE --out DIR`"),
    ("convert", &["from", "to", "out", "outfile", "output", "o"], "name both without flags: wgpt convert FROM TO"),
    ("report", &["from", "run"], "name the run without a flag: wgpt report RUN"),
    ("verify", &["from", "run", "resume"], "name the run without a flag: wgpt verify RUN"),
];

/// llm.c's flags of `train_gpt2cu`, for `wgpt train`.
const LLMC: &[(&[&str], &str)] = &[
    (&["-i"], "try --data FILES (llm.c's -i)"),
    (&["-j"], "try --val FILES (llm.c's -j)"),
    (&["-e"], "try --model d12 for a shape, --init FILE for weights (llm.c's -e)"),
    (&["-o"], "try --out DIR (llm.c's -o)"),
    (&["-lg"], "leave it out: the GPU's state is not logged"),
    (&["-n"], "try --checkpoint-every N (llm.c's -n)"),
    (&["-nk"], "try --keep N (llm.c's -nk)"),
    (&["-nm"], "try --keep-every N (llm.c's -nm)"),
    (&["-y"], "try --resume DIR (llm.c's -y 1)"),
    (&["-b"], "try --batch N (llm.c's -b)"),
    (&["-t"], "try --context N (llm.c's -t)"),
    (&["-d"], "try --tokens-per-step N (llm.c's -d)"),
    (&["-x"], "try --steps N (llm.c's -x)"),
    (&["-k"], "try --schedule NAME (llm.c's -k)"),
    (&["-l"], "try --lr RATE (llm.c's -l)"),
    (&["-u"], "try --warmup N (llm.c's -u)"),
    (&["-q"], "try --final-lr-frac F (llm.c's -q)"),
    (&["-c"], "try --weight-decay F (llm.c's -c)"),
    (&["-sl"], "try --skip-loss-z Z (llm.c's -sl)"),
    (&["-sg"], "try --skip-norm-z Z (llm.c's -sg)"),
    (&["-m"], "try --val-steps N (llm.c's -m)"),
    (&["-s"], "try --sample-every N (llm.c's -s)"),
    (&["-g"], "leave it out: a sample has 300 tokens; for longer texts `wgpt generate --max-tokens N`"),
    (&["-h"], "try --hellaswag FILE --hellaswag-every N (llm.c's -h)"),
    (&["-v"], "try --val-every N (llm.c's -v); -v alone prints more"),
    (&["-a"], "try --overfit-one-batch (llm.c's -a)"),
    (&["-f"], "leave it out: there is no TF32, f32 is computed as f32"),
    (&["-w"], "leave it out: master weights are always f32"),
    (&["-ge"], "leave it out: GELU kernels are chosen by wgpt"),
    (&["-z"], "leave it out: several devices always share the moments (ZeRO-1)"),
    (&["-r"], "try --recompute gelu or ln (llm.c's -r 1 and -r 2)"),
    (&["-pn", "-pr", "-pg", "-pi", "-ps", "-pf"], "try --devices all, or mpirun for several machines"),
    (&["-p"], "name the recipe without a flag: wgpt train FILE"),
];

/// Words that others have for a command.
const COMMANDS: &[(&[&str], &str)] = &[
    (&["resume", "continue"], "try `wgpt train --resume DIR`"),
    (&["run", "fit", "finetune", "fine-tune", "pretrain"], "try `wgpt train`"),
    (&["sample", "infer", "inference", "complete", "chat"], "try `wgpt generate`"),
    (&["evaluate", "test", "validate", "hellaswag"], "try `wgpt eval`"),
    (&["prepare", "tokenize"], "try `wgpt data prepare`"),
    (&["fetch", "download", "pull"], "try `wgpt data fetch`"),
    (&["inspect"], "try `wgpt data inspect`"),
    (&["export", "import"], "try `wgpt convert`"),
    (&["bench", "benchmark"], "try `wgpt profile`, or `cargo bench` in the repository"),
    (&["info", "gpus", "gpu", "adapters", "list"], "try `wgpt devices`"),
    (&["kernels", "kernel"], "try `wgpt shader`"),
    (&["estimate", "memory"], "try `wgpt plan`"),
];

/// Values of flags that others have, for the flag of the first column, for every command that has the flags of the
/// advice. The first entry that fits counts.
const VALUES: &[(&str, &[&str], &str)] = &[
    ("--precision", &["bf16", "bfloat16"], "WGSL has no bf16; try f16"),
    ("--precision", &["fp16", "float16", "half", "mixed", "amp"], "try f16"),
    ("--precision", &["fp32", "float32", "single"], "try f32"),
    ("--precision", &["tf32"], "there is no TF32; try f16 or f32"),
    ("--model", &["gpt2", "gpt2-small", "124m"], "for GPT-2's weights: --init gpt2; its shape is d12"),
    ("--model", &["gpt2-medium", "350m"], "for GPT-2's weights: --init gpt2-medium; its shape is d24"),
    ("--model", &["gpt2-large", "774m"], "for GPT-2's weights: --init gpt2-large; its shape is d36"),
    ("--model", &["gpt2-xl", "1558m"], "for GPT-2's weights: --init gpt2-xl; its shape is d48"),
    ("--model", &["gpt2", "gpt2-small", "124m"], "try d12, its shape"),
    ("--model", &["gpt2-medium", "350m"], "try d24, its shape"),
    ("--model", &["gpt2-large", "774m"], "try d36, its shape"),
    ("--model", &["gpt2-xl", "1558m"], "try d48, its shape"),
];

/// Returns the advice for a flag that `command` does not have, spelled as typed: `--max_iters`, `-x`.
pub fn advice(command: &clap::Command, typed: &str) -> Option<&'static str> {
    let own = command.get_name();
    let name = flag_name(typed);
    if own == "train" && !typed.starts_with("--") {
        let exact = LLMC.iter().find(|(flags, _)| flags.contains(&typed));
        // `-x20`, as getopt reads it
        let begins = |flags: &[&str]| flags.iter().any(|flag| flag.len() == 2 && typed.starts_with(flag));
        let joined = || LLMC.iter().find(|(flags, _)| begins(flags));
        return exact.or_else(joined).map(|(_, advice)| *advice);
    }
    let special = OF_COMMAND.iter().find(|(of, names, _)| *of == own && names.contains(&name.as_str()));
    special.map(|(_, _, advice)| *advice).or_else(|| {
        let fits = |foreign: &&Foreign| foreign.names.contains(&name.as_str()) && has_all(command, foreign.advice);
        LONG.iter().find(fits).map(|foreign| foreign.advice)
    })
}

/// Returns the advice for a word that is no command.
pub fn command(word: &str) -> Option<&'static str> {
    let word = word.to_lowercase();
    COMMANDS.iter().find(|(words, _)| words.contains(&word.as_str())).map(|(_, advice)| *advice)
}

/// Returns the advice for a value of `flag` of a command.
pub fn value(command: &clap::Command, flag: &str, value: &str) -> Option<&'static str> {
    let value = value.to_lowercase();
    let is = |(of, values, advice): &&(&str, &[&str], &str)| {
        *of == flag && values.contains(&value.as_str()) && has_all(command, advice)
    };
    VALUES.iter().find(is).map(|(_, _, advice)| *advice)
}

/// Returns the long flags of an advice, without their dashes. Those in backticks belong to the command that is there.
fn flags_of(advice: &str) -> impl Iterator<Item = &str> {
    let outside = advice.split('`').step_by(2).flat_map(str::split_whitespace);
    outside.filter_map(|word| word.strip_prefix("--")).map(|name| name.trim_end_matches([',', ';']))
}

/// Returns whether a command has all flags of an advice.
fn has_all(command: &clap::Command, advice: &str) -> bool {
    flags_of(advice).all(|long| has(command, long))
}

/// Returns the name of a flag as wgpt spells names: `--Max_Iters` is `max-iters`.
pub fn flag_name(typed: &str) -> String {
    typed.trim_start_matches('-').replace('_', "-").to_lowercase()
}

/// Returns whether a command has a long flag.
pub fn has(command: &clap::Command, long: &str) -> bool {
    command.get_arguments().any(|argument| argument.get_long() == Some(long))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn every_advice_names_flags_that_exist() {
        let cli = Cli::command();
        let commands: Vec<&clap::Command> =
            cli.get_subcommands().flat_map(|c| [c].into_iter().chain(c.get_subcommands())).collect();
        for Foreign { names, advice } in LONG {
            assert!(flags_of(advice).next().is_some(), "{names:?}: {advice}");
            assert!(commands.iter().any(|command| has_all(command, advice)), "{names:?}: {advice}");
            assert!(names.iter().all(|name| *name == name.to_lowercase() && !name.contains('_')), "{names:?}");
        }
        let train = cli.find_subcommand("train").expect("train");
        for (flags, advice) in LLMC {
            assert!(has_all(train, advice), "{flags:?}: {advice}");
        }
        for (command, _, advice) in OF_COMMAND {
            let known = commands.iter().find(|known| known.get_name() == *command).expect("a command");
            assert!(has_all(known, advice), "{command}: {advice}");
        }
        for (_, values, advice) in VALUES {
            assert!(commands.iter().any(|command| has_all(command, advice)), "{values:?}: {advice}");
        }
    }

    #[test]
    fn an_advice_fits_its_command() {
        let cli = Cli::command();
        let of = |command: &str, typed: &str| advice(cli.find_subcommand(command).expect("a command"), typed);
        for (command, typed, expected) in [
            ("train", "--max_iters", Some("try --steps N")),
            ("train", "--out_dir", Some("try --out DIR")),
            ("train", "-x", Some("try --steps N (llm.c's -x)")),
            ("train", "-sl", Some("try --skip-loss-z Z (llm.c's -sl)")),
            ("train", "-b4", Some("try --batch N (llm.c's -b)")),
            ("generate", "--out_dir", Some("try --from DIR, the run's folder")),
            ("generate", "--ckpt", Some("try --from MODEL")),
            ("generate", "--max_new_tokens", Some("try --max-tokens N")),
            ("plan", "--batch_size", Some("try --batch N")),
            ("plan", "--gpus", Some("try --devices N, and --nodes M for several machines")),
            ("plan", "--max_tokens", Some("try --tokens N")),
            ("eval", "--dataset", Some("try --data FILES")),
            ("train", "--dataset", Some("try --data FILES for token shards, --text FILE for text")),
            ("devices", "--batch_size", None),
            ("train", "--nonsense", None),
        ] {
            assert_eq!(of(command, typed), expected, "{command} {typed}");
        }
    }
}
