//! `config.toml` of a run: a recipe with every value, and a table of facts that recipes skip.

use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::path::Path;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::layers::Layers;
use super::recipe::Recipe;
use super::resolve::InitWeights;
use super::{Settings, old};
use crate::data::TokenizerName;
use crate::error::{Error, Fault, Result};
use crate::files::{atomic, open};
use crate::model::Config;

/// The file's name in a run's folder.
pub const CONFIG: &str = "config.toml";
/// Largest `config.toml` in bytes.
const CONFIG_BYTES: u64 = 1 << 20;
/// The folder of a run's own tokenizer, inside the run's folder.
pub const TOKENIZER: &str = "tokenizer";
/// The name of the table of facts.
pub const RECORD: &str = "record";

const HEAD: &str =
    "# A run of wgpt. `wgpt train THIS_FILE` starts the same run in a new folder, `wgpt train THIS_FOLDER` resumes it.
# The table [record] holds facts of the run, not settings.

";

/// Facts of a run that are not settings.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Record {
    /// Version of the program that wrote the file.
    pub version: String,
    /// Whether the run has finished.
    pub finished: bool,
    /// The run's random id, 32 hexadecimal digits; absent in runs that an earlier version began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// [`crate::data::Batches::fingerprint`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// The adapter that last ran the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
    /// Names of the matrix and attention kernels of a step.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kernels: Vec<String>,
    /// The adapter's TFLOP/s, if they were measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_tflops: Option<f64>,
    /// Number of devices that last ran the run, if there were several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub devices: Option<usize>,
    /// Positions of the model, whose shape a recipe may give by name only.
    pub positions: usize,
    /// Vocabulary size of the model.
    pub vocab: usize,
    /// Blocks of the model.
    pub layers: usize,
    /// Attention heads of the model.
    pub heads: usize,
    /// Channels of the model.
    pub channels: usize,
}

/// The contents of `config.toml`: a run's settings and facts.
#[derive(Debug, Clone, PartialEq)]
pub struct RunFile {
    /// The settings.
    pub settings: Settings,
    /// The facts.
    pub record: Record,
}

#[derive(Serialize)]
struct Written<'a> {
    #[serde(flatten)]
    recipe: Recipe,
    record: &'a Record,
}

impl RunFile {
    /// Makes the file of a new run.
    #[must_use]
    pub fn new(settings: &Settings, data: Option<String>) -> Self {
        let Config { positions, vocab, layers, heads, channels } = settings.model.shape;
        let version = env!("CARGO_PKG_VERSION").into();
        let record = Record { version, data, positions, vocab, layers, heads, channels, ..Record::default() };
        Self { settings: settings.with_absolute_paths(), record }
    }

    /// Reads the file of the run in the folder `run`. Files of earlier versions are read too.
    ///
    /// # Errors
    /// [`Error::Data`] if it does not exist or is invalid.
    pub fn read(run: &Path) -> Result<Self> {
        let path = run.join(CONFIG);
        let wrong = |what: String| Error::data(Fault::at(path.display(), what));
        let text = open::no_follow(&path, OpenOptions::new().read(true)).and_then(|file| {
            let mut text = String::new();
            file.take(CONFIG_BYTES + 1).read_to_string(&mut text)?;
            if text.len() as u64 <= CONFIG_BYTES { Ok(text) } else { Err(io::ErrorKind::FileTooLarge.into()) }
        });
        let text = text.map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => {
                Error::data(Fault::at(run.display(), "holds no run").expected(format!("a folder with {CONFIG}")))
            }
            _ => wrong(format!("cannot be read ({e})")),
        })?;
        Self::parse(&text, run).map_err(|e| {
            if matches!(e, Error::Data(_)) {
                return e;
            }
            let fault = Fault::at(path.display(), format!("is not the configuration of a run ({e})"));
            Error::data(fault.expected("the file that `wgpt train` wrote"))
        })
    }

    /// Parses the file's text. `run` is the run's folder, which contains its own tokenizer if it has one.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the key; [`Error::Data`] if the run's own tokenizer is missing or cannot be used.
    pub fn parse(text: &str, run: &Path) -> Result<Self> {
        let table: Table = text.parse().map_err(|e: toml::de::Error| Error::usage(e.message()))?;
        let mut table = if old::is_old(&table) { old::converted(table) } else { table };
        // an old `restart` would discard the run at each resume
        if let Some(Value::Table(run)) = table.get_mut("run") {
            run.remove("restart");
        }
        let record = table.remove(RECORD).unwrap_or_else(|| Value::Table(Table::new()));
        let record: Record = record.try_into().map_err(|e| Error::usage(format!("[{RECORD}]: {}", e.message())))?;
        let Record { positions, vocab, layers, heads, channels, .. } = record;
        let shape = Config::new(positions, vocab, layers, heads, channels)?;
        let mut given = Layers::default();
        given.table(table, &|table, key| format!("{table}.{key}"))?;
        let mut recipe = given.merge()?.recipe;
        let kept = run.join(TOKENIZER);
        if recipe.data.tokenizer == Some(TokenizerName::Own) && !kept.is_dir() {
            let fault = Fault::at(kept.display(), "is missing").expected("the files of the run's own tokenizer");
            let model = run.join("model");
            return Err(Error::data(fault.advice(format!("try copying those of {} there", model.display()))));
        }
        recipe.data.tokenizer = recipe.data.tokenizer.map(|name| name.in_folder(&kept));
        let settings = recipe.resolve(InitWeights::AsGiven(shape))?;
        Ok(Self { settings, record })
    }

    /// Returns the file's text.
    ///
    /// # Errors
    /// [`Error::Output`] if a path cannot be written as text.
    pub fn to_toml(&self) -> Result<String> {
        let mut recipe = self.settings.recipe();
        recipe.data.tokenizer = recipe.data.tokenizer.map(TokenizerName::kept);
        let written = Written { recipe, record: &self.record };
        let text = toml::to_string(&written).map_err(|e| Error::output(Fault::at(CONFIG, e.to_string())))?;
        Ok(HEAD.to_owned() + &text)
    }

    /// Writes the file into a run's folder atomically.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub fn write(&self, run: &Path) -> Result<()> {
        let text = self.to_toml()?;
        atomic::write(&run.join(CONFIG), |out| out.write_all(text.as_bytes()))
    }

    /// Returns the peak TFLOP/s of all devices together, given or measured, if they are known.
    #[must_use]
    pub fn peak_tflops(&self) -> Option<f64> {
        let each = match self.settings.run.peak_tflops {
            Some(super::Peak::Given(tflops)) => Some(tflops),
            _ => self.record.peak_tflops,
        };
        each.map(|tflops| tflops * self.record.devices.unwrap_or(1) as f64)
    }
}
