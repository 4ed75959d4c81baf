//! Settings that a command line asks for: a recipe or a run, `--set`, flags.

use std::path::{Path, PathBuf};

use wgpt::data::{ModelTokenizer, token_names};
use wgpt::error::{Error, Fault, Result};
use wgpt::files::shell;
use wgpt::formats::weights::known_config;
use wgpt::model::Config;
use wgpt::run::folder;
use wgpt::train::Settings;
use wgpt::train::collective::mpi::World;
use wgpt::train::settings::file::CONFIG;
use wgpt::train::settings::layers::{Layers, Merged};
use wgpt::train::settings::resolve::{InitWeights, KnownWeights};
use wgpt::train::settings::{Precision, Recipe, RunFile, same_path};

use super::Args;

/// The settings, and the folder that they are for.
#[derive(Debug)]
pub struct Asked {
    /// The settings and their sources.
    pub merged: Merged,
    /// The run's folder; without one it is the next free `runs/N`.
    pub out: Option<PathBuf>,
    /// The run that the folder holds and that may be resumed.
    pub there: Option<RunFile>,
    /// Whether the command line names the folder.
    pub names_folder: bool,
}

impl Args {
    /// Reads the recipe, or the run that is resumed; `--set` and flags win over it.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the flag or the line; [`Error::Data`] if the recipe or the run cannot be read.
    pub fn ask(&self) -> Result<Asked> {
        let mut given = self.given.clone();
        let recipe = self.recipe_in(&mut given)?;
        let resumed = self.resume.as_deref().map(run_of);
        let resumed = resumed.or_else(|| recipe.as_deref().filter(|path| path.is_dir()));
        let mut layers = Layers::default();
        if let Some(dir) = resumed {
            let file = open_run(dir)?;
            let place = dir.join(CONFIG).display().to_string();
            let table = toml::Table::try_from(file.settings.recipe());
            let table = table.map_err(|e| Error::data(Fault::at(&place, e.to_string())))?;
            layers.table(table, &|_, _| place.clone())?;
        } else if let Some(recipe) = &recipe {
            layers.file(recipe).map_err(|error| with_hint(recipe, error))?;
        }
        self.set.iter().try_for_each(|text| layers.set(text))?;
        layers.flags(&given)?;
        let merged = layers.merge()?;
        if let (Some(dir), Some(out)) = (resumed, &merged.recipe.run.out) {
            let fault = Fault::at("--out", format!("{}, while {} is resumed", out.display(), dir.display()));
            return Err(Error::usage(fault.expected("one folder")));
        }
        let out = resumed.map(Path::to_owned).or_else(|| merged.recipe.run.out.clone()).map(|out| folder_of(&out));
        let there = out.as_deref().filter(|_| !self.restart).and_then(|out| RunFile::read(out).ok());
        let names_folder = resumed.is_some() || self.given.run.out.is_some();
        Ok(Asked { merged, out, there, names_folder })
    }

    /// Returns the recipe or run of the command line. After `--data` and `--val`, which take several files, it is
    /// parsed as one of these, and is removed from them.
    fn recipe_in(&self, given: &mut Recipe) -> Result<Option<PathBuf>> {
        let mut found: Vec<PathBuf> = self.recipe.iter().cloned().collect();
        for list in [&mut given.data.data, &mut given.data.val] {
            if list.iter().any(|path| !is_recipe(path)) {
                found.extend(list.extract_if(.., |path| is_recipe(path)));
            }
        }
        if found.len() + usize::from(self.resume.is_some()) > 1 {
            let names: Vec<String> = self.resume.iter().chain(&found).map(|path| path.display().to_string()).collect();
            let fault = Fault::at("train", "several recipes or runs").expected("one").found(names.join(", "));
            return Err(Error::usage(fault));
        }
        Ok(found.pop())
    }
}

/// Adds the flag that a name belongs to, or the runs that exist, to the error of a recipe that does not.
fn with_hint(recipe: &Path, error: Error) -> Error {
    if recipe.exists() {
        return error;
    }
    let name = recipe.to_str().unwrap_or_default();
    let is_text = recipe.extension().is_some_and(|ending| ending == "txt" || ending == "md");
    error.with_advice(if Config::from_descriptor(name).is_ok() {
        format!("for the model: --model {name}")
    } else if known_config(name).is_some() {
        format!("for its weights: --init {name}")
    } else if token_names::named_set(recipe).is_some_and(|set| set.has_shards()) {
        format!("for the data: --data {name} --val {name}")
    } else if is_text {
        format!("for a text: --text {}", shell::word(recipe))
    } else {
        folder::siblings(recipe).unwrap_or_default()
    })
}

/// Returns whether a path has the name of a recipe, or is the folder of a run.
fn is_recipe(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "toml") || folder::is_run(path)
}

impl Asked {
    /// Returns the settings as given.
    pub fn recipe(&self) -> &Recipe {
        &self.merged.recipe
    }

    /// Gives all processes the run in the first one's folder: on other machines it may be missing or old.
    pub fn share_run(&mut self, world: &World) -> Result<()> {
        let out = self.out.clone().unwrap_or_default();
        let text = self.there.as_ref().and_then(|_| std::fs::read_to_string(out.join(CONFIG)).ok());
        let text = world.broadcast(world.is_first().then(|| text.unwrap_or_default()).as_deref().map(str::as_bytes))?;
        if !world.is_first() {
            self.there = RunFile::parse(&String::from_utf8_lossy(&text), &out).ok().filter(|_| !text.is_empty());
        }
        Ok(())
    }

    /// Returns the precision as given.
    pub fn precision(&self) -> Precision {
        self.recipe().training.precision.unwrap_or(Precision::Auto)
    }

    /// Returns shape and tokenizer of the weights that the run in the folder began with, if it has a checkpoint: the
    /// weights themselves may be gone.
    pub fn known_start(&self) -> Option<InitWeights> {
        let (there, out) = (&self.there.as_ref()?.settings, self.out.as_ref()?);
        let init = self.recipe().model.init.as_ref()?;
        let same = there.model.init.as_ref().is_some_and(|theirs| same_path(theirs, init));
        let same = same && folder::checkpoints(out) > 0;
        same.then(|| first_weights(there, out))
    }
}

/// Returns shape and tokenizer of the weights that a run began with, by the settings in its folder.
pub fn first_weights(run: &Settings, out: &Path) -> InitWeights {
    let unknown = || ModelTokenizer::Unknown("the run was made without a tokenizer".into());
    let tokenizer = run.data.tokenizer.clone().map_or_else(unknown, ModelTokenizer::Known);
    InitWeights::Weights(KnownWeights { place: out.display().to_string(), shape: run.config(), tokenizer })
}

/// Returns the folder of a run for the path of its `config.toml`; other paths unchanged.
fn run_of(path: &Path) -> &Path {
    let named = path.file_name().is_some_and(|name| name == CONFIG) && path.is_file();
    path.parent().filter(|_| named).unwrap_or(path)
}

/// Reads the run in a folder.
fn open_run(dir: &Path) -> Result<RunFile> {
    if dir.is_file() {
        let fault = Fault::at(dir.display(), "is a file").expected("the folder of a run");
        return Err(Error::data(fault));
    }
    if dir.exists() {
        return RunFile::read(dir);
    }
    let there = folder::siblings(dir).or_else(|| folder::siblings("runs/0".as_ref()));
    Err(Error::data(Fault::at(dir.display(), "no such run").advice(there.unwrap_or_default())))
}

/// Returns a folder's name without the slash that a shell's completion adds, which would put DIR.N inside DIR. Of a
/// link it returns the target.
fn folder_of(out: &Path) -> PathBuf {
    let plain: PathBuf = out.components().collect();
    let is_link = plain.symlink_metadata().is_ok_and(|meta| meta.is_symlink());
    if is_link { plain.canonicalize().unwrap_or(plain) } else { plain }
}
