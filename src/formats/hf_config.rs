//! Reads and writes config.json of a Hugging Face GPT-2 folder.

use std::io;
use std::path::Path;

use serde_json::{Value, json};

use super::element::Element;
use super::foreign;
use crate::error::{Error, Fault, Result};
use crate::files::{atomic, bounded, open};
use crate::model::config::{Config, GPT2_VOCAB};

/// Longest file of JSON that is read, in bytes.
const JSON_BYTES: u64 = 2 << 20;
/// transformers' names of the tanh approximation of GELU.
const TANH_GELUS: [&str; 4] = ["gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate"];
/// The only supported epsilon of layer norms.
const EPSILON: f32 = 1e-5;

/// Entries of config.json beyond the model's shape.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ModelInfo {
    /// Value of the key `wgpt_tokenizer`: `gpt2`, `bytes`, `own` for the tokenizer files in the folder, or any other
    /// text.
    pub tokenizer: Option<String>,
    /// Id that begins a text, below V.
    pub bos: Option<u32>,
    /// Id that ends a text, below V.
    pub eos: Option<u32>,
}

impl ModelInfo {
    /// Returns the entries for a tokenizer. Texts of `gpt2` begin and end with id 50256, those of `bytes` with 256.
    #[must_use]
    pub fn for_tokenizer(name: &str) -> Self {
        let end = match name {
            "gpt2" => Some(50_256),
            "bytes" => Some(256),
            _ => None,
        };
        Self { tokenizer: Some(name.to_owned()), bos: end, eos: end }
    }
}

/// The description of a model in config.json.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// Shape of the model.
    pub config: Config,
    /// Tokenizer and special ids.
    pub info: ModelInfo,
    /// Whether the output layer shares the embedding's weights. If false, separate weights may still be equal to them.
    pub tied: bool,
}

/// Reads config.json at `path`.
///
/// # Errors
/// [`Error::Data`] if the file is missing, is not JSON, or describes a model that is not a supported GPT-2.
pub fn read(path: &Path) -> Result<Described> {
    let place = path.display().to_string();
    let text = read_small(path).map_err(|e| {
        let fault = open::refusal(&place, &e)
            .unwrap_or_else(|| open::fault(&place, &e).advice("try a folder with config.json and model.safetensors"));
        Error::data(fault)
    })?;
    let value = parse(path, &text)?;
    Reader { place: &place, value }.read()
}

/// Parses the JSON of the file `path`.
///
/// # Errors
/// [`Error::Data`], which names the kind of file if it is not JSON.
pub fn parse(path: &Path, text: &[u8]) -> Result<Value> {
    foreign::json(path, text).map_err(|fault| Error::data(fault.within(path.display())))
}

/// Reads a file of JSON that describes a model.
///
/// # Errors
/// The system's error, or an error if the file has more than 2 MiB: parsed JSON takes many times its length in memory.
pub fn read_small(path: &Path) -> io::Result<Vec<u8>> {
    bounded::read(path, JSON_BYTES, "a description of a model")
}

/// Writes config.json at `path` atomically.
///
/// # Errors
/// [`Error::Output`] if writing fails.
pub fn write(path: &Path, config: &Config, info: &ModelInfo, element: Element) -> Result<()> {
    let text = text(config, info, element);
    atomic::write(path, |out| out.write_all(text.as_bytes()))
}

/// Fails if a token id is outside the vocabulary.
///
/// # Errors
/// [`Error::Usage`] naming the id.
pub fn check(config: &Config, info: &ModelInfo) -> Result<()> {
    for (key, id) in [("bos_token_id", info.bos), ("eos_token_id", info.eos)] {
        if let Some(id) = id.filter(|id| *id as usize >= config.vocab) {
            let vocab = config.vocab;
            return Err(Error::usage(
                Fault::at("config.json", format!("{key} is {id}")).expected(format!("below the vocabulary's {vocab}")),
            ));
        }
    }
    Ok(())
}

fn text(config: &Config, info: &ModelInfo, element: Element) -> String {
    let mut value = json!({
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.0,
        "bos_token_id": info.bos,
        "embd_pdrop": 0.0,
        "eos_token_id": info.eos,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-5,
        "model_type": "gpt2",
        "n_ctx": config.positions,
        "n_embd": config.channels,
        "n_head": config.heads,
        "n_inner": null,
        "n_layer": config.layers,
        "n_positions": config.positions,
        "resid_pdrop": 0.0,
        "tie_word_embeddings": true,
        "torch_dtype": element.torch_name(),
        "vocab_size": config.vocab,
    });
    if let Some(tokenizer) = &info.tokenizer {
        value["wgpt_tokenizer"] = json!(tokenizer);
    }
    format!("{value:#}\n")
}

/// The JSON object, and the file's name for messages.
struct Reader<'a> {
    place: &'a str,
    value: Value,
}

impl Reader<'_> {
    fn read(&self) -> Result<Described> {
        self.check_kind()?;
        let config = Config {
            positions: self.size("n_positions", "max_position_embeddings", 1024)?,
            vocab: self.size("vocab_size", "vocab_size", GPT2_VOCAB)?,
            layers: self.size("n_layer", "num_hidden_layers", 12)?,
            heads: self.size("n_head", "num_attention_heads", 12)?,
            channels: self.size("n_embd", "hidden_size", 768)?,
        };
        config.check().map_err(|e| Error::data(e.fault().clone().within(self.place)))?;
        let inner = &self.value["n_inner"];
        if !inner.is_null() && inner.as_u64() != Some(4 * config.channels as u64) {
            return Err(self.refuse("n_inner", &format!("null or {}", 4 * config.channels)));
        }
        let tied = self.value.get("tie_word_embeddings").is_none_or(|value| *value == json!(true));
        Ok(Described { config, info: self.info(config.vocab), tied })
    }

    /// Checks that everything that changes the model's computation is as in GPT-2. Dropouts do not matter, because
    /// there are none here. `reorder_and_upcast_attn` does not matter either: it only reorders the same maths to fit
    /// the range of f16. A missing key has GPT-2's value.
    fn check_kind(&self) -> Result<()> {
        if self.value.get("model_type").is_some_and(|kind| *kind != "gpt2") {
            return Err(self.refuse("model_type", "\"gpt2\""));
        }
        let known = |name: &Value| name.as_str().is_some_and(|name| name.starts_with("GPT2"));
        let classes = self.value["architectures"].as_array();
        if classes.is_some_and(|classes| !classes.is_empty() && !classes.iter().any(known)) {
            return Err(self.refuse("architectures", "[\"GPT2LMHeadModel\"]"));
        }
        // all of these are GELU by tanh; `gelu` uses the error function
        let other = |name: &Value| !name.as_str().is_some_and(|name| TANH_GELUS.contains(&name));
        if self.value.get("activation_function").is_some_and(other) {
            return Err(self.refuse("activation_function", "\"gelu_new\""));
        }
        for (key, wanted) in [
            ("scale_attn_weights", json!(true)),
            ("scale_attn_by_inverse_layer_idx", json!(false)),
            ("add_cross_attention", json!(false)),
        ] {
            if self.value.get(key).is_some_and(|value| *value != wanted) {
                return Err(self.refuse(key, &wanted.to_string()));
            }
        }
        let epsilon = &self.value["layer_norm_epsilon"];
        // compared as f32, because some programs write it in f32 precision
        if !epsilon.is_null() && epsilon.as_f64().map(|e| e as f32) != Some(EPSILON) {
            return Err(self.refuse("layer_norm_epsilon", "1e-5"));
        }
        Ok(())
    }

    /// Returns a size under GPT-2's name `key` or, as transformers also accepts, under the name `general` that all
    /// models share. A GPT-2 without either has the `usual` size. Sizes are at least 1, and small enough that the size
    /// of a matrix does not overflow.
    fn size(&self, key: &str, general: &str, usual: usize) -> Result<usize> {
        let (own, other) = (self.value.get(key), self.value.get(general));
        if let (Some(own), Some(other)) = (own, other)
            && own != other
        {
            let found = format!("{own} and {other}");
            let fault = Fault::at(self.place, format!("{key} and {general} differ")).expected("one number");
            return Err(Error::data(fault.found(found)));
        }
        let key = if own.is_none() && other.is_some() { general } else { key };
        if own.or(other).is_none() && self.value["model_type"] == "gpt2" {
            return Ok(usual);
        }
        self.value[key]
            .as_u64()
            .filter(|n| (1..1 << 24).contains(n))
            .map(|n| n as usize)
            .ok_or_else(|| self.refuse(key, "a whole number from 1 to 16777215"))
    }

    fn info(&self, vocab: usize) -> ModelInfo {
        let tokenizer = self.value["wgpt_tokenizer"].as_str().map(str::to_owned);
        ModelInfo { tokenizer, bos: self.id("bos_token_id", vocab), eos: self.id("eos_token_id", vocab) }
    }

    /// Returns a token id; of a list, the first one. Ignores ids outside the vocabulary: transformers writes GPT-2's
    /// 50256 into every configuration by default.
    fn id(&self, key: &str, vocab: usize) -> Option<u32> {
        let value = &self.value[key];
        let id = value.as_u64().or_else(|| value[0].as_u64())?;
        u32::try_from(id).ok().filter(|id| (*id as usize) < vocab)
    }

    fn refuse(&self, key: &str, expected: &str) -> Error {
        let got = self.value.get(key).map_or_else(|| "nothing".to_owned(), Value::to_string);
        Error::data(Fault::at(self.place, key).expected(expected).found(got).advice("try a plain GPT-2"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config::new(24, 257, 2, 3, 36).unwrap()
    }

    fn parse(value: Value) -> Result<(Config, ModelInfo)> {
        Reader { place: "config.json", value }.read().map(|described| (described.config, described.info))
    }

    fn ours() -> Value {
        serde_json::from_str(&text(&config(), &ModelInfo::for_tokenizer("bytes"), Element::F32)).unwrap()
    }

    #[test]
    fn reads_what_it_writes() {
        assert_eq!(parse(ours()).unwrap(), (config(), ModelInfo::for_tokenizer("bytes")));
    }

    #[test]
    fn bare_openai_config_is_gpt2() {
        let value = json!({"model_type": "gpt2", "n_positions": 1024, "vocab_size": 50257, "n_layer": 12, "n_head": 12,
            "n_embd": 768, "bos_token_id": 50256, "eos_token_id": [50256], "resid_pdrop": 0.1,
            "layer_norm_epsilon": 9.999999747378752e-06});
        let (config, info) = parse(value).unwrap();
        assert_eq!(config, Config::from_descriptor("d12").unwrap());
        assert_eq!(info, ModelInfo { tokenizer: None, ..ModelInfo::for_tokenizer("gpt2") });
    }

    #[test]
    fn ids_outside_the_vocabulary() {
        let mut value = ours();
        value["bos_token_id"] = json!(257);
        value["eos_token_id"] = json!(-1);
        value.as_object_mut().unwrap().remove("wgpt_tokenizer");
        assert_eq!(parse(value).unwrap().1, ModelInfo::default());
        let error = check(&config(), &ModelInfo::for_tokenizer("gpt2")).unwrap_err();
        let Error::Usage(fault) = &error else { panic!("{error:?}") };
        assert!(fault.place == "config.json" && fault.what.contains("bos_token_id"), "{error}");
        assert_eq!(fault.expected, "below the vocabulary's 257");
    }

    #[test]
    fn refuses_what_it_cannot_compute() {
        for (key, bad) in [
            ("model_type", json!("gpt_neo")),
            ("activation_function", json!("relu")),
            ("scale_attn_weights", json!(false)),
            ("scale_attn_by_inverse_layer_idx", json!(true)),
            ("add_cross_attention", json!(true)),
            ("activation_function", json!("gelu")),
            ("activation_function", json!("quick_gelu")),
            ("architectures", json!(["GPTNeoForCausalLM"])),
            ("hidden_size", json!(48)),
            ("layer_norm_epsilon", json!(1e-6)),
            ("n_inner", json!(100)),
            ("n_head", json!(5)),
            ("n_layer", json!(0)),
            ("n_embd", json!("36")),
            ("n_embd", json!(1_u64 << 60)),
            ("vocab_size", json!(257.5)),
            ("n_positions", Value::Null),
        ] {
            let mut value = ours();
            value[key] = bad.clone();
            let error = parse(value).expect_err(key);
            assert!(matches!(&error, Error::Data(fault) if fault.place.starts_with("config.json")), "{key}: {error}");
        }
        assert!(parse(json!([1])).is_err());
    }

    #[test]
    fn every_name_of_gelu_by_tanh() {
        for name in ["gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate"] {
            let mut value = ours();
            value["activation_function"] = json!(name);
            assert_eq!(parse(value).unwrap().0, config(), "{name}");
        }
    }

    #[test]
    fn sizes_under_the_names_that_all_models_share() {
        let mut value = json!({"max_position_embeddings": 24, "vocab_size": 257, "num_hidden_layers": 2,
            "num_attention_heads": 3, "hidden_size": 36});
        assert_eq!(parse(value.clone()).unwrap().0, config());
        value["n_embd"] = json!(36);
        assert_eq!(parse(value.clone()).unwrap().0, config());
        value["n_embd"] = json!(48);
        let error = parse(value).unwrap_err().to_string();
        assert_eq!(error, "config.json: n_embd and hidden_size differ, expected one number, got 48 and 36");
    }

    #[test]
    fn a_gpt2_without_sizes_has_gpt2s() {
        assert_eq!(parse(json!({"model_type": "gpt2"})).unwrap().0, Config::from_descriptor("d12").unwrap());
        // nothing says that this is one
        assert!(parse(json!({})).is_err());
    }

    #[test]
    fn what_is_no_json_is_named() {
        let read = |text: &str| super::parse(Path::new("config.json"), text.as_bytes()).map_err(|e| e.to_string());
        assert_eq!(read("\u{feff}{\"a\": 1}"), Ok(json!({"a": 1})));
        assert!(read("version https://git-lfs.github.com/spec/v1\n").unwrap_err().contains("git lfs pull"));
        assert!(read("Entry not found").unwrap_err().contains("only the text `Entry not found`"));
        assert!(read("").unwrap_err().contains("an empty file"));
        assert!(read("{").unwrap_err().contains("broken JSON"));
    }

    #[test]
    fn inner_of_four_times_the_width() {
        let mut value = ours();
        value["n_inner"] = json!(144);
        assert!(parse(value).is_ok());
    }
}
