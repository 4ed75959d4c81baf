//! `wgpt convert`.

use std::fs;
use std::path::{Path, PathBuf};

use clap::ValueEnum;

use wgpt::data::Tokenizer;
use wgpt::error::{Error, Result};
use wgpt::files::atomic::output_error;
use wgpt::formats::weights::Place;
use wgpt::formats::{Element, ModelInfo, hf, llmc, tokenizer_files};
use wgpt::model::Weights;
use wgpt::train::settings::values::Value as _;

use super::model::{Loaded, summary};
use super::terminal::say;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "FROM is a run, a folder in Hugging Face's layout, a .bin of llm.c, or a name such as gpt2 from Hugging Face's
cache. TO is a .bin of llm.c (version 3 in f32, version 5 in bf16) if it ends in .bin, else a folder in Hugging
Face's layout with its tokenizer's files, which transformers reads without a network.

Examples:
  wgpt convert runs/1 my-model
  wgpt convert gpt2 gpt2_124M.bin
  wgpt convert gpt2_124M.bin gpt2_124M_bf16.bin --dtype bf16
  wgpt convert model_00018865.bin gpt2-mine"
)]
pub struct Args {
    /// The model to read
    from: PathBuf,
    /// The file or folder to write
    to: PathBuf,
    /// Element type of the weights in TO
    #[arg(long, value_enum, default_value_t = Dtype::F32)]
    dtype: Dtype,
    /// Tokenizer that the model was trained with, gpt2 or bytes, where FROM does not say
    #[arg(long, value_parser = Tokenizer::parse)]
    tokenizer: Option<Tokenizer>,
    /// Replace TO if it is there
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Dtype {
    /// 32-bit floats
    F32,
    /// The upper half of an f32, rounded to nearest
    Bf16,
}

/// Reads a model in one layout and writes it in another.
pub fn run(args: &Args) -> Result<()> {
    let taken = if args.to.is_dir() {
        fs::read_dir(&args.to).map_err(|e| output_error(&args.to, &e))?.next().is_some()
    } else {
        args.to.exists()
    };
    if taken && !args.force {
        let to = args.to.display();
        return Err(Error::usage(format!(
            "convert: {to} is there already, expected a new name; try another, or --force"
        )));
    }
    // only a model is replaced, and no run: its folder reads the weights inside `model`
    if taken && args.to.is_dir() && (args.to.join("config.toml").exists() || !args.to.join("config.json").exists()) {
        let what = if args.to.join("config.toml").exists() { "a run" } else { "no model" };
        return Err(Error::usage(format!(
            "convert: {} is a folder that holds {what}, expected a model's folder to replace; try another name",
            args.to.display()
        )));
    }
    let element = match args.dtype {
        Dtype::F32 => Element::F32,
        Dtype::Bf16 => Element::Bf16,
    };
    let mut loaded = Loaded::open(&args.from)?;
    let vocab = loaded.weights.config.vocab;
    if let Some(tokenizer) = args.tokenizer {
        if vocab < tokenizer.vocab() {
            let ids = tokenizer.vocab();
            return Err(Error::usage(format!(
                "--tokenizer: {tokenizer} has {ids} ids, the model's vocabulary is {vocab}"
            )));
        }
        loaded.info = ModelInfo::for_tokenizer(tokenizer.name());
    }
    say!("{}: {}", loaded.place.path().display(), summary(&loaded.weights.config));
    let note = if args.to.extension().is_some_and(|extension| extension == "bin") {
        write_llmc(args, &loaded.weights, element)?
    } else {
        write_folder(args, &loaded, element)?
    };
    say!("{}: {note}", args.to.display());
    Ok(())
}

fn write_llmc(args: &Args, weights: &Weights, element: Element) -> Result<String> {
    if args.to.is_dir() {
        return Err(Error::usage(format!(
            "convert: {} is a folder, expected a file; try another name",
            args.to.display()
        )));
    }
    llmc::save(&args.to, weights, element)?;
    let bytes = fs::metadata(&args.to).map_err(|e| output_error(&args.to, &e))?.len();
    let version = if element == Element::F32 { 3 } else { 5 };
    Ok(format!("llm.c's version {version}, {}, {bytes} bytes", element.name()))
}

fn write_folder(args: &Args, loaded: &Loaded, element: Element) -> Result<String> {
    if args.to.is_file() {
        return Err(Error::usage(format!(
            "convert: {} is a file, expected a folder; try another name",
            args.to.display()
        )));
    }
    hf::save_as(&args.to, &loaded.weights, &loaded.info, element)?;
    let tokenizer = match copy_tokenizer(&loaded.place, &args.to)? {
        0 => match &loaded.info.tokenizer {
            Some(name) if tokenizer_files::write(&args.to, name, &loaded.weights.config)? => {
                format!("tokenizer {name}")
            }
            Some(name) => format!("no tokenizer files: {name} is not known, or has more ids"),
            None => "no tokenizer files: nothing says which it is; try --tokenizer".into(),
        },
        count => format!("{count} tokenizer files as they were"),
    };
    Ok(format!("config.json and model.safetensors in {}, {tokenizer}", element.name()))
}

/// Takes over the tokenizer's files of a folder that has them; returns how many.
fn copy_tokenizer(place: &Place, to: &Path) -> Result<usize> {
    let Place::Folder(from) = place else { return Ok(0) };
    if from == to || !["tokenizer.json", "vocab.json"].iter().any(|name| from.join(name).exists()) {
        return Ok(0);
    }
    let mut count = 0;
    for name in tokenizer_files::NAMES {
        let path = from.join(name);
        if !path.exists() {
            continue;
        }
        let bytes = fs::read(&path).map_err(|e| Error::data(format!("{}: cannot be read ({e})", path.display())))?;
        wgpt::files::atomic::write(&to.join(name), |out| out.write_all(&bytes))?;
        count += 1;
    }
    Ok(count)
}
