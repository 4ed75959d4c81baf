//! Answers to people: every mistake in a command line is one line that says what to type instead, help fits a terminal of 80
//! columns, and lines of a run have a width and a number that suit their reader.

use std::fs;
use std::path::Path;

use super::{SMALL, metrics, text_file, train, wgpt, wgpt_with};

/// A mistake: the arguments, the exit code, and words of the answer.
type Row<'a> = (&'a str, i32, &'a [&'a str]);

/// Expects one line on standard error for each row. Words of a command are separated by blanks.
#[track_caller]
fn answered(dir: &Path, rows: &[Row]) {
    for (line, code, words) in rows {
        let args: Vec<&str> = line.split_whitespace().collect();
        let outcome = wgpt_with(dir, &[("HF_HUB_CACHE", Path::new("none"))], &args);
        assert_eq!(outcome.code, *code, "wgpt {line}\n{}{}", outcome.out, outcome.err);
        assert_eq!(outcome.err.trim_end().lines().count(), 1, "wgpt {line}\n{}", outcome.err);
        assert!(outcome.err.starts_with("error: "), "wgpt {line}\n{}", outcome.err);
        for word in *words {
            assert!(outcome.err.contains(word), "wgpt {line}: expected `{word}` in\n{}", outcome.err);
        }
    }
}

#[test]
fn flags_of_nanogpt_have_a_counterpart() {
    let dir = tempfile::tempdir().expect("folder");
    answered(
        dir.path(),
        &[
            ("train --max-iters 100", 2, &["--max-iters: unknown flag of wgpt train; try --steps N"]),
            ("train --max_iters=100", 2, &["--max_iters:", "try --steps N"]),
            ("train --learning_rate 1e-3", 2, &["try --lr RATE"]),
            ("train --batch_size 4", 2, &["try --batch N"]),
            ("train --block_size 64", 2, &["try --context N"]),
            ("train --n_layer 4", 2, &["try --layers N"]),
            ("train --n_head 4", 2, &["try --heads N"]),
            ("train --n_embd 128", 2, &["try --channels N"]),
            ("train --eval_interval 100", 2, &["try --val-every N"]),
            ("train --eval_iters 20", 2, &["try --val-steps N"]),
            ("train --log_interval 10", 2, &["try --log-every N"]),
            ("train --init_from resume", 2, &["--init MODEL", "--resume DIR"]),
            ("train --gradient_accumulation_steps 8", 2, &["try --tokens-per-step N"]),
            ("train --out_dir x", 2, &["try --out DIR"]),
            ("train --dtype float16", 2, &["try --precision f16"]),
            ("train --compile=True", 2, &["leave it out"]),
            ("train --wandb_log True", 2, &["report.html"]),
            ("train --dropout 0.1", 2, &["leave it out"]),
            ("train --epochs 3", 2, &["try --steps N"]),
            ("train --config my.toml", 2, &["name the recipe without a flag"]),
            ("train --val_every 100 --vall_every", 2, &["try --val-every"]),
            ("generate --out_dir runs/1", 2, &["try --from DIR"]),
            ("generate --from x --max_new_tokens 5", 2, &["try --max-tokens N"]),
            ("generate --from x --prompt hi", 2, &["the prompt needs no flag"]),
            ("generate --from x -p hi", 2, &["the prompt needs no flag"]),
            ("generate --resume runs/1", 2, &["`wgpt train` has it"]),
        ],
    );
    assert_eq!(fs::read_dir(dir.path()).expect("folder").count(), 0);
}

#[test]
fn flags_of_llmc_have_a_counterpart() {
    let dir = tempfile::tempdir().expect("folder");
    answered(
        dir.path(),
        &[
            ("train -i x.bin", 2, &["try --data FILES"]),
            ("train -j x.bin", 2, &["try --val FILES"]),
            ("train -e d12", 2, &["--model d12", "--init FILE"]),
            ("train -o dir", 2, &["try --out DIR"]),
            ("train -b 4", 2, &["-b: unknown flag of wgpt train; try --batch N"]),
            ("train -t 64", 2, &["try --context N"]),
            ("train -d 524288", 2, &["try --tokens-per-step N"]),
            ("train -x 100", 2, &["try --steps N"]),
            ("train -l 1e-3", 2, &["try --lr RATE"]),
            ("train -u 700", 2, &["try --warmup N"]),
            ("train -q 0.1", 2, &["try --final-lr-frac F"]),
            ("train -c 0.1", 2, &["try --weight-decay F"]),
            ("train -sl 7", 2, &["-sl: unknown flag", "try --skip-loss-z Z"]),
            ("train -sg 7", 2, &["try --skip-norm-z Z"]),
            ("train -s 20", 2, &["try --sample-every N"]),
            ("train -v 250", 2, &["try --val-every N"]),
            ("train -h 1", 2, &["try --hellaswag FILE"]),
            ("train -g 144", 2, &["--max-tokens N"]),
            ("train -n 5000", 2, &["try --checkpoint-every N"]),
            ("train -nk 5", 2, &["try --keep N"]),
            ("train -y 1", 2, &["try --resume DIR"]),
            ("train -r 1", 2, &["try --recompute gelu"]),
            ("train -w 1", 2, &["leave it out"]),
            ("train -z 1", 2, &["ZeRO-1"]),
            ("train -ge 1", 2, &["leave it out"]),
            ("train -pn 8", 2, &["--devices all"]),
        ],
    );
}

#[test]
fn mistakes_in_a_command_line_are_one_line() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    text_file(dir, "book.txt", 4000);
    fs::write(dir.join("r.toml"), "text = \"book.txt\"\nsteps = 3\n").expect("write");
    answered(
        dir,
        &[
            ("trian", 2, &["unknown command `trian`; try `wgpt train`"]),
            ("resume runs/1", 2, &["`wgpt train --resume DIR`"]),
            ("sample", 2, &["try `wgpt generate`"]),
            ("train --precision bf16", 2, &["`bf16`, expected one of f32, f16, auto; WGSL has no bf16; try f16"]),
            ("train --memory 24", 2, &["--memory: `24` has no unit, expected a size such as 24GiB"]),
            ("plan --memory 24", 2, &["`24` has no unit"]),
            ("train --batch x", 2, &["--batch: `x`, expected a number or auto"]),
            ("train --steps", 2, &["--steps: needs a value"]),
            ("train --lr 1 --lrr 2", 2, &["try --lr"]),
            ("train --resume runs/1 r.toml", 2, &["contradicts"]),
            ("train --model gpt2 --text book.txt", 2, &["for GPT-2's weights: --init gpt2; its shape is d12"]),
            ("train r.toml --hellaswag-every 10", 2, &["--hellaswag-every: needs --hellaswag"]),
            ("train book.txt", 2, &["book.txt", "--text book.txt"]),
            ("train nosuch.txt", 3, &["nosuch.txt: no such recipe or run", "--text nosuch.txt"]),
            ("train d12", 3, &["--model d12"]),
            ("train gpt2", 3, &["--init gpt2"]),
            ("train fineweb10B", 3, &["--data fineweb10B"]),
            ("train --data book.txt", 3, &["book.txt", "--text book.txt"]),
            ("train --text book.txt --text nosuch.txt --dry-run", 3, &["nosuch.txt: no such file"]),
            ("generate hello", 2, &["generate: needs --from MODEL; such as --from runs/1"]),
            ("generate --from x Once upon", 2, &["unexpected argument `upon`", "needs quotes"]),
            ("eval --from x", 2, &["eval: needs --data or --hellaswag"]),
            ("plan --devices 0", 2, &["--devices: ", "expected a number from 1 to 1024"]),
            ("plan --tokens ten", 2, &["such as 524288, 200k or 10B"]),
            ("plan d12", 3, &["d12", "--model d12"]),
            ("plan --model d12 --memory 8GiB --batch 64", 5, &["batch 64 needs", "the largest batch that fits is "]),
            ("plan --model d48 --memory 1GiB", 5, &["no batch fits"]),
            ("report nosuch", 3, &["nosuch: no such file or folder"]),
            ("verify nosuch", 3, &["nosuch: no such run"]),
            ("convert a", 2, &["convert: needs TO"]),
            ("data fetch", 2, &["needs NAME"]),
            ("data prepare x", 2, &["needs --out DIR"]),
            ("devices extra", 2, &["unexpected argument `extra`, expected flags only"]),
        ],
    );
    assert!(!dir.join("runs").exists());
}

#[test]
fn a_missing_run_names_those_that_exist() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    for run in ["runs/1", "runs/2", "runs/10"] {
        fs::create_dir_all(dir.join(run)).expect("folder");
        fs::write(dir.join(run).join("config.toml"), "").expect("write");
    }
    let there = "there are runs/1, runs/2, runs/10";
    answered(
        dir,
        &[
            ("generate --from runs/99 hi", 3, &["runs/99: no such run", there]),
            ("eval --from runs/99 --hellaswag x", 3, &["runs/99: no such run", there]),
            ("convert runs/99 x", 3, &["runs/99: no such run", there]),
            ("train --resume runs/99", 3, &["runs/99: no such run", there]),
            ("train runs/99", 3, &["runs/99: no such recipe or run", there]),
            ("report runs/99", 3, &["runs/99: no such file or folder", there]),
            ("verify runs/99", 3, &["runs/99: no such run", there]),
        ],
    );
}

#[test]
fn help_fits_80_columns() {
    let dir = tempfile::tempdir().expect("folder");
    for command in [
        "",
        "train",
        "generate",
        "data",
        "data prepare",
        "data fetch",
        "data inspect",
        "eval",
        "convert",
        "devices",
        "profile",
        "plan",
        "tune",
        "verify",
        "report",
        "shader",
    ] {
        for flag in ["-h", "--help"] {
            let args: Vec<&str> = command.split_whitespace().chain([flag]).collect();
            let help = wgpt(dir.path(), &args).ends_with(0).out;
            for line in help.lines() {
                assert!(line.chars().count() <= 80, "wgpt {command} {flag}: {line}");
            }
            // the flags that all commands have come last
            let at = |text: &str| help.find(text).unwrap_or_else(|| panic!("wgpt {command} {flag}: no {text}\n{help}"));
            let flags = help.split("Examples:").next().unwrap_or_default();
            assert!(at("-v, --verbose") > flags.rfind("\n      --").unwrap_or(0), "wgpt {command} {flag}\n{help}");
            if (command, flag) == ("train", "-h") {
                assert!(help.lines().count() <= 60, "{} lines\n{help}", help.lines().count());
                let headings = ["Data:", "Model:", "Training:", "Run:", "Records:", "Devices:", "Output:", "Examples:"];
                assert!(headings.map(at).is_sorted(), "{help}");
                assert!(!help.contains("--skip-loss-z") && help.contains("--log-every"), "{help}");
            }
        }
    }
}

#[test]
fn counts_of_tokens_may_have_a_unit_wherever_they_are_given() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    fs::write(dir.join("r.toml"), "tokens-per-step = \"0.5k\"\nval-limit = \"1M\"\n").expect("write");
    let config = wgpt(dir, &["train", "r.toml", "--batch", "1", "--context", "100", "--print-config"]).ends_with(0).out;
    assert!(config.contains("tokens-per-step = 500 ") && config.contains("val-limit = 1000000 "), "{config}");
    let config = wgpt(dir, &["train", "--tokens-per-step", "2k", "--context", "100", "--batch", "5", "--print-config"]);
    assert!(config.ends_with(0).out.contains("tokens-per-step = 2000 "));
    let plan = ["plan", "--batch", "1", "--tokens-per-second", "200k", "--tokens", "10B", "--price-per-hour", "2.5"];
    let out = wgpt(dir, &plan).ends_with(0).out;
    assert!(out.contains("10,000,000,000 tokens at 200,000 tokens/s: 13.89 hours, 34.72 dollars"), "{out}");
}

#[test]
fn recipes_are_planned() {
    let dir = tempfile::tempdir().expect("folder");
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/recipes/gpt2-124M.toml").display().to_string();
    let plan = |more: &[&str]| wgpt(dir.path(), &[&["plan", recipe.as_str()], more].concat());
    let out = plan(&["--gpu", "h100"]).ends_with(0).out;
    for words in
        ["12 layers, 12 heads, 768 channels", "batch 64 fits into 78.6 GiB", "10,300,000,000 tokens at", "hours"]
    {
        assert!(out.contains(words), "{words}: {out}");
    }
    // a flag wins, and steps of the recipe are counted in its tokens per step
    let out = plan(&["--batch", "16", "--steps", "1000", "--tokens-per-second", "100k"]).ends_with(0).out;
    assert!(out.contains("524,288,000 tokens at 100,000 tokens/s: 1.456 hours"), "{out}");
    assert!(plan(&[]).ends_with(0).out.contains("for hours add --gpu CARD"));
}

#[test]
fn a_run_of_small_steps_prints_few_lines_and_records_all() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    text_file(dir, "text.txt", 20_000);
    let flags = ["--steps", "60", "--val-every", "25", "--val-steps", "1", "--out"];
    let lines = |more: &[&str]| -> Vec<String> {
        let out = train(dir, &[&flags[..], more].concat()).ends_with(0).out;
        out.lines().filter(|line| line.starts_with("step ") && line.contains(" | ")).map(str::to_owned).collect()
    };
    let seldom = lines(&["seldom", "--log-every", "20"]);
    let steps: Vec<&str> = seldom.iter().filter_map(|line| line.split(['/', ' ']).nth(1)).collect();
    assert_eq!(steps, ["0", "1", "20", "25", "40", "50", "60"], "{seldom:?}");
    assert_eq!(metrics(&dir.join("seldom")).len(), 61);
    assert_eq!(lines(&["all", "--log-every", "1"]).len(), 61);
    let few = lines(&["few"]);
    // four per second of the steps, and those that are always printed: first, last and measured ones
    let ms: f64 = metrics(&dir.join("few")).iter().filter_map(|step| step["ms"].as_f64()).sum();
    let most = 4.0 * ms / 1e3 + 6.0;
    assert!((few.len() as f64) < most, "{} lines in {ms} ms, expected at most {most}", few.len());
    assert!(few.iter().any(|line| line.starts_with("step 25/60 | loss ") && line.contains(" | val ")), "{few:?}");
    assert!(few.last().is_some_and(|line| line.starts_with("step 60/60 | loss ")), "{few:?}");
}

#[test]
fn a_run_names_its_kernels_and_ends_with_its_report_and_a_command() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    text_file(dir, "text.txt", 4000);
    let out = train(dir, &["--steps", "1", "--out", "run"]).ends_with(0).out;
    let last: Vec<&str> = out.lines().rev().take(2).collect();
    assert!(last[0].starts_with("next: ") && last[0].contains(" generate --from run "), "{out}");
    assert_eq!(last[1], "report: run/report.html");
    // in a file or a pipe; on a terminal with -v alone
    assert!(out.contains("\nkernels  "), "{out}");
    let config = fs::read_to_string(dir.join("run/config.toml")).expect("config");
    assert!(config.contains("\nkernels = ["), "{config}");
    assert_eq!(SMALL.len(), 8);
}
