//! Text for people: whole characters from bytes that arrive token by token, and none that a terminal obeys.

use wgpt::files::visible;

/// Collects bytes and returns whole characters.
#[derive(Debug, Default)]
pub struct Characters {
    bytes: Vec<u8>,
    harmless: bool,
}

impl Characters {
    /// Makes an empty collector. With `harmless`, as for a terminal, control characters are replaced by visible signs.
    pub fn new(harmless: bool) -> Self {
        Self { bytes: Vec::new(), harmless }
    }

    /// Adds bytes and returns the characters that are complete. Invalid UTF-8 becomes U+FFFD.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.bytes.extend_from_slice(bytes);
        let mut rest = self.bytes.as_slice();
        let mut whole = String::new();
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    whole.push_str(text);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (text, later) = rest.split_at(error.valid_up_to());
                    whole.push_str(&String::from_utf8_lossy(text));
                    // a character may be split between tokens: the next one has the rest
                    let Some(length) = error.error_len() else {
                        rest = later;
                        break;
                    };
                    whole.push(char::REPLACEMENT_CHARACTER);
                    rest = &later[length..];
                }
            }
        }
        self.bytes = rest.to_vec();
        if self.harmless { harmless(&whole) } else { whole }
    }

    /// Returns the replacement of a character that was never completed.
    pub fn end(&mut self) -> String {
        if self.bytes.is_empty() {
            return String::new();
        }
        self.bytes.clear();
        char::REPLACEMENT_CHARACTER.into()
    }
}

/// Replaces characters that terminals obey: escape sequences begin with one of them. Line feeds and tabs stay, and so
/// do carriage returns before a line feed.
pub fn harmless(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        out.push(match c {
            '\n' | '\t' => c,
            '\r' if characters.peek() == Some(&'\n') => c,
            // Unicode has a visible sign for each of these
            '\0'..='\u{1f}' => char::from_u32(0x2400 + c as u32).unwrap_or(char::REPLACEMENT_CHARACTER),
            '\u{7f}' => '\u{2421}',
            '\u{80}'..='\u{9f}' => char::REPLACEMENT_CHARACTER,
            c if visible::changes_direction(c) => char::REPLACEMENT_CHARACTER,
            c => c,
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_cut_between_tokens_come_out_whole() {
        let text = "a é 日本 🙂 end";
        for size in 1..6 {
            let mut characters = Characters::new(true);
            let out: String = text.as_bytes().chunks(size).map(|bytes| characters.push(bytes)).collect();
            assert_eq!(out + &characters.end(), text);
        }
    }

    #[test]
    fn broken_bytes_are_replaced_once_each() {
        let mut characters = Characters::new(false);
        assert_eq!(characters.push(b"a\xff\xffb\xe6"), "a\u{fffd}\u{fffd}b");
        assert_eq!(characters.push(b"c\xe6\x97"), "\u{fffd}c");
        assert_eq!((characters.end(), characters.end()), ("\u{fffd}".into(), String::new()));
        assert_eq!(Characters::new(false).push(b"\x1b[2J"), "\u{1b}[2J");
    }

    #[test]
    fn no_escape_sequence_survives() {
        assert_eq!(harmless("a\x1b[31m\tb\r\n\rc\x07\x7f"), "a\u{241b}[31m\tb\r\n\u{240d}c\u{2407}\u{2421}");
        assert_eq!(harmless("\u{9b}2J\u{202e}x\u{85}"), "\u{fffd}2J\u{fffd}x\u{fffd}");
        let all: String = ('\0'..='\u{ff}').collect();
        assert!(harmless(&all).chars().all(|c| !c.is_control() || c == '\n' || c == '\t'));
    }
}
