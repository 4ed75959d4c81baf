//! The tokenizer that a model was trained with, and the evidence for it.

use std::path::Path;

use super::{Tokenizer, TokenizerName};
use crate::error::{Error, Fault, Result};
use crate::formats::ModelInfo;
use crate::formats::tokenizer_folder::TokenizerFiles;

/// The tokenizer of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelTokenizer {
    /// Known from the tokenizer files in the model's folder, or from `wgpt_tokenizer` in its config.json.
    Known(Tokenizer),
    /// GPT-2's, because the model has as many ids as GPT-2 and there is no other evidence.
    Assumed,
    /// Unknown, for the reason given.
    Unknown(String),
}

impl ModelTokenizer {
    /// Returns the tokenizer of the model in `dir`, whose config.json gives `info`: the tokenizer that the files in the
    /// folder define, else the one that `info` names, else GPT-2's if `vocab` is 50,257.
    ///
    /// # Errors
    /// [`Error::Data`] naming a file that cannot be read.
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
            Some("own") => Self::Unknown("the files of its own tokenizer are missing".into()),
            Some(name) => Self::Unknown(format!("unknown tokenizer `{}` in its config.json", name.escape_debug())),
            None if vocab == Tokenizer::Gpt2.vocab() => Self::Assumed,
            None => Self::Unknown(format!("no tokenizer is known for a vocabulary of {vocab}")),
        }
    }

    /// Returns the tokenizer, if it is known or assumed.
    #[must_use]
    pub fn get(&self) -> Option<Tokenizer> {
        match self {
            Self::Known(tokenizer) => Some(tokenizer.clone()),
            Self::Assumed => Some(Tokenizer::Gpt2),
            Self::Unknown(_) => None,
        }
    }

    /// Returns the tokenizer for texts of the model at `place` with `vocab` ids: the `given` one, else the model's.
    ///
    /// # Errors
    /// [`Error::Usage`] if the model has another tokenizer than the given one, or fewer ids; [`Error::Data`] if no
    /// tokenizer is known, or it is unusable.
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

    /// Fails if the model at `place` is known to have another tokenizer than `other`, whose place `whose` is named in
    /// the error.
    ///
    /// # Errors
    /// [`Error::Usage`] with both names.
    pub fn agree(&self, other: &Tokenizer, whose: &str, place: &str) -> Result<()> {
        match self {
            Self::Known(own) => same(own, place, other, whose),
            Self::Assumed | Self::Unknown(_) => Ok(()),
        }
    }

    /// Fails if the model at `place` and data have different tokenizers. The file `recorded_at` records the tokenizer
    /// of the data. An assumed tokenizer counts like a known one, until `--tokenizer` overrides it.
    ///
    /// # Errors
    /// [`Error::Usage`] with both names.
    pub fn agree_with_data(&self, recorded: &Tokenizer, recorded_at: &str, place: &str) -> Result<()> {
        if *self != Self::Assumed || *recorded == Tokenizer::Gpt2 {
            return self.agree(recorded, recorded_at, place);
        }
        let fault = Fault::at(recorded_at, "another tokenizer than the model's").found(recorded);
        let fault = fault.expected(format!("gpt2, which is assumed for {place}"));
        let advice = format!("if the model has this tokenizer: --tokenizer {}", TokenizerName::of(recorded));
        Err(Error::usage(fault.advice(advice)))
    }

    /// Returns a remark if the tokenizer is assumed.
    #[must_use]
    pub fn assumption(&self) -> Option<&'static str> {
        (*self == Self::Assumed).then_some("gpt2, assumed: the model has 50257 ids, as gpt2, and no tokenizer files")
    }
}

/// Fails if two tokenizers, that of `place` and that of `whose`, differ.
///
/// # Errors
/// [`Error::Usage`] with both names.
pub fn same(own: &Tokenizer, place: &str, other: &Tokenizer, whose: &str) -> Result<()> {
    if own == other {
        return Ok(());
    }
    let fault = Fault::at(whose, "another tokenizer").expected(format!("{own}, that of {place}")).found(other);
    Err(Error::usage(fault.advice("try data and a model with the same tokenizer")))
}
