//! Tests of the formula, of its limits and of the table in ARCHITECTURE.md.

use super::*;

fn card() -> Card {
    Card {
        key: "made".into(),
        name: "made".into(),
        adapters: Vec::new(),
        code: "made".into(),
        counts_of: None,
        units: 100.0,
        clock_ghz: 1.0,
        issue: 4.0,
        fma_flops: 256.0,
        matrix_flops: Some(1024.0),
        matrix_instruction_flops: 4096.0,
        workgroup_bytes: 128.0,
        l2_gb: 3200.0,
        memory_gb: 1000.0,
        registers: 65_536.0,
        workgroup_kib: 100.0,
        group_kib: 48,
        subgroups: 64.0,
        workgroups: 32.0,
        memory_mib: 16 << 10,
        subgroup_size: 32,
        pytorch_tokens_per_s: None,
        batch: 64,
    }
}

const CONSTANTS: Constants = Constants {
    memory_share: 0.8,
    load_cycles: 500.0,
    exposed: 0.98,
    barrier_cycles: 100.0,
    start_cycles: 1000.0,
    dispatch_us: 5.0,
};

/// Returns a tile of 128x128x32 by 8 subgroups: 32 products of 4096 FLOP per iteration and subgroup.
fn product() -> (Code, Work) {
    let main_loop =
        Counts { instructions: 160.0, matrix: 32.0, fma: 0.0, barriers: 2.0, global: 64.0, workgroup: 256.0 };
    let all = Counts { instructions: 800.0, barriers: 18.0, global: 256.0, workgroup: 512.0, ..main_loop };
    let code = Code { registers: 128.0, spills: 0.0, all, main_loop };
    let (m, n, k) = (12_800.0, 1280.0, 3200.0);
    let groups = 1000.0;
    (code, Work { groups, threads: 256.0, workgroup_bytes: 30_720.0, flops: 2.0 * m * n * k, bytes: 1e6 })
}

#[test]
fn the_formula_is_the_published_one() {
    let (code, work) = product();
    // 1000 workgroups on 100 units, each with 100 iterations of its loop
    let (counts, waits) = executed(&card(), Purpose::Product, &code, &work);
    assert_eq!((counts.matrix, waits), (3200.0, 2.0));
    assert_eq!(counts.instructions, 800.0 + 99.0 * 160.0);
    let matrix: f64 = 3200.0 * 8.0 * 4096.0 / 1024.0;
    let issue = (800.0 + 99.0 * 160.0) * 8.0 / 4.0;
    let workgroup = (512.0 + 99.0 * 256.0) * 256.0 / 128.0;
    let alone = 1000.0
        + matrix.max(workgroup)
        + 0.98 * (matrix.min(workgroup) + issue)
        + (18.0 + 99.0 * 2.0) * 100.0
        + 2.0 * 500.0;
    let found = time(&card(), &CONSTANTS, Purpose::Product, &code, &work);
    // registers allow two resident workgroups, workgroup memory three
    let cycles = (10.0 * matrix).max(5.0 * alone);
    assert!((found.ms - (cycles / 1e6 + 0.005)).abs() < 1e-9, "{found:?}, expected {cycles} cycles");
    assert_eq!((found.limiter, found.resident), ("latency", 2.0));
}

#[test]
fn predictions_have_three_digits() {
    for (x, text) in [
        (0.0123456, "0.0123"),
        (1.5, "1.50"),
        (306.2, "306"),
        (214_123.0, "214,000"),
        (999.9, "1,000"),
        (1.14e7, "11,400,000"),
        (0.0, "0"),
    ] {
        assert_eq!(three(x), text);
    }
}

#[test]
fn each_limit_can_be_the_one_that_binds() {
    let (code, work) = product();
    let limiter = |card: &Card, code: &Code, work: &Work| time(card, &CONSTANTS, Purpose::Product, code, work).limiter;
    // with negligible latency
    let many = Card { registers: 1e9, workgroup_kib: 1e6, subgroups: 1e3, ..card() };
    assert_eq!(limiter(&many, &code, &work), "matrix");
    assert_eq!(limiter(&Card { issue: 0.4, ..many.clone() }, &code, &work), "issue");
    assert_eq!(limiter(&Card { workgroup_bytes: 30.0, ..many.clone() }, &code, &work), "workgroup memory");
    assert_eq!(limiter(&Card { l2_gb: 100.0, ..many.clone() }, &code, &work), "L2");
    assert_eq!(limiter(&many, &code, &Work { bytes: 1e10, ..work }), "memory");
    assert_eq!(limiter(&card(), &code, &work), "latency");
}

#[test]
fn a_register_too_many_and_a_workgroup_too_many_cost_what_they_should() {
    let (code, work) = product();
    let ms = |code: &Code, work: &Work| time(&card(), &CONSTANTS, Purpose::Product, code, work).ms - 0.005;
    let cliff = Code { registers: 129.0, ..code };
    assert!((ms(&cliff, &work) / ms(&code, &work) - 2.0).abs() < 1e-6, "one workgroup a unit in place of two");
    // 1001 workgroups take as long as 1200 where two are resident, with the same work each
    let more = |groups: f64| Work { groups, flops: work.flops / work.groups * groups, ..work };
    assert!(ms(&code, &more(1001.0)) > ms(&code, &work));
    assert!((ms(&code, &more(1001.0)) - ms(&code, &more(1200.0))).abs() < 1e-9);
}

#[test]
fn kernels_without_products_take_the_time_of_their_bytes() {
    let all = Counts { instructions: 50.0, global: 32.0, ..Counts::default() };
    let code = Code { registers: 24.0, spills: 0.0, all, main_loop: Counts::default() };
    let work = |bytes: f64| Work { groups: 1e4, threads: 256.0, workgroup_bytes: 0.0, flops: 0.0, bytes };
    let found = time(&card(), &CONSTANTS, Purpose::Elements, &code, &work(1e9));
    assert_eq!(found.limiter, "memory");
    assert!((found.ms - (1e9 / (1000e9 * 0.8) * 1e3 + 0.005)).abs() < 1e-9);
    // one workgroup waits for each of its loads
    let alone = time(&card(), &CONSTANTS, Purpose::Elements, &code, &Work { groups: 1.0, ..work(1e6) });
    assert_eq!(alone.limiter, "latency");
}

#[test]
fn every_kernel_of_the_reference_step_has_machine_code_on_every_card() {
    for (card, prediction) in all_cards(Codes::committed()).expect("predictions") {
        let without: Vec<&Row> = prediction.rows.iter().filter(|row| row.nearest.is_some()).collect();
        assert!(without.is_empty(), "{}: {without:#?}", card.key);
        assert!(prediction.ms() > 50.0, "{}: {} ms", card.key, prediction.ms());
        let kernels: f64 = prediction.rows.iter().map(|row| row.ms).sum();
        let limits: f64 = prediction.limits().iter().map(|limit| limit.1).sum();
        assert!((kernels / limits - 1.0).abs() < 1e-9);
    }
}

#[test]
fn other_models_take_the_nearest_kernels_and_say_so() {
    let card = Card::find("h100").expect("a card");
    let config = Config::new(1024, 50_257, 2, 10, 800).expect("heads of 80");
    let sizes = Sizes { batch: 4, context: 1024, accumulation: 1 };
    let step = Step { config, sizes, recompute: Recompute::None };
    let prediction = predict(card, Codes::committed(), &step, Elem::F16).expect("predicted");
    let report = prediction.report();
    assert!(report.contains("no machine code of its own; predicted as attention_coop.forward.hs64"), "{report}");
    assert!(report.contains("predicted, not measured") && report.contains("rough: "), "{report}");
    // for a candidate of tuning: the kernel with the same end, not the one with the longest common beginning
    let nearest = Codes::committed().nearest(
        "hopper",
        "matmul_coop.forward",
        "matmul_coop.forward.128x128x16.2x4.e16.bias_residual.wide",
    );
    assert_eq!(nearest.map(|found| found.0), Some("matmul_coop.forward.128x128x32.2x4.e16.bias_residual.wide"));
    // a step of the committed machine code does not recompute
    let again = Step { recompute: Recompute::Ln, ..step };
    let report = predict(card, Codes::committed(), &again, Elem::F16).expect("predicted").report();
    assert!(
        report.contains("gelu.forward.f16.wide: no machine code of its own; predicted as memory traffic"),
        "{report}"
    );
    let none = Codes::read("none", "[]").expect("a list");
    let error = predict(card, &none, &step, Elem::F16).expect_err("no code at all").to_string();
    assert!(error.contains("no machine code of this operator for NVIDIA H100"), "{error}");
    assert!(Codes::read("file", "{}").is_err());
    let row = |registers: &str, instructions: &str| {
        let text = format!(
            "[{{\"gpu\":\"g\",\"kernel\":\"k\",\"registers\":{registers},\"spills\":0,\"instructions\":{instructions}}}]"
        );
        Codes::read("file", &text)
    };
    assert!(row("24", "100").is_ok());
    for (registers, instructions) in [("0", "100"), ("24", "-1"), ("24", "1e308"), ("1e308", "1")] {
        assert!(row(registers, instructions).is_err(), "{registers} {instructions}");
    }
}

/// The table in ARCHITECTURE.md is the prediction that measurements are compared with.
#[test]
fn the_table_in_architecture_md_is_what_the_model_says() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/ARCHITECTURE.md")).expect("the file");
    let lines = lines(Codes::committed()).expect("predictions");
    let missing: Vec<&String> = lines.iter().filter(|line| !text.contains(*line)).collect();
    assert!(missing.is_empty(), "ARCHITECTURE.md lacks lines of its table of predictions:\n{}", lines.join("\n"));
}
