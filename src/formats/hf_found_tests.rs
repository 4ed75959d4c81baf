//! Tests of files as users have them: names of wrappers, heads, element types.

use super::*;

const WTE: &str = "transformer.wte.weight";

/// Renames the tensors.
fn renamed(file: &TensorMap, name: impl Fn(&str) -> String) -> TensorMap {
    file.iter().map(|(own, tensor)| (name(own), tensor.clone())).collect()
}

fn floats(tensor: &Owned) -> Vec<f32> {
    tensor.2.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// Converts a tensor of f32 to another element type.
fn in_type(tensor: &Owned, dtype: Dtype) -> Owned {
    let bytes = floats(tensor).into_iter().flat_map(|x| match dtype {
        Dtype::F16 => half::f16::from_f32(x).to_le_bytes().to_vec(),
        Dtype::BF16 => half::bf16::from_f32(x).to_le_bytes().to_vec(),
        Dtype::F64 => f64::from(x).to_le_bytes().to_vec(),
        _ => x.to_le_bytes().to_vec(),
    });
    Owned(dtype, tensor.1.clone(), bytes.collect())
}

#[test]
fn prefixes_of_wrapped_models_in_any_order() {
    for prefix in ["_orig_mod.", "module.", "model.", "module._orig_mod.", "_orig_mod.model.module.", "module.model."] {
        let all = load_changed(|file| *file = renamed(file, |name| format!("{prefix}{name}")));
        assert_eq!(all.unwrap().0, model(), "{prefix}");
        let some = |name: &str| if name.contains("ln_") { format!("{prefix}{name}") } else { name.to_owned() };
        assert_eq!(load_changed(|file| *file = renamed(file, some)).unwrap().0, model(), "some {prefix}");
    }
}

#[test]
fn twins_behind_prefixes_are_named() {
    let twins = load_changed(|file| drop(file.insert("_orig_mod.wte.weight".into(), file[WTE].clone())));
    refused(twins, &["`transformer.wte.weight`", "`_orig_mod.wte.weight`", "duplicates", "expected one `wte.weight`"]);
}

#[test]
fn only_the_head_is_stored() {
    let head = |name: &'static str| {
        load_changed(move |file| {
            let wte = file.remove(WTE).unwrap();
            file.insert(name.into(), wte);
        })
    };
    assert_eq!(head("lm_head.weight").unwrap().0, model());
    assert_eq!(head("module.lm_head.weight").unwrap().0, model());
}

#[test]
fn an_equal_head_in_another_element_type() {
    // a head that is the rounded embedding, an embedding that is the rounded head, and the same numbers in both
    for (head, wte) in [(Dtype::F16, Dtype::F32), (Dtype::BF16, Dtype::F32), (Dtype::F64, Dtype::F32)] {
        let result = load_changed(|file| drop(file.insert(LM_HEAD.into(), in_type(&file[WTE], head))));
        assert_eq!(result.unwrap().0, model(), "{head} beside {wte}");
    }
    let result = load_changed(|file| {
        let head = file[WTE].clone();
        file.insert(WTE.into(), in_type(&head, Dtype::F16));
        file.insert(LM_HEAD.into(), head);
    });
    let wte = result.unwrap().0;
    let rounded = |x: &f32| half::f16::from_f32(*x).to_f32();
    assert!(wte.get("wte", 0).iter().eq(model().get("wte", 0).iter().map(rounded).collect::<Vec<_>>().iter()));
    let result = load_changed(|file| {
        let halves = in_type(&file[WTE], Dtype::F16);
        let widened = floats(&file[WTE]).iter().flat_map(|x| rounded(x).to_le_bytes()).collect();
        file.insert(LM_HEAD.into(), Owned(Dtype::F32, halves.1.clone(), widened));
        file.insert(WTE.into(), halves);
    });
    assert_eq!(result.unwrap().0, wte);
}

#[test]
fn a_head_of_its_own() {
    let changed = |dtype| {
        load_changed(move |file| {
            let mut head = file[WTE].clone();
            for i in [0, 25, 9251] {
                head.2[4 * i + 2] ^= 0x40;
            }
            file.insert(LM_HEAD.into(), in_type(&head, dtype));
        })
    };
    for dtype in [Dtype::F32, Dtype::F16] {
        let what =
            "`lm_head.weight` differs from `transformer.wte.weight` in 3 of 9252 numbers, expected tied embeddings";
        refused(changed(dtype), &[what]);
    }
    let larger = load_changed(|file| drop(file.insert(LM_HEAD.into(), Owned(Dtype::F32, vec![1, 36], vec![0; 144]))));
    refused(larger, &["`lm_head.weight` has another shape, expected (257, 36), got (1, 36)"]);
}

#[test]
fn a_head_said_to_be_untied() {
    let load_untied = |with_head: bool| {
        let dir = saved();
        let config = dir.path().join(CONFIG);
        let text = fs::read_to_string(&config)
            .unwrap()
            .replace("\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false");
        fs::write(config, text).unwrap();
        let path = dir.path().join(WEIGHTS);
        let mut file = read(&path);
        if with_head {
            file.insert(LM_HEAD.into(), file[WTE].clone());
        }
        serialize_to_file(&file, None, &path).unwrap();
        load(dir.path())
    };
    // an equal head computes the same; without a head transformers would initialise one randomly
    assert_eq!(load_untied(true).unwrap().0, model());
    refused(load_untied(false), &["config.json: tie_word_embeddings: false, and no output layer is stored"]);
}

#[test]
fn other_heads_are_left_out() {
    let result = load_changed(|file| {
        for name in ["score.weight", "multiple_choice_head.summary.bias", "module.v_head.summary.weight"] {
            file.insert(name.into(), Owned(Dtype::F32, vec![2], vec![1; 8]));
        }
        file.insert("lm_head.bias".into(), Owned(Dtype::F32, vec![257], vec![0; 4 * 257]));
    });
    assert_eq!(result.unwrap().0, model());
    let bias = load_changed(|file| drop(file.insert("lm_head.bias".into(), Owned(Dtype::F32, vec![2], vec![1; 8]))));
    refused(bias, &["`lm_head.bias` has 2 numbers that are not 0, expected no bias"]);
    for name in ["h.0.score.weight", "ln_e.weight", "h.1.attn.q_norm.weight"] {
        let unknown = load_changed(|file| drop(file.insert(name.into(), Owned(Dtype::F32, vec![1], vec![0; 4]))));
        refused(unknown, &[name, "is unknown"]);
    }
}

#[test]
fn masks_of_any_element_type() {
    let result = load_changed(|file| {
        for (name, dtype, bytes) in [
            ("transformer.h.0.attn.bias", Dtype::BOOL, 1),
            ("h.0.attn.masked_bias", Dtype::F32, 4),
            ("module.h.1.attn.bias", Dtype::U8, 1),
            ("_orig_mod.transformer.h.1.attn.masked_bias", Dtype::I64, 8),
        ] {
            file.insert(name.into(), Owned(dtype, vec![1], vec![1; bytes]));
        }
    });
    assert_eq!(result.unwrap().0, model());
}

#[test]
fn doubles_are_read() {
    let doubles = |file: &mut TensorMap| file.values_mut().for_each(|tensor| *tensor = in_type(tensor, Dtype::F64));
    assert_eq!(load_changed(doubles).unwrap().0, model());
    let large = load_changed(|file| {
        file.insert("transformer.ln_f.bias".into(), Owned(Dtype::F64, vec![36], 1e300_f64.to_le_bytes().repeat(36)));
    });
    refused(large, &["`transformer.ln_f.bias` holds inf at index 0"]);
}

#[test]
fn a_stale_vocabulary_is_told_with_both_numbers() {
    let result = load_changed(|file| {
        let wte = file.get_mut(WTE).unwrap();
        wte.1[0] += 3;
        wte.2.extend([0; 3 * 36 * 4]);
    });
    refused(result, &["(257, 36) by config.json, got (260, 36); try \"vocab_size\": 260 in config.json"]);
}

#[test]
fn matrices_as_nanogpt_stores_them() {
    let result = load_changed(|file| file.get_mut("transformer.h.0.mlp.c_fc.weight").unwrap().1 = vec![144, 36]);
    refused(result, &["(36, 144) by config.json, got (144, 36)", "nanoGPT", "wgpt convert --help"]);
    let no_bias = load_changed(|file| file.retain(|name, _| !name.ends_with(".bias")));
    refused(no_bias, &["tensor `h.0.ln_1.bias` is missing", "nanoGPT", "wgpt convert --help"]);
}
