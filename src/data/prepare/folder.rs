//! Finds the data files in a folder and reports all other files in it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::source::{Corpus, Source};
use crate::data::recognize::{Foreign, Format, Input, READABLE, first_object_has, is_about_data, is_strange};
use crate::data::tokens::cannot_read;
use crate::error::{Error, Fault, Result};
use crate::files::hub::Repository;

/// Largest number of files left out for one reason that are named; more are counted.
const NAMED: usize = 2;
/// Names of the splits of a data set.
const SPLITS: [&str; 6] = ["train", "test", "validation", "valid", "val", "dev"];

/// Files that are left out, by reason, and the kinds of the unreadable ones.
#[derive(Default)]
struct LeftOut {
    files: BTreeMap<String, Vec<PathBuf>>,
    foreign: Vec<(Foreign, PathBuf)>,
}

/// Adds the data files of a folder to a corpus. Skips the output folder `out` and folders of unfinished preparations.
pub(super) fn find(folder: &Path, field: &str, out: &Path, corpus: &mut Corpus) -> Result<()> {
    let (mut found, mut left_out) = (Vec::new(), LeftOut::default());
    collect(folder, out.canonicalize().ok().as_deref(), &mut found, &mut left_out)?;
    found.sort();
    let before = corpus.sources.len();
    for path in found {
        let input = Input::open(&path, Arc::default())?;
        if let Err(foreign) = input.content {
            left_out.foreign.push((foreign, path.clone()));
            left_out.add(foreign.to_string(), path);
        } else if let Some(reason) = no_data(&path, field, &input) {
            left_out.add(reason, path);
        } else if !corpus.is_new(&path) {
            left_out.add("another name of a file that is read".into(), path);
        } else {
            corpus.remarks.extend(input.doubt.map(|doubt| format!("{}: {doubt}", path.display())));
            corpus.texts += usize::from(input.content == Ok(Format::Text));
            corpus.sources.push(Source::new(&path)?);
        }
    }
    if corpus.sources.len() == before {
        return Err(left_out.refused(folder));
    }
    let splits = splits(folder, &corpus.sources[before..]);
    if splits.len() > 1 && splits[0] == "train" {
        let name = folder.display();
        corpus
            .remarks
            .push(format!("{name}: all splits are read: {}; give files or patterns to select some", splits.join(", ")));
    }
    if !left_out.files.is_empty() {
        corpus.remarks.push(format!("{}: left out {left_out}", folder.display()));
    }
    Ok(())
}

/// Returns the names of splits that occur as words in paths of a folder, as in `test-00000-of-00001.parquet`.
fn splits(folder: &Path, sources: &[Source]) -> Vec<&'static str> {
    let paths = sources.iter().map(|source| source.path.strip_prefix(folder).unwrap_or(&source.path));
    let paths: Vec<String> = paths.map(|path| path.to_string_lossy().to_ascii_lowercase()).collect();
    let words: BTreeSet<&str> =
        paths.iter().flat_map(|path| path.split(|c: char| !c.is_ascii_alphanumeric())).collect();
    SPLITS.into_iter().filter(|split| words.contains(split)).collect()
}

/// Returns the reason why a readable file is not data.
fn no_data(path: &Path, field: &str, input: &Input) -> Option<String> {
    let is_json = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("json"));
    match input.content {
        // metadata and settings may be a single line of JSON, too
        Ok(Format::Lines) if is_json && !first_object_has(&input.head, field) => {
            Some(format!("JSON without a text in `{field}`"))
        }
        Ok(Format::Text) if is_strange(path) => {
            Some("text with another extension: rename it to .txt, or give it by name".into())
        }
        _ => None,
    }
}

/// The role of a folder in a cache of the Hugging Face hub: `NAME/{blobs,refs,snapshots/ID}`, where snapshots link to
/// blobs.
enum Cache {
    /// The folder of a repository.
    Repository,
    /// The snapshots of a repository, with the one that `refs/main` names.
    Snapshots(OsString),
    /// Any other folder.
    None,
}

impl Cache {
    fn of(folder: &Path) -> Self {
        let is_repository = |folder: &Path| folder.join("blobs").is_dir() && folder.join("snapshots").is_dir();
        if is_repository(folder) {
            return Self::Repository;
        }
        let whole = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        let repository = whole.parent().filter(|parent| whole.ends_with("snapshots") && is_repository(parent));
        let main = repository.and_then(|parent| Repository::at(parent).main());
        main.filter(|id| whole.join(id).is_dir()).map_or(Self::None, |id| Self::Snapshots(id.into()))
    }

    /// Returns the reason why an entry of the folder is left out.
    fn reason(&self, name: &OsStr) -> Option<&'static str> {
        match self {
            Self::Repository if ["blobs", "refs", ".no_exist"].iter().any(|own| name == *own) => {
                Some("the cache's own files")
            }
            Self::Snapshots(main) if name != main => Some("not the snapshot of refs/main"),
            _ => None,
        }
    }
}

/// Returns whether `path` is the output folder `out` and contains only files made by a preparation.
pub(super) fn is_made_at(path: &Path, out: &Path) -> bool {
    let is_out = path.canonicalize().is_ok_and(|path| out.canonicalize().is_ok_and(|out| path == out));
    is_out && holds_only(path, is_of_data_set)
}

/// Returns whether a path has the name of an unfinished preparation's folder.
fn is_unfinished(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "partial")
}

/// Returns whether a preparation writes this file into its partial folder.
fn is_of_partial_output(path: &Path) -> bool {
    let is_tokens = path.extension().is_some_and(|ending| ending == "tokens");
    is_tokens || ["state.json", "lock"].iter().any(|name| path.ends_with(name))
}

/// Returns whether a path is a shard or another file that a preparation writes next to shards.
fn is_of_data_set(path: &Path) -> bool {
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let is_shard = name.ends_with(".bin") && ["_train_", "_val_"].iter().any(|part| name.contains(part));
    is_shard || is_unfinished(path) || is_about_data(path).is_some()
}

fn holds_only(folder: &Path, is_one: impl Fn(&Path) -> bool) -> bool {
    fs::read_dir(folder).is_ok_and(|entries| entries.flatten().all(|entry| is_one(&entry.path())))
}

fn collect(folder: &Path, out: Option<&Path>, found: &mut Vec<PathBuf>, left_out: &mut LeftOut) -> Result<()> {
    let failed = |e: &std::io::Error| cannot_read(&folder.display().to_string(), e);
    let cache = Cache::of(folder);
    for entry in fs::read_dir(folder).map_err(|e| failed(&e))? {
        let entry = entry.map_err(|e| failed(&e))?;
        let path = entry.path();
        let kind = entry.file_type().map_err(|e| failed(&e))?;
        let is_hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if let Some(reason) = cache.reason(&entry.file_name()) {
            left_out.add(reason.into(), path);
        } else if let Some(reason) = is_about_data(&path).filter(|_| is_hidden || !kind.is_dir()) {
            left_out.add(reason.into(), path);
        } else if kind.is_dir() && is_unfinished(&path) {
            left_out.add_unless(holds_only(&path, is_of_partial_output), "an unfinished preparation", path);
        } else if kind.is_dir() && out.is_some() && path.canonicalize().ok().as_deref() == out {
            left_out.add_unless(holds_only(&path, is_of_data_set), "the folder of --out", path);
        } else if kind.is_dir() {
            collect(&path, out, found, left_out)?;
        } else if path.is_file() {
            found.push(path);
        } else if path.is_dir() {
            // the link could form a cycle
            left_out.add("a link to a folder".into(), path);
        } else {
            let reason = if kind.is_symlink() { "a dangling link" } else { "not a regular file" };
            left_out.add(reason.into(), path);
        }
    }
    Ok(())
}

impl LeftOut {
    fn add(&mut self, reason: String, path: PathBuf) {
        self.files.entry(reason).or_default().push(path);
    }

    fn add_unless(&mut self, is_expected: bool, reason: &str, path: PathBuf) {
        if !is_expected {
            self.add(reason.into(), path);
        }
    }

    /// Returns the error for a folder without readable files. The most frequent kind of file decides the advice.
    fn refused(&self, folder: &Path) -> Error {
        let fault = Fault::at(folder.display(), "no text in this folder").expected(READABLE);
        let fault = if self.files.is_empty() { fault } else { fault.found(self) };
        let mut kinds: BTreeMap<Foreign, Vec<&Path>> = BTreeMap::new();
        self.foreign.iter().for_each(|(kind, path)| kinds.entry(*kind).or_default().push(path));
        let most = kinds.iter().max_by_key(|(_, paths)| paths.len());
        Error::data(match most {
            Some((kind, paths)) => {
                let inside = paths[0].parent().unwrap_or(folder).display().to_string();
                fault.advice(kind.advice.replace("DIR", &format!("{inside:?}")))
            }
            None => fault,
        })
    }
}

impl std::fmt::Display for LeftOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut parts = Vec::new();
        for (reason, paths) in &self.files {
            let mut names: Vec<String> = paths
                .iter()
                .map(|path| path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned()))
                .collect();
            names.sort();
            let endings: Vec<&str> = names.iter().map(|name| name.rsplit_once('.').map_or("", |(_, e)| e)).collect();
            let is_one_kind = !endings[0].is_empty() && endings.iter().all(|ending| *ending == endings[0]);
            parts.push(match names.len() {
                0..=NAMED => format!("{} ({reason})", names.join(", ")),
                count if is_one_kind => format!("{count} .{} ({reason})", endings[0]),
                count => format!("{count} files such as {} ({reason})", names[0]),
            });
        }
        f.write_str(&parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, files: &[(&str, &[u8])]) {
        for (name, bytes) in files {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
    }

    fn names(root: &Path) -> (Vec<String>, Vec<String>) {
        let corpus = Corpus::find(&[root.to_owned()], "text", &root.join("out")).unwrap();
        let name = |s: &Source| s.path.strip_prefix(root).unwrap().display().to_string();
        (corpus.sources.iter().map(name).collect(), corpus.remarks)
    }

    #[test]
    fn a_folder_names_what_it_leaves_out() {
        let dir = tempfile::tempdir().unwrap();
        let line = b"{\"text\":\"a\"}\n";
        write(
            dir.path(),
            &[
                ("c.txt", b"x"),
                ("b/a.jsonl", line),
                ("b/z", b"x"),
                ("b/data", line),
                ("changes/a", line),
                ("d.json", line),
                ("note.json", b"{\"id\":1}"),
                ("pretty.json", b"{\n\"text\":\"a\"\n}\n"),
                ("README.md", b"# card\n"),
                ("dataset_info.json", line),
                (".hidden.txt", b"x"),
                (".git/d.txt", b"x"),
                ("1.csv", b"a,b\n"),
                ("2.csv", b"a,b\n"),
                ("3.csv", b"a,b\n"),
                ("x.zip", b"PK\x03\x04\0\0"),
                ("run.py", b"print()\n"),
            ],
        );
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(dir.path().join("b"), dir.path().join("linked")).unwrap();
            std::os::unix::fs::symlink("nowhere.jsonl", dir.path().join("gone.jsonl")).unwrap();
            std::os::unix::fs::symlink("c.txt", dir.path().join("link.txt")).unwrap();
        }
        let (found, remarks) = names(dir.path());
        assert_eq!(found, ["b/a.jsonl", "b/data", "b/z", "c.txt", "changes/a", "d.json"]);
        assert_eq!(remarks.len(), 1);
        let mut parts = vec![
            ".git, .hidden.txt (hidden)",
            "README.md (documentation)",
            "dataset_info.json (metadata)",
            "note.json (JSON without a text in `text`)",
            "pretty.json (JSON with objects over several lines, not one per line)",
            "3 .csv (a table of comma- or tab-separated values)",
            "x.zip (a zip archive)",
            "run.py (text with another extension: rename it to .txt, or give it by name)",
        ];
        if cfg!(unix) {
            parts.extend(["linked (a link to a folder)", "gone.jsonl (a dangling link)"]);
            parts.push("link.txt (another name of a file that is read)");
        }
        for part in parts {
            assert!(remarks[0].contains(part), "expected `{part}` in {}", remarks[0]);
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_cache_of_the_hub_is_read_once() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("datasets--x--y");
        let line = b"{\"text\":\"a\"}\n";
        write(&root, &[("blobs/1", line), ("blobs/2", line), ("refs/main", b"new"), (".no_exist/new/a.txt", b"")]);
        for (snapshot, blob) in [("old", "1"), ("new", "2")] {
            let folder = root.join("snapshots").join(snapshot);
            fs::create_dir_all(&folder).unwrap();
            std::os::unix::fs::symlink(format!("../../blobs/{blob}"), folder.join("train.jsonl")).unwrap();
        }
        let (found, remarks) = names(&root);
        assert_eq!(found, ["snapshots/new/train.jsonl"]);
        for part in ["3 files such as .no_exist (the cache's own files)", "old (not the snapshot"] {
            assert!(remarks[0].contains(part), "expected `{part}` in {}", remarks[0]);
        }
        assert_eq!(names(&root.join("snapshots")).0, ["new/train.jsonl"]);
        // a ref that points elsewhere is ignored
        fs::write(root.join("refs/main"), "../snapshots/old").unwrap();
        assert_eq!(names(&root).0, ["snapshots/new/train.jsonl", "snapshots/old/train.jsonl"]);
        fs::remove_file(root.join("refs/main")).unwrap();
        assert_eq!(names(&root).0, ["snapshots/new/train.jsonl", "snapshots/old/train.jsonl"]);
    }

    #[test]
    fn the_folder_of_shards_is_no_corpus() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &[("a.txt", b"x"), ("out/x_train_000001.bin", b"x"), ("out/dataset.json", b"{}")]);
        write(
            dir.path(),
            &[("out/x.partial/state.json", b"{}"), ("out/merges.txt", b"x"), ("y.partial/1.tokens", b"x")],
        );
        assert_eq!(names(dir.path()), (vec!["a.txt".into()], Vec::new()));
        write(dir.path(), &[("out/b.txt", b"x"), ("y.partial/c.txt", b"x")]);
        let (found, remarks) = names(dir.path());
        assert_eq!(found, ["a.txt"]);
        assert!(remarks[0].contains("out (the folder of --out)"), "{remarks:?}");
        assert!(remarks[0].contains("y.partial (an unfinished preparation)"), "{remarks:?}");
        assert_eq!(names(&dir.path().join("out")).0, ["b.txt"]);
    }

    #[test]
    fn splits_that_are_mixed_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let line = b"{\"text\":\"a\"}\n";
        write(dir.path(), &[("train-00000-of-00001.jsonl", line), ("trains.txt", b"x"), ("contest.txt", b"x")]);
        assert_eq!(names(dir.path()).1, [""; 0]);
        write(dir.path(), &[("test-00000-of-00001.jsonl", line), ("validation/0.jsonl", line)]);
        let remarks = names(dir.path()).1;
        assert!(remarks[0].contains("all splits are read: train, test, validation;"), "{remarks:?}");
        fs::remove_file(dir.path().join("train-00000-of-00001.jsonl")).unwrap();
        assert_eq!(names(dir.path()).1, [""; 0]);
    }

    #[test]
    fn a_folder_of_the_datasets_library_names_to_parquet() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            &[
                ("dataset_dict.json", b"{}"),
                ("train/data-00000-of-00002.arrow", b"ARROW1\0\0x"),
                ("train/data-00001-of-00002.arrow", b"\xff\xff\xff\xff\x10\0\0\0"),
                ("train/dataset_info.json", b"{\n}"),
                ("train/state.json", b"{}"),
            ],
        );
        let error = Corpus::find(&[dir.path().to_owned()], "text", Path::new("")).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("data-00000-of-00002.arrow, data-00001-of-00002.arrow (an Arrow file"), "{text}");
        let call = format!("load_from_disk({:?}).to_parquet(", dir.path().join("train"));
        assert!(error.fault().advice.contains(&call), "{text}");
    }
}
