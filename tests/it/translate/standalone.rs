//! Every shader file by itself, as an editor opens it: `tools/join-shader` puts the files behind it that its first line
//! names, and naga must find every name in the result.

use std::path::Path;
use std::process::Command;

use super::kernels;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// All shaders below a folder, from the repository's root.
fn shaders(folder: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(Path::new(ROOT).join(folder)).expect("a folder") {
        let entry = entry.expect("an entry");
        let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
        if entry.file_type().expect("a type").is_dir() {
            found.extend(shaders(&path));
        } else if path.ends_with(".wgsl") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Joins and validates a file; an error names it.
fn check(path: &str) -> Result<(), String> {
    let output = Command::new("sh").args(["tools/join-shader", path]).current_dir(ROOT).output();
    let output = output.map_err(|e| format!("{path}: tools/join-shader does not start: {e}"))?;
    if !output.status.success() {
        return Err(format!("{path}: {}", String::from_utf8_lossy(&output.stderr)));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let module = naga::front::wgsl::parse_str(&text).map_err(|e| e.emit_to_string_with_path(&text, path))?;
    naga::valid::Validator::new(naga::valid::ValidationFlags::all(), naga::valid::Capabilities::all())
        .validate(&module)
        .map_err(|e| e.emit_to_string_with_path(&text, path))?;
    Ok(())
}

#[test]
fn every_shader_opens_by_itself() {
    let paths = shaders("shaders");
    assert!(paths.len() >= 28, "{} shaders", paths.len());
    let faults: Vec<String> = paths.iter().filter_map(|path| check(path).err()).collect();
    let hint = "names that Rust or a shared file defines come from the files that a shader's first line names: \
                `// tools/join-shader adds: shared/stub.wgsl`";
    assert!(faults.is_empty(), "{}\n{hint}", faults.join("\n"));
}

#[test]
fn an_undefined_name_is_found_in_its_file_and_line() {
    let text = std::fs::read_to_string(Path::new(ROOT).join("shaders/residual.wgsl")).expect("readable");
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("undefined-name.wgsl");
    let check = |text: &str| {
        std::fs::write(&path, text).expect("written");
        check(&path.to_string_lossy())
    };
    assert_eq!(check(&text), Ok(()));
    let line = text.lines().position(|line| line.contains("inp[i] + branch[i]")).expect("the sum") + 1;
    let fault = check(&text.replace("inp[i] + branch[i]", "inp[i] + brunch[i]")).expect_err("an undefined name");
    assert!(fault.contains("brunch") && fault.contains(&format!("undefined-name.wgsl:{line}:")), "{fault}");
    // a file that it names is missing; it names none
    let missing = check(&text.replace("shared/stub.wgsl", "shared/stab.wgsl")).expect_err("a missing file");
    assert!(
        missing.contains("undefined-name.wgsl") && missing.contains("shared/stab.wgsl, which is missing"),
        "{missing}"
    );
    assert!(check(&text.replace("tools/join-shader adds:", "")).is_err());
}

/// Names that a text declares at module scope.
fn declared(text: &str) -> Vec<&str> {
    let starts = ["const ", "alias ", "fn ", "var<workgroup> ", "struct ", "override "];
    text.lines()
        .filter_map(|line| starts.iter().find_map(|start| line.strip_prefix(start)))
        .filter_map(|rest| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next())
        .collect()
}

/// The stubs stand for what Rust writes: each of their names is declared by a kernel, and no kernel contains a stub.
#[test]
fn stubs_declare_what_kernels_declare() {
    let kernels = kernels();
    let of_kernels: std::collections::HashSet<&str> = kernels.iter().flat_map(|k| declared(&k.source)).collect();
    for stub in ["stub.wgsl", "stub_matrices.wgsl"] {
        let text = std::fs::read_to_string(Path::new(ROOT).join("shaders/shared").join(stub)).expect("readable");
        let names = declared(&text);
        assert!(names.len() >= 10, "{stub} declares {} names", names.len());
        let unknown: Vec<_> = names.iter().filter(|name| !of_kernels.contains(**name)).collect();
        assert!(unknown.is_empty(), "shaders/shared/{stub} declares {unknown:?}, which no kernel does");
        let mark = "only for editors and tests, never part of a kernel";
        assert!(text.contains(mark) && kernels.iter().all(|k| !k.source.contains(mark)), "a kernel contains {stub}");
    }
}
