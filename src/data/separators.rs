//! Separators between documents, and the spelling of end of text.

use memchr::memmem;

/// The spelling of GPT-2's end of text. It is a token only at the start of a document; within a text these are thirteen
/// ordinary characters.
pub const SPELLED_END: &str = "<|endoftext|>";

/// Counts how often a text spells end of text.
#[must_use]
pub fn count_spelled_ends(text: &[u8]) -> u64 {
    memmem::find_iter(text, SPELLED_END).count() as u64
}

/// Returns the non-empty documents between `separator`s; the whole text if the separator is empty.
pub fn documents<'a>(text: &'a [u8], separator: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    let mut ends = Separators::new(text, separator).chain([(text.len(), text.len())]);
    let mut start = 0;
    std::iter::from_fn(move || {
        let (end, next) = ends.next()?;
        Some(&text[std::mem::replace(&mut start, next)..end])
    })
    .filter(|document| !document.is_empty())
}

/// The occurrences of a separator in a text as pairs of start and end, from left to right without overlap.
pub(crate) struct Separators<'a> {
    found: Option<memmem::FindIter<'a, 'a>>,
    length: usize,
}

impl<'a> Separators<'a> {
    /// Starts a search of a text. An empty separator never occurs.
    pub(crate) fn new(text: &'a [u8], separator: &'a [u8]) -> Self {
        let found = (!separator.is_empty()).then(|| memmem::find_iter(text, separator));
        Self { found, length: separator.len() }
    }
}

impl Iterator for Separators<'_> {
    type Item = (usize, usize);

    fn next(&mut self) -> Option<(usize, usize)> {
        self.found.as_mut()?.next().map(|at| (at, at + self.length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_the_texts_between_separators() {
        for (text, separator, expected) in [
            ("a<|endoftext|>b", SPELLED_END, &["a", "b"][..]),
            ("<|endoftext|>a<|endoftext|><|endoftext|>\n", SPELLED_END, &["a", "\n"]),
            ("a\n\n\n\nb\n\n\nc", "\n\n\n", &["a", "\nb", "c"]),
            ("ä—ö——ü", "—", &["ä", "ö", "ü"]),
            ("aaaa", "aa", &[]),
            ("whole", "", &["whole"]),
            ("", "x", &[]),
        ] {
            let found: Vec<&[u8]> = documents(text.as_bytes(), separator.as_bytes()).collect();
            assert_eq!(found, expected.iter().map(|e| e.as_bytes()).collect::<Vec<_>>(), "{text}");
        }
        assert_eq!(count_spelled_ends(b"<|endoftext|> <|endoftext| > <|endoftext|>"), 2);
    }
}
