//! Changes to files at random.

use wgpt::random::Mt19937;

/// What of a file's own lengths is made to fit again after a change, so that more than the first check is tried.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Frame {
    /// Nothing.
    Plain,
    /// A u64 and as many bytes of header.
    Safetensors,
    /// A footer, its u32, and `PAR1`.
    Parquet,
    /// A u16 at byte 8 and as many bytes of header.
    Npy,
}

/// Bytes that mean something to one of the parsers.
const TOKENS: [&[u8]; 68] = [
    b"[",
    b"]",
    b"{",
    b"}",
    b"\"",
    b"'",
    b",",
    b":",
    b"=",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\\",
    b"(",
    b")",
    b"*",
    b"?",
    b"**/",
    b"../",
    b"/",
    b".",
    b"-",
    b"0",
    b"1e999",
    b"-1",
    b"NaN",
    b"Infinity",
    b"null",
    b"true",
    b"\\u0000",
    b"\\ud800",
    b"18446744073709551616",
    b"9223372036854775808",
    b"4294967296",
    b"-9223372036854775809",
    b"1e-400",
    b"0x7f",
    b"\x1b[2J",
    b"\xff",
    b"\xc3",
    "é".as_bytes(),
    "\u{202e}".as_bytes(),
    b"\xef\xbb\xbf",
    b"{\"a\":",
    b"[[a.b]]\n",
    b"'''",
    b"\"\"\"",
    b"#",
    b"<|endoftext|>",
    b"\"text\":",
    b"PAR1",
    b"\x1f\x8b\x08",
    b"\x28\xb5\x2f\xfd",
    b"BZh9",
    b"\xfd7zXZ\0",
    b"PK\x03\x04",
    b"\x93NUMPY\x01\0",
    b"\x19\xfc\xff\xff\xff\xff\x07",
    b"\xff\xff\xff\xff\x0f",
    b"\x15\xfe\xff\xff\xff\x0f",
    b"\x1c",
    b"\x19",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"F64",
    b"(?:",
    b"|",
    b"{1000}",
];

/// Numbers that break sizes and sums.
const NUMBERS: [u64; 14] = [
    0,
    1,
    0x7f,
    0xff,
    0x7fff,
    0xffff,
    0x00ff_ffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 40,
    (1 << 62) + 1,
    1 << 63,
    u64::MAX,
];

/// Makes one input.
pub struct Mutator(Mt19937);

impl Mutator {
    /// The same numbers make the same input.
    pub fn new(seed: u32, target: &str, execution: u32) -> Self {
        let name = target.bytes().fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
        Self(Mt19937::new(seed ^ name ^ execution.wrapping_mul(0x9e37_79b9)))
    }

    fn below(&mut self, n: usize) -> usize {
        self.0.next_u32() as usize % n.max(1)
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// Changes one of the files.
    pub fn input(&mut self, seeds: &[Vec<u8>], frame: Frame) -> Vec<u8> {
        let seed = &seeds[self.below(seeds.len())];
        // now and then past its lengths, or one of these
        let inside = if self.below(4) > 0 { part(seed, frame) } else { None };
        let Some((start, end)) = inside else { return self.changed(seed.clone(), seeds) };
        let inner = self.changed(seed[start..end].to_vec(), seeds);
        framed(frame, &seed[..start], &inner, &seed[end..])
    }

    fn changed(&mut self, mut bytes: Vec<u8>, seeds: &[Vec<u8>]) -> Vec<u8> {
        for _ in 0..=self.below(4) {
            self.change(&mut bytes, seeds);
        }
        bytes
    }

    fn change(&mut self, bytes: &mut Vec<u8>, seeds: &[Vec<u8>]) {
        let at = self.below(bytes.len() + 1);
        let end = (at + 1 + self.below(16)).min(bytes.len());
        match self.below(16) {
            0..=2 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
            3 | 4 if at < bytes.len() => bytes[at] = self.0.next_u32() as u8,
            5 | 6 => {
                let token = self.pick(&TOKENS);
                bytes.splice(at..at, token.iter().copied());
            }
            7 if at < end => {
                let token = self.pick(&TOKENS);
                bytes.splice(at..end, token.iter().copied());
            }
            8 => drop(bytes.drain(at.min(end)..end)),
            9 => {
                // a part of another file, or of this one
                let other = &seeds[self.below(seeds.len())];
                let from = self.below(other.len() + 1);
                let to = (from + self.below(256)).min(other.len());
                bytes.splice(at..at, other[from..to].iter().copied());
            }
            10 if self.below(3) == 0 => bytes.truncate(at),
            11 | 12 => self.number(bytes, at),
            13 => self.digits(bytes, at),
            14 if self.below(4) == 0 => {
                // nesting, or a long run
                let (token, times) = (self.pick(&TOKENS), 1 << self.below(17));
                bytes.splice(at..at, token.repeat(times));
            }
            _ if at < bytes.len() => bytes[at] = self.pick(&[0, 255, 127, 128]),
            _ => bytes.push(b' '),
        }
        bytes.truncate(4 << 20);
    }

    /// Puts a number in the place of two, four or eight bytes.
    fn number(&mut self, bytes: &mut [u8], at: usize) {
        let (width, mut number) = (self.pick(&[2, 4, 8]), self.pick(&NUMBERS));
        if self.below(2) == 0 {
            number = (bytes.len() as u64).wrapping_add(u64::from(self.0.next_u32() % 64)).wrapping_sub(32);
        }
        let at = if self.below(2) == 0 { at - at % width } else { at };
        if let Some(place) = bytes.get_mut(at..at + width) {
            place.copy_from_slice(&number.to_le_bytes()[..width]);
        }
    }

    /// Puts a number in the place of the next one that is written in digits.
    fn digits(&mut self, bytes: &mut Vec<u8>, at: usize) {
        let Some(start) = bytes[at..].iter().position(u8::is_ascii_digit).map(|i| at + i) else { return };
        let end = bytes[start..].iter().position(|b| !b.is_ascii_digit()).map_or(bytes.len(), |i| start + i);
        let number = self.pick(&NUMBERS).to_string();
        bytes.splice(start..end, number.into_bytes());
    }
}

/// Returns the bytes that a length in the file counts.
fn part(file: &[u8], frame: Frame) -> Option<(usize, usize)> {
    let (start, end) = match frame {
        Frame::Plain => return None,
        Frame::Safetensors => {
            (8, 8_usize.checked_add(usize::try_from(u64::from_le_bytes(*file.first_chunk()?)).ok()?)?)
        }
        Frame::Parquet => {
            let end = file.len().checked_sub(8)?;
            let length = u32::from_le_bytes(*file.get(end..)?.first_chunk()?);
            (end.checked_sub(length as usize)?, end)
        }
        Frame::Npy => (10, 10 + usize::from(u16::from_le_bytes(*file.get(8..)?.first_chunk()?))),
    };
    (end <= file.len()).then_some((start, end))
}

/// Returns a file whose length fits the part.
fn framed(frame: Frame, before: &[u8], part: &[u8], after: &[u8]) -> Vec<u8> {
    let length = part.len() as u64;
    match frame {
        Frame::Plain => [before, part, after].concat(),
        Frame::Safetensors => [&length.to_le_bytes(), part, after].concat(),
        Frame::Parquet => [before, part, &length.to_le_bytes()[..4], &after[4..]].concat(),
        Frame::Npy => [&before[..8], &length.to_le_bytes()[..2], part, after].concat(),
    }
}
