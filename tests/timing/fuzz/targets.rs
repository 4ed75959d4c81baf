//! The parsers. Each gets a folder that earlier executions have used too, and an input.

use std::fs;
use std::io::{Cursor, Read};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use wgpt::data::prepare::{self, Manifest, Options};
use wgpt::data::recognize::Input;
use wgpt::data::unpack::Packing;
use wgpt::data::{Part, TokenFormat, TokenSource, Tokenizer, hellaswag, recorded_tokenizer, token_paths};
use wgpt::error::Error;
use wgpt::files::disk::System;
use wgpt::files::path_text;
use wgpt::formats::checkpoint::{Checkpoints, Keep, SaveContext, WriteContents};
use wgpt::formats::tokenizer_folder::TokenizerFiles;
use wgpt::formats::{checkpoint_weights, hf, llmc};
use wgpt::gpu::Elem;
use wgpt::measure::plan::assumed;
use wgpt::measure::predict::code::Codes;
use wgpt::measure::tune::{Record, jobs};
use wgpt::run::report::{History, RunSummary, page};
use wgpt::train::settings::RunFile;
use wgpt::train::settings::layers::Layers;

use super::refused;
use super::seeds::{CONFIG, TOY, config};

/// Bytes of an unpacked file that are read: what they become is for their reader to bound.
const UNPACKED_BYTES: u64 = 16 << 20;

fn put(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
    fs::write(&path, bytes).expect("written");
    path
}

/// Whole files, made once.
static MODEL: LazyLock<Vec<u8>> = LazyLock::new(super::seeds::safetensors);
static WEIGHTS: LazyLock<Vec<u8>> = LazyLock::new(|| super::seeds::weights(""));
static MOMENTS: LazyLock<Vec<u8>> = LazyLock::new(super::seeds::moments);

pub fn safetensors(folder: &Path, input: &[u8]) {
    put(folder, "config.json", CONFIG.as_bytes());
    put(folder, "model.safetensors", input);
    refused(hf::load(folder));
}

pub fn safetensors_index(folder: &Path, input: &[u8]) {
    put(folder, "config.json", CONFIG.as_bytes());
    put(folder, "a.safetensors", &MODEL);
    put(folder, "model.safetensors.index.json", input);
    refused(hf::load(folder));
}

pub fn config_json(folder: &Path, input: &[u8]) {
    put(folder, "config.json", input);
    put(folder, "model.safetensors", &MODEL);
    refused(wgpt::run::model::load(folder));
}

pub fn llmc(folder: &Path, input: &[u8]) {
    let path = put(folder, "a.bin", input);
    refused(llmc::load(&path));
    refused(wgpt::run::model::describe(&path));
}

fn use_tokenizer(tokenizer: &Tokenizer) {
    if refused(tokenizer.check()).is_some() {
        let ids = refused(tokenizer.encode("Once a \u{e9}\0 <|endoftext|> 123\n  b")).unwrap_or_default();
        let _ = tokenizer.decode(&ids.iter().map(|id| u32::from(*id)).collect::<Vec<_>>());
        let _ = tokenizer.vocabulary();
    }
    let _ = tokenizer.to_string();
}

pub fn tokenizer_json(folder: &Path, input: &[u8]) {
    let path = put(folder, "tokenizer.json", input);
    use_tokenizer(&Tokenizer::of_files(TokenizerFiles::of_file(&path).expect("read")));
}

/// Files of a folder, one behind the other with `\n===\n` between them.
pub fn tokenizer_pair(folder: &Path, input: &[u8]) {
    let mut rest = input;
    for name in ["vocab.json", "merges.txt", "tokenizer_config.json", "added_tokens.json", "generation_config.json"] {
        let end = rest.windows(5).position(|bytes| bytes == b"\n===\n");
        put(folder, name, &rest[..end.unwrap_or(rest.len())]);
        rest = end.map_or(&[], |end| &rest[end + 5..]);
    }
    if let Some(Some(files)) = refused(TokenizerFiles::read(folder)) {
        use_tokenizer(&Tokenizer::of_files(files));
    }
}

fn use_tokens(path: &Path, format: TokenFormat) {
    let Some(source) = refused(TokenSource::open_as(path, format)) else { return };
    let mut ids = vec![0; source.len().min(100)];
    refused(source.read_checked(source.len() - ids.len(), &mut ids, 50_257));
}

pub fn shard(folder: &Path, input: &[u8]) {
    let path = put(folder, "a.bin", input);
    use_tokens(&path, TokenFormat::Shard);
    refused(wgpt::data::inspect::inspect(&[path], None));
}

pub fn ids(folder: &Path, input: &[u8]) {
    let path = put(folder, "a.bin", input);
    use_tokens(&path, TokenFormat::U16);
    use_tokens(&path, TokenFormat::U32);
}

pub fn npy(folder: &Path, input: &[u8]) {
    use_tokens(&put(folder, "a.npy", input), TokenFormat::Npy);
}

pub fn dataset_json(folder: &Path, input: &[u8]) {
    put(folder, "dataset.json", input);
    refused(recorded_tokenizer::of_folders([folder].into_iter()).and_then(recorded_tokenizer::require_one));
    if let Some(Some(note)) = refused(Manifest::read(folder)) {
        let _ = note.fitting_sizes();
    }
}

/// Prepares a file of this name.
fn prepared(folder: &Path, name: &str, input: &[u8]) {
    let path = put(folder, name, input);
    let mut options = Options::new(vec![path], folder.join("out"), "x");
    (options.tokenizer, options.threads, options.restart) = (Tokenizer::Bytes, 1, true);
    options.save_every = Duration::from_secs(60);
    refused(prepare::prepare(&options, &mut |_| ControlFlow::Continue(())));
}

pub fn json_lines(folder: &Path, input: &[u8]) {
    prepared(folder, "a.jsonl", input);
}

pub fn parquet(folder: &Path, input: &[u8]) {
    prepared(folder, "a.parquet", input);
}

pub fn text_packed(folder: &Path, input: &[u8]) {
    let unpacked = Packing::of(input).unpacked(Cursor::new(input.to_vec())).expect("a decoder");
    // an error is as good as an end
    let _ = std::io::copy(&mut unpacked.take(UNPACKED_BYTES), &mut std::io::sink());
    let path = put(folder, "a.txt", input);
    if let Some(opened) = refused(Input::open(&path, Arc::default())) {
        let _ = std::io::copy(&mut opened.stream.take(UNPACKED_BYTES), &mut std::io::sink());
    }
}

pub fn recognize(folder: &Path, input: &[u8]) {
    for name in ["a", "a.txt", "a.json", "a.jsonl.gz", "a.csv"] {
        let path = put(folder, name, input);
        if let Some(opened) = refused(Input::open(&path, Arc::default()))
            && let Err(foreign) = opened.content
        {
            refused::<()>(Err(foreign.refused(name)));
        }
    }
}

pub fn hellaswag_lines(folder: &Path, input: &[u8]) {
    refused(hellaswag::read(&put(folder, "a.jsonl", input), &Tokenizer::Bytes, 100));
}

pub fn hellaswag_bin(folder: &Path, input: &[u8]) {
    refused(hellaswag::read(&put(folder, "a.bin", input), &Tokenizer::Gpt2, 100));
}

pub fn hellaswag_parquet(folder: &Path, input: &[u8]) {
    refused(hellaswag::read(&put(folder, "a.parquet", input), &Tokenizer::Bytes, 100));
}

pub fn main_log(folder: &Path, input: &[u8]) {
    refused(History::read(&put(folder, "main.log", input)));
    refused(History::read(&put(folder, "main.log.gz", input)));
}

/// A run's records, with samples of the same bytes.
pub fn metrics(folder: &Path, input: &[u8]) {
    put(folder, "config.toml", TOY.as_bytes());
    put(folder, "metrics.jsonl", input);
    put(folder, "samples.txt", input);
    if let Some(run) = refused(RunSummary::read(folder)) {
        let _ = page(&[run], None);
    }
}

pub fn config_toml(folder: &Path, input: &[u8]) {
    put(folder, "config.toml", input);
    put(folder, "metrics.jsonl", b"{\"step\":1,\"loss\":2.5}\n");
    refused(RunFile::read(folder));
    if let Some(run) = refused(RunSummary::read(folder)) {
        let _ = page(&[run], None);
    }
}

pub fn recipe(folder: &Path, input: &[u8]) {
    let path = put(folder, "a.toml", input);
    let mut layers = Layers::default();
    if refused(layers.file(&path)).is_some() {
        refused(layers.merge());
    }
    // words of a command line are the user's own
    refused(Layers::default().set(&String::from_utf8_lossy(&input[..input.len().min(1000)])));
}

pub fn machine_code(_: &Path, input: &[u8]) {
    refused(Codes::read("machine-code.json", &String::from_utf8_lossy(input)));
}

pub fn tune_record(_: &Path, input: &[u8]) {
    let Ok(record) = serde_json::from_slice::<Record>(input) else { return };
    let mut caps = assumed(Elem::F16, 1 << 30);
    caps.tuned = Arc::new(record.kernels);
    for job in jobs(&caps, &config(), Elem::F16, [1, 4]) {
        let _ = job.recorded(&caps, Elem::F16);
    }
}

pub fn path_pattern(folder: &Path, input: &[u8]) {
    put(folder, "a/b_train_1.bin", b"");
    put(folder, "a/[c]_val_1.bin", b"");
    put(folder, "d/e/f_train_1.npy", b"");
    let text = String::from_utf8_lossy(input);
    // inside of the folder alone
    let text = text.replace("..", ".").replace('\0', "0");
    let path = folder.join(text.trim_start_matches('/').chars().take(3000).collect::<String>());
    for (part, format) in [(Part::Train, TokenFormat::Shard), (Part::All, TokenFormat::Npy)] {
        refused(token_paths::find(std::slice::from_ref(&path), part, format));
        let _ = token_paths::folders(std::slice::from_ref(&path), part, format);
    }
}

pub fn path_text(_: &Path, input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let path = path_text::read(&text);
    if let Some(spelled) = path_text::spelled(&path) {
        assert_eq!(path_text::read(&spelled), path, "{spelled}");
    }
}

/// A run with one checkpoint of step 3.
fn checkpoint(folder: &Path, state: &[u8], weights: &[u8], moments: &[u8]) {
    let _ = fs::remove_dir_all(folder.join("checkpoints"));
    put(folder, "config.toml", TOY.as_bytes());
    let files: [(&str, &[u8]); 3] =
        [("state.json", state), ("model.safetensors", weights), ("optimizer.safetensors", moments)];
    let fills = files.map(|(_, bytes)| {
        move |out: &mut dyn std::io::Write| out.write_all(bytes).map_err(|e| Error::output(e.to_string()))
    });
    let fills: Vec<(&str, WriteContents)> =
        files.iter().zip(&fills).map(|((name, _), fill)| (*name, fill as WriteContents)).collect();
    let beside = SaveContext { records: &[], run: "ab", check: &|| Ok(()) };
    Checkpoints::new(&System, folder).save(3, &fills, &beside, Keep { newest: 1, every: 0 }).expect("saved");
}

pub fn checkpoint_manifest(folder: &Path, input: &[u8]) {
    checkpoint(folder, b"{}", b"weights", b"moments");
    put(folder, "checkpoints/step-00000003/manifest.json", input);
    let checkpoints = Checkpoints::new(&System, folder);
    refused(checkpoints.newest());
    if refused(checkpoints.verify(3)).is_some() {
        refused(checkpoints.read(3, "state.json"));
    }
}

pub fn checkpoint_state(folder: &Path, input: &[u8]) {
    checkpoint(folder, input, &WEIGHTS, &MOMENTS);
    refused(wgpt::run::checkpoint::load_newest(folder, Some("ab"), config()));
}

/// The note of a first checkpoint, and a run without one that has it.
pub fn checkpoint_saved(folder: &Path, input: &[u8]) {
    put(folder, "saved.json", input);
    refused(wgpt::run::checkpoint::load_newest(folder, None, config()));
}

pub fn data_files(folder: &Path, input: &[u8]) {
    put(folder, "data.json", input);
    refused(wgpt::run::data_files::DataFiles::read(folder));
}

pub fn checkpoint_weights(folder: &Path, input: &[u8]) {
    put(folder, "model.safetensors", input);
    refused(checkpoint_weights::load(folder, config()));
}
