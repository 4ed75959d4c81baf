//! Deep nesting, on a thread of 2 MiB, the smallest stack in the program.

use serde_json::{Value, json};

use super::{TARGETS, Target, scratch};

/// The texts around and inside nesting: before it, repeated, in the middle.
const NESTS: [(&str, &str, &str); 18] = [
    ("", "[", ""),
    ("", "{\"a\":", "1"),
    ("", "[{\"a\":", "1"),
    ("{\"text\":\"a\",\"n\":", "[", ""),
    ("{\"text\":", "{\"text\":", "1"),
    ("{\"recipe\":", "[", ""),
    ("{\"weight_map\":", "{\"a\":", "1"),
    ("{\"wte.weight\":{\"shape\":", "[", ""),
    ("{\"model\":", "{\"vocab\":", "1"),
    ("a = ", "[", ""),
    ("a = ", "{ b = ", "1"),
    ("data.text = ", "[", "\"a\""),
    ("[", "a.", "a]"),
    ("", "a.", "a = 1"),
    ("[[", "a.", "a]]"),
    ("{'descr': ", "(", ""),
    ("**/", "[!", "]"),
    ("", "\u{feff}", "{}"),
];

fn run(target: &Target, folder: &std::path::Path, input: &[u8]) {
    std::fs::create_dir_all(folder).expect("a folder");
    (target.run)(folder, input);
}

#[test]
fn nesting_of_any_depth_ends_in_an_error_and_not_in_the_stack() {
    let folder = scratch();
    for (before, again, middle) in NESTS {
        let close: String = match again {
            "[" => "]".into(),
            "(" => ")".into(),
            again if again.contains('{') => {
                again.chars().rev().filter(|c| "{[".contains(*c)).map(|c| if c == '{' { '}' } else { ']' }).collect()
            }
            _ => String::new(),
        };
        for depth in [100, 100_000] {
            let end = if before.starts_with('{') { "}" } else { "" };
            for close in ["", &close] {
                let text = [before, &again.repeat(depth), middle, &close.repeat(depth), end].concat();
                for target in TARGETS {
                    run(target, &folder.path().join(target.name), text.as_bytes());
                }
                // the same in the place of a header whose length is known
                let header = [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
                let npy = [b"\x93NUMPY\x02\0", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
                for (name, file) in [("safetensors", header.clone()), ("checkpoint_weights", header), ("npy", npy)] {
                    let target = TARGETS.iter().find(|target| target.name == name).expect("a target");
                    run(target, &folder.path().join(name), &file);
                }
            }
        }
    }
}

#[test]
fn tokenizers_of_nested_parts_and_patterns_end_in_an_error() {
    let folder = scratch();
    let target = TARGETS.iter().find(|target| target.name == "tokenizer_json").expect("a target");
    let plain = super::corpus("tokenizer_json").swap_remove(0);
    let plain: Value = serde_json::from_slice(&plain).expect("a tokenizer");
    let with = |key: &str, value: Value| {
        let mut changed = plain.clone();
        changed[key] = value;
        run(target, folder.path(), changed.to_string().as_bytes());
    };
    let nested = |depth: usize, kind: &str, list: &str, inside: Value| {
        (0..depth).fold(inside, |inner, _| json!({ "type": kind, list: [inner] }))
    };
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    // a part takes two levels of JSON, of which 127 are read
    for depth in [3, 20, 60] {
        with("pre_tokenizer", nested(depth, "Sequence", "pretokenizers", bytes.clone()));
        with("normalizer", nested(depth, "Sequence", "normalizers", json!({ "type": "NFC" })));
        with("decoder", nested(depth, "Sequence", "decoders", bytes.clone()));
        with("normalizer", nested(depth, "Sequence", "normalizers", json!({ "type": "no such" })));
    }
    for again in ["(", "(?:", "[", "[^a", "(?=", "(?<!", "a{9}{", "\\1", "(a+)+", "(?i)", "a|", "a?"] {
        for depth in [100, 100_000] {
            for close in ["", ")", "]", "}"] {
                let pattern = [&again.repeat(depth), "a", &close.repeat(depth)].concat();
                let split = json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
                with("pre_tokenizer", json!({ "type": "Sequence", "pretokenizers": [split, bytes] }));
            }
        }
    }
}

#[test]
fn schemas_of_any_depth_end_in_an_error() {
    let folder = scratch();
    for (depth, children) in [(1000, 1_u8), (100_000, 1), (100_000, 63), (1_000_000, 1)] {
        // a list of so many groups, each with one child, in a file of nothing else
        let mut footer = vec![0x15, 2, 0x19, 0xfc];
        let mut len = depth;
        while len > 127 {
            footer.push(len as u8 | 128);
            len >>= 7;
        }
        footer.push(len as u8);
        for _ in 0..depth {
            footer.extend([0x35, 0, 0x18, 1, b'g', 0x15, 2 * children, 0]);
        }
        footer.extend([0x16, 0, 0x19, 0x0c, 0]);
        let length = (footer.len() as u32).to_le_bytes();
        let file = [&b"PAR1"[..], &footer, &length, b"PAR1"].concat();
        for name in ["parquet", "hellaswag_parquet"] {
            let target = TARGETS.iter().find(|target| target.name == name).expect("a target");
            run(target, &folder.path().join(name), &file);
        }
    }
}
