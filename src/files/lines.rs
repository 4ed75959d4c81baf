//! Reads text files by line, with a limit on the length of a line.

use std::io::{self, BufRead, Read};

/// Iterator over the lines of a reader, as bytes without newlines. A line longer than the limit is an error and ends
/// the iteration.
#[derive(Debug)]
pub struct Lines<R> {
    reader: R,
    most: u64,
    number: usize,
    ended: bool,
}

/// A line. The last line of a growing file may have been written in part, so `ends` reports its newline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Its bytes without the newline.
    pub bytes: Vec<u8>,
    /// Whether a newline follows.
    pub ends: bool,
}

impl<R: BufRead> Lines<R> {
    /// Reads lines of at most `most` bytes each.
    #[must_use]
    pub fn new(reader: R, most: u64) -> Self {
        Self { reader, most, number: 0, ended: false }
    }

    fn read(&mut self) -> io::Result<Option<Line>> {
        let mut bytes = Vec::new();
        (&mut self.reader).take(self.most + 1).read_until(b'\n', &mut bytes)?;
        self.number += 1;
        let ends = bytes.pop_if(|last| *last == b'\n').is_some();
        if bytes.len() as u64 > self.most {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("line {} has more than {} bytes", self.number, self.most),
            ));
        }
        Ok((ends || !bytes.is_empty()).then_some(Line { bytes, ends }))
    }
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = io::Result<Line>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let line = self.read().transpose();
        self.ended = !matches!(line, Some(Ok(Line { ends: true, .. })));
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[u8]) -> Vec<Result<(String, bool), String>> {
        let line = |line: Line| (String::from_utf8(line.bytes).unwrap(), line.ends);
        Lines::new(text, 3).map(|read| read.map(line).map_err(|e| e.to_string())).collect()
    }

    #[test]
    fn a_line_without_end_is_refused_at_the_limit() {
        let whole = |text: &str| Ok((text.to_owned(), true));
        assert_eq!(lines(b""), []);
        assert_eq!(lines(b"abc\n\nb\n"), [whole("abc"), whole(""), whole("b")]);
        assert_eq!(lines(b"abc\nab"), [whole("abc"), Ok(("ab".into(), false))]);
        assert_eq!(lines(b"a\nabcd\nb\n"), [whole("a"), Err("line 2 has more than 3 bytes".into())]);
        let endless = io::BufReader::new(io::repeat(b'x'));
        assert_eq!(Lines::new(endless, 1 << 20).filter(Result::is_err).count(), 1);
    }
}
