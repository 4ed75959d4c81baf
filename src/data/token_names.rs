//! Finds token shards in Hugging Face's cache by the names of `wgpt data fetch`.
//!
//! `fineweb10B` names all training shards of the set, or its validation shard; `fineweb10B:8` names the first eight
//! training shards.

use std::path::{Path, PathBuf};

use super::fetch::catalog::{self, Entry, Files, Kind, Part};
use crate::error::{Error, Fault, Result};
use crate::files::hub::{self, Repository};
use crate::files::shell;
use crate::units::counted;

/// A data set named by the user, with an optional number of training shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamedSet<'a> {
    entry: &'static Entry,
    count: Option<&'a str>,
}

/// Returns the data set that a path names. Callers check first for a file or folder of this name, which takes
/// precedence.
#[must_use]
pub fn named_set(path: &Path) -> Option<NamedSet<'_>> {
    let text = path.to_str()?;
    let (name, count) = text.split_once(':').map_or((text, None), |(name, count)| (name, Some(count)));
    catalog::find(name).map(|entry| NamedSet { entry, count })
}

impl NamedSet<'_> {
    /// Returns the set's token shards in the cache.
    ///
    /// # Errors
    /// [`Error::Data`] if the set has no token shards, or is missing or incomplete, with the command that fetches it.
    pub fn files(&self, part: Part) -> Result<Vec<PathBuf>> {
        let cache = hub::cache().ok_or_else(|| {
            let fault = Fault::at(self.entry.name, "there is no home folder, so no cache");
            Error::data(fault.advice("try setting HF_HOME"))
        })?;
        self.files_in(&cache, part)
    }

    fn files_in(&self, cache: &Path, part: Part) -> Result<Vec<PathBuf>> {
        let Entry { name, kind, repo, .. } = *self.entry;
        let repository = Repository::new(cache, kind, repo);
        let most = self.most()?;
        let wanted = self.entry.shards(part, most);
        if wanted.is_empty() {
            return Err(self.no_tokens(&repository));
        }
        let has = |dir: &Path, file: &String| dir.join(file).is_file();
        let whole = repository.snapshot(|dir| wanted.iter().all(|file| has(dir, file)));
        let some = || repository.snapshot(|dir| wanted.iter().any(|file| has(dir, file)));
        match whole.or_else(some) {
            Some(dir) => {
                let mut there = wanted.clone();
                there.retain(|file| has(&dir, file));
                if part != Part::All && there.len() < wanted.len() {
                    return Err(self.in_part(&wanted, &there));
                }
                Ok(there.iter().map(|file| dir.join(file)).collect())
            }
            None => {
                let what = if part == Part::Validation { "its validation is not fetched" } else { "is not fetched" };
                let fault = Fault::at(name, what).expected(format!("a copy in {}", cache.display()));
                Err(Error::data(fault.advice(self.fetch())))
            }
        }
    }

    /// Returns whether the set has token shards.
    #[must_use]
    pub fn has_shards(&self) -> bool {
        !self.entry.shards(Part::Train, 1).is_empty()
    }

    /// Returns the number of training shards that the name asks for; `None` if the set has no token shards, or not that
    /// many.
    #[must_use]
    pub fn training_shards(&self) -> Option<usize> {
        matches!(self.entry.files, Files::Shards(..)).then(|| self.most().ok())?
    }

    /// Returns the number of training shards that the name asks for.
    fn most(&self) -> Result<usize> {
        let all = match self.entry.files {
            Files::Shards(_, most) => most,
            _ => 1,
        };
        let Some(count) = self.count else { return Ok(all) };
        let found = count.parse().ok().filter(|count| (1..=all).contains(count));
        found.ok_or_else(|| {
            let fault = Fault::at(format!("{}:{}", self.entry.name, count.escape_debug()), "bad number of shards");
            Error::data(fault.expected(format!("1 to {all}")))
        })
    }

    /// Returns advice with the command that fetches the named shards.
    fn fetch(&self) -> String {
        let shards = self.count.map_or_else(String::new, |count| format!(" --shards {count}"));
        format!("try `wgpt data fetch {}{shards}`", self.entry.name)
    }

    /// Returns the error of a set with missing shards.
    fn in_part(&self, wanted: &[String], there: &[String]) -> Error {
        let name = self.entry.name;
        let fault = Fault::at(name, "is only partly fetched");
        let fault = fault.expected(counted(wanted.len() as u64, "training shard"));
        let first = wanted.iter().zip(there).take_while(|(wanted, there)| wanted == there).count();
        let those = if first > 0 { format!(", or {name}:{first} for the first {first}") } else { String::new() };
        Error::data(fault.found(there.len()).advice(format!("{}{those}", self.fetch())))
    }

    /// Returns the error of a name without token shards.
    fn no_tokens(&self, repository: &Repository) -> Error {
        let name = self.entry.name;
        let has = |what: &str| Fault::at(name, format!("contains {what}")).expected("token shards");
        Error::data(match (self.entry.kind, self.entry.files) {
            (Kind::Model, _) => has("weights").advice(format!("try --init {name}, or --from {name}")),
            (_, Files::Folder(folder, ending)) => {
                let fetched = repository.snapshot(|dir| {
                    let files = std::fs::read_dir(dir.join(folder)).into_iter().flatten().flatten();
                    files.map(|file| file.path()).any(|path| path.to_string_lossy().ends_with(ending))
                });
                let prepare = |from: PathBuf| {
                    format!("`wgpt data prepare {} --out data/{name}`, then --data data/{name}", shell::quoted(from))
                };
                has("text").advice(match fetched {
                    Some(dir) => {
                        format!("try {}", prepare(dir.join(folder.trim_end_matches('/'))))
                    }
                    None => format!("try `wgpt data fetch {name}`, which prints how to prepare it"),
                })
            }
            _ => has("questions").advice(format!("try --hellaswag {name}")),
        })
    }
}

/// Returns the file with HellaSwag's questions that a path or a name refers to.
///
/// # Errors
/// [`Error::Data`] if there is no such file, and the name is unknown or not fetched.
pub fn questions(path: &Path) -> Result<PathBuf> {
    if path.symlink_metadata().is_ok() {
        return Ok(path.to_owned());
    }
    let missing = |what: &str| {
        let fault = Fault::at(path.display(), what).expected("questions of HellaSwag");
        Error::data(fault.advice("try `wgpt data fetch hellaswag`"))
    };
    let Some(NamedSet { entry, .. }) = named_set(path) else {
        return Err(missing("no such file, and no name of `wgpt data fetch`"));
    };
    let file = entry.required(0).into_iter().find(|file| file.starts_with("hellaswag"));
    let Some(file) = file else { return Err(missing("has no questions")) };
    let found = hub::cache().and_then(|cache| {
        let repository = Repository::new(&cache, entry.kind, entry.repo);
        repository.snapshot(|dir| dir.join(&file).is_file()).map(|dir| dir.join(&file))
    });
    found.ok_or_else(|| missing("is not fetched"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Creates files in a snapshot of a name's repository.
    fn put(cache: &Path, name: &str, commit: &str, files: &[&str]) -> Repository {
        let entry = catalog::find(name).unwrap();
        let repository = Repository::new(cache, entry.kind, entry.repo);
        for file in files {
            let path = repository.pointer(commit, file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        repository
    }

    fn find(cache: &Path, text: &str, part: Part) -> Result<Vec<String>> {
        let files = named_set(text.as_ref()).unwrap().files_in(cache, part)?;
        Ok(files.iter().map(|file| file.strip_prefix(cache).unwrap().display().to_string()).collect())
    }

    #[test]
    fn a_partly_fetched_set_names_the_number_of_its_shards() {
        let cache = tempfile::tempdir().unwrap();
        let cache = cache.path();
        let error = |text: &str, part| find(cache, text, part).unwrap_err();
        let none = error("fineweb10B", Part::Train);
        assert_eq!((none.exit_code(), none.fault().advice.as_str()), (3, "try `wgpt data fetch fineweb10B`"));
        put(cache, "fineweb10B", "aaa", &["fineweb_train_000001.bin", "fineweb_train_000002.bin"]);
        let some = error("fineweb10B", Part::Train).to_string();
        assert_eq!(
            some,
            "fineweb10B: is only partly fetched, expected 103 training shards, got 2; try `wgpt data fetch fineweb10B`, \
             or fineweb10B:2 for the first 2"
        );
        assert_eq!(error("fineweb10B", Part::Validation).fault().what, "its validation is not fetched");
        let snapshot = "datasets--kjj0--fineweb10B-gpt2/snapshots/aaa/fineweb_train_00000";
        let two = find(cache, "fineweb10B:2", Part::Train).unwrap();
        assert_eq!(two, [format!("{snapshot}1.bin"), format!("{snapshot}2.bin")]);
        assert_eq!(find(cache, "fineweb10B", Part::All).unwrap(), two);
        assert_eq!(error("fineweb10B:3", Part::Train).fault().found, "2");
        for bad in ["fineweb10B:0", "fineweb10B:104", "fineweb10B:x"] {
            assert_eq!(error(bad, Part::Train).fault().expected, "1 to 103", "{bad}");
        }
    }

    #[test]
    fn a_newer_snapshot_that_is_whole_is_taken() {
        let cache = tempfile::tempdir().unwrap();
        let cache = cache.path();
        let files = ["tiny_shakespeare_train.bin", "tiny_shakespeare_val.bin"];
        let repository = put(cache, "tinyshakespeare", "aaa", &files);
        put(cache, "tinyshakespeare", "bbb", &files[..1]);
        repository.set_main("bbb").unwrap();
        assert!(find(cache, "tinyshakespeare", Part::Train).unwrap()[0].contains("/bbb/"));
        assert!(find(cache, "tinyshakespeare", Part::Validation).unwrap()[0].contains("/aaa/"));
    }

    #[test]
    fn names_without_tokens_name_their_use() {
        let cache = tempfile::tempdir().unwrap();
        let error = |text: &str| find(cache.path(), text, Part::Train).unwrap_err().to_string();
        assert_eq!(error("gpt2"), "gpt2: contains weights, expected token shards; try --init gpt2, or --from gpt2");
        assert_eq!(
            error("hellaswag"),
            "hellaswag: contains questions, expected token shards; try --hellaswag hellaswag"
        );
        assert!(error("tinystories").ends_with("try `wgpt data fetch tinystories`, which prints how to prepare it"));
        let repository = put(cache.path(), "tinystories", "aaa", &["data/train-0.parquet"]);
        let folder = repository.pointer("aaa", "data").display().to_string();
        let text = error("tinystories");
        assert!(text.contains(&format!("`wgpt data prepare '{folder}' --out data/tinystories`")), "{text}");
    }
}
