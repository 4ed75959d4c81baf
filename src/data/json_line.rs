//! Reads the text of one line of JSON.
//!
//! Lone surrogates and other invalid UTF-8 are kept: the tokenizer replaces and counts them. `NaN` and `Infinity`,
//! which Python writes although JSON does not have them, are accepted and ignored outside of strings.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// Most keys that an error names.
const NAMED: usize = 12;
/// Longest line, in bytes, whose keys an error names.
const NAMED_BYTES: usize = 1 << 20;

/// Returns the bytes of the text in the field `field` of an object, `None` if it is null. If there is no key of this
/// name, `field` is a path through nested objects: `meta.text` finds `a` in `{"meta":{"text":"a"}}`, and null if an
/// object on the path is null.
///
/// # Errors
/// A message if the line is not an object or has no such text.
pub(crate) fn text_of(line: &[u8], field: &str) -> Result<Option<Vec<u8>>, String> {
    let read = |line: &[u8]| {
        let mut reader = serde_json::Deserializer::from_slice(line);
        Line { field }.deserialize(&mut reader).and_then(|found| reader.end().map(|()| found))
    };
    let found = read(line).or_else(|error| match with_numbers(line) {
        Cow::Borrowed(_) => Err(error),
        // an error of the second attempt would report a NaN in the field as 0
        Cow::Owned(line) => read(&line).map_err(|other| if other.is_data() { error } else { other }),
    });
    let found = found.map_err(|e| describe(&e))?;
    found.ok_or_else(|| {
        let keys = keys(line, field);
        let keys = if keys.is_empty() { "it in every line".to_owned() } else { format!("one of {}", keys.join(", ")) };
        format!("no field `{field}`, expected {keys}; try --field NAME")
    })
}

/// Returns the first keys, as paths, of the innermost object that the path `field` reaches.
fn keys(line: &[u8], field: &str) -> Vec<String> {
    // parsed JSON needs many times its length in memory, and every thread may be here at once
    if line.len() > NAMED_BYTES {
        return Vec::new();
    }
    let line = with_numbers(line);
    let Ok(value) = serde_json::from_str::<Value>(&String::from_utf8_lossy(&line)) else { return Vec::new() };
    let (mut value, mut before, mut rest) = (&value, String::new(), field);
    while let Some((key, inner)) = rest.split_once('.') {
        let Some(object) = value.get(key).filter(|value| value.is_object()) else { break };
        (value, rest) = (object, inner);
        before = format!("{before}{key}.");
    }
    let keys = value.as_object().into_iter().flat_map(|object| object.keys());
    keys.take(NAMED).map(|key| format!("{before}{}", key.escape_debug())).collect()
}

/// Returns whether the line is a JSON object.
pub(crate) fn is_object(line: &[u8]) -> bool {
    let is_json = |line: &[u8]| serde_json::from_slice::<IgnoredAny>(line).is_ok();
    line.trim_ascii_start().starts_with(b"{") && (is_json(line) || is_json(&with_numbers(line)))
}

/// Replaces `NaN`, `Infinity` and `-Infinity` outside of strings by `0` and spaces of the same length.
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

/// Returns serde_json's message without its line number, which is always 1 here.
fn describe(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = text.split(" at line ").next().unwrap_or(&text).replace('\n', " ");
    format!(
        "not a JSON object with a text, expected {{\"text\": \"...\"}}, got an error at column {}: {text}",
        error.column()
    )
}

/// The result of a search for a text: `None` if the field is missing, `Some(None)` if it is null.
type Found = Option<Option<Vec<u8>>>;

/// Reads an object and keeps one field.
struct Line<'a> {
    field: &'a str,
}

impl<'de> DeserializeSeed<'de> for Line<'_> {
    type Value = Found;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Found, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Line<'_> {
    type Value = Found;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found, A::Error> {
        let (mut found, mut inner) = (None, None);
        while let Some(Bytes(key)) = map.next_key()? {
            let rest = self.field.as_bytes().strip_prefix(&key[..]);
            if rest.is_some_and(<[u8]>::is_empty) {
                found = Some(map.next_value::<Option<Bytes>>()?.map(|text| text.0));
            } else if rest.is_some_and(|rest| rest.starts_with(b".")) {
                // a dot is never part of a longer UTF-8 sequence, so this cuts at a character
                let field = &self.field[key.len() + 1..];
                inner = map.next_value_seed(Inner(Line { field }))?.or(inner);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found.or(inner))
    }
}

/// Reads the rest of a path in an object. Other values do not contain it.
struct Inner<'a>(Line<'a>);

impl<'de> DeserializeSeed<'de> for Inner<'_> {
    type Value = Found;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Found, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Inner<'_> {
    type Value = Found;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Found, A::Error> {
        self.0.visit_map(map)
    }

    fn visit_unit<E>(self) -> Result<Found, E> {
        Ok(Some(None))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Found, E> {
        Ok(None)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Found, E> {
        Ok(None)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Found, E> {
        Ok(None)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Found, E> {
        Ok(None)
    }

    fn visit_str<E>(self, _: &str) -> Result<Found, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Found, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

/// The bytes of a JSON string.
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
    fn a_field_may_be_a_path() {
        for (line, expected) in [
            (r#"{"meta":{"id":1,"text":"a"}}"#, Some("a")),
            (r#"{"meta.text":"a","meta":{"text":"b"}}"#, Some("a")),
            (r#"{"meta":{"text":"b"},"meta.text":"a"}"#, Some("a")),
            (r#"{"meta.text":null,"meta":{"text":"b"}}"#, None),
            (r#"{"meta":{"text":null}}"#, None),
            (r#"{"meta":null,"n":NaN}"#, None),
        ] {
            let found = text_of(line.as_bytes(), "meta.text").unwrap();
            assert_eq!(found, expected.map(|text| text.as_bytes().to_vec()), "{line}");
        }
        assert_eq!(text_of(br#"{"a":{"b.c":{"d":"x"}}}"#, "a.b.c.d").unwrap().unwrap(), b"x");
        assert_eq!(text_of(r#"{"é":{"ü":"x"}}"#.as_bytes(), "é.ü").unwrap().unwrap(), b"x");
        for (line, said) in [
            (r#"{"meta":{"id":1,"body":"a"}}"#, "no field `meta.text`, expected one of meta.body, meta.id;"),
            (r#"{"id":1,"meta":"text"}"#, "no field `meta.text`, expected one of id, meta;"),
            (r#"{"meta":[{"text":"a"},2],"id":1.5}"#, "no field `meta.text`, expected one of id, meta;"),
            (r#"{"text":"a","n":NaN}"#, "expected one of n, text;"),
            ("{}", "expected it in every line;"),
            (r#"{"meta":{"text":7}}"#, "invalid type: integer `7`, expected a string"),
        ] {
            let error = text_of(line.as_bytes(), "meta.text").unwrap_err();
            assert!(error.contains(said), "{line}: {error}");
        }
        let many: Vec<String> = (10..50).map(|i| format!("\"k{i}\":1")).collect();
        let error = text_of(format!("{{{}}}", many.join(",")).as_bytes(), "text").unwrap_err();
        assert!(error.contains("k10, k11") && error.contains("k21;"), "{error}");
        let long = format!("{{\"id\":[{}0]}}", "0,".repeat(NAMED_BYTES / 2));
        assert!(text_of(long.as_bytes(), "text").unwrap_err().contains("expected it in every line;"));
    }

    #[test]
    fn nan_and_infinity_outside_the_text_are_ignored() {
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
