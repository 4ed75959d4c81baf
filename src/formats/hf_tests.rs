use safetensors::tensor::{TensorView, serialize_to_file};
use safetensors::{Dtype, SafeTensors};

use super::super::hf_tensors::decode;
use super::*;
use crate::error::Error;
use crate::model::config::Config;

#[path = "hf_found_tests.rs"]
mod found;

const INDEX: &str = "model.safetensors.index.json";
const LM_HEAD: &str = "lm_head.weight";

const NAME: &str = "model.safetensors: tensor";

fn config() -> Config {
    Config::new(24, 257, 2, 3, 36).unwrap()
}

/// Returns a model in which all values differ.
fn model() -> Weights {
    let mut weights = Weights::zeros(config());
    for slot in slots(&config()) {
        let values = slot.values(&weights).len();
        let seed = slot.name.len() as f32;
        let bytes: Vec<u8> = (0..values).flat_map(|i| (seed + i as f32 * 0.001).to_le_bytes()).collect();
        slot.read(&mut weights, |out| decode(Dtype::F32, &bytes, out)).unwrap();
    }
    weights
}

fn saved() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), &model(), &ModelInfo::for_tokenizer("bytes")).unwrap();
    dir
}

/// A tensor that owns its bytes, for writing broken folders.
#[derive(Clone)]
struct Owned(Dtype, Vec<usize>, Vec<u8>);

impl safetensors::View for &Owned {
    fn dtype(&self) -> Dtype {
        self.0
    }
    fn shape(&self) -> &[usize] {
        &self.1
    }
    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        (&self.2).into()
    }
    fn data_len(&self) -> usize {
        self.2.len()
    }
}

type TensorMap = BTreeMap<String, Owned>;

fn read(path: &Path) -> TensorMap {
    let bytes = fs::read(path).unwrap();
    let own = |v: TensorView| Owned(v.dtype(), v.shape().into(), v.data().into());
    SafeTensors::deserialize(&bytes).unwrap().tensors().into_iter().map(|(name, v)| (name, own(v))).collect()
}

/// Loads a saved folder whose tensors `change` has modified.
fn load_changed(change: impl FnOnce(&mut TensorMap)) -> Result<(Weights, ModelInfo)> {
    let dir = saved();
    let path = dir.path().join(WEIGHTS);
    let mut file = read(&path);
    change(&mut file);
    serialize_to_file(&file, None, &path).unwrap();
    load(dir.path())
}

/// Checks for exit code 3 and that the message contains the words.
fn refused(result: Result<(Weights, ModelInfo)>, words: &[&str]) {
    let error = result.expect_err("was accepted");
    assert!(matches!(error, Error::Data(_)), "{error:?}");
    for word in words {
        assert!(error.to_string().contains(word), "`{word}` is not in: {error}");
    }
}

#[test]
fn loads_what_it_saves() {
    let (weights, info) = load(saved().path()).unwrap();
    assert_eq!(weights, model());
    assert_eq!(info, ModelInfo::for_tokenizer("bytes"));
    assert!(weights.get("wte", 0)[257 * 36..].iter().all(|x| x.to_bits() == 0));
}

#[test]
fn saving_replaces_and_leaves_two_files() {
    let dir = saved();
    let mut weights = model();
    weights.get_mut("lnfb", 0)[3] = -7.5;
    save(dir.path(), &weights, &ModelInfo::default()).unwrap();
    assert_eq!(load(dir.path()).unwrap(), (weights, ModelInfo::default()));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn padding_is_never_written() {
    let mut weights = model();
    weights.get_mut("wte", 0)[257 * 36..].fill(9.0);
    let dir = tempfile::tempdir().unwrap();
    save(&dir.path().join("a/b"), &weights, &ModelInfo::default()).unwrap();
    assert_eq!(load(&dir.path().join("a/b")).unwrap().0, model());
    assert_eq!(read(&dir.path().join("a/b").join(WEIGHTS))["transformer.wte.weight"].1, [257, 36]);
}

#[test]
fn names_without_prefix_masks_and_a_tied_head() {
    let result = load_changed(|file| {
        let mask = Owned(Dtype::U8, vec![1, 1, 2, 2], vec![1; 4]);
        let mut bare: TensorMap =
            file.iter().map(|(name, t)| (name.strip_prefix(PREFIX).unwrap().to_owned(), t.clone())).collect();
        bare.insert("h.0.attn.bias".into(), mask.clone());
        bare.insert("h.1.attn.masked_bias".into(), mask);
        bare.insert(LM_HEAD.into(), bare["wte.weight"].clone());
        *file = bare;
    });
    assert_eq!(result.unwrap().0, model());
}

#[test]
fn sixteen_bit_weights() {
    let result = load_changed(|file| {
        let tensor = file.get_mut("transformer.ln_f.weight").unwrap();
        *tensor = Owned(Dtype::BF16, vec![36], [0x80, 0x3f].repeat(36));
        let tensor = file.get_mut("transformer.h.0.mlp.c_proj.weight").unwrap();
        let halves = (0..144 * 36_u16).flat_map(|i| (i % 0x7c00).to_le_bytes());
        *tensor = Owned(Dtype::F16, vec![144, 36], halves.collect());
    });
    let (weights, _) = result.unwrap();
    assert!(weights.get("lnfw", 0).iter().all(|x| *x == 1.0));
    // row 28, column 16 in the file has the value 28 * 36 + 16 = 0x400, the smallest normal half
    assert_eq!(weights.get("fcprojw", 0)[16 * 144 + 28], 2_f32.powi(-14));
}

#[test]
fn saving_in_f16() {
    let dir = tempfile::tempdir().unwrap();
    let mut rounded = model();
    rounded.tensors.iter_mut().flatten().for_each(|x| *x = half::f16::from_f32(*x).to_f32());
    assert_ne!(rounded, model());
    save_as(dir.path(), &model(), &ModelInfo::default(), Element::F16).unwrap();
    assert_eq!(load(dir.path()).unwrap().0, rounded);
    assert_eq!(read(&dir.path().join(WEIGHTS))["transformer.wpe.weight"].0, Dtype::F16);
    assert!(fs::read_to_string(dir.path().join(CONFIG)).unwrap().contains("\"torch_dtype\": \"float16\""));
}

#[test]
fn saving_in_bf16() {
    let dir = tempfile::tempdir().unwrap();
    let mut rounded = model();
    let round = |x: &mut f32| *x = f32::from_bits((x.to_bits() + 0x7fff + (x.to_bits() >> 16 & 1)) & 0xffff_0000);
    rounded.tensors.iter_mut().flatten().for_each(round);
    for weights in [model(), rounded.clone()] {
        save_as(dir.path(), &weights, &ModelInfo::default(), Element::Bf16).unwrap();
        assert_eq!(load(dir.path()).unwrap().0, rounded);
    }
    assert_eq!(read(&dir.path().join(WEIGHTS))["transformer.wpe.weight"].0, Dtype::BF16);
    assert!(fs::read_to_string(dir.path().join(CONFIG)).unwrap().contains("\"torch_dtype\": \"bfloat16\""));
}

#[test]
fn several_files() {
    let dir = saved();
    let (single, index) = (dir.path().join(WEIGHTS), dir.path().join(INDEX));
    let all = read(&single);
    fs::remove_file(&single).unwrap();
    let (first, second): (Vec<_>, Vec<_>) = all.iter().partition(|(name, _)| name.contains("h.0."));
    serialize_to_file(first, None, &dir.path().join("m-1.safetensors")).unwrap();
    serialize_to_file(second, None, &dir.path().join("m-2.safetensors")).unwrap();
    fs::write(&index, r#"{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors", "c": "m-1.safetensors"}}"#)
        .unwrap();
    assert_eq!(load(dir.path()).unwrap().0, model());

    fs::write(&index, r#"{"weight_map": {"a": "m-1.safetensors"}}"#).unwrap();
    refused(load(dir.path()), &["tensor `wte.weight` is missing, expected by config.json"]);
    fs::write(&index, r#"{"weight_map": {"transformer.wte.weight": "m-1.safetensors"}}"#).unwrap();
    refused(
        load(dir.path()),
        &["m-1.safetensors: tensor `wte.weight` is missing, expected by model.safetensors.index"],
    );
    fs::write(&index, r#"{"weight_map": {"a": "../m-1.safetensors"}}"#).unwrap();
    refused(load(dir.path()), &["index.json", "../m-1.safetensors"]);
    fs::write(&index, r#"{"weight_map": {"a": "m-3.safetensors"}}"#).unwrap();
    refused(load(dir.path()), &["m-3.safetensors: missing, expected by model.safetensors.index.json"]);
    fs::write(&index, "{}").unwrap();
    refused(load(dir.path()), &["no `weight_map`"]);
}

#[test]
fn missing_files() {
    let dir = saved();
    refused(load(&dir.path().join("no")), &["no: no such folder"]);
    refused(load(&dir.path().join(CONFIG)), &["is a file"]);
    fs::remove_file(dir.path().join(WEIGHTS)).unwrap();
    refused(load(dir.path()), &["model.safetensors: missing; try"]);
    for (bytes, words) in [
        (&b"PK\x03\x04"[..], ["model.safetensors: missing, and pytorch_model.bin is a pickle file", "save_pretrained"]),
        (&b"version https://git-lfs.github.com/spec/v1\n"[..], ["pytorch_model.bin is a Git LFS pointer", "git lfs"]),
    ] {
        fs::write(dir.path().join("pytorch_model.bin"), bytes).unwrap();
        refused(load(dir.path()), &words);
    }
    fs::write(dir.path().join("model.fp16.safetensors"), "").unwrap();
    refused(load(dir.path()), &["model.safetensors: missing, but there is model.fp16.safetensors; try giving it"]);
    fs::write(dir.path().join("model-00001-of-00002.safetensors"), "").unwrap();
    refused(load(dir.path()), &["index.json: missing next to model-00001-of-00002.safetensors"]);
    fs::remove_file(dir.path().join(CONFIG)).unwrap();
    refused(load(dir.path()), &["model-00001-of-00002.safetensors: an empty file"]);
    let folder = tempfile::tempdir().unwrap();
    refused(load(folder.path()), &["config.json: no such file or folder"]);
    fs::write(folder.path().join("ckpt.pt"), b"PK\x03\x04 ckpt/data.pkl").unwrap();
    refused(load(folder.path()), &["ckpt.pt: a pickle file", "wgpt convert --help"]);
}

#[test]
fn broken_files() {
    let dir = saved();
    let path = dir.path().join(WEIGHTS);
    let bytes = fs::read(&path).unwrap();
    for part in [&bytes[..bytes.len() - 4], &bytes[..100], &bytes[..5]] {
        fs::write(&path, part).unwrap();
        refused(load(dir.path()), &["model.safetensors: ", "not a whole safetensors file"]);
    }
    fs::write(&path, "").unwrap();
    refused(load(dir.path()), &["model.safetensors: an empty file"]);
    fs::write(dir.path().join(CONFIG), "{").unwrap();
    refused(load(dir.path()), &["config.json: broken JSON"]);
}

#[test]
fn tensors_that_contradict_the_config() {
    let name = "transformer.h.1.attn.c_attn.weight";
    let transposed = load_changed(|file| file.get_mut(name).unwrap().1 = vec![108, 36]);
    refused(transposed, &[NAME, name, "has another shape, expected (36, 108) by config.json, got (108, 36)"]);
    let missing = load_changed(|file| drop(file.remove("transformer.h.1.ln_2.bias")));
    refused(missing, &["tensor `h.1.ln_2.bias` is missing"]);
    let deeper = load_changed(|file| {
        file.insert("transformer.h.2.ln_2.bias".into(), Owned(Dtype::F32, vec![36], vec![0; 144]));
    });
    refused(deeper, &[NAME, "`transformer.h.2.ln_2.bias` is unknown, expected a plain GPT-2 of 2 layers"]);
    let twice = load_changed(|file| drop(file.insert("wte.weight".into(), file["transformer.wte.weight"].clone())));
    refused(twice, &["wte.weight` duplicates `", "expected one `wte.weight`"]);
    let ints = load_changed(|file| file.get_mut(name).unwrap().0 = Dtype::I32);
    refused(ints, &[name, "has another element type, expected F64, F32, F16 or BF16, got I32"]);
}

#[test]
fn weights_that_are_not_finite() {
    let name = "transformer.h.0.attn.c_proj.weight";
    let put = |index: usize, value: f32| {
        load_changed(|file| {
            file.get_mut(name).unwrap().2[4 * index..4 * index + 4].copy_from_slice(&value.to_le_bytes());
        })
    };
    refused(put(37, f32::NAN), &[name, "holds NaN at index 37"]);
    refused(put(0, f32::INFINITY), &[name, "holds inf at index 0"]);
}

#[test]
fn saving_checks_first() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("m");
    let mut weights = model();
    assert_eq!(save(&target, &weights, &ModelInfo::for_tokenizer("gpt2")).unwrap_err().exit_code(), 2);
    weights.tensors[5].pop();
    let error = save(&target, &weights, &ModelInfo::default()).unwrap_err();
    let Error::Shape(fault) = &error else { panic!("{error:?}") };
    assert_eq!((fault.place.as_str(), fault.expected.as_str()), ("hf.save", "216"));
    assert!(fault.what.contains("`qkvb` has 215"), "{error}");
    assert!(!target.exists());
}

#[test]
fn saving_into_a_file_is_an_output_error() {
    let dir = saved();
    let target = dir.path().join(CONFIG);
    let error = save(&target, &model(), &ModelInfo::default()).unwrap_err();
    assert!(matches!(&error, Error::Output(fault) if fault.place.ends_with("config.json")), "{error}");
}
