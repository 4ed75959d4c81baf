//! Finds and reads a model of any origin: a run's checkpoint, whose shape the run's settings give, or files in another
//! program's layout.

use std::path::Path;

use crate::data::ModelTokenizer;
use crate::error::{Error, Fault, Result};
use crate::formats::checkpoint_weights;
use crate::formats::weights::{ModelPath, find};
use crate::formats::{ModelInfo, hf, llmc};
use crate::model::{Config, Weights};
use crate::run::folder;
use crate::train::settings::RunFile;

/// A model whose weights are not read yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Description {
    /// Its location.
    pub place: ModelPath,
    /// Its shape.
    pub shape: Config,
    /// The key of its tokenizer, and the ids that begin and end a text.
    pub info: ModelInfo,
    /// Its tokenizer.
    pub tokenizer: ModelTokenizer,
}

/// Finds a model by path or by name (see [`find`]) and reads everything but its weights.
///
/// # Errors
/// [`Error::Data`] naming the file and what is wrong with it.
pub fn describe(from: &Path) -> Result<Description> {
    let place = find(from).map_err(|error| missing_run(from).unwrap_or(error))?;
    let (shape, info, tokenizer) = match &place {
        ModelPath::Folder(dir) => {
            let (shape, info) = hf::describe(dir)?;
            let tokenizer = ModelTokenizer::of_folder(dir, &info, shape.vocab)?;
            (shape, info, tokenizer)
        }
        ModelPath::Llmc(path) => {
            let (shape, info) = (llmc::describe(path)?, ModelInfo::default());
            let tokenizer = ModelTokenizer::of_info(&info, shape.vocab);
            (shape, info, tokenizer)
        }
        ModelPath::Checkpoint(dir) => {
            let settings = run_of(dir)?.settings;
            let shape = settings.config();
            let info = settings.data.tokenizer.as_ref().map_or_else(ModelInfo::default, |t| t.info(shape.vocab));
            let unknown = || ModelTokenizer::Unknown("the run has no tokenizer".into());
            (shape, info, settings.data.tokenizer.map_or_else(unknown, ModelTokenizer::Known))
        }
    };
    Ok(Description { place, shape, info, tokenizer })
}

impl Description {
    /// Reads the weights.
    ///
    /// # Errors
    /// [`Error::Data`] naming the file and what is wrong with it.
    pub fn weights(&self) -> Result<Weights> {
        match &self.place {
            ModelPath::Folder(dir) => hf::load(dir).map(|(weights, _)| weights),
            ModelPath::Llmc(path) => llmc::load(path).map(|(weights, _)| weights),
            ModelPath::Checkpoint(dir) => checkpoint_weights::load(dir, self.shape),
        }
    }
}

/// Finds a model by path or by name (see [`find`]) and reads it.
///
/// # Errors
/// [`Error::Data`] naming the file and what is wrong with it.
pub fn load(from: &Path) -> Result<(Weights, ModelInfo, ModelPath)> {
    let description = describe(from)?;
    let weights = description.weights()?;
    Ok((weights, description.info, description.place))
}

/// Returns the error of a run that does not exist, where its folder would be among other runs.
fn missing_run(from: &Path) -> Option<Error> {
    let there = folder::siblings(from)?;
    Some(Error::data(Fault::at(from.display(), "no such run").advice(there)))
}

/// Returns the run to which a checkpoint belongs.
fn run_of(dir: &Path) -> Result<RunFile> {
    let absolute = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    RunFile::read(absolute.parent().and_then(Path::parent).unwrap_or(&absolute))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::formats::Element;
    use crate::model::Config;

    fn weights() -> Weights {
        let mut weights = Weights::zeros(Config::new(4, 257, 1, 1, 8).unwrap());
        weights.get_mut("lnfw", 0)[1] = 2.5;
        weights
    }

    #[test]
    fn every_layout_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let info = ModelInfo::for_tokenizer("bytes");
        hf::save(&at("run/model"), &weights(), &info).unwrap();
        hf::save(&at("models--a--b/snapshots/1"), &weights(), &info).unwrap();
        llmc::save(&at("weights.any"), &weights(), Element::F32).unwrap();
        for name in ["run", "run/model", "run/model/model.safetensors", "models--a--b", "weights.any"] {
            let (read, _, place) = load(&at(name)).unwrap();
            assert_eq!(read, weights(), "{name}");
            assert_eq!(matches!(place, ModelPath::Llmc(_)), name == "weights.any");
        }
    }

    #[test]
    fn what_is_no_model() {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes, part) in [
            ("pytorch_model.bin", &b"PK\x03\x04...."[..], "save_pretrained"),
            ("old.bin", &[0x80, 2, b'c', 0, 0, 0, 0, 0], "a pickle file"),
            ("a.bin", &[1, 2], "header is cut short"),
            ("b.bin", &[7; 2000], "bad magic"),
            ("model.safetensors", &[0; 9], "weights without a shape"),
            ("notes.txt", b"hello", "only the text `hello`"),
            ("notes", &[b'a'; 999], "not a known kind of model"),
            ("empty", b"", "an empty file"),
            ("pointer.bin", b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
            ("a.gguf", b"GGUF\x03\0\0\0", "a GGUF model"),
            ("ckpt.pt", b"PK\x03\x04....", "wgpt convert --help"),
        ] {
            let path = dir.path().join(name);
            fs::write(&path, bytes).unwrap();
            let error = load(&path).unwrap_err();
            assert_eq!(error.exit_code(), 3);
            let text = error.to_string();
            assert!(text.contains(name) && text.contains(part) && !text.contains('\n'), "{text}");
        }
        for name in ["no/such/folder", "wgpt-no-such-model"] {
            let error = load(Path::new(name)).unwrap_err();
            assert_eq!(error.exit_code(), 3);
            assert!(error.to_string().starts_with(&format!("{name}: no such file or folder")), "{error}");
        }
        // a folder is named for what it has in place of a model
        let error = load(dir.path()).unwrap_err();
        assert!(error.to_string().contains("a.gguf: a GGUF model"), "{error}");
        let empty = dir.path().join("folder");
        fs::create_dir(&empty).unwrap();
        let error = load(&empty).unwrap_err();
        assert!(error.to_string().contains("config.json: no such file or folder"), "{error}");
    }
}
