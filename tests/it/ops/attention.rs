//! Blocks of candidates of `wgpt tune`, and kernels that CPU drivers take minutes to compile.

use std::sync::Arc;

use wgpt::cases::attention::{CASES, of_blocks};
use wgpt::cases::{Breadth, Case};
use wgpt::ops::attention::{self, AttentionKernel, BlockSizes};

use super::harness::{Device, check, matrix_device, modes, verify};

/// Picks one of the blocks that tuning would try for a kernel.
type Pick = Arc<dyn Fn(&[BlockSizes]) -> Option<BlockSizes> + Send + Sync>;

/// Returns a case that takes its blocks from a record of `wgpt tune`, one for each kernel.
fn of_record(case: Case, edge: u32, pick: Pick, [positions, hs]: [usize; 2]) -> Case {
    case.on(move |caps| {
        (caps.emulated_edge, caps.max_workgroup_bytes) = (Some(edge), 48 << 10);
        let record = AttentionKernel::ALL.into_iter().filter_map(|entry| {
            let block = pick(&attention::candidates(caps, entry, hs))?;
            Some((attention::key(entry, hs, positions), serde_json::to_string(&block).expect("serialises")))
        });
        caps.tuned = Arc::new(record.collect());
        for (key, text) in caps.tuned.iter() {
            let entry = AttentionKernel::ALL.into_iter().find(|entry| *key == attention::key(*entry, hs, positions));
            let block = attention::choose(caps, entry.expect("an entry"), hs, positions);
            assert_eq!(serde_json::to_string(&block).expect("serialises"), *text);
        }
    })
}

fn run_picked(device: &Device, edge: u32, pick: &Pick) {
    // software adapters run the forward pass, which their drivers compile in half the time
    let count = if device.caps.software { 1 } else { 2 };
    for case in of_blocks(&device.caps, [1, 150, 2, 16], None, [edge, 48]).into_iter().take(count) {
        check(std::slice::from_ref(device), &of_record(case, edge, Arc::clone(pick), [150, 16]));
    }
}

/// Eight subgroups along the rows, which no table has, with narrow blocks, which CPU drivers compile fastest. The other
/// candidates run by hand, with `--ignored`.
#[test]
fn candidates_of_eight_subgroups() {
    let Some(device) = matrix_device() else { return };
    let pick: Pick = Arc::new(|blocks| {
        let of_eight = blocks.iter().filter(|block| block.grid_m == 8).min_by_key(|block| block.columns);
        assert!(of_eight.is_some(), "{blocks:?}");
        of_eight.copied()
    });
    run_picked(&device, 8, &pick);
}

#[test]
#[ignore = "takes minutes on software Vulkan"]
fn all_candidates() {
    let Some(device) = matrix_device() else { return };
    for edge in [8, 16] {
        for number in 0..13 {
            let pick: Pick = Arc::new(move |blocks| blocks.get(number).copied());
            run_picked(&device, edge, &pick);
        }
    }
}

/// Runs the cases with heads of this size that are too slow for each run. The larger the heads, the longer a CPU driver
/// takes to compile a kernel.
fn slow_cases_with_heads_of(size: usize) {
    let mut count = 0;
    for mode in modes().into_iter().filter(|mode| mode.breadth >= Breadth::Full) {
        let some: Vec<String> = mode.cases(&CASES).iter().map(Case::to_string).collect();
        let all = mode.whole();
        for case in all.cases(&CASES).iter().filter(|case| !some.contains(&case.to_string())) {
            if !case.to_string().contains(&format!("heads of {size} ")) {
                continue;
            }
            count += 1;
            let begin = std::time::Instant::now();
            verify(&all.device, case).unwrap_or_else(|report| panic!("{report}"));
            println!("{case}: {:.0} s", begin.elapsed().as_secs_f64());
        }
    }
    assert!(count > 0, "no case has heads of {size}");
}

macro_rules! slow_heads {
    ($($name:ident $size:literal;)+) => {
        $(
            #[test]
            #[ignore = "takes minutes to an hour on software Vulkan"]
            fn $name() {
                slow_cases_with_heads_of($size);
            }
        )+
    };
}

slow_heads! {
    heads_of_16 16;
    heads_of_32 32;
    heads_of_48 48;
    heads_of_64 64;
    heads_of_80 80;
    heads_of_96 96;
    heads_of_112 112;
    heads_of_128 128;
}
