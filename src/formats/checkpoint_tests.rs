//! Tests of saving a checkpoint to a disk that records calls, and to one that fails at a given call.

use std::collections::BTreeMap;
use std::io::{self, Cursor, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::*;

const KEEP: Keep = Keep { newest: 1, every: 0 };
const RUN: &str = "run";

/// One call of a save, with the arguments to repeat it.
#[derive(Debug, Clone)]
enum Op {
    MakeFolder(PathBuf),
    Create(PathBuf),
    Write(PathBuf, Vec<u8>),
    Sync(PathBuf),
    SyncFolder(PathBuf),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    Read,
}

/// A disk in memory: files by path, folders as `None`. Records every call and fails at one of them.
#[derive(Default)]
struct Memory {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    there: BTreeMap<PathBuf, Option<Vec<u8>>>,
    ops: Vec<Op>,
    fail_at: Option<(usize, io::ErrorKind)>,
}

impl Inner {
    fn call(&mut self, op: Op) -> io::Result<()> {
        self.ops.push(op);
        match self.fail_at {
            Some((at, kind)) if at + 1 == self.ops.len() => Err(kind.into()),
            _ => Ok(()),
        }
    }

    fn rename(&mut self, from: &Path, to: &Path) {
        let moved: Vec<PathBuf> = self.there.keys().filter(|path| path.starts_with(from)).cloned().collect();
        for path in moved {
            let tail = path.strip_prefix(from).unwrap();
            let new = if tail.as_os_str().is_empty() { to.to_owned() } else { to.join(tail) };
            let content = self.there.remove(&path).unwrap();
            self.there.insert(new, content);
        }
    }
}

impl Memory {
    fn new() -> Self {
        let disk = Self::default();
        disk.inner().there.insert(RUN.into(), None);
        disk.inner().there.insert(record(), Some(b"a line".to_vec()));
        disk
    }

    fn with(there: BTreeMap<PathBuf, Option<Vec<u8>>>) -> Self {
        Self { inner: Mutex::new(Inner { there, ..Inner::default() }) }
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has(&self, path: &Path) -> io::Result<()> {
        if self.inner().there.contains_key(path) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    }
}

struct MemoryFile<'m>(&'m Memory, PathBuf);

impl Write for MemoryFile<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let mut inner = self.0.inner();
        inner.call(Op::Write(self.1.clone(), buf.to_vec()))?;
        inner.there.get_mut(&self.1).unwrap().as_mut().unwrap().extend(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl DiskFile for MemoryFile<'_> {
    fn sync(&mut self) -> io::Result<()> {
        self.0.inner().call(Op::Sync(self.1.clone()))
    }
}

impl Disk for Memory {
    fn make_folder(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        inner.call(Op::MakeFolder(path.into()))?;
        match inner.there.insert(path.into(), None) {
            None => Ok(()),
            Some(_) => Err(io::ErrorKind::AlreadyExists.into()),
        }
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile + '_>> {
        let mut inner = self.inner();
        inner.call(Op::Create(path.into()))?;
        assert!(inner.there.insert(path.into(), Some(Vec::new())).is_none(), "{} is there", path.display());
        Ok(Box::new(MemoryFile(self, path.into())))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + '_>> {
        self.inner().call(Op::Read)?;
        let bytes = self.inner().there.get(path).cloned().flatten();
        Ok(Box::new(Cursor::new(bytes.ok_or(io::ErrorKind::NotFound)?)))
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        self.has(path)?;
        self.inner().call(Op::Sync(path.into()))
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.has(path)?;
        self.inner().call(Op::SyncFolder(path.into()))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.has(from)?;
        // the checkpoints may be a link to another disk
        let is_inside = |path: &Path| path.starts_with(Path::new(RUN).join(CHECKPOINTS));
        if is_inside(from) != is_inside(to) {
            return Err(io::ErrorKind::CrossesDevices.into());
        }
        let mut inner = self.inner();
        inner.call(Op::Rename(from.into(), to.into()))?;
        assert!(!inner.there.contains_key(to), "{} is there", to.display());
        inner.rename(from, to);
        Ok(())
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        inner.call(Op::Remove(path.into()))?;
        if !inner.there.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        inner.there.retain(|there, _| !there.starts_with(path));
        Ok(())
    }

    fn own_folder(&self, path: &Path) -> io::Result<()> {
        self.inner().call(Op::Read)?;
        self.has(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.inner().call(Op::Read)?;
        self.has(path)?;
        let inner = self.inner();
        let inside = inner.there.keys().filter(|there| there.parent() == Some(path));
        Ok(inside.map(|there| there.file_name().unwrap().to_str().unwrap().to_owned()).collect())
    }
}

fn record() -> PathBuf {
    Path::new(RUN).join("metrics.jsonl")
}

/// Saves two files that contain the step; one is longer than a sector.
fn save(disk: &dyn Disk, step: usize, keep: Keep) -> Result<()> {
    let fill = |n: usize| {
        move |out: &mut dyn Write| {
            let text = vec![step as u8; n];
            out.write_all(&text).map_err(|e| output_error(Path::new("fill"), &e))
        }
    };
    let files: [(&str, WriteContents); 2] = [("a", &fill(1300)), ("b", &fill(7))];
    Checkpoints::new(disk, Path::new(RUN)).save(step, &files, &save_context(&[record()]), keep)
}

fn save_context(records: &[PathBuf]) -> SaveContext<'_> {
    SaveContext { records, run: "ab", check: &|| Ok(()) }
}

fn newest(disk: &dyn Disk) -> Option<usize> {
    Checkpoints::new(disk, Path::new(RUN)).newest().unwrap().0
}

#[test]
fn what_is_to_be_kept_is_kept() {
    let disk = Memory::new();
    for step in (2..=12).step_by(2) {
        save(&disk, step, Keep { newest: 2, every: 4 }).unwrap();
    }
    let checkpoints = Checkpoints::new(&disk, Path::new(RUN));
    assert_eq!(checkpoints.steps().unwrap(), [12, 10, 8, 4]);
    assert!(checkpoints.steps().unwrap().into_iter().all(|step| checkpoints.verify(step).is_ok()));
    assert_eq!(checkpoints.read(8, "b").unwrap(), [8; 7]);
    assert!(disk.inner().there.keys().all(|path| path.extension().is_none_or(|end| end != "tmp")));
}

#[test]
fn an_error_at_any_call_leaves_a_checkpoint_and_the_next_save_works() {
    let calls = {
        let disk = Memory::new();
        save(&disk, 1, KEEP).unwrap();
        let before = disk.inner().ops.len();
        save(&disk, 2, KEEP).unwrap();
        let after = disk.inner().ops.len();
        after - before
    };
    assert!(calls > 20, "{calls}");
    let kinds = [
        io::ErrorKind::StorageFull,
        io::ErrorKind::QuotaExceeded,
        io::ErrorKind::FileTooLarge,
        io::ErrorKind::StaleNetworkFileHandle,
        io::ErrorKind::Other,
    ];
    for kind in kinds {
        for at in 0..calls {
            let disk = Memory::new();
            save(&disk, 1, KEEP).unwrap();
            let before = disk.inner().ops.len();
            disk.inner().fail_at = Some((before + at, kind));
            let error = save(&disk, 2, KEEP).map_or_else(|e| e, |()| panic!("call {at} of {calls} may fail unnoticed"));
            assert_eq!(error.exit_code(), 6, "call {at}: {error}");
            disk.inner().fail_at = None;
            assert!(newest(&disk).is_some_and(|step| step == 1 || step == 2), "call {at}");
            // repeat the save, as a paused run does, and make the next one
            save(&disk, 2, KEEP).unwrap_or_else(|e| panic!("call {at}: {e}"));
            assert_eq!(newest(&disk), Some(2), "call {at}");
            assert!(disk.inner().there.keys().all(|path| !path.to_string_lossy().contains(".tmp")), "call {at}");
            save(&disk, 3, KEEP).unwrap();
            assert_eq!(newest(&disk), Some(3), "call {at}");
        }
    }
}

/// Returns the disk that a power cut may leave after the given calls. Of the `lost` calls, which were not synced,
/// writes are lost or torn after a number of bytes, and names and renames are undone.
fn after_a_cut(start: &BTreeMap<PathBuf, Option<Vec<u8>>>, ops: &[Op], lost: &[(usize, usize)]) -> Memory {
    let disk = Memory::with(start.clone());
    let mut inner = disk.inner();
    // the current path of each file by its path when it was written
    for (i, op) in ops.iter().enumerate() {
        let torn = lost.iter().find(|(at, _)| *at == i).map(|(_, bytes)| *bytes);
        match (op, torn) {
            (Op::Write(path, bytes), torn) => {
                let kept = torn.unwrap_or(bytes.len()).min(bytes.len());
                // a file whose name is lost has no bytes
                if let Some(Some(content)) = inner.there.get_mut(path) {
                    content.extend(&bytes[..kept]);
                    // a hole reads as zeros
                    content.resize(content.len() + bytes.len() - kept, 0);
                }
            }
            (_, Some(_)) => {}
            (Op::MakeFolder(path), None) => drop(inner.there.insert(path.clone(), None)),
            // a file in a folder whose name is lost cannot be reached
            (Op::Create(path), None) if !path.parent().is_some_and(|dir| inner.there.contains_key(dir)) => {}
            (Op::Create(path), None) => drop(inner.there.insert(path.clone(), Some(Vec::new()))),
            (Op::Rename(from, to), None) => inner.rename(from, to),
            (Op::Remove(path), None) => inner.there.retain(|there, _| !there.starts_with(path)),
            (Op::Sync(_) | Op::SyncFolder(_) | Op::Read, None) => {}
        }
    }
    drop(inner);
    disk
}

/// Returns the calls that are not synced to disk at the end of `ops`.
fn unsynced(ops: &[Op]) -> Vec<usize> {
    let is_forced = |at: usize| {
        ops[at + 1..].iter().any(|later| match (&ops[at], later) {
            (Op::Write(path, _), Op::Sync(synced)) => path == synced,
            // syncing the parent syncs names
            (Op::MakeFolder(path) | Op::Create(path) | Op::Remove(path), Op::SyncFolder(folder)) => {
                path.parent() == Some(folder)
            }
            (Op::Rename(_, to), Op::SyncFolder(folder)) => to.parent() == Some(folder),
            _ => false,
        })
    };
    let loses = |op: &Op| !matches!(op, Op::Sync(_) | Op::SyncFolder(_) | Op::Read);
    (0..ops.len()).filter(|&at| loses(&ops[at]) && !is_forced(at)).collect()
}

fn has_none(disk: &Memory) -> bool {
    newest(disk).is_none()
}

/// Checks all disks that a power cut may leave at any call. Returns their number, and for the first bad one its calls
/// and losses.
fn cuts(
    start: &BTreeMap<PathBuf, Option<Vec<u8>>>,
    ops: &[Op],
    is_bad: &dyn Fn(&Memory) -> bool,
) -> (usize, Option<String>) {
    let mut states = 0;
    for end in 0..=ops.len() {
        let open = unsynced(&ops[..end]);
        // at most the newest eight unsynced calls
        let open = &open[open.len().saturating_sub(8)..];
        for subset in 0..1_usize << open.len() {
            for torn in [0, 512, 1024] {
                let is_lost = |i: usize| subset >> i & 1 == 1;
                let lost: Vec<(usize, usize)> =
                    open.iter().enumerate().filter(|(i, _)| is_lost(*i)).map(|(_, at)| (*at, torn)).collect();
                let disk = after_a_cut(start, &ops[..end], &lost);
                states += 1;
                if is_bad(&disk) {
                    return (states, Some(format!("lost {lost:?} of {:#?}", &ops[..end])));
                }
                // the next save works with any leftovers
                save(&disk, 9, KEEP).unwrap();
                assert_eq!(newest(&disk), Some(9), "lost {lost:?} of {:#?}", &ops[..end]);
            }
        }
    }
    (states, None)
}

/// Returns the disk after a first save, and the calls of three more saves.
fn recorded() -> (BTreeMap<PathBuf, Option<Vec<u8>>>, Vec<Op>) {
    let disk = Memory::new();
    save(&disk, 1, KEEP).unwrap();
    let start = disk.inner().there.clone();
    disk.inner().ops.clear();
    (2..=4).for_each(|step| save(&disk, step, KEEP).unwrap());
    let ops = disk.inner().ops.clone();
    (start, ops)
}

#[test]
fn every_power_cut_leaves_a_checkpoint() {
    let (start, ops) = recorded();
    let (states, lost) = cuts(&start, &ops, &has_none);
    println!("{states} states after {} calls", ops.len());
    assert!(lost.is_none(), "no checkpoint: {}", lost.unwrap_or_default());
    assert!(states >= 10_000, "{states}");
}

#[test]
fn a_save_that_forces_nothing_to_disk_is_seen_to_lose_checkpoints() {
    let (start, ops) = recorded();
    let without = |is_left_out: fn(&Op) -> bool| {
        let ops: Vec<Op> = ops.iter().filter(|op| !is_left_out(op)).cloned().collect();
        cuts(&start, &ops, &has_none).1.is_some()
    };
    assert!(without(|op| matches!(op, Op::Sync(_))), "files");
    assert!(without(|op| matches!(op, Op::SyncFolder(_))), "folders");
}

#[test]
fn a_run_that_has_saved_nothing_is_never_taken_for_one_that_lost_its_checkpoints() {
    let start = Memory::new().inner().there.clone();
    let disk = Memory::new();
    (1..=2).for_each(|step| save(&disk, step, KEEP).unwrap());
    let ops = disk.inner().ops.clone();
    let saved = |disk: &Memory| Checkpoints::new(disk, Path::new(RUN)).saved().unwrap();
    assert_eq!(saved(&disk), Some(Saved { run: "ab".into(), first: 1 }));
    let (states, bad) = cuts(&start, &ops, &|disk| saved(disk).is_some() && newest(disk).is_none());
    assert!(bad.is_none() && states > 1000, "{states}: noted without a checkpoint: {}", bad.unwrap_or_default());
    // `saved.json` is on disk before an older checkpoint is removed
    let noted = |disk: &Memory| saved(disk).is_none() && newest(disk) == Some(2);
    let forgot = ops.iter().position(|op| matches!(op, Op::Rename(from, _) if from.ends_with(name(1)))).unwrap();
    let (_, bad) = cuts(&start, &ops[..forgot], &noted);
    assert!(bad.is_none(), "a second checkpoint without a note: {}", bad.unwrap_or_default());
    // the check detects a `saved.json` that comes too early
    let early = |disk: &Memory| disk.inner().there.contains_key(Path::new("run/checkpoints")) && newest(disk).is_none();
    assert!(cuts(&start, &ops, &early).1.is_some());
}

/// Returns the text of a changed manifest with a matching BLAKE3.
fn signed(manifest: &Manifest) -> Vec<u8> {
    Manifest::new(manifest.step, manifest.files.clone()).unwrap().text().unwrap()
}

#[test]
fn a_manifest_names_plain_files_inside_and_no_more_than_their_bytes_is_read() {
    let disk = Memory::new();
    save(&disk, 1, KEEP).unwrap();
    let checkpoints = Checkpoints::new(&disk, Path::new(RUN));
    let path = checkpoints.path(1).join(MANIFEST);
    let sound = Manifest::parse(disk.inner().there[&path].as_ref().unwrap()).unwrap();
    let refused = |change: &dyn Fn(&mut BTreeMap<String, super::Entry>)| {
        let mut manifest = sound.clone();
        change(&mut manifest.files);
        disk.inner().there.insert(path.clone(), Some(signed(&manifest)));
        let error = checkpoints.verify(1).unwrap_err();
        assert_eq!(error.exit_code(), 3, "{error}");
        error.to_string()
    };
    for name in ["../a", "/etc/passwd", "..", ".", "", "a/b", "a\u{1b}[31m", "a\nb", ".hidden"] {
        let text = refused(&|files| drop(files.insert(name.into(), sound.files["a"].clone())));
        assert!(text.contains("expected names of files next to it"), "{name:?}: {text}");
        assert!(!text.contains(['\n', '\u{1b}']), "{text:?}");
    }
    let text = refused(&|files| files.get_mut("a").unwrap().bytes = 5);
    assert!(text.contains("has more than 5 bytes, expected 5"), "{text}");
    let text = refused(&|files| files.get_mut("a").unwrap().bytes = u64::MAX);
    assert!(text.contains("has 1300 bytes"), "{text}");
}

#[cfg(unix)]
#[test]
fn a_checkpoint_that_is_a_link_or_holds_one_is_refused() {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    std::fs::create_dir(&run).unwrap();
    let system = crate::files::disk::System;
    let checkpoints = Checkpoints::new(&system, &run);
    let fill = |out: &mut dyn Write| out.write_all(b"some bytes").map_err(|e| output_error(Path::new("fill"), &e));
    checkpoints.save(7, &[("a", &fill)], &save_context(&[]), KEEP).unwrap();
    let moved = dir.path().join("moved");
    let is_link = |path: &Path| {
        std::fs::rename(path, &moved).unwrap();
        symlink(&moved, path).unwrap();
        let error = checkpoints.verify(7).unwrap_err();
        assert!(error.exit_code() == 3 && error.to_string().contains("is a link"), "{error}");
        std::fs::remove_file(path).unwrap();
        std::fs::rename(&moved, path).unwrap();
        checkpoints.verify(7).unwrap();
    };
    for path in [checkpoints.path(7), checkpoints.path(7).join("a"), checkpoints.path(7).join(MANIFEST)] {
        is_link(&path);
    }
    // a killed save's temporary folder may have been replaced by a link to a user's folder
    std::fs::create_dir(&moved).unwrap();
    std::fs::write(moved.join("precious"), "").unwrap();
    symlink(&moved, run.join("checkpoints/step-00000008.tmp")).unwrap();
    checkpoints.save(8, &[("a", &fill)], &save_context(&[]), KEEP).unwrap();
    assert!(moved.join("precious").exists());
}

#[test]
fn every_changed_byte_and_every_truncation_is_found() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("metrics.jsonl"), "a line").unwrap();
    let system = crate::files::disk::System;
    let checkpoints = Checkpoints::new(&system, dir.path());
    let fill = |out: &mut dyn Write| out.write_all(b"some bytes").map_err(|e| output_error(Path::new("fill"), &e));
    checkpoints
        .save(7, &[("a", &fill), ("b", &fill)], &save_context(&[dir.path().join("metrics.jsonl")]), KEEP)
        .unwrap();
    checkpoints.verify(7).unwrap();
    for name in ["a", "b", MANIFEST] {
        let path = checkpoints.path(7).join(name);
        let sound = std::fs::read(&path).unwrap();
        for at in 0..sound.len() {
            for change in [1, 0x20, 0x80] {
                let mut changed = sound.clone();
                changed[at] ^= change;
                std::fs::write(&path, changed).unwrap();
                assert!(checkpoints.verify(7).is_err(), "{name}: byte {at} by {change}");
            }
            std::fs::write(&path, &sound[..at]).unwrap();
            assert!(checkpoints.verify(7).is_err(), "{name}: {at} bytes");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(checkpoints.verify(7).is_err(), "{name}: removed");
        std::fs::write(&path, sound).unwrap();
        checkpoints.verify(7).unwrap();
    }
    let aside = checkpoints.put_aside(7).unwrap();
    assert!(aside.exists() && checkpoints.newest().unwrap().0.is_none());
}

#[test]
fn a_checkpoint_of_a_newer_program_is_not_damaged() {
    let disk = Memory::new();
    save(&disk, 1, KEEP).unwrap();
    let path = Path::new(RUN).join("checkpoints/step-00000001/manifest.json");
    let text = String::from_utf8(disk.inner().there[&path].clone().unwrap()).unwrap();
    let (old, new) = ("\"version\": 1", "\"version\": 2,\n  \"more\": true");
    let digest = text.rfind("\"blake3\": \"").unwrap() + 11;
    let unsigned = [&text[..digest], &text[digest + 64..]].concat().replace(old, new);
    let hash = blake3::hash(unsigned.as_bytes()).to_hex().to_string();
    let at = unsigned.rfind("\"blake3\": \"").unwrap() + 11;
    let whole = [&unsigned[..at], &hash, &unsigned[at..]].concat();
    disk.inner().there.insert(path.clone(), Some(whole.into_bytes()));
    let error = Checkpoints::new(&disk, Path::new(RUN)).newest().map(|_| ()).unwrap_err();
    let Error::Usage(fault) = &error else { panic!("{error:?}") };
    assert_eq!((fault.expected.as_str(), fault.found.as_str()), ("layout 1", "2"), "{error}");
    // a version changed by a flipped bit is damage
    disk.inner().there.insert(path, Some(text.replace(old, "\"version\": 3").into_bytes()));
    assert!(newest(&disk).is_none());
}
