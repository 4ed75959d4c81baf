//! Quotes words for a shell, so that displayed commands can be copied, whatever characters their names have.

use std::ffi::OsStr;
use std::fmt::Write as _;

use super::visible::is_hidden;

/// Returns a word as a shell reads it, in quotes where it needs them. A word that is not text, or has hidden
/// characters, is spelled byte by byte as bash, zsh and ksh read it: `$'caf\xe9'`.
#[must_use]
pub fn word(word: impl AsRef<OsStr>) -> String {
    let word = word.as_ref();
    let text = word.to_str().filter(|text| !text.contains(is_hidden));
    text.and_then(|text| shlex::try_quote(text).ok()).map_or_else(|| spelled(word), std::borrow::Cow::into_owned)
}

/// Returns the same as [`word`], always in quotes.
#[must_use]
pub fn quoted(name: impl AsRef<OsStr>) -> String {
    let word = word(name);
    if word.contains(['\'', '"', '\\']) { word } else { format!("'{word}'") }
}

fn spelled(word: &OsStr) -> String {
    let mut text = "$'".to_owned();
    for &byte in word.as_encoded_bytes() {
        match byte {
            b'\'' | b'\\' => text.extend(['\\', byte.into()]),
            b' '..=b'~' => text.push(byte.into()),
            _ => {
                let _ = write!(text, "\\x{byte:02x}");
            }
        }
    }
    text + "'"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_they_need_it() {
        for (name, expected, always) in [
            ("a/b-1.txt", "a/b-1.txt", "'a/b-1.txt'"),
            ("my book", "'my book'", "'my book'"),
            ("it's", "\"it's\"", "\"it's\""),
            ("a\u{1b}[0m\n'", r"$'a\x1b[0m\x0a\''", r"$'a\x1b[0m\x0a\''"),
            ("\u{202e}é", r"$'\xe2\x80\xae\xc3\xa9'", r"$'\xe2\x80\xae\xc3\xa9'"),
        ] {
            assert_eq!((word(name).as_str(), quoted(name).as_str()), (expected, always));
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_shell_reads_back_any_name() {
        use std::os::unix::ffi::OsStrExt as _;
        let names: [&[u8]; 4] = [b"it's caf\xe9\n", b"\x1b]0;x\x07\r", "\u{202e}a\\b$c`d".as_bytes(), b"-x *?"];
        assert_eq!(word(OsStr::from_bytes(names[0])), r"$'it\'s caf\xe9\x0a'");
        for name in names {
            let line = word(OsStr::from_bytes(name));
            // a machine may have no bash
            if let Ok(output) = std::process::Command::new("bash").args(["-c", &format!("printf %s {line}")]).output() {
                assert_eq!(output.stdout, name, "{line}");
            }
        }
    }
}
