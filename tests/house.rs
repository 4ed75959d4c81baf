//! The house's rules that no lint can hold: which floor imports which, who may name what, which files belong together.
//! ARCHITECTURE.md gives the reasons, and the floors are read from its drawing. A rule takes files and returns faults, so
//! that each is shown planted ones.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use regex::Regex;
use syn::visit::Visit;

/// Files that an operator's stem asks for and that are missing on purpose: stepcontrol decides about a step and computes
/// no tensor; src/cases/stepcontrol.rs writes the decisions out.
const NO_FILE: [&str; 1] = ["src/reference/stepcontrol.rs"];

/// Operators that import another one on purpose: they bind the step's state and numbers, which stepcontrol keeps.
const NEIGHBOURS: [(&str, &str); 3] =
    [("adamw", "stepcontrol"), ("crossentropy", "stepcontrol"), ("gradnorm", "stepcontrol")];

/// Modules of `ops` that are no operator: what several operators' generators share.
const SHARED_BY_OPERATORS: [&str; 2] = ["matrix_units", "matrix_units_tests"];

/// Who may import `reference`: cases, and the files of tuning that hold kernels against f64 on the user's adapter.
const COMPARERS: [&str; 3] = ["src/cases/", "src/measure/tune/attention.rs", "src/measure/tune/ends.rs"];

static PATHS_AND_STRINGS: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r#""(?:\\.|[^"\\])*"|(\w+(?: ?:: ?\w+)+)"#).unwrap());

/// A source file with the paths that its code names outside of tests.
#[derive(Default)]
struct File {
    /// From the repository's root, with `/`.
    path: String,
    text: String,
    /// `src/ops/matmul/mod.rs` is `[crate, ops, matmul]`. Modules inside of a file are appended while they are visited.
    module: Vec<String>,
    /// Those into this crate begin with `crate`.
    paths: Vec<Vec<String>>,
}

impl File {
    fn new(path: &str, text: &str) -> Self {
        let mut file = Self { path: path.into(), text: text.into(), module: vec!["crate".into()], ..Self::default() };
        let stem = path.trim_start_matches("src/").trim_end_matches(".rs");
        if !stem.ends_with("tests") {
            let parts = stem.split('/').filter(|part| !matches!(*part, "mod" | "lib" | "main"));
            file.module.extend(parts.map(str::to_owned));
            file.visit_file(&syn::parse_file(text).unwrap_or_else(|e| panic!("{path}: {e}")));
        }
        file
    }

    /// Notes a path as it is from the crate's root.
    fn note(&mut self, mut path: Vec<String>) {
        let supers = path.iter().take_while(|part| *part == "super").count();
        match path[0].as_str() {
            "wgpt" => path[0] = "crate".into(),
            "self" => drop(path.splice(..1, self.module.clone())),
            "super" => drop(path.splice(..supers, self.module[..self.module.len() - supers].iter().cloned())),
            _ => {}
        }
        self.paths.push(path);
    }

    fn note_tree(&mut self, tree: &syn::UseTree, mut before: Vec<String>) {
        match tree {
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| self.note_tree(tree, before.clone())),
            syn::UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.note_tree(&path.tree, before);
            }
            syn::UseTree::Name(syn::UseName { ident }) | syn::UseTree::Rename(syn::UseRename { ident, .. }) => {
                before.push(ident.to_string());
                self.note(before);
            }
            _ => self.note(before),
        }
    }
}

impl<'a> Visit<'a> for File {
    fn visit_item_mod(&mut self, item: &'a syn::ItemMod) {
        let is_test = |a: &syn::Attribute| a.meta.require_list().is_ok_and(|list| list.tokens.to_string() == "test");
        if !item.attrs.iter().any(is_test) {
            self.module.push(item.ident.to_string());
            syn::visit::visit_item_mod(self, item);
            self.module.pop();
        }
    }

    fn visit_item_use(&mut self, item: &'a syn::ItemUse) {
        self.note_tree(&item.tree, Vec::new());
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        self.note(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        syn::visit::visit_path(self, path);
    }

    /// A macro's arguments are tokens: skips strings, takes what is written like a path.
    fn visit_macro(&mut self, call: &'a syn::Macro) {
        for path in PATHS_AND_STRINGS.captures_iter(&call.tokens.to_string()).filter_map(|found| found.get(1)) {
            self.note(path.as_str().split("::").map(|part| part.trim().to_owned()).collect());
        }
    }
}

/// The floors of ARCHITECTURE.md's drawing, lowest first, with those beside each other in one list.
fn drawn() -> Vec<Vec<String>> {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let line = text.split("\n## Floors\n").nth(1).and_then(|text| text.split('`').nth(1)).unwrap();
    line.split(" ← ").map(|floors| floors.split(", ").map(str::to_owned).collect()).collect()
}

/// A floor imports only floors below it, `reference` nothing but the table of parameters, an operator no other one.
fn imports(files: &[File]) -> Vec<String> {
    let drawn = drawn();
    let level = |floor: &str| drawn.iter().position(|floors| floors.iter().any(|other| other == floor));
    let operators = operators_in(&files.iter().map(|file| file.path.clone()).collect());
    let mut faults = Vec::new();
    for file in files.iter().filter(|file| file.module.len() > 1) {
        let own = file.module[1].as_str();
        if own != "reference" && level(own).is_none() {
            faults.push(format!("{}: `{own}` is no floor, expected one of {drawn:?}", file.path));
        }
        for path in file.paths.iter().filter(|path| path.len() > 1 && path[0] == "crate") {
            let (other, inner) = (path[1].as_str(), path.get(2).map_or("", String::as_str));
            let allowed = match (level(own), level(other)) {
                _ if own == "ops" && other == "ops" && operators.contains(inner) => {
                    let within = file.module.get(2).map_or("mod", String::as_str);
                    ["mod", inner].contains(&within) || NEIGHBOURS.contains(&(within, inner))
                }
                _ if own == other => true,
                (Some(own), Some(other)) => other < own,
                (Some(_), None) if other == "reference" => COMPARERS.iter().any(|start| file.path.starts_with(start)),
                (None, Some(_)) => file.path == "src/reference/gpt2.rs" && other == "model",
                _ => true,
            };
            if !allowed {
                faults.push(format!("{}: imports {}", file.path, path.join("::")));
            }
        }
    }
    faults
}

/// Only `gpu` names wgpu, and only one file of it calls Vulkan.
fn drivers(files: &[File]) -> Vec<String> {
    let mut faults = Vec::new();
    for file in files {
        for (name, home) in [("wgpu", "src/gpu/"), ("ash", "src/gpu/vulkan.rs")] {
            if file.paths.iter().any(|path| path[0] == name) && !file.path.starts_with(home) {
                faults.push(format!("{}: names {name}, expected only {home} to", file.path));
            }
        }
    }
    faults
}

/// `gpu` holds no word of transformers; `gpu` and `model` hold no flag and no command of the program. Comments too.
fn words(files: &[File]) -> Vec<String> {
    let transformers = Regex::new("(?i)attention|layernorm|token|vocab|(^|[^w])gpt").unwrap();
    let commands = Regex::new(r"(^|[^-\w])--[a-z]|\bwgpt [a-z]").unwrap();
    let mut faults = Vec::new();
    for file in files {
        let (gpu, model) = (file.path.starts_with("src/gpu/"), file.path.starts_with("src/model/"));
        for (i, line) in file.text.lines().enumerate() {
            if gpu && transformers.is_match(line) || (gpu || model) && commands.is_match(line) {
                faults.push(format!("{}:{}: {}", file.path, i + 1, line.trim()));
            }
        }
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
            if there == NO_FILE.contains(&file.as_str()) {
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
    operators.retain(|stem| !SHARED_BY_OPERATORS.contains(&stem.as_str()));
    operators
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_house_keeps_its_rules() {
    let all = ["shaders", "src"].map(|folder| glob::glob(&format!("{}/{folder}/**/*.*", root().display())).unwrap());
    let inside = |path: &Path| path.strip_prefix(root()).unwrap().to_string_lossy().replace('\\', "/");
    let paths: BTreeSet<String> = all.into_iter().flatten().map(|path| inside(&path.unwrap())).collect();
    let read = |path: &String| File::new(path, &fs::read_to_string(root().join(path)).unwrap());
    let files: Vec<File> = paths.iter().filter(|path| path.ends_with(".rs")).map(read).collect();
    assert!(files.len() > 100, "{} files, expected those of all floors", files.len());
    let mut faults = [imports(&files), drivers(&files), words(&files), stems(&paths)].concat();
    let listed: BTreeSet<String> = wgpt::ops::OPERATORS.iter().map(|operator| operator.name.to_owned()).collect();
    let unlisted = operators_in(&paths).into_iter().filter(|stem| !listed.contains(stem));
    faults.extend(unlisted.map(|stem| format!("src/ops/mod.rs: `{stem}` is missing in for_each_operator!")));
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn planted_faults_are_found() {
    for (path, text, faults) in [
        ("src/ops/bias.rs", "use crate::gpu::{Kernel, Pass};", 0),
        ("src/ops/bias.rs", "use crate::{error::Error, model::{Config, params}, train as t, run::*};", 4),
        ("src/ops/matmul/mod.rs", "use super::group; use super::super::cli;", 1),
        ("src/ops/mod.rs", "mod a { fn f() -> super::super::train::X { println!(\"{}\", crate::model::f()) } }", 2),
        ("src/ops/bias.rs", "// crate::model\nconst S: &str = \"crate::model\";", 0),
        ("src/ops/bias.rs", "#[cfg(test)]\nmod tests { use crate::cli; }\nuse crate::cli;", 1),
        ("src/ops/bias_tests.rs", "use crate::reference::bias;", 0),
        ("src/infer/generator.rs", "use crate::measure::plan;", 1),
        ("src/reference/gpt2.rs", "use crate::model::Config; use super::bias;", 0),
        ("src/reference/bias.rs", "use crate::model::Config;", 1),
        ("src/cli/train.rs", "use wgpt::reference::gpt2; use wgpt::run;", 1),
        ("src/cases/bias.rs", "use crate::reference::bias; use crate::formats::hf;", 1),
        ("src/newfloor/x.rs", "", 1),
        ("src/main.rs", "use wgpt::cli;", 0),
        ("src/ops/attention.rs", "use super::{bias, group}; fn f() { crate::ops::gelu::forward() }", 2),
        ("src/ops/gradnorm.rs", "use super::{stepcontrol, gelu};", 1),
        ("src/ops/bias.rs", "fn f() { self::f(); super::bias::f() }", 0),
        ("src/model/forward.rs", "use crate::ops::bias;", 0),
        ("src/train/run.rs", "use wgpu as w;", 1),
        ("src/train/run.rs", "fn f(d: &wgpu::Device) { vec![ash::vk::X] }", 2),
        ("src/train/run.rs", "// not wgpu::Device\nconst S: &str = \"wgpu\";", 0),
        ("src/gpu/pass.rs", "use wgpu::Device; use ash::vk;", 1),
        ("src/gpu/vulkan.rs", "use ash::vk;", 0),
        ("src/gpu/pass.rs", "// the Attention kernel\nconst TOKENS: u8 = 1;\n// wgpt's own, gpt2's", 3),
        ("src/gpu/pass.rs", "// try --batch 4; this - or that -- 3\n// see `wgpt tune`", 2),
        ("src/model/config.rs", "const S: &str = \"--model: no token\";", 1),
        ("src/ops/bias.rs", "const GPT2: &str = \"--batch\";", 0),
    ] {
        let files = [File::new("src/ops/bias.rs", ""), File::new("src/ops/gelu.rs", ""), File::new(path, text)];
        let found = [imports(&files), drivers(&files), words(&files)].concat();
        assert_eq!(found.len(), faults, "{path}: {text}: {found:?}");
    }
}

#[test]
fn planted_gaps_in_the_stems_are_found() {
    let gelu = ["shaders/gelu.wgsl", "src/ops/gelu.rs", "src/reference/gelu.rs", "src/cases/gelu.rs"];
    let matmul =
        ["src/ops/matmul/mod.rs", "src/ops/matmul/generate/a.rs", "src/reference/matmul.rs", "src/cases/matmul.rs"];
    let decides = ["shaders/stepcontrol.wgsl", "src/ops/stepcontrol.rs", "src/cases/stepcontrol.rs"];
    for (files, more, faults) in [
        (&gelu[..], &["shaders/shared/reduce.wgsl", "src/ops/mod.rs", "src/ops/matrix_units.rs"][..], 0),
        (&gelu[1..], &[], 1),
        (&gelu[..3], &[], 1),
        (&gelu[..2], &["src/cases/gelu.rs"], 1),
        (&[gelu[0]], &gelu[2..], 1),
        (&gelu, &["shaders/gelu_fast.wgsl"], 0),
        (&gelu, &["shaders/gelufast.wgsl", "shaders/_gelu.wgsl"], 6),
        (&matmul, &[], 0),
        (&matmul[..1], &matmul[2..], 1),
        (&decides, &[], 0),
        (&decides, &["src/reference/stepcontrol.rs"], 1),
    ] {
        let found = stems(&files.iter().chain(more).map(|path| (*path).to_owned()).collect());
        assert_eq!(found.len(), faults, "{files:?} {more:?}: {found:?}");
    }
}
