//! Makes every character of untrusted text visible. File names, recipe keys, tensor names and server responses may
//! contain characters that control a terminal, begin a new line or reverse the direction of the text after them.

use std::fmt::Write as _;

/// Returns whether a character is invisible: a control of ASCII, Latin-1 or Unicode's text direction, a line separator,
/// or a character without width.
#[must_use]
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || changes_direction(c)
        || matches!(c, '\u{ad}' | '\u{34f}' | '\u{180e}' | '\u{200b}'..='\u{200d}' | '\u{2028}' | '\u{2029}')
        || matches!(c, '\u{2060}'..='\u{2065}' | '\u{206a}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
        || matches!(c, '\u{e0000}'..='\u{e007f}')
}

/// Returns whether a character changes the direction of the text around it, which can reach past the text's end.
#[must_use]
pub fn changes_direction(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Returns text as one line: hidden characters are spelled as `\n` or `\u{1b}`.
#[must_use]
pub fn line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_hidden(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// Returns JSON with the hidden characters of its strings spelled as `\u202e`. The values stay the same.
#[must_use]
pub fn json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_hidden(c) && !c.is_ascii_whitespace() {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push(c);
        }
    }
    out
}

/// Returns a value as one line of TOML, with its hidden characters spelled as `\u202E`.
#[must_use]
pub fn toml(value: &::toml::Value) -> String {
    match value {
        ::toml::Value::String(text) if text.contains(is_hidden) => {
            let mut out = String::from("\"");
            for c in text.chars() {
                match c {
                    '"' | '\\' => out.extend(['\\', c]),
                    c if is_hidden(c) => {
                        let _ = if c as u32 > 0xffff {
                            write!(out, "\\U{:08X}", c as u32)
                        } else {
                            write!(out, "\\u{:04X}", c as u32)
                        };
                    }
                    c => out.push(c),
                }
            }
            out + "\""
        }
        ::toml::Value::Array(values) => format!("[{}]", values.iter().map(toml).collect::<Vec<_>>().join(", ")),
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Characters that must not reach a terminal from a name.
    const HIDDEN: &str = "\0\u{7}\u{8}\t\n\u{b}\r\u{1b}\u{7f}\u{80}\u{85}\u{9b}\u{9f}\u{ad}\u{61c}\u{180e}\u{200b}\u{200d}\u{200e}\
                          \u{2028}\u{2029}\u{202a}\u{202e}\u{2060}\u{2066}\u{2069}\u{206f}\u{feff}\u{fffb}\u{e0041}";

    #[test]
    fn a_name_shows_every_character_and_begins_no_line() {
        assert_eq!(line("a\u{1b}[31m\nb\r\u{202e}\u{9b}c"), r"a\u{1b}[31m\nb\r\u{202e}\u{9b}c");
        let plain = "é e\u{301} 日本 🙂 'quoted' \"quoted\" \\ ~ \u{fffd}";
        assert_eq!(line(plain), plain);
        for c in HIDDEN.chars() {
            let shown = line(&format!("a{c}b"));
            assert!(shown.starts_with("a\\") && shown.chars().all(|c| !is_hidden(c)), "{c:?}: {shown}");
        }
    }

    #[test]
    fn json_and_toml_keep_their_meaning() {
        for text in [HIDDEN, "a \"b\" \\ c\u{202e}", "plain 'x' \\ y"] {
            let value = serde_json::json!({ "a": [text], text: 1 });
            for written in [value.to_string(), serde_json::to_string_pretty(&value).unwrap()] {
                let shown = json(&written);
                assert!(shown.chars().all(|c| !is_hidden(c) || c == '\n'), "{shown}");
                assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
            }
            let value = ::toml::Value::Array(vec![text.into(), 3.into()]);
            let shown = toml(&value);
            assert!(shown.chars().all(|c| !is_hidden(c)), "{shown}");
            assert_eq!(format!("x = {shown}").parse::<::toml::Table>().unwrap()["x"], value);
        }
    }
}
