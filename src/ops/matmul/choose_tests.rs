//! Tests of [`super`].

use super::*;
use crate::ops::matmul::parts::{part_depth, parts};

fn gpu(edges: &[u32], lanes: (u32, u32)) -> Caps {
    Caps {
        f16: true,
        subgroups: true,
        matrix_edges: edges.to_vec(),
        subgroup_sizes: lanes,
        max_workgroup_bytes: 48 << 10,
        max_invocations: 1024,
        ..Caps::webgpu_defaults()
    }
}

#[test]
fn f16_runs_on_matrices_where_they_are_and_f32_never() {
    let nvidia = gpu(&[16], (32, 32));
    let chosen = |caps: &Caps, elem| choose(caps, Product::Forward, elem, [65_536, 768, 768]);
    assert!(matches!(
        chosen(&nvidia, Elem::F16),
        Algorithm::Coop(CoopMatmul { units: MatrixUnits { edge: 16, .. }, tile_m: 128, .. })
    ));
    assert!(matches!(chosen(&nvidia, Elem::F32), Algorithm::Tiled { .. }));
    assert!(matches!(chosen(&gpu(&[], (32, 32)), Elem::F16), Algorithm::Tiled { .. }));
    assert!(without_matrices(&nvidia).is_none() && without_matrices(&gpu(&[], (32, 32))).is_some());
    let narrow = Caps { max_workgroup_bytes: 16 << 10, ..nvidia };
    assert!(matches!(chosen(&narrow, Elem::F16), Algorithm::Coop(CoopMatmul { tile_m: 64, .. })));
}

#[test]
fn a_tuned_kernel_is_taken_where_it_runs_and_only_there() {
    let plain = gpu(&[16], (32, 32));
    let shape = [16_384, 768, 768];
    let choice = |caps: &Caps| choose(caps, Product::Forward, Elem::F16, shape);
    let table = choice(&plain);
    let other = candidates(&plain, Elem::F16).into_iter().find(|a| *a != table).expect("more than one");
    let with = |text: String| {
        let record = [(key(Product::Forward, Elem::F16, shape), text)].into_iter().collect();
        Caps { tuned: std::sync::Arc::new(record), ..plain.clone() }
    };
    let tuned = with(serde_json::to_string(&other).expect("serialises"));
    assert_eq!(choice(&tuned), other);
    assert_eq!(choose(&tuned, Product::Forward, Elem::F16, [16_384, 768, 769]), table);
    // an algorithm that does not fit this adapter, one that tuning never tries, and no algorithm at all
    let narrow = Caps { max_workgroup_bytes: 4 << 10, ..tuned };
    assert!(matches!(choice(&narrow), Algorithm::Tiled { .. }));
    let absurd = tiled(&plain, [4; 5]);
    assert_eq!(choice(&with(serde_json::to_string(&absurd).expect("serialises"))), table);
    assert_eq!(choice(&with("{\"Coop\":".into())), table);
}

#[test]
fn parts_cover_the_depth_once_and_keep_a_gpu_busy() {
    let caps = gpu(&[16], (32, 32));
    for (m, n, k) in [(768, 768, 65_536), (3072, 768, 65_536), (768, 768, 16_384), (64, 64, 100_003), (65, 7, 31)] {
        let parts = parts(&caps, Elem::F16, m, n, k);
        let algorithm = choose(&caps, Product::BackwardWeight, Elem::F16, [m, n, k]);
        let depth = part_depth(&algorithm, k as u32, parts) as usize;
        assert!(depth * parts as usize >= k && depth * (parts as usize - 1) < k, "{m} {n} {k}: {parts} of {depth}");
    }
    // the gradient of the head for a chunk of rows, where parts would take gigabytes
    assert_eq!(parts(&caps, Elem::F16, 50_304, 768, 5333), 1);
    assert_eq!(parts(&Caps { software: true, ..caps }, Elem::F32, 768, 768, 65_536), 1);
}

/// Gradients of the weights in GPT-2's blocks for 64 sequences, on an H100, an RTX 4090, an A100 and an RTX 3090.
#[test]
fn the_last_wave_of_workgroups_is_full() {
    for (units, elem) in [132, 128, 108, 82].into_iter().flat_map(|units| [(units, Elem::F16), (units, Elem::F32)]) {
        let caps = Caps { compute_units: Some(units), ..gpu(&[16], (32, 32)) };
        let (c, places) = (768, 2 * units as usize);
        for (m, n) in [(3 * c, c), (c, c), (4 * c, c), (c, 4 * c)] {
            let parts = parts(&caps, elem, m, n, 65_536) as usize;
            let last = (m / 128 * (n / 128) * parts - 1) % places + 1;
            assert!(last * 10 >= places * 9, "{units} units, {m} {n}: {parts} parts, {last} of {places}");
            assert!(parts <= 16, "{units} units, {m} {n}: {parts} parts cost more than they save");
        }
    }
}

/// Filling the last wave must not cost more than it saves, whatever the model, the batch and the GPU.
#[test]
fn parts_are_never_dearer_than_one_part() {
    for units in [8, 16, 64, 82, 96, 108, 128, 132, 170] {
        let caps = Caps { compute_units: Some(units), ..gpu(&[16], (32, 32)) };
        let places = 2 * units as usize;
        for channels in [768, 1024, 1280, 1600] {
            for (m, n) in [(3, 1), (1, 1), (4, 1), (1, 4)].map(|(m, n)| (m * channels, n * channels)) {
                for k in [2048, 8192, 16_384, 32_768, 65_536] {
                    if by_table(&caps, Product::BackwardWeight, Elem::F16, [m, n, k])
                        != Algorithm::Coop(coop(&caps, LARGE_COOP).expect("room"))
                    {
                        continue;
                    }
                    let tiles = m.div_ceil(128) * n.div_ceil(128);
                    let parts = parts(&caps, Elem::F16, m, n, k) as usize;
                    let idle = |parts: usize| (tiles * parts).next_multiple_of(places) as f64 / (tiles * parts) as f64;
                    let traffic = if parts > 1 { 400.0 * parts as f64 / k as f64 } else { 0.0 };
                    let (cost, whole) = (idle(parts) + traffic, idle(1));
                    assert!(cost <= whole, "{units} units, {m} {n} {k}: {parts} parts cost {cost}, one {whole}");
                }
            }
        }
    }
}

/// Records, budgets and rejections of `wgpt tune` identify kernels by name.
#[test]
fn kernels_of_different_texts_have_different_names() {
    let metal = Caps { backend: "Metal".into(), ..gpu(&[8], (4, 64)) };
    let software = Caps { software: true, lanes: 16, int64: true, f16: true, ..Caps::webgpu_defaults() };
    for caps in [gpu(&[16], (32, 32)), gpu(&[8], (32, 64)), metal, gpu(&[], (32, 32)), software] {
        let mut named = std::collections::HashMap::new();
        let mut count = 0;
        for (product, elem) in [Product::Forward, Product::BackwardInp, Product::BackwardWeight]
            .iter()
            .flat_map(|&product| [Elem::F32, Elem::F16].map(|elem| (product, elem)))
        {
            for algorithm in candidates(&caps, elem) {
                for (epilogue, out, accumulate, parts) in variants(product, elem, &algorithm) {
                    for (width, ragged) in kinds(&algorithm) {
                        let (width, ragged) = (*width, *ragged);
                        let spec = Spec {
                            product,
                            algorithm,
                            operands: elem,
                            out,
                            epilogue,
                            accumulate,
                            parts,
                            width,
                            ragged,
                        };
                        let (name, text) = (generate::full_name(&spec), generate::wgsl(&spec));
                        count += 1;
                        if let Some(other) = named.insert(name.clone(), text.clone()) {
                            assert_eq!(other, text, "{name} on {} names two kernels", caps.backend);
                        }
                    }
                }
            }
        }
        assert!(named.len() > count / 2, "{} names of {count} kernels", named.len());
    }
}

#[test]
fn alchemist_multiplies_without_its_matrix_units_and_other_gpus_of_intel_with_them() {
    let named = |name: &str| Caps { vendor: Vendor::of(0, name), name: name.into(), ..gpu(&[16], (16, 16)) };
    let chosen = |caps: &Caps| choose(caps, Product::Forward, Elem::F16, [4096, 4096, 768]);
    for name in
        ["Intel(R) Arc(tm) A770 Graphics (DG2)", "Intel(R) Arc(TM) A380 Graphics", "Intel(R) Arc(TM) Pro A60 Graphics"]
    {
        let caps = named(name);
        assert_eq!(chosen(&caps), tiled(&caps, LARGE), "{name}");
        assert!(is_faster_without_matrices(&caps) && without_matrices(&caps).is_none(), "{name}");
        assert!(matches!(candidates(&caps, Elem::F16)[0], Algorithm::Coop(_)), "{name}");
        assert!(!kernels(&caps).iter().any(|kernel| kernel.name().starts_with("matmul_coop")), "{name}");
    }
    for name in ["Intel(R) Arc(tm) B580 Graphics (BMG G21)", "Intel(R) Graphics (LNL)", "NVIDIA A100"] {
        assert!(matches!(chosen(&named(name)), Algorithm::Coop(_)), "{name}");
    }
}

#[test]
fn a_gpu_with_few_units_takes_large_tiles_earlier() {
    let of = |units| Caps { compute_units: Some(units), ..gpu(&[16], (32, 32)) };
    // 48 tiles of 128x128
    let tile = |units| match choose(&of(units), Product::Forward, Elem::F16, [1024, 768, 768]) {
        Algorithm::Coop(coop) => coop.tile_m,
        other => panic!("{other}"),
    };
    assert_eq!([8, 48, 49, 132].map(tile), [128, 128, 64, 64]);
}

#[test]
fn candidates_cover_what_gpus_are_fast_with_and_begin_with_it() {
    let list: Vec<String> = candidates(&gpu(&[16], (32, 32)), Elem::F16)
        .iter()
        .filter_map(|algorithm| match algorithm {
            Algorithm::Coop(c) => {
                let double = if c.buffers > 1 { ".double" } else { "" };
                Some(format!("{}x{}x{}.{}x{}{double}", c.tile_m, c.tile_n, c.tile_k, c.grid_m, c.grid_n))
            }
            _ => None,
        })
        .collect();
    let first =
        ["128x128x32.2x4", "128x128x16.2x4.double", "128x128x16.2x4", "256x128x32.4x2", "256x128x16.4x2.double"];
    assert_eq!(list[..5], first);
    for tile in "128x128x16.2x2 128x128x32.2x2 128x128x16.4x2 96x128x16.2x2 128x96x16.2x2 256x128x16.4x2 128x256x16.2x4"
        .split(' ')
    {
        assert!(list.iter().any(|found| found == tile), "{tile} is not in {list:?}");
    }
    let distinct: std::collections::HashSet<&String> = list.iter().collect();
    assert_eq!(distinct.len(), list.len());
}

#[test]
fn algorithms_of_a_record_are_told_apart_by_product_and_elements() {
    let caps = gpu(&[16], (32, 32));
    let [first, second, ..] = candidates(&caps, Elem::F16)[..] else { panic!("two candidates") };
    let text = |algorithm: &Algorithm| serde_json::to_string(algorithm).expect("serialises");
    let record = [
        (key(Product::Forward, Elem::F16, [1, 2, 3]), text(&second)),
        (key(Product::Forward, Elem::F16, [4, 5, 6]), text(&second)),
        (key(Product::BackwardInp, Elem::F16, [4, 5, 6]), text(&first)),
        (key(Product::BackwardInp, Elem::F32, [4, 5, 6]), text(&first)),
        ("attention Forward F16 64 1024".into(), "{}".into()),
    ];
    let caps = Caps { tuned: std::sync::Arc::new(record.into_iter().collect()), ..caps };
    let expected = [(Product::Forward, Elem::F16, second), (Product::BackwardInp, Elem::F16, first)];
    assert_eq!(algorithms(&caps), expected);
}

/// Records on users' disks have the fields of an algorithm on one level, in any order.
#[test]
fn a_record_of_an_earlier_version_loads() {
    let text = r#"{"Coop":{"tile_m":128,"tile_n":64,"tile_k":32,"grid_m":2,"grid_n":4,"edge":16,"native":8,"lanes":32,
        "varying":false,"unrolled":true,"wide_tiles":false}}"#;
    let units = MatrixUnits { edge: 16, native: 8, lanes: 32, varying: false, functions: false, wide_tiles: false };
    let coop = CoopMatmul {
        tile_m: 128,
        tile_n: 64,
        tile_k: 32,
        grid_m: 2,
        grid_n: 4,
        units,
        buffers: 1,
        transposed: false,
        unrolled: true,
        peeled: false,
    };
    assert_eq!(serde_json::from_str::<Algorithm>(text).expect("loads"), Algorithm::Coop(coop));
    let fields = |value: serde_json::Value| value["Coop"].as_object().cloned().expect("an object");
    let mut written = fields(serde_json::to_value(Algorithm::Coop(coop)).expect("serialises"));
    for (new, without) in
        [("buffers", 1.into()), ("transposed", false.into()), ("functions", false.into()), ("peeled", false.into())]
    {
        assert_eq!(written.remove(new), Some::<serde_json::Value>(without), "{new}");
    }
    assert_eq!(written, fields(serde_json::from_str(text).expect("is JSON")));
    assert!(serde_json::from_str::<Algorithm>(&text.replace("\"edge\":16,", "")).is_err());
}
