//! Errors of the command line itself, each as one line: where, what, what is expected, and a flag that helps.

use std::path::Path;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use wgpt::error::Fault;

use super::foreign;

/// How alike two names must be, of 1, for one to be suggested for the other.
const NEAR: f64 = 0.85;

/// Returns true for an error that is help asked for by leaving out a subcommand.
pub fn is_help(error: &clap::Error) -> bool {
    !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
}

/// Describes an error of clap in the arguments `words`, which the program's name is no part of.
pub fn fault(error: &clap::Error, cli: &clap::Command, words: &[String]) -> Fault {
    let (command, path) = command_of(cli, words);
    let argument = text(error, ContextKind::InvalidArg);
    let place = argument.as_deref().map_or(path.clone(), flag_name);
    let value = text(error, ContextKind::InvalidValue).unwrap_or_default();
    let hint = || foreign::value(command, &place, &value).unwrap_or_default();
    match error.kind() {
        // as it came: a name of a stranger may have spaces and line ends
        ErrorKind::UnknownArgument => unknown(argument.as_deref().unwrap_or(&place), cli, command, &path, words),
        ErrorKind::InvalidSubcommand => {
            let word = text(error, ContextKind::InvalidSubcommand).unwrap_or_default();
            no_command(&word, command, &path)
        }
        ErrorKind::InvalidValue | ErrorKind::TooFewValues | ErrorKind::WrongNumberOfValues if value.is_empty() => {
            Fault::at(&place, "needs a value").expected(value_name(argument.as_deref().unwrap_or_default()))
        }
        ErrorKind::InvalidValue => {
            let fault = Fault::at(&place, format!("`{value}`"));
            let known = texts(error, ContextKind::ValidValue);
            let fault = if known.is_empty() { fault } else { fault.expected(format!("one of {}", known.join(", "))) };
            fault.advice(hint())
        }
        ErrorKind::ValueValidation => {
            // parsers of ours quote the value, those of clap do not
            let why = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
            let repeats = why.contains(&format!("`{value}`"));
            let what = if repeats { why } else { format!("`{value}`: {why}") };
            Fault::at(&place, what).advice(hint())
        }
        ErrorKind::TooManyValues => Fault::at(&place, format!("takes no value `{value}`")),
        ErrorKind::NoEquals => Fault::at(&place, "its value follows an `=`"),
        ErrorKind::ArgumentConflict => {
            let others = texts(error, ContextKind::PriorArg);
            let others: Vec<String> = others.iter().map(|other| flag_name(other)).collect();
            match others.is_empty() || others == [place.clone()] {
                true => Fault::at(&place, "is given twice"),
                false => Fault::at(&place, format!("contradicts {}", others.join(", "))).expected("one of them"),
            }
        }
        ErrorKind::MissingRequiredArgument => {
            let needed = texts(error, ContextKind::InvalidArg);
            missing(&needed, command, &path)
        }
        ErrorKind::InvalidUtf8 => Fault::at(&path, "an argument is not UTF-8"),
        _ => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            Fault::at(&path, line.trim_start_matches("error: "))
        }
    }
}

/// Describes a flag of llm.c that clap takes for one of wgpt: `-h 1` and `-v 250`.
pub fn taken_for_another(cli: &clap::Command, words: &[String]) -> Option<Fault> {
    let (command, _) = command_of(cli, words);
    let numbered = words.windows(2).find(|pair| {
        let next = pair[1].as_str();
        let is_number = !next.is_empty() && next.bytes().all(|byte| byte.is_ascii_digit());
        matches!(pair[0].as_str(), "-h" | "-v") && is_number && !Path::new(next).exists()
    })?;
    let advice = (command.get_name() == "train").then(|| foreign::advice(command, &numbered[0])).flatten()?;
    Some(Fault::at(&numbered[0], format!("takes no value `{}`", numbered[1])).advice(advice))
}

/// A flag or an argument that the command does not have.
fn unknown(place: &str, cli: &clap::Command, command: &clap::Command, path: &str, words: &[String]) -> Fault {
    if !place.starts_with('-') {
        return unexpected(place, command, path, words);
    }
    let typed = typed(place, words);
    let name = foreign::flag_name(&typed);
    let fault = Fault::at(&typed, format!("unknown flag of {path}"));
    if foreign::has(command, &name) {
        return fault.advice(format!("try --{name}"));
    }
    if let Some(advice) = foreign::advice(command, &typed) {
        return fault.advice(advice);
    }
    let longs = command.get_arguments().filter(|arg| !arg.is_hide_set()).filter_map(clap::Arg::get_long);
    if let Some(nearest) = nearest(&name, longs) {
        return fault.advice(format!("try --{nearest}"));
    }
    let others: Vec<String> =
        all(cli).into_iter().filter(|(_, c)| foreign::has(c, &name)).map(|(path, _)| path).collect();
    match others.as_slice() {
        [] => fault.advice(format!("`{path} --help` lists all")),
        [other] => fault.advice(format!("`{other}` has it")),
        many => fault.advice(format!("those that have it are {}", many.join(", "))),
    }
}

/// A word that is no flag, where the command takes none, or no more.
fn unexpected(word: &str, command: &clap::Command, path: &str, words: &[String]) -> Fault {
    let takes = command.get_positionals().map(|positional| value_name(&positional.to_string())).collect::<Vec<_>>();
    let fault = Fault::at(path, format!("unexpected argument `{word}`"));
    let advice = match command.get_name() {
        "generate" => "a prompt of several words needs quotes: wgpt generate --from MODEL 'TEXT'".to_owned(),
        "eval" => "the model is named by --from".to_owned(),
        "tune" | "profile" if wgpt::model::Config::from_descriptor(word).is_ok() => format!("try --model {word}"),
        "train" if words.iter().any(|other| other == "--data" || other == "--text") => {
            "repeat --text for several texts, and quote patterns for --data".to_owned()
        }
        _ => format!("`{path} --help` shows what it takes"),
    };
    match takes.as_slice() {
        [] => fault.expected("flags only").advice(advice),
        takes => fault.expected(format!("one {} at most", takes.join(" and one "))).advice(advice),
    }
}

fn no_command(word: &str, command: &clap::Command, path: &str) -> Fault {
    let names: Vec<&str> =
        command.get_subcommands().map(clap::Command::get_name).filter(|name| *name != "help").collect();
    let fault = Fault::at(path, format!("unknown command `{word}`"));
    match (foreign::command(word), nearest(&word.to_lowercase(), names.iter().copied())) {
        (Some(advice), _) => fault.advice(advice),
        (None, Some(nearest)) => fault.advice(format!("try `{path} {nearest}`")),
        (None, None) => fault.expected(format!("one of {}", names.join(", "))),
    }
}

/// Returns the name that is most like a word, if one is like it.
fn nearest<'n>(word: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let alike = |name: &str| strsim::jaro_winkler(word, name);
    names.max_by(|a, b| alike(a).total_cmp(&alike(b))).filter(|name| alike(name) > NEAR)
}

/// Arguments that the command needs and that are not given.
fn missing(needed: &[String], command: &clap::Command, path: &str) -> Fault {
    let flags: Vec<String> =
        needed.iter().map(|argument| argument.trim_end_matches("...").replace(['<', '>'], "")).collect();
    let needs = format!("needs {}", flags.join(" and "));
    let is = |name: &str| flags.iter().any(|flag| flag.starts_with(name));
    let (needs, advice) = match command.get_name() {
        "eval" if is("--data") && !is("--from") => {
            ("needs --data or --hellaswag".to_owned(), "such as --data fineweb10B or --hellaswag hellaswag")
        }
        _ if is("--from") => (needs, "such as --from runs/1"),
        "report" | "verify" => (needs, "such as runs/1"),
        "fetch" => (needs, "`wgpt data fetch --help` lists the names"),
        _ => (needs, ""),
    };
    Fault::at(path, needs).advice(advice)
}

/// Returns the command that the arguments name, and its words: `wgpt data prepare`.
fn command_of<'c>(cli: &'c clap::Command, words: &[String]) -> (&'c clap::Command, String) {
    let (mut command, mut path) = (cli, cli.get_name().to_owned());
    for word in words {
        if word.starts_with('-') {
            continue;
        }
        let Some(inner) = command.find_subcommand(word) else { break };
        command = inner;
        path = format!("{path} {word}");
    }
    (command, path)
}

/// All commands that do something, with their words.
fn all(cli: &clap::Command) -> Vec<(String, &clap::Command)> {
    let mut found = Vec::new();
    for command in cli.get_subcommands() {
        let path = format!("{} {}", cli.get_name(), command.get_name());
        found.extend(command.get_subcommands().map(|inner| (format!("{path} {}", inner.get_name()), inner)));
        found.push((path, command));
    }
    found
}

/// Returns the word that a flag is part of: `-sl`, of which clap reports `-s`. A value behind `=` is left out.
fn typed(flag: &str, words: &[String]) -> String {
    let is_short = !flag.starts_with("--");
    let found = words.iter().find(|word| is_short && word.starts_with(flag) && !word.starts_with("--"));
    let word = found.map_or(flag, String::as_str);
    word.split_once('=').map_or(word, |(name, _)| name).to_owned()
}

/// Returns the name in `--batch <N>`: `--batch`; of a positional its value's name.
fn flag_name(argument: &str) -> String {
    let name = argument.split_whitespace().next().unwrap_or_default();
    name.split_once('=').map_or(name, |(name, _)| name).trim_matches(['<', '>', '[', ']', '.']).to_owned()
}

/// Returns the name of the value in `--batch <N>`: `N`.
fn value_name(argument: &str) -> String {
    let value = argument.split_whitespace().last().unwrap_or_default();
    value.trim_matches(['<', '>', '[', ']', '.', '=']).to_owned()
}

fn text(error: &clap::Error, kind: ContextKind) -> Option<String> {
    texts(error, kind).into_iter().next()
}

fn texts(error: &clap::Error, kind: ContextKind) -> Vec<String> {
    match error.get(kind) {
        Some(ContextValue::String(text)) => vec![text.clone()],
        Some(ContextValue::Strings(texts)) => texts.clone(),
        Some(ContextValue::StyledStr(text)) => vec![text.to_string()],
        Some(ContextValue::StyledStrs(texts)) => texts.iter().map(ToString::to_string).collect(),
        _ => Vec::new(),
    }
}
