//! Writes a kernel's text line by line, for operators that generate it.

use std::fmt::{Display, Write as _};

/// Indented lines.
#[derive(Debug, Default)]
pub struct Text {
    /// The text so far.
    pub text: String,
    /// Levels of indentation.
    pub depth: usize,
}

impl Text {
    /// Adds a line.
    pub fn line(&mut self, line: impl Display) {
        let _ = writeln!(self.text, "{:1$}{line}", "", 4 * self.depth);
    }

    /// Adds a line that opens a block.
    pub fn open(&mut self, line: impl Display) {
        self.line(format_args!("{line} {{"));
        self.depth += 1;
    }

    /// Closes a block.
    pub fn close(&mut self) {
        self.depth -= 1;
        self.line("}");
    }
}

/// Returns the text of a shader file without its first line if that line is a directive for `tools/join-shader`.
#[must_use]
pub fn without_directive(file: &'static str) -> &'static str {
    match file.split_once('\n') {
        Some((first, rest)) if first.starts_with("// tools/join-shader ") => rest,
        _ => file,
    }
}
