//! What a run leaves for its readers: `main.log`, TensorBoard's event files, `report.html`.

use std::fs;
use std::path::Path;

use super::bad_input::refused;
use super::{metrics, text_file, train, wgpt};

/// The scalars of a run's event files in order, as (step, name, value), read without regard to our own writer.
pub fn scalars(run: &Path) -> Vec<(u64, String, f32)> {
    let mut files: Vec<_> = fs::read_dir(run.join("tb")).expect("tb").flatten().map(|entry| entry.path()).collect();
    files.sort();
    let mut found = Vec::new();
    for file in files {
        let bytes = fs::read(&file).expect("events");
        let mut at = 0;
        while at < bytes.len() {
            let length = u64::from_le_bytes(bytes[at..at + 8].try_into().expect("a length")) as usize;
            let event = fields(&bytes[at + 12..at + 12 + length]);
            at += 12 + length + 4;
            let step = event.iter().find(|(field, _)| *field == 2).map_or(0, |(_, value)| value.0);
            for (_, (_, summary)) in event.iter().filter(|(field, _)| *field == 5) {
                for (_, (_, value)) in fields(summary) {
                    let value = fields(&value);
                    let name = String::from_utf8(value[0].1.1.clone()).expect("a name");
                    found.push((step, name, f32::from_bits(value[1].1.0 as u32)));
                }
            }
        }
        assert_eq!(at, bytes.len(), "{}: ends inside a record", file.display());
    }
    found
}

/// The fields of a protocol buffer: number, and the value as a number or as bytes.
fn fields(mut bytes: &[u8]) -> Vec<(u8, (u64, Vec<u8>))> {
    let mut found = Vec::new();
    let number = |bytes: &mut &[u8]| {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return value;
            }
        }
    };
    while !bytes.is_empty() {
        let key = number(&mut bytes);
        let value = match key & 7 {
            0 => (number(&mut bytes), Vec::new()),
            2 => {
                let (text, rest) = bytes[..].split_at_checked(number(&mut bytes) as usize).map_or((bytes, bytes), |_| (bytes, bytes));
                let _ = (text, rest);
                unreachable!()
            }
            kind => {
                let size = if kind == 1 { 8 } else { 4 };
                let mut word = [0; 8];
                word[..size].copy_from_slice(&bytes[..size]);
                bytes = &bytes[size..];
                (u64::from_le_bytes(word), Vec::new())
            }
        };
        found.push(((key >> 3) as u8, value));
    }
    found
}
