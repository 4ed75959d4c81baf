use std::fs;

use super::*;
use crate::reference::random::Random;

fn config() -> Config {
    Config::new(24, 257, 2, 3, 36).unwrap()
}

/// Returns weights that bf16 represents exactly.
fn model() -> Weights {
    let mut weights = Weights::zeros(config());
    let mut random = Random::new(7);
    for values in &mut weights.tensors {
        values.fill_with(|| f32::from_bits((random.value() as f32).to_bits() & 0xffff_0000));
    }
    weights.get_mut("wte", 0)[257 * 36..].fill(0.0);
    weights
}

fn saved(element: Element) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.bin");
    save(&path, &model(), element).unwrap();
    fs::read(&path).unwrap()
}

fn load_bytes(bytes: &[u8]) -> Result<(Weights, ModelInfo)> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.bin");
    fs::write(&path, bytes).unwrap();
    load(&path)
}

/// Checks the error's place in the file, fault, expected and found value; empty texts are not checked.
#[track_caller]
fn refused(bytes: &[u8], [place, what, expected, found]: [&str; 4]) {
    let error = load_bytes(bytes).expect_err("refused");
    let Error::Data(fault) = &error else { panic!("{error:?}") };
    assert!(fault.place.ends_with(&format!("m.bin{place}")) && !error.to_string().contains('\n'), "{fault:?}");
    assert!(fault.what.contains(what) && fault.expected.contains(expected), "{fault:?}");
    assert!(found.is_empty() || fault.found == found, "{fault:?}");
}

fn with_word(word: usize, value: i32) -> Vec<u8> {
    let mut bytes = saved(Element::F32);
    bytes[4 * word..4 * word + 4].copy_from_slice(&value.to_le_bytes());
    bytes
}

#[test]
fn both_versions_come_back_bit_for_bit() {
    for element in [Element::F32, Element::Bf16] {
        let bytes = saved(element);
        assert_eq!(bytes.len(), 1024 + config().parameters() * element.bytes());
        assert_eq!(load_bytes(&bytes).unwrap(), (model(), ModelInfo::default()));
    }
}

/// Compares the header word by word with that of llm.c's `write_model`.
#[test]
fn the_header_is_llmcs() {
    for (element, version) in [(Element::F32, 3), (Element::Bf16, 5)] {
        let bytes = saved(element);
        let words: Vec<i32> = bytes[..1024].as_chunks().0.iter().map(|w| i32::from_le_bytes(*w)).collect();
        assert_eq!(words[..8], [20_240_326, version, 24, 257, 2, 3, 36, 384]);
        assert!(words[8..].iter().all(|w| *w == 0));
    }
}

#[test]
fn other_paddings_are_read() {
    let bytes = saved(Element::F32);
    let (wte, row) = (1024 + 257 * 36 * 4, 36 * 4);
    let mut bare = with_word(7, 257);
    bare.drain(wte..wte + 127 * row);
    assert_eq!(load_bytes(&bare).unwrap().0, model());
    let mut more = with_word(7, 400);
    more.splice(wte..wte, vec![0xff; 16 * row]);
    assert_eq!(load_bytes(&more).unwrap().0, model());
    assert_ne!(bytes.len(), bare.len());
}

#[test]
fn broken_files() {
    let whole = saved(Element::F32);
    for length in [0, 4, 1023] {
        refused(&whole[..length], ["", "header is cut short", "at least 1,024 bytes", &count(length as u64)]);
    }
    let size = format!("{} for 2 layers of 36 channels", counted(whole.len() as u64, "byte"));
    for length in [1024, 1025, whole.len() - 4, whole.len() - 1] {
        refused(&whole[..length], ["", "wrong file size", &size, &count(length as u64)]);
    }
    let longer = [whole.as_slice(), &[0]].concat();
    refused(&longer, ["", "wrong file size", &size, &count(longer.len() as u64)]);
    refused(&with_word(0, 20_240_520), ["", "bad magic", "20240326", "20240520"]);
    for version in [0, 1, 2, 4, 6, -3] {
        refused(&with_word(1, version), ["", "unknown version", "3 (f32) or 5 (bf16)", &version.to_string()]);
    }
    refused(&with_word(1, 5), ["", "wrong file size", "bytes", ""]);
    for word in 2..8 {
        let place = format!(": {}", FIELDS[word - 2]);
        for value in [0, -1, i32::MIN, i32::MAX, MOST] {
            refused(&with_word(word, value), [&place, "out of range", "1 to 16777215", &value.to_string()]);
        }
        let fault = match word {
            3 => [": padded_vocab_size", "too small", "at least vocab_size 16777215", "384"],
            5 => [": heads", "out of range", "", "16777215"], // which does not change the size
            _ => ["", "wrong file size", "", ""],
        };
        refused(&with_word(word, MOST - 1), fault);
    }
    refused(&with_word(5, 5), [": heads", "5 heads do not divide 36 channels", "a divisor as 4", ""]);
    refused(&with_word(7, 256), [": padded_vocab_size", "too small", "at least vocab_size 257", "256"]);
}

#[test]
fn weights_that_are_not_finite() {
    let mut bytes = saved(Element::F32);
    let end = bytes.len();
    bytes[end - 8..end - 4].copy_from_slice(&f32::NAN.to_le_bytes());
    refused(&bytes, ["", "tensor `lnfb` holds NaN at index 34", "finite numbers", ""]);
    let mut bytes = saved(Element::Bf16);
    bytes[1024..1026].copy_from_slice(&[0x80, 0xff]);
    refused(&bytes, ["", "tensor `wte` holds -inf at index 0", "finite numbers", ""]);
}

/// Flips each bit of the header. Only the heads, and the vocabulary within its padding, do not change the size.
#[test]
fn flipped_header_bits() {
    let whole = saved(Element::Bf16);
    for bit in 0..8 * 32 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let word = bit / 32;
        assert!(load_bytes(&bytes).is_err() || [3, 5].contains(&word), "bit {bit}");
    }
}

#[test]
fn a_file_tells_its_shape_and_no_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.bin");
    save(&path, &Weights::zeros(Config::new(4, 50_257, 1, 1, 8).unwrap()), Element::Bf16).unwrap();
    assert_eq!(load(&path).unwrap().1, ModelInfo::default());
    assert_eq!(describe(&path).unwrap(), load(&path).unwrap().0.config);
}
