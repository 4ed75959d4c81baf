//! Which repository and which files each name means. The one place where that stands.

use std::fmt::Write;

pub use crate::files::hub::Kind;

/// The files of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Files {
    /// Those that must be there, and those that are taken if they are.
    Listed(&'static [&'static str], &'static [&'static str]),
    /// Token shards: `PREFIX_val_000000.bin`, and `PREFIX_train_000001.bin` up to so many.
    Shards(&'static str, usize),
    /// All files in a folder with an ending.
    Folder(&'static str, &'static str),
}

/// A name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// What the user says.
    pub name: &'static str,
    /// Weights or data.
    pub kind: Kind,
    /// The repository on the hub.
    pub repo: &'static str,
    /// Its files.
    pub files: Files,
    /// What is known of it.
    pub about: &'static str,
    /// Whether the repository was reached and its files seen when this table was written.
    pub verified: bool,
}

const MODEL_FILES: Files = Files::Listed(
    &["config.json", "model.safetensors"],
    &["generation_config.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "vocab.json"],
);

/// All names.
///
/// None is verified: the table was written without a network, from the scripts of llm.c and modded-nanogpt and from
/// what other public code fetches. Sizes and checksums come from the hub itself when a file is fetched.
pub const NAMES: [Entry; 9] = [
    Entry {
        name: "tinyshakespeare",
        kind: Kind::Dataset,
        repo: "karpathy/llmc-starter-pack",
        files: Files::Listed(&["tiny_shakespeare_train.bin", "tiny_shakespeare_val.bin"], &[]),
        about: "token shards, 305,260 tokens and 32,768 for validation; 0.7 MB",
        verified: false,
    },
    Entry {
        name: "tinystories",
        kind: Kind::Dataset,
        repo: "roneneldan/TinyStories",
        files: Files::Folder("data/", ".parquet"),
        about: "text for `wgpt data prepare`, some 930 M tokens; 1 GB",
        verified: false,
    },
    Entry {
        name: "fineweb10B",
        kind: Kind::Dataset,
        repo: "kjj0/fineweb10B-gpt2",
        files: Files::Shards("fineweb", 103),
        about: "token shards, 103 of 10^8 tokens and one for validation; 200 MB each",
        verified: false,
    },
    Entry {
        name: "fineweb-edu10B",
        kind: Kind::Dataset,
        repo: "kjj0/finewebedu10B-gpt2",
        files: Files::Shards("finewebedu", 99),
        about: "token shards, 99 of 10^8 tokens and one for validation; 200 MB each",
        verified: false,
    },
    Entry {
        name: "hellaswag",
        kind: Kind::Dataset,
        repo: "karpathy/llmc-starter-pack",
        files: Files::Listed(&["hellaswag_val.bin"], &[]),
        about: "10,042 examples as llm.c tokenised them; 3.6 MB",
        verified: false,
    },
    model("gpt2", "openai-community/gpt2", "124 M parameters; 0.5 GB"),
    model("gpt2-medium", "openai-community/gpt2-medium", "355 M parameters; 1.5 GB"),
    model("gpt2-large", "openai-community/gpt2-large", "774 M parameters; 3.2 GB"),
    model("gpt2-xl", "openai-community/gpt2-xl", "1558 M parameters; 6.4 GB"),
];

const fn model(name: &'static str, repo: &'static str, about: &'static str) -> Entry {
    Entry { name, kind: Kind::Model, repo, files: MODEL_FILES, about, verified: false }
}

/// The entry of a name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Entry> {
    NAMES.iter().find(|entry| entry.name == name)
}

/// The table as text, a line a name.
#[must_use]
pub fn table() -> String {
    let mut text = String::from("Names (repository on the hub, contents):\n");
    for Entry { name, repo, about, verified, .. } in NAMES {
        let mark = if verified { "" } else { " [unverified]" };
        let _ = writeln!(text, "  {name:<16} {repo:<31} {about}{mark}");
    }
    text += "Unverified: the repository could not be reached when this table was written.";
    text
}

impl Entry {
    /// The files that must be there when `shards` training shards are wanted.
    #[must_use]
    pub fn required(&self, shards: usize) -> Vec<String> {
        match self.files {
            Files::Listed(required, _) => required.iter().map(|&f| f.to_owned()).collect(),
            Files::Shards(prefix, most) => std::iter::once(format!("{prefix}_val_000000.bin"))
                .chain((1..=shards.min(most)).map(|i| format!("{prefix}_train_{i:06}.bin")))
                .collect(),
            Files::Folder(..) => Vec::new(),
        }
    }

    /// Whether a file of the repository belongs to the name, beyond those that must be there.
    #[must_use]
    pub fn wants(&self, path: &str) -> bool {
        match self.files {
            Files::Listed(_, optional) => optional.contains(&path),
            Files::Shards(..) => false,
            Files::Folder(folder, ending) => path.starts_with(folder) && path.ends_with(ending),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_and_listed() {
        for entry in NAMES {
            assert_eq!(find(entry.name).unwrap().name, entry.name);
            assert!(table().contains(entry.repo));
        }
        assert_eq!(table().matches("[unverified]").count(), NAMES.iter().filter(|e| !e.verified).count());
        let shards = find("fineweb10B").unwrap().required(2);
        assert_eq!(shards, ["fineweb_val_000000.bin", "fineweb_train_000001.bin", "fineweb_train_000002.bin"]);
    }
}
