//! `wgpt report`.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use wgpt::error::{Error, Fault, Result};
use wgpt::files::{atomic, open};
use wgpt::run::report::html::{MARK, page};
use wgpt::run::report::{History, REPORT, RunSummary};
use wgpt::train::settings::Peak;

use super::terminal::say;
use super::values::parse_positive;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  wgpt report runs/1
  wgpt report runs/1 --compare llmc/main.log --peak-tflops 312 --price-per-hour 1.29
  wgpt report runs/1 runs/2 --out both.html")]
pub struct Args {
    /// Folders of runs, at work or finished, or logs in the form of llm.c's main.log
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// The page [default: report.html in the run's folder; of several runs, here]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// A run or log whose curve stands beside theirs
    #[arg(long, value_name = "RUN")]
    compare: Option<PathBuf>,
    /// What the adapter can do, which MFU is a part of [default: what the run was given]
    #[arg(long, value_name = "TFLOPS", value_parser = parse_positive, allow_negative_numbers = true)]
    peak_tflops: Option<f64>,
    /// Dollars an hour [default: what the run was given]
    #[arg(long, value_name = "DOLLARS", value_parser = parse_positive, allow_negative_numbers = true)]
    price_per_hour: Option<f64>,
}

/// Writes the page.
pub fn run(args: &Args) -> Result<()> {
    let mut runs = args.runs.iter().map(|run| RunSummary::read(run)).collect::<Result<Vec<_>>>()?;
    for file in runs.iter_mut().filter_map(|run| run.file.as_mut()) {
        let run = &mut file.settings.run;
        run.peak_tflops = args.peak_tflops.map(Peak::Given).or(run.peak_tflops);
        run.price_per_hour = args.price_per_hour.or(run.price_per_hour);
    }
    let theirs = match runs.as_slice() {
        [one] => one.file.as_ref().and_then(|file| file.settings.run.compare.clone()),
        _ => None,
    };
    // what a run was compared with may be gone since; what is asked for now may not
    let reference = match (&args.compare, theirs) {
        (Some(path), _) => Some(History::read(path)?),
        (None, theirs) => theirs.and_then(|path| History::read(&path).ok()),
    };
    let out = args.out.clone().unwrap_or_else(|| match args.runs.as_slice() {
        [run] if run.is_dir() => run.join(REPORT),
        _ => PathBuf::from(REPORT),
    });
    replaceable(&out)?;
    let html = page(&runs, reference.as_ref());
    atomic::write(&out, |file| file.write_all(html.as_bytes()))?;
    say!("wrote {}", out.display());
    Ok(())
}

/// That nothing is overwritten but a page of ours.
fn replaceable(out: &Path) -> Result<()> {
    let mut start = Vec::new();
    // writing will say what is wrong with a folder, or a file that cannot be read
    let file = match open::input(out) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::InvalidInput => {
            let fault = Fault::at("--out", format!("{} {e}", out.display()));
            return Err(Error::usage(fault.expected("a page of `wgpt report` or a new name")));
        }
        Err(_) => return Ok(()),
    };
    let read = file.take(1024).read_to_end(&mut start);
    if read.is_err() || start.is_empty() || String::from_utf8_lossy(&start).contains(MARK) {
        return Ok(());
    }
    Err(Error::usage(format!(
        "--out: {} holds something else, expected a page of `wgpt report` or a new name",
        out.display()
    )))
}
