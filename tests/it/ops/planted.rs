//! Tests of the harness itself: it must fail on deliberately wrong kernels, and the report must state what is wrong.

use wgpt::cases::{Case, Contents, Inputs, STORED_F32, Slot, Want, absolute, rounding, wide};
use wgpt::gpu::kernel::Width;
use wgpt::gpu::{Caps, Dispatch, Elem, Immediates, KernelId, OpPass, Options, Pass, Tensor};
use wgpt::ops::matmul::{self, Epilogue, Product, Spec, generate};
use wgpt::reference;

use super::harness::{Device, Reach, verify, verify_with};

const ROWS: usize = 37;
const COLUMNS: usize = 12;
const COUNT: usize = ROWS * COLUMNS;

/// A case that dispatches one planted kernel.
fn planted(
    what: String,
    slots: Vec<Slot>,
    contents: Vec<Contents>,
    (kernel, immediates, groups): (KernelId, Vec<u32>, u64),
) -> Case {
    let launch = move |pass: &mut Pass, tensors: &[Tensor]| {
        pass.dispatch(&Dispatch {
            kernel: &kernel,
            tensors: &tensors.iter().collect::<Vec<_>>(),
            immediates: Immediates::unchecked(bytemuck::cast_slice(&immediates)),
            groups,
            flops: 0,
            bytes: 0,
        })
    };
    Case::new(OpPass::new("planted", "kernel"), what, slots, launch, move || contents.clone())
}

/// Numbers within `budget` of `want`, of the magnitude `size`.
fn near(want: Vec<f64>, budget: f64, size: f64) -> Want {
    let magnitude = vec![size; want.len()];
    STORED_F32.near(want, budget, &magnitude)
}

/// A shader file's kernel with another text, under a name that says so. Texts of tests live until the end.
fn changed(file: &'static str, entry: &'static str, width: Width, text: String) -> KernelId {
    let pass = OpPass::new(file, "planted");
    KernelId::shader(pass, entry, width, &[text.leak()]).printed(file, "planted").set("WORKGROUP", 64)
}

/// The residual connection's kernel with `from` replaced by `to` in its text, launched as its operator does.
fn residual(device: &Device, from: &str, to: &str) -> Result<(), String> {
    let text = include_str!("../../../shaders/residual.wgsl");
    assert!(text.contains(from), "shaders/residual.wgsl has no `{from}`");
    let kernel = changed("residual", "forward", Width::Vec4, text.replace(from, to));
    let mut inputs = Inputs::new();
    let (inp, branch) = (inputs.values(COUNT), inputs.values(COUNT));
    let want = reference::residual::forward(&wide(&inp), &wide(&branch));
    let magnitude = absolute(&want);
    let shape = [ROWS, COLUMNS];
    let slots = vec![Slot::input("inp", shape), Slot::input("branch", shape), Slot::overwritten("out", shape)];
    let want = Contents::unwritten(STORED_F32.near(want, 1.0, &magnitude));
    let contents = vec![Contents::floats(&inp), Contents::floats(&branch), want];
    let groups = (COUNT as u64 / 4).div_ceil(64);
    verify(device, &planted(format!("{shape:?}"), slots, contents, (kernel, vec![COUNT as u32 / 4], groups)))
}

fn modes() -> [Device; 2] {
    [("release", false), ("checked", true)]
        .map(|(mode, checked)| Device::open(mode, &Options { checked, ..Options::default() }))
}

#[track_caller]
fn red(outcome: Result<(), String>, words: &[&str]) {
    let report = outcome.expect_err("the harness took a wrong kernel for a right one");
    for word in words {
        assert!(report.contains(word), "the report does not say `{word}`: {report}");
    }
}

#[test]
fn the_unchanged_kernel_is_green() {
    for device in modes() {
        residual(&device, "+", "+").unwrap_or_else(|report| panic!("{report}"));
    }
}

#[test]
fn wrong_values_are_red() {
    let sum = "inp[i] + branch[i]";
    for device in modes() {
        for wrong in [
            "inp[i] - branch[i]",
            "inp[i] + branch[i + 1u - 2u * (i % 2u)]",
            "inp[i] + branch[0]",
            "(inp[i] + branch[i]) * 1.000001",
            "inp[i] + branch[i] + select(Vec(), Vec(1.0), i == 110u)",
            "inp[i] + branch[i].xyzx",
        ] {
            red(
                residual(&device, sum, wrong),
                &["planted.kernel [37, 12]", device.mode, "residual.planted", "`out`[", "got", "want"],
            );
        }
    }
}

#[test]
fn one_wrong_element_is_named() {
    for device in modes() {
        let fault = "inp[i] + branch[i] + select(Vec(), Vec(0.0, 0.0, 1.0, 0.0), i == 50u)";
        red(residual(&device, "inp[i] + branch[i]", fault), &["`out`[16, 10]", "; 1 of 444 elements"]);
    }
}

#[test]
fn nan_and_infinity_are_red() {
    for device in modes() {
        for bits in ["0x7fc00000u", "0x7f800000u", "0xff800000u"] {
            let fault =
                format!("inp[i] + branch[i] + select(Vec(), Vec(bitcast<f32>({bits} + params.count - 111u)), i == 3u)");
            red(residual(&device, "inp[i] + branch[i]", &fault), &["`out`[1, 0]"]);
        }
    }
}

#[test]
fn an_unwritten_element_is_red() {
    for device in modes() {
        red(
            residual(&device, "if i >= params.count", "if i + 1u >= params.count"),
            &["`out`[36, 8]", "never written", "; 4 of 444"],
        );
        red(residual(&device, "out[i] =", "if i == 77u { return; } out[i] ="), &["`out`[25, 8]", "never written"]);
    }
}

#[test]
fn accumulating_what_is_to_be_overwritten_is_red() {
    for device in modes() {
        red(residual(&device, "out[i] =", "out[i] +="), &["`out`[0, 0]"]);
    }
}

/// The kernel is handed the guards together with the tensor, since drivers clamp accesses to what is bound.
#[test]
fn writing_past_either_end_is_red() {
    let text = "struct P { first: u32, end: u32 } var<immediate> p: P;
        @group(0) @binding(0) var<storage, read> inp: array<f32>;
        @group(0) @binding(1) var<storage, read_write> out: array<f32>;
        @compute @workgroup_size(64)
        fn forward(@builtin(global_invocation_id) id: vec3<u32>) {
            if id.x >= p.first && id.x < p.end { out[id.x] = inp[0]; }
        }";
    let kernel = KernelId::probe("planted.fill", "forward", text.into());
    let n = 100;
    for device in modes() {
        for (head, first, end, at) in [
            (false, 0, n, None),
            (false, 0, n + 1, Some("at 100 ")),
            (false, 0, n + 64, Some("at 100 ")),
            (true, 128, n + 128, None),
            (true, 127, n + 128, Some("at -1 ")),
            (true, 128, n + 129, Some("at 100 ")),
        ] {
            let slots = vec![Slot::input("inp", [1, 1]), Slot::overwritten("out", [1, n])];
            let contents = vec![Contents::floats(&[1.5]), Contents::unwritten(near(vec![1.5; n], 0.0, 0.0))];
            let recorded = (kernel.clone(), vec![first as u32, end as u32], 4);
            let case = planted(format!("{end}"), slots, contents.clone(), recorded);
            let outcome = verify_with(&device, &case, &contents, Some(&Reach { slot: 1, head, tail: 100 }));
            match at {
                None => outcome.unwrap_or_else(|report| panic!("{report}")),
                Some(at) => red(outcome, &["guard word", at]),
            }
        }
    }
}

#[test]
fn overwriting_what_is_to_be_accumulated_is_red() {
    // no rows of sums: parts alone
    let rows = "const GRADIENTS = 1u; const SHARE = 1u; const KEPT = 2u; @group(0) @binding(3) var<storage, read> rows: array<Vec>;\n\
                fn put(which: u32, c: u32, sum: Vec, adds: bool) {}\n";
    let tree = include_str!("../../../shaders/shared/group_tree.wgsl");
    let parts = include_str!("../../../shaders/sums_parts.wgsl");
    let text = [include_str!("../../../shaders/sums.wgsl"), rows, parts, tree].concat();
    let from = "before[k] + sums[k]";
    assert!(text.contains(from), "shaders/sums_parts.wgsl has no `{from}`");
    for device in modes() {
        for (to, is_red) in [(from, false), ("sums[k]", true), ("before[k] - sums[k]", true)] {
            let kernel = changed("sums", "add_parts", Width::Scalar, text.replace(from, to));
            let mut inputs = Inputs::new();
            let (parts, before) = (inputs.values(3 * 5), inputs.values(5));
            let mut want = wide(&before);
            let _ = reference::sums::add(&wide(&parts), &mut want);
            let slots = vec![
                Slot::input("parts", [3, 5]),
                Slot::accumulated("dweight", [1, 5]),
                Slot::scratch("squares", [1, 1]),
            ];
            let dweight = Contents::floats(&before).wanting(near(want, 4.0, 4.0));
            let contents = vec![Contents::floats(&parts), dweight, Contents::scratch()];
            // 5 elements in 3 parts and 1 workgroup, no squares, no rows, added to what is there
            let immediates = vec![5, 3, 1, u32::MAX, 0, 0, 0, 1];
            let case = planted("[3, 5]".into(), slots, contents, (kernel, immediates, 1));
            let outcome = verify(&device, &case);
            if is_red {
                red(outcome, &["`dweight`[0, 0]"]);
            } else {
                outcome.unwrap_or_else(|report| panic!("{report}"));
            }
        }
    }
}

/// A kernel that counts its runs and lets the count into the last bit: within every tolerance, and still red.
#[test]
fn a_kernel_that_differs_from_run_to_run_is_red() {
    let text = "@group(0) @binding(0) var<storage, read> inp: array<f32>;
        @group(0) @binding(1) var<storage, read_write> out: array<f32>;
        @group(0) @binding(2) var<storage, read_write> runs: array<u32>;
        @compute @workgroup_size(1)
        fn forward() { out[0] = bitcast<f32>(bitcast<u32>(inp[0]) + runs[0]); runs[0] += 1u; }";
    let kernel = KernelId::probe("planted.counter", "forward", text.into());
    for device in modes() {
        let runs = device.run(&device.caps, |gpu| gpu.tensor("runs", 1, 1, Elem::U32).expect("memory"));
        let kernel = kernel.clone();
        let launch = move |pass: &mut Pass, t: &[Tensor]| {
            let tensors = &[&t[0], &t[1], &runs];
            pass.dispatch(&Dispatch {
                kernel: &kernel,
                tensors,
                immediates: Immediates::NONE,
                groups: 1,
                flops: 0,
                bytes: 0,
            })
        };
        let slots = vec![Slot::input("inp", [1, 1]), Slot::overwritten("out", [1, 1])];
        let fill = || vec![Contents::floats(&[1.5]), Contents::unwritten(near(vec![1.5], 4.0, 1.5))];
        let case = Case::new(OpPass::new("planted", "kernel"), "[1]".into(), slots, launch, fill);
        red(verify(&device, &case), &["`out` word 0", "in a second run", "same bits"]);
    }
}

/// Faults in the text of the generated matrix kernels.
#[test]
fn a_wrong_matrix_kernel_is_red() {
    let (m, n, k) = (37, 41, 43);
    let mut inputs = Inputs::new();
    let (a, b) = (inputs.values(m * k), inputs.values(n * k));
    let want = reference::matmul::forward(&wide(&a), &wide(&b), None, m, n, k);
    let magnitude = reference::matmul::forward(&absolute(&wide(&a)), &absolute(&wide(&b)), None, m, n, k);
    let algorithms = [false, true].map(|software| {
        let lanes = if software { 8 } else { 0 };
        matmul::choose::choose(
            &Caps { software, lanes, ..Caps::webgpu_defaults() },
            Product::Forward,
            Elem::F32,
            [m, n, k],
        )
    });
    for device in modes() {
        for algorithm in algorithms {
            let spec = Spec {
                product: Product::Forward,
                algorithm,
                operands: Elem::F32,
                out: Elem::F32,
                epilogue: Epilogue::None,
                accumulate: false,
                parts: 1,
                width: Width::Scalar,
                ragged: true,
            };
            let (x, y) = generate::workgroups(&spec, m as u32, n as u32);
            for (params, is_red) in [
                ([m, n, k, k, k, n, 0, 0, 0, 0, k], false),
                ([m, n, k - 1, k, k, n, 0, 0, 0, 0, k], true),
                ([m - 1, n, k, k, k, n, 0, 0, 0, 0, k], true),
                ([m, n - 1, k, k, k, n, 0, 0, 0, 0, k], true),
                ([m, n, k, k, k, n, 1, 0, 0, 0, k], true),
                ([m, n, k, k, k - 1, n, 0, 0, 0, 0, k], true),
            ] {
                let kernel = KernelId::probe("matmul.planted", "main", generate::wgsl(&spec));
                let slots = vec![Slot::input("a", [m, k]), Slot::input("b", [n, k]), Slot::overwritten("out", [m, n])];
                let want = Contents::unwritten(STORED_F32.near(want.clone(), rounding(k), &magnitude));
                let contents = vec![Contents::floats(&a), Contents::floats(&b), want];
                let recorded = (kernel, params.map(|p| p as u32).to_vec(), u64::from(x) * u64::from(y));
                let outcome = verify(&device, &planted(format!("{m}x{n}x{k}"), slots, contents, recorded));
                if is_red {
                    red(outcome, &["`out`["]);
                } else {
                    outcome.unwrap_or_else(|report| panic!("{report}"));
                }
            }
        }
    }
}
