use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::formats::tokenizer_files::{gpt2, spell};

const MERGES: [&str; 12] = ["Ġ d", "e r", "Ġd er", "a s", "Ġ H", "u n", "Ġ un", "Ã ¼", "d e", "de r", "Ġun d", "D as"];

/// Returns a vocabulary in the order of Hugging Face's trainer: marks, the bytes by their spelling, merged tokens.
fn vocab(merges: &[&str]) -> Value {
    let mut bytes: Vec<String> = (0..=255).map(|byte| spell(&[byte])).collect();
    bytes.sort();
    let marks = ["<s>", "</s>"].map(str::to_owned);
    let merged = merges.iter().map(|pair| pair.replace(' ', ""));
    let tokens = marks.into_iter().chain(bytes).chain(merged);
    Value::Object(tokens.zip((0..).map(Value::from)).collect())
}

fn mark(id: u32, content: &str, special: bool) -> Value {
    json!({"id": id, "content": content, "special": special, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false})
}

fn german() -> Value {
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [mark(0, "<s>", true), mark(1, "</s>", true)],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab(&MERGES), "merges": MERGES},
    })
}

fn open(dir: &Path) -> Tokenizer {
    Tokenizer::of_files(TokenizerFiles::read(dir).unwrap().unwrap())
}

fn read(json: &Value) -> Tokenizer {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    open(dir.path())
}

#[test]
fn a_tokenizer_of_another_language_gives_its_own_ids() {
    let own = read(&german());
    assert_eq!((own.name(), own.vocab(), own.end_of_text()), ("own", 270, 1));
    // ids from Hugging Face's tokenizers 0.23 in Python
    assert_eq!(own.encode("Das und der Hund").unwrap(), [269, 268, 260, 262, 263, 69]);
    assert_eq!(
        own.encode("der  Hügel,\n\nder 12. ").unwrap(),
        [69, 259, 222, 262, 265, 72, 70, 77, 13, 200, 200, 69, 259, 222, 18, 19, 15, 222]
    );
    assert_eq!(own.encode(" ü日本").unwrap(), [222, 265, 164, 247, 100, 164, 252, 107]);
    // marks are encoded as ordinary text
    assert_eq!(own.encode("12. </s>").unwrap(), [18, 19, 15, 222, 29, 16, 84, 31]);
    assert_eq!(own.decode(&[269, 268, 164, 247, 100, 1, 270]), "Das und日</s>\u{fffd}".as_bytes());
    let ids: Vec<u32> = own.encode("Hügel 日本 x").unwrap().into_iter().map(u32::from).collect();
    assert_eq!(own.decode(&ids), "Hügel 日本 x".as_bytes());
    assert_eq!(own.encode_counted(b"a\xff").unwrap().1, 1);
}

#[test]
fn a_space_is_put_before_a_text_once() {
    let mut json = german();
    json["pre_tokenizer"]["add_prefix_space"] = json!(true);
    let own = read(&json);
    assert_eq!(own.encode("Das und der Hund").unwrap(), [222, 269, 268, 260, 262, 263, 69]);
    assert_eq!(own.encode(" und").unwrap(), [268]);
    let text = "und der Hund\nDas ".repeat(20_000);
    let whole = own.encode(&text).unwrap();
    assert_eq!(whole.iter().filter(|id| **id == 269).count(), 20_000);
    let mut serial = Vec::new();
    own.encode_into(text.as_bytes(), true, &mut serial).unwrap();
    assert!(serial == whole);
    // the library's own result for the whole text
    let Tokenizer::Own(inner) = &own else { panic!("{own:?}") };
    let library = &inner.usable.as_ref().unwrap().library;
    let expected = library.encode_fast(format!(" {text}"), false).unwrap();
    assert!(whole.iter().map(|id| u32::from(*id)).eq(expected.get_ids().iter().copied()));
}

#[test]
fn vocabulary_and_merges_in_two_files_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("vocab.json"), vocab(&MERGES).to_string()).unwrap();
    fs::write(at("merges.txt"), format!("#version: 0.2\r\n{}\r\n", MERGES.join("\r\n"))).unwrap();
    fs::write(at("special_tokens_map.json"), r#"{"eos_token": {"content": "</s>"}, "bos_token": "<s>"}"#).unwrap();
    let own = open(dir.path());
    assert_eq!(own.identity(), read(&german()).identity(), "the same by other files");
    assert_eq!(own.encode("Das und der Hund").unwrap(), [269, 268, 260, 262, 263, 69]);
    fs::remove_file(at("merges.txt")).unwrap();
    let text = open(dir.path()).check().unwrap_err().to_string();
    assert!(text.contains("vocab.json") && text.contains("without merges.txt"), "{text}");
}

#[test]
fn gpt2s_files_and_those_of_bytes_take_the_fast_path() {
    let dir = tempfile::tempdir().unwrap();
    for (tokenizer, vocab) in [(Tokenizer::Gpt2, 50_257), (Tokenizer::Bytes, 257)] {
        tokenizer.write_files(dir.path(), &Config::new(8, vocab, 1, 1, 8).unwrap()).unwrap();
        assert_eq!(open(dir.path()), tokenizer);
        assert_eq!(dir.path().join("merges.txt").exists(), tokenizer == Tokenizer::Gpt2, "none of another is left");
    }
    Tokenizer::Gpt2.write_files(dir.path(), &Config::new(8, 50_257, 1, 1, 8).unwrap()).unwrap();
    fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    assert_eq!(open(dir.path()), Tokenizer::Gpt2, "vocab.json and merges.txt");
    // a merge at another position makes another tokenizer
    let mut merges: Vec<String> = gpt2().1.iter().map(|[left, right]| format!("{left} {right}")).collect();
    merges.swap(0, 1);
    fs::write(dir.path().join("merges.txt"), merges.join("\n")).unwrap();
    assert!(matches!(open(dir.path()), Tokenizer::Own(_)));
}

#[test]
fn tokenizers_that_cannot_be_used_say_why_and_work_for_ids() {
    let change = |pointer: &str, value: Value| {
        let mut json = german();
        *json.pointer_mut(pointer).unwrap() = value;
        read(&json)
    };
    for (own, why) in [
        (change("/model/type", json!("WordPiece")), "WordPiece"),
        (change("/model/type", json!("Unigram")), "Unigram"),
        (change("/decoder", json!({"type": "Metaspace"})), "does not merge bytes"),
        (change("/model/vocab/Das", json!(70_000)), "70000"),
        (change("/model/vocab/Das", json!(268)), "both have the id 268"),
        (change("/model/merges", json!(["Q Q"])), "qq"),
        (change("/model/merges", json!([7])), "a merge is 7"),
        (change("/model/vocab", json!(7)), "no vocabulary"),
        (change("/added_tokens", json!([{"id": 1}])), "an added token"),
        (read(&json!([])), "unknown"),
    ] {
        let error = own.check().unwrap_err();
        let text = error.to_string();
        assert!(error.exit_code() == 3 && text.contains(why) && !text.contains('\n'), "{why}: {text}");
        assert!(text.contains("tokenizer.json") && text.contains("--data"), "{text}");
        assert!(own.encode("a").is_err());
        assert_eq!((own.name(), own.vocab(), own.decode(&[5])), ("own", 0, "\u{fffd}".as_bytes().to_vec()));
    }
    for (name, bytes, why) in [
        ("vocab.txt", "[PAD]\n", "WordPiece"),
        ("spiece.model", "\n", "SentencePiece"),
        ("tokenizer.json", "version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("tokenizer.json", "{", "broken JSON"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(name), bytes).unwrap();
        let text = open(dir.path()).check().unwrap_err().to_string();
        assert!(text.contains(name) && text.contains(why), "{text}");
    }
}

#[test]
fn bytes_that_the_vocabulary_lacks_are_counted() {
    let mut json = german();
    json["model"]["vocab"].as_object_mut().unwrap().remove("æ").unwrap();
    let (ids, lost) = read(&json).encode_counted("日本a".as_bytes()).unwrap();
    assert_eq!((ids.len(), lost), (5, 2), "日 and 本 begin with the byte E6, spelled æ");
}

#[test]
fn two_tokenizers_are_told_apart_by_what_they_do() {
    let (own, mut other) = (read(&german()), german());
    other["padding"] = json!({"strategy": "BatchLongest"});
    assert_eq!(own, read(&other), "nothing that changes ids");
    other["model"]["merges"].as_array_mut().unwrap().swap(0, 1);
    assert_ne!(own, read(&other));
    let known = ModelTokenizer::Known(own.clone());
    let error = known.agree(&Tokenizer::Gpt2, "--tokenizer", "german").unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("gpt2") && error.to_string().contains("270 ids"), "{error}");
    assert!(known.agree(&own, "--tokenizer", "german").is_ok());
}

#[test]
fn a_model_of_gpt2s_vocabulary_is_taken_for_gpt2_only_without_files() {
    let (none, dir) = (ModelInfo::default(), tempfile::tempdir().unwrap());
    let of = |info: &ModelInfo, vocab| ModelTokenizer::of_folder(dir.path(), info, vocab).unwrap();
    assert_eq!(of(&none, 50_257), ModelTokenizer::Assumed);
    assert!(of(&none, 50_257).assumption().unwrap().contains("assumed"));
    assert!(matches!(of(&none, 50_258), ModelTokenizer::Unknown(_)));
    assert!(matches!(of(&ModelInfo::for_tokenizer("own"), 50_257), ModelTokenizer::Unknown(_)));
    assert_eq!(of(&ModelInfo::for_tokenizer("bytes"), 257), ModelTokenizer::Known(Tokenizer::Bytes));
    // a folder's files take precedence over its config.json
    fs::write(dir.path().join("tokenizer.json"), german().to_string()).unwrap();
    assert_eq!(of(&ModelInfo::for_tokenizer("gpt2"), 50_257), ModelTokenizer::Known(read(&german())));
    fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    fs::write(dir.path().join("vocab.txt"), "[PAD]\n").unwrap();
    let unusable = of(&none, 50_257);
    assert_eq!(unusable.for_text("model", None, 50_257).unwrap_err().exit_code(), 3);
    assert_eq!(unusable.for_text("model", Some(&Tokenizer::Gpt2), 50_257).unwrap_err().exit_code(), 2);
    fs::remove_file(dir.path().join("vocab.txt")).unwrap();
    // fewer ids than the tokenizer has
    let error = ModelTokenizer::Assumed.for_text("model", Some(&Tokenizer::Gpt2), 300).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    let padded = of(&none, 50_304);
    assert_eq!(padded.for_text("model", Some(&Tokenizer::Gpt2), 50_304).unwrap(), Tokenizer::Gpt2);
    assert_eq!(padded.for_text("model", None, 50_304).unwrap_err().exit_code(), 3);
}

/// Returns the ids of the whole text, as the library encodes it from the files.
fn expected(json: &Value, text: &str) -> Vec<u32> {
    let mut library = tokenizers::Tokenizer::from_bytes(json.to_string()).unwrap();
    library.set_encode_special_tokens(true);
    library.encode_fast(text, false).unwrap().get_ids().to_vec()
}

#[test]
fn long_texts_have_the_ids_of_whole_ones_however_words_are_split() {
    let pattern = |regex: &str| {
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]})
    };
    let words = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let plain = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let text = "der Hund und Das ist 1234 der.\n\n  und d ".repeat(4000);
    for (splitting, cuts) in [
        (pattern(words), Cuts::BetweenWords),
        (pattern(r"\d{1,3}"), Cuts::Nowhere),
        (pattern(r"\n+"), Cuts::Nowhere),
        (plain.clone(), Cuts::BeforeSpace),
    ] {
        let mut json = german();
        // a merge across the space between two words
        json["model"]["merges"].as_array_mut().unwrap().insert(0, json!("d Ġd"));
        json["model"]["vocab"]["dĠd"] = json!(270);
        json["pre_tokenizer"] = splitting;
        let own = read(&json);
        own.check().unwrap();
        assert_eq!(own.cuts(), cuts, "{}", json["pre_tokenizer"]);
        let ids = own.encode(&text).unwrap();
        assert!(ids.iter().map(|id| u32::from(*id)).eq(expected(&json, &text)), "{}", json["pre_tokenizer"]);
    }
}

#[test]
fn tokens_that_were_added_keep_their_spaces() {
    for (strips, spaced) in [(false, false), (false, true), (true, false)] {
        let mut json = german();
        json["pre_tokenizer"]["add_prefix_space"] = json!(true);
        let mut token = mark(270, if spaced { "<a b>" } else { "<mark>" }, false);
        token["lstrip"] = json!(strips);
        json["added_tokens"].as_array_mut().unwrap().push(token);
        let text = "der <mark>Hund<a b> und <mark>Das ".repeat(3000);
        for text in [text.clone(), format!("<mark>{text}")] {
            let ids = read(&json).encode(&text).unwrap();
            assert!(ids.iter().map(|id| u32::from(*id)).eq(expected(&json, &text)), "{strips} {spaced}");
        }
    }
}

#[test]
fn no_text_gives_the_end_of_text() {
    let mut json = german();
    json["added_tokens"][1]["special"] = json!(false);
    let own = read(&json);
    assert_eq!(own.end_of_text(), 1);
    assert!(!own.encode("a</s>b").unwrap().contains(&1));
    // a vocabulary in which words are looked up whole
    let mut json = german();
    json["added_tokens"] = json!([]);
    json["model"]["ignore_merges"] = json!(true);
    json["pre_tokenizer"]["use_regex"] = json!(false);
    let text = read(&json).check().unwrap_err().to_string();
    assert!(text.contains("can spell its end of text"), "{text}");
}

#[test]
fn settings_of_a_tokenizer_that_are_something_else_are_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tokenizer.json"), german().to_string()).unwrap();
    let put = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
    let good = br#"{"eos_token": "<s>", "add_prefix_space": true}"#;
    put("tokenizer_config.json", &[b"\xef\xbb\xbf", &good[..]].concat());
    let own = open(dir.path());
    assert_eq!((own.end_of_text(), own.encode("und").unwrap()), (0, vec![268]), "a byte order mark is no fault");
    for name in ["tokenizer_config.json", "special_tokens_map.json", "generation_config.json"] {
        put("tokenizer_config.json", good);
        for (bytes, what) in [
            (&b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n"[..], "git lfs pull"),
            (b"{\"eos_token\": \"<s", "broken JSON"),
        ] {
            put(name, bytes);
            let text = open(dir.path()).check().unwrap_err().to_string();
            assert!(text.contains(name) && text.contains(what), "{name}: {text}");
        }
        fs::remove_file(dir.path().join(name)).unwrap();
    }
}

#[test]
fn bytes_whose_spaces_are_dropped_are_no_byte_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    Tokenizer::Bytes.write_files(dir.path(), &Config::new(8, 257, 1, 1, 8).unwrap()).unwrap();
    let mut json: Value = serde_json::from_slice(&fs::read(dir.path().join("tokenizer.json")).unwrap()).unwrap();
    let plain = json["pre_tokenizer"].clone();
    json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, plain]});
    let own = read(&json);
    assert_eq!((own.name(), own.encode("a b").unwrap()), ("own", vec![97, 98]));
}
