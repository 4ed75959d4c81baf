//! The documents name files, symbols and headings that exist.
//!
//! | in a document | rule |
//! |---|---|
//! | `` `src/gpu/pass.rs` ``, or such a word in a block of commands | the file or folder exists; a pattern matches something |
//! | `[text](docs/data.md#fetching)` | the file exists and has this heading |
//! | `` `src/gpu/pass.rs` `Pass::dispatch` `` | the file has these identifiers |
//! | `` `src/gpu/pass.rs:53` `dispatch` `` | the file has the identifier in this line; `WGPT_BLESS=1` writes the right numbers |
//!
//! Words in capitals, as in `` `src/ops/NAME.rs` ``, stand for others and are not checked.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

use super::{File, regex, root};

/// Beginnings of the paths that are checked.
const FOLDERS: [&str; 8] = ["src/", "shaders/", "tests/", "tools/", "benches/", "docs/", ".ci/", ".cargo/"];
/// Files at the root.
const AT_ROOT: &str =
    r"^(README|ARCHITECTURE|CONTRIBUTING|TUTORIAL|CHANGELOG)\.md$|^(Cargo|clippy|deny|rustfmt)\.(toml|lock)$";

/// Files of a repository.
trait Tree {
    fn has(&self, path: &str) -> bool;
    fn text(&self, path: &str) -> Option<String>;
}

/// This repository.
struct Disk;

impl Tree for Disk {
    fn has(&self, path: &str) -> bool {
        let full = root().join(path);
        let found = || glob::glob(&full.to_string_lossy()).ok()?.next();
        full.exists() || path.contains('*') && found().is_some()
    }

    fn text(&self, path: &str) -> Option<String> {
        fs::read_to_string(root().join(path)).ok()
    }
}

/// A name's anchor, as GitHub makes it of a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// Splits a document into its text and its blocks of commands, both with as many lines as the document.
fn split(text: &str) -> [String; 2] {
    let mut parts = [String::new(), String::new()];
    let mut inside = 0;
    for line in text.lines() {
        let is_fence = line.trim_start().starts_with("```");
        if is_fence {
            inside = 1 - inside;
        } else {
            parts[inside].push_str(line);
        }
        parts.iter_mut().for_each(|part| part.push('\n'));
    }
    parts
}

/// True for words that stand for others: `NAME`, `<file>`, `{a,b}`, `…`.
fn is_pattern_for_people(path: &str) -> bool {
    regex(r"[<>{}…$~]|(^|[/.])[A-Z]{2,}([/.:]|$)").is_match(path) && !regex(AT_ROOT).is_match(path)
}

fn is_path(word: &str) -> bool {
    let is_there = FOLDERS.iter().any(|folder| word.starts_with(folder) && word.len() > folder.len());
    (is_there || FOLDERS.contains(&word) || regex(AT_ROOT).is_match(word)) && !is_pattern_for_people(word)
}

/// Returns a link's target from the root, without `..`.
fn resolved(document: &str, target: &str) -> String {
    let mut path = PathBuf::from(document);
    path.pop();
    for part in Path::new(target).components() {
        match part {
            Component::ParentDir => _ = path.pop(),
            Component::Normal(name) => path.push(name),
            _ => {}
        }
    }
    path.to_string_lossy().replace('\\', "/")
}

/// Paths that do not exist.
fn paths((document, text): &File, tree: &dyn Tree) -> Vec<String> {
    let [prose, commands] = split(text);
    let quoted = regex(r"`([^`\n]+)`");
    let line = regex(r":\d+$");
    let mut words: BTreeSet<String> = BTreeSet::new();
    for found in quoted.captures_iter(&prose) {
        words.extend(found[1].split_whitespace().map(|word| line.replace(word, "").into_owned()));
    }
    let bare = |word: &str| word.trim_matches(|c: char| "'\",;:()".contains(c)).to_owned();
    words.extend(commands.split_whitespace().map(bare));
    let missing = words.into_iter().filter(|word| is_path(word) && !tree.has(word.trim_end_matches('/')));
    missing.map(|word| format!("{document}: {word} does not exist")).collect()
}

/// Links that lead nowhere.
fn links((document, text): &File, tree: &dyn Tree) -> Vec<String> {
    let [prose, _] = split(text);
    let link = regex(r"\]\(([^)\s]+)\)");
    let mut faults = Vec::new();
    for found in link.captures_iter(&prose).filter(|found| !found[1].contains("://")) {
        let (target, heading) = found[1].split_once('#').unwrap_or((&found[1], ""));
        let path = if target.is_empty() { document.clone() } else { resolved(document, target) };
        if !tree.has(&path) {
            faults.push(format!("{document}: the link to {path} leads nowhere"));
            continue;
        }
        let [other, _] = split(&tree.text(&path).unwrap_or_default());
        let mut headings = other.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#'));
        if !heading.is_empty() && !headings.any(|line| anchor(line) == heading) {
            faults.push(format!("{document}: {path} has no heading #{heading}"));
        }
    }
    faults
}

/// The lines of a file that hold an identifier, counted from 1; those that define it first.
fn lines_with(text: &str, identifier: &str) -> Vec<usize> {
    let word = regex(&format!(r"\b{}\b", regex::escape(identifier)));
    let defines = regex(&format!(
        r"\b(fn|struct|enum|trait|type|const|static|mod|macro_rules!|override|var(<\w+>)?) {}\b",
        regex::escape(identifier)
    ));
    let at = |is: &dyn Fn(&str) -> bool| -> Vec<usize> {
        text.lines().enumerate().filter(|(_, line)| is(line)).map(|(i, _)| i + 1).collect()
    };
    [at(&|line| defines.is_match(line)), at(&|line| word.is_match(line))].concat()
}

/// Identifiers that a named file does not have, or has in another line; and the document with the right lines.
fn symbols((document, text): &File, tree: &dyn Tree) -> (Vec<String>, String) {
    let pair = regex(r"`([\w./-]+\.\w+)(?::(\d+))?`((?:(?: |\n *)`[\w:!]+(?:\(\))?`)+)");
    let name = regex(r"`([\w:!]+)(?:\(\))?`");
    let (mut faults, mut right) = (Vec::new(), text.clone());
    for found in pair.captures_iter(text).filter(|found| is_path(&found[1])) {
        let Some(source) = tree.text(&found[1]) else { continue };
        for symbol in name.captures_iter(&found[3]) {
            let parts = symbol[1].trim_end_matches('!').split("::").filter(|part| !part.is_empty());
            let lines: Vec<Vec<usize>> = parts.map(|part| lines_with(&source, part)).collect();
            if lines.iter().any(Vec::is_empty) {
                faults.push(format!("{document}: {} has no `{}`", &found[1], &symbol[1]));
                continue;
            }
            let Some(given) = found.get(2) else { continue };
            let there = lines.last().and_then(|lines| lines.first()).copied().unwrap_or_default();
            if given.as_str().parse() != Ok(there) {
                faults.push(format!(
                    "{document}: `{}` is in {}:{there}, not {}",
                    &symbol[1],
                    &found[1],
                    given.as_str()
                ));
                let [old, new] =
                    [given.as_str().to_owned(), there.to_string()].map(|n| format!("`{}:{n}`{}", &found[1], &found[3]));
                right = right.replace(&old, &new);
            }
        }
    }
    (faults, right)
}

fn documents() -> Vec<File> {
    let pages = ["*.md", "docs/*.md"].map(|pages| glob::glob(&root().join(pages).to_string_lossy()).unwrap());
    let inside = |path: &Path| path.strip_prefix(root()).unwrap().to_string_lossy().replace('\\', "/");
    let names = pages.into_iter().flatten().map(|path| inside(&path.unwrap()));
    // the changelog tells of files that are gone
    let names = names.filter(|name| name != "CHANGELOG.md");
    names.map(|name| (name.clone(), fs::read_to_string(root().join(name)).unwrap())).collect()
}

#[test]
fn documents_name_what_exists() {
    let documents = documents();
    assert!(documents.len() >= 8, "{} documents", documents.len());
    let mut faults = Vec::new();
    for mut document in documents {
        let (mut wrong, right) = symbols(&document, &Disk);
        if std::env::var_os("WGPT_BLESS").is_some() && right != document.1 {
            fs::write(root().join(&document.0), &right).unwrap();
            document.1 = right;
            (wrong, _) = symbols(&document, &Disk);
        }
        faults.extend([paths(&document, &Disk), links(&document, &Disk), wrong].concat());
    }
    let bless = "WGPT_BLESS=1 writes the right numbers of lines";
    assert!(faults.is_empty(), "{} faults ({bless}):\n{}", faults.len(), faults.join("\n"));
}

/// A repository of two files.
struct Small;

impl Tree for Small {
    fn has(&self, path: &str) -> bool {
        ["src/gpu", "src/gpu/pass.rs", "docs/data.md", "tools/run"].contains(&path)
    }

    fn text(&self, path: &str) -> Option<String> {
        match path {
            "src/gpu/pass.rs" => Some("impl Pass {\n    pub fn dispatch() { at() }\n}\n".into()),
            "docs/data.md" => Some("# Data\n## What `you` have\n```\n# no heading\n```\n".into()),
            _ => None,
        }
    }
}

#[test]
fn planted_faults_of_documents_are_found() {
    for (text, faults) in [
        ("`src/gpu/pass.rs`, `src/gpu/`, `src/ops/NAME.rs`, `runs/1`, src/no.rs", 0),
        ("`src/gpu/no.rs` and `tools/run src/no.rs`", 2),
        ("```\ntools/run 'src/no.rs'\n```\n", 1),
        ("[data](docs/data.md#what-you-have) [site](https://example.org/#x)", 0),
        ("[data](docs/data.md#no-heading) [more](docs/no.md)", 2),
        ("`src/gpu/pass.rs` `Pass::dispatch`, `src/gpu/pass.rs:2` `dispatch`", 0),
        ("`src/gpu/pass.rs` `Pass::no` `at`", 1),
        ("`src/gpu/pass.rs:3` `dispatch`", 1),
    ] {
        let document = ("README.md".to_owned(), text.to_owned());
        let (wrong, right) = symbols(&document, &Small);
        let found = [paths(&document, &Small), links(&document, &Small), wrong].concat();
        assert_eq!(found.len(), faults, "{text}: {found:?}");
        let (still, _) = symbols(&(document.0, right), &Small);
        assert!(still.iter().all(|fault| !fault.contains(" is in ")), "{text}: {still:?}");
    }
    assert_eq!(resolved("docs/data.md", "../src/gpu/pass.rs"), "src/gpu/pass.rs");
    assert_eq!(anchor(" The life of a `batch`, 2nd"), "the-life-of-a-batch-2nd");
}
