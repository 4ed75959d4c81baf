//! Planted faults. Each must be found, and the faulty kernel must be named.

use super::*;
use crate::gpu::{Arithmetic, Options, Pass, Program, Tensor};
use crate::measure::Roofs;

/// Opens a device with matrices of f16, if the adapter has them.
fn device() -> Option<Gpu> {
    let options = Options { matrices: true, ..Options::default() };
    let gpu = Gpu::open(&options).unwrap_or_else(|e| panic!("{e}"));
    if !gpu.caps.f16 || gpu.caps.matrix_edges.is_empty() {
        crate::not_run::not_run("planted faults of tuning", "the adapter has no matrices of f16");
        return None;
    }
    Some(gpu)
}

fn roofs() -> Roofs {
    let rate = 1e18;
    Roofs {
        copy: rate,
        copy_kernel: rate,
        fused_f32: rate,
        fused_f16: Some(rate),
        matrix: Some(rate),
        matrix_flexible: None,
        matrix_fed: None,
        fuses: None,
        notes: Vec::new(),
    }
}

/// Returns the trials of candidates with planted faults.
fn tried(gpu: &mut Gpu, work: Work, list: &[Choice], roofs: &Roofs, planted: Planted) -> Vec<Trial> {
    tried_in(gpu, "planted", work, list, roofs, planted)
}

/// Like [`tried`], for a layer of a model.
fn tried_in(
    gpu: &mut Gpu,
    layer: &'static str,
    work: Work,
    list: &[Choice],
    roofs: &Roofs,
    planted: Planted,
) -> Vec<Trial> {
    let job = &Job { layer, work, times: 1 };
    let (time, ceiling) = (Duration::from_secs(600), &RefCell::new(Ceiling::new(roofs.clone())));
    // asked before each candidate but the first, and then before each further run, which is not needed here
    let asked = std::cell::Cell::new(0);
    let stop = || asked.replace(asked.get() + 1) + 1 >= list.len();
    let attempt = Attempt { job, elem: Elem::F16, ceiling, card: None, time, stop: &stop, planted };
    attempt.run(gpu, Some(list.to_vec())).expect("trials").trials
}

/// Returns candidates that CPU drivers compile in seconds: two with matrices of different depths, and one without
/// matrices.
fn small(gpu: &Gpu) -> Vec<Choice> {
    let is_small = |algorithm: &Algorithm| match algorithm {
        Algorithm::Coop(c) => c.tile_m == 32 && c.tile_k < 64 && c.buffers == 1,
        Algorithm::Tiled { tile_m, thread_m, .. } => [*tile_m, *thread_m] == [64, 8],
        Algorithm::Rows { .. } => false,
    };
    let list: Vec<Choice> =
        choose::candidates(&gpu.caps, Elem::F16).into_iter().filter(is_small).map(Choice::Product).collect();
    assert_eq!(list.len(), 3, "{list:?}");
    list
}

/// Returns the one kernel that is refused, and the reason. All others must be correct.
fn refused(trials: &[Trial]) -> (&str, &str) {
    let mut refused = trials.iter().filter_map(|trial| Some((trial.kernel.as_str(), trial.outcome.as_ref().err()?)));
    let (kernel, why) = refused.next().expect("one is refused");
    assert_eq!(refused.next(), None, "one alone");
    assert!(trials.len() > 1);
    (kernel, why)
}

/// Returns a program that also clears a part of its output.
fn clearing(gpu: &Gpu, program: &Program, part: &Tensor) -> Program {
    let mut pass = Pass::new(gpu);
    pass.clear(part);
    Program::join([program, &pass.finish()])
}

const SHAPE: [usize; 3] = [1000, 64, 72];

#[test]
fn planted_faults_of_products_are_found_and_named() {
    let Some(mut gpu) = device() else { return };
    let list = small(&gpu);
    for product in [Product::Forward, Product::BackwardInp, Product::BackwardWeight] {
        let work = Work::Product(product, SHAPE);
        let sound = tried(&mut gpu, work, &list, &roofs(), NO_FAULTS);
        assert!(sound.iter().all(|trial| trial.outcome.is_ok()), "{sound:?}");
        let names: Vec<String> = sound.into_iter().map(|trial| trial.kernel).collect();
        assert!(names.len() == 3 && names[0] != names[1] && names[1] != names[2], "{names:?}");
        if product == Product::BackwardInp {
            continue;
        }
        for (wrong, row) in [(1, 617), (2, 999)] {
            let plant = |gpu: &Gpu, name: &str, program: Program, out: &Tensor| {
                if name == names[wrong] { clearing(gpu, &program, &out.slice(row..row + 1)) } else { program }
            };
            let trials = tried(&mut gpu, work, &list, &roofs(), Planted { program: &plant, ..NO_FAULTS });
            let (kernel, why) = refused(&trials);
            assert_eq!(kernel, names[wrong]);
            assert!(why.contains(&format!("row {row}, column 0: 0e0, expected ")), "{why}");
            assert!(why.contains("64 of 64000 elements are wrong"), "{why}");
        }
        if product == Product::BackwardWeight {
            continue;
        }
        let plant = |gpu: &Gpu, name: &str, program: Program, out: &Tensor| {
            if name == names[0] { clearing(gpu, &program, out) } else { program }
        };
        let trials = tried(&mut gpu, work, &list, &roofs(), Planted { program: &plant, ..NO_FAULTS });
        let (kernel, why) = refused(&trials);
        assert!(kernel == names[0] && why.starts_with("all results are zero: `out`, expected about 9."), "{why}");

        let stopped = |name: &str, ms: f64| if name == names[1] { 0.0 } else { ms };
        let trials = tried(&mut gpu, work, &list, &roofs(), Planted { ms: &stopped, ..NO_FAULTS });
        assert_eq!(refused(&trials), (names[1].as_str(), "0 ms by the device's clock"));

        // 9,216,000 operations in a microsecond are 9.216 TFLOP/s
        let fast = |name: &str, ms: f64| if name == names[1] { 1e-3 } else { ms };
        let low = Roofs { matrix: Some(2e12), ..roofs() };
        let trials = tried(&mut gpu, work, &list, &low, Planted { ms: &fast, ..NO_FAULTS });
        assert_eq!(refused(&trials), (names[1].as_str(), "9.216 TFLOP/s, the measured roof is 2.000"));
    }
}

/// Products have the same ends as in training, and the results of the ends are compared too.
#[test]
fn kernels_that_train_are_those_that_are_tried() {
    let Some(mut gpu) = device() else { return };
    let list = small(&gpu);
    for (layer, product, end) in [
        ("qkv", Product::Forward, ".bias"),
        ("attproj", Product::Forward, ".bias_residual"),
        ("fcproj", Product::Forward, ".bias_residual"),
        ("fc", Product::Forward, ".bias_gelu"),
        ("head", Product::Forward, ""),
        ("fcproj", Product::BackwardInp, ".gelu_backward"),
        ("fc", Product::BackwardInp, ""),
    ] {
        let trials = tried_in(&mut gpu, layer, Work::Product(product, SHAPE), &list[1..], &roofs(), NO_FAULTS);
        for trial in &trials {
            assert!(trial.outcome.is_ok(), "{layer}: {trial:?}");
            let found = trial.kernel.split('.').find(|part| part.starts_with("bias") || part.starts_with("gelu"));
            assert_eq!(found.unwrap_or_default(), end.trim_start_matches('.'), "{layer}: {trial:?}");
        }
    }
}

/// Returns a bench and the program of the candidate `choice`.
fn bench(gpu: &mut Gpu, layer: &str, product: Product, shape: [usize; 3], choice: Choice) -> (ProductBench, Program) {
    let bench = ProductBench::new(gpu, layer, product, shape, Elem::F16).expect("a bench");
    let record = [(choose::key(product, Elem::F16, shape), choice.text().expect("JSON"))];
    gpu.caps.tuned = std::sync::Arc::new(record.into());
    let program = bench.record(gpu).expect("recorded");
    gpu.caps.tuned = std::sync::Arc::default();
    (bench, program)
}

#[test]
fn planted_faults_of_second_results_are_found() {
    use check::Verdict;
    let Some(mut gpu) = device() else { return };
    let list = small(&gpu);
    for choice in [list[0], list[2]] {
        let (bench, program) = bench(&mut gpu, "fc", Product::Forward, SHAPE, choice);
        assert_eq!(bench.check(&gpu, &program).expect("checked"), Verdict::Right);
        let gelu = bench.end.second().expect("GELU");
        let faulty = clearing(&gpu, &program, &gelu.slice(617..618));
        let verdict = bench.check(&gpu, &faulty).expect("checked");
        assert!(matches!(&verdict, Verdict::Wrong(text) if text.starts_with("`gelu` row 617, column ")), "{verdict:?}");
    }
    // at depth 1024, kernels with matrices work in parts and also sum columns; the others leave that to another kernel
    for (choice, fused) in [(list[0], true), (list[2], false)] {
        let shape = [64, 48, 1024];
        let (bench, program) = bench(&mut gpu, "qkv", Product::BackwardWeight, shape, choice);
        let names: Vec<&str> = program.commands.iter().map(crate::gpu::Command::name).collect();
        assert_eq!(names.iter().any(|name| name.contains("column_sums")), fused, "{names:?}");
        assert_eq!(names.iter().any(|name| name.starts_with("bias.backward")), !fused, "{names:?}");
        assert!(program.commands.iter().all(|c| c.kernel().is_some_and(|kernel| bench.is_timed(kernel))));
        assert_eq!(bench.check(&gpu, &program).expect("checked"), Verdict::Right);
        let sums = bench.end.second().expect("column sums");
        let faulty = clearing(&gpu, &program, &sums.flat(41..42));
        let verdict = bench.check(&gpu, &faulty).expect("checked");
        assert!(matches!(&verdict, Verdict::Wrong(text) if text.starts_with("`dbias` column 41: 0e0")), "{verdict:?}");
    }
}

/// Integrated GPUs cut deep products into pieces and store the sum as f16 in between.
#[test]
fn products_in_pieces_are_right() {
    use check::Verdict;
    let Some(mut gpu) = device() else { return };
    let list = small(&gpu);
    gpu.caps.most_flops = 1;
    for (layer, choice) in [("head", list[0]), ("fcproj", list[2])] {
        let (bench, program) = bench(&mut gpu, layer, Product::BackwardInp, [150, 48, 2000], choice);
        let added = program.commands.iter().filter(|c| c.kernel().is_some_and(crate::ops::matmul::accumulates)).count();
        assert_eq!((program.commands.len(), added), (32, 30));
        assert_eq!(bench.check(&gpu, &program).expect("checked"), Verdict::Right);
        // without the tolerance for pieces a correct kernel would be refused
        let alone = bench.target.all(&gpu, &gpu.tensor("counts", 3, 1, Elem::U32).expect("memory"), &|_, _| 0.0);
        assert!(matches!(alone.expect("compared"), Verdict::Wrong(_)));
        for row in [0, 140] {
            let faulty = clearing(&gpu, &program, &bench.target.got.slice(row..row + 1));
            let verdict = bench.check(&gpu, &faulty).expect("checked");
            let place = format!("`out` row {row}, column ");
            assert!(matches!(&verdict, Verdict::Wrong(text) if text.starts_with(&place)), "{verdict:?}");
        }
    }
}

#[test]
fn planted_faults_of_attention_are_found_and_named() {
    let Some(mut gpu) = device() else { return };
    if gpu.caps.software {
        // pretend that a CPU driver is fast with matrices
        gpu.caps.emulated_edge = Some(8);
    }
    // early and late rows of both batches, of sequences that do not fill a block and of one that does; the backward pass,
    // whose kernels CPU drivers compile longest, at one length
    let c = 32;
    let (short, full) = ((150, &[1, 77, 149, 299][..]), (256, &[128, 511][..]));
    for (entry, lengths, list) in [
        (AttentionKernel::Forward, &[short, full][..], vec![("out", 0, c)]),
        (AttentionKernel::BackwardQ, &[short], vec![("dq", 0, 3 * c)]),
        (AttentionKernel::BackwardKv, &[short], vec![("dk", c, 3 * c), ("dv", 2 * c, 3 * c)]),
    ] {
        for &(positions, rows) in lengths {
            let sizes = AttentionShape { batch: 2, positions, heads: 2, head_size: 16 };
            let work = Work::Attention(entry, sizes);
            let candidates = small_blocks(&gpu, entry);
            let sound = tried(&mut gpu, work, &candidates, &roofs(), NO_FAULTS);
            assert!(sound.len() == candidates.len() && sound.iter().all(|trial| trial.outcome.is_ok()), "{sound:?}");
            let choice = candidates[candidates.len() - 1];
            let (wrong, (bench, program)) =
                (&sound[candidates.len() - 1].kernel, attention_bench(&mut gpu, entry, sizes, choice));
            assert!(wrong.contains(&format!(".{}.", entry.name())), "{wrong}");
            assert_eq!(bench.name(&program), *wrong);
            for &(name, first, line) in &list {
                let is_named = |row: usize, why: &str| {
                    let column = why.strip_prefix(&format!("`{name}` row {row}, column "));
                    let column = column.and_then(|rest| rest.split(':').next()?.parse::<usize>().ok());
                    column.is_some_and(|x| (first..first + c).contains(&x))
                };
                let part = |row: usize| row * line + first..row * line + first + c;
                for &row in rows {
                    let faulty = clearing(&gpu, &program, &bench.output().flat(part(row)));
                    let verdict = bench.check(&gpu, &faulty).expect("checked");
                    assert!(matches!(&verdict, check::Verdict::Wrong(why) if is_named(row, why)), "{verdict:?}");
                }
                if candidates.len() > 1 {
                    let plant = |gpu: &Gpu, name: &str, program: Program, out: &Tensor| {
                        if name == wrong { clearing(gpu, &program, &out.flat(part(rows[0]))) } else { program }
                    };
                    let trials = tried(&mut gpu, work, &candidates, &roofs(), Planted { program: &plant, ..NO_FAULTS });
                    let (kernel, why) = refused(&trials);
                    assert!(kernel == wrong && is_named(rows[0], why), "{why}");
                }
            }
        }
    }
    // called here, because it needs the same kernels
    a_single_position_is_right(&mut gpu);
}

/// Returns a bench of attention and the program of the candidate `choice`.
fn attention_bench(
    gpu: &mut Gpu,
    entry: AttentionKernel,
    sizes: AttentionShape,
    choice: Choice,
) -> (AttentionBench, Program) {
    let bench = AttentionBench::new(gpu, entry, sizes).expect("a bench");
    let key = Job { layer: "planted", work: Work::Attention(entry, sizes), times: 1 }.key(Elem::F16);
    gpu.caps.tuned = std::sync::Arc::new([(key, choice.text().expect("JSON"))].into());
    let program = bench.record(gpu).expect("recorded");
    gpu.caps.tuned = std::sync::Arc::default();
    (bench, program)
}

/// Returns the candidates with the fewest operations on matrices, which CPU drivers compile in seconds: two of the
/// forward pass, and one of the others.
fn small_blocks(gpu: &Gpu, entry: AttentionKernel) -> Vec<Choice> {
    let mut blocks = crate::ops::attention::candidates(&gpu.caps, entry, 16);
    blocks.sort_by_key(|block| (block.rows / block.grid_m * block.columns, block.rows));
    let most = if entry == AttentionKernel::Forward { 2 } else { 1 };
    blocks.truncate(most);
    assert_eq!(blocks.len(), most, "{blocks:?}");
    blocks.into_iter().map(Choice::Attention).collect()
}

/// With a single position the gradients of q and k are zero, and all kernels must be accepted.
fn a_single_position_is_right(gpu: &mut Gpu) {
    let sizes = AttentionShape { batch: 3, positions: 1, heads: 2, head_size: 16 };
    for entry in AttentionKernel::ALL {
        let list = small_blocks(gpu, entry);
        let trials = tried(gpu, Work::Attention(entry, sizes), &list, &roofs(), NO_FAULTS);
        assert!(
            trials.len() == list.len() && trials.iter().all(|trial| trial.outcome.is_ok()),
            "{entry:?}: {trials:?}"
        );
    }
}

/// If a candidate and the plain kernel disagree, f64 decides.
#[test]
fn the_plain_kernel_may_be_the_wrong_one() {
    use check::{Target, Tolerance, Verdict};
    let gpu = Gpu::open(&Options::default()).unwrap_or_else(|e| panic!("{e}"));
    let tensor = |label: &str, values: &[f32]| {
        let tensor = gpu.tensor(label, values.len() / 5, 5, Elem::F32).expect("memory");
        gpu.write(&tensor, bytemuck::cast_slice(values)).expect("written");
        tensor
    };
    let (right, mut wrong) = (vec![1.0; 35], vec![1.0; 35]);
    wrong[23] = 1.01;
    let result = gpu.tensor("counts", 3, 1, Elem::U32).expect("memory");
    let verdict = |got: &[f32], want: &[f32]| {
        let tolerance = Tolerance { sums: 1e-3, plain: 1e-4, stored: 1e-3 };
        let (got, want) = (tensor("got", got), tensor("want", want));
        let target = Target { name: "out", got, want, columns: 0..5, tolerance, typical: 1.0 };
        target.all(&gpu, &result, &|_, _| 1.0).expect("compared")
    };
    assert_eq!(verdict(&right, &right), Verdict::Right);
    let place = "`out` row 4, column 3: 1.00999";
    let is_at = |text: &str| text.starts_with(place);
    assert!(matches!(verdict(&wrong, &right), Verdict::Wrong(text) if is_at(&text) && text.contains("1 of 35")));
    assert!(matches!(verdict(&right, &wrong), Verdict::PlainWrong(text) if is_at(&text)));
    let mut nan = right.clone();
    nan[34] = f32::NAN;
    assert!(matches!(verdict(&nan, &right), Verdict::Wrong(text) if text.contains("row 6, column 4: NaN")));
    assert!(matches!(verdict(&[0.0; 35], &right), Verdict::Wrong(text) if text.starts_with("all results are zero")));
}

#[test]
fn the_fastest_of_the_right_ones_is_best() {
    let block = |rows| Choice::Attention(BlockSizes { rows, columns: 16, grid_m: 4 });
    let trial = |rows, outcome| Trial {
        choice: block(rows),
        kernel: rows.to_string(),
        arithmetic: Arithmetic::Matrix,
        predicted_ms: None,
        outcome,
    };
    let trials = [trial(16, Ok(3.0)), trial(32, Err("wrong".into())), trial(64, Ok(2.0))];
    assert_eq!(best(&trials).map(|(trial, ms)| (trial.kernel.as_str(), ms)), Some(("64", 2.0)));
    assert!(best(&trials[1..2]).is_none());

    let best_of = |table: f64, other: f64| {
        let trials = [trial(16, Ok(table)), trial(32, Ok(other))];
        best(&trials).map(|(trial, ms)| (trial.kernel.clone(), ms))
    };
    assert_eq!(best_of(1.015, 1.0), Some(("16".into(), 1.015)), "less than 2 % may be noise");
    assert_eq!(best_of(1.03, 1.0), Some(("32".into(), 1.0)));
}

/// Without time only the first kernel is tried; the recorded kernel is tried second.
#[test]
fn time_that_ran_out_makes_no_race_and_the_record_comes_second() {
    let mut gpu = Gpu::open(&Options::default()).unwrap_or_else(|e| panic!("{e}"));
    let (elem, shape) = (Elem::F32, [64, 96, 32]);
    let job = Job { layer: "planted", work: Work::Product(Product::Forward, shape), times: 1 };
    let list = job.candidates(&gpu.caps, elem);
    let last = *list.last().expect("candidates");
    assert!(list.len() > 2, "{list:?}");
    let ceiling = RefCell::new(Ceiling::new(roofs()));
    let none = try_all(&mut gpu, &job, elem, (&ceiling, None), Duration::ZERO, &|| false).expect("trials");
    assert!(none.trials.len() == 1 && none.left == list.len() - 1 && !none.may_be_recorded(), "{none:?}");

    let record = std::collections::BTreeMap::from([(job.key(elem), last.text().expect("JSON"))]);
    gpu.caps.tuned = std::sync::Arc::new(record);
    assert_eq!(job.recorded(&gpu.caps, elem), Some(last));
    // the default and one more: stop after the second
    let asked = std::cell::Cell::new(0);
    let stop = || asked.replace(asked.get() + 1) > 0;
    let two = try_all(&mut gpu, &job, elem, (&ceiling, None), Duration::from_secs(600), &stop).expect("trials");
    assert_eq!(two.trials.iter().map(|trial| trial.choice).collect::<Vec<_>>(), [list[0], last]);
    assert!(two.may_be_recorded() && two.left == list.len() - 2, "{two:?}");
}

/// A roof that was measured on a busy machine is measured again before a kernel is refused.
#[test]
fn a_roof_that_is_too_low_is_measured_again() {
    let gpu = Gpu::open(&Options::default()).unwrap_or_else(|e| panic!("{e}"));
    let mut ceiling = Ceiling::new(Roofs { fused_f32: 1.0, ..roofs() });
    assert_eq!(ceiling.refuses(&gpu, Arithmetic::F32, 1e6, 1.25).expect("measured"), None);
    let roof = ceiling.roofs().fused_f32;
    assert!(roof > 1e6 && !ceiling.exceeded());
    // only once
    let mut low = Ceiling { roofs: Roofs { fused_f32: 1.0, ..roofs() }, ..ceiling.clone() };
    assert_eq!(low.refuses(&gpu, Arithmetic::F32, 2.0, 1.25).expect("not measured"), Some(1.0));
    assert_eq!(ceiling.refuses(&gpu, Arithmetic::F32, roof * 1.1, 1.25).expect("not measured"), None);
    assert!(ceiling.exceeded());
}

#[test]
fn a_model_has_fifteen_products_and_three_kernels_of_attention_largest_first() {
    let config = Config::from_descriptor("d12").expect("known");
    let caps = Caps { f16: true, max_binding_bytes: 1 << 31, ..Caps::webgpu_defaults() };
    let without = jobs(&caps, &config, Elem::F16, [64, 1024]);
    assert_eq!(without.len(), 15);
    let matrices = Caps { matrix_edges: vec![16], subgroups: true, subgroup_sizes: (32, 32), ..caps };
    let jobs = jobs(&matrices, &config, Elem::F16, [64, 1024]);
    assert_eq!(jobs.len(), 18);
    assert!(jobs.windows(2).all(|two| two[0].step_flops() >= two[1].step_flops()));

    assert_eq!((jobs[0].layer, jobs[0].times > 1), ("head", true));
    let weight = Work::Product(Product::BackwardWeight, [768, 768, 65_536]);
    assert!(jobs.iter().any(|job| job.work == weight && job.times == 12));
    let sum: f64 = without.iter().map(Job::step_flops).sum();
    let parameters = 12.0 * 12.0 * 768.0 * 768.0 + 50_304.0 * 768.0;
    assert!((sum / (6.0 * parameters * 65_536.0) - 1.0).abs() < 0.02, "{sum:e}");
}
