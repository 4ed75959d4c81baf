use super::*;
use crate::random::mt19937::Mt19937;

/// Returns a random sequence of words, numbers, marks and runs of whitespace.
fn noise(seed: u32, items: usize) -> String {
    const ITEMS: [&str; 20] = [
        "the", " ", "  ", "\n", "\n\n", "\t", " it's", "'ll", "42", " 1984", "...", "?!", "é", "日本", "\u{a0}",
        "\u{3000}", "naïve", "x", " 🙂", "\r\n",
    ];
    let mut rng = Mt19937::new(seed);
    (0..items).map(|_| ITEMS[rng.next_u32() as usize % ITEMS.len()]).collect()
}

#[test]
fn known_ids() {
    assert_eq!(Tokenizer::Gpt2.encode("Hello world").unwrap(), [15496, 995]);
    assert_eq!(Tokenizer::Bytes.encode("Hi\u{e9}").unwrap(), [72, 105, 0xc3, 0xa9]);
    assert!(Tokenizer::Gpt2.encode("").unwrap().is_empty());
}

#[test]
fn pieces_give_the_ids_of_the_whole() {
    let bpe = tiktoken_rs::r50k_base_singleton();
    for seed in 0..40 {
        let text = noise(seed, 400);
        let whole: Vec<u16> = bpe.encode_ordinary(&text).into_iter().map(|id| id as u16).collect();
        for bytes in [1, 7, 100] {
            assert_eq!(Cuts::BeforeSpace.pieces(&text, bytes).concat(), text);
            assert_eq!(encode_gpt2(&text, bytes), whole, "seed {seed}, pieces of {bytes}");
        }
    }
}

#[test]
fn long_runs_of_one_kind_are_encoded() {
    // two million spaces before a letter once made the splitting pattern fail
    for (run, last) in [(" ", "x"), ("\n", "x"), ("a", " b"), ("\u{3000}", "x"), ("?", "")] {
        let text = run.repeat(2_000_000 / run.len()) + last;
        let ids: Vec<u32> = Tokenizer::Gpt2.encode(&text).unwrap().into_iter().map(u32::from).collect();
        assert!(Tokenizer::Gpt2.decode(&ids) == text.as_bytes(), "{run:?}");
        let mut serial = Vec::new();
        Tokenizer::Gpt2.encode_into(text.as_bytes(), true, &mut serial).unwrap();
        assert!(serial.into_iter().map(u32::from).eq(ids), "{run:?}");
    }
}

#[test]
fn decoding_gives_the_text_back() {
    let text = noise(99, 3000);
    for tokenizer in [Tokenizer::Gpt2, Tokenizer::Bytes] {
        let ids: Vec<u32> = tokenizer.encode(&text).unwrap().into_iter().map(u32::from).collect();
        assert_eq!(tokenizer.decode(&ids), text.as_bytes());
    }
}

#[test]
fn all_ids_decode() {
    for tokenizer in [Tokenizer::Gpt2, Tokenizer::Bytes] {
        for id in 0..tokenizer.vocab() as u32 {
            assert!(!tokenizer.decode(&[id]).is_empty(), "{tokenizer} {id}");
        }
        assert_eq!(tokenizer.decode(&[u32::from(tokenizer.end_of_text())]), b"<|endoftext|>");
        assert_eq!(tokenizer.decode(&[tokenizer.vocab() as u32]), "\u{fffd}".as_bytes());
    }
}

#[test]
fn end_of_text_spelt_out_is_ordinary_text() {
    assert!(!Tokenizer::Gpt2.encode("<|endoftext|>").unwrap().contains(&50_256));
}

#[test]
fn invalid_utf8_is_replaced_and_counted() {
    let (ids, replaced) = Tokenizer::Gpt2.encode_counted(b"a\xffb\xc3").unwrap();
    assert_eq!(replaced, 2);
    assert_eq!(ids, Tokenizer::Gpt2.encode("a\u{fffd}b\u{fffd}").unwrap());
    assert_eq!(Tokenizer::Bytes.encode_counted(b"\xff").unwrap(), (vec![255], 0));
}
