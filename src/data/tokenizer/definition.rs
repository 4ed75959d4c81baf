//! The definition in a model's tokenizer files: a vocabulary, merges, and the splitting of text before merging.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::error::Fault;
use crate::formats::tokenizer_files::{END_OF_TEXT, gpt2, spell};
use crate::formats::tokenizer_folder::{
    ADDED, FOREIGN, GENERATION, PAIRS, SETTINGS, SPECIAL, TOKENIZER, TokenizerFiles,
};

/// Largest number of ids: shards have 16 bits per token.
const MOST_IDS: u64 = 1 << 16;

/// A token in addition to those of the vocabulary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Added {
    /// Spelling of the token in texts.
    pub content: String,
    /// Whether it is a mark, such as end of text, which text never encodes to.
    pub special: bool,
    /// Whether its match in a text depends on the surrounding characters or includes adjacent whitespace.
    pub strips: bool,
}

/// A byte-level byte pair encoding.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Definition {
    /// Ids of the vocabulary by token, spelled in printable characters.
    pub vocab: BTreeMap<String, u32>,
    /// Pairs to merge, the earliest first.
    pub merges: Vec<[String; 2]>,
    /// Additional tokens by id.
    pub added: BTreeMap<u32, Added>,
    /// The normalizer, which changes the text first; null for none.
    pub normalizer: Value,
    /// The pre-tokenizer, which splits the text into words.
    pub pre_tokenizer: Value,
    /// The pre-tokenizer for the rest of a text that began earlier: it does not prepend a space.
    pub continued: Value,
    /// Whether a space is prepended to a text that does not begin with one.
    pub prefix_space: bool,
    /// Id of end of text.
    pub end: u32,
    /// The whole definition, for the `tokenizers` library.
    pub json: Value,
}

/// Returns the first 80 characters of a part of a file, for messages.
fn shown(part: impl std::fmt::Display) -> String {
    let text = part.to_string();
    let start: String = text.chars().take(80).collect();
    if start.len() < text.len() { format!("{start}...") } else { start }
}

fn no(what: impl Into<String>) -> Fault {
    Fault::from(what.into()).expected("a byte-level BPE of at most 65,536 ids, such as GPT-2's")
}

/// Adds a place to a fault that has none.
fn placed(fault: Fault, place: String) -> Fault {
    if fault.place.is_empty() { fault.within(place) } else { fault }
}

impl Definition {
    /// Reads the definition.
    ///
    /// # Errors
    /// The reason why the tokenizer is not supported, with the file's name as its place.
    pub(super) fn read(files: &TokenizerFiles) -> Result<Self, Fault> {
        let place = |name: &str| files.dir().join(name).display().to_string();
        if files.get(TOKENIZER).is_some() {
            let value = files.json(TOKENIZER)?;
            return Self::of_json(value, files).map_err(|fault| placed(fault, place(TOKENIZER)));
        }
        for [vocab, merges] in PAIRS {
            match (files.get(vocab), files.get(merges)) {
                (Some(_), Some(pairs)) => {
                    let value = of_pair(files.json(vocab)?, pairs, files)?;
                    return Self::of_json(value, files).map_err(|fault| placed(fault, place(vocab)));
                }
                (Some(_), None) => return Err(no(format!("exists without {merges}")).within(place(vocab))),
                (None, Some(_)) => return Err(no(format!("exists without {vocab}")).within(place(merges))),
                (None, None) => {}
            }
        }
        let foreign = FOREIGN.iter().find(|(name, _)| files.get(name).is_some());
        let (name, kind) = foreign.unwrap_or(&("", "unknown"));
        Err(no(format!("a {kind} tokenizer")).within(place(name)))
    }

    fn of_json(mut json: Value, files: &TokenizerFiles) -> Result<Self, Fault> {
        let model = &json["model"];
        // older files name no type, and only a byte pair encoding has merges
        let kind = model["type"].as_str().unwrap_or(if model["merges"].is_array() { "BPE" } else { "unknown" });
        if kind != "BPE" {
            return Err(no(format!("a {} tokenizer", shown(kind.escape_debug()))));
        }
        let plain = |key: &str| model[key].as_str().is_none_or(str::is_empty);
        let merges_bytes = mentions_bytes(&json["decoder"])
            && (mentions_bytes(&json["pre_tokenizer"]) || mentions_bytes(&json["normalizer"]));
        if !merges_bytes || model["byte_fallback"] == true || !plain("end_of_word_suffix") {
            return Err(no("a BPE tokenizer that does not merge bytes"));
        }
        if !plain("continuing_subword_prefix") || model["dropout"].as_f64().is_some_and(|d| d > 0.0) {
            return Err(no("a BPE tokenizer with a prefix within words or with dropout"));
        }
        let vocab = ids(&model["vocab"])?;
        if json["normalizer"].to_string().contains("\"Precompiled\"") {
            return Err(no("a BPE tokenizer with SentencePiece's normalizer"));
        }
        let merges = pairs(&model["merges"])?;
        let mut added = added(&json["added_tokens"])?;
        unique(&vocab, &added)?;
        let end = end_of_text(files, &vocab, &added)?;
        // no text may encode to end of text
        added.entry(end).and_modify(|token| token.special = true);
        let listed = json.get_mut("added_tokens").and_then(Value::as_array_mut);
        for token in listed.into_iter().flatten().filter(|token| token["id"] == end) {
            token["special"] = json!(true);
        }
        let asked = files.json(SETTINGS)?["add_prefix_space"].as_bool();
        if let (Some(asked), true) = (asked, json["pre_tokenizer"]["type"] == "ByteLevel") {
            json["pre_tokenizer"]["add_prefix_space"] = json!(asked);
        }
        let mut continued = json["pre_tokenizer"].clone();
        let prefix_space = take_prefix_spaces(&mut continued);
        let pre_tokenizer = json["pre_tokenizer"].clone();
        json["model"]["dropout"] = Value::Null;
        // do not add to, truncate or pad texts
        for key in ["truncation", "padding", "post_processor"] {
            json[key] = Value::Null;
        }
        let normalizer = json["normalizer"].clone();
        Ok(Self { vocab, merges, added, normalizer, pre_tokenizer, continued, prefix_space, end, json })
    }

    /// Returns whether it is exactly GPT-2's tokenizer.
    pub(super) fn is_gpt2(&self) -> bool {
        // computing GPT-2's merges takes a while, so this first rules out other tokenizers
        if !self.splits_as_gpt2() || self.prefix_space || self.merges.len() != 50_000 {
            return false;
        }
        let (tokens, merges) = gpt2();
        self.is_plain(tokens, 50_256) && self.merges == *merges && self.json["model"]["ignore_merges"] != true
    }

    /// Returns whether ids 0 to 255 are the bytes, 256 is end of text, and nothing is merged.
    pub(super) fn is_bytes(&self) -> bool {
        let bytes: Vec<String> = (0..=255).map(|byte| spell(&[byte])).collect();
        // nothing is merged, so it does not matter whether ByteLevel splits
        let plain = self.normalizer.is_null() && self.pre_tokenizer["type"] == "ByteLevel" && !self.prefix_space;
        self.merges.is_empty() && plain && self.is_plain(&bytes, 256)
    }

    /// Returns whether the vocabulary consists of exactly `tokens` in order and end of text with the id `end`.
    fn is_plain(&self, tokens: &[String], end: u32) -> bool {
        let marks = self.vocab.get(END_OF_TEXT).is_none_or(|id| *id == end)
            && self.added.iter().all(|(id, token)| *id == end && token.content == END_OF_TEXT);
        let words = self.vocab.len() - usize::from(self.vocab.contains_key(END_OF_TEXT));
        marks
            && self.end == end
            && words == tokens.len()
            && tokens.iter().zip(0..).all(|(token, id)| self.vocab.get(token) == Some(&id))
    }

    /// Returns whether text is split into words by GPT-2's pattern and not changed.
    pub(super) fn splits_as_gpt2(&self) -> bool {
        self.normalizer.is_null()
            && self.pre_tokenizer["type"] == "ByteLevel"
            && self.pre_tokenizer["use_regex"].as_bool().unwrap_or(true)
    }

    /// Returns a canonical text of everything that determines the ids of a text. It is the same for both forms of
    /// files.
    pub(super) fn canonical(&self) -> String {
        let marks = self.added.iter().map(|(id, token)| (*id, &token.content));
        let tokens: BTreeMap<u32, &String> = self.vocab.iter().map(|(token, id)| (*id, token)).chain(marks).collect();
        let found: Vec<_> = self.added.iter().filter(|(_, t)| !t.special).map(|(id, t)| (id, t.strips)).collect();
        let model = &self.json["model"];
        let mut pre_tokenizer = self.pre_tokenizer.clone();
        // affects only the offsets of words, which are not used here
        forget(&mut pre_tokenizer, "trim_offsets");
        let rest = json!([
            self.normalizer,
            pre_tokenizer,
            self.end,
            model["unk_token"].as_str().filter(|token| !token.is_empty()),
            model["ignore_merges"] == true,
            model["fuse_unk"] == true,
        ]);
        format!("{tokens:?}{:?}{found:?}{rest}", self.merges)
    }
}

/// Removes a key from a pre-tokenizer, and from those in a sequence.
fn forget(part: &mut Value, key: &str) {
    let Some(part) = part.as_object_mut() else { return };
    part.remove(key);
    for inner in part.get_mut("pretokenizers").and_then(Value::as_array_mut).into_iter().flatten() {
        forget(inner, key);
    }
}

/// Sets every `add_prefix_space` to false. Returns whether one of them was true.
fn take_prefix_spaces(part: &mut Value) -> bool {
    let mut was = false;
    if part["type"] == "ByteLevel" {
        // the library's own default is true
        was = part["add_prefix_space"].as_bool().unwrap_or(true);
        part["add_prefix_space"] = json!(false);
    }
    for inner in part.get_mut("pretokenizers").and_then(Value::as_array_mut).into_iter().flatten() {
        was |= take_prefix_spaces(inner);
    }
    was
}

/// Returns `vocab.json` and `merges.txt` in the form of `tokenizer.json`.
fn of_pair(vocab: Value, merges: &[u8], files: &TokenizerFiles) -> Result<Value, Fault> {
    let text = std::str::from_utf8(merges).map_err(|_| no("its merges are not UTF-8"))?;
    let lines = text.lines().map(str::trim_end).filter(|line| !line.is_empty() && !line.starts_with("#version"));
    let merges: Vec<&str> = lines.collect();
    let mut added: BTreeMap<u64, Value> = BTreeMap::new();
    let mut add = |id: u64, content: &str, special: bool| {
        let token = json!({
            "id": id, "content": content, "special": special, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false,
        });
        added.entry(id).or_insert(token);
    };
    let settings = files.json(SETTINGS)?;
    for (id, token) in settings["added_tokens_decoder"].as_object().into_iter().flatten() {
        if let (Ok(id), Some(content)) = (id.parse(), token["content"].as_str()) {
            add(id, content, token["special"] == true);
        }
    }
    let special = special_names(files)?;
    for (content, id) in files.json(ADDED)?.as_object().into_iter().flatten() {
        if let Some(id) = id.as_u64() {
            add(id, content, special.contains(content));
        }
    }
    for content in &special {
        if let Some(id) = vocab[content.as_str()].as_u64() {
            add(id, content, true);
        }
    }
    let split = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    Ok(json!({
        "version": "1.0",
        "added_tokens": added.into_values().collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": split,
        "decoder": split,
        "model": { "type": "BPE", "vocab": vocab, "merges": merges },
    }))
}

/// Returns the spellings of special tokens.
fn special_names(files: &TokenizerFiles) -> Result<Vec<String>, Fault> {
    let mut names = vec![END_OF_TEXT.to_owned()];
    for file in [SPECIAL, SETTINGS] {
        let value = files.json(file)?;
        let tokens = value.as_object().into_iter().flatten().filter(|(key, _)| key.ends_with("_token"));
        names.extend(tokens.filter_map(|(_, token)| spelling(token)));
    }
    Ok(names)
}

/// Returns the spelling of a token, which is given as text or as an object with the text.
fn spelling(token: &Value) -> Option<String> {
    token.as_str().or_else(|| token["content"].as_str()).map(str::to_owned)
}

fn end_of_text(
    files: &TokenizerFiles,
    vocab: &BTreeMap<String, u32>,
    added: &BTreeMap<u32, Added>,
) -> Result<u32, Fault> {
    let id_of = |name: &str| {
        let own = added.iter().find(|(_, token)| token.content == name).map(|(id, _)| *id);
        own.or_else(|| vocab.get(name).copied())
    };
    let (settings, special) = (files.json(SETTINGS)?, files.json(SPECIAL)?);
    let named = [settings, special].iter().find_map(|value| id_of(&spelling(&value["eos_token"])?));
    let generation = files.json(GENERATION)?;
    let from_generation = || {
        let value = &generation["eos_token_id"];
        let id = value.as_u64().or_else(|| value[0].as_u64()).and_then(|id| u32::try_from(id).ok())?;
        (added.contains_key(&id) || vocab.values().any(|other| *other == id)).then_some(id)
    };
    let usual = || [END_OF_TEXT, "</s>", "<eos>", "[EOS]"].into_iter().find_map(id_of);
    named.or_else(from_generation).or_else(usual).ok_or_else(|| {
        Fault::from("no end of text").expected(format!("`eos_token` in {SETTINGS}, which separates documents"))
    })
}

fn ids(vocab: &Value) -> Result<BTreeMap<String, u32>, Fault> {
    let entries = vocab.as_object().ok_or_else(|| no("no vocabulary"))?;
    let id = |id: &Value| id.as_u64().filter(|id| *id < MOST_IDS).map(|id| id as u32);
    let entries = entries.iter().map(|(token, value)| {
        id(value)
            .map(|id| (token.clone(), id))
            .ok_or_else(|| no(format!("`{}` has the id {}", shown(token.escape_debug()), shown(value))))
    });
    entries.collect()
}

/// Parses merges, which are pairs of strings, or strings with a space between the pair.
fn pairs(merges: &Value) -> Result<Vec<[String; 2]>, Fault> {
    let list = merges.as_array().ok_or_else(|| no("no merges"))?;
    if list.len() as u64 > MOST_IDS {
        return Err(no(format!("{} merges", list.len())));
    }
    let pair = |value: &Value| -> Option<[String; 2]> {
        match value {
            Value::String(line) => line.split_once(' ').map(|(left, right)| [left.to_owned(), right.to_owned()]),
            Value::Array(two) if two.len() == 2 => Some([two[0].as_str()?.to_owned(), two[1].as_str()?.to_owned()]),
            _ => None,
        }
    };
    list.iter().map(|value| pair(value).ok_or_else(|| no(format!("a merge is {}", shown(value))))).collect()
}

fn added(tokens: &Value) -> Result<BTreeMap<u32, Added>, Fault> {
    let tokens = tokens.as_array().into_iter().flatten().map(|token| {
        let id = token["id"].as_u64().filter(|id| *id < MOST_IDS);
        let (Some(id), Some(content)) = (id, token["content"].as_str().filter(|text| !text.is_empty())) else {
            return Err(no(format!("an added token is {}", shown(token))));
        };
        let strips = token["lstrip"] == true || token["rstrip"] == true || token["single_word"] == true;
        Ok((id as u32, Added { content: content.to_owned(), special: token["special"] == true, strips }))
    });
    tokens.collect()
}

/// Checks that no two tokens have the same id, which could not be decoded.
fn unique(vocab: &BTreeMap<String, u32>, added: &BTreeMap<u32, Added>) -> Result<(), Fault> {
    let mut seen = std::collections::HashMap::new();
    let all = vocab.iter().map(|(token, id)| (token, *id)).chain(added.iter().map(|(id, t)| (&t.content, *id)));
    for (token, id) in all {
        if let Some(other) = seen.insert(id, token).filter(|other| *other != token) {
            return Err(no(format!(
                "`{}` and `{}` both have the id {id}",
                shown(other.escape_debug()),
                shown(token.escape_debug())
            )));
        }
    }
    Ok(())
}

/// Returns whether a part of the tokenizer, or one in a sequence of parts, works on bytes.
fn mentions_bytes(part: &Value) -> bool {
    let inner = ["pretokenizers", "normalizers", "decoders"].iter().filter_map(|key| part[*key].as_array());
    part["type"] == "ByteLevel" || inner.flatten().any(mentions_bytes)
}
