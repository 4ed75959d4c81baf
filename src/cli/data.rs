//! `wgpt data`.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Subcommand;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use clap::builder::{OsStringValueParser, TypedValueParser as _};
use wgpt::data::fetch::{Entry, FetchObserver, Files, Hub, Kind, catalog};
use wgpt::data::prepare::{self, Manifest, Options, Outcome, Progress};
use wgpt::data::separators::SPELLED_END;
use wgpt::data::{Part, TokenFormat, TokenizerName, inspect, token_paths};
use wgpt::error::{Error, Fault, Result};
use wgpt::files::visible;
use wgpt::units::{self, counted};

use super::stdout;
use super::terminal::{remark, say};
use super::values::parse_token_count;
use super::{invocation, signals};

/// Time between two lines where there is no terminal for a bar.
const LINE_EVERY: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Turn text, JSON Lines or Parquet into token shards
    #[command(after_long_help = PREPARE_HELP)]
    Prepare(PrepareArgs),
    /// Fetch a data set or weights from the Hugging Face hub into its cache
    #[command(after_help = fetch_help())]
    Fetch(FetchArgs),
    /// Show the contents of token shards, and check all of them
    Inspect(InspectArgs),
}

const PREPARE_HELP: &str = "\
Each text file, line of JSON Lines and row of Parquet is one document. Text and
JSON Lines may be packed by gzip, zstd, xz or bzip2. Files are recognised by
their first bytes, not by their names. A folder gives all its data, sorted by
path; a line names what is left out.

An end of text precedes every document. The first shard is for validation; of a
corpus smaller than two shards it is the last tenth. A command that was killed
resumes when it is run again.

Examples:
  wgpt data prepare book.txt --out data/book
  wgpt data prepare fineweb/sample/10BT --out data/fineweb
  wgpt train --data data/book --val data/book";

const CACHE_HELP: &str = "\
Files go into the cache of Python's huggingface_hub. HF_HOME or HF_HUB_CACHE
names its folder, HF_ENDPOINT a mirror, HF_TOKEN opens repositories that need
one, HF_HUB_OFFLINE=1 uses the cache alone.";

fn fetch_help() -> String {
    format!("{}\n\n{CACHE_HELP}", catalog::help_table())
}

#[derive(Debug, clap::Args)]
struct PrepareArgs {
    /// Text, JSON Lines and Parquet files, folders of them, and patterns
    #[arg(required = true, value_name = "INPUT")]
    inputs: Vec<PathBuf>,
    /// Folder for the shards and dataset.json
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Name of the shards [default: the name of --out]
    #[arg(long)]
    name: Option<String>,
    /// Tokenizer: gpt2, bytes, or a folder with tokenizer.json
    #[arg(long, value_name = "NAME|DIR", value_parser = OsStringValueParser::new().try_map(TokenizerName::try_from), default_value_t = TokenizerName::Gpt2)]
    tokenizer: TokenizerName,
    /// Field of JSON Lines, column of Parquet
    ///
    /// meta.text for one in an object or a group
    #[arg(long, value_name = "NAME", default_value = "text")]
    field: String,
    /// Separator of documents in text files, as '<|endoftext|>'
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    split_on: Option<String>,
    /// Tokens for validation, as 1M; 0 for none
    ///
    /// [default: the first shard, of a small corpus the last tenth]
    #[arg(long, value_name = "TOKENS", value_parser = parse_token_count)]
    val_tokens: Option<u64>,
    /// Stop after this many tokens, as 10B
    #[arg(long, value_name = "TOKENS", value_parser = parse_token_count)]
    max_tokens: Option<u64>,
    /// Tokens per shard
    #[arg(long, value_name = "TOKENS", value_parser = parse_token_count, default_value_t = prepare::SHARD_TOKENS)]
    shard_tokens: u64,
    /// Threads that encode [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Remove the shards of this name in --out and begin again
    #[arg(long)]
    restart: bool,
    /// Milliseconds between two states to resume from
    #[arg(long, hide = true, default_value_t = 2000)]
    save_ms: u64,
}

#[derive(Debug, clap::Args)]
struct FetchArgs {
    /// Name of the table below, or OWNER/NAME of a repository
    name: String,
    /// Number of training shards [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    shards: Option<u16>,
}

#[derive(Debug, clap::Args)]
struct InspectArgs {
    /// Shards, a folder of shards, a pattern, or a name of `wgpt data fetch`
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Layout of the files
    ///
    /// shard is llm.c's; u16 and u32 are ids without a header, as in nanoGPT's train.bin; npy is NumPy's
    #[arg(long, value_name = "FORMAT", default_value_t)]
    data_format: TokenFormat,
    /// Tokenizer of the shards [default: that of dataset.json]
    ///
    /// gpt2, bytes, or a folder with tokenizer.json; gpt2 where there is no dataset.json
    #[arg(long, value_name = "NAME|DIR", value_parser = OsStringValueParser::new().try_map(TokenizerName::try_from))]
    tokenizer: Option<TokenizerName>,
    /// Print one JSON object instead of lines
    #[arg(long)]
    json: bool,
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Result<()> {
    match &args.command {
        Command::Prepare(args) => prepare(args),
        Command::Fetch(args) => fetch(args),
        Command::Inspect(args) => show(args),
    }
}

fn prepare(args: &PrepareArgs) -> Result<()> {
    let name = args.name.clone().unwrap_or_else(|| name_of(&args.out));
    let defaults = Options::new(args.inputs.clone(), args.out.clone(), name);
    let options = Options {
        tokenizer: args.tokenizer.open()?,
        field: args.field.clone(),
        split_on: args.split_on.clone(),
        shard_tokens: args.shard_tokens,
        val_tokens: args.val_tokens,
        max_tokens: args.max_tokens,
        threads: args.threads.map_or(defaults.threads, usize::from),
        restart: args.restart,
        save_every: Duration::from_millis(args.save_ms),
        ..defaults
    };
    let waits = Arc::new(AtomicBool::new(false));
    let waiting = Arc::clone(&waits);
    let stop = signals::listen(move || {
        if waiting.load(Ordering::SeqCst) {
            return signals::Answer::Ends("ended while waiting for another process, with nothing to save");
        }
        signals::Answer::Stops("stopping after this part of the data, then saving")
    })?;
    let begin = Instant::now();
    let mut meter = Meter::new();
    let mut now = 0;
    let outcome = prepare::prepare(&options, &mut |progress: &Progress| {
        if progress.waiting != waits.swap(progress.waiting, Ordering::SeqCst) && progress.waiting {
            meter.line(&format!("{}: waiting for another `wgpt data prepare` on this folder", options.out.display()));
        }
        if progress.waiting {
            return if stop().is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        }
        now = progress.text_bytes_now;
        let rate = now as f64 / 1e6 / begin.elapsed().as_secs_f64().max(1e-9);
        let (tokens, documents) = (progress.tokens, progress.counts.documents);
        let text = format!("{} | {} | {rate:.1} MB/s", counted(tokens, "token"), counted(documents, "document"));
        meter.at(progress.file_bytes, progress.total_bytes, &text);
        if stop().is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    drop(meter);
    let note = match &outcome {
        Outcome::Stopped => {
            let fault =
                Fault::at(stop().unwrap_or("a signal"), format!("stopped and saved in {}", options.out.display()));
            let again = invocation::continued(&options.out, true);
            return Err(Error::stopped(fault.advice(format!("to continue: {again}"))));
        }
        Outcome::AlreadyPrepared(note) => {
            say!("{} already holds this data set; --restart prepares it again", options.out.display());
            note
        }
        Outcome::Done(note) => note,
    };
    summary(note, &options.out);
    if matches!(outcome, Outcome::Done(_)) {
        if let Some(separator) = note.recipe.split_on.as_ref().filter(|_| note.counts.separators == 0) {
            say!("no text file contains the separator {separator:?}: each is one document");
        }
        let seconds = begin.elapsed().as_secs_f64();
        say!("{:.1} MB of text in {seconds:.1} s, {:.1} MB/s", now as f64 / 1e6, now as f64 / 1e6 / seconds.max(1e-9));
    }
    Ok(())
}

/// Returns the name of a folder, for its shards.
fn name_of(folder: &Path) -> String {
    let whole = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let name = whole.file_name().map_or_else(|| "data".into(), |n| n.to_string_lossy().into_owned());
    name.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_') { c } else { '_' }).collect()
}

fn summary(note: &Manifest, out: &Path) {
    say!(
        "{} ({}) of {}: {} for training, {} for validation, in {}",
        counted(note.tokens, "token"),
        note.tokenizer,
        counted(note.counts.documents, "document"),
        units::count(note.train_tokens),
        units::count(note.val_tokens),
        counted(note.shards.len() as u64, "shard")
    );
    if note.counts.replaced > 0 {
        say!("{} of invalid UTF-8 replaced", counted(note.counts.replaced, "place"));
    }
    if note.counts.missing > 0 {
        say!("{} without text left out", counted(note.counts.missing, "row"));
    }
    if note.counts.spelled_ends > 0 {
        say!(
            "the texts contain {SPELLED_END} {} and it was read as text; --split-on '{SPELLED_END}' splits text files there",
            counted(note.counts.spelled_ends, "time")
        );
    }
    say!("next: {}", invocation::command(next_command(note, out)));
}

/// Returns the command that trains on a data set, with smaller sizes where its shards are short.
fn next_command(note: &Manifest, out: &Path) -> Vec<OsString> {
    let pattern = |part: &str| {
        let file = format!("{}_{part}_*.bin", note.recipe.name);
        out.join(file)
    };
    let mut words = vec![OsString::from("train")];
    words.extend(invocation::flag("--data", &pattern("train")));
    if note.val_tokens > 0 {
        words.extend(invocation::flag("--val", &pattern("val")));
    }
    let (batch, context) = note.fitting_sizes();
    for (flag, size, default) in [
        ("--batch", batch, prepare::manifest::DEFAULT_BATCH),
        ("--context", context, prepare::manifest::DEFAULT_CONTEXT),
    ] {
        if size < default {
            words.extend([flag.into(), size.to_string().into()]);
        }
    }
    words
}

fn fetch(args: &FetchArgs) -> Result<()> {
    let entry = catalog::find(&args.name).copied().or_else(|| catalog::of_repository(&args.name));
    let entry = &entry.ok_or_else(|| {
        let known: Vec<&str> = catalog::CATALOG.iter().map(|e| e.name).collect();
        let fault = Fault::at("fetch", format!("unknown name `{}`", args.name.escape_debug()));
        let fault = fault.expected(format!("one of {}", known.join(", ")));
        let near = catalog::nearest_names(&args.name);
        Error::usage(if near.is_empty() { fault } else { fault.advice(format!("try {}", near.join(" or "))) })
    })?;
    let most = match (entry.files, args.shards) {
        (Files::Shards(_, most), Some(n)) if usize::from(n) > most => {
            return Err(Error::usage(format!("--shards: {n}, {} has {most}", entry.name)));
        }
        (Files::Shards(_, most), None) => most,
        (Files::Shards(..), Some(n)) => usize::from(n),
        (_, Some(_)) => {
            return Err(Error::usage(format!("--shards: {} has none, expected a name with token shards", entry.name)));
        }
        (_, None) => 0,
    };
    let hub = Hub::from_env()?;
    if !entry.verified && !hub.offline {
        remark!("{}: the repository {} could not be reached when this program was written", entry.name, entry.repo);
    }
    let mut screen = FetchScreen { meter: Meter::new(), path: String::new(), size: 0 };
    let fetched = hub.fetch(entry, most, &mut screen)?;
    drop(screen);
    let shards = entry.shards(Part::Train, most).len();
    let has_shards = shards > 0;
    let shards = counted(shards as u64, "training shard");
    let holds = if has_shards { format!("{shards} and validation, ") } else { String::new() };
    say!(
        "{}: {holds}{} in {} ({:.1} MB received)",
        entry.name,
        counted(fetched.files.len() as u64, "file"),
        fetched.folder.display(),
        fetched.received as f64 / 1e6
    );
    say!("next: {}", invocation::command(use_of(entry, args.shards, &fetched.folder)));
    Ok(())
}

/// Returns a command that uses the files of a name.
fn use_of(entry: &Entry, shards: Option<u16>, folder: &Path) -> Vec<OsString> {
    let name = entry.name;
    let words = |words: &[&str]| words.iter().map(OsString::from).collect();
    match (entry.kind, entry.files) {
        (Kind::Model, _) => words(&["generate", "--from", name, "The meaning of life is"]),
        (_, Files::Folder(path, _)) => {
            let inputs = folder.join(path.trim_end_matches('/')).into_os_string();
            vec!["data".into(), "prepare".into(), inputs, "--out".into(), format!("data/{name}").into()]
        }
        _ if entry.shards(Part::All, 1).is_empty() => words(&["eval", "--from", "gpt2", "--hellaswag", name]),
        _ => {
            let data = shards.map_or_else(|| name.to_owned(), |shards| format!("{name}:{shards}"));
            words(&["train", "--data", &data, "--val", name])
        }
    }
}

struct FetchScreen {
    meter: Meter,
    path: String,
    size: u64,
}

impl FetchObserver for FetchScreen {
    fn file_started(&mut self, path: &str, done: u64, size: u64) {
        self.meter.line(&format!(
            "{path} ({:.1} MB){}",
            size as f64 / 1e6,
            if done == size { ", already here" } else { "" }
        ));
        (self.path, self.size) = (path.to_owned(), size);
    }

    fn progressed(&mut self, done: u64) {
        self.meter.at(
            done,
            self.size,
            &format!("{}: {:.1} of {:.1} MB", self.path, done as f64 / 1e6, self.size as f64 / 1e6),
        );
    }

    fn retrying(&mut self, text: &str) {
        self.meter.line(&format!("trying again: {text}"));
    }
}

fn show(args: &InspectArgs) -> Result<()> {
    let files = token_paths::find(&args.paths, Part::All, args.data_format)?;
    let tokenizer = args.tokenizer.as_ref().map(TokenizerName::open).transpose()?;
    let report = inspect::inspect_as(&files, args.data_format, tokenizer)?;
    if args.json {
        let text = serde_json::to_string_pretty(&report).map_err(|e| Error::output(format!("inspect: {e}")))?;
        stdout::json(&text);
        return Ok(());
    }
    for shard in &report.shards {
        say!(
            "{}: {}, {}, ids {} to {}",
            shard.path.display(),
            counted(shard.tokens, "token"),
            counted(shard.documents, "document"),
            shard.lowest,
            shard.highest
        );
        say!("  {}", shard.first_text.escape_debug());
    }
    say!(
        "{}, {} in {}; tokenizer {} ({}), vocabulary {}; all ids inside",
        counted(report.tokens, "token"),
        counted(report.documents, "document"),
        counted(report.shards.len() as u64, "shard"),
        report.tokenizer,
        if report.has_manifest { "dataset.json agrees" } else { "no dataset.json" },
        report.vocab
    );
    Ok(())
}

/// A bar on a terminal, elsewhere a line every ten seconds, both on standard error.
struct Meter {
    bar: Option<ProgressBar>,
    begin: Instant,
    first: Option<u64>,
    last: Instant,
}

impl Meter {
    fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(5));
            if let Ok(style) = ProgressStyle::with_template("{bar:30} {percent}% {msg}") {
                bar.set_style(style);
            }
            bar
        });
        Self { bar, begin: Instant::now(), first: None, last: Instant::now() }
    }

    /// Shows that `done` of `total` bytes are done, with a text.
    fn at(&mut self, done: u64, total: u64, text: &str) {
        let now = Instant::now();
        let first = *self.first.get_or_insert(done);
        let due = if self.bar.is_some() { Duration::from_millis(200) } else { LINE_EVERY };
        if now.duration_since(self.last) < due {
            return;
        }
        self.last = now;
        let gone = now.duration_since(self.begin).as_secs_f64();
        let left = total.saturating_sub(done) as f64 * gone / done.saturating_sub(first).max(1) as f64;
        let eta = if done > first {
            format!(" | ETA {}", units::clock(Duration::from_secs_f64(left.min(1e8))))
        } else {
            String::new()
        };
        match &self.bar {
            Some(bar) => {
                bar.set_length(total);
                bar.set_position(done);
                bar.set_message(visible::line(&format!("{text}{eta}")));
            }
            None => remark!("{:.0}% | {text}{eta}", 100.0 * done as f64 / total.max(1) as f64),
        }
    }

    /// Prints a line above the bar.
    fn line(&mut self, text: &str) {
        (self.first, self.begin) = (None, Instant::now());
        match &self.bar {
            Some(bar) => bar.suspend(|| remark!("{text}")),
            None => remark!("{text}"),
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
