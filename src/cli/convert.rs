//! `wgpt convert`.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use clap::ValueEnum;

use clap::builder::{OsStringValueParser, TypedValueParser as _};
use wgpt::data::{Tokenizer, TokenizerName};
use wgpt::error::{Error, Fault, Result};
use wgpt::files::atomic::output_error;
use wgpt::formats::gguf::{self, Storage};
use wgpt::formats::tokenizer_folder::{TokenizerFiles, remove_others};
use wgpt::formats::weights::ModelPath;
use wgpt::formats::{Element, ModelInfo, hf, llmc};
use wgpt::model::Weights;
use wgpt::run::model::{self, Description};
use wgpt::units;

use super::model::{place, summary};
use super::terminal::say;

const EXAMPLES: &str = "\
FROM is a run, a folder in Hugging Face's layout, a .bin of llm.c, or a name
such as gpt2 from Hugging Face's cache. The ending of TO gives its layout: .bin
is llm.c's (version 3 in f32, version 5 in bf16), .gguf is llama.cpp's with the
tokenizer; any other name is a folder in Hugging Face's layout with the
tokenizer's files, which transformers reads without a network.

Examples:
  wgpt convert runs/1 my-model
  wgpt convert runs/1 my-model.gguf --dtype q8_0
  wgpt convert gpt2 gpt2_124M.bin
  wgpt convert gpt2_124M.bin gpt2_124M_bf16.bin --dtype bf16
  wgpt convert model_00018865.bin gpt2-mine";
/// The lines of Python that make a folder of nanoGPT's ckpt.pt.
const FROM_NANOGPT: &str = include_str!("from_nanogpt.py");

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, after_long_help = long_help())]
pub struct Args {
    /// The model to read
    from: PathBuf,
    /// The file or folder to write
    to: PathBuf,
    /// Element type in TO: f32, f16, bf16 or q8_0
    ///
    /// Vectors of a .gguf stay f32
    #[arg(long, value_enum, value_name = "TYPE", default_value_t = Dtype::F32)]
    dtype: Dtype,
    /// Tokenizer of a model that does not name its own
    ///
    /// gpt2, bytes, or a folder with tokenizer.json
    #[arg(long, value_name = "NAME|DIR", value_parser = OsStringValueParser::new().try_map(TokenizerName::try_from))]
    tokenizer: Option<TokenizerName>,
    /// Replace TO if it exists
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Dtype {
    /// 32-bit floats
    F32,
    /// 16-bit floats of IEEE; in a folder or a .gguf
    F16,
    /// The upper half of an f32, rounded to nearest
    Bf16,
    /// Bytes in blocks of 32 with an f16 scale each; in a .gguf
    #[value(name = "q8_0")]
    Q8_0,
}

/// A layout to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    Llmc,
    Gguf,
    Folder,
}

impl Layout {
    fn of(path: &Path) -> Self {
        match path.extension().and_then(OsStr::to_str) {
            Some(ending) if ending.eq_ignore_ascii_case("bin") => Self::Llmc,
            Some(ending) if ending.eq_ignore_ascii_case("gguf") => Self::Gguf,
            _ => Self::Folder,
        }
    }

    /// Returns the representation of the weights in this layout.
    fn storage(self, dtype: Dtype) -> Result<Storage> {
        let (storage, layouts) = match dtype {
            Dtype::F32 => (Storage::Plain(Element::F32), "any"),
            Dtype::Bf16 => (Storage::Plain(Element::Bf16), "any"),
            Dtype::F16 => (Storage::Plain(Element::F16), "a folder or a .gguf"),
            Dtype::Q8_0 => (Storage::Q8_0, "a .gguf"),
        };
        let fits = match dtype {
            Dtype::F32 | Dtype::Bf16 => true,
            Dtype::F16 => self != Self::Llmc,
            Dtype::Q8_0 => self == Self::Gguf,
        };
        if fits {
            return Ok(storage);
        }
        Err(self.refusal(storage, layouts))
    }

    fn refusal(self, storage: Storage, layouts: &str) -> Error {
        let fault = Fault::at("--dtype", format!("{} is not written here", storage.name()));
        let found = match self {
            Self::Llmc => "a .bin of llm.c",
            Self::Gguf => "a .gguf",
            Self::Folder => "a folder",
        };
        Error::usage(fault.expected(layouts).found(found).advice("try --dtype f32 or another TO"))
    }
}

fn long_help() -> String {
    format!(
        "{EXAMPLES}\n\nFrom nanoGPT, a pickle: save the lines below as from_nanogpt.py, then run\n  \
         python from_nanogpt.py out/ckpt.pt FOLDER\n\n{FROM_NANOGPT}"
    )
}

/// Reads a model in one layout and writes it in another.
pub fn run(args: &Args) -> Result<()> {
    let layout = Layout::of(&args.to);
    let storage = layout.storage(args.dtype)?;
    check_target(args, layout)?;
    let model = model::describe(&args.from)?;
    let given = args.tokenizer.as_ref().map(TokenizerName::open).transpose()?;
    let tokenizer = match &given {
        Some(given) => Some(model.tokenizer.for_text(&place(&model), Some(given), model.shape.vocab)?),
        None => model.tokenizer.get(),
    };
    let weights = model.weights()?;
    say!("{}: {}", place(&model), summary(&model.shape));
    let assumed = model.tokenizer.assumption().filter(|_| given.is_none());
    assumed.iter().for_each(|assumption| say!("tokenizer {assumption}"));
    let note = match (layout, storage) {
        (Layout::Llmc, Storage::Plain(element)) => write_llmc(args, &weights, element)?,
        (Layout::Folder, Storage::Plain(element)) => write_folder(args, &model, &weights, tokenizer.as_ref(), element)?,
        (Layout::Gguf, storage) => write_gguf(args, &weights, tokenizer.as_ref(), storage)?,
        (Layout::Llmc | Layout::Folder, Storage::Q8_0) => return Err(layout.refusal(storage, "a .gguf")),
    };
    say!("{}: {note}", args.to.display());
    if layout == Layout::Folder {
        say!("transformers reads it: GPT2LMHeadModel.from_pretrained({:?})", args.to.display().to_string());
    }
    Ok(())
}

/// Refuses a target that must not be replaced.
fn check_target(args: &Args, layout: Layout) -> Result<()> {
    let to = args.to.display();
    let is_folder = args.to.is_dir();
    if args.to.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("safetensors")) {
        let fault = Fault::at("convert", format!("{to} would be a folder")).expected("the folder that is to hold it");
        return Err(Error::usage(fault.advice("leave out .safetensors")));
    }
    if is_folder && layout != Layout::Folder {
        return Err(Error::usage(format!("convert: {to} is a folder, expected a file; try another name")));
    }
    if args.to.is_file() && layout == Layout::Folder && args.force {
        return Err(Error::usage(format!("convert: {to} is a file, expected a folder; try another name")));
    }
    let taken = if is_folder {
        fs::read_dir(&args.to).map_err(|e| output_error(&args.to, &e))?.next().is_some()
    } else {
        args.to.exists()
    };
    if taken && !args.force {
        return Err(Error::usage(format!(
            "convert: {to} exists already, expected a new name; try another, or --force"
        )));
    }
    // a model's folder may be replaced, but no run: readers of its folder take the weights in `model`
    if taken && is_folder && (args.to.join("config.toml").exists() || !args.to.join("config.json").exists()) {
        let what = if args.to.join("config.toml").exists() { "a run" } else { "no model" };
        return Err(Error::usage(format!(
            "convert: {to} is a folder that holds {what}, expected a model's folder to replace; try another name"
        )));
    }
    Ok(())
}

fn write_llmc(args: &Args, weights: &Weights, element: Element) -> Result<String> {
    llmc::save(&args.to, weights, element)?;
    let bytes = fs::metadata(&args.to).map_err(|e| output_error(&args.to, &e))?.len();
    let version = if element == Element::F32 { 3 } else { 5 };
    Ok(format!("llm.c's version {version}, {}, {}", element.name(), units::size(bytes)))
}

fn write_folder(
    args: &Args,
    model: &Description,
    weights: &Weights,
    tokenizer: Option<&Tokenizer>,
    element: Element,
) -> Result<String> {
    let kept = kept_files(model, tokenizer)?;
    kept.iter().try_for_each(TokenizerFiles::check)?;
    let info = tokenizer.map_or_else(|| model.info.clone(), |t| info(model, t));
    hf::save_as(&args.to, weights, &info, element)?;
    let note = match (kept, tokenizer) {
        (Some(files), _) => {
            files.write(&args.to)?;
            format!("{} unchanged", units::counted(files.iter().count() as u64, "tokenizer file"))
        }
        (None, Some(tokenizer)) if tokenizer.write_files(&args.to, &weights.config)? => {
            format!("tokenizer {tokenizer}")
        }
        (None, Some(tokenizer)) => format!("no tokenizer files: {tokenizer} has more ids than the model"),
        (None, None) => {
            remove_others(&args.to, |_| false)?;
            "no tokenizer files: the tokenizer is unknown; try --tokenizer".into()
        }
    };
    Ok(format!("config.json and model.safetensors in {}, {note}", element.name()))
}

/// Describes the model for its folder. The ids that begin and end its texts stay, unless it gets another tokenizer.
fn info(model: &Description, tokenizer: &Tokenizer) -> ModelInfo {
    let told = tokenizer.info(model.shape.vocab);
    if model.tokenizer.get().as_ref() != Some(tokenizer) {
        return told;
    }
    ModelInfo { bos: model.info.bos.or(told.bos), eos: model.info.eos.or(told.eos), ..told }
}

/// Returns the tokenizer files of a model's folder, to be copied unchanged.
fn kept_files(model: &Description, tokenizer: Option<&Tokenizer>) -> Result<Option<TokenizerFiles>> {
    match &model.place {
        ModelPath::Folder(dir) if model.tokenizer.get().as_ref() == tokenizer => TokenizerFiles::read(dir),
        _ => Ok(None),
    }
}

fn write_gguf(args: &Args, weights: &Weights, tokenizer: Option<&Tokenizer>, storage: Storage) -> Result<String> {
    let rows = weights.config.vocab;
    let vocabulary = tokenizer.and_then(Tokenizer::vocabulary);
    let note = match (tokenizer, vocabulary.as_ref().map(|vocabulary| vocabulary.tokens.len())) {
        (Some(tokenizer), Some(ids)) if ids == rows => format!("tokenizer {tokenizer}"),
        (Some(tokenizer), Some(ids)) if ids < rows => format!("tokenizer {tokenizer} and {} unused tokens", rows - ids),
        (Some(tokenizer), Some(ids)) => format!("no tokenizer: {tokenizer} has {ids} ids, the model {rows}"),
        (Some(tokenizer), None) => format!("no tokenizer: llama.cpp does not read {tokenizer} from here"),
        (None, _) => "no tokenizer: it is unknown; try --tokenizer".into(),
    };
    gguf::save(&args.to, weights, storage, vocabulary)?;
    let bytes = fs::metadata(&args.to).map_err(|e| output_error(&args.to, &e))?.len();
    Ok(format!("GGUF in {}, {}, {note}", storage.name(), units::size(bytes)))
}
