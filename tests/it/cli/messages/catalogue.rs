//! The literals of the source that messages are made of, floor by floor.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use expect_test::expect_file;
use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// Folders and files whose literals are text of shaders or of a page.
const OTHER_TEXT: [&str; 8] = [
    "src/cases",
    "src/gpu/kernel",
    "src/gpu/spirv",
    "src/ops/attention/generate",
    "src/ops/matmul/generate",
    "src/ops/matrix_units",
    "src/reference",
    "src/killpoint_tests.rs",
];

fn files(folder: &Path, all: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the source").map(|entry| entry.expect("an entry").path()) {
        if entry.is_dir() {
            files(&entry, all);
        } else if entry.extension().is_some_and(|end| end == "rs") {
            all.push(entry);
        }
    }
}

/// Returns whether a stream's next tokens are `#[cfg(test)]`.
fn is_for_tests(attribute: &TokenStream) -> bool {
    attribute.to_string().replace(' ', "") == "cfg(test)"
}

/// Adds the strings of a stream. Attributes are left out but `#[error]`, and so are items for tests.
fn literals(stream: TokenStream, all: &mut Vec<String>) {
    let mut tokens = stream.into_iter().peekable();
    while let Some(token) = tokens.next() {
        match token {
            TokenTree::Punct(sign) if sign.as_char() == '#' => {
                if matches!(tokens.peek(), Some(TokenTree::Punct(sign)) if sign.as_char() == '!') {
                    tokens.next();
                }
                let Some(TokenTree::Group(attribute)) = tokens.next() else { continue };
                let text = attribute.stream().to_string();
                if text.starts_with("error") {
                    literals(attribute.stream(), all);
                } else if is_for_tests(&attribute.stream()) {
                    skip_item(&mut tokens);
                }
            }
            TokenTree::Group(group) => literals(group.stream(), all),
            TokenTree::Literal(literal) => all.extend(string(&literal.to_string())),
            _ => {}
        }
    }
}

/// Skips to the end of an item: its braces, or a semicolon.
fn skip_item(tokens: &mut impl Iterator<Item = TokenTree>) {
    for token in tokens {
        match token {
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => return,
            TokenTree::Punct(sign) if sign.as_char() == ';' => return,
            _ => {}
        }
    }
}

/// Returns the text of a string literal that has words for people: two words with a space between.
fn string(literal: &str) -> Option<String> {
    let inner = literal.strip_prefix('r').unwrap_or(literal).trim_matches('#').strip_prefix('"')?.strip_suffix('"')?;
    // a line that ends in a backslash continues without its indentation
    let mut text = String::new();
    for (number, line) in inner.split("\\\n").enumerate() {
        text += if number == 0 { line } else { line.trim_start() };
    }
    let is_text = text.split(' ').filter(|word| word.chars().filter(|c| c.is_alphabetic()).count() > 1).count() > 1;
    let is_shader = [";\n", "fn ", "let ", "@group", "override "].iter().any(|sign| text.contains(sign));
    (is_text && !is_shader).then(|| text.replace('\n', "\\n"))
}

#[test]
fn literals_of_messages() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = Vec::new();
    files(&root.join("src"), &mut all);
    all.sort();
    let mut text = String::new();
    for file in all {
        let name = file.strip_prefix(root).expect("below the root").to_string_lossy().replace('\\', "/");
        let is_test = name.ends_with("_tests.rs") || name.ends_with("/tests.rs");
        if is_test || OTHER_TEXT.iter().any(|start| name.starts_with(start)) {
            continue;
        }
        let stream = TokenStream::from_str(&fs::read_to_string(&file).expect("the source")).expect("Rust");
        let mut strings = Vec::new();
        literals(stream, &mut strings);
        if !strings.is_empty() {
            text += &format!("{name}\n{}\n", strings.iter().map(|line| format!("  {line}\n")).collect::<String>());
        }
    }
    expect_file!["literals.txt"].assert_eq(&text);
}

#[test]
fn literals_are_those_of_messages() {
    let source = r##"
        #[error("{what} is broken")] struct A;
        #[doc = "never shown here"] fn f() { say!("two words", "one", r#"and raw text"#, "cut \
            in two"); }
        #[cfg(test)] mod tests { const C: &str = "only for tests"; }
        const D: &str = "let x = 1;";
        const E: &str = "after that";
    "##;
    let mut all = Vec::new();
    literals(TokenStream::from_str(source).expect("Rust"), &mut all);
    assert_eq!(all, ["{what} is broken", "two words", "and raw text", "cut in two", "after that"]);
}
