//! The data in a folder, and a word about everything else in it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::source::{Corpus, Source};
use crate::data::recognize::{Foreign, Format, Input, READABLE, first_object_has, is_about_data, is_strange};
use crate::data::tokens::cannot_read;
use crate::error::{Error, Fault, Result};

/// Files that are left out for the same reason are named up to this number, then counted.
const NAMED: usize = 2;

/// Files that are left out, by reason, and the kinds of those that cannot be read.
#[derive(Default)]
struct LeftOut {
    files: BTreeMap<String, Vec<PathBuf>>,
    foreign: Vec<(Foreign, PathBuf)>,
}

/// Adds the data of a folder to a corpus.
pub(super) fn find(folder: &Path, field: &str, corpus: &mut Corpus) -> Result<()> {
    let (mut found, mut left_out) = (Vec::new(), LeftOut::default());
    collect(folder, &mut found, &mut left_out)?;
    found.sort();
    let before = corpus.sources.len();
    for path in found {
        let input = Input::open(&path, Arc::default())?;
        if let Err(foreign) = input.content {
            left_out.foreign.push((foreign, path.clone()));
            left_out.add(foreign.to_string(), path);
        } else if let Some(reason) = no_data(&path, field, &input) {
            left_out.add(reason, path);
        } else {
            corpus.remarks.extend(input.doubt.map(|doubt| format!("{}: {doubt}", path.display())));
            corpus.sources.push(Source::new(&path)?);
        }
    }
    if corpus.sources.len() == before {
        return Err(left_out.refused(folder));
    }
    if !left_out.files.is_empty() {
        corpus.remarks.push(format!("{}: left out {left_out}", folder.display()));
    }
    Ok(())
}

/// Returns why a file that could be read is no data all the same.
fn no_data(path: &Path, field: &str, input: &Input) -> Option<String> {
    let is_json = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("json"));
    match input.content {
        // notes and settings are written in a line too
        Ok(Format::Lines) if is_json && !first_object_has(&input.head, field) => {
            Some(format!("JSON without a text in `{field}`"))
        }
        Ok(Format::Text) if is_strange(path) => Some("text of another ending: name it .txt, or give it by name".into()),
        _ => None,
    }
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>, left_out: &mut LeftOut) -> Result<()> {
    let failed = |e: &std::io::Error| cannot_read(&folder.display().to_string(), e);
    for entry in fs::read_dir(folder).map_err(|e| failed(&e))? {
        let entry = entry.map_err(|e| failed(&e))?;
        let path = entry.path();
        let kind = entry.file_type().map_err(|e| failed(&e))?;
        let is_hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if let Some(reason) = is_about_data(&path).filter(|_| is_hidden || !kind.is_dir()) {
            left_out.add(reason.into(), path);
        } else if kind.is_dir() {
            collect(&path, found, left_out)?;
        } else if path.is_file() {
            found.push(path);
        } else if path.is_dir() {
            // it could lead back up
            left_out.add("a link to a folder".into(), path);
        } else {
            let reason = if kind.is_symlink() { "a broken link" } else { "no file" };
            left_out.add(reason.into(), path);
        }
    }
    Ok(())
}

impl LeftOut {
    fn add(&mut self, reason: String, path: PathBuf) {
        self.files.entry(reason).or_default().push(path);
    }

    /// Returns the error for a folder in which nothing can be read. What to do follows from the kind of most files.
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
        let corpus = Corpus::find(&[root.to_owned()], "text").unwrap();
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
        let mut expected = vec!["b/a.jsonl", "b/data", "b/z", "c.txt", "changes/a", "d.json"];
        expected.extend(cfg!(unix).then_some("link.txt"));
        assert_eq!(found, expected);
        assert_eq!(remarks.len(), 1);
        let mut parts = vec![
            ".git, .hidden.txt (hidden)",
            "README.md (documentation)",
            "dataset_info.json (a note of a program)",
            "note.json (JSON without a text in `text`)",
            "pretty.json (JSON with objects over several lines, not one a line)",
            "3 .csv (a table of comma- or tab-separated values)",
            "x.zip (a zip archive)",
            "run.py (text of another ending: name it .txt, or give it by name)",
        ];
        if cfg!(unix) {
            parts.extend(["linked (a link to a folder)", "gone.jsonl (a broken link)"]);
        }
        for part in parts {
            assert!(remarks[0].contains(part), "expected `{part}` in {}", remarks[0]);
        }
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
        let error = Corpus::find(&[dir.path().to_owned()], "text").unwrap_err();
        let text = error.to_string();
        assert!(text.contains("data-00000-of-00002.arrow, data-00001-of-00002.arrow (an Arrow file"), "{text}");
        let call = format!("load_from_disk({:?}).to_parquet(", dir.path().join("train"));
        assert!(error.fault().advice.contains(&call), "{text}");
    }
}
