//! Budgets of machine code: tools/isa compiles d12's kernels for GPUs that the machine lacks, and the machine code is
//! compared with tests/it/isa/budgets.txt and the rules of [`rules`]. Nothing here needs a GPU. Where Debian cannot be
//! reached, the test is recorded as not run.

mod budgets;
#[path = "../../../tools/machine-code/kernel.rs"]
mod kernel;
#[path = "../../../tools/machine-code/parse.rs"]
mod parse;
mod planted;
mod rules;
mod samples;
#[path = "../../../tools/machine-code/table.rs"]
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use budgets::Table;
use rules::Row;

use crate::common::not_run::{not_run, say};

/// Turing has Ampere's compiler, RDNA4 RDNA3's; Adreno has no matrix units and no f16 here.
const GPUS: [&str; 5] = ["ampere", "ada", "hopper", "navi31", "apple-m1"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A run of tools/isa: its rows and their text, Mesa's version, and the folder with its files.
struct Printed {
    rows: Vec<Row>,
    json: String,
    mesa: String,
    out: tempfile::TempDir,
}

/// Runs tools/isa with this program and a folder for its files. Returns its output, or `None` where the compilers for
/// other GPUs cannot be had, which is recorded as not run.
fn isa(arguments: &[&str], out: &Path) -> Result<Option<String>, String> {
    if !cfg!(target_os = "linux") {
        not_run("machine code", "not Linux, for which Mesa's stand-ins for GPUs are");
        return Ok(None);
    }
    let output = Command::new(root().join("tools/isa"))
        .args(arguments)
        .env("WGPT", env!("CARGO_BIN_EXE_wgpt"))
        .env("WGPT_ISA_OUT", out)
        .output()
        .map_err(|e| format!("tools/isa: {e}"))?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    match output.status.code() {
        Some(0) => Ok(Some(out.into_owned())),
        Some(4) => {
            not_run("machine code", err.lines().last().unwrap_or("tools/isa ended with exit code 4"));
            Ok(None)
        }
        code => Err(format!("tools/isa ended with exit code {code:?}:\n{err}{out}")),
    }
}

/// Compiles for some GPUs the kernels of d12's steps, or those that a command of wgpt uses. `None` as [`isa`].
fn compile(gpus: &[&str], command: &[&str]) -> Result<Option<Printed>, String> {
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let json = folder.path().join("kernels.json");
    let (gpus, file) = (gpus.join(","), json.to_string_lossy());
    let options = ["--gpu", &gpus, "--json", &file];
    let behind = if command.is_empty() { &[][..] } else { &["--"] };
    let Some(out) = isa(&[&options, behind, command].concat(), &folder.path().join("out"))? else { return Ok(None) };
    let text = std::fs::read_to_string(&json).map_err(|e| format!("{}: {e}", json.display()))?;
    let mesa = out.split("Mesa ").nth(1).and_then(|rest| rest.split_whitespace().next()).unwrap_or("unknown");
    Ok(Some(Printed { rows: rules::read(&text)?, json: text, mesa: mesa.to_owned(), out: folder }))
}

/// The kernels whose machine code differs between two texts of tools/isa's JSON.
fn differing(committed: &str, found: &str) -> Result<Vec<String>, String> {
    let rows = |text: &str| -> Result<BTreeMap<(String, String), serde_json::Value>, String> {
        let json: Vec<serde_json::Value> = serde_json::from_str(text).map_err(|e| e.to_string())?;
        let name = |row: &serde_json::Value, key: &str| row[key].as_str().unwrap_or("").to_owned();
        Ok(json.into_iter().map(|row| ((name(&row, "gpu"), name(&row, "kernel")), row)).collect())
    };
    let (committed, found) = (rows(committed)?, rows(found)?);
    let keys: BTreeSet<_> = committed.keys().chain(found.keys()).collect();
    let other = keys.into_iter().filter(|key| committed.get(*key) != found.get(*key));
    Ok(other.map(|(gpu, kernel)| format!("{gpu}: {kernel}")).collect())
}

/// That predictions are made from the machine code of the present kernels: `src/measure/predict/machine-code.json`.
/// Another Mesa than the budgets' compiles otherwise.
fn check_predicted(printed: &Printed, table: &Table) -> Result<Vec<String>, String> {
    let file = root().join("src/measure/predict/machine-code.json");
    let fault = |e: std::io::Error| format!("{}: {e}", file.display());
    if std::env::var_os("WGPT_BLESS").is_some() {
        std::fs::write(&file, &printed.json).map_err(fault)?;
        say("isa: machine-code.json of the predictions is written anew: now write ARCHITECTURE.md's table anew");
    }
    if printed.mesa != table.mesa {
        let why = format!("predictions are made from the code of Mesa {}, this is {}", table.mesa, printed.mesa);
        not_run("machine code of the predictions", &why);
        return Ok(Vec::new());
    }
    let differing = differing(&std::fs::read_to_string(&file).map_err(fault)?, &printed.json)?;
    let line =
        |kernel: String| format!("{kernel}: its machine code is not the predictions'; WGPT_BLESS=1 writes it anew");
    Ok(differing.into_iter().map(line).collect())
}

#[test]
fn machine_code_that_differs_from_the_predictions_is_found() {
    let text = |registers: u32| format!("[{{\"gpu\":\"ada\",\"kernel\":\"a\",\"registers\":{registers}}}]");
    assert_eq!(differing(&text(1), &text(1)), Ok(Vec::new()));
    assert_eq!(differing(&text(1), &text(2)), Ok(vec!["ada: a".to_owned()]));
    assert_eq!(differing(&text(1), "[]"), Ok(vec!["ada: a".to_owned()]));
    assert!(differing("", "[]").is_err());
}

/// The names of the kernels that a GPU's steps in f16 use: JSON does not tell them from those of f32.
fn kernels_of_f16(printed: &Printed, gpu: &str) -> Result<BTreeSet<String>, String> {
    let folder = printed.out.path().join("out").join(gpu).join("f16");
    let fault = |e: std::io::Error| format!("{}: {e}", folder.display());
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(&folder).map_err(fault)? {
        let path = entry.map_err(fault)?.path();
        if path.extension().is_some_and(|e| e == "name") {
            names.insert(kernel::code_name(std::fs::read_to_string(&path).map_err(fault)?.trim()));
        }
    }
    Ok(names)
}

/// Kernels of a d12 step at batch 64 on a GPU with matrix units, as `wgpt profile` counts them without a device.
fn counted(precision: &str) -> Result<Vec<String>, String> {
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let json = folder.path().join("count.json");
    let output = Command::new(env!("CARGO_BIN_EXE_wgpt"))
        .args(["profile", "--count", "--model", "d12", "--batch", "64", "--context", "1024", "--precision", precision])
        .arg("--json")
        .arg(&json)
        .output()
        .map_err(|e| format!("wgpt profile --count: {e}"))?;
    let text = std::fs::read_to_string(&json)
        .map_err(|e| format!("wgpt profile --count: {e}: {}", String::from_utf8_lossy(&output.stderr)))?;
    let count: serde_json::Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
    let kernels =
        count["kernels"].as_array().ok_or_else(|| format!("wgpt profile --count names no kernels: {text}"))?;
    let names = kernels.iter().filter_map(|k| k["name"].as_str()).filter(|name| *name != "clear");
    Ok(names.map(kernel::code_name).collect())
}

/// One test, since each GPU's compiler takes seconds of every core. `WGPT_BLESS=1` writes the found numbers into
/// budgets.txt where they are better, and lines for new kernels.
#[test]
fn kernels_stay_within_their_budgets() -> Result<(), String> {
    let Some(printed) = compile(&GPUS, &[])? else { return Ok(()) };
    let file = root().join("tests/it/isa/budgets.txt");
    let text = std::fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
    let mut table = Table::read(&text)?;
    if std::env::var_os("WGPT_BLESS").is_some() {
        table.bless(&printed.rows, &printed.mesa);
        std::fs::write(&file, table.text()).map_err(|e| format!("{}: {e}", file.display()))?;
        say("isa: tests/it/isa/budgets.txt is written anew");
    }
    let of_f16 = kernels_of_f16(&printed, "ampere")?;
    let mut faults = table.check(&printed.rows, &printed.mesa);
    faults.extend(check_predicted(&printed, &table)?);
    faults.extend(rules::check(&printed.rows));
    faults.extend(rules::check_products(&printed.rows));
    faults.extend(rules::check_step("ampere", &printed.rows, &of_f16, table.tenths(&printed.mesa)));
    for precision in ["f16", "f32"] {
        // tools/isa compiles a smaller step, which has to have the kernels of the real one
        let is_there = |name: &String| printed.rows.iter().any(|row| row.gpu == "ampere" && row.kernel == *name);
        let missing = counted(precision)?.into_iter().filter(|name| !is_there(name));
        faults.extend(
            missing.map(|name| format!("ampere: {name}: a step at batch 64 in {precision} needs it: not compiled")),
        );
    }
    let sum = rules::step(&printed.rows, "ampere", &of_f16).map(|row| row.instructions).sum::<u64>();
    say(&format!(
        "{} kernels on {}, Mesa {}; the {} of a d12 step in f16 have {sum} instructions on Ampere",
        printed.rows.len(),
        GPUS.join(" "),
        printed.mesa,
        of_f16.len()
    ));
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
    Ok(())
}

/// The tool's prediction from fresh machine code is the one in ARCHITECTURE.md, which is made from the committed one.
#[test]
fn a_prediction_from_fresh_machine_code_is_the_committed_one() -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let Some(out) = isa(&["--predict", "A100 SXM 80 GB"], &folder.path().join("out"))? else { return Ok(()) };
    assert!(out.contains("unmeasured") && out.contains("limiter"), "{out}");
    let speed = out.lines().find(|line| line.contains("NVIDIA A100 SXM 80 GB in f16: predicted"));
    let speed =
        speed.and_then(|line| line.split(" tokens/s").next()?.rsplit(' ').next()?.replace(',', "").parse::<f64>().ok());
    let speed = speed.ok_or_else(|| format!("no prediction in {out}"))?;
    let table = Table::read(include_str!("budgets.txt"))?;
    if !out.contains(&format!("Mesa {},", table.mesa)) {
        say(&format!("isa: the prediction of another Mesa than {} is not compared", table.mesa));
        return Ok(());
    }
    let expected = format!("| {:.0} k |", speed / 1e3);
    let architecture = include_str!("../../../ARCHITECTURE.md");
    let line = architecture.lines().find(|line| line.starts_with("| NVIDIA A100")).ok_or("no line for the A100")?;
    assert!(line.contains(&expected), "predicted {speed} tokens/s; {line}");
    Ok(())
}

/// Statistics on NVIDIA's own driver are seen through `wgpt profile --statistics` alone, so its table must have what
/// the compiler says; and the driver's bounds checks, which a device of our own switches off, must show in it.
#[test]
fn profile_prints_the_drivers_statistics_with_and_without_its_checks() -> Result<(), String> {
    let sizes = "--layers 1 --heads 1 --channels 64 --vocab 257 --batch 1 --context 64 --precision f32";
    let mut instructions = Vec::new();
    for checks in [None, Some("--driver-checks")] {
        let arguments = ["profile", "--statistics"].into_iter().chain(sizes.split(' ')).chain(checks);
        let Some(printed) = compile(&["turing"], &arguments.collect::<Vec<_>>())? else { return Ok(()) };
        let log = printed.out.path().join("out/turing/command/log");
        let log = std::fs::read_to_string(&log).map_err(|e| format!("{}: {e}", log.display()))?;
        let on = if checks.is_some() { "on" } else { "off" };
        assert!(log.contains(&format!("bounds checks by the driver: {on}")), "{log}");
        let heading = log.lines().find(|line| line.starts_with("kernel ")).ok_or("no table")?;
        assert!(
            ["Number of GPRs", "Spills to memory", "SLM size"].iter().all(|name| heading.contains(name)),
            "{heading}"
        );
        let registers = heading.find("Number of GPRs").ok_or("no registers")? + "Number of GPRs".len();
        for row in &printed.rows {
            let line = log.lines().find(|line| line.starts_with(&format!("{} ", row.kernel)));
            let line = line.ok_or_else(|| format!("no line for {}: {log}", row.kernel))?;
            let column = line.get(..registers).and_then(|line| line.rsplit(' ').next());
            assert_eq!(column, Some(row.registers.to_string().as_str()), "{line}");
        }
        instructions.push(printed.rows.iter().map(|row| row.instructions).sum::<u64>());
    }
    // 1.46 times as many when this was written
    assert!(instructions[1] * 4 > instructions[0] * 5, "{instructions:?} instructions without and with checks");
    Ok(())
}

/// A stand-in accepts every submission and computes nothing: tuning must say so in one line and keep no record.
#[test]
fn tuning_on_a_stand_in_ends_with_one_line_and_no_record() -> Result<(), String> {
    let command = ["tune", "--model", "d6", "--batch", "1", "--precision", "f16"];
    let Some(printed) = compile(&["ampere"], &command)? else { return Ok(()) };
    let folder = printed.out.path().join("out/ampere/command");
    let log = std::fs::read_to_string(folder.join("log")).map_err(|e| format!("{}: {e}", folder.display()))?;
    let errors: Vec<&str> = log.lines().filter(|line| line.starts_with("error")).collect();
    let [error] = errors[..] else { return Err(format!("expected one error:\n{log}")) };
    assert_eq!(log.lines().last(), Some(error), "{log}");
    for part in ["error: tune: ", "(NVK", "computes nothing: all results of matmul_tiled.forward.64x64x16.8x4 are zero"]
    {
        assert!(error.contains(part), "expected {part:?} in {error}");
    }
    assert!(
        error.ends_with("expected about 9.4e-1; check whether it is a stand-in for a GPU, or its driver is broken"),
        "{error}"
    );
    let record = folder.join("cache/tune");
    assert!(!record.exists(), "{} was made", record.display());
    Ok(())
}

/// Wrong arguments are refused before anything is fetched or built.
#[test]
#[cfg(unix)]
fn wrong_arguments_of_the_tool_end_with_one_line() {
    for (arguments, what) in [
        (&["--guess", "h100"][..], "unknown option `--guess`"),
        (&["--predict", "voodoo2"], "--predict: unknown GPU `voodoo2`, expected one of h100 h200"),
        (&["--predict", "h100", "--gpu", "ada"], "--predict accepts only --json"),
        (&["--predict"], "--predict needs a value"),
        (&["--gpu", "hopper,voodoo2"], "unknown GPU `voodoo2`"),
        (&["--gpu"], "--gpu needs a value"),
        (&["--gpu", ","], "--gpu names no GPU"),
        (&["--"], "no arguments for wgpt"),
        (&["--json", "/nowhere/kernels.json"], "cannot write /nowhere/kernels.json"),
    ] {
        let output = Command::new(root().join("tools/isa")).args(arguments).output().expect("tools/isa starts");
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {err}");
        assert!(
            err.starts_with("tools/isa: ") && err.contains(what) && err.lines().count() == 1,
            "{arguments:?}: {err}"
        );
    }
    let output = Command::new(root().join("tools/isa")).arg("--help").output().expect("tools/isa starts");
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("--gpu LIST"));
}
