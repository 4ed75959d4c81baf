//! Finds the token files that the user names: files, patterns, folders, and names of `wgpt data fetch`.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Component, Path, PathBuf};

use glob::Pattern;

use super::fetch::catalog::{self, Part};
use super::token_format::TokenFormat;
use super::token_kind::ARROW_ADVICE;
use super::token_names::named_set;
use super::tokens::{TokenSource, cannot_read};
use crate::error::{Error, Fault, Result};
use crate::files::shell;
use crate::units::counted;

/// Most components of a pattern: each is a level of recursion.
const COMPONENTS: usize = 256;

/// Finds the files of a part, sorted by name as llm.c does. Each of `given` is
/// - a file or a folder, if there is one of exactly this name. In a folder, the files of a part have it in their names,
///   as `NAME_train_000001.bin`;
/// - else a name of `wgpt data fetch`;
/// - else a pattern.
///
/// # Errors
/// [`Error::Data`] if one of `given` matches no file, a file occurs twice, or a link is dangling.
pub fn find(given: &[PathBuf], part: Part, format: TokenFormat) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in given {
        found.extend(find_one(path, part, format)?);
    }
    found.sort();
    let mut seen = BTreeSet::new();
    for path in &found {
        let real = path.canonicalize().unwrap_or_else(|_| path.clone());
        if !seen.insert(real) {
            let fault = Fault::at(path.display(), "is given twice").expected("each token file once");
            return Err(Error::data(fault.advice("try leaving out a pattern, a path or a link")));
        }
    }
    Ok(found)
}

/// Finds the files of a part and opens them.
///
/// # Errors
/// Those of [`find`]; [`Error::Data`] if a file is broken or has another layout than `format`.
pub fn open(given: &[PathBuf], part: Part, format: TokenFormat) -> Result<Vec<TokenSource>> {
    find(given, part, format)?.iter().map(|path| TokenSource::open_as(path, format)).collect()
}

/// Returns the absolute form of a path of tokens. A name of `wgpt data fetch` stays as it is: it is valid in any
/// folder.
#[must_use]
pub fn absolute(path: &Path) -> PathBuf {
    if named_set(path).is_some() && !is_there(path) {
        return path.to_owned();
    }
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Returns the folders of the token files. If the files cannot be found, returns the parents of the given paths.
#[must_use]
pub fn folders(given: &[PathBuf], part: Part, format: TokenFormat) -> Vec<PathBuf> {
    let parent = |path: &Path| path.parent().map(Path::to_owned);
    let folders: BTreeSet<PathBuf> = match find(given, part, format) {
        Ok(files) => files.iter().filter_map(|file| parent(file)).collect(),
        Err(_) => given.iter().filter(|path| named_set(path).is_none()).filter_map(|path| parent(path)).collect(),
    };
    folders.into_iter().collect()
}

/// Returns whether there is a file, folder or link of exactly this name, a dangling link included.
fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn find_one(path: &Path, part: Part, format: TokenFormat) -> Result<Vec<PathBuf>> {
    if path.is_dir() {
        return of_folder(path, part, format);
    }
    if is_there(path) {
        check_link(path)?;
        return Ok(vec![path.to_owned()]);
    }
    if let Some(named) = named_set(path) {
        return named.files(part);
    }
    let mut found = Vec::new();
    if is_pattern(path.as_os_str()) {
        let components: Vec<Component> = path.components().collect();
        if components.len() > COMPONENTS {
            let fault =
                Fault::at(shown(path), "the pattern has too many folders").expected(format!("at most {COMPONENTS}"));
            return Err(Error::data(fault.found(components.len())));
        }
        expand(path, PathBuf::new(), &components, &mut found)?;
    }
    if found.is_empty() {
        return Err(missing(path));
    }
    found.iter().try_for_each(|path| check_link(path))?;
    Ok(found)
}

/// Returns the first 80 characters of a path, for messages.
fn shown(path: &Path) -> String {
    let text = path.to_string_lossy();
    let start: String = text.chars().take(80).collect();
    if start.len() < text.len() { format!("{start}...") } else { start }
}

/// Fails for a dangling link.
fn check_link(path: &Path) -> Result<()> {
    match fs::read_link(path) {
        Ok(to) if !path.exists() => {
            let fault = Fault::at(path.display(), "is a dangling link").expected("a token file");
            Err(Error::data(fault.found(format!("a link to {}", to.display()))))
        }
        _ => Ok(()),
    }
}

fn is_pattern(text: &OsStr) -> bool {
    text.as_encoded_bytes().iter().any(|byte| b"*?[".contains(byte))
}

/// Adds the paths below `base` that match a pattern's components. A component that exists literally, such as
/// `My Data [v2]`, is not a pattern.
fn expand(whole: &Path, base: PathBuf, components: &[Component], found: &mut Vec<PathBuf>) -> Result<()> {
    let Some((first, rest)) = components.split_first() else {
        found.push(base);
        return Ok(());
    };
    let next = base.join(first);
    let Component::Normal(text) = first else { return expand(whole, next, rest, found) };
    if !is_pattern(text) || is_there(&next) {
        return if is_there(&next) { expand(whole, next, rest, found) } else { Ok(()) };
    }
    if *text == "**" {
        expand(whole, base.clone(), rest, found)?;
        for name in entries(&base)? {
            let inner = base.join(name);
            if inner.is_dir() && !inner.is_symlink() {
                expand(whole, inner, components, found)?;
            }
        }
        return Ok(());
    }
    let broken = |why: &str| Error::data(Fault::at(whole.display(), format!("not a file pattern: {why}")));
    let text = text.to_str().ok_or_else(|| broken("it is not valid UTF-8"))?;
    let names = entries(&base)?;
    // brackets that match nothing may be literal: `book [2]_*.bin`
    for text in [text.to_owned(), text.replace('[', "[[]")] {
        let pattern = Pattern::new(&text).map_err(|e| broken(e.msg))?;
        let matching: Vec<&OsString> = names.iter().filter(|name| pattern.matches(&name.to_string_lossy())).collect();
        if !matching.is_empty() {
            return matching.into_iter().try_for_each(|name| expand(whole, base.join(name), rest, found));
        }
    }
    Ok(())
}

/// Returns the sorted names in a folder; none if `folder` is not a folder.
fn entries(folder: &Path) -> Result<Vec<OsString>> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let failed = |e: std::io::Error| cannot_read(&folder.display().to_string(), &e);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        names.push(entry.map_err(failed)?.file_name());
    }
    names.sort();
    Ok(names)
}

/// Finds the files of a part in a folder.
fn of_folder(folder: &Path, part: Part, format: TokenFormat) -> Result<Vec<PathBuf>> {
    let names = entries(folder)?;
    let refused = |fault: Fault| Err(Error::data(fault.within(folder.display())));
    let has = |name: &str| names.iter().any(|there| there == name);
    let ends = |ending: &str| {
        let ending = ending.to_owned();
        move |name: &OsString| Path::new(name).extension().is_some_and(|there| *there == *ending)
    };
    // as `datasets` saves it, not as the hub stores it
    if ["state.json", "dataset_dict.json"].into_iter().any(has) || names.iter().any(ends("arrow")) {
        let fault = Fault::from("is a folder of Hugging Face's datasets").expected("token files");
        return refused(fault.advice(ARROW_ADVICE));
    }
    let ending = format.ending();
    let of_ending = |name: &&OsString| Path::new(name).extension().is_some_and(|there| there == ending);
    let mut prefixes = BTreeSet::new();
    let mut found = Vec::new();
    for name in names.iter().filter(of_ending) {
        let text = name.to_string_lossy();
        if let Some(prefix) = part.prefix_of(&text) {
            prefixes.insert(prefix.to_owned());
            found.push(folder.join(name));
        }
    }
    let word = match part {
        Part::Train => "_train_",
        Part::Validation => "_val_",
        Part::All => "",
    };
    if found.is_empty() {
        let others = names.iter().filter(of_ending).count();
        let fault = Fault::from("the folder has no matching files").expected(format!("NAME{word}*.{ending}"));
        let pattern = folder.join(format!("*.{ending}"));
        return refused(if others > 0 {
            let found = counted(others as u64, &format!("other .{ending} file"));
            fault.found(found).advice(format!("try {}", shell::quoted(&pattern)))
        } else {
            fault.advice(format!(
                "try a pattern; if it holds texts: `wgpt data prepare {} --out DIR`",
                shell::quoted(folder)
            ))
        });
    }
    if prefixes.len() > 1 {
        let list: Vec<String> = prefixes.iter().map(|prefix| format!("`{prefix}`")).collect();
        let fault = Fault::from("the folder has several data sets").expected("one").found(list.join(", "));
        let first = prefixes.first().map_or("", String::as_str);
        let named = |name: &&OsString| name.to_string_lossy().starts_with(first);
        let whole = names.iter().filter(of_ending).find(named).filter(|_| found.len() == prefixes.len());
        let pattern = whole.map_or_else(
            || folder.join(format!("{first}{}*.{ending}", word.trim_start_matches('_'))),
            |name| folder.join(name),
        );
        return refused(fault.advice(format!("try {}", shell::quoted(&pattern))));
    }
    found.iter().try_for_each(|path| check_link(path))?;
    Ok(found)
}

/// Returns the error of a path that matches no file.
fn missing(path: &Path) -> Error {
    let text = path.to_string_lossy();
    let no = |what: &str| Fault::at(path.display(), what);
    let tokens = "a token file, a pattern, or a name of `wgpt data fetch`";
    let quoted = text.contains('{') && text.contains('}');
    Error::data(if text.starts_with('~') {
        no("no such file: `~` is not expanded here").expected(tokens).advice("try it without quotes, or the whole path")
    } else if quoted {
        no("no such file: braces are not expanded here").expected(tokens).advice("try it without quotes, or * ? [ ]")
    } else if text.contains(',') {
        no("no such file: commas do not separate files")
            .expected(tokens)
            .advice("try spaces between files, or a pattern")
    } else if is_pattern(path.as_os_str()) {
        no("no file matches").expected("at least one token file").advice("try `wgpt data prepare`")
    } else if is_name(&text) {
        let near = catalog::nearest_names(&text);
        let fault = no("no such file, folder or name of `wgpt data fetch`").expected("token files");
        if near.is_empty() {
            fault.advice("`wgpt data fetch --help` lists the names")
        } else {
            fault.advice(format!("the nearest names are {}", near.join(", ")))
        }
    } else {
        no("no such file").expected("at least one token file").advice("try `wgpt data prepare`")
    })
}

/// Returns whether a text may be meant as a name of `wgpt data fetch`: token files have an extension.
fn is_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | ':');
    !text.is_empty() && text.chars().all(plain)
}

#[cfg(test)]
#[path = "token_paths_tests.rs"]
mod tests;
