//! `config.toml` of a run: a recipe of the run with every value in it, and a table of facts that recipes skip.

use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::path::Path;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::layers::Layers;
use super::recipe::Recipe;
use super::resolve::Start;
use super::{Settings, old};
use crate::data::TokenizerName;
use crate::error::{Error, Fault, Result};
use crate::files::{atomic, open};
use crate::model::Config;

/// The file's name in a run's folder.
pub const CONFIG: &str = "config.toml";
/// The largest such file that is read.
const CONFIG_BYTES: u64 = 1 << 20;
/// The folder in a run's folder that holds the files of a tokenizer of its own.
pub const TOKENIZER: &str = "tokenizer";
/// The table of facts.
pub const RECORD: &str = "record";

const HEAD: &str =
    "# A run of wgpt, and a recipe of it: `wgpt train THIS_FILE` begins the same run in a folder of its own,
# `wgpt train THIS_FOLDER` resumes it. Recipes skip the table [record].

";

/// Facts of a run that are no settings.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Record {
    /// The version of the program that wrote it.
    pub version: String,
    /// True once the run has come to its end.
    pub finished: bool,
    /// The run's random id, 32 hexadecimal digits; none in a run that an earlier version began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// [`crate::data::Batches::fingerprint`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// The adapter that the run was last made on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
    /// Names of the matrix and attention kernels of a step.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kernels: Vec<String>,
    /// The adapter's TFLOP/s, if they were measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_tflops: Option<f64>,
    /// Number of devices that the run was last made on, if there were several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub devices: Option<usize>,
    /// The model's shape, which a recipe may only name.
    pub positions: usize,
    /// See above.
    pub vocab: usize,
    /// See above.
    pub layers: usize,
    /// See above.
    pub heads: usize,
    /// See above.
    pub channels: usize,
}

/// A run's settings and facts.
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
    /// The file of a run that begins.
    #[must_use]
    pub fn new(settings: &Settings, data: Option<String>) -> Self {
        let Config { positions, vocab, layers, heads, channels } = settings.model.shape;
        let version = env!("CARGO_PKG_VERSION").into();
        let record = Record { version, data, positions, vocab, layers, heads, channels, ..Record::default() };
        Self { settings: settings.with_absolute_paths(), record }
    }

    /// Reads the file of the run in `run`, also one that an earlier version wrote.
    ///
    /// # Errors
    /// [`Error::Data`] if there is none, or it is broken.
    pub fn read(run: &Path) -> Result<Self> {
        let path = run.join(CONFIG);
        let wrong = |what: String| Error::data(Fault::at(path.display(), what));
        let text = open::own(&path, OpenOptions::new().read(true)).and_then(|file| {
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
            let fault = Fault::at(path.display(), format!("is not a run's configuration ({e})"));
            Error::data(fault.expected("the file that `wgpt train` wrote"))
        })
    }

    /// Reads the file's text; `run` is the folder whose tokenizer a run's own is.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the key; [`Error::Data`] if a tokenizer of its own is missing or cannot be used.
    pub fn parse(text: &str, run: &Path) -> Result<Self> {
        let table: Table = text.parse().map_err(|e: toml::de::Error| Error::usage(e.message()))?;
        let mut table = if old::is_old(&table) { old::converted(table) } else { table };
        // once asked for, it would throw the run away at each resume
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
        let settings = recipe.resolve(Start::AsGiven(shape))?;
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

    /// Writes the file into a run's folder, as a whole or not at all.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub fn write(&self, run: &Path) -> Result<()> {
        let text = self.to_toml()?;
        atomic::write(&run.join(CONFIG), |out| out.write_all(text.as_bytes()))
    }

    /// Returns the TFLOP/s of all devices together, each one's given or measured, if they are known.
    #[must_use]
    pub fn peak_tflops(&self) -> Option<f64> {
        let each = match self.settings.run.peak_tflops {
            Some(super::Peak::Given(tflops)) => Some(tflops),
            _ => self.record.peak_tflops,
        };
        each.map(|tflops| tflops * self.record.devices.unwrap_or(1) as f64)
    }
}
