//! The house's rules that a text search can hold: which file may name what, and which files belong together. Why they
//! are rules is said in ARCHITECTURE.md. Each is a function from files to faults, so that each is shown a planted one.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Files that an operator's stem would ask for and that are missing on purpose.
const NO_FILE: [(&str, &str); 1] = [(
    "src/reference/stepcontrol.rs",
    "decides about a step (clip, apply or skip, Adam's powers) and computes no tensor; src/cases/stepcontrol.rs \
     writes the decisions out",
)];

/// Operators that know another one on purpose.
const NEIGHBOURS: [(&str, &str, &str); 3] = [
    ("adamw", "stepcontrol", "binds the state and the hyper-parameters that it keeps on the GPU"),
    ("crossentropy", "stepcontrol", "binds the state, whose loss scale its gradient is multiplied by"),
    ("gradnorm", "stepcontrol", "binds the state and the hyper-parameters, which say what gradients are multiples of"),
];

/// Modules of `ops` that are no operator: what several operators' generators share.
const SHARED_BY_OPERATORS: [&str; 2] = ["matrix_units", "matrix_units_tests"];

/// What each floor may import from the crate. `reference` is for cases, so no other floor has it; two files of
/// tuning do, which compare kernels with it on the user's adapter.
const FLOORS: [(&str, &[&str]); 15] = [
    ("error", &[]),
    ("files", &["error"]),
    ("random", &["error"]),
    ("gpu", &["error"]),
    ("ops", &["error", "gpu"]),
    ("model", &["error", "random", "gpu", "ops"]),
    ("cases", &["error", "gpu", "ops", "model", "reference"]),
    ("formats", &["error", "files", "model"]),
    ("data", &["error", "files", "random", "ops", "formats"]),
    ("train", &["error", "gpu", "ops", "model", "data", "formats"]),
    ("infer", &["error", "gpu", "ops", "model", "data"]),
    ("measure", &["error", "files", "random", "gpu", "ops", "model", "cases", "data", "train"]),
    ("run", &["error", "files", "gpu", "ops", "model", "formats", "data", "train", "infer", "measure"]),
    ("cli", &["error", "files", "gpu", "ops", "model", "cases", "formats", "data", "train", "infer", "measure", "run"]),
    ("reference", &[]),
];

/// Words of transformers, in lower case. `wgpt` is not one.
const TRANSFORMER_WORDS: [&str; 5] = ["attention", "layernorm", "token", "vocab", "gpt"];

/// A source file.
struct File {
    /// From the repository's root, with `/`.
    path: String,
    text: String,
    /// The text with comments, strings and test modules blanked out; every line stays where it was.
    code: String,
}

impl File {
    fn new(path: &str, text: &str) -> Self {
        Self { path: path.into(), text: text.into(), code: without_tests(&blank(text)) }
    }

    /// True for files that hold nothing but a floor's tests.
    fn is_test(&self) -> bool {
        self.path.ends_with("_tests.rs") || self.path.ends_with("/tests.rs")
    }

    /// `src/ops/matmul/mod.rs` is `[ops, matmul]`; empty for `lib.rs` and `main.rs`.
    fn module(&self) -> Vec<&str> {
        let inner = self.path.trim_start_matches("src/").trim_end_matches(".rs");
        inner.split('/').filter(|part| !matches!(*part, "mod" | "lib" | "main")).collect()
    }

    fn line(&self, at: usize) -> String {
        format!("{}:{}", self.path, self.code[..at].matches('\n').count() + 1)
    }
}

/// Blanks comments, strings and character literals.
fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &text.as_bytes()[at..];
        let word_before = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
        let length = if rest.starts_with(b"//") {
            rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len())
        } else if rest.starts_with(b"/*") {
            block_comment(rest)
        } else if rest[0] == b'"' {
            string(rest)
        } else if rest[0] == b'r' && (!word_before || bytes[at - 1] == b'b' || bytes[at - 1] == b'c') {
            raw_string(rest)
        } else if rest[0] == b'\'' {
            character(rest)
        } else {
            0
        };
        for byte in &mut out[at..at + length] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at += length.max(1);
    }
    // blanked runs are whole characters, so this loses nothing
    String::from_utf8_lossy(&out).into_owned()
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest[at..].starts_with(b"*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

fn string(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != b'"' {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

/// `r"…"` or `r#"…"#`; 0 if the `r` starts a name.
fn raw_string(rest: &[u8]) -> usize {
    let hashes = rest[1..].iter().take_while(|b| **b == b'#').count();
    if rest.get(1 + hashes) != Some(&b'"') {
        return 0;
    }
    let end = [b"\"".as_slice(), &b"#".repeat(hashes)].concat();
    let body = &rest[2 + hashes..];
    body.windows(end.len()).position(|w| w == end).map_or(rest.len(), |i| 2 + hashes + i + end.len())
}

/// `'x'`, `'\n'`, `'é'`; 0 for a lifetime.
fn character(rest: &[u8]) -> usize {
    if rest.get(1) == Some(&b'\\') {
        return rest[3..].iter().position(|b| *b == b'\'').map_or(0, |i| 4 + i);
    }
    match std::str::from_utf8(&rest[1..rest.len().min(5)]).map_or_else(|e| e.valid_up_to(), str::len) {
        0 => 0,
        valid => {
            let first = String::from_utf8_lossy(&rest[1..=valid]).chars().next().map_or(1, char::len_utf8);
            if rest.get(1 + first) == Some(&b'\'') { 2 + first } else { 0 }
        }
    }
}

/// Blanks what `#[cfg(test)]` stands before.
fn without_tests(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut out = code.to_owned();
    while let Some(start) = out.find(MARK) {
        let item = start + MARK.len();
        let end = match out[item..].find(['{', ';']) {
            Some(i) if out.as_bytes()[item + i] == b'{' => closing(&out, item + i),
            Some(i) => item + i + 1,
            None => out.len(),
        };
        let blanked: String = out[start..end].chars().map(|c| if c == '\n' { c } else { ' ' }).collect();
        out.replace_range(start..end, &blanked);
    }
    out
}

/// One past the bracket that closes the one at `open`.
fn closing(code: &str, open: usize) -> usize {
    let mut depth = 0;
    for (i, c) in code[open..].char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return open + i + 1;
        }
    }
    code.len()
}

/// Every path into this crate that the code names, with `use` trees spread out: (where, modules from the root).
fn crate_paths(file: &File) -> Vec<(String, Vec<String>)> {
    let mut found = Vec::new();
    for (at, name) in names(&file.code) {
        let own = file.module();
        let mut base: Vec<String> = match name {
            "crate" | "wgpt" => Vec::new(),
            "self" => own.iter().map(|m| (*m).to_owned()).collect(),
            // `super::super` is found at its first `super`
            "super" if !file.code[..at].trim_end().ends_with("::") => {
                own[..own.len().saturating_sub(1)].iter().map(|m| (*m).to_owned()).collect()
            }
            _ => continue,
        };
        let mut rest = &file.code[at + name.len()..];
        while let Some(inner) = rest.trim_start().strip_prefix("::").map(str::trim_start)
            && let Some(inner) = inner.strip_prefix("super")
        {
            base.pop();
            rest = inner;
        }
        let mut paths = Vec::new();
        tree(rest, &base, &mut paths);
        found.extend(paths.into_iter().map(|path| (file.line(at), path)));
    }
    found
}

/// Spreads out `::a::b`, `::{a, b::c}`, `::*` behind `base`.
fn tree(rest: &str, base: &[String], paths: &mut Vec<Vec<String>>) {
    let rest = rest.trim_start();
    let Some(inner) = rest.strip_prefix("::").map(str::trim_start) else {
        if !base.is_empty() {
            paths.push(base.to_vec());
        }
        return;
    };
    if inner.starts_with('{') {
        let group = &inner[1..closing(inner, 0) - 1];
        let mut start = 0;
        for end in commas(group).into_iter().chain([group.len()]) {
            let branch = group[start..end].trim();
            if !branch.is_empty() {
                tree(&format!("::{branch}"), base, paths);
            }
            start = end + 1;
        }
        return;
    }
    let length = inner.find(|c: char| !is_word(c)).unwrap_or(inner.len());
    if length == 0 {
        paths.push(base.to_vec());
    } else {
        tree(&inner[length..], &[base, &[inner[..length].to_owned()]].concat(), paths);
    }
}

/// Positions of the commas outside all brackets.
fn commas(code: &str) -> Vec<usize> {
    let mut depth = 0;
    let mut found = Vec::new();
    for (i, c) in code.char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => found.push(i),
            _ => {}
        }
    }
    found
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// All names with their positions.
fn names(code: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut at = 0;
    for word in code.split(|c| !is_word(c)) {
        if !word.is_empty() {
            found.push((at, word));
        }
        // what split a word off is one character, not always one byte
        at += word.len();
        at += code[at..].chars().next().map_or(0, char::len_utf8);
    }
    found
}

/// No floor imports one above it, and none what is beside it without need.
fn floors(files: &[File]) -> Vec<String> {
    let known = FLOORS.map(|(floor, _)| floor);
    let mut faults = Vec::new();
    for file in files.iter().filter(|f| !f.is_test()) {
        let Some(own) = file.module().first().copied() else { continue };
        let Some((_, allowed)) = FLOORS.iter().find(|(floor, _)| *floor == own) else {
            faults.push(format!("{}: `{own}` is no floor, expected one of {}", file.path, known.join(" ")));
            continue;
        };
        for (place, path) in crate_paths(file) {
            let Some(other) = path.first().filter(|other| known.contains(&other.as_str())) else { continue };
            // the whole model of the reference reads the table of parameters; tuning holds attention and GELU against f64
            let meant = file.path == "src/reference/gpt2.rs" && other == "model"
                || file.path == "src/measure/tune/attention.rs" && other == "reference"
                || file.path == "src/measure/tune/ends.rs" && other == "reference";
            if other != own && !allowed.contains(&other.as_str()) && !meant {
                faults.push(format!("{place}: {own} imports {}, expected only {allowed:?}", path.join("::")));
            }
        }
    }
    faults
}

/// No operator knows another.
fn neighbours(files: &[File]) -> Vec<String> {
    let operators: BTreeSet<&str> = files
        .iter()
        .map(File::module)
        .filter(|m| m.first() == Some(&"ops"))
        .filter_map(|m| m.get(1).copied())
        .filter(|m| !SHARED_BY_OPERATORS.contains(m))
        .collect();
    let mut faults = Vec::new();
    for file in files.iter().filter(|f| !f.is_test()) {
        let [floor, own, ..] = file.module()[..] else { continue };
        for (place, path) in crate_paths(file) {
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            let ("ops", ["ops", other, ..]) = (floor, path.as_slice()) else { continue };
            let meant = NEIGHBOURS.iter().any(|(a, b, _)| *a == own && b == other);
            if *other != own && operators.contains(other) && !meant {
                faults.push(format!("{place}: operator {own} knows operator {other}"));
            }
        }
    }
    faults
}

/// Only `gpu` names wgpu.
fn wgpu_in_gpu_only(files: &[File]) -> Vec<String> {
    let mut faults = Vec::new();
    for file in files.iter().filter(|f| f.module().first() != Some(&"gpu")) {
        for (at, _) in names(&file.code).into_iter().filter(|(_, name)| *name == "wgpu") {
            faults.push(format!("{}: names wgpu, expected only src/gpu to", file.line(at)));
        }
    }
    faults
}

/// Only one file calls Vulkan.
fn ash_in_one_file(files: &[File]) -> Vec<String> {
    let mut faults = Vec::new();
    for file in files.iter().filter(|file| file.path != "src/gpu/vulkan.rs") {
        for (at, _) in names(&file.code).into_iter().filter(|(_, name)| *name == "ash") {
            faults.push(format!("{}: names ash, expected only src/gpu/vulkan.rs to", file.line(at)));
        }
    }
    faults
}

/// `gpu` holds not one word of transformers, comments included.
fn gpu_is_general(files: &[File]) -> Vec<String> {
    let mut faults = Vec::new();
    for file in files.iter().filter(|f| f.module().first() == Some(&"gpu")) {
        for (i, line) in file.text.lines().enumerate() {
            let lower = line.to_lowercase().replace("wgpt", "");
            for word in TRANSFORMER_WORDS.iter().filter(|word| lower.contains(**word)) {
                faults.push(format!("{}:{}: `{word}` in {}", file.path, i + 1, line.trim()));
            }
        }
    }
    faults
}

/// No `unwrap` and no `expect` outside tests. `Tensor::expect(place, name, rows, columns)`, which returns a `Result`,
/// is told from `Option::expect(message)` by its number of arguments.
fn no_unwrap(files: &[File]) -> Vec<String> {
    let mut faults = Vec::new();
    for file in files.iter().filter(|f| !f.is_test()) {
        for (at, name) in names(&file.code) {
            let call = file.code[at + name.len()..].trim_start();
            // a method, or a function named by its path
            let used = file.code[..at].trim_end().ends_with(['.', ':']);
            let broken = match name {
                "unwrap" | "unwrap_err" | "unwrap_unchecked" | "expect_err" => used,
                "expect" if call.starts_with('(') => used && arguments(&call[1..closing(call, 0) - 1]) < 4,
                _ => false,
            };
            if broken {
                faults.push(format!("{}: {name} outside tests", file.line(at)));
            }
        }
    }
    faults
}

fn arguments(inside: &str) -> usize {
    let inside = inside.trim().trim_end_matches(',');
    commas(inside).len() + 1
}

/// `layernorm` means shaders/layernorm.wgsl, src/ops/layernorm.rs, src/reference/layernorm.rs, src/cases/layernorm.rs.
/// The matrix kernels are generated, so `matmul` begins at src/ops. `attention_step` is a variant of `attention`, named
/// for its idea: it has a shader of its own and is launched and tested where its operator is.
fn stems(paths: &BTreeSet<String>) -> Vec<String> {
    let shaders = directly_in(paths, "shaders/", ".wgsl");
    let operators = operators_in(paths);
    let is_variant =
        |s: &String| !operators.contains(s) && s.match_indices('_').any(|(i, _)| operators.contains(&s[..i]));
    let shaders: BTreeSet<String> = shaders.into_iter().filter(|s| !is_variant(s)).collect();
    let mut faults = Vec::new();
    for stem in shaders.union(&operators) {
        let generated = paths.contains(&format!("src/ops/{stem}/generate.rs"))
            || paths.contains(&format!("src/ops/{stem}/generate/mod.rs"));
        let shader = shaders.contains(stem) || generated;
        for (exists, file) in [
            (shader, format!("shaders/{stem}.wgsl")),
            (operators.contains(stem), format!("src/ops/{stem}.rs")),
            (paths.contains(&format!("src/reference/{stem}.rs")), format!("src/reference/{stem}.rs")),
            (
                [".rs", "/mod.rs"].iter().any(|end| paths.contains(&format!("src/cases/{stem}{end}"))),
                format!("src/cases/{stem}.rs"),
            ),
        ] {
            let meant = NO_FILE.iter().any(|(path, _)| *path == file);
            if exists && meant {
                faults.push(format!("{file} is there, but NO_FILE says that it is missing on purpose"));
            } else if !exists && !meant {
                faults.push(format!("{file} is missing: `{stem}` has no such file"));
            }
        }
    }
    faults
}

/// Stems of the files that lie directly in a folder.
fn directly_in(paths: &BTreeSet<String>, folder: &str, ending: &str) -> BTreeSet<String> {
    let stem = |p: &String| p.strip_prefix(folder)?.strip_suffix(ending).map(str::to_owned);
    paths.iter().filter_map(stem).filter(|s| !s.contains('/') && s != "mod").collect()
}

fn operators_in(paths: &BTreeSet<String>) -> BTreeSet<String> {
    let mut operators = directly_in(paths, "src/ops/", ".rs");
    operators.extend(directly_in(paths, "src/ops/", "/mod.rs"));
    operators.retain(|stem| !SHARED_BY_OPERATORS.contains(&stem.as_str()));
    operators
}

/// Operators with a file that are not in the one list, from which all tests start.
fn unlisted(paths: &BTreeSet<String>, listed: &[&str]) -> Vec<String> {
    let missing = operators_in(paths).into_iter().filter(|stem| !listed.contains(&stem.as_str()));
    missing.map(|stem| format!("`{stem}` is missing in for_each_operator! of src/ops/mod.rs")).collect()
}

/// All files below `folder`, from the root.
fn below(folder: &str, paths: &mut BTreeSet<String>) -> std::io::Result<()> {
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder))? {
        let entry = entry?;
        let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            below(&path, paths)?;
        } else {
            paths.insert(path);
        }
    }
    Ok(())
}

fn sources() -> std::io::Result<Vec<File>> {
    let mut paths = BTreeSet::new();
    below("src", &mut paths)?;
    let files: std::io::Result<Vec<File>> = paths
        .iter()
        .filter(|p| p.ends_with(".rs"))
        .map(|p| Ok(File::new(p, &fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(p))?)))
        .collect();
    let files = files?;
    assert!(files.len() >= 50, "{} files, expected those of nine floors", files.len());
    Ok(files)
}

#[track_caller]
fn none(faults: &[String]) {
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn no_floor_imports_one_above_it() -> std::io::Result<()> {
    none(&floors(&sources()?));
    Ok(())
}

#[test]
fn no_operator_knows_another() -> std::io::Result<()> {
    none(&neighbours(&sources()?));
    Ok(())
}

#[test]
fn only_gpu_names_wgpu_and_one_file_vulkan() -> std::io::Result<()> {
    none(&wgpu_in_gpu_only(&sources()?));
    none(&ash_in_one_file(&sources()?));
    Ok(())
}

#[test]
fn gpu_has_no_word_of_transformers() -> std::io::Result<()> {
    none(&gpu_is_general(&sources()?));
    Ok(())
}

#[test]
fn nothing_unwraps_outside_tests() -> std::io::Result<()> {
    none(&no_unwrap(&sources()?));
    Ok(())
}

#[test]
fn every_operator_has_its_four_files() -> std::io::Result<()> {
    let mut paths = BTreeSet::new();
    for folder in ["shaders", "src"] {
        below(folder, &mut paths)?;
    }
    none(&stems(&paths));
    let listed: Vec<&str> = wgpt::ops::OPERATORS.iter().map(|operator| operator.name).collect();
    none(&unlisted(&paths, &listed));
    Ok(())
}

#[test]
fn an_operator_that_is_not_in_the_list_is_found() {
    let paths = ["src/ops/gelu.rs", "src/ops/matmul/mod.rs", "src/ops/matrix_units.rs", "src/ops/mod.rs"];
    let paths: BTreeSet<String> = paths.map(str::to_owned).into();
    none(&unlisted(&paths, &["gelu", "matmul"]));
    let faults = unlisted(&paths, &["matmul"]);
    assert_eq!(faults, ["`gelu` is missing in for_each_operator! of src/ops/mod.rs"]);
}

/// A rule, a path, a text: what the rule says.
fn says(rule: fn(&[File]) -> Vec<String>, path: &str, text: &str) -> usize {
    let others = ["src/ops/bias.rs", "src/ops/gelu.rs"].map(|p| File::new(p, ""));
    rule(&others.into_iter().chain([File::new(path, text)]).collect::<Vec<_>>()).len()
}

#[test]
fn planted_imports_are_found() {
    for (path, text, faults) in [
        ("src/ops/bias.rs", "use crate::gpu::{Kernel, Pass};", 0),
        ("src/ops/bias.rs", "use crate::model::Config;", 1),
        ("src/ops/bias.rs", "use crate::{error::Error, model::{Config, params}, train};", 3),
        ("src/ops/bias.rs", "use super::super::cli;", 1),
        ("src/ops/matmul/mod.rs", "use super::group;", 0),
        ("src/ops/mod.rs", "use super::{gpu::Caps, train};", 1),
        ("src/ops/bias.rs", "fn f() { crate::model::forward(); }", 1),
        ("src/ops/bias.rs", "// crate::model\n/* use crate::model; */ const S: &str = \"crate::model\";", 0),
        (
            "src/ops/bias.rs",
            "#[cfg(test)]\nmod tests { use crate::reference::bias; fn f() { {} } }\nuse crate::cli;",
            1,
        ),
        ("src/data/loader.rs", "use crate::gpu::Gpu;", 1),
        ("src/formats/hf.rs", "use crate::{data::tokens, model::Config};", 1),
        ("src/model/forward.rs", "use crate::run::Run;", 1),
        ("src/run/steps.rs", "use crate::cli::bar;", 1),
        ("src/gpu/pass.rs", "use crate::ops;", 1),
        ("src/error.rs", "use crate::gpu::Gpu;", 1),
        ("src/reference/bias.rs", "use crate::model::Config;", 1),
        ("src/reference/gpt2.rs", "use crate::model::Config;", 0),
        ("src/reference/gpt2.rs", "use crate::error::Error; use super::bias;", 1),
        ("src/cli/train.rs", "use crate::reference::gpt2;", 1),
        ("src/newfloor/x.rs", "", 1),
        ("src/main.rs", "use wgpt::cli;", 0),
    ] {
        assert_eq!(says(floors, path, text), faults, "{path}: {text}");
    }
}

#[test]
fn planted_neighbours_are_found() {
    for (path, text, faults) in [
        ("src/ops/attention.rs", "use super::{bias, group};", 1),
        ("src/ops/attention.rs", "use crate::ops::gelu::forward;", 1),
        ("src/ops/gradnorm.rs", "use super::{stepcontrol, gelu};", 1),
        ("src/ops/bias.rs", "use super::group; fn f() { self::f(); super::bias::f() }", 0),
        ("src/ops/mod.rs", "pub mod bias; fn f() { self::bias::f() }", 0),
        ("src/model/forward.rs", "use crate::ops::bias;", 0),
    ] {
        assert_eq!(says(neighbours, path, text), faults, "{path}: {text}");
    }
}

#[test]
fn planted_words_are_found() {
    assert_eq!(says(wgpu_in_gpu_only, "src/train/run.rs", "fn f(d: &wgpu::Device) {}"), 1);
    assert_eq!(says(wgpu_in_gpu_only, "src/train/run.rs", "use wgpu as w;"), 1);
    assert_eq!(says(wgpu_in_gpu_only, "src/train/run.rs", "// not wgpu::Device\nlet s = \"wgpu\";"), 0);
    assert_eq!(says(wgpu_in_gpu_only, "src/gpu/pass.rs", "use wgpu::Device;"), 0);
    assert_eq!(says(ash_in_one_file, "src/gpu/pass.rs", "use ash::vk;"), 1);
    assert_eq!(says(ash_in_one_file, "src/gpu/vulkan.rs", "use ash::vk;"), 0);
    assert_eq!(
        says(gpu_is_general, "src/gpu/pass.rs", "// the Attention kernel\nlet n_tokens = vocab;\n// wgpt's own"),
        3
    );
    assert_eq!(says(gpu_is_general, "src/ops/bias.rs", "let gpt2 = 1;"), 0);
}

#[test]
fn planted_unwraps_are_found() {
    for (text, faults) in [
        ("let a = b.unwrap();", 1),
        ("let a = b\n    .expect(\"message, with, many, commas\")\n    .c;", 1),
        ("let a = b.expect(&format!(\"{}\", f(1, 2, 3, 4)));", 1),
        ("list.map(Option::unwrap)", 1),
        ("let e = b.expect_err(\"x\"); c.unwrap_err();", 2),
        ("b.unwrap_or(1).max(c.unwrap_or_default()).min(d.unwrap_or_else(f));", 0),
        ("self.expect(place, \"weight\", 1, c)?;", 0),
        ("tensor.expect(\n    place,\n    name,\n    rows(1, 2),\n    c,\n)?;", 0),
        ("#[expect(dead_code, reason = \"x\")]\npub fn expect(&self, place: &str) {}", 0),
        ("// b.unwrap()\n/// ```\n/// b.unwrap();\n/// ```\nlet s = \"b.unwrap()\";", 0),
        ("let s = r#\"b.unwrap() \" \"#; let c = '\"'; let d = b.unwrap();", 1),
        ("fn f<'a>(x: &'a str) -> char { '\\'' } fn g() { b.unwrap() }", 1),
        ("#[cfg(test)]\n#[allow(x)]\nmod tests { fn f() { if x { b.unwrap() } } }\nfn g() { c.unwrap() }", 1),
        ("#[cfg(test)]\nmod more_tests;\nfn g() { c.unwrap() }", 1),
    ] {
        assert_eq!(says(no_unwrap, "src/train/run.rs", text), faults, "{text}");
        assert_eq!(says(no_unwrap, "src/train/run_tests.rs", text), 0, "{text}");
    }
}

#[test]
fn planted_gaps_in_the_stems_are_found() {
    let paths = |list: &[&str]| list.iter().map(|p| (*p).to_owned()).collect::<BTreeSet<_>>();
    let whole = ["shaders/gelu.wgsl", "src/ops/gelu.rs", "src/reference/gelu.rs", "src/cases/gelu.rs"];
    let beside = ["shaders/shared/reduce.wgsl", "src/ops/mod.rs", "src/cases/mod.rs"];
    none(&stems(&paths(&[whole, [beside[0], beside[1], beside[2], whole[0]]].concat())));
    for gap in 0..4 {
        let rest: Vec<&str> = whole.iter().enumerate().filter(|(i, _)| *i != gap).map(|(_, p)| *p).collect();
        let faults = stems(&paths(&rest));
        // without shader and operator nobody asks for the others
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].contains(whole[gap]), "{faults:?}");
    }
    let generated =
        ["src/ops/matmul/mod.rs", "src/ops/matmul/generate.rs", "src/reference/matmul.rs", "src/cases/matmul/mod.rs"];
    none(&stems(&paths(&generated)));
    assert_eq!(stems(&paths(&[&generated[..1], &generated[2..]].concat())).len(), 1);
    none(&stems(&paths(&[&whole[..], &["shaders/gelu_fast.wgsl"]].concat())));
    assert_eq!(stems(&paths(&[&whole[..], &["shaders/gelufast.wgsl", "shaders/_gelu.wgsl"]].concat())).len(), 6);
    let meant = ["shaders/stepcontrol.wgsl", "src/ops/stepcontrol.rs", "src/cases/stepcontrol.rs"];
    none(&stems(&paths(&meant)));
    assert_eq!(stems(&paths(&[&meant[..], &["src/reference/stepcontrol.rs"]].concat())).len(), 1);
}
