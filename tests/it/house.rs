//! Rules of this codebase that no lint can check: which floor imports which, which files may name what, and which files
//! belong together. ARCHITECTURE.md gives the reasons, and the floors are read from its drawing. A rule takes files and
//! returns faults; `planted` tests each rule with some.

mod documents;
mod planted;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use regex::Regex;

/// A file that an operator's stem asks for and that is missing on purpose: stepcontrol decides about a step and
/// computes no tensor; src/cases/stepcontrol.rs writes the decisions out.
const NO_FILE: &str = "src/reference/stepcontrol.rs";
/// Operators that import stepcontrol on purpose: they bind the step's state and numbers, which it keeps.
const BIND_THE_STEP: [&str; 2] = ["adamw", "crossentropy"];
/// Operators that import sums on purpose: it adds up what they leave.
const LEAVE_SUMS: [&str; 3] = ["bias", "layernorm", "matmul"];
/// Who may import `reference`: cases, and the files of tuning that hold kernels against f64 on the user's adapter.
const COMPARERS: [&str; 3] = ["src/cases/", "src/measure/tune/attention.rs", "src/measure/tune/ends.rs"];

/// Files that print what does not run: the record, its list, and faults planted for this rule.
const PRINT_NOT_RUN: [&str; 3] = ["tests/common/", "tests/what_did_not_run.rs", "tests/it/house/"];

/// Path from the root, and text.
type File = (String, String);

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).unwrap()
}

/// Returns a text without strings, comments and inline tests, which end a file.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let skipped = regex(r##"(?s)r#".*?"#|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])'|//[^\n]*|/\*.*?\*/"##);
    skipped.replace_all(text, "").into_owned()
}

/// Returns the floors of ARCHITECTURE.md's drawing, lowest first, with those beside each other in one list.
fn drawn() -> Vec<Vec<String>> {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let line = text.split("\n## Floors\n").nth(1).and_then(|text| text.split('`').nth(1)).unwrap();
    line.split(" ← ").map(|floors| floors.split(", ").map(str::to_owned).collect()).collect()
}

/// `src/ops/matmul/mod.rs` is `[ops, matmul]`; empty for the crate's root and for tests.
fn module(path: &str) -> Vec<&str> {
    let inner = path.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
    let outside = ["lib", "main"].contains(&inner) || inner.ends_with("tests") || !path.starts_with("src/");
    if outside { Vec::new() } else { inner.split('/').collect() }
}

/// A floor imports only floors below it, `reference` nothing but the table of parameters.
fn floors(files: &[File]) -> Vec<String> {
    let drawn = drawn();
    let level = |floor: &str| drawn.iter().position(|floors| floors.iter().any(|other| other == floor));
    // a floor, a brace that could hide several, or a way up
    let path = regex(r"\b(?:crate|wgpt)::(\w+|\{)|((?:\bsuper::)+)");
    let mut faults = Vec::new();
    for (file, text) in files {
        let module = module(file);
        let Some(own) = module.first() else { continue };
        if *own != "reference" && level(own).is_none() {
            faults.push(format!("{file}: `{own}` is no floor, expected one of {drawn:?}"));
        }
        for found in path.captures_iter(&code(text)) {
            let other = found.get(1).map_or(*own, |floor| floor.as_str());
            let allowed = match (level(own), level(other)) {
                _ if other == *own => found.get(2).is_none_or(|up| up.as_str().matches("super").count() < module.len()),
                (Some(own), Some(other)) => other < own,
                (None, Some(_)) => file == "src/reference/gpt2.rs" && other == "model",
                _ if other == "reference" => COMPARERS.iter().any(|start| file.starts_with(start)),
                // macros are at the crate's root
                _ => other != "{",
            };
            if !allowed {
                faults.push(format!("{file}: {}, expected floors left of {own} in {drawn:?}", &found[0]));
            }
        }
    }
    faults
}

/// No operator imports another, but for what is said above.
fn operators(files: &[File]) -> Vec<String> {
    let operators = operators_in(&files.iter().map(|(path, _)| path.clone()).collect());
    let siblings = regex(r"\b(?:crate::ops|super)::(?:\{([^;]*)\}|(\w+))");
    let mut faults = Vec::new();
    for (file, text) in files {
        let ["ops", own, ..] = module(file)[..] else { continue };
        let code = code(text);
        let lists = siblings.captures_iter(&code).filter_map(|found| found.get(1).or(found.get(2)));
        for name in lists.flat_map(|list| list.as_str().split(|c: char| !c.is_alphanumeric() && c != '_')) {
            let bound = name == "stepcontrol" && BIND_THE_STEP.contains(&own);
            let meant = name == own || bound || name == "sums" && LEAVE_SUMS.contains(&own);
            if operators.contains(name) && !meant {
                faults.push(format!("{file}: operator {own} imports {name}"));
            }
        }
    }
    faults
}

/// Only `gpu` names wgpu, and only one file of it calls Vulkan. `gpu` holds no word of transformers; `gpu` and `model`
/// hold no flag and no command of the program, comments included.
fn words(files: &[File]) -> Vec<String> {
    let transformers = regex("(?i)attention|layernorm|token|vocab|(^|[^w])gpt");
    let (commands, wgpu, ash) = (regex(r"(^|[^-\w])--[a-z]|\bwgpt [a-z]"), regex(r"\bwgpu\b"), regex(r"\bash::"));
    let mut faults = Vec::new();
    for (file, text) in files {
        let (gpu, model) = (file.starts_with("src/gpu/"), file.starts_with("src/model/"));
        let said = |line: &&str| gpu && transformers.is_match(line) || (gpu || model) && commands.is_match(line);
        let named = |line: &&str| !gpu && wgpu.is_match(line) || file != "src/gpu/vulkan.rs" && ash.is_match(line);
        let code = code(text);
        let lines = text.lines().filter(said).chain(code.lines().filter(named));
        faults.extend(lines.map(|line| format!("{file}: {}", line.trim())));
    }
    faults
}

/// `layernorm` means shaders/layernorm.wgsl, src/ops/layernorm.rs, src/reference/layernorm.rs, src/cases/layernorm.rs.
/// The matrix kernels are generated, so `matmul` begins at src/ops. `attention_step` is a variant of `attention`, named
/// for its idea: it has a shader of its own and is launched and tested where its operator is.
fn stems(paths: &BTreeSet<String>) -> Vec<String> {
    let operators = operators_in(paths);
    let is_variant = |s: &str| !operators.contains(s) && s.match_indices('_').any(|(i, _)| operators.contains(&s[..i]));
    let mut stems = directly_in(paths, "shaders/", ".wgsl");
    stems.retain(|stem| !is_variant(stem));
    stems.extend(operators);
    let mut faults = Vec::new();
    for stem in stems {
        let generated = format!("src/ops/{stem}/generate");
        for (folder, ending) in [("shaders", "wgsl"), ("src/ops", "rs"), ("src/reference", "rs"), ("src/cases", "rs")] {
            let file = format!("{folder}/{stem}.{ending}");
            let there = paths.contains(&file)
                || paths.contains(&format!("{folder}/{stem}/mod.rs"))
                || folder == "shaders" && paths.iter().any(|path| path.starts_with(&generated));
            if there == (file == NO_FILE) {
                faults.push(format!("{file}: {}", if there { "is in NO_FILE and exists" } else { "is missing" }));
            }
        }
    }
    faults
}

/// Stems of the files that lie directly in a folder.
fn directly_in(paths: &BTreeSet<String>, folder: &str, ending: &str) -> BTreeSet<String> {
    let stem = |path: &String| path.strip_prefix(folder)?.strip_suffix(ending).map(str::to_owned);
    paths.iter().filter_map(stem).filter(|stem| !stem.contains('/') && stem != "mod").collect()
}

fn operators_in(paths: &BTreeSet<String>) -> BTreeSet<String> {
    let mut operators = directly_in(paths, "src/ops/", ".rs");
    operators.extend(directly_in(paths, "src/ops/", "/mod.rs"));
    // what several generators share is no operator
    operators.retain(|stem| !stem.starts_with("matrix_units"));
    operators
}

/// Tests record what they leave out through one function, and the documentation holds no doctests, which nothing runs.
fn tests(files: &[File]) -> Vec<String> {
    let printed = regex(r#"(?:print|println|eprint|eprintln|write|writeln|say)!?\((?:&format!\()?"[^"\n]*not run"#);
    let mut faults = Vec::new();
    for (file, text) in files.iter().filter(|(file, _)| !PRINT_NOT_RUN.iter().any(|start| file.starts_with(start))) {
        let tests = file.starts_with("tests/") || file.ends_with("tests.rs");
        let skipped =
            if tests { text } else { text.split_once("#[cfg(test)]\nmod tests {").map_or("", |(_, tests)| tests) };
        let lines = skipped.lines().filter(|line| printed.is_match(line));
        faults.extend(lines.map(|line| format!("{file}: {}, expected not_run(…)", line.trim())));
        let mut inside = false;
        for line in text.lines().map(str::trim) {
            let Some(fence) = line.strip_prefix("/// ```").or(line.strip_prefix("//! ```")) else { continue };
            inside = !inside;
            if inside && fence != "text" {
                faults.push(format!("{file}: {line}, expected ```text: nothing runs doctests"));
            }
        }
    }
    faults
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_house_keeps_its_rules() {
    let all =
        ["shaders", "src", "tests"].map(|folder| glob::glob(&format!("{}/{folder}/**/*.*", root().display())).unwrap());
    let inside = |path: &Path| path.strip_prefix(root()).unwrap().to_string_lossy().replace('\\', "/");
    let paths: BTreeSet<String> = all.into_iter().flatten().map(|path| inside(&path.unwrap())).collect();
    let read = |path: &String| (path.clone(), fs::read_to_string(root().join(path)).unwrap());
    let files: Vec<File> = paths.iter().filter(|path| path.ends_with(".rs")).map(read).collect();
    let (files, of_tests): (Vec<File>, Vec<File>) = files.into_iter().partition(|(path, _)| path.starts_with("src/"));
    assert!(files.len() > 100, "{} files, expected those of all floors", files.len());
    let mut faults = [floors(&files), operators(&files), words(&files), stems(&paths)].concat();
    faults.extend([tests(&files), tests(&of_tests)].concat());
    let listed: BTreeSet<String> = wgpt::ops::OPERATORS.iter().map(|operator| operator.name.to_owned()).collect();
    let unlisted = operators_in(&paths).into_iter().filter(|stem| !listed.contains(stem));
    faults.extend(unlisted.map(|stem| format!("src/ops/mod.rs: `{stem}` is missing in for_each_operator!")));
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}
