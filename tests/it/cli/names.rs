//! File names that contain escape sequences, line ends and bytes that are no text. Every command that prints such a
//! name shows its characters, and none of them has an effect on the terminal.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::{Outcome, SMALL, text_file, wgpt, wgpt_os};

/// Clears the screen, begins a line, returns the carriage, rings, turns the text around, and is no UTF-8.
const ODD: &[u8] = b"n\x1b[2J\nEVIL\r\x07\xe2\x80\xae\xc2\x9b31m\xff";

/// A name with something before and after.
fn odd(before: &str, after: &str) -> OsString {
    OsStr::from_bytes(&[before.as_bytes(), ODD, after.as_bytes()].concat()).to_owned()
}

/// Panics if what a command printed acts on a terminal, or a name began a line.
#[track_caller]
fn is_harmless(what: &str, outcome: &Outcome) {
    for text in [&outcome.out, &outcome.err] {
        let acts = |c: char| c.is_control() && c != '\n' || ('\u{202a}'..='\u{202e}').contains(&c);
        assert!(!text.contains(acts) && !text.lines().any(|line| line.starts_with("EVIL")), "{what}: {text:?}");
    }
}

/// Runs a command that prints the name, expects its exit code, and returns what it printed.
#[track_caller]
fn shows(dir: &Path, args: &[&OsStr], code: i32) -> Outcome {
    let outcome = wgpt_os(dir, args).ends_with(code);
    let what = format!("{args:?}");
    is_harmless(&what, &outcome);
    let text = outcome.out.clone() + &outcome.err;
    // as a name, as a word of a shell, as a string of TOML or JSON
    let spelled =
        [r"\u{1b}[2J\nEVIL", r"\x1b[2J\x0aEVIL", r"\u001B[2J\u000AEVIL", r"\u001b[2J\nEVIL", "%1B%5B2J%0AEVIL"];
    assert!(spelled.iter().any(|spelled| text.contains(spelled)), "{what}: {text}");
    outcome
}

fn words<'a>(words: &[&'a (impl AsRef<OsStr> + ?Sized)]) -> Vec<&'a OsStr> {
    words.iter().map(|word| (*word).as_ref()).collect()
}

/// The arguments of a training with a small model, and more.
fn train<'a>(more: &[&'a OsStr]) -> Vec<&'a OsStr> {
    [&words(&["train", "--batch", "2", "--context", "16"])[..], &words(&SMALL), more].concat()
}

#[test]
fn names_of_texts_recipes_and_flags_are_shown_and_do_not_act() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    let text = odd("", ".txt");
    text_file(dir, "plain.txt", 2000);
    fs::rename(dir.join("plain.txt"), dir.join(&text)).expect("a name of any bytes");
    let [dry, steps, one] = ["--dry-run", "--steps", "1"].map(OsStr::new);
    let missing = odd("missing", "");
    for name in ["--text", "--init", "--resume", "--data", "--hellaswag", "--compare", "--tokenizer"] {
        let data = if name == "--text" || name == "--data" { vec![] } else { words(&["--text", "x"]) };
        let args = [&words(&["train"]), data.as_slice(), &[OsStr::new(name), missing.as_os_str()][..]].concat();
        let outcome = wgpt_os(dir, &args);
        assert!(outcome.code == 2 || outcome.code == 3, "{name}: {} {}", outcome.code, outcome.err);
        is_harmless(name, &outcome);
    }
    shows(dir, &train(&[dry, steps, one, "--text".as_ref(), &text]), 0);
    shows(dir, &train(&["--text".as_ref(), &text, "--print-config".as_ref()]), 0);
    shows(dir, &train(&["--text".as_ref(), &text, "--tokenizer".as_ref(), &missing]), 2);
    shows(dir, &[&train(&["--text".as_ref(), &text]), &words(&["--set", "n\u{1b}[2J\nEVIL=1"])[..]].concat(), 2);
    shows(dir, &words(&["train", "--device", "n\u{1b}[2J\nEVIL"]), 4);
    shows(dir, &words(&["shader", "n\u{1b}[2J\nEVIL"]), 2);
    shows(dir, &words(&["data", "fetch", "n\u{1b}[2J\nEVIL"]), 2);
    // what a shell makes of a pattern becomes arguments
    shows(dir, &words(&["train", "a.toml", "n\u{1b}[2J\nEVIL"]), 2);
    shows(dir, &words(&["n\u{1b}[2J\nEVIL"]), 2);
    for args in [
        &["train", "--lay\u{1b}[2J\nEVIL", "1"][..],
        &["train", "--layers", "n\u{1b}[2J"],
        &["plan", "--gpu", "n\u{1b}\nEVIL"],
    ] {
        is_harmless(&format!("{args:?}"), &wgpt_os(dir, &words(args)).ends_with(2));
    }

    let recipe = odd("", ".toml");
    for (toml, code) in [
        (
            "steps = 1\ndevice = \"n\\u001b[2J\\nEVIL\\u202e\"\ntext = \"n\\u001b[2J\\nEVIL\\u009b\"\n[model]\nlayers = 1\nheads = 1\nchannels = 8\n",
            0,
        ),
        ("\"n\\u001b[2J\\nEVIL\" = 3\n", 2),
        ("[\"n\\u001b[2J\\nEVIL\"]\nlr = 3\n", 2),
        ("lr = \"n\\u001b[2J\\nEVIL\"\n", 2),
        ("model = \"n\\u001b[2J\\nEVIL\"\n", 2),
        ("lr = = 1\n", 2),
    ] {
        fs::write(dir.join(&recipe), toml).expect("recipe");
        for how in ["--print-config", "--dry-run"] {
            shows(dir, &[&words(&["train"])[..], &[recipe.as_ref(), how.as_ref()]].concat(), code);
        }
    }
    fs::write(dir.join(&recipe), [0xff]).expect("recipe");
    shows(dir, &words(&["train".as_ref(), recipe.as_os_str()]), 3);
}

#[test]
fn what_print_config_shows_is_the_same_recipe() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    let toml = "device = \"n\\u001b[2J\\nEVIL\\u202e\\\"\\\\\"\nsplit-on = \"\\n\"\ntext = [\"a\\u009b\", \"b\"]\nsteps = 1\nmodel = \"d6\"\n";
    fs::write(dir.join("r.toml"), toml).expect("recipe");
    let once = wgpt_os(dir, &words(&["train", "r.toml", "--print-config"])).ends_with(0).out;
    is_harmless("print-config", &Outcome { code: 0, out: once.clone(), err: String::new(), seconds: 0.0 });
    let values = |text: &str| -> toml::Table {
        let tables: toml::Table = text.parse().expect("TOML");
        tables.into_iter().filter_map(|(_, table)| table.as_table().cloned()).flatten().collect()
    };
    assert_eq!(values(&once), values(&format!("[all]\n{toml}")));
}

#[test]
fn names_of_runs_models_and_data_are_shown_and_do_not_act() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    let (text, run, model, data) = (odd("", ".txt"), odd("run", ""), odd("model", ""), odd("data", ""));
    text_file(dir, "plain.txt", 4000);
    fs::rename(dir.join("plain.txt"), dir.join(&text)).expect("a name of any bytes");
    let with = |before: &[&str], name: &OsStr, after: &[&str]| -> Vec<OsString> {
        let all = before.iter().map(OsString::from).chain([name.to_owned()]);
        all.chain(after.iter().map(OsString::from)).collect()
    };
    let run_with = |args: &[OsString], code| {
        let args: Vec<&OsStr> = args.iter().map(OsString::as_os_str).collect();
        shows(dir, &args, code)
    };
    let mut train = with(&["train", "--steps", "1", "--batch", "2", "--context", "16", "--text"], &text, &SMALL);
    train.extend(with(&["--out"], &run, &[]));
    let outcome = run_with(&train, 0);
    for line in ["folder   ", "saved ", "report: ", "next: "] {
        assert!(
            outcome.out.lines().any(|shown| shown.starts_with(line) && shown.contains("EVIL")),
            "{line}: {}",
            outcome.out
        );
    }
    // the command that is printed is one to copy
    let next = outcome.out.lines().find_map(|line| line.strip_prefix("next: ")).expect("a command");
    let copied = std::process::Command::new("bash").args(["-c", &format!("printf '%s|' {next}")]).output();
    if let Ok(output) = copied {
        let from = [b"--from|", run.as_bytes(), b"|"].concat();
        assert!(output.stdout.windows(from.len()).any(|part| part == from), "{next}");
    }
    run_with(&train, 0);
    train.extend(["--lr".into(), "1".into()]);
    run_with(&train, 2);
    run_with(&with(&["report"], &run, &[]), 0);
    let page = fs::read_to_string(dir.join(&run).join("report.html")).expect("report.html");
    assert!(!page.contains(|c: char| c.is_control() && c != '\n'), "the page has control characters");
    run_with(&with(&["train", "--resume"], &run, &["--seed", "7"]), 2);
    run_with(&with(&["convert"], &run, &["model"]), 0);
    run_with(&with(&["convert", "model"], &model, &[]), 0);
    run_with(&with(&["convert", "model"], &model, &[]), 2);
    run_with(&with(&["eval", "--from", "model", "--data"], &odd("missing", ""), &[]), 3);
    is_harmless("eval", &wgpt_os(dir, &words(&["eval", "--json", "--limit", "0", "--from", "model", "--data", "x"])));
    run_with(&with(&["generate", "--from"], &odd("missing", ""), &["x"]), 3);
    fs::remove_dir_all(dir.join(&run).join("checkpoints")).expect("checkpoints");
    run_with(&with(&["verify"], &run, &[]), 3);

    // a model of a stranger: its kind and the names of its tensors
    let file = |name: &str| dir.join("model").join(name);
    let config = fs::read_to_string(file("config.json")).expect("config.json");
    let strange = config.replace("\"model_type\": \"gpt2\"", r#""model_type": "n\u001b[2J\nEVIL""#);
    assert_ne!(strange, config);
    fs::write(file("config.json"), strange).expect("config.json");
    run_with(&with(&["convert", "model"], "other".as_ref(), &[]), 3);
    fs::write(file("config.json"), config).expect("config.json");
    let tensors = fs::read(file("model.safetensors")).expect("model.safetensors");
    let length = u64::from_le_bytes(*tensors.first_chunk().expect("a length")) as usize;
    let (header, weights) = tensors[8..].split_at(length);
    let strange = format!(
        r#"{{"n\u001b[2J\nEVIL\u202e":{{"dtype":"F32","shape":[1],"data_offsets":[{0},{1}]}},"#,
        weights.len(),
        weights.len() + 4
    );
    let header = [strange.as_bytes(), &header[1..]].concat();
    let tensors = [&(header.len() as u64).to_le_bytes(), header.as_slice(), weights, &[0; 4]].concat();
    fs::write(file("model.safetensors"), tensors).expect("model.safetensors");
    run_with(&with(&["convert", "model"], "other".as_ref(), &[]), 3);

    let mut prepare = with(&["data", "prepare"], &text, &["--tokenizer", "bytes", "--val-tokens", "500", "--out"]);
    prepare.push(data.clone());
    run_with(&prepare, 0);
    run_with(&prepare, 0);
    run_with(&with(&["data", "inspect"], &data, &[]), 0);
    run_with(&with(&["data", "inspect", "--json"], &data, &[]), 0);
    let folder = dir.join(odd("folder", ""));
    fs::create_dir(&folder).expect("folder");
    fs::write(folder.join(odd("a", ".csv")), "a,b\n1,2\n").expect("file");
    run_with(&with(&["data", "prepare"], folder.as_os_str(), &["--out", "out", "--tokenizer", "bytes"]), 3);
    fs::write(folder.join(odd("b", ".txt")), "words\n".repeat(500)).expect("file");
    run_with(&with(&["data", "prepare"], folder.as_os_str(), &["--out", "out", "--tokenizer", "bytes"]), 0);
    run_with(&with(&["data", "inspect"], folder.as_os_str(), &[]), 3);
    run_with(&with(&["data", "inspect"], &text, &[]), 3);
}

#[test]
fn a_value_of_a_flag_begins_no_line_of_an_error() {
    let dir = tempfile::tempdir().expect("folder");
    for flag in ["--batch", "--memory"] {
        let err = wgpt(dir.path(), &["train", flag, "a\u{1b}[31mb\nfake: ok"]).ends_with(2).err;
        assert!(err.contains("`a\\u{1b}[31mb\\nfake: ok`, expected"), "{err}");
        assert!(!err.contains('\u{1b}') && !err.lines().any(|line| line.starts_with("fake")), "{err}");
    }
}
