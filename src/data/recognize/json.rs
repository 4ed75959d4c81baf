//! JSON Lines, told from one JSON document over several lines.

use serde::de::IgnoredAny;

use crate::data::json_line;
use crate::files::kind::without_bom;

/// The shape of JSON that a file begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// An object in a line.
    Lines,
    /// An array.
    Array,
    /// An object over several lines.
    Spread,
    /// Something else.
    None,
}

/// Returns what follows a byte order mark and whitespace.
fn start(head: &[u8]) -> &[u8] {
    without_bom(head).trim_ascii_start()
}

/// Returns the first line and, if it ends, the lines after it.
fn first_line(head: &[u8]) -> (&[u8], Option<&[u8]>) {
    match head.iter().position(|&byte| byte == b'\n') {
        Some(at) => (&head[..at], Some(&head[at + 1..])),
        None => (head, None),
    }
}

/// Tells the shape. `is_whole` says that the file ends with these bytes.
pub(super) fn shape(head: &[u8], is_whole: bool) -> Shape {
    let head = start(head);
    let (line, rest) = first_line(head);
    match line.first() {
        Some(b'[') => Shape::Array,
        Some(b'{') if json_line::is_object(line) => Shape::Lines,
        // a line longer than the look
        Some(b'{') if rest.is_none() && !is_whole && start(&line[1..]).starts_with(b"\"") => Shape::Lines,
        Some(b'{') if rest.is_some_and(|rest| !rest.trim_ascii().is_empty()) => {
            let document = json_line::with_numbers(head);
            match serde_json::Deserializer::from_slice(&document).into_iter::<IgnoredAny>().next() {
                Some(Ok(_)) => Shape::Spread,
                Some(Err(e)) if e.is_eof() && !is_whole => Shape::Spread,
                // the reader says that the first line is broken
                _ if start(&line[1..]).starts_with(b"\"") && are_objects(rest.unwrap_or_default(), is_whole) => {
                    Shape::Lines
                }
                _ => Shape::None,
            }
        }
        _ => Shape::None,
    }
}

/// Lines behind a broken one that are looked at.
const LATER: usize = 8;

/// Returns true if most of the first lines are objects. Where the look ends in a line, it is not counted.
fn are_objects(text: &[u8], is_whole: bool) -> bool {
    let end = if is_whole { text.len() } else { memchr::memrchr(b'\n', text).unwrap_or(0) };
    let lines = text[..end].split(|&byte| byte == b'\n').filter(|line| !line.trim_ascii().is_empty()).take(LATER);
    let objects: Vec<bool> = lines.map(json_line::is_object).collect();
    2 * objects.iter().filter(|is_object| **is_object).count() > objects.len()
}

/// Returns true if an array begins with an object, as no prose does.
pub(super) fn is_array_of_objects(head: &[u8]) -> bool {
    let object = start(head).strip_prefix(b"[").map_or(&[][..], start);
    object.strip_prefix(b"{").is_some_and(|inside| start(inside).starts_with(b"\""))
}

/// Returns true if the first line is an object with this field.
pub(crate) fn first_object_has(head: &[u8], field: &str) -> bool {
    let (line, rest) = first_line(start(head));
    match json_line::text_of(line, field) {
        Ok(_) => true,
        // a line longer than the look: its beginning may have the field
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
    fn lines_are_told_from_one_document() {
        for (text, expected) in [
            ("{\"text\":\"a\"}\n{\"text\":\"b\"}\n", Shape::Lines),
            ("\n \u{feff}", Shape::None),
            ("\u{feff}{\"text\":\"a\", \"n\": NaN}", Shape::Lines),
            ("{}\n", Shape::Lines),
            ("{\n  \"text\": \"a\"\n}\n", Shape::Spread),
            ("{\"text\": \"a\",\n \"n\": -Infinity}\n", Shape::Spread),
            ("[{\"text\": \"a\"},\n{\"text\": \"b\"}]", Shape::Array),
            ("{\"text\":\"cut", Shape::None),
            // a broken line of JSON Lines is no document of several lines
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
