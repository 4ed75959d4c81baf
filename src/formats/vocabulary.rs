//! A tokenizer's tokens as data, for file layouts with both weights and tokenizer.

/// Kinds of tokens, with GGUF's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// Text.
    Normal = 1,
    /// A mark for the program, such as end of text, which text never encodes to.
    Control = 3,
    /// A token that was added to a vocabulary and is matched in a text before byte pairs are merged.
    Added = 4,
    /// An id without meaning.
    Unused = 5,
}

/// The tokens of a byte-level byte pair encoding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vocabulary {
    /// The token of each id, its bytes spelt as in GPT-2's files.
    pub tokens: Vec<String>,
    /// The kind of each token.
    pub kinds: Vec<TokenKind>,
    /// Merges in order: two tokens with a space between them.
    pub merges: Vec<String>,
    /// The id that begins and ends texts.
    pub end: Option<u32>,
    /// llama.cpp's name of the pattern that splits text into words before byte pairs are merged: `gpt-2` for GPT-2's.
    pub splitting: String,
}

impl Vocabulary {
    /// Returns the vocabulary with unused tokens added up to `rows` ids, because a model may have more rows than its
    /// tokenizer has ids (50,304 for 50,257). `None` if the model has fewer rows.
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
