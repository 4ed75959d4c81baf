//! The text of every kernel, compared with what is committed: a change of a generator or of a shared file shows in the
//! kernels that it reaches. `WGPT_BLESS=1 cargo test --release --test it snapshot` writes the present texts.
//!
//! `snapshots/NAME.wgsl` is the whole text of one kernel of each family; `snapshots/kernels.txt` has a line for each kernel:
//! name, entry point, override constants, subgroup size, BLAKE3 of the text.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use wgpt::gpu::{Kernel, KernelId};

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/translate/snapshots"))
}

/// The first part of a name: kernels of one family share a shader file or a generator.
fn family(kernel: &Kernel) -> &str {
    kernel.name.split('.').next().unwrap_or_default()
}

fn line(kernel: &Kernel) -> String {
    let constants: Vec<String> = kernel.constants.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let lanes = kernel.subgroup_size.map_or("-".into(), |lanes| lanes.to_string());
    let hash = blake3::hash(kernel.source.as_bytes()).to_hex();
    let constants = if constants.is_empty() { "-".into() } else { constants.join(",") };
    format!("{} {} {constants} {lanes} {}", kernel.name, kernel.entry, &hash[..32])
}

/// All lines, and the whole text of the first kernel of each family, by the name of its file.
fn present() -> (String, BTreeMap<String, String>) {
    let identities = [wgpt::ops::all_kernels(), wgpt::ops::tried_kernels()].concat();
    let kernels: Vec<Kernel> = identities.iter().map(KernelId::kernel).collect();
    let lines: BTreeSet<String> = kernels.iter().map(line).collect();
    let mut texts = BTreeMap::new();
    for kernel in &kernels {
        texts.entry(format!("{}.wgsl", family(kernel))).or_insert_with(|| {
            let text = format!("// {}, entry point {}, overrides {:?}\n", kernel.name, kernel.entry, kernel.constants);
            text + &kernel.source
        });
    }
    (lines.into_iter().map(|line| line + "\n").collect(), texts)
}

/// The first lines that differ.
fn difference(name: &str, committed: &str, present: &str) -> String {
    match (committed, present) {
        ("", _) => return format!("{name}: new, a text of a family that had none"),
        (_, "") => return format!("{name}: no kernel of this family any more"),
        _ => {}
    }
    let (old, new): (BTreeSet<&str>, BTreeSet<&str>) = (committed.lines().collect(), present.lines().collect());
    let gone = old.difference(&new).map(|line| format!("- {line}"));
    let come = new.difference(&old).map(|line| format!("+ {line}"));
    let lines: Vec<String> = gone.take(10).chain(come.take(10)).collect();
    format!("{name} (of {} lines, at most 20 that differ):\n{}", old.len().max(new.len()), lines.join("\n"))
}

#[test]
fn kernels_have_the_committed_text() {
    let (lines, mut texts) = present();
    texts.insert("kernels.txt".into(), lines);
    if std::env::var_os("WGPT_BLESS").is_some() {
        let _ = std::fs::remove_dir_all(folder());
        std::fs::create_dir_all(folder()).expect("a folder");
        texts.iter().for_each(|(name, text)| std::fs::write(folder().join(name), text).expect("written"));
        return;
    }
    let committed: BTreeMap<String, String> = std::fs::read_dir(folder())
        .expect("tests/it/translate/snapshots")
        .map(|entry| entry.expect("an entry").path())
        .map(|path| {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            (name, std::fs::read_to_string(&path).expect("readable"))
        })
        .collect();
    let names: BTreeSet<&String> = committed.keys().chain(texts.keys()).collect();
    let of = |texts: &BTreeMap<String, String>, name: &String| texts.get(name).cloned().unwrap_or_default();
    let changed: Vec<String> = names
        .into_iter()
        .filter(|name| of(&committed, name) != of(&texts, name))
        .map(|name| difference(name, &of(&committed, name), &of(&texts, name)))
        .collect();
    assert!(
        changed.is_empty(),
        "{} snapshots differ; if that is meant: WGPT_BLESS=1 cargo test --release --test it snapshot\n{}",
        changed.len(),
        changed.join("\n")
    );
}

/// One changed character of one kernel must show, by the kernel's name.
#[test]
fn a_changed_text_is_named() {
    let mut kernel = wgpt::ops::all_kernels()[0].kernel();
    let before = line(&kernel);
    kernel.source.push(' ');
    let report = difference("kernels.txt", &before, &line(&kernel));
    assert!(
        report.contains(&format!("- {} ", kernel.name)) && report.contains(&format!("+ {} ", kernel.name)),
        "{report}"
    );
}
