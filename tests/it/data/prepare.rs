//! Preparation: what is in the shards, and that a run which was stopped anywhere ends with the same bytes.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;
use wgpt::data::prepare::{Manifest, Options, Outcome, prepare};
use wgpt::data::{Tokenizer, inspect};
use wgpt::error::Error;

use super::made::{bins, command, parquet, prose, tokens, wgpt, zstd};

pub fn run(options: &Options) -> Manifest {
    match prepare(options, &mut |_| ControlFlow::Continue(())).unwrap() {
        Outcome::Done(note) => note,
        other => panic!("{other:?}"),
    }
}

pub fn options(inputs: &[PathBuf], out: PathBuf) -> Options {
    Options { threads: 2, ..Options::new(inputs.to_vec(), out, "x") }
}

/// A corpus of every format, and its documents in order.
fn corpus(root: &Path) -> (Vec<PathBuf>, Vec<String>) {
    let mut documents = vec![prose(1, 700_000)];
    std::fs::write(root.join("a.txt"), &documents[0]).unwrap();
    let lines =
        |seed: u32, n: u32| -> Vec<String> { (0..n).map(|i| prose(seed + i, 300 + 40 * (i as usize % 90))).collect() };
    let json = |texts: &[String]| -> String {
        texts.iter().map(|t| serde_json::json!({"id": 1, "text": t, "meta": {"text": 3}}).to_string() + "\n").collect()
    };
    let some = lines(100, 300);
    let mut gz = flate2::write::GzEncoder::new(
        std::fs::File::create(root.join("b.jsonl.gz")).unwrap(),
        flate2::Compression::fast(),
    );
    gz.write_all(json(&some).as_bytes()).unwrap();
    gz.finish().unwrap();
    documents.extend(some);
    let some = lines(1000, 200);
    std::fs::write(root.join("c.jsonl.zst"), zstd::encode_all(json(&some).as_bytes(), 1).unwrap()).unwrap();
    documents.extend(some);
    let groups: Vec<Vec<Option<String>>> = (0..3)
        .map(|g| lines(2000 + 500 * g, 150).into_iter().enumerate().map(|(i, t)| (i % 50 != 7).then_some(t)).collect())
        .collect();
    parquet(&root.join("d.parquet"), &groups, zstd(), true);
    documents.extend(groups.into_iter().flatten().flatten());
    (["a.txt", "b.jsonl.gz", "c.jsonl.zst", "d.parquet"].map(|n| root.join(n)).to_vec(), documents)
}

fn expected(documents: &[String], tokenizer: Tokenizer) -> Vec<u16> {
    let mut tokens = Vec::new();
    for text in documents {
        tokens.push(tokenizer.end_of_text());
        tokens.extend(tokenizer.encode(text).unwrap());
    }
    tokens
}

#[test]
fn a_small_corpus_keeps_its_last_tenth_for_validation() {
    let dir = tempfile::tempdir().unwrap();
    let (inputs, documents) = corpus(dir.path());
    let out = dir.path().join("out");
    let note = run(&options(&inputs, out.clone()));
    let all = expected(&documents, Tokenizer::Gpt2);
    let (val, train) = tokens(&out);
    assert!([train.clone(), val.clone()].concat() == all);
    assert_eq!(val.len(), all.len() / 10);
    assert_eq!(
        bins(&out).iter().map(|p| p.file_name().unwrap()).collect::<Vec<_>>(),
        ["x_train_000001.bin", "x_val_000000.bin"]
    );
    assert_eq!((note.counts.documents, note.counts.missing), (documents.len() as u64, 9));
    assert_eq!(note.counts.text_bytes, documents.iter().map(|d| d.len() as u64).sum::<u64>());
    let report = inspect::inspect(&inspect::shards(out.to_str().unwrap()).unwrap(), None).unwrap();
    assert_eq!(
        (report.tokens, report.documents, report.has_manifest),
        (all.len() as u64, documents.len() as u64, true)
    );
    assert_eq!(report.vocab, 50_257);
    assert!(!out.join("x.partial").exists());
}

#[test]
fn a_large_corpus_gives_its_first_shard_to_validation() {
    let dir = tempfile::tempdir().unwrap();
    let (inputs, documents) = corpus(dir.path());
    let all = expected(&documents, Tokenizer::Bytes);
    let small = |out: &str| Options {
        shard_tokens: 300_000,
        tokenizer: Tokenizer::Bytes,
        ..options(&inputs, dir.path().join(out))
    };
    let layouts = [
        (small("plain"), 300_000, 300_000),
        (Options { val_tokens: Some(1000), ..small("some") }, 1000, 300_000),
        (Options { val_tokens: Some(0), ..small("none") }, 0, 300_000),
    ];
    for (options, val_tokens, first) in layouts {
        let note = run(&options);
        let (val, train) = tokens(&options.out);
        assert!([val.clone(), train].concat() == all, "{:?}", options.out);
        assert_eq!(val.len(), val_tokens);
        let sizes: Vec<u64> = note.shards.iter().filter(|s| s.file.contains("train")).map(|s| s.tokens).collect();
        assert!(
            sizes[..sizes.len() - 1].iter().all(|&n| n == first)
                && note.shards.iter().any(|s| s.file == "x_train_000001.bin")
        );
    }
    let capped = Options { max_tokens: Some(123_456), val_tokens: Some(456), ..small("capped") };
    let note = run(&capped);
    let (val, train) = tokens(&capped.out);
    assert!([train, val].concat() == all[..123_456] && note.val_tokens == 456);
    assert_eq!(note.counts.documents, all[..123_456].iter().filter(|&&id| id == 256).count() as u64);
}

#[test]
fn stopped_after_every_unit_it_ends_with_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (inputs, _) = corpus(dir.path());
    let with = |out: &str, shard_tokens| Options {
        shard_tokens,
        tokenizer: Tokenizer::Bytes,
        save_every: Duration::ZERO,
        ..options(&inputs, dir.path().join(out))
    };
    // of the last the rest, of fewer tokens than half a shard, joins the shard before
    for (name, shard_tokens) in [("small", 100_000_000), ("large", 300_000), ("joined", 450_000)] {
        // of one of them the text is cut into documents too
        let split_on = (name == "large").then(|| ".\n\n".to_owned());
        let with = |out: String| Options { split_on: split_on.clone(), ..with(&out, shard_tokens) };
        let whole = with(format!("{name}-whole"));
        let note = run(&whole);
        let pieces = with(format!("{name}-pieces"));
        let mut runs = 0;
        loop {
            runs += 1;
            // what is not saved is lost: a run that stops before its first state begins where it began
            let mut units = 0;
            let outcome = prepare(&pieces, &mut |_| {
                units += 1;
                if units > 1 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            if let Outcome::Done(pieced) = outcome.unwrap() {
                assert_eq!((pieced.counts, pieced.shards), (note.counts, note.shards));
                break;
            }
        }
        assert!(runs > 4, "{runs}");
        same(&whole.out, &pieces.out);
    }
}

pub fn same(a: &Path, b: &Path) {
    let (a, b) = (bins(a), bins(b));
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(&b) {
        assert_eq!(a.file_name(), b.file_name());
        assert!(std::fs::read(a).unwrap() == std::fs::read(b).unwrap(), "{}", a.display());
    }
}

#[test]
fn killed_and_run_again_it_ends_with_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("big.txt");
    std::fs::write(&text, prose(5, 12_000_000)).unwrap();
    let arguments = |out: &str| -> Vec<String> {
        let out = dir.path().join(out);
        let of = |p: &Path| p.display().to_string();
        ["data", "prepare", &of(&text), "--out", &of(&out), "--name", "x", "--shard-tokens", "700000"]
            .map(String::from)
            .to_vec()
    };
    fn refs(list: &[String]) -> Vec<&str> {
        list.iter().map(String::as_str).collect()
    }
    let whole = arguments("whole");
    let output = wgpt(&refs(&whole));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let pieces = arguments("pieces");
    let mut kills = 0;
    for i in 0.. {
        let mut child =
            command(&refs(&pieces)).args(["--save-ms", "20"]).stdout(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(40 + 35 * i));
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success());
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
    }
    assert!(kills >= 2, "{kills} kills");
    same(&dir.path().join("whole"), &dir.path().join("pieces"));
}

#[test]
fn a_folder_that_holds_something_else_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("t.txt");
    std::fs::write(&text, "some text, long enough to have a tenth").unwrap();
    let first = options(std::slice::from_ref(&text), dir.path().join("out"));
    run(&first);
    let again = prepare(&first, &mut |_| ControlFlow::Continue(())).unwrap();
    assert!(matches!(again, Outcome::AlreadyPrepared(_)));
    let other = Options { tokenizer: Tokenizer::Bytes, ..first.clone() };
    let error = prepare(&other, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(
        matches!(&error, Error::Usage(fault) if fault.what.contains("--tokenizer: gpt2 there, bytes here")),
        "{error}"
    );
    run(&Options { restart: true, ..other });
    // shards of nobody we know
    std::fs::remove_file(first.out.join("dataset.json")).unwrap();
    let error = prepare(&first, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(
        matches!(&error, Error::Usage(fault) if fault.place == "--out" && fault.what.contains("without a dataset.json")),
        "{error}"
    );
    // a preparation that was stopped, of a file that has changed since
    let stopped =
        Options { save_every: Duration::ZERO, ..options(std::slice::from_ref(&text), dir.path().join("stopped")) };
    prepare(&stopped, &mut |_| ControlFlow::Break(())).unwrap();
    std::fs::write(&text, "another text").unwrap();
    let error = prepare(&stopped, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(
        matches!(&error, Error::Usage(fault) if fault.what.contains("the file has changed") && fault.advice.contains("--restart")),
        "{error}"
    );
    run(&Options { restart: true, ..stopped });
}

#[test]
fn a_folder_holds_the_shards_of_its_note_alone() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("t.txt");
    std::fs::write(&text, prose(1, 1000)).unwrap();
    let a = Options { name: "a".into(), tokenizer: Tokenizer::Bytes, ..options(&[text], dir.path().join("out")) };
    let b = Options { name: "b".into(), tokenizer: Tokenizer::Gpt2, restart: true, ..a.clone() };
    // both at once
    let mut second = None;
    prepare(&a, &mut |_| {
        second = Some(prepare(&b, &mut |progress| {
            assert!(progress.waiting);
            ControlFlow::Break(())
        }));
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(second, Some(Ok(Outcome::Stopped)));
    // one ends while the other works, and nothing is locked
    let c = Options { name: "c".into(), out: dir.path().join("c"), ..a.clone() };
    let error = prepare(&c, &mut |_| {
        std::fs::copy(a.out.join("dataset.json"), c.out.join("dataset.json")).unwrap();
        ControlFlow::Continue(())
    });
    let error = error.unwrap_err();
    assert!(matches!(&error, Error::Usage(fault) if fault.what.contains("--name: a there, c here")), "{error}");
    assert!(bins(&c.out).is_empty());
    // one after the other
    let shard = a.out.join("a_train_000001.bin");
    let kept = std::fs::read(&shard).unwrap();
    run(&b);
    let names: Vec<_> = bins(&a.out).iter().map(|p| p.file_name().unwrap().to_owned()).collect();
    assert_eq!(names, ["b_train_000001.bin", "b_val_000000.bin"]);
    std::fs::write(&shard, kept).unwrap();
    let error = inspect::inspect(&[shard], None).unwrap_err();
    assert!(matches!(&error, Error::Data(fault) if fault.what.contains("does not list it")), "{error}");
}

/// Writes a tokenizer of all bytes, the end of text and one pair of letters more.
fn own_tokenizer(dir: &Path, pair: [char; 2]) -> Tokenizer {
    let is_plain = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let others = (0..=255).filter(|&byte| !is_plain(byte)).zip(256_u32..).filter_map(|(_, c)| char::from_u32(c));
    let letters = (0..=255).filter(|&byte| is_plain(byte)).map(char::from).chain(others).map(String::from);
    let tokens = ["</s>".to_owned()].into_iter().chain(letters).chain([String::from_iter(pair)]);
    let vocab: serde_json::Map<_, _> =
        tokens.zip(0..).map(|(token, id)| (token, serde_json::Value::from(id))).collect();
    let json = serde_json::json!({
        "added_tokens": [{"id": 0, "content": "</s>", "special": true, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": [format!("{} {}", pair[0], pair[1])]},
    });
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("tokenizer.json"), json.to_string()).unwrap();
    std::fs::write(dir.join("generation_config.json"), "{\"eos_token_id\":0}").unwrap();
    let name = wgpt::data::TokenizerName::try_from(dir.as_os_str().to_owned()).unwrap();
    name.open().unwrap()
}

#[test]
fn a_restart_replaces_the_tokenizer_of_the_folder() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("t.txt"), prose(1, 1000)).unwrap();
    let (first, second) = (own_tokenizer(&path("first"), ['t', 'h']), own_tokenizer(&path("second"), ['h', 'e']));
    let of = |tokenizer: &Tokenizer| Options { tokenizer: tokenizer.clone(), ..options(&[path("t.txt")], path("out")) };
    run(&of(&first));
    let error = prepare(&of(&second), &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(&error, Error::Usage(_)), "{error}");
    run(&Options { restart: true, ..of(&second) });
    let kept = |name: &str| std::fs::read(path(name)).unwrap();
    assert_eq!(kept("out/tokenizer.json"), kept("second/tokenizer.json"));
    inspect::inspect(&bins(&path("out")), None).unwrap();
    // the one in the folder itself
    let name = wgpt::data::TokenizerName::try_from(path("out").into_os_string()).unwrap();
    run(&Options { restart: true, ..of(&name.open().unwrap()) });
    assert_eq!(kept("out/tokenizer.json"), kept("second/tokenizer.json"));
    run(&Options { restart: true, ..of(&Tokenizer::Bytes) });
    assert!(!path("out/tokenizer.json").exists() && !path("out/generation_config.json").exists());
    // files that no data set there says to be its own
    std::fs::copy(path("first/tokenizer.json"), path("out/tokenizer.json")).unwrap();
    let error = prepare(&Options { restart: true, ..of(&second) }, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(error.to_string().contains("contains files of another tokenizer"), "{error}");
}

#[test]
fn validation_must_leave_something_for_training() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("t.txt");
    std::fs::write(&text, "ten bytes!").unwrap();
    let one = Options { tokenizer: Tokenizer::Bytes, val_tokens: Some(11), ..options(&[text], dir.path().join("out")) };
    let error = prepare(&one, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(&error, Error::Usage(fault) if fault.place == "--val-tokens"), "{error}");
    assert_eq!(error.fault().expected, "at most 9 of the corpus's 11 tokens");
}

#[test]
fn separators_begin_documents_of_text_files_alone() {
    let dir = tempfile::tempdir().unwrap();
    let inputs = ["a.txt", "b.jsonl"].map(|name| dir.path().join(name));
    std::fs::write(&inputs[0], "one<|endoftext|>two<|endoftext|><|endoftext|>").unwrap();
    std::fs::write(&inputs[1], "{\"text\":\"three<|endoftext|>\"}\n").unwrap();
    let bytes = |out: &str| Options { tokenizer: Tokenizer::Bytes, ..options(&inputs, dir.path().join(out)) };
    let plain = run(&bytes("plain"));
    assert_eq!((plain.counts.documents, plain.counts.spelled_ends), (2, 4));
    let split = Options { split_on: Some("<|endoftext|>".into()), ..bytes("split") };
    let note = run(&split);
    assert_eq!((note.counts.documents, note.counts.spelled_ends), (3, 1));
    let (val, train) = tokens(&split.out);
    let documents = ["one", "two", "three<|endoftext|>"].map(String::from);
    assert!([train, val].concat() == expected(&documents, Tokenizer::Bytes));
    assert_eq!((note.counts.separators, plain.counts.separators), (3, 0));
    let lines = Options { inputs: inputs[1..].to_vec(), out: dir.path().join("lines"), ..split.clone() };
    let error = prepare(&lines, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(&error, Error::Usage(fault) if fault.what == "cuts text files only"), "{error}");
    let (text, out) = (inputs[0].to_str().unwrap(), dir.path().join("never"));
    let output = wgpt(&["data", "prepare", text, "--out", out.to_str().unwrap(), "--split-on", "#"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("no text file contains the separator \"#\": each is one document"), "{said}");
    assert!(said.contains(" tokens (gpt2) of 1 document: "), "{said}");
    // part of what the data set is
    let other = Options { split_on: None, ..split.clone() };
    let error = prepare(&other, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(error.to_string().contains("--split-on: \"<|endoftext|>\" there, none here"), "{error}");
    let empty = Options { split_on: Some(String::new()), ..bytes("empty") };
    let error = prepare(&empty, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(&error, Error::Usage(fault) if fault.place == "--split-on"), "{error}");
    // a manifest of a version without separators and hashes
    let path = split.out.join("dataset.json");
    let mut old: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    old.as_object_mut().unwrap().remove("spelled_ends").unwrap();
    old["recipe"].as_object_mut().unwrap().remove("split_on").unwrap();
    for shard in old["shards"].as_array_mut().unwrap() {
        shard.as_object_mut().unwrap().remove("blake3").unwrap();
    }
    std::fs::write(&path, old.to_string()).unwrap();
    assert_eq!(Manifest::read(&split.out).unwrap().unwrap().recipe.split_on, None);
    inspect::inspect(&bins(&split.out), None).unwrap();
}

#[test]
fn a_shard_that_was_changed_is_found_by_its_hash() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("t.txt");
    std::fs::write(&text, prose(1, 3000)).unwrap();
    let one = options(&[text], dir.path().join("out"));
    let note = run(&one);
    for shard in &note.shards {
        let hash = blake3::hash(&std::fs::read(one.out.join(&shard.file)).unwrap());
        assert_eq!(shard.blake3.as_deref(), Some(hash.to_hex().as_str()));
    }
    inspect::inspect(&bins(&one.out), None).unwrap();
    let path = one.out.join("x_train_000001.bin");
    let mut bytes = std::fs::read(&path).unwrap();
    // another id of the vocabulary
    bytes[1030] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let error = inspect::inspect(&bins(&one.out), None).unwrap_err();
    assert!(matches!(&error, Error::Data(fault) if fault.what.contains("has changed since")), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any bytes at all are a text: the tokens are those of the whole, whatever units it was cut into.
    #[test]
    fn any_bytes_are_a_text(parts in prop::collection::vec((any::<Vec<u8>>(), 0..30_000_usize), 1..12)) {
        let dir = tempfile::tempdir().unwrap();
        // the first bytes tell that it is a text
        let head = "plain words, \n".repeat(5000).into_bytes();
        let parts = std::iter::once((head, 70_000)).chain(parts);
        let text: Vec<u8> = parts.flat_map(|(part, times)| { let times = if part.is_empty() { 0 } else { times }; part.into_iter().cycle().take(times) }).collect();
        let path = dir.path().join("t.txt");
        std::fs::write(&path, &text).unwrap();
        let out = dir.path().join("out");
        let note = run(&options(&[path], out.clone()));
        let (val, train) = tokens(&out);
        let (mut all, replaced) = Tokenizer::Gpt2.encode_counted(&text).unwrap();
        all.insert(0, 50_256);
        prop_assert!([train, val].concat() == all);
        prop_assert_eq!(note.counts.replaced, replaced as u64);
    }
}
