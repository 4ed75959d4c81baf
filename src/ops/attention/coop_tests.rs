//! Tests of [`super`].

use super::*;
use crate::gpu::Vendor;

/// Returns an adapter whose kernels can compute with elements of matrices.
fn gpu(edge: u32, kib: u32) -> Caps {
    Caps { matrix_functions: true, ..opaque(edge, kib) }
}

/// Returns an adapter whose matrices are opaque.
fn opaque(edge: u32, kib: u32) -> Caps {
    Caps {
        f16: true,
        subgroups: true,
        matrix_edges: vec![edge],
        subgroup_sizes: (32, 32),
        max_workgroup_bytes: kib << 10,
        max_invocations: 1024,
        ..Caps::webgpu_defaults()
    }
}

fn lanes_of_64(caps: Caps) -> Caps {
    Caps { subgroup_sizes: (64, 64), vendor: Vendor::Amd, ..caps }
}

fn says_what_it_takes(coop: &CoopAttention, kib: u32) {
    let taken = coop.kernel().kernel().reflect().expect("reflects").workgroup_bytes;
    let told = coop.workgroup_bytes();
    assert!((taken..=taken + 64).contains(&told) && told <= kib << 10, "{}: {taken}, {told}", coop.name());
}

#[test]
fn every_size_of_workgroup_memory_has_a_kernel_that_says_what_it_takes() {
    for (edge, kib, head_size) in [8, 16]
        .iter()
        .flat_map(|&edge| [16, 32, 48, 64].map(|kib| (edge, kib)))
        .flat_map(|(edge, kib)| [16, 32, 48, 64, 80, 96, 112, 128].map(|head_size| (edge, kib, head_size)))
    {
        for entry in AttentionKernel::ALL {
            for caps in [gpu(edge, kib), opaque(edge, kib), lanes_of_64(gpu(edge, kib))] {
                let coop = by_table(&caps, entry, head_size).expect("a kernel");
                says_what_it_takes(&coop, kib);
                assert!(coop.sums_a_lane() / coop.grid_n <= 2 * MANY_SUMS, "{}: registers", coop.name());
            }
        }
    }
}

#[test]
fn more_workgroup_memory_means_larger_blocks() {
    let blocks = |caps: fn(u32, u32) -> Caps| {
        [16, 32, 48].map(|kib| by_table(&caps(16, kib), AttentionKernel::Forward, 64).map(|c| [c.rows, c.columns]))
    };
    assert_eq!(blocks(gpu), [Some([32, 16]), Some([64, 32]), Some([64, 32])]);
    assert_eq!(blocks(opaque), [Some([64, 16]), Some([64, 32]), Some([128, 32])]);
}

#[test]
fn heads_that_16_does_not_divide_and_software_do_without() {
    let software = Caps { software: true, ..gpu(8, 32) };
    assert!(by_table(&gpu(16, 48), AttentionKernel::Forward, 72).is_none() && without(&gpu(16, 48), 72).is_some());
    assert!(by_table(&software, AttentionKernel::Forward, 64).is_none() && without(&software, 64).is_some());
    assert!(without(&gpu(16, 16), 128).is_none());
}

#[test]
fn candidates_fit_and_have_names_of_their_own() {
    for (edge, entry) in [8, 16].iter().flat_map(|&edge| AttentionKernel::ALL.map(|entry| (edge, entry))) {
        let caps = gpu(edge, 48);
        let list = candidates(&caps, entry, 64);
        assert_eq!(list.first().copied(), by_table(&caps, entry, 64));
        assert!(list.len() >= 7, "{entry:?}: {} candidates", list.len());
        let mut names: Vec<String> = list.iter().map(CoopAttention::name).collect();
        list.iter().for_each(|coop| says_what_it_takes(coop, 48));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), list.len(), "{names:?}");
        let mut blocks: Vec<String> = list.iter().map(|coop| format!("{:?}", coop.choice())).collect();
        blocks.sort_unstable();
        blocks.dedup();
        assert_eq!(blocks.len(), list.len(), "{blocks:?}");
    }
}

#[test]
fn a_tuned_block_is_taken_where_it_fits_and_only_there() {
    let plain = gpu(16, 48);
    let table = by_table(&plain, AttentionKernel::Forward, 64).expect("a kernel");
    let other = *candidates(&plain, AttentionKernel::Forward, 64).last().expect("candidates");
    let with = |text: &str| {
        let record = [(key(AttentionKernel::Forward, 64, 1024), text.to_owned())].into_iter().collect();
        Caps { tuned: std::sync::Arc::new(record), ..plain.clone() }
    };
    let tuned = with(&serde_json::to_string(&other.choice()).expect("serialises"));
    assert_ne!(table, other);
    assert_eq!(choose(&tuned, AttentionKernel::Forward, 64, 1024), Some(other));
    assert_eq!(choose(&tuned, AttentionKernel::Forward, 64, 512), Some(table));
    assert_eq!(choose(&tuned, AttentionKernel::Forward, 80, 1024), by_table(&plain, AttentionKernel::Forward, 80));
    // sizes that tuning never tries, sizes that do not fit, and no sizes at all
    for text in ["{\"rows\":24,\"columns\":8,\"grid_m\":3}", "{\"rows\":128,\"columns\":64,\"grid_m\":4}", "64"] {
        assert_eq!(choose(&with(text), AttentionKernel::Forward, 64, 1024), Some(table), "{text}");
    }
}
