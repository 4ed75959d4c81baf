//! Reads packed (compressed) files.

use std::io::{self, BufRead, Read};

use flate2::bufread::GzDecoder;
use liblzma::stream::{CONCATENATED, Stream};
use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, get_error_name};

use crate::error::{Error, Fault};
use crate::files::kind::Kind;

/// Memory limit for unpacking xz. Its levels need at most 65 MiB, but a file may ask for 4 GiB.
const XZ_BYTES: u64 = 128 << 20;
/// Largest Zstandard window: 2^31 bytes, as `zstd --long=31` writes.
const ZSTD_WINDOW_LOG: u32 = 31;
/// Memory of a Zstandard context with a window of 128 MiB, the largest that `zstd` unpacks by default.
const ZSTD_COMMON_BYTES: usize = 160 << 20;
/// Largest ratio of unpacked to packed size for a file with a larger window, once it has unpacked 128 MiB.
const ZSTD_RATIO: u64 = 1000;

/// The compression format of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Packing {
    /// Not packed.
    Plain,
    /// gzip with one or more members.
    Gzip,
    /// Zstandard with one or more frames.
    Zstd,
    /// xz with one or more streams.
    Xz,
    /// bzip2 with one or more streams.
    Bzip2,
}

impl Packing {
    /// Returns the packing of a file that begins with `head`.
    #[must_use]
    pub fn of(head: &[u8]) -> Self {
        match Kind::of(head) {
            Some(Kind::Gzip) => Self::Gzip,
            Some(Kind::Zstd) => Self::Zstd,
            Some(Kind::Xz) => Self::Xz,
            Some(Kind::Bzip2) => Self::Bzip2,
            _ => Self::Plain,
        }
    }

    /// Returns the name that errors use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Gzip => "gzip",
            Self::Zstd => "Zstandard",
            Self::Xz => "xz",
            Self::Bzip2 => "bzip2",
        }
    }

    /// Returns a reader of the unpacked bytes of `input`.
    ///
    /// # Errors
    /// [`io::Error`] if there is no memory for the decoder.
    pub fn unpacked(self, input: impl BufRead + Send + 'static) -> io::Result<Box<dyn Read + Send>> {
        Ok(match self {
            Self::Plain => Box::new(input),
            Self::Gzip => Box::new(Members { member: Some(GzDecoder::new(input)), rest: None }),
            Self::Zstd => Box::new(Frames::new(input)?),
            Self::Xz => {
                let stream = Stream::new_stream_decoder(XZ_BYTES, CONCATENATED)?;
                Box::new(liblzma::bufread::XzDecoder::new_stream(input, stream))
            }
            Self::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(input)),
        })
    }

    /// Returns the error for a file `name` that cannot be unpacked.
    #[must_use]
    pub fn error(self, name: &str, error: &io::Error) -> Error {
        let cause = error.get_ref().and_then(|e| e.downcast_ref::<liblzma::stream::Error>());
        if cause == Some(&liblzma::stream::Error::MemLimit) {
            return Error::data(
                Fault::at(name, "unpacking its xz data needs too much memory")
                    .expected(format!("at most {} MiB, which suffices for every level of xz", XZ_BYTES >> 20))
                    .advice("try `xz -dc FILE | xz > NEW.xz`"),
            );
        }
        let found = match error.kind() {
            io::ErrorKind::UnexpectedEof => "a file that ends too early".into(),
            _ => error.to_string().to_lowercase().replace('\n', " "),
        };
        Error::data(
            Fault::at(name, format!("broken {} data", self.name()))
                .expected("whole frames")
                .found(found)
                .advice("was it copied whole?"),
        )
    }
}

/// Reads the members of a gzip file one after the other. Zeros may follow each member: tapes and some servers pad with
/// them.
struct Members<R> {
    member: Option<GzDecoder<R>>,
    /// The input between two members.
    rest: Option<R>,
}

impl<R: BufRead> Read for Members<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(member) = &mut self.member {
                let read = member.read(out)?;
                if read > 0 || out.is_empty() {
                    return Ok(read);
                }
                self.rest = self.member.take().map(GzDecoder::into_inner);
            }
            let Some(mut rest) = self.rest.take() else { return Ok(0) };
            let next = loop {
                let bytes = rest.fill_buf()?;
                let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
                if zeros == 0 {
                    break bytes.first().copied();
                }
                rest.consume(zeros);
            };
            match next {
                Some(0x1f) => self.member = Some(GzDecoder::new(rest)),
                Some(_) => return Err(io::Error::new(io::ErrorKind::InvalidData, "other bytes after the gzip data")),
                None => {
                    self.rest = Some(rest);
                    return Ok(0);
                }
            }
        }
    }
}

/// Reads the frames of a Zstandard file one after the other.
struct Frames<R> {
    input: R,
    context: DCtx<'static>,
    /// Whether the reader is within a frame.
    inside: bool,
    packed: u64,
    unpacked: u64,
}

impl<R: BufRead> Frames<R> {
    fn new(input: R) -> io::Result<Self> {
        let mut context = DCtx::try_create().ok_or(io::ErrorKind::OutOfMemory)?;
        context.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG)).map_err(wrong)?;
        Ok(Self { input, context, inside: false, packed: 0, unpacked: 0 })
    }

    /// Refuses a file of some kilobytes that fills a window of gigabytes. The first frame's header allocates the
    /// window, but the window occupies memory only as it is filled.
    fn check(&self) -> io::Result<()> {
        let is_large = self.context.sizeof() > ZSTD_COMMON_BYTES && self.unpacked > 128 << 20;
        if is_large && self.unpacked / ZSTD_RATIO > self.packed {
            let mib = self.context.sizeof() >> 20;
            return Err(io::Error::other(format!("more than {ZSTD_RATIO} times its size, in a window of {mib} MiB")));
        }
        Ok(())
    }
}

fn wrong(code: usize) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, get_error_name(code))
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while !out.is_empty() {
            let bytes = self.input.fill_buf()?;
            let ended = bytes.is_empty();
            if ended && !self.inside {
                break;
            }
            let (mut from, mut to) = (InBuffer::around(bytes), OutBuffer::around(&mut *out));
            let hint = self.context.decompress_stream(&mut to, &mut from).map_err(wrong)?;
            let (consumed, written) = (from.pos(), to.pos());
            self.input.consume(consumed);
            self.inside = hint != 0;
            self.packed += consumed as u64;
            self.unpacked += written as u64;
            self.check()?;
            if written > 0 {
                return Ok(written);
            }
            if ended && self.inside {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        zstd::encode_all(bytes, 3).unwrap()
    }

    fn xz(bytes: &[u8]) -> Vec<u8> {
        let mut out = liblzma::write::XzEncoder::new(Vec::new(), 1);
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    }

    fn bzip2(bytes: &[u8]) -> Vec<u8> {
        let mut out = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    }

    fn unpack(bytes: &[u8]) -> Result<Vec<u8>, String> {
        let packing = Packing::of(bytes);
        // small reads, so that reads end in every state
        let input = io::BufReader::with_capacity(7, io::Cursor::new(bytes.to_vec()));
        let mut out = Vec::new();
        let read = packing.unpacked(input).and_then(|mut unpacked| unpacked.read_to_end(&mut out));
        read.map(|_| out).map_err(|e| packing.error("x", &e).to_string())
    }

    #[test]
    fn members_and_frames_follow_one_another() {
        for pack in [gzip, zstd, xz, bzip2] {
            let packed = [pack(b"one "), pack(b""), pack(b"two")].concat();
            assert_eq!(unpack(&packed).unwrap(), b"one two");
            let error = unpack(&packed[..packed.len() - 3]).unwrap_err();
            assert!(error.contains("broken") && error.contains("ends too early"), "{error}");
        }
        // skippable frames before and after
        let skip = [&[0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
        assert_eq!(unpack(&[&skip[..], &zstd(b"text"), &skip].concat()).unwrap(), b"text");
    }

    #[test]
    fn gzip_may_be_padded_with_zeros_but_with_nothing_else() {
        for zeros in [1, 6, 512, 70_000] {
            let padded = [gzip(b"one"), vec![0; zeros], gzip(b"two"), vec![0; zeros]].concat();
            assert_eq!(unpack(&padded).unwrap(), b"onetwo");
        }
        let error = unpack(&[&gzip(b"one")[..], b"\0\0garbage"].concat()).unwrap_err();
        assert!(error.contains("other bytes after the gzip data"), "{error}");
        assert!(unpack(&[&zstd(b"one")[..], &[0; 16]].concat()).unwrap_err().contains("broken Zstandard data"));
    }

    #[test]
    fn a_zstandard_window_of_2_gib_is_read() {
        for log in [28, 31] {
            let mut out = zstd::Encoder::new(Vec::new(), 1).unwrap();
            out.window_log(log).unwrap();
            out.write_all(b"some text").unwrap();
            assert_eq!(unpack(&out.finish().unwrap()).unwrap(), b"some text");
        }
    }

    #[test]
    fn a_large_window_that_a_small_file_fills_is_refused() {
        // a frame with a window of 2 GiB, and blocks of 128 KiB of the letter a, each in four bytes
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 21 << 3];
        let block = (1_u32 << 1 | (1 << 17) << 3).to_le_bytes();
        (0..10_000).for_each(|_| frame.extend([block[0], block[1], block[2], b'a']));
        let mut read = 0;
        let mut unpacked = Packing::Zstd.unpacked(io::Cursor::new(frame)).unwrap();
        let mut out = vec![0; 1 << 17];
        let error = loop {
            match unpacked.read(&mut out) {
                Ok(n) => read += n,
                Err(error) => break error,
            }
        };
        assert!(error.to_string().contains("more than 1000 times its size"), "{error}");
        assert!(read <= 129 << 20, "{read}");
    }

    #[test]
    fn xz_that_asks_for_more_memory_names_the_limit() {
        let mut options = liblzma::stream::LzmaOptions::new_preset(0).unwrap();
        options.dict_size(256 << 20);
        let mut filters = liblzma::stream::Filters::new();
        filters.lzma2(&options);
        let stream = Stream::new_stream_encoder(&filters, liblzma::stream::Check::Crc32).unwrap();
        let mut out = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
        out.write_all(b"some text").unwrap();
        let error = unpack(&out.finish().unwrap()).unwrap_err();
        assert!(error.contains("at most 128 MiB"), "{error}");
    }
}
