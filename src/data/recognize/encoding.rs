//! Distinguishes text in UTF-8 from text in other encodings and from binary data.

/// The encoding of a file's first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    /// UTF-8 with few invalid bytes, each of which becomes U+FFFD.
    Utf8,
    Utf16,
    Utf32,
    /// More invalid than valid bytes of UTF-8.
    Other,
    /// Not text.
    Binary,
}

/// Data with one NUL per this many bytes, or more NULs, is not text.
const NULS: usize = 256;
/// Data with one control character per this many bytes, or more of them, is not text.
const CONTROLS: usize = 50;

/// Returns the encoding of a file's first bytes. `is_whole` means that the file ends with these bytes.
pub(super) fn of(head: &[u8], is_whole: bool) -> Encoding {
    match head {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => return Encoding::Utf32,
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => return Encoding::Utf16,
        _ => {}
    }
    let nuls = head.iter().filter(|&&byte| byte == 0).count();
    if nuls > 0 {
        if is_text_of(head.as_chunks().0, is_whole, head.len(), &[u32::from_le_bytes, u32::from_be_bytes]) {
            return Encoding::Utf32;
        }
        let wide: [fn([u8; 2]) -> u32; 2] = [|b| u16::from_le_bytes(b).into(), |b| u16::from_be_bytes(b).into()];
        if is_text_of(head.as_chunks().0, is_whole, head.len(), &wide) {
            return Encoding::Utf16;
        }
    }
    // escape sequences of terminals, and backspaces of overstruck manual pages, are text
    let is_control = |byte: u8| matches!(byte, 1..=7 | 0x0e..=0x1a | 0x1c..=0x1f | 0x7f);
    let controls = head.iter().filter(|&&byte| is_control(byte)).count();
    if nuls > 0 && nuls * NULS >= head.len() || controls > 0 && controls * CONTROLS >= head.len() {
        return Encoding::Binary;
    }
    let end = if is_whole { head.len() } else { head.len().saturating_sub(3) };
    let invalid: usize = head[..end].utf8_chunks().map(|chunk| chunk.invalid().len()).sum();
    if 2 * invalid > end { Encoding::Other } else { Encoding::Utf8 }
}

/// Returns whether units of two or four bytes, in one of two byte orders, are text: characters without controls, and
/// with as many spaces as text has. Token ids in as many bytes do not look like this: GPT-2's comma is the control
/// character 11.
fn is_text_of<const N: usize>(
    units: &[[u8; N]],
    is_whole: bool,
    bytes: usize,
    orders: &[fn([u8; N]) -> u32; 2],
) -> bool {
    if is_whole && !bytes.is_multiple_of(N) || units.is_empty() {
        return false;
    }
    orders.iter().any(|read| {
        let (mut controls, mut spaces, mut plain) = (0, 0, 0);
        for unit in units {
            match read(*unit) {
                0x09 | 0x0c => {}
                0x20 | 0x0a | 0x0d | 0x3000..=0x3002 | 0xff0c => spaces += 1,
                0x21..=0x7e => plain += 1,
                0..=0x1f | 0x7f..=0x9f | 0xfffe | 0xffff | 0x11_0000.. => controls += 1,
                // a surrogate is valid in UTF-16, never in UTF-32
                0xd800..=0xdfff if N == 4 => controls += 1,
                _ => {}
            }
        }
        controls * 1000 <= units.len() && (spaces * 50 >= units.len() || 2 * (plain + spaces) >= units.len())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Tokenizer;

    fn utf16(text: &str, to_bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
        text.encode_utf16().flat_map(to_bytes).collect()
    }

    #[test]
    fn encodings_are_distinguished() {
        let english = "Many words, in a plain text.\r\n\"Quoted\", too: 1 + 2 = 3.\n";
        let other = "Многие слова, и всё. 日本語、文章。 naïve 😀\n";
        for text in [english, other, "hi", "x"] {
            assert_eq!(of(text.as_bytes(), true), Encoding::Utf8, "{text}");
            assert_eq!(of(&utf16(text, u16::to_le_bytes), true), Encoding::Utf16, "{text}");
            assert_eq!(of(&utf16(text, u16::to_be_bytes), true), Encoding::Utf16, "{text}");
            for to_bytes in [u32::to_le_bytes, u32::to_be_bytes] {
                let wide: Vec<u8> = text.chars().flat_map(|c| to_bytes(c.into())).collect();
                assert_eq!(of(&wide, true), Encoding::Utf32, "{text}");
            }
        }
        assert_eq!(of(&[&[0xff, 0xfe][..], &utf16("日本", u16::to_le_bytes)].concat(), true), Encoding::Utf16);
        assert_eq!(of(b"", true), Encoding::Utf8);
    }

    #[test]
    fn bytes_outside_of_utf_8_are_text_while_they_are_few() {
        assert_eq!(of(b"caf\xe9 na\xefve\n", true), Encoding::Utf8);
        assert_eq!(of(b"a\x1b[31mred\x1b[0m b\x08b\n", true), Encoding::Utf8);
        // Russian in Windows-1251
        assert_eq!(of(b"\xcf\xf0\xe8\xe2\xe5\xf2, \xec\xe8\xf0", true), Encoding::Other);
        // a character cut at the end of the first bytes
        assert_eq!(of(&"a é".as_bytes()[..3], false), Encoding::Utf8);
        // a NUL in a long text
        assert_eq!(of(&[vec![b'a'; 1000], vec![0]].concat(), true), Encoding::Utf8);
        assert_eq!(of(b"a\0b", true), Encoding::Binary);
    }

    #[test]
    fn token_ids_are_no_text() {
        let text =
            "The rules, which (as \"everybody\" knows) are 12 in number, were written in 1987. Who wrote them?\n";
        for tokenizer in [Tokenizer::Gpt2, Tokenizer::Bytes] {
            let mut ids = vec![tokenizer.end_of_text()];
            ids.extend(tokenizer.encode(text.repeat(30)).unwrap());
            let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
            // 16-bit ids of the byte tokenizer are the same bytes as UTF-16
            let expected = if tokenizer == Tokenizer::Bytes { Encoding::Utf16 } else { Encoding::Binary };
            assert_eq!(of(&bytes, true), expected);
            let bytes: Vec<u8> = ids.iter().flat_map(|&id| u32::from(id).to_le_bytes()).collect();
            let expected = if tokenizer == Tokenizer::Bytes { Encoding::Utf32 } else { Encoding::Binary };
            assert_eq!(of(&bytes, true), expected);
        }
        // nanoGPT's character ids: indices into the text's own alphabet
        let alphabet: std::collections::BTreeSet<u8> = text.bytes().collect();
        let ids: Vec<u8> = text.bytes().flat_map(|byte| [alphabet.range(..byte).count() as u8, 0]).collect();
        assert_eq!(of(&ids, true), Encoding::Binary);
    }
}
