//! Rules for cutting a text into parts that can be encoded separately.

/// Bytes that one task encodes: enough to make the cost of a task small, but a small part of a file.
pub(super) const PIECE_BYTES: usize = 1 << 16;

/// Longest stretch without a cut, in bytes, that is encoded as a whole. Beyond a million characters of whitespace,
/// GPT-2's splitting pattern would fail.
pub(crate) const UNBROKEN_BYTES: usize = 1 << 19;

/// A rule for cuts that do not change ids. A stretch without such a place is cut after [`UNBROKEN_BYTES`]: this splits
/// a word that no model needs whole, and bounds memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cuts {
    /// Cuts before whitespace that follows non-whitespace: no word of GPT-2's splitting pattern contains non-whitespace
    /// followed by whitespace, and its only look-ahead starts at whitespace.
    BeforeSpace,
    /// Cuts before a single space between two letters: every splitting pattern in use begins a word there.
    BetweenWords,
    /// No cuts, because the splitting is unknown.
    Nowhere,
}

impl Cuts {
    /// Cuts a text into pieces of some `bytes` bytes.
    pub(super) fn pieces(self, text: &str, bytes: usize) -> Vec<&str> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while rest.len() > bytes {
            let at = self.piece_end(rest.as_bytes(), bytes);
            let (piece, later) = rest.split_at(rest.floor_char_boundary(at));
            pieces.push(piece);
            rest = later;
        }
        pieces.push(rest);
        pieces
    }

    /// Returns the end of a piece of some `bytes`: the last cut up to there, else the first cut after it, else
    /// [`UNBROKEN_BYTES`], else the end of the text. Never 0. The text need not be valid UTF-8.
    #[must_use]
    pub(crate) fn piece_end(self, text: &[u8], bytes: usize) -> usize {
        let near = bytes.clamp(1, UNBROKEN_BYTES).min(text.len());
        let far = UNBROKEN_BYTES.min(text.len());
        let back = (1..=near).rev().find(|&at| self.is_cut(text, at));
        let end = back.or_else(|| (near + 1..far).find(|&at| self.is_cut(text, at))).unwrap_or(far);
        if end == far && far < text.len() && !self.is_cut(text, end) { floor_sequence(text, end) } else { end }
    }

    fn is_cut(self, text: &[u8], at: usize) -> bool {
        match self {
            Self::BeforeSpace => is_before_space(text, at),
            Self::BetweenWords => is_between_words(text, at),
            Self::Nowhere => false,
        }
    }
}

/// Returns whether there is ASCII whitespace at `at` after a character that is not whitespace. Cuts before other
/// whitespace are not needed.
fn is_before_space(text: &[u8], at: usize) -> bool {
    let space = |byte: u8| byte.is_ascii_whitespace() || byte == 0x0b;
    if at == 0 || at >= text.len() || !space(text[at]) || space(text[at - 1]) {
        return false;
    }
    match text[at - 1] {
        0..0x80 => true,
        // the last byte of a longer character: is it whitespace?
        _ => !matches!(
            text[at.saturating_sub(3)..at],
            [.., 0xc2, 0x85 | 0xa0]
                | [0xe1, 0x9a, 0x80]
                | [0xe2, 0x80, 0x80..=0x8a | 0xa8 | 0xa9 | 0xaf]
                | [0xe2, 0x81, 0x9f]
                | [0xe3, 0x80, 0x80]
        ),
    }
}

fn is_between_words(text: &[u8], at: usize) -> bool {
    if at == 0 || text.get(at) != Some(&b' ') {
        return false;
    }
    let before = text[at.saturating_sub(4)..at].utf8_chunks().last();
    let after = text[at + 1..text.len().min(at + 5)].utf8_chunks().next();
    let letter = |c: Option<char>| c.is_some_and(char::is_alphabetic);
    before.is_some_and(|chunk| chunk.invalid().is_empty() && letter(chunk.valid().chars().next_back()))
        && after.is_some_and(|chunk| letter(chunk.valid().chars().next()))
}

/// Returns the last index up to `at` at which a UTF-8 sequence begins, if there is one within four bytes, else `at`.
fn floor_sequence(text: &[u8], at: usize) -> usize {
    (at.saturating_sub(3).max(1)..=at).rev().find(|&i| text[i] & 0xc0 != 0x80).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_end_at_cuts_or_where_nothing_else_helps() {
        let end = |text: &str, bytes| Cuts::BeforeSpace.piece_end(text.as_bytes(), bytes);
        assert_eq!(end("ab cd ef", 6), 5);
        assert_eq!(end("abcdef gh", 3), 6);
        assert_eq!(end("ab  cd", 3), 2);
        assert_eq!(end("abc", 2), 3);
        assert_eq!(end("a\u{a0} b\u{3000} c\u{2009} é d", 16), 16);
        let word = "é".repeat(UNBROKEN_BYTES / 2) + "é";
        assert_eq!(end(&word, 9), UNBROKEN_BYTES);
        assert_eq!(end(&format!("x{word}"), 9), UNBROKEN_BYTES - 1);
    }

    #[test]
    fn cuts_between_words_are_before_one_space_between_letters() {
        let end = |text: &str, bytes| Cuts::BetweenWords.piece_end(text.as_bytes(), bytes);
        assert_eq!(end("ab cd ef", 6), 5);
        assert_eq!(end("ab. cd ef", 5), 6);
        assert_eq!(end("ab  cd\nef", 5), 9);
        assert_eq!(end("日本 語 x", 8), 6);
        assert_eq!(Cuts::BetweenWords.piece_end(b"\xff cd \xff ef gh", 9), 9);
        assert_eq!(Cuts::Nowhere.piece_end(b"ab cd ef", 2), 8);
    }
}
