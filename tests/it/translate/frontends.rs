//! Other programs that read naga's output.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::io::Error;
use std::path::Path;
use std::process::{Command, Output};

use rayon::prelude::*;

use crate::common::not_run::{not_run, say};

/// Bytes of an HLSL text that Slang reads slowly.
const LARGE: usize = 64 << 10;

/// What a front end made of the texts.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// One line: what ran on how much, or why it did not run.
    pub summary: String,
    pub faults: Vec<String>,
    pub ran: bool,
}

impl Outcome {
    pub fn ran(summary: String, faults: Vec<String>) -> Self {
        Self { summary, faults, ran: true }
    }

    pub fn not_run(why: &str) -> Self {
        Self { summary: why.to_owned(), faults: Vec::new(), ran: false }
    }

    /// Prints the summary, or records that `what` did not run.
    pub fn report(&self, what: &str) {
        if self.ran || !self.faults.is_empty() {
            say(&format!("translate: {}", self.summary));
        } else {
            not_run(what, &self.summary);
        }
    }

    /// The user named a program that cannot be used: that must not pass.
    pub fn unusable(variable: &str, why: &str) -> Self {
        let summary = format!("{variable}: {why}");
        Self { faults: vec![summary.clone()], summary, ran: false }
    }
}

/// Starts a program named by `variable`, else by `name`, with `arguments`, to see whether it is there.
fn find(variable: &str, name: &str, arguments: &[&str]) -> Result<(String, Output), Outcome> {
    let named = env::var(variable).ok().filter(|v| !v.is_empty());
    let program = named.clone().unwrap_or_else(|| name.to_owned());
    match Command::new(&program).args(arguments).output() {
        Ok(output) => Ok((program, output)),
        Err(e) if named.is_some() => Err(Outcome::unusable(variable, &format!("cannot start {program}: {e}"))),
        Err(_) => Err(Outcome::not_run(&format!("{name} not found"))),
    }
}

/// The first name of each distinct text.
pub fn distinct<K: std::hash::Hash + Eq>(texts: impl Iterator<Item = (K, String)>) -> Vec<(K, String)> {
    let mut first = HashMap::new();
    for (key, name) in texts {
        first.entry(key).or_insert(name);
    }
    let mut list: Vec<_> = first.into_iter().collect();
    list.sort_by(|a, b| a.1.cmp(&b.1));
    list
}

/// Runs Microsoft's compiler on (name, text, entry point, shader model): on those of a model that it knows.
pub fn dxc(texts: &[(&str, &str, &str, &str)]) -> Outcome {
    let (program, version) = match find("DXC", "dxc", &["--version"]) {
        Ok((program, output)) => (program, first_line(&output.stdout)),
        Err(outcome) => return outcome,
    };
    let texts = distinct(
        texts.iter().filter(|t| t.3 == "6.2").map(|(name, text, entry, _)| ((*text, *entry), (*name).to_owned())),
    );
    let faults = in_folder(|folder| {
        let faults: Result<Vec<_>, Error> = texts
            .par_iter()
            .enumerate()
            .map(|(i, ((text, entry), name))| {
                let file = folder.join(format!("{i}.hlsl"));
                fs::write(&file, text)?;
                // the flags of wgpu-hal 30, dx12/shader_compilation.rs
                let output = Command::new(&program)
                    .args(["-T", "cs_6_2", "-E", entry, "-HV", "2018", "-enable-16bit-types", "-no-warnings", "-Ges"])
                    .arg("-Fo")
                    .arg(folder.join(format!("{i}.dxil")))
                    .arg(&file)
                    .output()?;
                Ok((!output.status.success()).then(|| format!("{name}: {program}: {}", both(&output))))
            })
            .collect();
        Ok(faults?.into_iter().flatten().collect())
    });
    let summary = format!("dxc ran on {} distinct HLSL texts, {} faults ({version})", texts.len(), faults.len());
    Outcome::ran(summary, faults)
}

/// Runs Slang, through `tools/check-hlsl.py`, on (name, text, entry point, shader model).
pub fn slang(texts: &[(&str, &str, &str, &str)]) -> Outcome {
    const VARIABLE: &str = "WGPT_SLANG_PYTHON";
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/check-hlsl.py");
    let script = script.display().to_string();
    let python = match find(VARIABLE, "python3", &[&script, "--probe"]) {
        Ok((python, output)) if output.status.success() => python,
        Ok((_, output)) if env::var(VARIABLE).is_ok_and(|v| !v.is_empty()) => {
            return Outcome::unusable(VARIABLE, &both(&output));
        }
        Ok(_) => return Outcome::not_run("Slang not found (no slangpy in python3 or WGPT_SLANG_PYTHON)"),
        Err(outcome) => return outcome,
    };
    let texts = distinct(texts.iter().map(|(name, text, entry, _)| ((*text, *entry), (*name).to_owned())));
    // the largest would take as long as all others together; the same kernel without checks stays
    let (large, texts): (Vec<_>, Vec<_>) =
        texts.into_iter().partition(|((text, _), name)| text.len() > LARGE && name.ends_with("checks On"));
    let mut library = String::new();
    let faults = in_folder(|folder| {
        let mut arguments = Vec::new();
        let mut names = HashMap::new();
        for (i, ((text, entry), name)) in texts.iter().enumerate() {
            let file = folder.join(format!("{i}.hlsl"));
            fs::write(&file, text)?;
            arguments.push(format!("{}:{entry}", file.display()));
            names.insert(file.display().to_string(), name);
        }
        // one start of the library serves many files
        let outputs: Result<Vec<Output>, Error> = arguments
            .par_chunks(texts.len().div_ceil(4 * rayon::current_num_threads()).clamp(1, 200))
            .map(|files| Command::new(&python).arg(&script).args(files).output())
            .collect();
        let mut faults = Vec::new();
        for output in outputs? {
            if !output.status.success() {
                let mut text = both(&output);
                for (file, name) in &names {
                    text = text.replace(&format!("{file}: "), &format!("{name}: Slang: "));
                }
                faults.push(text);
            }
            let last = String::from_utf8_lossy(&output.stdout).lines().last().unwrap_or_default().to_owned();
            last.split(':').next().unwrap_or_default().clone_into(&mut library);
        }
        Ok(faults)
    });
    let failed = if faults.is_empty() { "no faults".to_owned() } else { format!("faults in {} batches", faults.len()) };
    let summary = format!(
        "Slang ran on {} distinct HLSL texts, {failed} ({library}); not on {} over {LARGE} bytes with checks on",
        texts.len(),
        large.len()
    );
    Outcome::ran(summary, faults)
}

/// Runs `work` with a folder of its own; failing to is a fault too.
pub fn in_folder(work: impl FnOnce(&Path) -> Result<Vec<String>, Error>) -> Vec<String> {
    let result = tempfile::tempdir().and_then(|folder| work(folder.path()));
    result.unwrap_or_else(|e| vec![format!("cannot run it: {e}")])
}

pub fn both(output: &Output) -> String {
    let text = [output.stdout.as_slice(), &output.stderr].map(String::from_utf8_lossy).concat();
    format!("{}, {}", text.trim(), output.status)
}

pub fn first_line(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).lines().next().unwrap_or_default().trim().to_owned()
}
