//! TensorBoard's event files: the scalars of a run, for `tensorboard --logdir RUN`.
//!
//! A file is a sequence of TFRecords (length, its checksum, bytes, their checksum). Each holds an `Event` message of
//! tensorflow/core/util/event.proto, of which four fields are used. TensorBoard reads a file to its end while the file grows,
//! and then the next one by name. So a resumed run begins a new file, and truncates the earlier ones.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};
use crate::files::atomic::output_error;
use crate::files::open;
use crate::run::record::Record;

/// The folder of event files in a run's folder.
pub(super) const FOLDER: &str = "tb";
const BEGIN: &str = "events.out.tfevents.";
const END: &str = ".wgpt";

/// The event files of a run. Only the last one grows.
#[derive(Debug)]
pub struct Events {
    /// Path of the growing file, relative to the run's folder.
    name: String,
    file: Record,
    /// Earlier files with their bytes.
    kept: BTreeMap<String, u64>,
}

impl Events {
    /// Begins a file in `run/tb`. Truncates the event files there to the bytes that `records` has for them, and removes those
    /// that `records` does not name.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub fn begin(run: &Path, records: &BTreeMap<String, u64>) -> Result<Self> {
        let folder = run.join(FOLDER);
        open::make_own_folder(&folder).map_err(|e| output_error(&folder, &e))?;
        let mut kept = BTreeMap::new();
        for entry in fs::read_dir(&folder).map_err(|e| output_error(&folder, &e))?.flatten() {
            let Some(file) = entry
                .file_name()
                .to_str()
                .filter(|name| name.starts_with(BEGIN) && name.ends_with(END))
                .map(str::to_owned)
            else {
                continue;
            };
            let name = format!("{FOLDER}/{file}");
            let result = match records.get(&name) {
                Some(bytes) => cut(&entry.path(), *bytes).map(|bytes| {
                    kept.insert(name, bytes);
                }),
                None => fs::remove_file(entry.path()),
            };
            result.map_err(|e| output_error(&entry.path(), &e))?;
        }
        let numbers = kept
            .keys()
            .filter_map(|name| name.strip_prefix(&format!("{FOLDER}/{BEGIN}"))?.strip_suffix(END)?.parse::<u64>().ok());
        let number = numbers.max().map_or(0, |last| last + 1);
        let name = format!("{FOLDER}/{BEGIN}{number:010}{END}");
        let path = run.join(&name);
        let file = Record::create_binary(&path).map_err(|e| output_error(&path, &e))?;
        let mut events = Self { name, file, kept };
        events.put(&version(now()))?;
        Ok(events)
    }

    /// Adds the scalars of one step.
    ///
    /// # Errors
    /// [`Error::Output`], after which none of them is recorded.
    pub fn scalars(&mut self, step: usize, scalars: &[(&str, f32)]) -> Result<()> {
        if scalars.is_empty() { Ok(()) } else { self.put(&summary(now(), step, scalars)) }
    }

    fn put(&mut self, event: &[u8]) -> Result<()> {
        self.file.append(&record(event)).map_err(|e| output_error(self.file.path(), &e))
    }

    /// Returns the bytes of every event file so far, keyed by the path relative to the run's folder.
    #[must_use]
    pub fn positions(&self) -> BTreeMap<String, u64> {
        let mut all = self.kept.clone();
        all.insert(self.name.clone(), self.file.bytes());
        all
    }

    /// Closes the growing file. It is reopened at the next event.
    pub fn close(&mut self) {
        self.file.close();
    }

    /// Flushes the growing file to disk.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub fn sync(&mut self) -> Result<(), Error> {
        self.file.sync().map_err(|e| output_error(self.file.path(), &e))
    }
}

/// Truncates a file to at most `bytes`, and returns its new length.
fn cut(path: &Path, bytes: u64) -> std::io::Result<u64> {
    let file = open::alone(path, OpenOptions::new().write(true))?;
    let there = file.metadata()?.len();
    file.set_len(there.min(bytes))?;
    Ok(there.min(bytes))
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// Returns the first event of a file.
fn version(time: f64) -> Vec<u8> {
    let mut event = double(1, time);
    bytes(&mut event, 3, b"brain.Event:2");
    event
}

/// Returns an event with a summary, which has a value for each name.
fn summary(time: f64, step: usize, scalars: &[(&str, f32)]) -> Vec<u8> {
    let mut values = Vec::new();
    for (tag, value) in scalars {
        let mut message = Vec::new();
        bytes(&mut message, 1, tag.as_bytes());
        key(&mut message, 2, 5);
        message.extend(value.to_le_bytes());
        bytes(&mut values, 1, &message);
    }
    let mut event = double(1, time);
    key(&mut event, 2, 0);
    varint(&mut event, step as u64);
    bytes(&mut event, 5, &values);
    event
}

/// Appends the key of a protocol buffer's field: its number and its wire type.
fn key(out: &mut Vec<u8>, field: u8, kind: u8) {
    out.push(field << 3 | kind);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn double(field: u8, value: f64) -> Vec<u8> {
    let mut out = Vec::new();
    key(&mut out, field, 1);
    out.extend(value.to_le_bytes());
    out
}

fn bytes(out: &mut Vec<u8>, field: u8, value: &[u8]) {
    key(out, field, 2);
    varint(out, value.len() as u64);
    out.extend(value);
}

/// Returns `data` as a TFRecord.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = length.to_vec();
    out.extend(masked(&length).to_le_bytes());
    out.extend(data);
    out.extend(masked(data).to_le_bytes());
    out
}

/// Returns TFRecord's checksum: a CRC-32C, masked so that data which contain CRCs can be checksummed again.
fn masked(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Returns the CRC-32C, computed bit by bit, because a record has only some hundred bytes.
fn crc32c(data: &[u8]) -> u32 {
    !data.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_rfc_3720() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        let ascending: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&ascending), 0x46dd_794e);
    }

    /// The expected bytes are those that TensorBoard 2.21's `EventFileWriter` writes for the same event.
    #[test]
    fn an_event_has_the_bytes_of_tensorboards_own_writer() {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(hex(&record(&version(1.5))), VERSION);
        assert_eq!(hex(&record(&summary(2.5, 300, &[("train/loss", 1.25), ("lr", 3e-4)]))), SUMMARY);
    }

    const VERSION: &str = "1800000000000000a37f4b2209000000000000f83f1a0d627261696e2e4576656e743a322a28646c";
    const SUMMARY: &str = "2c00000000000000f4aecc4509000000000000044010ac022a1e0a110a0a747261696e2f6c6f7373150000a03f0a090a\
        026c721552499d399f829ecf";

    #[test]
    fn a_resumed_run_begins_a_new_file_and_truncates_the_old_ones() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path();
        let mut first = Events::begin(run, &BTreeMap::new()).unwrap();
        first.scalars(1, &[("a", 1.0)]).unwrap();
        let saved = first.positions();
        first.scalars(2, &[("a", 2.0)]).unwrap();
        let size = |name: &str| fs::metadata(run.join(name)).unwrap().len();
        let name = "tb/events.out.tfevents.0000000000.wgpt";
        assert!(size(name) > saved[name] && saved.len() == 1);
        for _ in 0..2 {
            // killed again before anything is saved: the second file starts again from its beginning
            let mut second = Events::begin(run, &saved).unwrap();
            assert_eq!(size(name), saved[name]);
            second.scalars(2, &[("a", 2.0)]).unwrap();
            assert_eq!(second.positions().len(), 2);
            assert_eq!(fs::read_dir(run.join("tb")).unwrap().count(), 2);
        }
        // from the start: no earlier event file is left, but files of others are
        fs::write(run.join("tb/notes"), "mine").unwrap();
        Events::begin(run, &BTreeMap::new()).unwrap();
        assert_eq!(fs::read_dir(run.join("tb")).unwrap().count(), 2);
        assert!(size(name) < saved[name]);
    }
}
