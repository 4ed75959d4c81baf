//! Distinguishes JSON Lines from one JSON document over several lines.

use serde::de::IgnoredAny;

use crate::data::json_line;
use crate::files::kind::without_bom;

/// The shape of JSON that a file begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// One object per line.
    Lines,
    /// An array.
    Array,
    /// An object over several lines.
    Spread,
    /// Not JSON.
    None,
}

/// Returns the bytes after a byte order mark and whitespace.
fn start(head: &[u8]) -> &[u8] {
    without_bom(head).trim_ascii_start()
}

/// Returns the first line, and the bytes after it if it ends within `head`.
fn first_line(head: &[u8]) -> (&[u8], Option<&[u8]>) {
    match head.iter().position(|&byte| byte == b'\n') {
        Some(at) => (&head[..at], Some(&head[at + 1..])),
        None => (head, None),
    }
}

/// Returns the shape of a file that begins with `head`. `is_whole` means that the file ends with these bytes.
pub(super) fn shape(head: &[u8], is_whole: bool) -> Shape {
    let head = start(head);
    let (line, rest) = first_line(head);
    match line.first() {
        Some(b'[') => Shape::Array,
        Some(b'{') if json_line::is_object(line) => Shape::Lines,
        // a line longer than the first bytes
        Some(b'{') if rest.is_none() && !is_whole && start(&line[1..]).starts_with(b"\"") => Shape::Lines,
        Some(b'{') if rest.is_some_and(|rest| !rest.trim_ascii().is_empty()) => {
            let document = json_line::with_numbers(head);
            match serde_json::Deserializer::from_slice(&document).into_iter::<IgnoredAny>().next() {
                Some(Ok(_)) => Shape::Spread,
                Some(Err(e)) if e.is_eof() && !is_whole => Shape::Spread,
                // the reader will report the broken first line
                _ if start(&line[1..]).starts_with(b"\"") && are_objects(rest.unwrap_or_default(), is_whole) => {
                    Shape::Lines
                }
                _ => Shape::None,
            }
        }
        _ => Shape::None,
    }
}

/// Number of lines after a broken line that are checked.
const LATER: usize = 8;

/// Returns whether most of the first lines are objects. A line cut at the end of the first bytes does not count.
fn are_objects(text: &[u8], is_whole: bool) -> bool {
    let end = if is_whole { text.len() } else { memchr::memrchr(b'\n', text).unwrap_or(0) };
    let lines = text[..end].split(|&byte| byte == b'\n').filter(|line| !line.trim_ascii().is_empty()).take(LATER);
    let objects: Vec<bool> = lines.map(json_line::is_object).collect();
    2 * objects.iter().filter(|is_object| **is_object).count() > objects.len()
}

/// Returns whether a file begins with an array whose first element is an object, as prose never does.
pub(super) fn is_array_of_objects(head: &[u8]) -> bool {
    let object = start(head).strip_prefix(b"[").map_or(&[][..], start);
    object.strip_prefix(b"{").is_some_and(|inside| start(inside).starts_with(b"\""))
}

/// Returns whether the first line is an object with this field.
pub(crate) fn first_object_has(head: &[u8], field: &str) -> bool {
    let (line, rest) = first_line(start(head));
    match json_line::text_of(line, field) {
        Ok(_) => true,
        // a line longer than the first bytes: look for the field in its beginning
        Err(_) => {
            let last = field.rsplit('.').next().unwrap_or(field);
            let has = |key: &str| memchr::memmem::find(line, format!("\"{key}\"").as_bytes()).is_some();
            rest.is_none() && (has(field) || has(last))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_distinguished_from_one_document() {
        for (text, expected) in [
            ("{\"text\":\"a\"}\n{\"text\":\"b\"}\n", Shape::Lines),
            ("\n \u{feff}", Shape::None),
            ("\u{feff}{\"text\":\"a\", \"n\": NaN}", Shape::Lines),
            ("{}\n", Shape::Lines),
            ("{\n  \"text\": \"a\"\n}\n", Shape::Spread),
            ("{\"text\": \"a\",\n \"n\": -Infinity}\n", Shape::Spread),
            ("[{\"text\": \"a\"},\n{\"text\": \"b\"}]", Shape::Array),
            ("{\"text\":\"cut", Shape::None),
            // a broken line of JSON Lines is not a document over several lines
            ("{\"text\":\"a\n{\"text\":\"b\"}\n", Shape::Lines),
            ("{\"text\":\"a\"\n{\"text\":\"b\"}\n", Shape::Lines),
            ("{\"text\":\"a\n\nprose\n{\"text\":\"b\"}\n", Shape::None),
            ("{\"text\":\"a\n\n", Shape::None),
            ("{\\bf A}\n{\"text\":\"b\"}\n", Shape::None),
            ("{\\bf A} paper\n in TeX", Shape::None),
            ("prose", Shape::None),
            ("", Shape::None),
        ] {
            assert_eq!(shape(text.as_bytes(), true), expected, "{text}");
        }
        let long = format!("{{\"text\": \"{}", "a".repeat(70_000));
        assert_eq!(shape(long.as_bytes(), false), Shape::Lines);
        let broken = "{\"text\":\"a\n{\"text\":\"b\"}\n{\"text\":\"cut";
        assert_eq!(shape(broken.as_bytes(), false), Shape::Lines);
        let long = format!("{{\n\"text\": \"{}", "a".repeat(70_000));
        assert_eq!(shape(long.as_bytes(), false), Shape::Spread);
        assert!(is_array_of_objects(b" [\n { \"a\": 1}") && !is_array_of_objects(b"[[Category:{}]]"));
    }
}
