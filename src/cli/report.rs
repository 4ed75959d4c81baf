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
#[command(after_help = "\
Examples:
  wgpt report runs/1
  wgpt report runs/1 --compare llmc/main.log --peak-tflops 312
  wgpt report runs/1 runs/2 --out both.html")]
pub struct Args {
    /// Folders of runs, running or finished, or logs of llm.c
    ///
    /// Logs have the form of llm.c's main.log, .gz too
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Page to write [default: report.html]
    ///
    /// In the run's folder; of several runs, in the current folder
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Run or log to compare with
    #[arg(long, value_name = "RUN")]
    compare: Option<PathBuf>,
    /// Peak TFLOP/s of the GPU, for MFU [default: the run's]
    #[arg(long, value_name = "TFLOPS", value_parser = parse_positive, allow_negative_numbers = true)]
    peak_tflops: Option<f64>,
    /// Dollars per hour [default: the run's]
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
    // the reference of the run itself may be gone by now; the one asked for here may not
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

/// Checks that nothing is overwritten but a page of `wgpt report`.
fn replaceable(out: &Path) -> Result<()> {
    let mut start = Vec::new();
    // writing reports what is wrong with a folder, or with a file that cannot be read
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
