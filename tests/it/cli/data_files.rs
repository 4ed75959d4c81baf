//! Files of tokens as users have and name them: other layouts, lists that a shell expanded, folders, odd paths.

use std::fs;
use std::path::Path;

use super::bad_input::refused;
use super::{metrics, text_file, wgpt};

const SMALL: [&str; 14] = [
    "--tokenizer",
    "bytes",
    "--layers",
    "1",
    "--heads",
    "2",
    "--channels",
    "16",
    "--batch",
    "2",
    "--context",
    "16",
    "--steps",
    "3",
];

fn tokens(n: u32) -> Vec<u16> {
    (0..n).map(|i| (i * i % 257) as u16).collect()
}

fn shard(path: &Path, n: u32) {
    wgpt::data::write_shard(path, &tokens(n)).expect("shard");
}

fn bytes(tokens: &[u16]) -> Vec<u8> {
    tokens.iter().flat_map(|id| id.to_le_bytes()).collect()
}

fn losses(run: &Path) -> Vec<String> {
    metrics(run).iter().map(|line| format!("{} {} {}", line["step"], line["loss"], line["val_loss"])).collect()
}

#[test]
fn bare_ids_and_numpy_arrays_train_as_the_shard_of_the_same_tokens() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    let (train, val) = (tokens(900), tokens(200));
    wgpt::data::write_shard(dir.join("a_train_1.bin"), &train).expect("shard");
    wgpt::data::write_shard(dir.join("a_val_0.bin"), &val).expect("shard");
    for (name, tokens) in [("train", &train), ("val", &val)] {
        fs::create_dir_all(dir.join("nano")).expect("folder");
        fs::write(dir.join(format!("nano/{name}.bin")), bytes(tokens)).expect("write");
        let wide: Vec<u8> = tokens.iter().flat_map(|id| u32::from(*id).to_le_bytes()).collect();
        fs::write(dir.join(format!("{name}.u32")), &wide).expect("write");
        let head = format!("{{'descr': '<u4', 'fortran_order': False, 'shape': ({},), }}\n", tokens.len());
        let mut array = b"\x93NUMPY\x01\0".to_vec();
        array.extend((head.len() as u16).to_le_bytes());
        array.extend(head.bytes());
        array.extend(wide);
        fs::write(dir.join(format!("x_{name}_1.npy")), array).expect("write");
    }
    let mut all = Vec::new();
    for (format, train, val) in
        [("shard", "a_train_*.bin", "a_val_0.bin"), ("u16", "nano", "nano"), ("npy", "x_train_*.npy", "x_val_*.npy")]
    {
        let files = ["train", "--data", train, "--val", val, "--data-format", format, "--out", format];
        let out = wgpt(dir, &[&files[..], &SMALL].concat()).ends_with(0).out;
        assert!(out.contains("900 tokens in 1 shard, 200 for validation"), "{out}");
        all.push(losses(&dir.join(format)));
    }
    assert!(all[0].len() == 4 && all.iter().all(|losses| *losses == all[0]), "{all:?}");
    // the layout is kept for a resume, and the same tokens in another one are the same data
    wgpt(dir, &["train", "--resume", "u16", "--steps", "4"]).ends_with(0);
    let args = ["train", "--resume", "npy", "--steps", "4", "--data", "nano/train.bin", "--val", "nano/val.bin"];
    wgpt(dir, &[&args[..], &["--data-format", "u16"]].concat()).ends_with(0);
    assert_eq!(losses(&dir.join("u16")), losses(&dir.join("npy")));
    let eval = |data: &str, format: &str| {
        let args = ["eval", "--from", "u16", "--context", "16", "--data", data, "--data-format", format];
        wgpt(dir, &args).ends_with(0).out
    };
    let measured = eval("nano", "u16");
    assert!(measured.contains("validation ") && measured == eval("a_val_0.bin", "shard"), "{measured}");
    let args = ["data", "inspect", "nano", "--data-format", "u16", "--tokenizer", "bytes"];
    let shown = wgpt(dir, &args).ends_with(0).out;
    assert!(shown.contains("1,100 tokens") && shown.contains("in 2 shards"), "{shown}");
    // nothing is guessed
    let with = |args: &[&str]| wgpt(dir, &[&["train"][..], args, &SMALL].concat());
    refused(with(&["--data", "nano"]), 3, &["nano/train.bin: wrong kind of file", "--data-format u16"]);
    refused(with(&["--data", "x_train_1.npy"]), 3, &["got a NumPy array; try --data-format npy"]);
    refused(
        with(&["--data", "a_train_1.bin", "--data-format", "u16"]),
        3,
        &["got a token shard; leave out --data-format"],
    );
    refused(with(&["--data", "train.u32", "--data-format", "u16"]), 3, &["try --data-format u32"]);
    refused(
        with(&["--data", "nano/train.bin", "--data-format", "u32"]),
        3,
        &["token 0 is too large", "--data-format u16"],
    );
    refused(with(&["--data-format", "u16"]), 2, &["--data-format: needs --data"]);
}

#[test]
fn a_pattern_that_the_shell_has_replaced_is_what_it_was() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    for i in 0..3 {
        shard(&dir.join(format!("t_{i}.bin")), 100 + i);
        shard(&dir.join(format!("v_{i}.bin")), 40);
    }
    let summary = |args: &[&str]| {
        let out = wgpt(dir, &[&["train", "--dry-run"][..], args, &SMALL].concat()).ends_with(0).out;
        out.lines().find(|line| line.starts_with("data")).expect("a line on the data").to_owned()
    };
    let quoted = summary(&["--data", "t_*.bin", "--val", "v_*.bin"]);
    assert_eq!(quoted, "data     303 tokens in 3 shards, 120 for validation");
    let list = ["--data", "t_0.bin", "t_1.bin", "t_2.bin", "--val", "v_0.bin", "v_1.bin", "v_2.bin"];
    assert_eq!(summary(&list), quoted);
    assert_eq!(summary(&["--data", "t_0.bin", "t_1.bin"]), "data     201 tokens in 2 shards, 0 for validation");
    assert_eq!(summary(&["--data", "t_0.bin", "--data", "t_1.bin"]), summary(&["--data", "t_0.bin", "t_1.bin"]));
    // a recipe behind them is a recipe
    fs::write(dir.join("r.toml"), "emulate-ranks = 2\ndata = [\"v_0.bin\", \"v_1.bin\"]\n").expect("recipe");
    let out = wgpt(dir, &[&["train", "--print-config", "--data", "t_0.bin", "t_1.bin", "r.toml"][..], &SMALL].concat());
    let out = out.ends_with(0).out;
    assert!(out.contains("data = [\"t_0.bin\", \"t_1.bin\"]") && out.contains("emulate-ranks = 2"), "{out}");
    assert_eq!(summary(&["r.toml", "--set", "emulate-ranks=1"]), "data     80 tokens in 2 shards, 0 for validation");
    let two = wgpt(dir, &[&["train", "r.toml", "--data", "t_0.bin", "r.toml"][..], &SMALL].concat());
    refused(two, 2, &["several recipes or runs"]);
    refused(wgpt(dir, &["train", "t_0.bin"]), 3, &["t_0.bin: is not a recipe", "--data 't_0.bin'"]);
    // a run keeps its files, and is resumed with them from elsewhere
    let run = [&["train"][..], &list, &SMALL, &["--out", "run"]].concat();
    wgpt(dir, &run).ends_with(0);
    fs::create_dir(dir.join("other")).expect("folder");
    wgpt(&dir.join("other"), &["train", "--resume", "../run", "--steps", "4"]).ends_with(0);
    let shown = wgpt(dir, &["data", "inspect", "t_0.bin", "t_1.bin", "--tokenizer", "bytes"]).ends_with(0).out;
    assert!(shown.contains("201 tokens"), "{shown}");
    let eval =
        wgpt(dir, &["eval", "--from", "run", "--data", "v_0.bin", "v_1.bin", "--context", "16"]).ends_with(0).out;
    assert!(eval.contains("over 64 tokens"), "{eval}");
}

#[test]
fn text_in_the_place_of_shards_is_named() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    text_file(dir, "book.txt", 4000);
    shard(&dir.join("a.bin"), 200);
    let train = |args: &[&str]| wgpt(dir, &[&["train"][..], args, &SMALL].concat());
    let fault = "book.txt: not a token shard (it looks like text); try ";
    refused(train(&["--data", "book.txt"]), 3, &[fault, "try --text book.txt\n"]);
    refused(train(&["--data", "a.bin", "--val", "book.txt"]), 3, &[fault, "try --text book.txt\n"]);
    refused(wgpt(dir, &["data", "inspect", "book.txt"]), 3, &[fault, "try `wgpt data prepare book.txt --out DIR`"]);
    fs::write(dir.join("lfs.bin"), "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
        .expect("write");
    refused(train(&["--data", "lfs.bin"]), 3, &["a pointer of Git LFS", "git lfs pull"]);
    let same = train(&["--data", "a.bin", "--val", "a.bin", "--dry-run"]).ends_with(0).out;
    assert!(same.contains("200 for validation (training uses 1 of its shards too)"), "{same}");
    assert!(!dir.join("runs").exists());
}

#[cfg(unix)]
#[test]
fn a_path_that_is_no_text_serves_every_command() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    let dir = tempfile::tempdir().expect("folder");
    let folder = dir.path().join(OsStr::from_bytes(b"caf\xe9 [2]"));
    fs::create_dir(&folder).expect("folder");
    shard(&folder.join("x_train_1.bin"), 300);
    shard(&folder.join("x_val_0.bin"), 100);
    let file = folder.join(OsStr::from_bytes(b"\xe9.txt"));
    text_file(dir.path(), "text.txt", 4000);
    fs::rename(dir.path().join("text.txt"), &file).expect("rename");
    let run = |args: &[&OsStr]| super::wgpt_os(dir.path(), args).ends_with(0).out;
    let small: Vec<&OsStr> = SMALL.iter().map(OsStr::new).collect();
    let words = |list: &[&'static str]| list.iter().map(|word| OsStr::new(*word)).collect::<Vec<_>>();
    let pattern = folder.join("*_train_*.bin");
    let with = |args: &[&OsStr], out: &'static str| {
        run(&[&words(&["train"])[..], args, &small, &words(&["--out", out])].concat());
        run(&words(&["train", "--steps", "4", "--resume", out]));
        assert_eq!(metrics(&dir.path().join(out)).iter().filter(|line| line["loss"].is_number()).count(), 4);
    };
    with(&[OsStr::new("--data"), pattern.as_os_str(), OsStr::new("--val"), folder.as_os_str()], "shards");
    with(&[OsStr::new("--text"), file.as_os_str()], "text");
    let config = fs::read_to_string(dir.path().join("shards/config.toml")).expect("config");
    assert!(config.contains("/caf%E9%20%5B2%5D/%2A_train_%2A.bin\""), "{config}");
    let shown =
        run(&[&words(&["data", "inspect", "--json", "--tokenizer", "bytes"])[..], &[folder.as_os_str()]].concat());
    assert!(shown.contains("caf%E9") && shown.contains("\"tokens\": 400"), "{shown}");
    let eval = [&words(&["eval", "--from", "shards", "--context", "16", "--data"])[..], &[folder.as_os_str()]].concat();
    assert!(run(&eval).contains("over 96 tokens"));
    // what is printed to go on with can be pasted
    let out = folder.join("out");
    let args = words(&["data", "prepare", "--tokenizer", "bytes", "--out"]);
    let text = text_file(dir.path(), "text.txt", 4000);
    let printed = run(&[&args[..], &[out.as_os_str(), text.as_os_str()]].concat());
    assert!(printed.contains("--data $'") && printed.contains("/caf\\xe9 [2]/out/out_train_*.bin'"), "{printed}");
}

#[test]
fn the_command_that_prepare_prints_runs_as_printed() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    let text = text_file(dir, "t.txt", 6000).display().to_string();
    for (i, more) in [
        &["--shard-tokens", "1000"][..],
        &["--shard-tokens", "1100", "--val-tokens", "37"],
        &["--shard-tokens", "2999", "--val-tokens", "0"],
        &["--shard-tokens", "2", "--max-tokens", "101"],
        &["--max-tokens", "2"],
        &["--max-tokens", "25"],
        &[],
    ]
    .into_iter()
    .enumerate()
    {
        let out = format!("it's [{i}]");
        let args = ["data", "prepare", &text, "--out", &out, "--name", "my_val_set", "--tokenizer", "bytes"];
        let printed = wgpt(dir, &[&args[..], more].concat()).ends_with(0).out;
        let line = printed.lines().find_map(|line| line.strip_prefix("next: ")).expect("a command");
        let words = shlex::split(line).expect("words of a shell");
        let at = words.iter().position(|word| word == "train").expect("train");
        let words: Vec<&str> = words[at..].iter().map(String::as_str).chain(["--dry-run"]).collect();
        let dry = wgpt(dir, &words).ends_with(0).out;
        assert!(dry.contains(" tokens in ") && !dry.contains("not here"), "{line}: {dry}");
    }
}
