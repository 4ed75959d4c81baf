//! GPT-2's encoder written a second time, slowly and plainly, after OpenAI's `encoder.py`: the same tokens.

use std::collections::HashMap;

use regex::Regex;
use wgpt::data::Tokenizer;

use super::made::{prose, unicode};

struct Encoder {
    ranks: HashMap<Vec<u8>, u32>,
    letter: Regex,
    number: Regex,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Space,
    Letter,
    Number,
    Other,
}

impl Encoder {
    fn new() -> Self {
        // in GPT-2's vocabulary an id is the rank of the merge that makes it
        let ranks = (0..50_256).map(|id| (Tokenizer::Gpt2.decode(&[id]), id)).collect();
        Self { ranks, letter: Regex::new(r"^\p{L}$").unwrap(), number: Regex::new(r"^\p{N}$").unwrap() }
    }

    fn class(&self, c: char) -> Class {
        let text = c.to_string();
        match c {
            c if c.is_whitespace() => Class::Space,
            _ if self.letter.is_match(&text) => Class::Letter,
            _ if self.number.is_match(&text) => Class::Number,
            _ => Class::Other,
        }
    }

    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`, by hand.
    fn words(&self, text: &str) -> Vec<String> {
        let chars: Vec<char> = text.chars().collect();
        let classes: Vec<Class> = chars.iter().map(|&c| self.class(c)).collect();
        let mut words = Vec::new();
        let mut at = 0;
        while at < chars.len() {
            let rest: String = chars[at..chars.len().min(at + 3)].iter().collect();
            let short = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"].iter().find(|s| rest.starts_with(**s));
            let end = if let Some(short) = short {
                at + short.len()
            } else {
                let first =
                    at + usize::from(chars[at] == ' ' && classes.get(at + 1).is_some_and(|&c| c != Class::Space));
                let class = classes[first];
                let run = first + classes[first..].iter().take_while(|&&c| c == class).count();
                // whitespace before a word leaves its last character to it, or alone
                if class == Class::Space && run < chars.len() && run - at > 1 { run - 1 } else { run }
            };
            words.push(chars[at..end].iter().collect());
            at = end;
        }
        words
    }

    fn encode(&self, text: &str) -> Vec<u16> {
        self.words(text).iter().flat_map(|word| self.merge(word.as_bytes())).collect()
    }

    /// Merges the pair of lowest rank until none is left.
    fn merge(&self, word: &[u8]) -> Vec<u16> {
        let mut parts: Vec<Vec<u8>> = word.iter().map(|&byte| vec![byte]).collect();
        loop {
            let best = (1..parts.len())
                .filter_map(|i| Some((*self.ranks.get(&[&parts[i - 1][..], &parts[i]].concat())?, i)))
                .min();
            let Some((_, i)) = best else { break };
            let right = parts.remove(i);
            parts[i - 1].extend(right);
        }
        parts.iter().map(|part| self.ranks[part] as u16).collect()
    }
}

#[test]
fn tokens_are_those_of_an_independent_encoder() {
    let encoder = Encoder::new();
    let mut count = 0;
    for seed in 0..4 {
        for text in [prose(seed, 40_000), unicode(seed, 20_000)] {
            let tokens = Tokenizer::Gpt2.encode(&text).unwrap();
            count += tokens.len();
            let expected = encoder.encode(&text);
            let first = tokens.iter().zip(&expected).position(|(a, b)| a != b);
            assert!(tokens == expected, "seed {seed}: differs from token {first:?} on");
        }
    }
    assert!(count > 100_000, "{count}");
}

/// `WGPT_TEXT=FILE cargo test --release --test it -- --ignored tokens_of_a_file`
#[test]
#[ignore = "needs a file in WGPT_TEXT"]
fn tokens_of_a_file() {
    let text = std::fs::read_to_string(std::env::var("WGPT_TEXT").expect("WGPT_TEXT")).unwrap();
    let tokens = Tokenizer::Gpt2.encode(&text).unwrap();
    assert!(tokens == Encoder::new().encode(&text));
    println!("{} tokens, all the same", tokens.len());
}
