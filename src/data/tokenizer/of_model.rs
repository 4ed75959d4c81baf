//! The tokenizer that a model was trained with, and how it is known.

use std::path::Path;

use super::{Tokenizer, TokenizerName};
use crate::error::{Error, Fault, Result};
use crate::formats::ModelInfo;
use crate::formats::tokenizer_folder::TokenizerFiles;

/// The tokenizer of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelTokenizer {
    /// The model's folder tells it: by its tokenizer files, or by `wgpt_tokenizer` in its config.json.
    Known(Tokenizer),
    /// GPT-2's, because the model has as many ids as GPT-2 and nothing else tells.
    Assumed,
    /// Nothing tells it, for the reason given.
    Unknown(String),
}

impl ModelTokenizer {
    /// Returns the tokenizer of the model in `dir`, which says `info` of itself: that of the files in the folder, else
    /// the one that `info` names, else GPT-2's for a `vocab` of 50,257.
    ///
    /// # Errors
    /// [`Error::Data`] naming the file that cannot be read.
    pub fn of_folder(dir: &Path, info: &ModelInfo, vocab: usize) -> Result<Self> {
        Ok(match TokenizerFiles::read(dir)? {
            Some(files) => Self::Known(Tokenizer::of_files(files)),
            None => Self::of_info(info, vocab),
        })
    }

    /// Returns the tokenizer of a model without tokenizer files.
    #[must_use]
    pub fn of_info(info: &ModelInfo, vocab: usize) -> Self {
        match info.tokenizer.as_deref() {
            Some("gpt2") => Self::Known(Tokenizer::Gpt2),
            Some("bytes") => Self::Known(Tokenizer::Bytes),
            Some("own") => Self::Unknown("it has a tokenizer of its own, whose files are missing".into()),
            Some(name) => Self::Unknown(format!("unknown tokenizer `{}` in its config.json", name.escape_debug())),
            None if vocab == Tokenizer::Gpt2.vocab() => Self::Assumed,
            None => Self::Unknown(format!("no tokenizer is known for a vocabulary of {vocab}")),
        }
    }

    /// Returns the tokenizer, if there is one.
    #[must_use]
    pub fn get(&self) -> Option<Tokenizer> {
        match self {
            Self::Known(tokenizer) => Some(tokenizer.clone()),
            Self::Assumed => Some(Tokenizer::Gpt2),
            Self::Unknown(_) => None,
        }
    }

    /// Returns a tokenizer for texts of a model at `place` of `vocab` ids: the one that is `given`, else the model's.
    ///
    /// # Errors
    /// [`Error::Usage`] if the model has another tokenizer than the one given, or fewer ids; [`Error::Data`] if none is
    /// known, or it cannot be used.
    pub fn for_text(&self, place: &str, given: Option<&Tokenizer>, vocab: usize) -> Result<Tokenizer> {
        if let Some(given) = given {
            self.agree(given, "--tokenizer", place)?;
            if given.vocab() > vocab && *self != Self::Known(given.clone()) {
                let fault = Fault::at("--tokenizer", format!("{given} has {} ids", given.vocab()));
                return Err(Error::usage(fault.expected(format!("at most the model's {vocab}"))));
            }
            return given.check().map(|()| given.clone());
        }
        match self {
            Self::Unknown(why) => Err(Error::data(
                Fault::at(place, why)
                    .expected("tokenizer files in its folder")
                    .advice("try --tokenizer gpt2, bytes or the folder of a tokenizer"),
            )),
            known => {
                let tokenizer = known.get().unwrap_or_default();
                tokenizer.check().map(|()| tokenizer)
            }
        }
    }

    /// Fails if the model at `place` is known to have another tokenizer than `other`, which `whose` names.
    ///
    /// # Errors
    /// [`Error::Usage`] with both names.
    pub fn agree(&self, other: &Tokenizer, whose: &str, place: &str) -> Result<()> {
        match self {
            Self::Known(own) => same(own, place, other, whose),
            Self::Assumed | Self::Unknown(_) => Ok(()),
        }
    }

    /// Fails if data, whose tokenizer the file `noted_at` notes, and the model at `place` are of two tokenizers. An
    /// assumption holds against data until `--tokenizer` says better.
    ///
    /// # Errors
    /// [`Error::Usage`] with both names.
    pub fn agree_with_data(&self, noted: &Tokenizer, noted_at: &str, place: &str) -> Result<()> {
        if *self != Self::Assumed || *noted == Tokenizer::Gpt2 {
            return self.agree(noted, noted_at, place);
        }
        let fault = Fault::at(noted_at, "another tokenizer than the model's").found(noted);
        let fault = fault.expected(format!("gpt2, which is assumed of {place}"));
        let advice = format!("if the model is for them: --tokenizer {}", TokenizerName::of(noted));
        Err(Error::usage(fault.advice(advice)))
    }

    /// Returns a sentence about a tokenizer that is taken for granted.
    #[must_use]
    pub fn assumption(&self) -> Option<&'static str> {
        (*self == Self::Assumed).then_some("gpt2, assumed: the model has its 50257 ids, and no tokenizer files")
    }
}

/// Fails if two tokenizers, those of `place` and of `whose`, are not the same.
///
/// # Errors
/// [`Error::Usage`] with both names.
pub fn same(own: &Tokenizer, place: &str, other: &Tokenizer, whose: &str) -> Result<()> {
    if own == other {
        return Ok(());
    }
    let fault = Fault::at(whose, "another tokenizer").expected(format!("{own}, that of {place}")).found(other);
    Err(Error::usage(fault.advice("try data and model of one tokenizer")))
}
