//! The text of one line of JSON.
//!
//! Half a surrogate pair and other invalid UTF-8 stay as they are: the tokenizer replaces and counts them. `NaN` and
//! `Infinity`, which Python writes and JSON does not have, are read over where they are no text.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

/// Returns the bytes of the field `field` of an object, none if it is null.
///
/// # Errors
/// A sentence: the line is no object, or has no such text.
pub(crate) fn text_of(line: &[u8], field: &str) -> Result<Option<Vec<u8>>, String> {
    let read = |line: &[u8]| {
        let mut reader = serde_json::Deserializer::from_slice(line);
        Line { field }.deserialize(&mut reader).and_then(|found| reader.end().map(|()| found))
    };
    let found = read(line).or_else(|error| match with_numbers(line) {
        Cow::Borrowed(_) => Err(error),
        // a field whose text is NaN would be called 0
        Cow::Owned(line) => read(&line).map_err(|other| if other.is_data() { error } else { other }),
    });
    let found = found.map_err(|e| describe(&e))?;
    found.ok_or_else(|| format!("no field `{field}`, expected one in every line; try --field NAME"))
}

/// Returns true if the line is an object.
pub(crate) fn is_object(line: &[u8]) -> bool {
    let is_json = |line: &[u8]| serde_json::from_slice::<IgnoredAny>(line).is_ok();
    line.trim_ascii_start().starts_with(b"{") && (is_json(line) || is_json(&with_numbers(line)))
}

/// Replaces `NaN`, `Infinity` and `-Infinity` outside of texts by a number of the same length.
pub(crate) fn with_numbers(json: &[u8]) -> Cow<'_, [u8]> {
    let mut out = Cow::Borrowed(json);
    let (mut at, mut inside) = (0, false);
    while at < json.len() {
        match json[at] {
            b'"' => inside = !inside,
            b'\\' if inside => at += 1,
            b'N' | b'I' | b'-' if !inside => {
                let word = [&b"NaN"[..], b"Infinity", b"-Infinity"].into_iter().find(|w| json[at..].starts_with(w));
                if let Some(word) = word {
                    let end = at + word.len();
                    let number = &mut out.to_mut()[at..end];
                    number.fill(b' ');
                    number[0] = b'0';
                    at = end - 1;
                }
            }
            _ => {}
        }
        at += 1;
    }
    out
}

/// serde_json's words without its line number, which is always 1 here.
fn describe(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = text.split(" at line ").next().unwrap_or(&text).replace('\n', " ");
    format!(
        "not a JSON object with a text, expected {{\"text\": \"...\"}}, got an error at column {}: {text}",
        error.column()
    )
}

/// Reads one object and keeps one field: `None` if it is not there, `Some(None)` if it is null.
struct Line<'a> {
    field: &'a str,
}

impl<'de> DeserializeSeed<'de> for Line<'_> {
    type Value = Option<Option<Vec<u8>>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Line<'_> {
    type Value = Option<Option<Vec<u8>>>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(Bytes(key)) = map.next_key()? {
            if key == self.field.as_bytes() {
                found = Some(map.next_value::<Option<Bytes>>()?.map(|text| text.0));
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// A JSON string as bytes.
struct Bytes(Vec<u8>);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Bytes;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_bytes<E>(self, text: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes(text.to_vec()))
            }

            fn visit_byte_buf<E>(self, text: Vec<u8>) -> Result<Bytes, E> {
                Ok(Bytes(text))
            }

            fn visit_str<E>(self, text: &str) -> Result<Bytes, E> {
                Ok(Bytes(text.as_bytes().to_vec()))
            }
        }
        deserializer.deserialize_bytes(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_and_infinity_beside_the_text_are_read_over() {
        for line in [
            r#"{"text":"a","score":NaN}"#,
            r#"{"score": -Infinity, "more": [1, Infinity,NaN, {"x":NaN }], "text":"a"}"#,
            r#"{"text":"a","n":123456789012345678901234567890,"e":1e999}"#,
        ] {
            assert_eq!(text_of(line.as_bytes(), "text").unwrap().unwrap(), b"a", "{line}");
            assert!(is_object(line.as_bytes()), "{line}");
        }
        let line = br#"{"text":"NaN \"Infinity, -Infinity\\","n":NaN}"#;
        assert_eq!(text_of(line, "text").unwrap().unwrap(), br#"NaN "Infinity, -Infinity\"#);
        for (line, what) in [
            (&br#"{"text":NaN}"#[..], "expected value"),
            (br#"{"text":"a","n":NaNa}"#, "expected `,` or `}`"),
            (br#"{"text":"a","n":NaN"#, "EOF"),
            (br#"NaN"#, "expected"),
        ] {
            let error = text_of(line, "text").unwrap_err();
            assert!(error.contains(what), "{error}");
        }
    }
}
