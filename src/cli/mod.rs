//! The command line: parses, prints the configuration, calls. No logic.

mod allocator;
mod convert;
mod data;
mod devices;
mod dry_run;
mod eval;
mod foreign;
mod generate;
mod invocation;
mod model;
mod plan;
mod precision;
mod predicted;
mod profile;
mod progress;
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
mod usage;
mod values;
mod verify;

use std::io::{ErrorKind, IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::{ArgAction, CommandFactory, FromArgMatches, Parser, Subcommand};
use env_logger::{Target, WriteStyle};
use wgpt::data::token_format::LOOKS_LIKE_TEXT;
use wgpt::error::{Error, Fault};
use wgpt::files::{shell, visible};
use wgpt::measure::plan::SMALLER;
use wgpt::train::settings::Precision;

/// A portable GPT-2 trainer: every operator is a WGSL compute shader.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 80, disable_help_flag = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// More output: -v wgpt's own steps, -vv the driver's too
    #[arg(short, long, action = ArgAction::Count, global = true, help_heading = "Output")]
    verbose: u8,
    /// Print help: -h in short, --help in full
    #[arg(short, long, action = ArgAction::Help, global = true, help_heading = "Output")]
    help: Option<bool>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a model; without data a small one on made-up stories
    Train(Box<train::Args>),
    /// Continue a text with a trained model
    Generate(generate::Args),
    /// Prepare, fetch and inspect data
    Data(data::Args),
    /// Measure a model: loss on token shards, accuracy on HellaSwag
    Eval(eval::Args),
    /// Convert weights to Hugging Face's, llm.c's or llama.cpp's layout
    Convert(convert::Args),
    /// List the adapters and their capabilities
    Devices,
    /// Time the kernels of a step, or count their work
    Profile(Box<profile::Args>),
    /// Estimate memory, time and dollars, without a GPU
    Plan(Box<plan::Args>),
    /// Time kernels at a model's shapes and record the fastest
    Tune(Box<tune::Args>),
    /// Check every checkpoint of a run against its manifest
    Verify(verify::Args),
    /// Write report.html of one run, or of several together
    Report(report::Args),
    /// Print the WGSL of a kernel, or list all kernels
    Shader(shader::Args),
}

/// Parses the arguments and runs the command. The exit code states the kind of the error.
pub fn main() -> ExitCode {
    let words: Vec<String> = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    let command = Cli::command();
    if let Some(fault) = usage::taken_for_another(&command, &words) {
        return refuse(fault);
    }
    let matches = command.clone().try_get_matches();
    let parsed = matches.and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, matches)));
    let (cli, matches) = match parsed {
        Ok(parsed) => parsed,
        Err(shown) if usage::is_help(&shown) => return show(&shown),
        Err(shown) => return refuse(usage::fault(&shown, &command, &words)),
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => tell_of(error, matches.subcommand_name().unwrap_or_default(), |error| error),
    }
}

/// Prints a fault of the command line. All processes of a run end with it.
fn refuse(fault: Fault) -> ExitCode {
    let error = Error::usage(fault);
    if ranks::launched_size() > 1 {
        ranks::refuse(&error, || {
            tell(&error);
        });
    } else {
        tell(&error);
    }
    ExitCode::from(error.exit_code())
}

/// Prints an error with the flags of a command, after `name` has changed it. Returns its exit code.
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
    let style = if std::io::stderr().is_terminal() { WriteStyle::Always } else { WriteStyle::Never };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(filter))
        .format(note)
        .target(Target::Pipe(Box::new(progress::Above)))
        .write_style(style)
        .init();
    expect_broken_tables();
    signals::survive_large_files();
    match &cli.command {
        // the precision may be in a recipe
        Command::Train(_) => {}
        Command::Tune(args) => widen_for(args.precision),
        Command::Profile(args) => widen_for(args.precision),
        _ => wgpt::gpu::use_wide_vectors(),
    }
    // the product of a run is its folder: it does not fail because its output cannot be read
    let is_run = matches!(&cli.command, Command::Train(args) if !args.print_config && !args.dry_run);
    let result = dispatch(cli.command);
    if is_run { result } else { result.and_then(|()| stdout::finish()) }
}

/// Writes a note of the log. A note of wgpt is one line, whatever names it has; one of a driver may have several lines.
fn note(out: &mut env_logger::fmt::Formatter, record: &log::Record) -> std::io::Result<()> {
    let (text, style) = (record.args().to_string(), out.default_level_style(record.level()));
    let is_ours = record.target().starts_with(env!("CARGO_PKG_NAME"));
    let text = if is_ours { visible::line(&text) } else { text::harmless(&text) };
    let (time, level) = (out.timestamp(), record.level());
    if is_ours && level == log::Level::Warn {
        return writeln!(out, "{style}warning:{style:#} {text}");
    }
    writeln!(out, "[{time} {style}{level:<5}{style:#} {}] {text}", record.target())
}

/// Lets a software adapter compute with its widest vectors, unless f16 is asked for: software Vulkan has the
/// cooperative matrices of f16 at its default width only.
fn widen_for(precision: Precision) {
    if precision::may_be_f32(precision) {
        wgpt::gpu::use_wide_vectors();
    }
}

fn dispatch(command: Command) -> wgpt::error::Result<()> {
    match command {
        // the first process prints what all would
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

/// Prints clap's help or version and returns the exit code.
fn show(text: &clap::Error) -> ExitCode {
    match text.print() {
        Err(error) if !text.use_stderr() && error.kind() != ErrorKind::BrokenPipe => tell(&stdout::fault(&error)),
        _ => ExitCode::from(u8::try_from(text.exit_code()).unwrap_or(1)),
    }
}

/// Names the flags of a command in an error of a lower floor, which knows no flags: the flag that a setting came from,
/// and those that make a run smaller.
fn in_flags(error: Error, command: &clap::Command) -> Error {
    use wgpt::gpu::devices::{ADAPTER_TWICE, ADAPTERS_CHOICE};
    let has = |flag: &str| foreign::has(command, flag);
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
    if !has(&flag) {
        return error;
    }
    let error = error.with_place(format!("--{flag}"));
    let found = error.fault().found.trim_matches('`').to_owned();
    error.with_advice(foreign::value(command, &format!("--{flag}"), &found).unwrap_or_default())
}

/// Prints an error as one line. Returns its exit code.
fn tell(error: &Error) -> ExitCode {
    // names of files and tensors may hold anything; only the table of a memory plan and a driver's report have lines
    let (text, more) = match error {
        Error::Memory(_) | Error::Gpu(_) => {
            let text = text::harmless(&error.to_string());
            text.split_once('\n')
                .map_or((text.clone(), String::new()), |(line, more)| (line.into(), more.to_owned() + "\n"))
        }
        _ => (visible::line(&error.to_string()), String::new()),
    };
    progress::clear();
    let kind = if matches!(error, Error::Stopped(_)) { "" } else { "error: " };
    // the table first: the last line is the error
    let _ = writeln!(std::io::stderr(), "{more}{kind}{text}");
    ExitCode::from(error.exit_code())
}

/// Silences panics of the Parquet library over some broken files: their reader turns them into errors, which are
/// printed.
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

    /// clap checks this in debug builds only, and panics.
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
