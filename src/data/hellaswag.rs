//! HellaSwag, and any set of the same form: a context and four endings, of which one is right (Zellers et al. 2019).
//!
//! Reads llm.c's `hellaswag_val.bin`, the original JSON Lines, or Parquet as Hugging Face hosts it. As in llm.c, texts
//! are used unchanged, and a space is put before each ending before it is encoded.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use parquet::file::metadata::RowGroupMetaData;
use parquet::file::reader::FileReader;
use parquet::record::Field;
use parquet::schema::types::Type;
use serde_json::Value;

use crate::data::Tokenizer;
use crate::data::prepare::{footer, pages};
use crate::error::{Error, Fault, Result};
use crate::files::open;

/// First word of llm.c's file.
const MAGIC: i32 = 20_240_522;
/// Bytes of the header of llm.c's file.
const HEADER_BYTES: usize = 1024;
/// Token that begins each example in llm.c's file.
const START: u16 = u16::MAX;
/// Number of endings of an example.
pub const ENDINGS: usize = 4;
/// Longest line or text in bytes, far above any example.
const LINE_BYTES: u64 = 1 << 20;
/// Columns and keys that are read.
const KEYS: [&str; 3] = ["ctx", "endings", "label"];

/// One question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Tokens of the context, at least one.
    pub context: Vec<u16>,
    /// Tokens of each ending, at least one.
    pub endings: [Vec<u16>; ENDINGS],
    /// Index of the right ending.
    pub label: usize,
}

/// A set of examples.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Set {
    /// The examples in the file's order.
    pub examples: Vec<Example>,
    /// Number of invalid UTF-8 sequences that were replaced.
    pub replaced: usize,
}

/// Reads the first `limit` examples of a file. Parquet and llm.c's file are recognised by their first bytes; anything
/// else is read as JSON Lines. Texts are encoded with `tokenizer`; llm.c's file contains GPT-2's tokens.
///
/// # Errors
/// [`Error::Data`] naming the file, the example and the fault; [`Error::Usage`] for llm.c's file with a tokenizer other
/// than GPT-2's.
pub fn read(path: &Path, tokenizer: &Tokenizer, limit: usize) -> Result<Set> {
    let name = path.display().to_string();
    let cannot = |e: std::io::Error| Error::data(open::fault(&name, &e));
    let mut file = open::input(path).map_err(cannot)?;
    let mut start = Vec::new();
    file.by_ref().take(4).read_to_end(&mut start).map_err(cannot)?;
    let reader = Reader { name: &name, tokenizer, limit };
    let set = if start == MAGIC.to_le_bytes() || path.extension().is_some_and(|extension| extension == "bin") {
        if *tokenizer != Tokenizer::Gpt2 {
            return Err(Error::usage(
                Fault::at(name, format!("contains tokens of gpt2, but the model's tokenizer is {tokenizer}"))
                    .advice("try the JSON Lines file"),
            ));
        }
        reader.llmc(start, file)?
    } else if start == b"PAR1" {
        reader.parquet(path)?
    } else {
        let whole = std::io::Cursor::new(start).chain(file);
        reader.lines(BufReader::new(whole))?
    };
    if set.examples.is_empty() {
        return Err(Error::data(Fault::at(name, "no example in it").expected("at least one")));
    }
    Ok(set)
}

struct Reader<'a> {
    name: &'a str,
    tokenizer: &'a Tokenizer,
    limit: usize,
}

impl Reader<'_> {
    fn fault(&self, fault: impl Into<Fault>) -> Error {
        Error::data(fault.into().within(self.name))
    }

    /// Encodes the texts of example `number`, counted from 1.
    fn example(&self, number: usize, context: &str, endings: &[String], label: &str) -> Result<Example> {
        let wrong = |fault: Fault| self.fault(fault.within(format!("example {number}")));
        let endings: &[String; ENDINGS] = endings
            .try_into()
            .map_err(|_| wrong(Fault::from(format!("{} endings", endings.len())).expected(ENDINGS)))?;
        let label = label.parse().ok().filter(|label| *label < ENDINGS);
        let label = label.ok_or_else(|| {
            wrong(Fault::from("no label from 0 to 3").advice("try the validation set, which has all labels"))
        })?;
        let context = self.tokenizer.encode(context)?;
        if context.is_empty() {
            return Err(wrong(Fault::from("an empty context").expected("text")));
        }
        let mut encoded = [const { Vec::new() }; ENDINGS];
        for (ids, ending) in encoded.iter_mut().zip(endings) {
            *ids = self.tokenizer.encode(format!(" {ending}"))?;
        }
        Ok(Example { context, endings: encoded, label })
    }

    fn lines(&self, mut reader: impl BufRead) -> Result<Set> {
        let mut set = Set::default();
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            let read = reader.by_ref().take(LINE_BYTES + 1).read_until(b'\n', &mut line);
            read.map_err(|e| self.fault(format!("cannot be read ({e})")))?;
            if line.len() as u64 > LINE_BYTES {
                return Err(self.fault(
                    Fault::from(format!("line {number} has more than {LINE_BYTES} bytes"))
                        .expected("an example of HellaSwag"),
                ));
            }
            if line.is_empty() || set.examples.len() == self.limit {
                break;
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            set.replaced += line.utf8_chunks().filter(|chunk| !chunk.invalid().is_empty()).count();
            let value: Value = serde_json::from_str(&String::from_utf8_lossy(&line)).map_err(|e| {
                self.fault(Fault::from(format!("line {number}: broken JSON ({e})")).expected("an example of HellaSwag"))
            })?;
            let missing = |key: &str| {
                self.fault(
                    Fault::from(format!("line {number}: no `{key}`")).expected("the keys ctx, endings and label"),
                )
            };
            let context = value["ctx"].as_str().ok_or_else(|| missing("ctx"))?;
            let endings = value["endings"].as_array().ok_or_else(|| missing("endings"))?;
            let endings: Option<Vec<String>> =
                endings.iter().map(|ending| ending.as_str().map(str::to_owned)).collect();
            let endings = endings.ok_or_else(|| missing("endings"))?;
            let label = value["label"].as_u64().map(|label| label.to_string());
            let label = label.or_else(|| value["label"].as_str().map(str::to_owned)).ok_or_else(|| missing("label"))?;
            set.examples.push(self.example(number, context, &endings, &label)?);
        }
        Ok(set)
    }

    /// Reads Parquet. The `parquet` crate may panic on broken files; that becomes an error of the file.
    fn parquet(&self, path: &Path) -> Result<Set> {
        let read = catch_unwind(AssertUnwindSafe(|| self.parquet_rows(path)));
        read.unwrap_or_else(|_| Err(self.fault(Fault::from("not a whole Parquet file").advice("try copying it again"))))
    }

    fn parquet_rows(&self, path: &Path) -> Result<Set> {
        let broken = |e: &dyn std::fmt::Display| {
            self.fault(Fault::from(format!("not a whole Parquet file ({e})")).advice("try copying it again"))
        };
        let file = open::input(path).map_err(|e| Error::data(open::fault(self.name, &e)))?;
        let own = file.try_clone().map_err(|e| self.fault(format!("cannot be read ({e})")))?;
        footer::check(&file).map_err(|fault| self.fault(fault))?;
        let reader = pages::reader(file).map_err(|e| broken(&e))?;
        let groups = reader.metadata().row_groups();
        for chunk in groups.iter().flat_map(RowGroupMetaData::columns) {
            if KEYS.iter().any(|key| chunk.column_path().parts().first().is_some_and(|part| part == key)) {
                pages::check(&own, self.name, chunk, pages::TEXT_BYTES)?;
            }
        }
        let schema = reader.metadata().file_metadata().schema();
        let column = |key: &&str| {
            let found = schema.get_fields().iter().find(|field| field.name() == *key);
            found.cloned().ok_or_else(|| {
                let names: Vec<&str> = schema.get_fields().iter().map(|field| field.name()).collect();
                self.fault(
                    Fault::from(format!("no column `{key}`"))
                        .expected("ctx, endings and label")
                        .found(names.join(", ")),
                )
            })
        };
        let fields = KEYS.iter().map(column).collect::<Result<Vec<_>>>()?;
        let projection = Type::group_type_builder(schema.name()).with_fields(fields).build().map_err(|e| broken(&e))?;
        let rows = reader.get_row_iter(Some(projection)).map_err(|e| broken(&e))?;
        let mut set = Set::default();
        for (i, row) in rows.take(self.limit).enumerate() {
            let row = row.map_err(|e| broken(&e))?;
            let (mut context, mut endings, mut label) = (None, None, None);
            for (name, field) in row.get_column_iter() {
                match name.as_str() {
                    "ctx" => context = text(field),
                    "endings" => endings = texts(field),
                    _ => label = text(field),
                }
            }
            let (Some(context), Some(endings), Some(label)) = (context, endings, label) else {
                return Err(self
                    .fault(format!("example {}: ctx or label is not text, or endings is not a list of texts", i + 1)));
            };
            set.examples.push(self.example(i + 1, &context, &endings, &label)?);
        }
        Ok(set)
    }

    /// Reads llm.c's file: 256 i32 (magic, version 1, number of examples, bytes of the longest), then u16. Each example
    /// is START, its size in bytes, its index, its label, its number of endings, then the length and the tokens of the
    /// context and of each ending.
    fn llmc(&self, mut bytes: Vec<u8>, mut file: File) -> Result<Set> {
        file.read_to_end(&mut bytes).map_err(|e| self.fault(format!("cannot be read ({e})")))?;
        if bytes.len() < HEADER_BYTES {
            let got = bytes.len();
            return Err(self.fault(
                Fault::from("header is cut short").expected(format!("at least {HEADER_BYTES} bytes")).found(got),
            ));
        }
        let (header, body) = bytes.split_at(HEADER_BYTES);
        let word = |i: usize| i32::from_le_bytes(std::array::from_fn(|b| header[4 * i + b]));
        for (field, got, want) in [("magic", word(0), MAGIC), ("version", word(1), 1)] {
            if got != want {
                return Err(self.fault(
                    Fault::from(format!("{field} is {got}")).expected(want).advice("is it a set that llm.c prepared?"),
                ));
            }
        }
        let count = word(2);
        if !body.len().is_multiple_of(2) || count < 1 {
            return Err(self.fault(
                Fault::from(format!("{count} examples in {} bytes", bytes.len())).expected("at least 1 in whole words"),
            ));
        }
        let words: Vec<u16> = body.as_chunks().0.iter().map(|word| u16::from_le_bytes(*word)).collect();
        let mut words = Words { reader: self, rest: &words, number: 0 };
        let mut set = Set::default();
        // also checks the examples after the limit
        for number in 1..=count as usize {
            words.number = number;
            let example = words.example()?;
            if set.examples.len() < self.limit {
                set.examples.push(example);
            }
        }
        match words.rest.len() {
            0 => Ok(set),
            rest => Err(self.fault(
                Fault::from(format!("{} bytes follow the last of {count} examples", 2 * rest)).expected("none"),
            )),
        }
    }
}

/// The unread rest of llm.c's file.
struct Words<'a> {
    reader: &'a Reader<'a>,
    rest: &'a [u16],
    number: usize,
}

impl<'a> Words<'a> {
    fn fault(&self, fault: impl Into<Fault>) -> Error {
        self.reader.fault(fault.into().within(format!("example {}", self.number)))
    }

    fn take(&mut self, count: usize) -> Result<&'a [u16]> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or_else(|| {
            self.fault(Fault::from("is cut short").expected(format!("{count} more words")).found(self.rest.len()))
        })?;
        self.rest = rest;
        Ok(taken)
    }

    fn one(&mut self) -> Result<u16> {
        self.take(1).map(|word| word[0])
    }

    /// Reads a length and that many tokens, at least one.
    fn tokens(&mut self) -> Result<Vec<u16>> {
        let length = self.one()?;
        let tokens = self.take(usize::from(length))?;
        let vocab = self.reader.tokenizer.vocab();
        if let Some(id) = tokens.iter().find(|id| usize::from(**id) >= vocab) {
            return Err(self.fault(Fault::from(format!("token {id}")).expected(format!("below {vocab}"))));
        }
        if tokens.is_empty() {
            return Err(self.fault(Fault::from("a text of no tokens").expected("at least one")));
        }
        Ok(tokens.to_vec())
    }

    fn example(&mut self) -> Result<Example> {
        let before = self.rest.len();
        let start = self.one()?;
        if start != START {
            return Err(self.fault(Fault::from(format!("begins with {start}")).expected(START)));
        }
        let [bytes, _index, label, endings] = [self.one()?, self.one()?, self.one()?, self.one()?];
        if usize::from(endings) != ENDINGS || usize::from(label) >= ENDINGS {
            return Err(self.fault(
                Fault::from(format!("label {label} of {endings} endings")).expected(format!("one of {ENDINGS}")),
            ));
        }
        let context = self.tokens()?;
        let endings = [self.tokens()?, self.tokens()?, self.tokens()?, self.tokens()?];
        let read = 2 * (before - self.rest.len());
        if usize::from(bytes) != read {
            return Err(
                self.fault(Fault::from(format!("has {read} bytes")).expected(format!("{bytes} by its own count")))
            );
        }
        Ok(Example { context, endings, label: usize::from(label) })
    }
}

/// Returns a field as text, if it is text or a whole number.
fn text(field: &Field) -> Option<String> {
    match field {
        Field::Str(text) => Some(text.clone()),
        Field::Bytes(bytes) => Some(String::from_utf8_lossy(bytes.data()).into_owned()),
        Field::Byte(_) | Field::Short(_) | Field::Int(_) | Field::Long(_) => Some(field.to_string()),
        _ => None,
    }
}

fn texts(field: &Field) -> Option<Vec<String>> {
    match field {
        Field::ListInternal(list) => list.elements().iter().map(text).collect(),
        _ => None,
    }
}

#[cfg(test)]
#[path = "hellaswag_tests.rs"]
mod tests;
