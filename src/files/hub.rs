//! Where Hugging Face's cache keeps a model: `models--OWNER--NAME/snapshots/REVISION/`, with the revision that a branch
//! stands for in `refs/main`.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// OpenAI's models by the names that everybody calls them by.
const OPENAI: [&str; 4] = ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"];

/// The cache's folder: `HF_HUB_CACHE`, else `hub` in `HF_HOME`, else in `XDG_CACHE_HOME/huggingface`, else in
/// `~/.cache/huggingface`. `None` if nothing says where the home folder is.
#[must_use]
pub fn cache() -> Option<PathBuf> {
    let var = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(cache) = var("HF_HUB_CACHE") {
        return Some(cache);
    }
    let home = var("HF_HOME")
        .or_else(|| var("XDG_CACHE_HOME").map(|cache| cache.join("huggingface")))
        .or_else(|| env::home_dir().map(|home| home.join(".cache").join("huggingface")));
    home.map(|home| home.join("hub"))
}

/// True if `name` may be a model on the hub: `NAME` or `OWNER/NAME` of letters, digits, `-`, `_` and `.`.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let part = |part: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.is_empty() && part.chars().all(plain) && !part.starts_with('.')
    };
    name.split('/').count() <= 2 && name.split('/').all(part)
}

/// Folders of the cache in which a model may lie.
fn repositories(cache: &Path, name: &str) -> Vec<PathBuf> {
    let folder = |name: &str| cache.join(format!("models--{}", name.replace('/', "--")));
    let mut list = vec![folder(name)];
    if OPENAI.contains(&name) {
        list.insert(0, folder(&format!("openai-community/{name}")));
    }
    list
}

/// The folder of a model's snapshot in `cache` that has a configuration and weights: the one that `refs/main` names, else
/// the youngest, be it one that was put there by hand. `None` if the cache does not have the model.
#[must_use]
pub fn find(cache: &Path, name: &str) -> Option<PathBuf> {
    repositories(cache, name).iter().find_map(|repository| snapshot(repository))
}

/// The same for a folder `models--OWNER--NAME` itself.
#[must_use]
pub fn snapshot(repository: &Path) -> Option<PathBuf> {
    let snapshots = repository.join("snapshots");
    let weights = ["model.safetensors", "model.safetensors.index.json"];
    let whole = |dir: &PathBuf| dir.join("config.json").exists() && weights.iter().any(|name| dir.join(name).exists());
    let main = fs::read_to_string(repository.join("refs").join("main")).ok();
    // one plain name: a ref is no reason to read elsewhere
    let main = main.as_deref().map(str::trim).filter(|name| Path::new(name).file_name() == Some(name.as_ref()));
    if let Some(dir) = main.map(|name| snapshots.join(name)).filter(whole) {
        return Some(dir);
    }
    let all = fs::read_dir(&snapshots).ok()?.flatten().map(|entry| entry.path()).filter(whole);
    all.max_by_key(|dir| (fs::metadata(dir).and_then(|meta| meta.modified()).ok(), dir.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(repository: &Path, revision: &str) -> PathBuf {
        let dir = repository.join("snapshots").join(revision);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("config.json"), "{}").unwrap();
        fs::write(dir.join("model.safetensors"), "").unwrap();
        dir
    }

    #[test]
    fn main_wins_else_any_snapshot() {
        let cache = tempfile::tempdir().unwrap();
        assert_eq!(find(cache.path(), "gpt2"), None);
        let repository = cache.path().join("models--openai-community--gpt2");
        let (first, second) = (put(&repository, "aaa"), put(&repository, "bbb"));
        fs::create_dir_all(repository.join("refs")).unwrap();
        for (revision, dir) in [("aaa\n", &first), ("bbb", &second)] {
            fs::write(repository.join("refs/main"), revision).unwrap();
            assert_eq!(find(cache.path(), "gpt2").as_ref(), Some(dir));
            assert_eq!(find(cache.path(), "openai-community/gpt2").as_ref(), Some(dir));
        }
        for astray in ["ccc", "../../other", ""] {
            fs::write(repository.join("refs/main"), astray).unwrap();
            assert!([&first, &second].contains(&find(cache.path(), "gpt2").as_ref().unwrap()));
        }
        // a configuration alone is no model
        let half = put(&cache.path().join("models--gpt2-medium"), "a");
        fs::remove_file(half.join("model.safetensors")).unwrap();
        assert_eq!(find(cache.path(), "gpt2-medium"), None);
        let own = put(&cache.path().join("models--somebody--tiny"), "c");
        assert_eq!(find(cache.path(), "somebody/tiny"), Some(own));
    }

    #[test]
    fn names() {
        assert!(is_name("gpt2") && is_name("openai-community/gpt2") && is_name("a_b.c/d-e"));
        assert!(
            !is_name("")
                && !is_name("../gpt2")
                && !is_name("a/b/c")
                && !is_name("a//b")
                && !is_name("/a")
                && !is_name("a b")
        );
    }
}
