//! Settings from several sources, and the source of each value. Flags override `--set`, and `--set` overrides a recipe.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::LazyLock;

use clap::{ArgAction, Args as _};
use serde::Deserialize as _;
use toml::de::DeTable;
use toml::{Table, Value};

use super::file::{RECORD, TOKENIZER};
use super::old;
use super::recipe::{self, Recipe};
use crate::error::{Error, Fault, Result};
use crate::files::{bounded, open, shell};

/// Settings that cannot be given together.
const CONTRADICT: [(&str, &[&str]); 4] = [
    ("devices", &["device"]),
    ("text", &["data", "val", "data-format"]),
    ("model", &["layers", "heads", "channels", "vocab", "init"]),
    ("init", &["layers", "heads", "channels", "vocab"]),
];
/// Settings that need others.
const NEED: [(&str, &[&str]); 8] = [
    ("val", &["data"]),
    ("data-format", &["data"]),
    ("split-on", &["text"]),
    ("layers", &["heads", "channels"]),
    ("heads", &["layers", "channels"]),
    ("channels", &["layers", "heads"]),
    ("vocab", &["layers"]),
    ("hellaswag-every", &["hellaswag"]),
];

/// Flags of `wgpt train` that control the command and are not settings of the run, so recipes do not have them.
pub const COMMAND_FLAGS: [&str; 7] = ["restart", "resume", "set", "print-config", "dry-run", "mpi", "rank-timeout"];

/// A setting.
#[derive(Debug)]
pub struct Key {
    /// The flag without its dashes: `tokens-per-step`.
    pub name: String,
    /// The table in a recipe: `training`.
    pub table: String,
    /// Whether the flag may be repeated.
    repeats: bool,
}

/// All settings, by the tables of a recipe.
pub static KEYS: LazyLock<Vec<Key>> = LazyLock::new(|| {
    let tables = [
        ("data", recipe::Data::augment_args as fn(clap::Command) -> clap::Command),
        ("model", recipe::Model::augment_args),
        ("training", recipe::Training::augment_args),
        ("run", recipe::Run::augment_args),
    ];
    let keys = tables.into_iter().flat_map(|(table, augment)| {
        let command = augment(clap::Command::new("wgpt"));
        let key = |arg: &clap::Arg| Key {
            name: arg.get_long().unwrap_or_default().to_owned(),
            table: table.to_owned(),
            repeats: matches!(arg.get_action(), ArgAction::Append),
        };
        command.get_arguments().map(key).collect::<Vec<_>>()
    });
    keys.collect()
});

/// Source of a value, weakest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A file and the line, if it is known: `r.toml:6`.
    File(String),
    /// `--set`, as written: `training.lr`.
    Set(String),
    /// A flag.
    Flag,
}

impl Origin {
    /// Returns the strength of the source: the greater one wins.
    fn strength(&self) -> u8 {
        match self {
            Self::File(_) => 0,
            Self::Set(_) => 1,
            Self::Flag => 2,
        }
    }

    /// Names a setting by its source: `r.toml:6: layers`, `--set layers`, `--layers`.
    fn name(&self, key: &str) -> String {
        match self {
            Self::File(place) => format!("{place}: {key}"),
            Self::Set(written) => format!("--set {written}"),
            Self::Flag => format!("--{key}"),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(place) => f.write_str(place),
            Self::Set(written) => write!(f, "--set {written}"),
            Self::Flag => f.write_str("flag"),
        }
    }
}

/// A value and its source. There is no value if `--set KEY=` unset it.
#[derive(Debug)]
struct Given {
    value: Option<Value>,
    origin: Origin,
}

/// Largest recipe in bytes. A recipe that sets every key has a few kilobytes.
const RECIPE_BYTES: u64 = 1 << 20;

/// Values by key, as the sources added so far give them.
#[derive(Debug, Default)]
pub struct Layers(BTreeMap<&'static str, Given>);

/// Settings with their sources.
#[derive(Debug, Default)]
pub struct Merged {
    /// The settings.
    pub recipe: Recipe,
    /// Source of each given setting, by key.
    pub origins: BTreeMap<&'static str, Origin>,
    /// A notice for each value that was ignored because a stronger one contradicts it.
    pub notices: Vec<String>,
}

impl Layers {
    /// Adds a recipe. A run's `config.toml` is a recipe; its table `[record]` is skipped.
    ///
    /// # Errors
    /// [`Error::Data`] if it cannot be read; [`Error::Usage`] with the line if it is not a recipe.
    pub fn file(&mut self, path: &Path) -> Result<()> {
        let name = path.display().to_string();
        let text = bounded::read_text(path, RECIPE_BYTES, "a recipe").map_err(|e| {
            if let Some(fault) = open::refusal(&name, &e) {
                return Error::data(fault.expected("a TOML file of settings of `wgpt train`, or a run's folder"));
            }
            let (why, advice) = match e.kind() {
                std::io::ErrorKind::NotFound => ("no such recipe or run".into(), String::new()),
                std::io::ErrorKind::InvalidData => (
                    "is not a recipe: it is not text".to_owned(),
                    format!("to train on tokens: --data {}", shell::quoted(path)),
                ),
                _ => (format!("the recipe cannot be read ({e})"), String::new()),
            };
            let fault = Fault::at(&name, why).expected("a TOML file of settings of `wgpt train`, or a run's folder");
            Error::data(fault.advice(advice))
        })?;
        let line = |at: usize| format!("{name}:{}", text[..at.min(text.len())].matches('\n').count() + 1);
        let broken = |e: toml::de::Error| {
            let place = e.span().map_or_else(|| name.clone(), |span| line(span.start));
            let why = e.message().lines().collect::<Vec<_>>().join(" ");
            let fault = Fault::at(place, format!("is not TOML ({why})"));
            let is_toml = path.extension().is_some_and(|extension| extension == "toml");
            Error::usage(if is_toml {
                fault
            } else {
                fault.advice(format!("to train on a text: --text {}", shell::word(path)))
            })
        };
        let (spans, values) = (DeTable::parse(&text).map_err(broken)?, text.parse::<Table>().map_err(broken)?);
        let mut places = BTreeMap::new();
        for (key, value) in spans.get_ref() {
            places.insert((String::new(), key.get_ref().to_string()), line(key.span().start));
            for (inner, _) in value.get_ref().as_table().into_iter().flatten() {
                places.insert((key.get_ref().to_string(), inner.get_ref().to_string()), line(inner.span().start));
            }
        }
        let place = |table: &str, key: &str| {
            let known = places.get(&(table.to_owned(), key.to_owned()));
            known.cloned().unwrap_or_else(|| name.clone())
        };
        let mut values = if old::is_old(&values) { old::converted(values) } else { values };
        // a run's own tokenizer is in the folder of its configuration
        if let Some(name) = values.get_mut("data").and_then(|data| data.get_mut("tokenizer"))
            && name.as_str() == Some("own")
        {
            *name = Value::String(path.with_file_name(TOKENIZER).display().to_string());
        }
        self.table(values, &place)
    }

    /// Adds the tables of a recipe. `place` returns where a key of a table is written.
    ///
    /// # Errors
    /// [`Error::Usage`] with the place.
    pub fn table(&mut self, table: Table, place: &dyn Fn(&str, &str) -> String) -> Result<()> {
        for (name, value) in table {
            match value {
                Value::Table(_) if name == RECORD => {}
                Value::Table(inner) => {
                    if !KEYS.iter().any(|key| key.table == name) {
                        return Err(unknown_table(&place("", &name), &name));
                    }
                    for (key, value) in inner {
                        self.put(&key, value, place(&name, &key))?;
                    }
                }
                value => self.put(&name, value, place("", &name))?,
            }
        }
        Ok(())
    }

    fn put(&mut self, written: &str, value: Value, place: String) -> Result<()> {
        let key = find(written, &place)?;
        if value.as_array().is_some_and(Vec::is_empty) {
            return Ok(());
        }
        let value = match value {
            value if key.repeats && !value.is_array() => Value::Array(vec![value]),
            value => value,
        };
        check(key, &value, &place)?;
        let given = Given { value: Some(value), origin: Origin::File(place.clone()) };
        match self.0.insert(&key.name, given) {
            Some(Given { origin: Origin::File(other), .. }) => {
                // a table's keys come in alphabetical order, not in file order
                let line = |place: &str| place.rsplit(':').next().and_then(|line| line.parse::<usize>().ok());
                let (first, second) = if line(&other) <= line(&place) { (other, place) } else { (place, other) };
                let fault = Fault::at(second, format!("duplicate key `{written}`"));
                Err(Error::usage(fault.advice(format!("first set at {first}"))))
            }
            _ => Ok(()),
        }
    }

    /// Adds one `KEY=VALUE` of `--set`, with the spelling of the flag's value. An empty value unsets the setting. The
    /// last of several wins, except for settings that may be repeated.
    ///
    /// # Errors
    /// [`Error::Usage`].
    pub fn set(&mut self, text: &str) -> Result<()> {
        let Some((written, value)) = text.split_once('=') else {
            let fault = Fault::at("--set", format!("`{text}` has no `=`"));
            return Err(Error::usage(fault.expected("KEY=VALUE, such as lr=3e-4")));
        };
        let (written, value) = (written.trim(), value.trim());
        let place = format!("--set {written}");
        let bare = written.split_once('.').filter(|(table, _)| KEYS.iter().any(|key| key.table == *table));
        let key = find(bare.map_or(written, |(_, key)| key), &place)?;
        let origin = Origin::Set(written.to_owned());
        if value.is_empty() {
            self.0.insert(&key.name, Given { value: None, origin });
            return Ok(());
        }
        let mut value = match toml_value(value) {
            Some(value) => check(key, &value, &place).map(|()| value)?,
            None => read_flag(key, value, &place)?,
        };
        if key.repeats && !value.is_array() {
            value = Value::Array(vec![value]);
        }
        if let (Some(Given { value: Some(Value::Array(before)), origin: Origin::Set(_) }), Value::Array(more)) =
            (self.0.get(key.name.as_str()), &mut value)
        {
            more.splice(0..0, before.iter().cloned());
        }
        self.0.insert(&key.name, Given { value: Some(value), origin });
        Ok(())
    }

    /// Adds the flags of a command line.
    ///
    /// # Errors
    /// [`Error::Usage`] for a path that is not UTF-8.
    pub fn flags(&mut self, given: &Recipe) -> Result<()> {
        for (key, value) in values_of(given)? {
            self.0.insert(key, Given { value: Some(value), origin: Origin::Flag });
        }
        Ok(())
    }

    /// Resolves contradictions: the weaker value is ignored.
    ///
    /// # Errors
    /// [`Error::Usage`] if one source contradicts itself, or a setting lacks another that it needs.
    pub fn merge(mut self) -> Result<Merged> {
        let mut notices = Vec::new();
        for (one, others) in CONTRADICT {
            for other in others {
                self.settle(one, other, &mut notices)?;
            }
        }
        // a limit in tokens overrides a number of batches, unless a stronger source gave the latter
        if let (Some(limit), Some(steps)) = (self.given("val-limit"), self.given("val-steps"))
            && steps.origin.strength() > limit.origin.strength()
        {
            self.settle("val-limit", "val-steps", &mut notices)?;
        }
        for (key, needed) in NEED {
            self.need(key, needed, &mut notices)?;
        }
        let values = self.0.iter().filter_map(|(key, given)| Some((*key, given.value.clone()?)));
        let recipe = recipe_of(values).map_err(|why| Error::usage(Fault::at("settings", why)))?;
        Ok(Merged { recipe, origins: self.0.into_iter().map(|(key, given)| (key, given.origin)).collect(), notices })
    }

    /// Removes a setting that needs others which `--set KEY=` has unset.
    fn need(&mut self, key: &'static str, needed: &[&str], notices: &mut Vec<String>) -> Result<()> {
        let Some(given) = self.given(key) else { return Ok(()) };
        let missing: Vec<&&str> = needed.iter().filter(|other| self.given(other).is_none()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let taken_back =
            |other: &&&str| self.0.get(**other).is_some_and(|taken| taken.origin.strength() > given.origin.strength());
        if !missing.iter().all(taken_back) {
            let list: Vec<String> = missing.iter().map(|other| format!("--{other}")).collect();
            let fault = Fault::at(given.origin.name(key), format!("needs {}", list.join(" and ")));
            return Err(Error::usage(fault));
        }
        notices.push(format!("{} is ignored without {}", given.origin.name(key), missing[0]));
        self.0.remove(key);
        Ok(())
    }

    fn given(&self, key: &str) -> Option<&Given> {
        self.0.get(key).filter(|given| given.value.is_some())
    }

    /// Removes the weaker of two values that contradict each other.
    fn settle(&mut self, one: &'static str, other: &'static str, notices: &mut Vec<String>) -> Result<()> {
        let (Some(a), Some(b)) = (self.given(one), self.given(other)) else { return Ok(()) };
        let (weak, strong) = match a.origin.strength().cmp(&b.origin.strength()) {
            std::cmp::Ordering::Less => ((one, a), (other, b)),
            std::cmp::Ordering::Greater => ((other, b), (one, a)),
            std::cmp::Ordering::Equal => {
                let fault = Fault::at(a.origin.name(one), format!("contradicts {}", b.origin.name(other)));
                return Err(Error::usage(fault.expected("one of them")));
            }
        };
        let (weaker, names) = (weak.0, [weak, strong].map(|(key, given)| given.origin.name(key)));
        notices.push(names.join(" is overridden by "));
        self.0.remove(weaker);
        Ok(())
    }
}

/// Returns the setting of a key. `_` and `-` are equivalent.
fn find(written: &str, place: &str) -> Result<&'static Key> {
    let name = written.replace('_', "-");
    KEYS.iter().find(|key| key.name == name).ok_or_else(|| {
        let fault = Fault::at(place, format!("unknown key `{written}`"));
        if COMMAND_FLAGS.contains(&name.as_str()) {
            return Error::usage(fault.expected("a setting").advice(format!("try --{name} on the command line")));
        }
        let nearest = nearest(&name, KEYS.iter().map(|key| key.name.as_str()));
        let fault = fault.expected("a long flag of `wgpt train` without dashes");
        Error::usage(fault.advice(format!("the nearest is `{nearest}`")))
    })
}

fn unknown_table(place: &str, name: &str) -> Error {
    let mut tables: Vec<&str> = KEYS.iter().map(|key| key.table.as_str()).collect();
    tables.dedup();
    let fault = Fault::at(place, format!("unknown table `{name}`")).expected(format!("one of {}", tables.join(", ")));
    Error::usage(fault.advice(format!("the nearest is `{}`", nearest(name, tables.into_iter()))))
}

fn nearest<'a>(word: &str, words: impl Iterator<Item = &'a str>) -> &'a str {
    let near = |other: &&str| (1e6 * strsim::jaro_winkler(word, other)) as u64;
    words.max_by_key(near).unwrap_or_default()
}

/// Checks one value by parsing a recipe that contains nothing else.
fn check(key: &'static Key, value: &Value, place: &str) -> Result<()> {
    let one = [(key.name.as_str(), value.clone())].into_iter();
    recipe_of(one).map(drop).map_err(|why| Error::usage(Fault::at(place, format!("`{}`: {why}", key.name))))
}

/// Parses a list or a quoted string as TOML.
fn toml_value(text: &str) -> Option<Value> {
    let written = text.starts_with(['[', '"']).then(|| format!("value = {text}").parse::<Table>().ok())??;
    written.get("value").cloned()
}

/// Parses a value as the command line does.
fn read_flag(key: &'static Key, value: &str, place: &str) -> Result<Value> {
    let command = Recipe::augment_args(clap::Command::new("wgpt").no_binary_name(true));
    let wrong = |e: clap::Error| {
        let text = e.to_string();
        // the last part of clap's `error: invalid value 'x' for '--y <Y>': why`
        let line = text.trim_start_matches("error: ").lines().next().unwrap_or_default().to_owned();
        let why = line.split_once("': ").map_or(line.as_str(), |(_, why)| why);
        Error::usage(Fault::at(place, why))
    };
    let matches = command.try_get_matches_from([format!("--{}={value}", key.name)]).map_err(wrong)?;
    let given = <Recipe as clap::FromArgMatches>::from_arg_matches(&matches).map_err(wrong)?;
    let found = values_of(&given)?.into_iter().find(|(name, _)| *name == key.name);
    found.map(|(_, value)| value).ok_or_else(|| Error::usage(Fault::at(place, "has no value")))
}

/// Returns the values in a recipe, by key.
///
/// # Errors
/// [`Error::Usage`] for a path that is not UTF-8.
pub fn values_of(recipe: &Recipe) -> Result<Vec<(&'static str, Value)>> {
    let table = Table::try_from(recipe).map_err(|e| Error::usage(Fault::at("settings", e.to_string())))?;
    let mut values: BTreeMap<String, Value> = BTreeMap::new();
    for (_, inner) in table {
        values.extend(inner.try_into::<Table>().unwrap_or_default());
    }
    Ok(KEYS.iter().filter_map(|key| Some((key.name.as_str(), values.remove(&key.name)?))).collect())
}

/// Makes a recipe of values by key.
fn recipe_of<'a>(values: impl Iterator<Item = (&'a str, Value)>) -> Result<Recipe, String> {
    let mut tables = Table::new();
    for (name, value) in values {
        let Some(key) = KEYS.iter().find(|key| key.name == name) else { continue };
        let table = tables.entry(key.table.clone()).or_insert_with(|| Value::Table(Table::new()));
        if let Value::Table(table) = table {
            table.insert(name.to_owned(), value);
        }
    }
    Recipe::deserialize(tables).map_err(|e| e.message().lines().collect::<Vec<_>>().join(" "))
}
