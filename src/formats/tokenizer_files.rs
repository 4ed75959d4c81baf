//! Writes the files with which `AutoTokenizer` of Hugging Face's transformers reads a model's folder without a network.
//!
//! GPT-2's vocabulary is a list of byte strings in the order in which byte pairs were merged. Its usual files contain
//! the same in another form: `vocab.json` maps each string, its bytes spelt as printable characters, to its id;
//! `merges.txt` lists the pairs. The pair of a string is the two parts that remain after byte pair encoding with only
//! the earlier merges.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use super::vocabulary::{TokenKind, Vocabulary};
use crate::error::Result;
use crate::files::atomic;
use crate::model::config::Config;

/// Spelling of end of text.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// Number of GPT-2's ids below end of text.
const GPT2_TOKENS: u32 = 50_256;

/// Returns the names of the files that [`write`] writes.
#[must_use]
pub fn file_names(name: &str) -> &'static [&'static str] {
    match name {
        "gpt2" => &["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt"],
        "bytes" => &["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"],
        _ => &[],
    }
}

/// Writes the tokenizer's files into the folder `dir` and returns true. Returns false if the name is unknown or the
/// model's vocabulary is smaller than the tokenizer's.
///
/// - `gpt2`: tokenizer.json, vocab.json, merges.txt, tokenizer_config.json and special_tokens_map.json, equivalent to
///   those of OpenAI's model.
/// - `bytes`: tokenizer.json, tokenizer_config.json and special_tokens_map.json of a byte-level encoding without
///   merges: ids 0 to 255 are the bytes, 256 is end of text.
///
/// With these files, transformers encodes the spelling `<|endoftext|>` in a text as end of text, as all special tokens;
/// this program encodes it as ordinary text.
///
/// # Errors
/// [`crate::error::Error::Output`] naming the file if writing fails.
pub fn write(dir: &Path, name: &str, config: &Config) -> Result<bool> {
    let text = |file: &str, text: String| atomic::write(&dir.join(file), |out| out.write_all(text.as_bytes()));
    match name {
        "gpt2" if config.vocab > GPT2_TOKENS as usize => {
            let (vocab, merges) = gpt2();
            let mut lines = String::from("#version: 0.2\n");
            for [left, right] in merges {
                let _ = writeln!(lines, "{left} {right}");
            }
            text("vocab.json", Value::Object(with_end(vocab, GPT2_TOKENS)).to_string())?;
            text("merges.txt", lines)?;
            text("tokenizer.json", tokenizer(vocab, merges, GPT2_TOKENS, true).to_string())?;
            text("tokenizer_config.json", settings("GPT2Tokenizer", config.positions))?;
        }
        "bytes" if config.vocab > 256 => {
            let vocab: Vec<String> = (0..=255).map(|byte| spell(&[byte])).collect();
            text("tokenizer.json", tokenizer(&vocab, &[], 256, false).to_string())?;
            text("tokenizer_config.json", settings("PreTrainedTokenizerFast", config.positions))?;
        }
        _ => return Ok(false),
    }
    let special = json!({ "bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT });
    text("special_tokens_map.json", format!("{special:#}\n"))?;
    Ok(true)
}

/// Returns the tokens of `gpt2` or `bytes` for file layouts that include a tokenizer; `None` for another name.
#[must_use]
pub fn vocabulary(name: &str) -> Option<Vocabulary> {
    let (mut tokens, merges) = match name {
        "gpt2" => gpt2().clone(),
        "bytes" => ((0..=255).map(|byte| spell(&[byte])).collect(), Vec::new()),
        _ => return None,
    };
    let end = tokens.len();
    let mut kinds = vec![TokenKind::Normal; end];
    tokens.push(END_OF_TEXT.to_owned());
    kinds.push(TokenKind::Control);
    let merges = merges.into_iter().map(|[left, right]| format!("{left} {right}")).collect();
    Some(Vocabulary { tokens, kinds, merges, end: u32::try_from(end).ok(), splitting: "gpt-2".to_owned() })
}

/// Spells bytes in printable characters, as GPT-2's code does: visible characters of Latin-1 stand for themselves, the
/// other bytes are mapped, in order, to the characters from U+0100 on.
#[must_use]
pub fn spell(bytes: &[u8]) -> String {
    let shows = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    bytes
        .iter()
        .map(|&byte| {
            if shows(byte) {
                return char::from(byte);
            }
            let before = (0..byte).filter(|b| !shows(*b)).count() as u32;
            char::from_u32(0x100 + before).unwrap_or(char::REPLACEMENT_CHARACTER)
        })
        .collect()
}

/// Returns the bytes that a token of a byte-level vocabulary stands for. A token with characters that [`spell`] does
/// not return stands for itself.
#[must_use]
pub fn unspell(token: &str) -> Vec<u8> {
    static BYTES: LazyLock<HashMap<char, u8>> =
        LazyLock::new(|| (0..=255).filter_map(|byte| spell(&[byte]).chars().next().map(|c| (c, byte))).collect());
    let bytes: Option<Vec<u8>> = token.chars().map(|c| BYTES.get(&c).copied()).collect();
    bytes.unwrap_or_else(|| token.as_bytes().to_vec())
}

/// Returns GPT-2's tokens below end of text, spelled as by [`spell`], and its merges.
#[must_use]
pub fn gpt2() -> &'static (Vec<String>, Vec<[String; 2]>) {
    static GPT2: LazyLock<(Vec<String>, Vec<[String; 2]>)> = LazyLock::new(|| {
        let bpe = Gpt2::new();
        (bpe.vocab(), bpe.merges())
    });
    &GPT2
}

/// GPT-2's vocabulary as bytes.
struct Gpt2 {
    tokens: Vec<Vec<u8>>,
    ranks: HashMap<Vec<u8>, u32>,
}

impl Gpt2 {
    fn new() -> Self {
        let bpe = tiktoken_rs::r50k_base_singleton();
        // an id below end of text always decodes, so the error cannot occur
        let tokens: Vec<Vec<u8>> = (0..GPT2_TOKENS).map(|id| bpe.decode_bytes(&[id]).unwrap_or_default()).collect();
        let ranks = tokens.iter().cloned().zip(0..).collect();
        Self { tokens, ranks }
    }

    fn vocab(&self) -> Vec<String> {
        self.tokens.iter().map(|token| spell(token)).collect()
    }

    /// Returns the merges in order: one for each token of two bytes or more.
    fn merges(&self) -> Vec<[String; 2]> {
        let long = self.tokens.iter().enumerate().filter(|(_, token)| token.len() > 1);
        long.map(|(id, token)| {
            let middle = self.pair(token, id as u32);
            [spell(&token[..middle]), spell(&token[middle..])]
        })
        .collect()
    }

    /// Returns the index at which the last merge joined a token: byte pair encoding with the merges before `id` leaves
    /// two parts.
    fn pair(&self, token: &[u8], id: u32) -> usize {
        let mut cuts: Vec<usize> = (0..=token.len()).collect();
        while cuts.len() > 3 {
            let rank = |i: &usize| self.ranks.get(&token[cuts[*i]..cuts[*i + 2]]).copied().filter(|rank| *rank < id);
            let best = (0..cuts.len() - 2).filter_map(|i| rank(&i).map(|rank| (rank, i))).min();
            match best {
                Some((_, i)) => drop(cuts.remove(i + 1)),
                None => break, // not a byte pair encoding: cannot happen unless the crate's data is broken
            }
        }
        cuts[1]
    }
}

fn with_end(vocab: &[String], end: u32) -> Map<String, Value> {
    let entries = vocab.iter().cloned().zip((0..).map(Value::from));
    entries.chain([(END_OF_TEXT.to_owned(), Value::from(end))]).collect()
}

/// Returns the contents of tokenizer.json, which Hugging Face's `tokenizers` reads.
fn tokenizer(vocab: &[String], merges: &[[String; 2]], end: u32, words: bool) -> Value {
    let merges: Vec<String> = merges.iter().map(|[left, right]| format!("{left} {right}")).collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [{
            "id": end, "content": END_OF_TEXT, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        }],
        "normalizer": null,
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": words },
        "post_processor": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": words },
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": words },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": with_end(vocab, end), "merges": merges,
        },
    })
}

fn settings(class: &str, positions: usize) -> String {
    let value = json!({
        "add_prefix_space": false,
        "bos_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": false,
        "eos_token": END_OF_TEXT,
        "model_max_length": positions,
        "tokenizer_class": class,
        "unk_token": END_OF_TEXT,
    });
    format!("{value:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_spelt_as_gpt2_does() {
        let all: Vec<String> = (0..=255).map(|byte| spell(&[byte])).collect();
        assert_eq!(
            (&*all[b' ' as usize], &*all[b'\n' as usize], &*all[0], &*all[0xad], &*all[b'A' as usize]),
            ("Ġ", "Ċ", "Ā", "Ń", "A")
        );
        assert_eq!(all.iter().collect::<std::collections::HashSet<_>>().len(), 256);
    }

    #[test]
    fn gpt2s_merges_are_openais() {
        let bpe = Gpt2::new();
        let (vocab, merges) = (bpe.vocab(), bpe.merges());
        assert_eq!((vocab.len(), merges.len()), (50_256, 50_000));
        let pair = |left: &str, right: &str| [left.to_owned(), right.to_owned()];
        assert_eq!(merges[..4], [pair("Ġ", "t"), pair("Ġ", "a"), pair("h", "e"), pair("i", "n")]);
        assert_eq!(merges[49_999], pair("Ġg", "azed"));
        assert_eq!((&*vocab[0], &*vocab[220], &*vocab[15_496]), ("!", "Ġ", "Hello"));
        // each merge makes the token at its index
        for (i, [left, right]) in merges.iter().enumerate() {
            assert_eq!(format!("{left}{right}"), vocab[256 + i]);
        }
        let known: std::collections::HashSet<&String> = vocab.iter().collect();
        assert!(merges.iter().flatten().all(|part| known.contains(part)));
    }

    #[test]
    fn vocabularies_end_with_end_of_text() {
        for (name, tokens, merges) in [("gpt2", 50_257, 50_000), ("bytes", 257, 0)] {
            let vocabulary = vocabulary(name).unwrap();
            assert_eq!((vocabulary.tokens.len(), vocabulary.merges.len()), (tokens, merges));
            assert_eq!((&*vocabulary.tokens[tokens - 1], vocabulary.end), ("<|endoftext|>", Some(tokens as u32 - 1)));
            let special: Vec<usize> = (0..tokens).filter(|i| vocabulary.kinds[*i] != TokenKind::Normal).collect();
            assert_eq!(special, [tokens - 1]);
        }
        assert_eq!(vocabulary("gpt2").unwrap().merges[0], "Ġ t");
        assert!(vocabulary("sentences").is_none());
    }

    #[test]
    fn folders_hold_the_files_of_their_tokenizer() {
        let dir = tempfile::tempdir().unwrap();
        for (name, vocab, files) in [("gpt2", 50_256, 0), ("bytes", 256, 0), ("bytes", 257, 3), ("gpt2", 50_257, 5)] {
            let config = Config::new(64, vocab, 1, 1, 8).unwrap();
            assert_eq!(write(dir.path(), name, &config).unwrap(), files > 0);
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), files);
            assert!(files == 0 || file_names(name).iter().all(|file| dir.path().join(file).exists()));
            assert!(!write(dir.path(), "sentences", &config).unwrap());
        }
        let text = std::fs::read_to_string(dir.path().join("tokenizer_config.json")).unwrap();
        assert!(text.contains("\"model_max_length\": 64"), "{text}");
    }
}
