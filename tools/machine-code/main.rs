//! Prints the results of tools/isa: `table FOLDER` prints the table of one GPU, `json FOLDER...` a list of all kernels.
//! A folder is named after its GPU and contains a folder of layer.c's files for each run.

mod kernel;
mod parse;
mod table;

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

fn print(mode: &str, folders: &[String]) -> Result<String, String> {
    match mode {
        "table" => folders.iter().map(|f| Ok(table::text(&kernel::read(Path::new(f))?))).collect(),
        "json" => {
            let mut lines = Vec::new();
            for folder in folders {
                let gpu = Path::new(folder).file_name().unwrap_or_default().to_string_lossy();
                lines.extend(table::json(&gpu, &kernel::read(Path::new(folder))?));
            }
            Ok(format!("[\n{}\n]\n", lines.join(",\n")))
        }
        _ => Err(format!("`{mode}`, expected machine-code table|json FOLDER...")),
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (mode, folders) = arguments.split_first().map_or(("", &[][..]), |(mode, rest)| (mode.as_str(), rest));
    let printed = print(mode, folders)
        .and_then(|text| std::io::stdout().write_all(text.as_bytes()).map_err(|e| format!("standard output: {e}")));
    match printed {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("machine-code: {e}");
            ExitCode::FAILURE
        }
    }
}
