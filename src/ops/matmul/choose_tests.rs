//! Tests of [`super`].

use super::*;

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
        Algorithm::Coop(Coop { units: Units { edge: 16, .. }, tile_m: 128, .. })
    ));
    assert!(matches!(chosen(&nvidia, Elem::F32), Algorithm::Tiled { .. }));
    assert!(matches!(chosen(&gpu(&[], (32, 32)), Elem::F16), Algorithm::Tiled { .. }));
    assert!(without_matrices(&nvidia).is_none() && without_matrices(&gpu(&[], (32, 32))).is_some());
    let narrow = Caps { max_workgroup_bytes: 16 << 10, ..nvidia };
    assert!(matches!(chosen(&narrow, Elem::F16), Algorithm::Coop(Coop { tile_m: 64, .. })));
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
    // one that this adapter has no room for, one that nobody would try, and no algorithm at all
    let narrow = Caps { max_workgroup_bytes: 4 << 10, ..tuned };
    assert!(matches!(choice(&narrow), Algorithm::Tiled { .. }));
    let absurd = Algorithm::Tiled { tile_m: 4, tile_n: 4, tile_k: 4, thread_m: 4, thread_n: 4 };
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
    assert!(parts(&caps, Elem::F16, 768, 768, 65_536) * 36 >= 256, "36 tiles of 128 by 128");
    assert_eq!(parts(&caps, Elem::F16, 50_304, 768, 65_536), 1);
    assert_eq!(parts(&caps, Elem::F32, 768, 768, 65_536), 1);
}

/// Records, budgets and refusals of `wgpt tune` tell kernels apart by their names.
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
                let coop = matches!(algorithm, Algorithm::Coop(_));
                for (epilogue, out, accumulate) in variants(product, elem, coop) {
                    for (width, ragged) in kinds(coop) {
                        let (width, ragged) = (*width, *ragged);
                        let spec =
                            Spec { product, algorithm, operands: elem, out, epilogue, accumulate, width, ragged };
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
fn candidates_cover_what_gpus_are_fast_with_and_begin_with_it() {
    let list: Vec<String> = candidates(&gpu(&[16], (32, 32)), Elem::F16)
        .iter()
        .filter_map(|algorithm| match algorithm {
            Algorithm::Coop(c) => Some(format!("{}x{}x{}.{}x{}", c.tile_m, c.tile_n, c.tile_k, c.grid_m, c.grid_n)),
            _ => None,
        })
        .collect();
    let first = ["128x128x16.2x4", "128x128x32.2x4", "128x128x16.2x2", "128x128x32.2x2", "96x128x16.2x2"];
    assert_eq!(list[..5], first);
    for tile in "128x128x16.4x2 128x128x32.4x2 96x128x32.2x4 128x96x16.2x2 256x128x16.4x2 128x256x16.2x4".split(' ') {
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

/// Records on users' disks have the fields of an algorithm side by side, in any order.
#[test]
fn a_record_of_an_earlier_version_loads() {
    let text = r#"{"Coop":{"tile_m":128,"tile_n":64,"tile_k":32,"grid_m":2,"grid_n":4,"edge":16,"native":8,"lanes":32,
        "varying":false,"unrolled":true,"wide_tiles":false}}"#;
    let units = Units { edge: 16, native: 8, lanes: 32, varying: false, wide_tiles: false };
    let coop = Coop { tile_m: 128, tile_n: 64, tile_k: 32, grid_m: 2, grid_n: 4, units, unrolled: true };
    assert_eq!(serde_json::from_str::<Algorithm>(text).expect("loads"), Algorithm::Coop(coop));
    let fields = |value: serde_json::Value| value["Coop"].as_object().cloned().expect("an object");
    let written = serde_json::to_value(Algorithm::Coop(coop)).expect("serialises");
    assert_eq!(fields(written), fields(serde_json::from_str(text).expect("is JSON")));
    assert!(serde_json::from_str::<Algorithm>(&text.replace("\"edge\":16,", "")).is_err());
}
