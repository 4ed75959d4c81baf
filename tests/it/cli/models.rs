//! A trained model is converted to other layouts, evaluated, and trained further.

use std::fs;
use std::path::Path;

use super::{Outcome, program, text_file, train, wgpt};

/// Starts `wgpt` with the words of a line.
pub fn run(dir: &Path, line: &str) -> Outcome {
    wgpt(dir, &line.split_whitespace().collect::<Vec<_>>())
}

/// Fails unless the program ends with an error of one line that names all `parts`.
#[track_caller]
pub fn refused(outcome: Outcome, code: i32, parts: &[&str]) {
    let outcome = outcome.ends_with(code);
    assert!(outcome.err.starts_with("error: ") && outcome.err.trim_end().lines().count() == 1, "{}", outcome.err);
    assert!(parts.iter().all(|part| outcome.err.contains(part)), "{}, expected {parts:?}", outcome.err);
}

fn trained(dir: &Path) {
    text_file(dir, "text.txt", 20_000);
    train(dir, &["--steps", "3", "--out", "run"]).ends_with(0);
}

fn bytes(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn weights_go_round_bit_for_bit() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    trained(dir);
    for line in [
        "convert run a.bin",
        "convert a.bin b --tokenizer bytes",
        "convert b c.bin",
        "convert b d.bin --dtype bf16",
        "convert d.bin e --dtype bf16",
        "convert e f.bin --dtype bf16",
    ] {
        run(dir, line).ends_with(0);
    }
    let same = |a: &str, b: &str| assert!(bytes(&dir.join(a)) == bytes(&dir.join(b)), "{a} and {b} differ");
    same("a.bin", "c.bin");
    same("d.bin", "f.bin");
    for file in
        ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
    {
        same(&format!("run/model/{file}"), &format!("b/{file}"));
    }
    assert!(!dir.join("e/tokenizer.json").exists(), "nothing says what e's tokenizer is");

    // any of them is a beginning; without a tokenizer no text can be read
    let text =
        |from: &str| run(dir, &format!("generate --from {from} Once --max-tokens 8 --temperature 0")).ends_with(0).out;
    assert_eq!(text("run"), text("b"));
    refused(run(dir, "generate --from a.bin Once"), 3, &["a.bin", "no tokenizer is known"]);
    run(dir, "train --text text.txt --init a.bin --tokenizer bytes --batch 2 --steps 1 --out g").ends_with(0);

    refused(run(dir, "convert run a.bin"), 2, &["a.bin", "--force"]);
    run(dir, "convert d.bin a.bin --force").ends_with(0);
    refused(run(dir, "convert run b"), 2, &["b exists already"]);
    refused(
        run(dir, "convert run/model/model.safetensors b --force --tokenizer gpt2"),
        2,
        &["--tokenizer", "bytes", "gpt2"],
    );
    fs::write(dir.join("cut.bin"), &bytes(&dir.join("c.bin"))[..5000]).expect("write");
    refused(run(dir, "convert cut.bin h"), 3, &["cut.bin", "got 5,000"]);
    fs::write(dir.join("pytorch_model.bin"), b"PK\x03\x04 and so on").expect("write");
    refused(run(dir, "convert pytorch_model.bin h"), 3, &["pickle", "save_pretrained"]);
    refused(run(dir, "convert run no/such/folder.bin"), 6, &["folder.bin"]);
    assert!(!dir.join("h").exists());

    let told = run(dir, "convert run g.gguf --dtype q8_0").ends_with(0).out;
    assert!(told.contains("GGUF in q8_0") && told.contains("tokenizer bytes"), "{told}");
    refused(run(dir, "convert run g.gguf"), 2, &["g.gguf exists already"]);
    run(dir, "convert run g.gguf --dtype f16 --force").ends_with(0);
    refused(run(dir, "convert g.gguf h"), 3, &["g.gguf: a GGUF model"]);
    fs::create_dir(dir.join("folder.gguf")).expect("folder");
    refused(run(dir, "convert run folder.gguf --force"), 2, &["folder.gguf is a folder, expected a file"]);
    run(dir, "convert run half --dtype f16").ends_with(0);
    run(dir, "convert half half2 --dtype f16").ends_with(0);
    same("half/model.safetensors", "half2/model.safetensors");
    for (to, dtype, expected) in
        [("h", "q8_0", "a .gguf"), ("h.bin", "f16", "a folder or a .gguf"), ("h.bin", "q8_0", "a .gguf")]
    {
        refused(run(dir, &format!("convert run {to} --dtype {dtype}")), 2, &["--dtype", dtype, expected]);
        assert!(!dir.join(to).exists());
    }
}

/// A terminal of 80 columns must not break the lines that a reader copies.
#[test]
fn the_lines_for_nanogpt_are_printed_whole() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let lines = fs::read_to_string(root.join("src/cli/from_nanogpt.py")).expect("the lines");
    assert!(lines.lines().all(|line| line.len() < 80), "{lines}");
    let help = run(root, "convert --help").ends_with(0).out;
    assert!(help.trim_end().ends_with(lines.trim_end()), "{help}");
    assert!(!run(root, "convert -h").ends_with(0).out.contains("import sys"));
    let dir = tempfile::tempdir().expect("folder");
    fs::write(dir.path().join("ckpt.pt"), b"PK\x03\x04\0\0ckpt/data.pkl").expect("written");
    refused(run(dir.path(), "convert ckpt.pt h"), 3, &["a pickle file", "nanoGPT", "`wgpt convert --help`"]);
}

#[test]
fn models_are_measured() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    trained(dir);
    run(dir, "data prepare text.txt --out data --name t --tokenizer bytes").ends_with(0);
    let question = r#"{"ctx": "Once", "endings": ["upon a time", "there", "was", "a dog"], "label": 1}"#;
    fs::write(dir.join("h.jsonl"), format!("{question}\n").repeat(5)).expect("write");
    let line = "eval --from run --data data/t_val_*.bin --hellaswag h.jsonl --limit 3 --answers out.jsonl --json";
    let outcome = run(dir, line).ends_with(0);
    let report: serde_json::Value = serde_json::from_str(&outcome.out).expect("JSON");
    let loss = report["validation"]["loss"].as_f64().expect("a loss");
    assert!((1.0..6.0).contains(&loss), "{report}");
    assert_eq!(report["hellaswag"]["examples"], 3);
    let answers = String::from_utf8(bytes(&dir.join("out.jsonl"))).expect("text");
    assert_eq!(answers.lines().count(), 3);
    assert!(answers.lines().next().is_some_and(|line| line.contains("\"choice\"") && line.contains("\"losses\"")));
    let told = run(dir, "eval --from run --hellaswag h.jsonl").ends_with(0).out;
    assert!(told.contains("of 5 examples") && told.contains("GPT-2 124M 0.2945"), "{told}");

    refused(run(dir, "eval --from run --hellaswag none.jsonl"), 3, &["none.jsonl"]);
    refused(run(dir, "eval --from run --data none_*.bin"), 3, &["none_*.bin"]);
    refused(run(dir, "eval --from run --data data/t_val_*.bin --context 17"), 2, &["--context", "16"]);
    fs::write(dir.join("h.jsonl"), "{\"ctx\": 3}").expect("write");
    refused(run(dir, "eval --from run --hellaswag h.jsonl"), 3, &["h.jsonl", "line 1", "ctx"]);
    assert_eq!(run(dir, "eval --from run").code, 2);
}

#[test]
fn texts_go_on() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    trained(dir);
    let generate = |more: &[&str]| wgpt(dir, &[&["generate", "--from", "run", "--max-tokens", "30"], more].concat());
    let three =
        generate(&["Once", "--samples", "3", "--seed", "5", "--top-p", "0.9", "--top-k", "40"]).ends_with(0).out;
    let parts: Vec<&str> = three.split("--- sample ").skip(1).collect();
    assert_eq!(parts.len(), 3);
    for (i, part) in parts.iter().enumerate() {
        let seed = (5 + i).to_string();
        let (head, text) = part.split_once("---\n").expect("a heading");
        assert!(head.contains(&format!("{}, seed {seed}", i + 1)), "{head}");
        let alone = generate(&["Once", "--seed", &seed, "--top-p", "0.9", "--top-k", "40"]).ends_with(0).out;
        assert_eq!(text.trim_end_matches('\n'), alone.trim_end_matches('\n'));
    }
    assert_ne!(parts[0].split_once("---\n"), parts[1].split_once("---\n"));
    refused(generate(&["--top-p", "1.5"]), 2, &["--top-p", "1.5"]);
    refused(generate(&["--temperature", "-1"]), 2, &["--temperature"]);
    refused(generate(&["--samples", "0"]), 2, &["--samples"]);
}

/// The program with bytes on standard input; standard output is closed after `lines` lines, if any are given.
#[cfg(target_os = "linux")]
fn piped(dir: &Path, args: &[&std::ffi::OsStr], input: &[u8], lines: Option<usize>) -> (Option<i32>, String, String) {
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    use std::process::Stdio;
    let mut command = program();
    command.args(args).current_dir(dir).env("WGPT_QUIET", "1");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    child.stdin.take().expect("a pipe").write_all(input).expect("written");
    let mut out = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut text = Vec::new();
    match lines {
        Some(lines) => (0..lines).for_each(|_| _ = out.read_until(b'\n', &mut text).expect("read")),
        None => drop(out.read_to_end(&mut text).expect("read")),
    }
    drop(out);
    let mut err = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut err).expect("read");
    let code = child.wait().expect("ended").code();
    (code, String::from_utf8(text).expect("UTF-8"), err)
}

#[cfg(target_os = "linux")]
#[test]
fn prompts_of_any_bytes_and_readers_that_leave() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    trained(dir);
    let generate = |prompt: &[u8], max: &str, input: &[u8], lines| {
        let words = ["generate", "--from", "run", "--temperature", "0", "--max-tokens", max].map(OsStr::new);
        piped(dir, &[&words[..], &[OsStr::from_bytes(prompt)]].concat(), input, lines)
    };
    let (code, named, err) = generate(b"Once upon", "12", b"", None);
    assert_eq!((code, &*err), (Some(0), ""));
    assert!(named.starts_with("Once upon") && named.ends_with('\n'), "{named}");
    assert_eq!(generate(b"-", "12", b"Once upon\r\n", None), (code, named, String::new()));
    // no prompt begins a new text
    let (code, new, err) = generate(b"", "5", b"", None);
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(generate(b"-", "5", b"\n", None), (code, new, String::new()));
    // bytes that are no UTF-8 are shown as such; in a pipe control characters go on as they are
    let (code, out, err) = generate(b"\x1b[31m\x07a\xff b", "3", b"", None);
    assert_eq!((code, &*err), (Some(0), ""));
    assert!(out.starts_with("\u{1b}[31m\u{7}a\u{fffd} b"), "{out}");
    // as `head` does
    let (code, text, err) = generate(b"one\ntwo\nthree", "1000000000", b"", Some(2));
    assert_eq!((code, &*text, &*err), (Some(0), "one\ntwo\n", ""));
    // longer than the context of 16, then past it
    assert_eq!(generate(b"-", "40", "Once upon a time. ".repeat(50).as_bytes(), None).0, Some(0));
}
