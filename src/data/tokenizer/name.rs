//! Names of tokenizers in flags and recipes.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::Tokenizer;
use crate::error::{Error, Fault, Result};
use crate::files::path_text;
use crate::formats::tokenizer_folder::{TOKENIZER, TokenizerFiles};

/// The name of a tokenizer in flags and recipes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenizerName {
    /// `gpt2`.
    Gpt2,
    /// `bytes`.
    Bytes,
    /// `own`: the tokenizer in the folder of the run that the recipe describes.
    Own,
    /// A folder with a tokenizer's files, or the `tokenizer.json` in it.
    Folder(PathBuf),
}

impl TokenizerName {
    /// Returns the name of a tokenizer. A model's own tokenizer is named by the folder of its files.
    #[must_use]
    pub fn of(tokenizer: &Tokenizer) -> Self {
        match tokenizer {
            Tokenizer::Gpt2 => Self::Gpt2,
            Tokenizer::Bytes => Self::Bytes,
            Tokenizer::Own(own) => Self::Folder(own.files().dir().to_owned()),
        }
    }

    /// Returns the name for a run's configuration, where `own` replaces a folder because the run keeps a copy of the
    /// files.
    #[must_use]
    pub fn kept(self) -> Self {
        if matches!(self, Self::Folder(_)) { Self::Own } else { self }
    }

    /// Returns the name, with `own` replaced by the folder `dir`.
    #[must_use]
    pub fn in_folder(self, dir: &Path) -> Self {
        if self == Self::Own { Self::Folder(dir.to_owned()) } else { self }
    }

    /// Reads the tokenizer, which may be unusable for text: see [`Tokenizer::check`].
    ///
    /// # Errors
    /// [`Error::Usage`] for `own` without a folder, or a name that is neither known nor a path; [`Error::Data`] if the
    /// folder does not exist or contains no tokenizer.
    pub fn open(&self) -> Result<Tokenizer> {
        let place = "--tokenizer";
        match self {
            Self::Gpt2 | Self::Bytes => {
                let tokenizer = if *self == Self::Gpt2 { Tokenizer::Gpt2 } else { Tokenizer::Bytes };
                let folder = Path::new(tokenizer.name());
                if folder.is_dir() && TokenizerFiles::read(folder)?.is_some_and(|f| Tokenizer::of_files(f) != tokenizer)
                {
                    log::warn!("{place} {tokenizer}: taken as a name; to use the folder of this name: ./{tokenizer}");
                }
                Ok(tokenizer)
            }
            Self::Own => {
                let fault = Fault::at(place, "`own` names no files").expected("gpt2, bytes or a folder");
                Err(Error::usage(fault.advice("try the folder that contains tokenizer.json")))
            }
            Self::Folder(path) => open_folder(path),
        }
    }
}

fn open_folder(path: &Path) -> Result<Tokenizer> {
    let wanted = "gpt2, bytes or a folder with tokenizer.json, or vocab.json and merges.txt";
    let name = path.display();
    if !path.exists() {
        let fault = Fault::at("--tokenizer", format!("`{name}` is neither a known tokenizer nor a folder"));
        let is_path = path.components().count() > 1;
        let fault = fault.expected(wanted);
        return Err(if is_path { Error::data(fault) } else { Error::usage(fault) });
    }
    let beside = path.parent().map(|dir| if dir.as_os_str().is_empty() { Path::new(".") } else { dir });
    let inside = match path.file_name().and_then(OsStr::to_str) {
        _ if path.is_dir() => Some(path),
        Some(TOKENIZER | "vocab.json" | "merges.txt") => beside,
        Some(name) if name.ends_with(".json") => return Ok(Tokenizer::of_files(TokenizerFiles::of_file(path)?)),
        _ => None,
    };
    let none = || Error::data(Fault::at(path.display(), "contains no tokenizer").expected(wanted));
    let files = TokenizerFiles::read(inside.ok_or_else(&none)?)?.ok_or_else(&none)?;
    Ok(Tokenizer::of_files(files))
}

impl std::fmt::Display for TokenizerName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Gpt2 => f.write_str("gpt2"),
            Self::Bytes => f.write_str("bytes"),
            Self::Own => f.write_str("own"),
            Self::Folder(path) => path_text::spelled(path).unwrap_or_else(|| path.display().to_string()).fmt(f),
        }
    }
}

impl FromStr for TokenizerName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Ok(match name {
            "" => {
                let fault = Fault::at("tokenizer", "an empty name");
                return Err(Error::usage(fault.expected("gpt2, bytes or a folder with tokenizer.json")));
            }
            "gpt2" => Self::Gpt2,
            "bytes" => Self::Bytes,
            "own" => Self::Own,
            path => Self::Folder(path_text::read(path)),
        })
    }
}

impl TryFrom<OsString> for TokenizerName {
    type Error = Error;

    fn try_from(name: OsString) -> Result<Self> {
        name.to_str().map_or_else(|| Ok(Self::Folder(name.clone().into())), str::parse)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for name in ["gpt2", "bytes", "own", "models/german"] {
            assert_eq!(name.parse::<TokenizerName>().unwrap().to_string(), name);
        }
        assert!(matches!("".parse::<TokenizerName>(), Err(Error::Usage(_))));
        let open = |name: &str| name.parse::<TokenizerName>().unwrap().open();
        assert_eq!(open("bytes").unwrap(), Tokenizer::Bytes);
        // a word counts as a mistyped name, a path as missing files
        assert!(matches!(open("bpe"), Err(Error::Usage(_))));
        assert!(matches!(open("own"), Err(Error::Usage(_))));
        assert!(matches!(open("no/such/folder"), Err(Error::Data(_))));
    }
}
