//! A tokenizer's tokens as data, for layouts that hold weights and tokenizer in one file.

/// Kinds of tokens, by the numbers that GGUF has for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// Text.
    Normal = 1,
    /// A sign to the program, such as end of text: no text is read as it.
    Control = 3,
    /// A token that was added to a vocabulary and is found in a text before byte pairs are merged.
    Added = 4,
    /// An id that stands for nothing.
    Unused = 5,
}

/// The tokens of a byte-level encoding of byte pairs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vocabulary {
    /// The token of each id, its bytes spelt as GPT-2's files do.
    pub tokens: Vec<String>,
    /// The kind of each.
    pub kinds: Vec<TokenKind>,
    /// Pairs in the order in which they are merged: two tokens with a space between them.
    pub merges: Vec<String>,
    /// The id that begins and ends texts.
    pub end: Option<u32>,
    /// The pattern that splits text into words before byte pairs are merged, by llama.cpp's name: `gpt-2` for GPT-2's.
    pub splitting: String,
}

impl Vocabulary {
    /// Returns the vocabulary with unused tokens up to `rows` ids, since a model may have more rows than its tokenizer
    /// has ids (50,304 for 50,257); `None` if it has fewer.
    #[must_use]
    pub fn padded(mut self, rows: usize) -> Option<Self> {
        if rows < self.tokens.len() {
            return None;
        }
        let unused = self.tokens.len()..rows;
        self.tokens.extend(unused.map(|id| format!("[PAD{id}]")));
        self.kinds.resize(rows, TokenKind::Unused);
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_rows_than_tokens() {
        let bytes = crate::formats::tokenizer_files::vocabulary("bytes").unwrap();
        assert_eq!(bytes.clone().padded(257).as_ref(), Some(&bytes));
        let padded = bytes.clone().padded(259).unwrap();
        assert_eq!(padded.tokens[256..], ["<|endoftext|>", "[PAD257]", "[PAD258]"]);
        assert_eq!(padded.kinds[256..], [TokenKind::Control, TokenKind::Unused, TokenKind::Unused]);
        assert_eq!(bytes.padded(256), None);
    }
}
