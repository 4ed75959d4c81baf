//! Claims of file names about contents, which decide where the bytes are ambiguous.

use std::path::Path;

/// Extensions of packed files.
const PACKINGS: [&str; 9] = ["gz", "gzip", "zst", "zstd", "xz", "bz2", "bzip2", "lzma", "z"];

/// The claim of a file's name about its contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Claim {
    /// Whether the name has the extension of a packed file.
    pub is_packed: bool,
    /// The extension, or the one before that of a packed file.
    pub ending: Ending,
}

/// A class of extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    Text,
    Json,
    Parquet,
    /// Comma- or tab-separated values, which without the name would be text.
    Table,
    Other,
    None,
}

impl Claim {
    /// Returns the claim of a file's name.
    pub(super) fn of(path: &Path) -> Self {
        let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().to_ascii_lowercase());
        let packed = name.rsplit_once('.').filter(|(_, ending)| PACKINGS.contains(ending));
        let stem = packed.map_or(name.as_str(), |(stem, _)| stem);
        let ending = match stem.rsplit_once('.').map(|(_, ending)| ending) {
            Some("txt" | "text" | "md") => Ending::Text,
            Some("jsonl" | "ndjson" | "jsonlines" | "json") => Ending::Json,
            Some("parquet" | "pq") => Ending::Parquet,
            Some("csv" | "tsv" | "tab") => Ending::Table,
            Some(_) => Ending::Other,
            None => Ending::None,
        };
        Self { is_packed: packed.is_some(), ending }
    }
}

/// Returns the reason why a file in a folder is not data, judged by its name alone.
pub(crate) fn is_about_data(path: &Path) -> Option<&'static str> {
    const DOCUMENTS: [&str; 13] = [
        "readme",
        "license",
        "licence",
        "copying",
        "notice",
        "authors",
        "contributing",
        "changelog",
        "changes",
        "citation",
        "makefile",
        "dockerfile",
        "manifest",
    ];
    const METADATA: [&str; 12] = [
        "dataset_info.json",
        "dataset_infos.json",
        "dataset_dict.json",
        "dataset.json",
        "state.json",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
        "merges.txt",
        "special_tokens_map.json",
        "generation_config.json",
    ];
    let name = path.file_name()?.to_string_lossy().to_ascii_lowercase();
    let stem = name.split('.').next().unwrap_or_default();
    let ending = name.rsplit_once('.').map(|(_, ending)| ending);
    let is_document = DOCUMENTS
        .iter()
        .any(|word| stem.strip_prefix(word).is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '_'])));
    if name.starts_with('.') {
        Some("hidden")
    } else if METADATA.contains(&name.as_str()) {
        Some("metadata")
    } else if is_document && matches!(ending, None | Some("txt" | "md" | "rst" | "cff" | "html")) {
        Some("documentation")
    } else {
        None
    }
}

/// Returns whether a name has an extension that data files do not have. Such a file with text is a program or a web
/// page.
pub(crate) fn is_strange(path: &Path) -> bool {
    Claim::of(path).ending == Ending::Other
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_claim_what_they_end_with() {
        let of = |name: &str| {
            let Claim { is_packed, ending } = Claim::of(Path::new(name));
            (ending, is_packed)
        };
        assert_eq!(of("a.d/b.TXT"), (Ending::Text, false));
        assert_eq!(of("b.jsonl.gz"), (Ending::Json, true));
        assert_eq!(of("c4-train.00000.json.zst"), (Ending::Json, true));
        assert_eq!(of("000_00000.parquet"), (Ending::Parquet, false));
        assert_eq!(of("t.csv.bz2"), (Ending::Table, true));
        assert_eq!(of("book.gz"), (Ending::None, true));
        assert_eq!(of("train-00000-of-00001"), (Ending::None, false));
        assert_eq!(of("x.bin"), (Ending::Other, false));
    }

    #[test]
    fn files_about_data_are_not_data() {
        for (name, reason) in [
            ("a/README.md", Some("documentation")),
            ("LICENSE", Some("documentation")),
            ("LICENSE-MIT.txt", Some("documentation")),
            ("readme_de.md", Some("documentation")),
            ("chapter.md", None),
            ("book/intro.MD", None),
            (".gitattributes", Some("hidden")),
            ("dataset_info.json", Some("metadata")),
            ("state.json", Some("metadata")),
            ("notices.txt", None),
            ("license_texts.jsonl", None),
            ("changes.parquet", None),
            ("book.txt", None),
            ("data", None),
        ] {
            assert_eq!(is_about_data(Path::new(name)), reason, "{name}");
        }
    }
}
