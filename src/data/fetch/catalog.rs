//! The catalog of names for `wgpt data fetch`: the repository and the files of each.

use std::fmt::Write;
use std::path::Path;

pub use crate::files::hub::Kind;

/// Part of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The training part.
    Train,
    /// The validation part.
    Validation,
    /// Both parts.
    All,
}

impl Part {
    /// Returns the beginning of a file's name, up to the last word that names a part: `fineweb_` for
    /// `fineweb_train_000001.bin`. `None` if that word names another part or there is none. For [`Part::All`], every
    /// file has the empty prefix.
    #[must_use]
    pub fn prefix_of(self, file: &str) -> Option<&str> {
        const WORDS: [(&str, Part); 5] = [
            ("train", Part::Train),
            ("training", Part::Train),
            ("val", Part::Validation),
            ("valid", Part::Validation),
            ("validation", Part::Validation),
        ];
        if self == Self::All {
            return Some("");
        }
        let stem = Path::new(file).file_stem()?.to_str()?;
        let (mut at, mut found) = (0, None);
        for word in stem.split_inclusive(|c: char| !c.is_ascii_alphanumeric()) {
            let plain = word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric()).to_ascii_lowercase();
            let part = WORDS.iter().find(|(known, _)| *known == plain).map(|(_, part)| *part);
            found = part.map(|part| (part, at)).or(found);
            at += word.len();
        }
        found.filter(|(part, _)| *part == self).map(|(_, at)| &stem[..at])
    }
}

/// The files of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Files {
    /// Required files, and optional files.
    Listed(&'static [&'static str], &'static [&'static str]),
    /// Token shards: prefix, and number of training shards. Their names are `PREFIX_val_000000.bin`, and
    /// `PREFIX_train_000001.bin` up to that number.
    Shards(&'static str, usize),
    /// All files with an ending in a folder: folder and ending.
    Folder(&'static str, &'static str),
}

/// A name with its repository and files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The name that the user types.
    pub name: &'static str,
    /// Weights or data.
    pub kind: Kind,
    /// The repository on the hub.
    pub repo: &'static str,
    /// The files.
    pub files: Files,
    /// Contents and size, for the help text.
    pub about: &'static str,
    /// Whether the repository was reached and its files seen when this table was written.
    pub verified: bool,
}

const MODEL_FILES: Files = Files::Listed(
    &["config.json", "model.safetensors"],
    &["generation_config.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "vocab.json"],
);

/// All entries.
///
/// None is verified: the table was written without a network, from the scripts of llm.c and modded-nanogpt and from
/// what other public code downloads. Sizes and checksums come from the hub when a file is fetched.
pub const CATALOG: [Entry; 11] = [
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
        name: "fineweb100B",
        kind: Kind::Dataset,
        repo: "chrisdryden/FineWebTokenizedGPT2",
        files: Files::Shards("fineweb", 1028),
        about: "token shards, 1,028 of 10^8 tokens and one for validation; 200 MB each",
        verified: false,
    },
    Entry {
        name: "fineweb-edu100B",
        kind: Kind::Dataset,
        repo: "karpathy/fineweb-edu-100B-gpt2-token-shards",
        files: Files::Shards("edu_fineweb", 1001),
        about: "token shards, 1,001 of 10^8 tokens and one for validation; 200 MB each",
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

/// Returns the entry of a name. Weights are also found by their repository.
#[must_use]
pub fn find(name: &str) -> Option<&'static Entry> {
    CATALOG.iter().find(|entry| entry.name == name || (entry.kind == Kind::Model && entry.repo == name))
}

/// Returns an entry for weights in any repository `OWNER/NAME`.
#[must_use]
pub fn of_repository(name: &str) -> Option<Entry> {
    let is_repository = name.contains('/') && crate::files::hub::is_name(name);
    // leaked: entries are static, and the program fetches one name
    is_repository.then(|| {
        let repo: &'static str = Box::leak(name.to_owned().into_boxed_str());
        Entry { verified: true, ..model(repo, repo, "") }
    })
}

/// Returns up to three names similar to `name`, the nearest first.
#[must_use]
pub fn nearest_names(name: &str) -> Vec<&'static str> {
    let plain = |text: &str| text.to_ascii_lowercase().replace(['-', '_'], "");
    let wanted = plain(name);
    let likeness = |entry: &Entry| strsim::jaro_winkler(&wanted, &plain(entry.name));
    let mut found: Vec<(f64, &str)> = CATALOG.iter().map(|entry| (likeness(entry), entry.name)).collect();
    found.retain(|(likeness, _)| *likeness > 0.85);
    found.sort_by(|a, b| b.0.total_cmp(&a.0));
    found.into_iter().map(|(_, name)| name).take(3).collect()
}

/// Returns the table as text of at most 80 columns, two lines per name.
#[must_use]
pub fn help_table() -> String {
    let mut text = String::from("Names, with their repository on the hub and its contents:\n");
    for Entry { name, repo, about, verified, .. } in CATALOG {
        let mark = if verified { "" } else { " [unverified]" };
        let _ = writeln!(text, "  {name:<16} {repo}{mark}\n      {}", about.replace("10^8", "100 M"));
    }
    text += "Unverified: the repository could not be reached when this was written.\n";
    text += "Weights in safetensors of any other repository: OWNER/NAME.";
    text
}

impl Entry {
    /// Returns the required files if `shards` training shards are wanted.
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

    /// Returns the token shards of a part, with at most `most` training shards; none if the name has no shards.
    #[must_use]
    pub fn shards(&self, part: Part, most: usize) -> Vec<String> {
        if self.kind == Kind::Model {
            return Vec::new();
        }
        let mut files = self.required(most);
        files.retain(|file| match part {
            Part::All => [Part::Train, Part::Validation].iter().any(|part| part.prefix_of(file).is_some()),
            part => part.prefix_of(file).is_some(),
        });
        // HellaSwag's questions have a `val` file but no training shards: they are not tokens
        if self.has_training() { files } else { Vec::new() }
    }

    /// Returns whether there are token shards for training.
    fn has_training(&self) -> bool {
        match self.files {
            Files::Listed(required, _) => required.iter().any(|file| Part::Train.prefix_of(file).is_some()),
            Files::Shards(..) => true,
            Files::Folder(..) => false,
        }
    }

    /// Returns whether a file of the repository belongs to the name, beyond the required files.
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
        for entry in CATALOG {
            assert_eq!(find(entry.name).unwrap().name, entry.name);
            assert_eq!(find(entry.repo).is_some(), entry.kind == Kind::Model);
            assert!(help_table().contains(entry.repo));
        }
        assert_eq!(help_table().matches("[unverified]").count(), CATALOG.iter().filter(|e| !e.verified).count());
        let shards = find("fineweb10B").unwrap().required(2);
        assert_eq!(shards, ["fineweb_val_000000.bin", "fineweb_train_000001.bin", "fineweb_train_000002.bin"]);
    }

    #[test]
    fn a_word_of_the_file_name_decides_the_part() {
        for (file, train, validation) in [
            ("fineweb_train_000001.bin", Some("fineweb_"), None),
            ("fineweb_val_000000.bin", None, Some("fineweb_")),
            ("train.bin", Some(""), None),
            ("val.bin", None, Some("")),
            ("a b-train-0.npy", Some("a b-"), None),
            ("é_validation.bin", None, Some("é_")),
            ("my_val_set_train_000001.bin", Some("my_val_set_"), None),
            ("restrained.bin", None, None),
            ("x.train", None, None),
        ] {
            let parts = [Part::Train, Part::Validation].map(|part| part.prefix_of(file));
            assert_eq!(parts, [train, validation], "{file}");
        }
        let shards = |name: &str, part| find(name).unwrap().shards(part, 1);
        assert_eq!(shards("fineweb10B", Part::Train), ["fineweb_train_000001.bin"]);
        assert_eq!(shards("tinyshakespeare", Part::Validation), ["tiny_shakespeare_val.bin"]);
        assert_eq!(shards("fineweb-edu100B", Part::All).len(), 2);
        for none in ["hellaswag", "gpt2", "tinystories"] {
            assert!(shards(none, Part::All).is_empty(), "{none}");
        }
    }

    #[test]
    fn a_mistyped_name_has_similar_ones() {
        assert_eq!(nearest_names("fineweb10b")[0], "fineweb10B");
        assert_eq!(nearest_names("fine-web_10B")[0], "fineweb10B");
        assert_eq!(nearest_names("tiny_shakespeare")[0], "tinyshakespeare");
        assert!(nearest_names("edufineweb").is_empty() || nearest_names("edufineweb")[0].contains("edu"));
        assert!(nearest_names("book").is_empty());
    }
}
