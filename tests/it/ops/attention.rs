//! Blocks of candidates of `wgpt tune`, and kernels that CPU drivers take minutes to compile.

use std::sync::Arc;

use wgpt::cases::attention::{CASES, of_blocks};
use wgpt::cases::{Breadth, Case};
use wgpt::ops::attention::{self, AttentionKernel};

use super::harness::{Device, Mode, check, matrix_device, modes, verify};

/// A case with the blocks of a record of `wgpt tune`: for each entry the candidate of this number.
fn of_candidates(case: Case, edge: u32, number: usize, [positions, hs]: [usize; 2]) -> Case {
    case.on(move |caps| {
        (caps.emulated_edge, caps.max_workgroup_bytes) = (Some(edge), 48 << 10);
        let record = AttentionKernel::ALL.into_iter().filter_map(|entry| {
            let block = *attention::candidates(caps, entry, hs).get(number)?;
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

fn run_candidates(device: &Device, edge: u32, number: usize) {
    for case in of_blocks(&device.caps, [1, 150, 2, 16], None, [edge, 48]) {
        check(std::slice::from_ref(device), &of_candidates(case, edge, number, [150, 16]));
    }
}

/// Eight subgroups along the rows, which no table has. The other candidates run by hand, with `--ignored`.
#[test]
fn candidates_of_eight_subgroups() {
    let Some(device) = matrix_device() else { return };
    let mut caps = device.caps.clone();
    (caps.emulated_edge, caps.max_workgroup_bytes) = (Some(8), 48 << 10);
    let candidates = attention::candidates(&caps, AttentionKernel::Forward, 16);
    let number = candidates.iter().position(|block| block.grid_m == 8);
    run_candidates(&device, 8, number.expect("a candidate"));
}

#[test]
#[ignore = "takes minutes on software Vulkan"]
fn all_candidates() {
    let Some(device) = matrix_device() else { return };
    for edge in [8, 16] {
        (0..13).for_each(|number| run_candidates(&device, edge, number));
    }
}

/// Runs the cases with heads of this size that are too slow for each run. The larger the heads, the longer a CPU driver
/// takes to compile a kernel.
fn slow_cases_with_heads_of(size: usize) {
    let mut count = 0;
    for mode in modes().into_iter().filter(|mode| mode.breadth >= Breadth::Full) {
        let some: Vec<String> = mode.cases(&CASES).iter().map(Case::to_string).collect();
        let all = Mode { breadth: Breadth::All, ..mode };
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
