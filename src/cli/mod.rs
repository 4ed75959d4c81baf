//! The command line: parses, prints the configuration, calls. No logic.

mod allocator;
mod convert;
mod data;
mod devices;
mod dry_run;
mod eval;
mod generate;
mod invocation;
mod model;
mod nodes;
mod plan;
mod precision;
mod predicted;
mod profile;
mod ranks;
mod report;
mod shader;
mod shape;
mod signals;
mod stdout;
mod terminal;
mod text;
mod train;
mod tune;
mod values;
mod verify;

use std::io::{ErrorKind, Write as _};
use std::process::ExitCode;

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use wgpt::data::token_format::LOOKS_LIKE_TEXT;
use wgpt::error::Error;
use wgpt::files::{shell, visible};
use wgpt::measure::plan::SMALLER;
use wgpt::train::settings::Precision;

/// A portable GPT-2 trainer: every operator is a WGSL compute shader.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Say more: -v for our own steps, -vv for the driver's
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a model; with no argument a small one on stories that the program makes up
    Train(Box<train::Args>),
    /// Continue a text with a trained model
    Generate(generate::Args),
    /// Prepare, fetch and inspect data
    Data(data::Args),
    /// Measure a model: its loss on token shards, its accuracy on HellaSwag
    Eval(eval::Args),
    /// Write a model's weights in another layout: Hugging Face's, llm.c's or llama.cpp's
    Convert(convert::Args),
    /// List the adapters and what each can do
    Devices,
    /// Show where the time of a step goes, or only count what it asks for
    Profile(Box<profile::Args>),
    /// Show what a model takes of memory, time and money, without a GPU
    Plan(Box<plan::Args>),
    /// Try matrix kernels at a model's shapes and keep a record of the fastest
    Tune(Box<tune::Args>),
    /// Compare every checkpoint of a run with its manifest
    Verify(verify::Args),
    /// Write a page of one run, or of several over one another
    Report(report::Args),
    /// Print the WGSL of a kernel, or the names of all
    Shader(shader::Args),
}

/// Parses the arguments and runs the command; the exit code says what went wrong.
pub fn main() -> ExitCode {
    let matches = Cli::command().try_get_matches();
    let parsed = matches.and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, matches)));
    let (cli, matches) = match parsed {
        Ok(parsed) => parsed,
        Err(shown) if shown.use_stderr() && ranks::launched_size() > 1 => {
            let (text, code) = (shown.to_string(), shown.exit_code());
            ranks::refuse(text, || {
                show(shown);
            });
            return ExitCode::from(u8::try_from(code).unwrap_or(1));
        }
        Err(shown) => return show(shown),
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => tell_of(error, matches.subcommand_name().unwrap_or_default(), |error| error),
    }
}

/// Says an error in the flags of a command, with what `name` adds to it; returns its exit code.
fn tell_of(error: Error, command: &str, name: impl FnOnce(Error) -> Error) -> ExitCode {
    let cli = Cli::command();
    let error = cli.find_subcommand(command).map_or(error.clone(), |command| in_flags(error, command));
    tell(&name(error))
}

/// Runs a command.
fn run(cli: Cli) -> wgpt::error::Result<()> {
    let filter = match cli.verbose {
        0 => "warn,wgpu_hal=error,wgpu_core=error,naga=error",
        1 => "info,wgpu_hal=warn,wgpu_core=warn,naga=warn",
        _ => "debug",
    };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(filter)).format(note).init();
    expect_broken_tables();
    signals::survive_large_files();
    match &cli.command {
        // a recipe may say more
        Command::Train(_) => {}
        Command::Tune(args) => widen_for(args.precision),
        Command::Profile(args) => widen_for(args.precision),
        _ => wgpt::gpu::use_wide_vectors(),
    }
    // a run's product is its folder: it does not fail because nobody can read how it went
    let is_run = matches!(&cli.command, Command::Train(args) if !args.print_config && !args.dry_run);
    let result = dispatch(cli.command);
    if is_run { result } else { result.and_then(|()| stdout::finish()) }
}

/// Writes a note of the log. Ours are a line each, whatever names they hold; those of a driver may have several.
fn note(out: &mut env_logger::fmt::Formatter, record: &log::Record) -> std::io::Result<()> {
    let (text, style) = (record.args().to_string(), out.default_level_style(record.level()));
    let is_ours = record.target().starts_with(env!("CARGO_PKG_NAME"));
    let text = if is_ours { visible::line(&text) } else { text::harmless(&text) };
    let (time, level) = (out.timestamp(), record.level());
    writeln!(out, "[{time} {style}{level:<5}{style:#} {}] {text}", record.target())
}

/// Lets a software adapter compute with its widest vectors, unless f16 is asked for: software Vulkan has cooperative
/// matrices, which f16 wants, at its own width only.
fn widen_for(precision: Precision) {
    if precision::may_be_f32(precision) {
        wgpt::gpu::use_wide_vectors();
    }
}

fn dispatch(command: Command) -> wgpt::error::Result<()> {
    match command {
        // one process of several says what all would
        Command::Train(args) if (args.print_config || args.dry_run) && ranks::is_other() => Ok(()),
        Command::Train(args) if args.print_config => dry_run::print_config(&mut args.ask()?),
        Command::Train(args) if args.dry_run => dry_run::run(&mut args.ask()?),
        Command::Train(args) => train::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Data(args) => data::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Convert(args) => convert::run(&args),
        Command::Devices => devices::run(),
        Command::Profile(args) => profile::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Tune(args) => tune::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Shader(args) => shader::run(&args),
    }
}

/// Prints clap's help, version or error; its exit code.
fn show(mut text: clap::Error) -> ExitCode {
    // a shell makes arguments of names of files
    if std::env::args_os().any(|argument| argument.to_string_lossy().contains(visible::is_hidden)) {
        spell(&mut text);
        return show_spelled(&text);
    }
    match text.print() {
        Err(error) if !text.use_stderr() && error.kind() != ErrorKind::BrokenPipe => tell(&stdout::fault(&error)),
        _ => ExitCode::from(u8::try_from(text.exit_code()).unwrap_or(1)),
    }
}

/// Prints an error of clap with every argument that has hidden characters spelled, also where a value's own parser repeats it.
fn show_spelled(error: &clap::Error) -> ExitCode {
    let mut text = error.to_string();
    for argument in std::env::args_os() {
        let argument = argument.to_string_lossy();
        let value = argument.split_once('=').map_or("", |(_, value)| value);
        for part in [&*argument, value].into_iter().filter(|part| part.contains(visible::is_hidden)) {
            // clap leaves colours out, and what looks like them
            let plain = StyledStr::from(part.to_owned()).to_string();
            for there in [part, plain.as_str()].into_iter().filter(|there| there.contains(visible::is_hidden)) {
                text = text.replace(there, &visible::line(part));
            }
        }
    }
    let _ = if error.use_stderr() {
        write!(std::io::stderr(), "{}", text::harmless(&text))
    } else {
        write!(std::io::stdout(), "{}", text::harmless(&text))
    };
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(1))
}

/// Makes all characters visible in the arguments that an error of clap names, which leaves its tips without colours.
fn spell(error: &mut clap::Error) {
    let styled = |text: &StyledStr| visible::line(&text.to_string()).into();
    let given: Vec<(ContextKind, ContextValue)> = error.context().map(|(kind, value)| (kind, value.clone())).collect();
    for (kind, value) in given {
        let value = match value {
            ContextValue::String(text) => ContextValue::String(visible::line(&text)),
            ContextValue::Strings(texts) => {
                ContextValue::Strings(texts.iter().map(|text| visible::line(text)).collect())
            }
            ContextValue::StyledStrs(texts) => ContextValue::StyledStrs(texts.iter().map(styled).collect()),
            ContextValue::StyledStr(text) if kind != ContextKind::Usage => ContextValue::StyledStr(styled(&text)),
            value => value,
        };
        error.insert(kind, value);
    }
}

/// Says an error of the floors below, which know no flags, in those of a command: the flag that a setting came from, and
/// which flags make a run smaller.
fn in_flags(error: Error, command: &clap::Command) -> Error {
    use wgpt::gpu::devices::{ADAPTER_TWICE, ADAPTERS_CHOICE};
    let has = |flag: &str| command.get_arguments().any(|argument| argument.get_long() == Some(flag));
    let flag = match (&error, error.fault().place.as_str()) {
        (Error::Data(fault), file) if fault.what.ends_with(LOOKS_LIKE_TEXT) => {
            let file = shell::word(file);
            let prepare = || format!("try `wgpt data prepare {file} --out DIR`");
            let advice = if has("text") { format!("try --text {file}") } else { prepare() };
            return error.with_advice(advice);
        }
        (Error::Device(_), wgpt::gpu::ADAPTER_CHOICE) => "device".to_owned(),
        (Error::Usage(_), ADAPTER_TWICE) => {
            let advice = "with --share-device the devices of a run may share a GPU";
            return error.with_place("--devices").with_advice(advice);
        }
        (Error::Device(_) | Error::Usage(_), ADAPTERS_CHOICE) => "devices".to_owned(),
        (Error::Usage(_), place) => place.to_owned(),
        (Error::Memory(_), _) if has("batch") => return error.with_advice(SMALLER),
        (Error::Memory(_), _) => return error.with_advice("try a smaller model"),
        _ => return error,
    };
    if has(&flag) { error.with_place(format!("--{flag}")) } else { error }
}

/// One line for an error; its exit code.
fn tell(error: &Error) -> ExitCode {
    // names of files and tensors may hold anything; only the table of a memory plan and a driver's report have lines
    let text = match error {
        Error::Memory(_) | Error::Gpu(_) => text::harmless(&error.to_string()),
        _ => visible::line(&error.to_string()),
    };
    let kind = if matches!(error, Error::Stopped(_)) { "" } else { "error: " };
    let _ = writeln!(std::io::stderr(), "{kind}{text}");
    ExitCode::from(error.exit_code())
}

/// The Parquet library panics over some broken files. What reads them makes an error of that: it is not to be told twice.
fn expect_broken_tables() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !info.location().is_some_and(|place| place.file().contains("parquet")) {
            tell(info);
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use wgpt::error::Fault;

    /// clap checks this in builds for debugging alone, and ends the program.
    #[test]
    fn every_group_of_arguments_has_a_name_of_its_own() {
        fn check(command: &clap::Command) {
            let mut names: Vec<&str> = command.get_groups().map(|group| group.get_id().as_str()).collect();
            names.sort_unstable();
            assert!(names.windows(2).all(|two| two[0] != two[1]), "{}: {names:?}", command.get_name());
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }

    #[test]
    fn every_flag_of_train_is_a_setting_or_the_commands_own() {
        use wgpt::train::settings::layers::{COMMAND_FLAGS, KEYS};
        let cli = Cli::command();
        let train = cli.find_subcommand("train").unwrap();
        let flags: Vec<&str> = train.get_arguments().filter_map(clap::Arg::get_long).collect();
        let own: Vec<&&str> = flags.iter().filter(|flag| !KEYS.iter().any(|key| key.name == **flag)).collect();
        assert!(own.iter().all(|flag| COMMAND_FLAGS.contains(*flag)), "{own:?}");
        assert!(COMMAND_FLAGS.iter().all(|flag| own.contains(&flag)), "{own:?}");
    }

    #[test]
    fn errors_of_lower_floors_name_the_commands_flags() {
        let cli = Cli::command();
        let say =
            |command: &str, error: &Error| in_flags(error.clone(), cli.find_subcommand(command).unwrap()).to_string();
        let heads = Error::usage(Fault::at("heads", "too many"));
        assert_eq!(say("train", &heads), "--heads: too many");
        assert_eq!(say("generate", &heads), "heads: too many");
        let adapter = Error::device(Fault::at(wgpt::gpu::ADAPTER_CHOICE, "unknown"));
        assert_eq!(say("train", &adapter), "--device: unknown");
        let memory = Error::memory(Fault::at("memory", "full"));
        assert_eq!(say("train", &memory), "memory: full; try a smaller --batch or --context");
        assert_eq!(say("generate", &memory), "memory: full; try a smaller model");
        let data = Error::data(Fault::at("heads", "wrong"));
        assert_eq!(say("train", &data), "heads: wrong");
        let text = Error::data(Fault::at("my book", format!("not a token shard {LOOKS_LIKE_TEXT}")));
        let fault = "my book: not a token shard (it looks like text)";
        assert_eq!(say("train", &text), format!("{fault}; try --text 'my book'"));
        assert_eq!(say("eval", &text), format!("{fault}; try `wgpt data prepare 'my book' --out DIR`"));
    }
}
