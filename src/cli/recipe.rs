//! Recipes: TOML files that hold flags of `wgpt train`, and where each value of a run comes from.
//!
//! What a recipe and `--set` hold becomes flags in front of the command line's own, so that one parser checks all.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, Command, error::ErrorKind};
use toml::de::{DeTable, DeValue};

use wgpt::error::{Error, Result};

/// Arguments of `wgpt train` that no recipe holds: they say what to do with one.
pub const NOT_IN_RECIPES: [&str; 7] = ["recipe", "set", "print_config", "dry_run", "help", "version", "verbose"];
/// Tables that keys may stand in: the headings of `wgpt train --help`.
const TABLES: [&str; 4] = ["data", "model", "training", "run"];

/// A command line with its recipe's flags in it.
pub struct Expanded {
    /// The arguments.
    pub args: Vec<OsString>,
    /// Where values that are no flags of the user's come from, by the argument's name.
    pub origins: BTreeMap<String, String>,
    /// What was left out because a stronger source contradicts it, as a sentence each.
    pub aside: Vec<String>,
}

/// One value of a recipe or of `--set`.
struct Entry {
    /// The argument's name in clap.
    id: String,
    /// Without the dashes.
    flag: String,
    /// More than one for flags that may be repeated; none for a switch that stays off.
    values: Vec<Option<String>>,
    /// Where it stands, for errors.
    place: String,
    /// True for `--set`, which is stronger than a file.
    set: bool,
}

/// Puts the flags of a recipe and of `--set` into a command line; one without either comes back as it is.
///
/// # Errors
/// [`Error::Data`] if the recipe cannot be read; [`Error::Usage`] with its line if it holds what no flag takes.
pub fn expand(command: &Command, args: Vec<OsString>) -> Result<Expanded> {
    let plain = |args| Ok(Expanded { args, origins: BTreeMap::new(), aside: Vec::new() });
    let mut command = command.clone();
    command.build();
    // what a recipe completes is not complete yet
    let lenient = command.clone().ignore_errors(true).try_get_matches_from(&args);
    let (Some(train), Ok(matches)) = (command.find_subcommand("train"), lenient) else { return plain(args) };
    let Some(("train", matches)) = matches.subcommand() else { return plain(args) };
    let recipe = matches.try_get_one::<PathBuf>("recipe").ok().flatten();
    let sets = matches.try_get_many::<String>("set").ok().flatten();
    let sets: Vec<&String> = sets.into_iter().flatten().collect();
    let Some(at) = args.iter().position(|arg| arg == "train") else { return plain(args) };
    if recipe.is_none() && sets.is_empty() {
        return plain(args);
    }
    let mut entries = recipe.map_or_else(|| Ok(Vec::new()), |path| read(train, path))?;
    set(train, &sets, &mut entries)?;
    let flags: Vec<String> = train
        .get_arguments()
        .map(|arg| arg.get_id().to_string())
        .filter(|id| matches.try_contains_id(id).unwrap_or(false))
        .filter(|id| matches.value_source(id) == Some(ValueSource::CommandLine))
        .collect();
    merge(train, entries, &flags, args, at + 1)
}

/// Sorts out what stronger sources replace or contradict, and puts the rest at `at`.
fn merge(
    train: &Command,
    entries: Vec<Entry>,
    flags: &[String],
    mut args: Vec<OsString>,
    at: usize,
) -> Result<Expanded> {
    let (mut origins, mut aside, mut more) = (BTreeMap::new(), Vec::new(), Vec::new());
    // those that a value has to give way to: flags, and of --set what is not itself
    let stronger = |entry: &Entry| -> Vec<(String, String)> {
        let sets = entries.iter().filter(|other| other.set && !entry.set);
        let sets = sets.map(|other| (other.id.clone(), format!("--set {}", other.flag)));
        flags.iter().map(|id| (id.clone(), format!("--{}", id.replace('_', "-")))).chain(sets).collect()
    };
    for entry in &entries {
        let over = stronger(entry);
        if over.iter().any(|(id, _)| *id == entry.id) {
            continue;
        }
        if let Some((_, name)) = over.iter().find(|(id, _)| contradict(train, id, &entry.id)) {
            aside.push(format!("{}: {} gives way to {name}", entry.place, entry.flag));
            continue;
        }
        for value in &entry.values {
            let text = value.as_ref().map_or(format!("--{}", entry.flag), |value| format!("--{}={value}", entry.flag));
            check(train, &text, &entry.place)?;
            more.push(OsString::from(text));
        }
        origins.insert(entry.id.clone(), entry.place.clone());
    }
    args.splice(at..at, more);
    Ok(Expanded { args, origins, aside })
}

/// True if two arguments may not be given together.
fn contradict(train: &Command, a: &str, b: &str) -> bool {
    let find = |id: &str| train.get_arguments().find(|arg| arg.get_id() == id);
    let names = |a: &Arg, b: &str| train.get_arg_conflicts_with(a).iter().any(|arg| arg.get_id() == b);
    match (find(a), find(b)) {
        (Some(one), Some(other)) => names(one, b) || names(other, a),
        _ => false,
    }
}

/// That the parser takes this one flag, whatever it says of those it comes with.
fn check(train: &Command, flag: &str, place: &str) -> Result<()> {
    let Err(error) = train.clone().no_binary_name(true).try_get_matches_from([flag]) else { return Ok(()) };
    if matches!(error.kind(), ErrorKind::MissingRequiredArgument | ErrorKind::ArgumentConflict) {
        return Ok(());
    }
    let text = error.to_string();
    let lines = text.trim_start_matches("error: ").lines().take_while(|line| !line.is_empty()).map(str::trim);
    Err(Error::usage(format!("{place}: {}", lines.collect::<Vec<_>>().join(" "))))
}

/// The arguments that a recipe may hold.
fn known(train: &Command) -> impl Iterator<Item = &Arg> {
    train.get_arguments().filter(|arg| arg.get_long().is_some() && !NOT_IN_RECIPES.contains(&arg.get_id().as_str()))
}

/// The argument of a key, written with `-` or `_`.
fn find<'a>(train: &'a Command, key: &str, place: &str) -> Result<&'a Arg> {
    let flag = key.replace('_', "-");
    known(train).find(|arg| arg.get_long() == Some(&flag)).ok_or_else(|| {
        let nearest = nearest(&flag, known(train).filter_map(Arg::get_long));
        Error::usage(format!(
            "{place}: unknown key `{key}`, expected a long flag of `wgpt train` without its dashes; the nearest is `{nearest}`"
        ))
    })
}

fn nearest<'a>(word: &str, words: impl Iterator<Item = &'a str>) -> &'a str {
    let near = |other: &&str| (1e6 * strsim::jaro_winkler(word, other)) as u64;
    words.max_by_key(near).unwrap_or_default()
}

/// Reads a recipe.
fn read(train: &Command, path: &Path) -> Result<Vec<Entry>> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|e| {
        Error::data(format!("{name}: the recipe cannot be read ({e}), expected a TOML file of flags of `wgpt train`"))
    })?;
    let place = |at: usize| format!("{name}:{}", text[..at.min(text.len())].matches('\n').count() + 1);
    let table = DeTable::parse(&text).map_err(|e| {
        let line = e.span().map_or(name.clone(), |span| place(span.start));
        Error::usage(format!("{line}: is not TOML ({})", e.message().lines().collect::<Vec<_>>().join(" ")))
    })?;
    let mut entries: Vec<Entry> = Vec::new();
    let mut add = |key: &str, value: &DeValue, at: String| -> Result<()> {
        let entry = entry(find(train, key, &at)?, key, value, at)?;
        if let Some(twin) = entries.iter().find(|other| other.id == entry.id) {
            return Err(Error::usage(format!("{}: `{key}` stands in {} already", entry.place, twin.place)));
        }
        entries.push(entry);
        Ok(())
    };
    for (key, value) in table.get_ref() {
        let at = place(key.span().start);
        let Some(inner) = value.get_ref().as_table() else {
            add(key.get_ref(), value.get_ref(), at)?;
            continue;
        };
        if !TABLES.contains(&key.get_ref().as_ref()) {
            let (name, nearest) = (key.get_ref(), nearest(key.get_ref(), TABLES.into_iter()));
            return Err(Error::usage(format!(
                "{at}: unknown table `{name}`, expected one of {}; the nearest is `{nearest}`",
                TABLES.join(", ")
            )));
        }
        for (key, value) in inner {
            add(key.get_ref(), value.get_ref(), place(key.span().start))?;
        }
    }
    // as written, so that what is printed can be found
    entries.sort_by_key(|entry| entry.place.rsplit(':').next().and_then(|line| line.parse::<usize>().ok()));
    Ok(entries)
}

/// A key's value as a flag's.
fn entry(arg: &Arg, key: &str, value: &DeValue, place: String) -> Result<Entry> {
    let wrong = |expected: &str, found: &DeValue| {
        Err(Error::usage(format!("{place}: `{key}` is {}, expected {expected}", found.type_str())))
    };
    let scalar = |value: &DeValue| match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str().to_owned()),
        DeValue::Integer(number) => {
            i64::from_str_radix(number.as_str(), number.radix()).ok().map(|number| number.to_string())
        }
        _ => None,
    };
    let switch = matches!(arg.get_action(), ArgAction::SetTrue);
    let values = match (value, switch) {
        (DeValue::Boolean(on), true) => {
            if *on {
                vec![None]
            } else {
                Vec::new()
            }
        }
        (other, true) => return wrong("true or false", other),
        (DeValue::Array(list), _) if matches!(arg.get_action(), ArgAction::Append) => {
            match list.iter().map(|value| scalar(value.get_ref())).collect::<Option<Vec<String>>>() {
                Some(values) => values.into_iter().map(Some).collect(),
                None => return wrong("a list of strings or numbers", value),
            }
        }
        (other, _) => match scalar(other) {
            Some(value) => vec![Some(value)],
            None => return wrong("a string or a number", other),
        },
    };
    Ok(Entry { id: arg.get_id().to_string(), flag: long(arg), values, place, set: false })
}

fn long(arg: &Arg) -> String {
    arg.get_long().unwrap_or_default().to_owned()
}

/// Adds the values of `--set`: of one given twice the last counts, but for flags that may be repeated; an
/// empty one stands for nothing.
fn set(train: &Command, sets: &[&String], entries: &mut Vec<Entry>) -> Result<()> {
    for text in sets {
        let Some((key, value)) = text.split_once('=') else {
            return Err(Error::usage(format!("--set: `{text}` has no `=`, expected KEY=VALUE, such as lr=3e-4")));
        };
        let place = format!("--set {}", key.trim());
        let key = key.trim();
        let bare = key.split_once('.').filter(|(table, _)| TABLES.contains(table)).map_or(key, |(_, key)| key);
        let arg = find(train, bare, &place)?;
        let value = match (arg.get_action(), value.trim()) {
            (ArgAction::SetTrue, "true") => vec![None],
            (ArgAction::SetTrue, "false") => Vec::new(),
            (ArgAction::SetTrue, other) => {
                return Err(Error::usage(format!("{place}: `{other}`, expected true or false")));
            }
            // as if it were not given
            (_, "") => Vec::new(),
            (_, value) => vec![Some(value.to_owned())],
        };
        let (id, repeats) = (arg.get_id().to_string(), matches!(arg.get_action(), ArgAction::Append));
        match entries.iter_mut().find(|entry| entry.set && entry.id == id) {
            Some(entry) if repeats => entry.values.extend(value),
            Some(entry) => entry.values = value,
            None => entries.push(Entry { id, flag: long(arg), values: value, place, set: true }),
        }
    }
    Ok(())
}
