//! A model of any origin: a run's checkpoint, whose shape its settings know, or files in a layout of others.

use std::fs;
use std::path::Path;

use crate::data::Tokenizer;
use crate::error::{Error, Fault, Result};
use crate::formats::checkpoint_weights::{self, WEIGHTS};
use crate::formats::weights::{Place, find};
use crate::formats::{ModelInfo, hf, llmc};
use crate::model::Weights;
use crate::train::settings::RunFile;

/// Finds and reads a model by path or by name: see [`find`].
///
/// # Errors
/// [`Error::Data`] naming the file and what is wrong with it.
pub fn load(from: &Path) -> Result<(Weights, ModelInfo, Place)> {
    let place = find(from)?;
    let (weights, info) = match &place {
        Place::Folder(dir) => hf::load(dir)?,
        Place::Llmc(path) => llmc::load(path)?,
        Place::Checkpoint(dir) => checkpoint(dir)?,
    };
    Ok((weights, info, place))
}

/// Reads the weights of the checkpoint in `dir`, whose shape the settings of its run give.
fn checkpoint(dir: &Path) -> Result<(Weights, ModelInfo)> {
    let absolute = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    let run = absolute.parent().and_then(Path::parent).unwrap_or(&absolute);
    let settings = RunFile::read(run)?.settings;
    let config = settings.config();
    let name = settings.data.tokenizer.map(Tokenizer::name);
    let mut info = name.map_or_else(ModelInfo::default, ModelInfo::for_tokenizer);
    // shards may use fewer ids than their tokenizer has
    let inside = |id: &u32| (*id as usize) < config.vocab;
    (info.bos, info.eos) = (info.bos.filter(inside), info.eos.filter(inside));
    let file = dir.join(WEIGHTS);
    let unread = |e| Error::data(Fault::at(file.display(), format!("cannot be read ({e})")));
    let bytes = fs::read(&file).map_err(unread)?;
    Ok((checkpoint_weights::read(&file, &bytes, config, "")?, info))
}

#[cfg(test)]
mod tests {
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
            assert_eq!(matches!(place, Place::Llmc(_)), name == "weights.any");
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
            ("notes.txt", b"hello", "no model that is known"),
            ("empty", b"", "no model that is known"),
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
        let error = load(dir.path()).unwrap_err();
        assert!(error.to_string().contains("config.json: cannot be read"), "{error}");
    }
}
