//! `wgpt convert`.

use std::fs;
use std::path::PathBuf;

use clap::ValueEnum;

use wgpt::data::{Tokenizer, TokenizerName};
use wgpt::error::{Error, Result};
use wgpt::files::atomic::output_error;
use wgpt::formats::tokenizer_folder::{TokenizerFiles, remove_others};
use wgpt::formats::weights::Place;
use wgpt::formats::{Element, ModelInfo, hf, llmc};
use wgpt::model::Weights;
use wgpt::run::model::{self, Description};
use wgpt::train::settings::values::Value as _;

use super::model::{place, summary};
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
    /// Tokenizer that the model was trained with, where FROM does not say: gpt2, bytes, or a folder with tokenizer.json
    #[arg(long, value_name = "NAME|DIR", value_parser = TokenizerName::parse)]
    tokenizer: Option<TokenizerName>,
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
    let model = model::describe(&args.from)?;
    let given = args.tokenizer.as_ref().map(TokenizerName::open).transpose()?;
    let tokenizer = match &given {
        Some(given) => Some(model.tokenizer.for_text(&place(&model), Some(given), model.shape.vocab)?),
        None => model.tokenizer.get(),
    };
    say!("{}: {}", place(&model), summary(&model.shape));
    let assumed = model.tokenizer.assumption().filter(|_| given.is_none());
    assumed.iter().for_each(|assumption| say!("tokenizer {assumption}"));
    let weights = model.weights()?;
    let note = if args.to.extension().is_some_and(|extension| extension == "bin") {
        write_llmc(args, &weights, element)?
    } else {
        write_folder(args, &model, &weights, tokenizer.as_ref(), element)?
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

fn write_folder(
    args: &Args,
    model: &Description,
    weights: &Weights,
    tokenizer: Option<&Tokenizer>,
    element: Element,
) -> Result<String> {
    if args.to.is_file() {
        return Err(Error::usage(format!(
            "convert: {} is a file, expected a folder; try another name",
            args.to.display()
        )));
    }
    let info = tokenizer.map_or_else(|| model.info.clone(), |t| info(model, t));
    hf::save_as(&args.to, weights, &info, element)?;
    let note = match (kept_files(model, tokenizer)?, tokenizer) {
        (Some(files), _) => {
            files.write(&args.to)?;
            format!("{} tokenizer files as they were", files.iter().count())
        }
        (None, Some(tokenizer)) if tokenizer.write_files(&args.to, &weights.config)? => {
            format!("tokenizer {tokenizer}")
        }
        (None, Some(tokenizer)) => format!("no tokenizer files: {tokenizer} has more ids than the model"),
        (None, None) => {
            remove_others(&args.to, |_| false)?;
            "no tokenizer files: nothing says which it is; try --tokenizer".into()
        }
    };
    Ok(format!("config.json and model.safetensors in {}, {note}", element.name()))
}

/// What the folder says of the model: the ids that begin and end its texts stay, unless it gets another tokenizer.
fn info(model: &Description, tokenizer: &Tokenizer) -> ModelInfo {
    let told = tokenizer.info(model.shape.vocab);
    if model.tokenizer.get().as_ref() != Some(tokenizer) {
        return told;
    }
    ModelInfo { bos: model.info.bos.or(told.bos), eos: model.info.eos.or(told.eos), ..told }
}

/// The tokenizer files of a model's folder, which are kept as they are.
fn kept_files(model: &Description, tokenizer: Option<&Tokenizer>) -> Result<Option<TokenizerFiles>> {
    match &model.place {
        Place::Folder(dir) if model.tokenizer.get().as_ref() == tokenizer => TokenizerFiles::read(dir),
        _ => Ok(None),
    }
}
